import json

import numpy as np
import pytest
from scipy.signal import lfilter

from tests.conftest import power_cut
from wedefense_nb.data import forge as module
from wedefense_nb.data.audio import load, save
from wedefense_nb.data.forge import VOCODERS, choose_spans, find_boundaries, forge, plan, splice, vocode
from wedefense_nb.data.manifest import Manifest, from_folder, utt_rng


@pytest.fixture(scope="module")
def source(samples):
    bona = samples.subset(label="bonafide", split="train", kind="full", speaker="ked_diphone")
    return bona.subset(utt=bona.utterances.utt[:5].tolist())


@pytest.fixture(scope="module")
def wave(source):
    return load(source.paths()[0])[0]


@pytest.mark.parametrize("name", VOCODERS)
def test_vocoders_keep_length_and_loudness_and_repeat_themselves(name, wave):
    a, b = (vocode(wave, name, utt_rng("x", seed=3)) for _ in range(2))
    assert a.shape == wave.shape and a.dtype == np.float32 and np.isfinite(a).all()
    assert np.isclose(a.std(), wave.std(), rtol=0.02) and np.array_equal(a, b)
    least = 0.05 if name == "images" else 0.1  # what images changes lies above the band of this recording
    assert np.abs(a - wave).mean() > least * np.abs(wave).mean()  # it is a fake, not a copy


@pytest.mark.parametrize("name", VOCODERS)
def test_vocoders_stay_aligned_in_time(name, wave):
    out = vocode(wave, name, utt_rng("x"))
    a, b = (np.convolve(np.abs(x), np.ones(400) / 400, "same")[::40] for x in (wave, out))
    lags = range(-20, 21)  # 2.5 ms each
    best = max(lags, key=lambda k: np.corrcoef(a[20:-20], np.roll(b, k)[20:-20])[0, 1])
    assert abs(best) <= 6


@pytest.mark.parametrize("name", VOCODERS)
@pytest.mark.parametrize("sound", ["silence", "click", "short"])
def test_vocoders_survive_odd_sounds(name, sound):
    wave = {
        "silence": np.zeros(4000),
        "click": np.eye(1, 4000, 2000)[0],
        "short": np.sin(np.arange(1700) / 9),
    }[sound]
    out = vocode(wave.astype(np.float32), name, utt_rng("x"))
    assert out.shape == wave.shape and np.isfinite(out).all()


def test_unknown_vocoder_is_named(source, tmp_path):
    with pytest.raises(KeyError, match="unknown vocoder 'melgan'"):
        forge(source, tmp_path / "out", vocoders=["melgan"])
    assert not (tmp_path / "out").exists()


def test_boundaries_cover_the_recording_and_fall_into_valleys(wave):
    cuts = find_boundaries(wave)
    assert cuts[0] == 0 and cuts[-1] == len(wave) and (np.diff(cuts) > 0).all() and len(cuts) > 3
    power = np.convolve(wave**2, np.ones(480) / 480, "same")
    assert np.median(power[cuts[1:-1]]) < 0.5 * np.median(power)


def test_a_pulse_train_is_cut_between_its_bursts():
    rng = np.random.default_rng(0)
    wave = np.concatenate(
        [x for _ in range(4) for x in (0.3 * rng.normal(size=4000), 0.001 * rng.normal(size=2400))]
    )
    inner = find_boundaries(wave.astype(np.float32))[1:-1]
    gaps = [(4000 + 6400 * i, 6400 * (i + 1)) for i in range(4)]
    assert all(any(a - 300 <= c <= b + 300 for c in inner) for a, b in gaps[:3])


@pytest.mark.parametrize("fade", [0, 80, 160, 10_000])
def test_splice_changes_samples_inside_the_spans_only(wave, fade):
    donor = np.random.default_rng(0).normal(size=len(wave)).astype(np.float32)
    spans = [(1000, 5000), (9000, 12000)]
    out = splice(wave, donor, spans, fade)
    inside = np.zeros(len(wave), bool)
    for a, b in spans:
        inside[a:b] = True
    assert np.array_equal(out[~inside], wave[~inside]) and (out[inside] != wave[inside]).mean() > 0.99


