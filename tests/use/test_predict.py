"""Any recording in, a judgement out: formats, lengths, channels, and what cannot be judged."""

import json
import math
import shutil
import tracemalloc

import av
import numpy as np
import pytest
import soundfile as sf
import torch
from scipy.stats import norm

from wedefense_nb.data.audio import AudioError, load
from wedefense_nb.data.manifest import open_manifest
from wedefense_nb.localization.localizers import localize
from wedefense_nb.models.committee import committee
from wedefense_nb.models.detector import build, load_model, save_model
from wedefense_nb.scores.calibration import AffineCalibration, save_calibration
from wedefense_nb.task import BONAFIDE, SPOOF, posterior
from wedefense_nb.training.scoring import score
from wedefense_nb.understanding.quality import waves_of
from wedefense_nb.understanding.reference import Reference
from wedefense_nb.use import predict
from wedefense_nb.use.predict import (
    CANNOT_SAY,
    Evidence,
    Predictor,
    add_reference,
    correlation_within,
    cut_stream,
    effective_number,
    file_print,
    in_words,
    learn_evidence,
    plan_windows,
)

RATE = 16_000


@pytest.fixture(scope="module")
def folder(few, tmp_path_factory):
    """An untrained detector with a calibration, and a reference of a few recordings."""
    torch.manual_seed(0)
    place = save_model(build("bands"), tmp_path_factory.mktemp("predict") / "model")
    save_calibration(AffineCalibration().fit([0.0, 1.0, 2.0, 3.0], [0, 1, 0, 1]), place / "calibration.json")
    (place / "card.md").write_text("# Nothing learned")
    return add_reference(place, few, data="few")


@pytest.fixture(scope="module")
def predictor(folder):
    """It refuses nothing for its embedding or its sound: the reference was made of a handful."""
    made = Predictor.from_folder(folder)
    made.reference.limits = dict.fromkeys(made.reference.limits, 1e9)
    return made


@pytest.fixture(scope="module")
def voice(samples) -> np.ndarray:
    return load(samples.paths()[2])[0]


# Evidence of several windows


def test_the_effective_number_lies_between_one_and_all():
    n = np.arange(1, 50)
    assert np.allclose(effective_number(n, 0.0), n) and np.allclose(effective_number(n, 1.0), 1)
    assert (np.diff(effective_number(n, 0.3)) > 0).all() and effective_number(1e9, 0.3) == pytest.approx(1 / 0.3)
    assert effective_number(0.5, 0.5) < 1
    with pytest.raises(ValueError, match="between 0 and 1"):
        effective_number(2, 1.1)


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.8])
def test_the_rule_is_the_llr_of_the_model_that_it_was_derived_from(rho):
    """Against densities: the mean of n windows of two Gaussians."""
    mean = np.linspace(-3, 3, 7)
    for n in (1, 3, 10):
        spread = math.sqrt(rho + (1 - rho) / n)
        exact = norm.logpdf(mean, 1, spread) - norm.logpdf(mean, -1, spread)
        evidence = Evidence(2.0, 2.0, rho, a=2.0, b=0.0, drawn=np.zeros((0, 3)))
        assert np.allclose([evidence.llr(m, 2.0 * n)[0] for m in mean], exact)


def test_halves_find_the_correlation_of_wholes():
    rng = np.random.default_rng(0)
    y = np.repeat([SPOOF, BONAFIDE], 20_000)
    own = math.sqrt(0.4) * rng.normal(size=(len(y), 1)) + 5.0 * y[:, None]
    halves = own + math.sqrt(2 * 0.6) * rng.normal(size=(len(y), 2))
    assert correlation_within(*halves.T, y) == pytest.approx(0.4, abs=0.02)
    assert correlation_within(*rng.normal(size=(2, len(y))) + 3 * y, y) == pytest.approx(0.0, abs=0.03)
    assert correlation_within([1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, -1.0, 1.0], [0, 0, 1, 1]) == 0.0


