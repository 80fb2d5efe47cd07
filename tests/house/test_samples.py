"""The embedded corpus is what its README says, and gives nothing away cheaply."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.conftest import ROOT
from wedefense_nb.data.audio import info, load
from wedefense_nb.metrics import eer
from wedefense_nb.task import label_ids
from wedefense_nb.understanding.shortcuts import trivia_table

CORPUS = ROOT / "data_samples"


def test_size_and_format(samples):
    files = [p for p in CORPUS.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 20_000_000
    assert 400 <= len(samples) and {p.suffix for p in files} == {".flac", ".csv", ".md", ".safetensors"}
    for r, path in zip(samples.utterances.itertuples(), samples.paths(), strict=True):
        h = info(path)
        assert (h.sample_rate, h.channels) == (16000, 1) and abs(h.duration - r.duration) < 1e-6
        assert 1.0 <= h.duration <= 4.0
    assert {p.stem for p in (CORPUS / "audio").iterdir()} == set(samples.utterances.utt)


def test_proportions(samples):
    u = samples.utterances
    for _, g in u.groupby("split"):
        n = g.label.value_counts()
        assert 3 <= n["spoof"] / n["bonafide"] <= 9
    fakes = u[u.label == "spoof"]
    assert 0.25 < (fakes.kind == "partial").mean() < 0.45 and fakes.attack.nunique() >= 6
    only = set(fakes.attack[fakes.split == "eval"]) - set(fakes.attack[fakes.split != "eval"])
    assert len(only) >= 3


def test_voices_are_disjoint(samples):
    u = samples.utterances
    voices = {s: set(g.speaker) for s, g in u.groupby("split")}
    assert not any(voices[a] & voices[b] for a in voices for b in voices if a < b)
    assert u.speaker[u.label == "bonafide"].nunique() >= 8


def test_segments(samples):
    kinds = samples.utterances.set_index("utt").kind
    assert set(kinds[samples.segments.utt.unique()]) == {"partial", "spliced"}
    assert set(samples.segments.utt) == set(kinds.index[kinds != "full"])
    for _, s in samples.segments.groupby("utt"):
        samples_at = s[["start", "end"]].to_numpy() * 16000
        assert np.allclose(samples_at, samples_at.round(), atol=1e-6)
        assert np.allclose(s.start.to_numpy()[1:], s.end.to_numpy()[:-1]) and s.start.iloc[0] == 0


def test_partial_fakes_equal_their_source_outside_the_segments(samples):
    """Where it is labelled bona fide, a partial fake is the bona fide recording, sample for sample."""
    u = samples.utterances.set_index("utt")
    for utt in u.index[u.kind == "partial"][::10]:
        fake, real = (load(CORPUS / u.path[x])[0] for x in (utt, u.pair[utt]))
        inside = np.zeros(len(fake), bool)
        for s in samples.segments[
            (samples.segments.utt == utt) & (samples.segments.label == "spoof")
        ].itertuples():
            inside[round(s.start * 16000) : round(s.end * 16000)] = True
        assert len(fake) == len(real) and np.array_equal(fake[~inside], real[~inside])
        assert (fake[inside] != real[inside]).mean() > 0.5


def test_noise_and_rooms_for_augmentation():
    t = pd.read_csv(CORPUS / "noise_rir.csv")
    assert (t.kind.value_counts() >= 8).all() and set(t.kind) == {"noise", "rir"}
    for r in t.itertuples():
        assert abs(info(CORPUS / r.path).duration - r.duration) < 1e-6 and load(CORPUS / r.path)[0].std() > 1e-4


@pytest.fixture(scope="module")
def table(samples):
    """File-level facts, those that vary (`understanding.shortcuts`)."""
    return trivia_table(samples)[["duration", "lead", "trail", "level", "peak", "bandwidth", "dc"]].to_numpy()


def probe(x, samples):
    """EER on eval of a logistic regression fitted on train; `understanding.shortcuts` judges by folds instead."""
    y = label_ids(samples.utterances.label)
    split = samples.utterances.split.to_numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    model.fit(x[split == "train"], y[split == "train"])
    return eer(model.decision_function(x[split == "eval"]), y[split == "eval"])


def test_trivia_do_not_separate_the_classes(samples, table):  # pitfall 60
    assert probe(table, samples) > 0.40


def test_the_probe_finds_a_planted_shortcut(samples, table):
    planted = table.copy()
    planted[:, 0] += 0.25 * (samples.utterances.label == "spoof").to_numpy()
    assert probe(planted, samples) < 0.40


def test_readme_counts_what_is_there(samples):
    text = (CORPUS / "README.md").read_text()
    u = samples.utterances
    assert text.count(f"{len(u)} short utterances") == 1
    for split, x in u.groupby("split"):
        bona = x[x.label == "bonafide"]
        fake = x[x.label == "spoof"]
        counts = f"{bona.speaker.nunique()} | {len(bona)} ({(bona.kind == 'spliced').sum()})"
        assert f"| {split} | {counts} | {(fake.kind == 'full').sum()} | {(fake.kind == 'partial').sum()} |" in text