def test_both_sides_of_a_fade_lead_to_the_donor_and_back():
    """The recording is 1 and the donor -1, so a sample says how much of it is the donor's."""
    out = splice(np.ones(20), -np.ones(20), [(4, 14)], fade=4)
    donor = (1 - out) / 2
    rising = [0.125, 0.375, 0.625, 0.875]
    assert donor.tolist() == [0] * 4 + rising + [1, 1] + rising[::-1] + [0] * 6
    short = splice(np.ones(9), -np.ones(9), [(2, 7)], fade=100)  # the fades meet in the middle
    assert ((1 - short) / 2).tolist() == [0, 0, 0.25, 0.75, 1, 0.75, 0.25, 0, 0]
    hard = splice(np.ones(6), -np.ones(6), [(1, 3), (4, 5)])
    assert hard.tolist() == [1, -1, -1, 1, -1, 1]


def test_splice_matches_loudness(wave):
    out = splice(wave, 100 * np.random.default_rng(0).normal(size=len(wave)).astype(np.float32), [(4000, 9000)])
    assert np.isclose(out[4000:9000].std(), wave[4000:9000].std(), rtol=0.05)


def test_spans_are_disjoint_and_leave_some_of_the_recording(wave):
    for seed in range(50):
        spans = choose_spans(wave, utt_rng("x", seed))
        flat = [x for span in spans for x in span]
        assert 1 <= len(spans) <= 3 and flat == sorted(flat) and len(set(flat)) == len(flat)
        assert 0 < sum(b - a for a, b in spans) <= 0.7 * len(wave)
    assert choose_spans(np.zeros(900, np.float32), utt_rng("x")) == [(300, 600)]


def test_plan_is_a_function_of_the_seed(source):
    a, b, c = (plan(source, ["lpc", "world"], 0.4, 0.3, seed) for seed in (1, 1, 2))
    assert a.equals(b) and not a.equals(c)
    assert (a.groupby("source").attack.apply(lambda x: set(x) - {""}) == {"lpc", "world"}).all()


def test_plan_keeps_its_shares_and_donors_are_of_the_same_speaker_and_split(samples):
    bona = samples.subset(label="bonafide", kind="full")
    jobs = plan(bona, ["lpc", "world"], partial=0.25, spliced=0.4, seed=0)
    u = bona.utterances.set_index("utt")
    spliced = jobs[jobs.kind == "spliced"]
    for job in spliced.itertuples():
        assert job.donor != job.source
        for column in ("speaker", "split"):
            assert u[column][job.donor] == u[column][job.source] == getattr(job, column)
    assert len(spliced) / len(u) == pytest.approx(0.4, abs=0.1)
    fakes = jobs[jobs.attack != ""]
    assert len(fakes) == 2 * len(u) and (fakes.kind == "partial").mean() == pytest.approx(0.25, abs=0.08)
    assert jobs.utt.is_unique and (jobs[jobs.kind != "spliced"].donor == "").all()
    alone = bona.subset(utt=bona.utterances.utt[:1].tolist())
    assert "spliced" not in set(plan(alone, ["lpc"], 0.5, 1.0, 0).kind)  # nobody to take words from
    none = plan(bona, ["lpc"], partial=0, spliced=0, seed=0)
    assert set(none.kind) == {"full"} and len(none) == 2 * len(u)


def test_words_are_not_taken_from_another_split(samples):
    bona = samples.subset(label="bonafide", kind="full")
    one_voice = Manifest(bona.utterances.assign(speaker="one"), bona.segments, bona.root)
    jobs = plan(one_voice, ["lpc"], partial=0, spliced=1.0, seed=0)
    split = one_voice.utterances.set_index("utt").split
    spliced = jobs[jobs.kind == "spliced"]
    assert len(spliced) == len(one_voice) and len(set(split)) == 3
    assert split[spliced.donor].tolist() == split[spliced.source].tolist()


@pytest.fixture(scope="module")
def forged(source, tmp_path_factory):
    return forge(source, tmp_path_factory.mktemp("f") / "out", ["lpc", "gl_mel"], partial=0.5, spliced=0.6, seed=1)


