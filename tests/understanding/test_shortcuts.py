"""Trivia are measured right, a planted shortcut is found, the embedded corpus has none (pitfall 60)."""

import numpy as np
import pytest

from wedefense_nb.data.audio import save
from wedefense_nb.data.manifest import Manifest
from wedefense_nb.understanding.shortcuts import (
    TRIVIA,
    bandwidth,
    plot_shortcuts,
    probe_scores,
    shortcuts,
    silences,
    trivia,
    trivia_table,
)


@pytest.fixture(scope="module")
def table(samples):
    return trivia_table(samples)


@pytest.fixture(scope="module")
def spoof(samples):
    return (samples.utterances.label == "spoof").to_numpy()


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_trivia_of_a_known_recording(rate):
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)
    wave = np.r_[np.zeros(rate // 2), tone, np.zeros(rate // 4)] + 0.001
    t = trivia(np.stack([wave, wave]).astype(np.float32), rate)
    assert list(t) == TRIVIA and t["channels"] == 2 and t["rate"] == rate
    assert t["duration"] == pytest.approx(1.75, abs=1e-3) and t["peak"] == pytest.approx(
        20 * np.log10(0.501), abs=0.01
    )
    assert t["lead"] == pytest.approx(0.5, abs=0.02) and t["trail"] == pytest.approx(0.25, abs=0.02)
    assert t["bandwidth"] == pytest.approx(1000, abs=5) and t["dc"] == pytest.approx(0.001 / wave.std(), rel=0.01)
    assert t["level"] == pytest.approx(20 * np.log10(wave.std()), abs=0.01)


def test_trivia_of_silence_and_noise_are_finite():
    assert np.isfinite(list(trivia(np.zeros((1, 100), np.float32), 16000).values())).all()
    noise = np.random.default_rng(0).normal(size=160000)
    assert silences(noise, 16000) == (0.0, 0.0) and bandwidth(noise, 16000) == pytest.approx(7600, rel=0.01)


def test_trivia_are_measured_before_resampling(tmp_path, few):  # pitfall 59
    save(tmp_path / "a.wav", np.full(22050, 0.1, np.float32), 22050)
    u = few.utterances.head(1).assign(path="a.wav", duration=1.0, sample_rate=22050, codec="mp3")
    row = trivia_table(Manifest(u, root=tmp_path)).iloc[0]
    assert (row["rate"], row["duration"], row["codec"], row["suffix"]) == (22050, 1.0, "mp3", "wav")


def test_the_embedded_corpus_has_no_shortcut(samples, table):  # pitfall 60
    report = shortcuts(samples, table).set_index("trivia")
    assert not report.found["all together"] and abs(report.auc["all together"] - 0.5) < 0.12
    assert {"rate", "channels"}.isdisjoint(report.index)  # never vary: nothing to find
    assert (report.auc[["duration", "lead", "trail", "level", "bandwidth"]] - 0.5).abs().max() < 0.05


PLANTED = {
    "duration": 0.3,
    "trail": 0.15,
    "lead": 0.15,
    "level": 4.0,
    "bandwidth": 2000.0,
    "dc": 0.01,
    "rate": 6050.0,
}


@pytest.mark.parametrize("column, size", PLANTED.items())
def test_a_planted_shortcut_is_found_by_name(samples, table, spoof, column, size):  # pitfall 60
    report = shortcuts(samples, table.assign(**{column: table[column] + size * spoof})).set_index("trivia")
    assert report.found["all together"] and report.found[column] and report.high[column] < 0.5
    others = [c for c in TRIVIA if c in report.index and c != column]
    assert not report.found[others].any()


def test_codec_and_suffix_are_found_as_words(samples, table, spoof):
    coded = np.where(spoof & (np.arange(len(table)) % 2 == 0), "opus", "")
    report = shortcuts(samples, table.assign(codec=coded)).set_index("trivia")
    assert report.found["codec_opus"] and report.found["all together"] and 0.6 < report.auc["all together"] < 0.9


def test_planted_in_one_corpus_found_in_that_one(samples, table, spoof):
    voices = sorted(samples.utterances.speaker.unique())
    name = np.where(samples.utterances.speaker.isin(voices[::2]), "clean", "padded")
    m = Manifest(samples.utterances.assign(corpus=name), samples.segments, samples.root)
    x = table[["duration", "trail"]].assign(trail=table.trail + 0.2 * (spoof & (name == "padded")))
    report = shortcuts(m, x).set_index(["corpus", "trivia"])
    assert report.found["padded", "all together"] and not report.found["clean", "all together"]
    assert plot_shortcuts(report.reset_index()).get_xlabel().startswith("AUC")


def test_chance_is_not_found_in_noise(samples):
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(6):
        x = trivia_like(rng, samples)
        found += bool(shortcuts(samples, x, n=100).set_index("trivia").found["all together"])
    assert found <= 1


def trivia_like(rng, samples):
    import pandas as pd

    return pd.DataFrame(rng.normal(size=(len(samples), 5)), columns=list("abcde"))


def test_speakers_stay_together(samples):
    """A column that only tells the speaker must not tell the class."""
    import pandas as pd

    u = samples.utterances
    voice = pd.get_dummies(u.speaker, dtype=float)
    assert not shortcuts(samples, voice, n=50).set_index("trivia").found["all together"]


def test_too_few_groups_are_refused(samples):
    import pandas as pd

    x = pd.DataFrame({"a": np.arange(6.0)})
    with pytest.raises(ValueError, match="two groups"):
        probe_scores(x, [0, 0, 0, 1, 1, 1], ["s"] * 6)
    assert probe_scores(x[[]], [0, 0, 1, 1, 0, 1], list("abcdef")).tolist() == [0] * 6
    with pytest.raises(ValueError, match="unknown labels"):
        shortcuts(Manifest(samples.utterances.assign(label="", attack="")), x)
