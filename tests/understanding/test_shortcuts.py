"""Trivia are measured right, a planted shortcut is found, the embedded corpus has none (pitfall 60)."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from wedefense_nb.book import COLORS
from wedefense_nb.data.audio import decode, save
from wedefense_nb.data.manifest import Manifest
from wedefense_nb.metrics import confidence_interval
from wedefense_nb.task import label_ids
from wedefense_nb.understanding import shortcuts as understanding
from wedefense_nb.understanding.shortcuts import (
    FOREST,
    LEVEL,
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
    assert t["duration"] == pytest.approx(1.75, abs=1e-3)
    assert t["peak"] == pytest.approx(20 * np.log10(0.501), abs=0.01)
    assert t["lead"] == pytest.approx(0.5, abs=0.02) and t["trail"] == pytest.approx(0.25, abs=0.02)
    assert t["bandwidth"] == pytest.approx(1000, abs=5) and t["dc"] == pytest.approx(0.001 / wave.std(), rel=0.01)
    assert t["level"] == pytest.approx(20 * np.log10(wave.std()), abs=0.01)
    assert t["rolloff"] == pytest.approx(1000, abs=5) and t["above_4k"] < -40 and t["above_7k"] <= t["above_4k"]


def test_energy_high_up_by_hand():
    at = np.arange(16000) / 16000
    wave = sum(a * np.sin(2 * np.pi * f * at) for f, a in ((1000, 1.0), (5000, 0.1), (7500, 0.01)))
    t = trivia(wave[None], 16000)  # energies 1, 0.01 and 0.0001
    assert t["above_4k"] == pytest.approx(10 * np.log10(0.0101 / 1.0101), abs=0.01)
    assert t["above_7k"] == pytest.approx(10 * np.log10(0.0001 / 1.0101), abs=0.01)
    assert t["bandwidth"] == 1000 and t["rolloff"] == 1000
    louder = trivia((wave + 0.05 * np.sin(2 * np.pi * 5000 * at))[None], 16000)
    assert louder["bandwidth"] == 1000 and louder["rolloff"] == 5000
    narrow = trivia(np.ones((1, 100)) + at[:100], 8000)
    assert narrow["above_4k"] == narrow["above_7k"] == -100


def test_trivia_of_silence_and_noise_are_finite():
    assert np.isfinite(list(trivia(np.zeros((1, 100), np.float32), 16000).values())).all()
    noise = np.random.default_rng(0).normal(size=160000)
    assert silences(noise, 16000) == (0.0, 0.0) and bandwidth(noise, 16000) == pytest.approx(7600, rel=0.01)


@pytest.mark.parametrize(("below_db", "lead"), [(25, 0.0), (35, 0.5)])
def test_silence_lies_thirty_decibels_below_the_loudest(below_db, lead):
    soft = 10 ** (-below_db / 20) * np.ones(8000)
    assert silences(np.r_[soft, np.ones(8000)], 16000)[0] == pytest.approx(lead, abs=0.02)


def test_trivia_are_measured_before_resampling(tmp_path, few):  # pitfall 59
    save(tmp_path / "a.wav", np.full(22050, 0.1, np.float32), 22050)
    save(tmp_path / "b.FLAC", np.full(8000, 0.2, np.float32), 16000)
    u = few.utterances.head(2).assign(path=["a.wav", "b.FLAC"], duration=[1.0, 0.5], codec=["mp3", ""])
    table = trivia_table(Manifest(u, root=tmp_path))
    assert table.index.tolist() == u.utt.tolist()  # in the manifest's order
    facts = table[["rate", "duration", "codec", "suffix"]].to_numpy().tolist()
    assert facts == [[22050, 1.0, "mp3", "wav"], [16000, 0.5, "", "flac"]]


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
    assert report.found["padded", "trail"] and not report.found["clean", "trail"]


def test_what_has_no_direction_is_found_by_the_forest_alone(samples, table, spoof):  # pitfall 60
    """Fakes 6 dB too loud or too soft: no ranking of the level, and no weighted sum, separates them."""
    side = 6 * np.random.default_rng(0).choice([-1, 1], len(table)) * spoof
    report = shortcuts(samples, table.assign(level=table.level + side, peak=table.peak + side), n=100)
    assert report.trivia[report.found].tolist() == [FOREST]


@pytest.mark.parametrize("cut", [7000, 5500])
def test_a_low_pass_of_all_fakes_is_found(samples, table, spoof, cut):  # pitfall 60
    changed = table.copy()
    for i in np.flatnonzero(spoof):
        sound, rate = decode(samples.paths()[i])
        spectrum = np.fft.rfft(sound)
        spectrum[:, np.fft.rfftfreq(sound.shape[1], 1 / rate) > cut] = 0
        changed.loc[table.index[i], TRIVIA] = trivia(np.fft.irfft(spectrum, sound.shape[1]), rate)
    report = shortcuts(samples, changed, n=100).set_index("trivia")
    assert report.found[["above_7k", "all together", FOREST]].all() and report.auc["above_7k"] > 0.99
    assert not report.found["bandwidth"]  # which was all that looked at high frequencies


def test_no_alarm_where_labels_mean_nothing(samples, table):
    """Labels dealt anew within each speaker: no row of several corpora may be found, and p is no constant."""
    people = samples.utterances.sort_values("speaker", kind="stable")
    p_values = []
    for seed in range(3):
        dealt = people.sample(frac=1, random_state=seed).sort_values("speaker", kind="stable").label.to_numpy()
        u = samples.utterances.assign(label=pd.Series(dealt, people.index), attack="")
        report = shortcuts(Manifest(u, root=samples.root), table, n=100, seed=seed)
        assert not report.found.any() and ((report.p_value < LEVEL) == report.found).all()
        p_values += report.p_value.tolist()
    assert min(p_values) < 0.3 and max(p_values) > 0.7


def test_speakers_stay_together(samples):
    """A column that only tells the speaker must not tell the class."""
    u = samples.utterances
    voice = pd.get_dummies(u.speaker, dtype=float)
    found = shortcuts(samples, voice, n=50).set_index("trivia").found
    assert not found[["all together", FOREST]].any()


def test_each_score_comes_from_a_model_that_has_not_seen_the_group(monkeypatch):
    """The formula, fold by fold, with scikit-learn's own parts."""
    rng = np.random.default_rng(2)
    labels = np.arange(60) % 2
    groups = [f"s{i // 5}" for i in range(60)]
    x = pd.DataFrame({"a": rng.normal(size=60) + labels, "b": rng.normal(size=60)})
    scores = probe_scores(x, labels, groups, folds=3, seed=4)
    who = np.unique(groups, return_inverse=True)[1]
    folds = list(StratifiedGroupKFold(3, shuffle=True, random_state=4).split(x, labels, who))
    assert len(folds) == 3
    for fit, test in folds:
        assert not set(who[fit]) & set(who[test])
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
        model.fit(x.to_numpy()[fit], labels[fit])
        held_out = model.decision_function(x.to_numpy()[test])
        centre = model.decision_function(x.to_numpy()[fit]).mean()
        assert np.allclose(scores[test], (held_out - centre) / held_out.std())