def test_forged_corpus_has_all_kinds_and_valid_tables(forged, source):
    u = forged.validate(files=True).utterances
    assert set(u.kind) == {"full", "partial", "spliced"} and len(u[u.attack == "lpc"]) == len(source)
    assert (u.label[u.kind == "spliced"] == "bonafide").all() and (u.label[u.kind == "partial"] == "spoof").all()
    assert set(u.speaker) == {"ked_diphone"} and not u.utt.duplicated().any()
    for r in u.itertuples():
        assert r.duration == len(load(forged.root / r.path)[0]) / 16000
    assert set(forged.segments.utt) == set(u.utt[u.kind != "full"])
    spliced = forged.segments[forged.segments.utt.str.endswith("-spliced")]
    assert set(spliced.label) == {"bonafide"} and set(spliced.attack) == {""}
    fake = forged.segments[forged.segments.label == "spoof"]
    assert (fake.attack == fake.utt.str.split("-").str[1]).all()


def test_spliced_recordings_have_words_of_their_donor(forged, source):
    """Between its segments a spliced recording is its source; in every second one it is something else."""
    where = dict(zip(source.utterances.utt, source.paths(), strict=True))
    spliced = forged.utterances[forged.utterances.kind == "spliced"]
    assert len(spliced) >= 1
    for r in spliced.itertuples():
        made = load(forged.root / r.path)[0]
        real = load(where[r.source])[0]
        assert 0.1 < (made != real).mean() < 0.75


def test_segments_are_exact_to_the_sample(forged, source):
    """Outside the fake segments a partial fake equals its source, sample for sample; inside it does not."""
    where = dict(zip(source.utterances.utt, source.paths(), strict=True))
    partial = forged.utterances[forged.utterances.kind == "partial"]
    assert len(partial) >= 2
    for r in partial.itertuples():
        fake = load(forged.root / r.path)[0]
        real = load(where[r.source])[0]
        s = forged.segments[forged.segments.utt == r.utt]
        assert s.start.iloc[0] == 0 and np.isclose(s.end.iloc[-1], len(fake) / 16000)
        assert np.allclose(s.start.to_numpy()[1:], s.end.to_numpy()[:-1])  # they tile
        inside = np.zeros(len(fake), bool)
        for x in s[s.label == "spoof"].itertuples():
            inside[round(x.start * 16000) : round(x.end * 16000)] = True
        assert np.array_equal(fake[~inside], real[~inside]) and (fake[inside] != real[inside]).mean() > 0.95


def test_interrupted_forging_continues_and_gives_the_same(source, tmp_path):
    whole = forge(source, tmp_path / "a", ["lpc"], seed=2, workers=1)
    with power_cut(module, "_make", 3):
        forge(source, tmp_path / "b", ["lpc"], seed=2, workers=1)
    made = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "b/audio").iterdir()}
    assert len(made) == 3 and not (tmp_path / "b/utterances.csv").exists()
    again = forge(source, tmp_path / "b", ["lpc"], seed=2, workers=2)
    assert all((tmp_path / "b/audio" / n).stat().st_mtime_ns == t for n, t in made.items())  # not made twice
    assert again.utterances.equals(whole.utterances) and again.segments.equals(whole.segments)
    for a, b in zip(whole.paths(), again.paths(), strict=True):
        assert a.read_bytes() == b.read_bytes()


def test_the_seed_decides_where_and_with_what(source, tmp_path):
    few = source.subset(utt=source.utterances.utt[:2].tolist())
    made = [forge(few, tmp_path / str(seed), ["lpc"], 1.0, 0.0, seed=seed, workers=1) for seed in (0, 1)]
    assert made[0].utterances.utt.tolist() == made[1].utterances.utt.tolist()
    assert not made[0].segments.equals(made[1].segments)


def test_a_lost_sound_is_made_again(source, tmp_path):
    few = source.subset(utt=source.utterances.utt[:2].tolist())
    lost = forge(few, tmp_path, ["lpc"], seed=2, workers=1).paths()[1]
    before = lost.read_bytes()
    lost.unlink()
    forge(few, tmp_path, ["lpc"], seed=2, workers=1)
    assert lost.read_bytes() == before