def test_evidence_of_dev_is_learned_drawn_saved_and_read(tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(80) % 2
    own = rng.normal(size=80) + 2 * y
    halves = own[:, None] + rng.normal(size=(80, 2))
    scores = halves.mean(axis=1)
    lengths = np.linspace(1, 3, 80)
    learned = learn_evidence(scores, halves, y, lengths, n=50)
    want = AffineCalibration().fit(scores, y)
    assert (learned.a, learned.b) == (want.a_, want.b_) and learned.window == pytest.approx(2.9)
    value, low, high = learned.llr(1.0, 2.0)
    assert low < value < high and value == pytest.approx(want.transform([1.0])[0])
    again = Evidence.load(learned.save(tmp_path).parent)
    assert again.llr(1.0, 9.0) == pytest.approx(learned.llr(1.0, 9.0), abs=1e-4)
    assert (
        learned.llr(3.0, 0.1)[0] < learned.llr(3.0, 1.1)[0] == learned.llr(3.0, 2.9)[0] < learned.llr(3.0, 9.0)[0]
    )
    content = json.loads((tmp_path / "evidence.json").read_text())
    for wrong in ({"rho": 2}, {"window": 0}, {"a": None}, {"drawn": [1]}, {"b": math.inf}):
        (tmp_path / "evidence.json").write_text(json.dumps(content | wrong))
        with pytest.raises(ValueError, match=r"evidence.json: not what"):
            Evidence.load(tmp_path)


# Windows


@pytest.mark.parametrize("total, size", [(10, 4), (4, 4), (3, 4), (1001, 100), (5, 4), (1, 7)])
def test_windows_cover_everything_and_overlap_by_half_at_least(total, size):
    plan = plan_windows(total, size)
    assert plan[0][0] == 0 and plan[-1][1] == total and all(b - a == min(total, size) for a, b in plan)
    steps = np.diff([a for a, _ in plan])
    assert (steps > 0).all() and (steps <= math.ceil(size / 2)).all()


@pytest.mark.parametrize("piece", [1, 3, 7, 100])
def test_windows_of_a_stream_are_those_of_the_whole(piece):
    wave = np.arange(50.0).reshape(2, 25)
    plan = [(0, 6), (2, 8), (9, 12), (19, 25)]
    got = list(cut_stream(iter(np.array_split(wave, math.ceil(25 / piece), axis=1)), plan))
    assert all(np.array_equal(w, wave[:, a:b]) for w, (a, b) in zip(got, plan, strict=True))


# Recordings


def test_a_short_recording_gets_the_llr_of_its_score(folder, predictor, samples):
    part = samples.subset(utt=list(samples.utterances.utt[2:5]))
    table = score(load_model(folder), part, progress=False)
    evidence = Evidence.load(folder)
    for path, want, seconds in zip(part.paths(), table.score, part.utterances.duration, strict=True):
        judged = predictor.detect(path)
        if seconds <= evidence.window:
            assert judged.score == pytest.approx(want, abs=1e-4)
        assert judged.decision == ("bonafide" if judged.llr >= 0 else "spoof")
        assert judged.low <= judged.llr <= judged.high
        assert judged.posterior == pytest.approx(posterior(judged.llr, 0.5))


def test_prior_and_costs_move_the_decision_and_are_stated(predictor, samples):
    path = samples.paths()[2]
    sure = predictor.detect(path, p_spoof=1e-6)
    doubt = predictor.detect(path, p_spoof=0.999999)
    assert sure.llr == doubt.llr and (sure.decision, doubt.decision) == ("bonafide", "spoof")
    assert predictor.detect(path, 0.5, c_fa=1e9).decision == "spoof"
    assert "100% of such recordings" in doubt.text() and sure.p_spoof == 1e-6
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        predictor.detect(path, p_spoof=1.0)


def encoded(path, wave: np.ndarray, codec: str, rate: int = 44_100):
    """A file that FFmpeg writes."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        fit = av.AudioResampler(format=stream.format.name, layout="mono", rate=rate, frame_size=stream.frame_size)
        for piece in [*fit.resample(frame), *fit.resample(None)]:
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return path


def test_formats_of_all_kinds_are_read(predictor, voice, tmp_path):
    want = predictor.detect(saved(tmp_path / "a.wav", voice))
    sf.write(tmp_path / "b.mp3", voice, RATE)
    encoded(tmp_path / "c.m4a", voice, "aac")
    encoded(tmp_path / "d.opus", voice, "libopus", 48_000)
    sf.write(tmp_path / "e.wav", voice[::2], 8000, subtype="ULAW")
    for name, codec in (("b.mp3", "mp3"), ("c.m4a", "aac"), ("d.opus", "opus"), ("e.wav", "pcm_mulaw")):
        judged = predictor.detect(tmp_path / name)
        assert judged.quality.codec.startswith(codec) and judged.quality.duration == pytest.approx(
            want.quality.duration, abs=0.1
        )
        assert judged.decision in ("bonafide", "spoof"), judged.reasons
    assert "telephone" in predictor.detect(tmp_path / "e.wav").quality.traces[0]


def saved(path, wave, rate: int = RATE):
    sf.write(path, wave, rate, subtype="FLOAT")
    return path


def test_channels_are_judged_alone_and_mixed(predictor, voice, tmp_path):
    other = voice[::-1].copy()
    judged = predictor.detect(saved(tmp_path / "a.wav", np.stack([voice, other], 1)))
    mixed = predictor.detect(saved(tmp_path / "m.wav", (voice + other) / 2))
    assert judged.llr == pytest.approx(mixed.llr, abs=1e-4) and judged.quality.channels == 2
    alone = predictor.detect(saved(tmp_path / "l.wav", voice))
    assert judged.channels["channel 1"] == pytest.approx(alone.llr, abs=0.1) and len(judged.channels) == 2
    same = predictor.detect(saved(tmp_path / "s.wav", np.stack([voice, voice], 1)))
    assert list(same.channels.values()) == pytest.approx([same.llr] * 2, abs=1e-5)
    assert mixed.channels == {}


def test_channels_that_differ_are_a_caveat(predictor):
    opinions = {"channel 1": 2.0, "channel 2": -3.0}
    (said,) = predictor._caveats("bonafide", 0.5, 1.5, 0.0, opinions, [{"llr": 1.0, "counted": True}])
    assert said == "the channels differ (channel 1 +2.0, channel 2 -3.0)"


def test_a_long_recording_is_the_mean_of_windows_and_pieces_do_not_matter(predictor, voice, tmp_path, monkeypatch):
    wave = np.tile(voice, 12)
    path = saved(tmp_path / "long.wav", wave)
    judged = predictor.detect(path)
    size = round(predictor.evidence.window * RATE)
    plan = plan_windows(len(wave), size)
    windows = torch.from_numpy(np.stack([wave[a:b] for a, b in plan])).float()
    with torch.no_grad():
        want = predictor.model.score(predictor.model(windows, torch.full((len(plan),), size)))
    course = judged.table()
    assert np.allclose(course.score, want, atol=1e-4) and course.counted.all()
    assert judged.llr == pytest.approx(predictor.evidence.llr(float(want.mean()), len(wave) / RATE)[0], abs=1e-3)
    assert course.start[0] == 0 and course.end.iloc[-1] == pytest.approx(len(wave) / RATE)
    original = predict.waves_of
    monkeypatch.setattr(predict, "waves_of", lambda path, seconds=0.37, meter=None: original(path, 0.37, meter))
    again = predictor.detect(path)
    assert again.llr == pytest.approx(judged.llr, abs=1e-5) and again.quality == judged.quality


def test_silence_between_voices_is_not_counted(predictor, voice, tmp_path):
    quiet = np.zeros(8 * RATE)
    judged = predictor.detect(saved(tmp_path / "a.wav", np.concatenate([voice, voice, quiet, voice, voice])))
    course = judged.table()
    assert not course.counted.all() and course.counted.any()
    middle = course[(course.start > 4.5) & (course.end < 10)]
    assert len(middle) and not middle.counted.any()
    assert judged.score == pytest.approx(course.score[course.counted].mean())


def test_memory_does_not_grow_with_the_recording(predictor, tmp_path):
    rng = np.random.default_rng(0)
    peaks = []
    for minutes in (1, 4):
        path = tmp_path / f"{minutes}.flac"
        sf.write(path, 0.1 * rng.normal(size=minutes * 60 * RATE).clip(-3, 3), RATE)
        tracemalloc.start()
        _, total, _ = predictor._measured(path)
        for window in cut_stream(waves_of(path), plan_windows(total, 32_000)):
            assert window.shape == (1, 32_000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 3e6, peaks  # four minutes as samples are 15 MB


# What cannot be judged


def test_silence_music_and_crumbs_cannot_be_judged(folder, voice, tmp_path):
    predictor = Predictor.from_folder(folder)
    t = np.arange(3 * RATE) / RATE
    chord = 0.1 * sum(np.sin(2 * np.pi * f * t) for f in (220, 277.2, 329.6))
    for name, wave, said in (
        ("silence", np.zeros(RATE), "it is silent"),
        ("music", chord, "does not sound like the speech"),
        ("crumb", voice[:400], "it is only 0.03 s long"),
        ("short", voice[4000:6400], "s of speech"),
        ("quiet", voice * 0.016, "too quiet"),
    ):
        judged = predictor.detect(saved(tmp_path / f"{name}.wav", wave))
        assert judged.decision == CANNOT_SAY and said in "; ".join(judged.reasons), (name, judged.reasons)
        assert "CANNOT BE JUDGED" in judged.text() and len(judged.text().splitlines()) == 5


def test_a_tenth_of_a_second_is_heard(predictor, voice, tmp_path):
    judged = predictor.detect(saved(tmp_path / "a.wav", voice[8000 : 8000 + 1600]))
    assert judged.llr is not None and len(judged.windows) == 1
    long = predictor.detect(saved(tmp_path / "b.wav", voice))
    assert abs(judged.llr) < abs(predictor.evidence.a * judged.score + predictor.evidence.b) and long.windows


def test_what_is_no_recording_is_an_error(predictor, tmp_path):
    (tmp_path / "a.wav").write_text("Dear Sir")
    with pytest.raises(AudioError, match="not an audio file"):
        predictor.detect(tmp_path / "a.wav")
    with pytest.raises(AudioError, match="no such file"):
        predictor.detect(tmp_path / "b.wav")


def test_without_calibration_nothing_is_decided(samples, tmp_path):
    folder = save_model(build("bands"), tmp_path / "raw")
    judged = Predictor.from_folder(folder).detect(samples.paths()[0])
    assert judged.decision == CANNOT_SAY and judged.llr is None and judged.score is not None
    assert "not calibrated" in judged.reasons[0] and "null" in judged.to_json()


def test_without_a_reference_it_is_said_so(folder, samples, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    for name in ("reference.json", "reference.safetensors", "evidence.json"):
        (bare / name).unlink()
    judged = Predictor.from_folder(bare).detect(samples.paths()[0])
    assert judged.decision != CANNOT_SAY and "without reference statistics" in judged.caveats[0]
    assert math.isnan(judged.low) and json.loads(judged.to_json())["low"] is None
    assert len(judged.text().splitlines()) == 5 and f"(LLR {judged.llr:+.2f})." in judged.text()
    assert "nan" not in judged.text().lower()


# Models


def test_a_folder_says_what_it_is(folder, samples):
    judged = Predictor.from_folder(folder).detect(samples.paths()[0])
    assert set(judged.distances) == {"embedding", "sound", "speech"}
    assert judged.model["card"] == "# Nothing learned" and judged.model["reference"]["data"] == "few"
    assert judged.sha256 == file_print(samples.paths()[0]) and set(judged.versions) == {"wedefense_nb", "torch"}
    content = json.loads(judged.to_json())
    assert content["quality"]["rate"] == RATE and content["windows"][0]["start"] == 0.0
    assert set(judged.row()) >= {"file", "decision", "llr", "reasons"}


def test_the_calibration_of_the_folder_is_the_one_used(folder):
    evidence = Evidence.load(folder)
    known = AffineCalibration().fit([0.0, 1.0, 2.0, 3.0], [0, 1, 0, 1])
    assert (evidence.a, evidence.b) == pytest.approx((known.a_, known.b_))


def test_a_committee_judges_too(samples, few, tmp_path):
    torch.manual_seed(0)
    model = build("committee", members=[{"name": "bands"}, {"name": "bands", "n_mels": 40}])
    assert type(model) is type(committee([{"name": "bands"}]))
    folder = add_reference(save_model(model, tmp_path / "c"), few)
    judged = Predictor.from_folder(folder).detect(samples.paths()[0])
    assert judged.llr is not None and judged.model["name"] == "committee"


def test_a_localizer_judges_and_says_where(samples, voice, few, tmp_path):
    torch.manual_seed(0)
    folder = save_model(build("frame_lcnn_lstm"), tmp_path / "l")
    add_reference(folder, few.subset(utt=list(few.utterances.groupby(["split", "label"]).head(3).utt)))
    predictor = Predictor.from_folder(folder)
    path = saved(tmp_path / "a.wav", np.tile(voice, 4))
    found = predictor.localize(path, threshold=0.0, longest=3.0, context=0.5)
    want = localize(predictor.model, open_manifest(path), progress=False, longest=3.0, context=0.5)
    (want,) = want.values()
    assert np.allclose(found.llr, want, atol=1e-4) and not found.calibrated
    fake = np.zeros(len(want), bool)
    for start, end in found.stretches:
        fake[round(start / found.hop) : math.ceil(round(end / found.hop, 6))] = True
    assert np.array_equal(fake, found.llr < 0)
    assert predictor.detect(path).score is not None
    with pytest.raises(ValueError, match="folder of a localizer"):
        Predictor(build("bands")).localize(path)


def test_a_reference_needs_both_classes_and_sounds(folder, few):
    only = few.subset(label="spoof")
    with pytest.raises(ValueError, match="both classes"):
        add_reference(folder, only)


def test_large_corpora_are_measured_in_part(few, tmp_path):
    folder = add_reference(save_model(build("bands"), tmp_path / "m"), few, most=20)
    assert Reference.load(folder).notes["train"] == 20 and Reference.load(folder).notes["dev"] == 20


def test_words_follow_the_scale():
    assert in_words(math.log(1.9)).endswith("either way") and "weakly for a real" in in_words(math.log(9))
    assert "moderately for a fake" in in_words(-math.log(99)) and "very strongly" in in_words(-1e9)
