"""Doubles: what they share with their originals, what is drawn, and that nothing but the copy is left to find."""

import json

import numpy as np
import pandas as pd
import pytest

from wedefense_nb.augmentation import doubles as module
from wedefense_nb.augmentation.codecs import round_trip
from wedefense_nb.augmentation.doubles import (
    AMOUNT,
    ROUTES,
    choose,
    faint_noise,
    make_doubles,
    same_colour,
    same_peak,
    same_way,
    voiced_part,
)
from wedefense_nb.data.audio import SAMPLE_RATE, load
from wedefense_nb.data.forge import VOCODERS
from wedefense_nb.data.manifest import Manifest
from wedefense_nb.registry import UnknownName
from wedefense_nb.understanding.shortcuts import shortcuts, trivia_table


@pytest.fixture(scope="module")
def real(samples):
    some = samples.subset(label="bonafide", kind="full")
    table = some.utterances.groupby("speaker").head(4).assign(codec="")
    table.loc[table.split == "train", "codec"] = "g722"
    table.loc[table.split == "dev", "codec"] = "gsm"
    return Manifest(table, root=samples.root)


@pytest.fixture(scope="module")
def made(real, tmp_path_factory):
    return make_doubles(real, tmp_path_factory.mktemp("doubles"), each=1, workers=1)


@pytest.fixture(scope="module")
def facts(made):
    return trivia_table(made, workers=1)


def waves(made):
    """By name: all waves of a corpus."""
    paths = dict(zip(made.utterances.utt, made.paths(), strict=True))
    return {utt: load(path)[0] for utt, path in paths.items()}


def noise(n=16000, seed=0):
    return np.random.default_rng(seed).standard_normal(n)


def test_nothing_gives_the_doubles_away(made, facts):  # pitfall 41
    report = shortcuts(made, facts, n=100).set_index("trivia")
    assert "all together" in report.index and not report.found.any(), report.round(3)
    spoof = (made.utterances.label == "spoof").to_numpy()
    pairs = made.utterances.pair[spoof].to_numpy()
    original = facts.loc[pairs].reset_index(drop=True)
    double = facts[spoof].reset_index(drop=True)
    assert (original.duration == double.duration).all() and (original.codec == double.codec).all()
    assert np.abs(original.level - double.level).max() <= 1.01, "a level is drawn within 0.5 dB, for both"
    crest = (original.peak - original.level) - (double.peak - double.level)
    assert np.abs(crest).max() < 0.1
    assert np.abs(original.bandwidth - double.bandwidth).median() < 150
    assert (original.lead < 0.05).all() and np.abs(original.lead - double.lead).median() < 0.01


def test_the_classes_and_what_a_row_tells(made, real):
    u = made.utterances.set_index("utt")
    bona = u[u.label == "bonafide"]
    spoof = u[u.label == "spoof"]
    assert len(bona) == len(spoof) >= 0.9 * len(real) and (bona.pair == "").all() and (bona.attack == "").all()
    assert set(spoof.pair) == set(bona.index)
    for split, group in spoof.groupby("split"):
        assert set(group.attack) <= set(ROUTES[split])
    for column in ("speaker", "split", "codec", "language", "duration"):
        assert (bona[column].reindex(spoof.pair).to_numpy() == spoof[column].to_numpy()).all(), column
    assert len(Manifest.read(made.root)) == len(made) and set(u.sample_rate) == {SAMPLE_RATE}
    lengths = {utt: len(wave) / SAMPLE_RATE for utt, wave in waves(made).items()}
    assert all(np.isclose(lengths[utt], u.duration[utt]) for utt in u.index)


def test_both_classes_have_been_through_the_codec(made):
    """GSM leaves nothing above 4 kHz of anything."""
    for utt, wave in waves(made.subset(split="dev")).items():
        power = np.abs(np.fft.rfft(wave)) ** 2
        high = power[round(4200 / 8000 * len(power)) :].sum()
        assert high < 1e-3 * power.sum(), utt


def test_a_double_is_not_its_original_and_speech_is_still_there(made):
    sounds = waves(made)
    for r in made.utterances[made.utterances.attack != ""].itertuples():
        a, b = sounds[r.pair], sounds[r.utt]
        assert len(a) == len(b) and np.corrcoef(a, b)[0, 1] < 0.999
        loud = [np.convolve(w**2, np.ones(800) / 800, "same")[::800] for w in (a, b)]
        assert np.corrcoef(*np.log(np.array(loud) + 1e-7))[0, 1] > 0.5, r.utt