def test_a_report_is_of_aucs_with_intervals_by_whole_groups(samples, table):
    report = shortcuts(samples, table[["duration", "lead"]], n=50, seed=3).set_index("trivia")
    labels = label_ids(samples.utterances.label)
    want = confidence_interval(["auc", "eer"], table.lead, labels, samples.utterances.speaker, n=50, seed=3)
    assert report.loc["lead", ["auc", "low", "high"]].tolist() == pytest.approx(want["auc"][:3])
    assert report.eer["lead"] == pytest.approx(want["eer"].value)
    alone = shortcuts(samples, table[["lead"]], n=50, seed=3, groups="utt").set_index("trivia")
    assert alone.auc["lead"] == report.auc["lead"] and alone.low["lead"] != report.low["lead"]


def test_recordings_without_a_speaker_stand_for_themselves(samples, table):
    nameless = Manifest(samples.utterances.assign(speaker=""), samples.segments, samples.root)
    report = shortcuts(nameless, table[["lead"]], n=50)
    same = shortcuts(samples, table[["lead"]], n=50, groups="utt")
    assert report.drop(columns="corpus").equals(same.drop(columns="corpus"))


def test_what_points_the_other_way_is_a_shortcut_alone_and_not_together(samples, spoof, monkeypatch):
    x = pd.DataFrame({"a": np.where(spoof, 1.0, 0.0), "b": np.where(spoof, 0.0, 1.0)})
    report = shortcuts(samples, x, n=20).set_index("trivia")
    assert report.auc[["a", "b", "all together"]].tolist() == pytest.approx([0, 1, 1]) and report.found.all()
    monkeypatch.setattr(understanding, "probe_scores", lambda *given, **options: spoof.astype(float))
    report = shortcuts(samples, x, n=20).set_index("trivia")
    assert report.auc["all together"] == pytest.approx(0) and not report.found["all together"]


def test_the_figure_marks_what_was_found():
    import matplotlib.pyplot as plt
    from matplotlib.colors import to_hex

    rows = {"corpus": ["x", "x"], "trivia": ["lead", "trail"], "auc": [0.5, 0.8], "low": [0.4, 0.7]}
    report = pd.DataFrame(rows | {"high": [0.6, 0.9], "eer": [0.5, 0.2], "found": [False, True]})
    ax = plot_shortcuts(report)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["x trail", "x lead"]
    intervals = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linewidth() == 3]
    colors = {tuple(line.get_xdata()): to_hex(line.get_color()) for line in intervals}
    assert colors == {(0.7, 0.9): COLORS["spoof"], (0.4, 0.6): COLORS["bonafide"]}
    assert ax.get_xlabel().startswith("AUC")
    plt.close("all")


def test_too_few_groups_are_refused(samples):
    x = pd.DataFrame({"a": np.arange(6.0)})
    with pytest.raises(ValueError, match="two groups"):
        probe_scores(x, [0, 0, 0, 1, 1, 1], ["s"] * 6)
    assert probe_scores(x[[]], [0, 0, 1, 1, 0, 1], list("abcdef")).tolist() == [0] * 6
    with pytest.raises(ValueError, match="unknown labels"):
        shortcuts(Manifest(samples.utterances.assign(label="", attack="")), x)
    with pytest.raises(ValueError, match=f"6 rows, and the manifest {len(samples)} recordings"):
        shortcuts(samples, x)