def test_another_plan_in_the_same_folder_is_refused(source, tmp_path):
    forge(source, tmp_path, ["lpc"], seed=2, workers=1)
    with pytest.raises(FileExistsError, match="other settings"):
        forge(source, tmp_path, ["lpc"], seed=3, workers=1)


def test_half_written_note_is_made_again(source, tmp_path):
    forge(source, tmp_path, ["lpc"], spliced=0, seed=2, workers=1)
    note = next((tmp_path / "notes").iterdir())
    note.rename(note.with_suffix(".part"))
    note.with_suffix(".part").write_text("{half")
    assert len(forge(source, tmp_path, ["lpc"], spliced=0, seed=2, workers=1)) == 10 and json.loads(
        note.read_text()
    )


def test_a_plain_folder_of_sounds_will_do_unless_it_is_of_fakes(wave, tmp_path):
    save(tmp_path / "in/ann/one.wav", wave)
    save(tmp_path / "in/bob/one.flac", wave[:12000])
    out = forge(tmp_path / "in", tmp_path / "out", ["lpc"], workers=1)
    assert isinstance(out, Manifest) and len(out) == 4 and set(out.utterances.speaker) == {"ann", "bob"}
    with pytest.raises(ValueError, match="no bona fide"):
        forge(from_folder(tmp_path / "in", label="spoof"), tmp_path / "out", ["lpc"])


def test_ids_may_have_slashes(source, tmp_path):
    """Corpora whose own ids are paths, as WaveFake's and SpoofCeleb's."""
    u = source.utterances.head(3)
    u = u.assign(utt=["/data/" + x + ".wav" if i else x for i, x in enumerate(u.utt)])
    deep = Manifest(u, root=source.root)
    made = forge(deep, tmp_path, ["lpc"], seed=2, workers=1)
    assert set(u.utt) <= set(made.utterances.utt) and all(p.parent == tmp_path / "audio" for p in made.paths())
    stamps = [p.stat().st_mtime_ns for p in made.paths()]
    again = forge(deep, tmp_path, ["lpc"], seed=2, workers=1)
    assert again.utterances.equals(made.utterances) and [p.stat().st_mtime_ns for p in again.paths()] == stamps
    assert len([*(tmp_path / "notes").iterdir()]) == len(made)


def test_channel_applies_to_recording_and_fake_alike(source, tmp_path):
    """The channel turns the polarity around, which no other step does."""
    few = source.subset(utt=source.utterances.utt[:2].tolist())
    how = {"partial": 0.5, "spliced": 0, "seed": 3, "workers": 1}
    plain = forge(few, tmp_path / "plain", ["lpc", "gl_mel"], **how)
    turned = forge(few, tmp_path / "turned", ["lpc", "gl_mel"], **how, channel=turn)
    assert {"full", "partial"} == set(plain.utterances.kind[plain.utterances.attack != ""])
    for one, two in zip(plain.paths(), turned.paths(), strict=True):
        assert np.abs(load(one)[0] + load(two)[0]).max() <= 1 / 32768


def turn(wave, source):
    return -wave


@pytest.mark.parametrize("name", ["lpc", "world", "world_coded"])
@pytest.mark.parametrize("hertz", [100.0, 160.0])
def test_the_pitch_is_kept(name, hertz):
    """A buzz of pulses through two resonances; the time between pulses shows in the autocorrelation."""
    pulses = np.zeros(16000)
    pulses[(np.arange(0, 1, 1 / hertz) * 16000).astype(int)] = 1
    buzz = lfilter([1.0], np.poly([0.97 * np.exp(1j * x) for x in (0.25, -0.25, 0.6, -0.6)]).real, pulses)
    buzz = (0.2 * buzz / np.abs(buzz).max()).astype(np.float32)
    out = vocode(buzz, name, utt_rng("x"))[4000:12000].astype(np.float64)
    similar = np.correlate(out, out, "full")[len(out) - 1 :]
    period = similar[60:270].argmax() + 60
    assert period == pytest.approx(16000 / hertz, abs=2)