def test_the_same_seed_gives_the_same_files_and_a_run_goes_on(real, tmp_path):
    few = real.subset(split="dev", speaker="kal_diphone")
    amount = {"dev": 2}
    first = make_doubles(few, tmp_path / "a", amount=amount, workers=1)
    again = make_doubles(few, tmp_path / "b", amount=amount, workers=1)
    assert first.utterances.equals(again.utterances) and len(first) == 6
    for a, b in zip(first.paths(), again.paths(), strict=True):
        assert a.read_bytes() == b.read_bytes()
    kept = first.paths()[0].stat().st_mtime_ns
    first.paths()[-1].unlink()
    resumed = make_doubles(few, tmp_path / "a", amount=amount, workers=1)
    assert resumed.utterances.equals(first.utterances)
    assert first.paths()[-1].read_bytes() == again.paths()[-1].read_bytes()
    assert first.paths()[0].stat().st_mtime_ns == kept, "what was whole is not made again"
    with pytest.raises(FileExistsError, match="other settings"):
        make_doubles(few, tmp_path / "a", amount=amount, seed=1, workers=1)
    other = make_doubles(few, tmp_path / "c", amount=amount, seed=1, workers=1)
    assert not other.utterances.utt.equals(first.utterances.utt)
    assert json.loads((tmp_path / "a/doubles.json").read_text())["seed"] == 0


def test_refusals(real, tmp_path):
    with pytest.raises(UnknownName, match="unknown vocoder 'wrld'"):
        make_doubles(real, tmp_path, routes={"train": ["wrld"]}, each=1)
    with pytest.raises(ValueError, match="each must be 1 to 1, the number of routes in train, got 2"):
        make_doubles(real, tmp_path, routes={"train": ["lpc"]}, each=2)
    with pytest.raises(UnknownName, match="unknown split with routes 'dev'"):
        make_doubles(real, tmp_path, routes={"train": ["lpc"]}, each=1, amount={"dev": 3})
    with pytest.raises(ValueError, match="no bona fide recording of 90 to 91 s in the splits train"):
        make_doubles(real, tmp_path, amount={"train": 3}, shortest=90, longest=91)
    assert list(tmp_path.iterdir()) == []


def test_who_is_chosen():
    rows = []
    for speaker, split, n in (("a", "train", 9), ("b", "train", 2), ("c", "eval", 5)):
        for k in range(n):
            rows.append((f"{speaker}{k}", "bonafide", split, speaker, 1.0 + k / 10))
    rows += [("a-long", "bonafide", "train", "a", 9.0), ("a-short", "bonafide", "train", "a", 0.9)]
    rows += [("a-fake", "spoof", "train", "a", 2.0), ("c-again", "bonafide", "eval", "c", 1.1)]
    table = pd.DataFrame(rows, columns=["utt", "label", "split", "speaker", "duration"])
    table = table.assign(path=table.utt + ".wav", attack="", codec="", sample_rate=16000)
    table.loc[table.label == "spoof", "attack"] = "lpc"
    source = Manifest(table)
    chosen = choose(source, {"train": 4, "eval": 99}, 1.0, 6.0, seed=0)
    assert chosen.speaker.value_counts().to_dict() == {"c": 5, "a": 4, "b": 2}
    assert not {"a-long", "a-short", "a-fake"} & set(chosen.utt)
    assert not {"c1", "c-again"} <= set(chosen.utt), "one recording kept twice"
    assert [source.utterances.utt.iloc[i] for i in chosen.place] == chosen.utt.tolist()
    assert not choose(source, {"train": 4}, 1.0, 6.0, seed=1).utt.equals(chosen.utt[chosen.split == "train"])
    assert set(choose(source, {"eval": 1}, 1.0, 6.0, seed=0).split) == {"eval"}


def test_routes_differ_between_splits():
    assert not set(ROUTES["eval"]) & (set(ROUTES["train"]) | set(ROUTES["dev"]))
    assert set(ROUTES["dev"]) & set(ROUTES["train"]) == {"gl_mel_any", "lpc_any"}
    assert all(name in VOCODERS for names in ROUTES.values() for name in names)
    assert set(AMOUNT) == set(ROUTES)


def test_same_peak():
    tones = [np.sin(np.arange(16000) / 7), noise(), noise(seed=1) ** 3 + 0.5, 1e-4 * noise(seed=2)]
    out = same_peak(tones)
    for wave in out:
        assert abs(wave.mean()) < 1e-9 and np.isclose(wave.std(), 1)
        assert np.isclose(np.abs(wave).max(), np.sqrt(2), rtol=2e-3)
    assert np.allclose(out[0] / out[0].std(), tones[0] / tones[0].std(), atol=2e-3), "the lowest is left as it was"
    a, b = same_peak([noise(), 5 * noise()])
    assert np.allclose(a, b)
    order = np.argsort(tones[1])
    assert (np.diff(out[1][order]) >= -1e-12).all(), "a limiter keeps the order of values"
    with pytest.raises(ValueError, match="silent recording"):
        same_peak([noise(), np.full(16000, 0.3)])


def test_same_colour_brings_the_spectrum_back():
    white = noise()
    dull = np.convolve(white, np.ones(8) / 8, "same")
    out = same_colour(dull, white)

    def level(wave, low, high):
        power = np.abs(np.fft.rfft(wave)) ** 2
        return 10 * np.log10(power[low:high].sum() / power[100:].sum())

    for low in (200, 1000, 3000, 5000):
        assert abs(level(out, low, low + 800) - level(white, low, low + 800)) < 1.5
        assert abs(level(dull, low, low + 800) - level(white, low, low + 800)) > 2 or low == 1000
    hum = white + 5 * np.sin(2 * np.pi * 30 * np.arange(16000) / 16000) + 1
    assert np.abs(np.fft.rfft(same_colour(hum, hum)))[:59].max() < 1e-6, "below 60 Hz nothing is left"
    assert np.allclose(np.fft.rfft(same_colour(white, white))[61:], np.fft.rfft(white)[61:], atol=1e-6), (
        "its own colour changes nothing"
    )
    assert np.isfinite(same_colour(np.zeros(1000), white[:1000])).all()
    assert np.isfinite(same_colour(white[:1000], np.zeros(1000))).all()


def test_faint_noise_is_faint():
    levels = []
    for seed in range(40):
        wave = faint_noise(8000, np.random.default_rng(seed))
        levels.append(20 * np.log10(wave.std()))
    assert -45 <= min(levels) < -42 and -38 < max(levels) <= -35


def test_same_way():
    wave = 0.1 * noise().astype(np.float32)
    assert np.array_equal(same_way(wave, ""), wave)
    assert np.array_equal(same_way(wave, "g722"), round_trip(wave, "g722", 64))
    narrow = np.abs(np.fft.rfft(same_way(wave, "narrow"))) ** 2
    assert narrow[4200:].sum() < 1e-4 * narrow.sum() and len(same_way(wave[:15999], "narrow")) == 15999
    assert np.abs(narrow[500:3000].sum() / (np.abs(np.fft.rfft(wave)) ** 2)[500:3000].sum() - 1) < 0.01
    with pytest.raises(UnknownName, match="unknown codec 'g72'"):
        same_way(wave, "g72")


def test_voiced_part():
    wave = np.r_[np.zeros(4000), noise(8000), np.zeros(100), 0.01 * noise(4000)]
    part = voiced_part(wave)
    assert abs(part.start - 4000) < 320 and abs(part.stop - 12000) < 320
    assert voiced_part(wave, 60.0).stop == len(wave)
    assert voiced_part(np.ones(50)) == slice(0, 50)


def test_the_source_may_be_a_folder(real, tmp_path, samples):
    few = real.subset(split="dev", speaker="kal_diphone")
    table = few.utterances.head(1).assign(path=[few.paths()[0].as_posix()])
    Manifest(table).write(tmp_path / "m")
    made = make_doubles(tmp_path / "m", tmp_path / "d", each=1, workers=1)
    assert len(made) == 2 and made.utterances.label.tolist() == ["bonafide", "spoof"]
    assert module.sound_path("a/b") == "audio/a%2Fb.flac"
