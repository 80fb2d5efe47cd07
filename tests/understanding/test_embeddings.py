"""Vectors are those of the models, maps keep what they say, and probes know only what is there."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wedefense_nb.data.audio import load
from wedefense_nb.data.manifest import Manifest
from wedefense_nb.features.spectra import make_front
from wedefense_nb.localization.localizers import Localizer
from wedefense_nb.models.detector import build
from wedefense_nb.training.scoring import score
from wedefense_nb.understanding.embeddings import (
    PROJECTIONS,
    balanced_hits,
    embed_all,
    embed_batch,
    embedding_table,
    frames_mean,
    layer_batch,
    neighbours_kept,
    plot_points,
    plot_probes,
    points_of,
    probe_map,
    probe_report,
    probe_right,
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build("bands").eval()


def test_a_table_has_the_vectors_the_facts_and_the_level(model, samples, tmp_path):
    part = samples.subset(utt=samples.utterances.utt.iloc[[5, 0, 9]])
    table = embedding_table(model, part, progress=False, batch_size=2)
    points, scores = embed_all(model, part, progress=False)
    assert list(table.utt) == list(part.utterances.utt) and np.allclose(points_of(table), points, atol=1e-5)
    assert np.allclose(table.score, scores, atol=1e-5)
    waves = [load(path)[0] for path in part.paths()]
    assert np.allclose(table.level, [20 * np.log10(wave.std()) for wave in waves], atol=0.01)
    table.to_parquet(tmp_path / "t.parquet")
    assert np.allclose(points_of(pd.read_parquet(tmp_path / "t.parquet")), points_of(table))
    with pytest.raises(ValueError, match="no table of embeddings"):
        points_of(part.utterances)


def test_embeddings_of_a_corpus_come_in_its_order(few):
    part = few.subset(utt=list(few.utterances.utt[:9]))
    model = build("bands").eval()
    points, scores = embed_all(model, part, batch_size=4, progress=False)
    assert np.allclose(scores, score(model, part, progress=False).score, atol=1e-5)
    mixed = Manifest(part.utterances[::-1], root=part.root)
    assert np.allclose(embed_all(model, mixed, progress=False)[0], points[::-1], atol=1e-5)


def test_a_localizer_has_an_embedding_that_padding_does_not_change():
    model = build("frame_lcnn_lstm").eval()
    assert isinstance(model, Localizer)
    wave = torch.randn(1, 12_000)
    alone, own = embed_batch(model, wave, torch.tensor([12_000]))
    padded = torch.cat([torch.nn.functional.pad(wave, (0, 8000)), torch.randn(1, 20_000)])
    points, scores = embed_batch(model, padded, torch.tensor([12_000, 20_000]))
    assert torch.allclose(points[0], alone[0], atol=1e-4) and torch.allclose(scores[0], own[0], atol=1e-4)


def test_layers_are_means_of_their_own_frames(model):
    wave, lengths = torch.randn(2, 9000), torch.tensor([9000, 5000])
    feats, frames = model.front(wave, lengths)
    for layer, (x, n) in {"front": (feats, frames), "backbone": model.backbone(feats, frames)}.items():
        vectors, scores = layer_batch(model, wave, lengths, layer)
        assert torch.allclose(vectors[1], x[1, : n[1]].mean(0), atol=1e-5) and scores.isnan().all()
    assert torch.equal(layer_batch(model, wave, lengths)[0], embed_batch(model, wave, lengths)[0])
    front = make_front("lfcc", preset="house")
    alone = front(wave[1:, :5000], lengths[1:])
    assert torch.allclose(layer_batch(front, wave, lengths, "front")[0][1], frames_mean(*alone)[0], atol=1e-4)
    for wrong, layer in ((model, "logits"), (front, "embedding")):
        with pytest.raises(ValueError, match="unknown layer"):
            layer_batch(wrong, wave, lengths, layer)


@given(st.integers(0, 10**6), st.integers(1, 5))
def test_neighbours_kept_as_one_counts_them(seed, k):
    rng = np.random.default_rng(seed)
    points, flat = rng.normal(size=(12, 4)), rng.normal(size=(12, 2))
    near = []
    for x in (points, flat):
        apart = np.linalg.norm(x[:, None] - x, axis=-1) + np.where(np.eye(12), np.inf, 0)
        near.append(np.argsort(apart, axis=1)[:, :k])
    wanted = np.mean([len(set(a) & set(b)) / k for a, b in zip(*near, strict=True)])
    assert neighbours_kept(points, flat, k) == pytest.approx(wanted)
    assert neighbours_kept(points, 3 * points + 1, k) == 1
    with pytest.raises(ValueError, match="more than k"):
        neighbours_kept(points, flat, 12)


def test_umap_without_compiling_is_repeatable_and_keeps_more_than_chance():
    code = """if True:
        import numpy as np
        from wedefense_nb.understanding.embeddings import neighbours_kept, umap_map
        rng = np.random.default_rng(0)
        points = np.repeat(np.eye(4) * 9, 6, axis=0) + rng.normal(size=(24, 4))
        maps = [umap_map(points, seed, 5) for seed in (0, 0)]
        assert np.array_equal(maps[0], maps[1]) and neighbours_kept(points, maps[0], 5) > 0.5
    """
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:umap", "-c", code],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr[-500:]


def test_umap_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match=r"wedefense_nb\[explain\]"):
        PROJECTIONS["umap"](np.eye(5))


def known(rng, speakers: int = 12, each: int = 10) -> pd.DataFrame:
    """Vectors that know the label weakly and the speaker well, and nothing about the attack."""
    n = speakers * each
    speaker, bona = np.arange(n) // each, np.arange(n) % 2
    points = rng.normal(size=(n, 6)) + 3 * rng.normal(size=(speakers, 6))[speaker]
    points[:, 0] = rng.normal(size=n) + 2 * bona
    table = pd.DataFrame({"utt": [f"u{i}" for i in range(n)], "speaker": speaker.astype(str)})
    table["label"] = np.where(bona, "bonafide", "spoof")
    table["attack"] = np.where(bona, "", rng.choice(["a", "b"], n))
    table["duration"], table["codec"] = points[:, 1] / 3 + rng.normal(size=n), ""
    return pd.concat([table, pd.DataFrame(points, columns=[f"e{i}" for i in range(6)])], axis=1)


def test_probes_know_what_is_there_and_nothing_else():
    report = probe_report(known(np.random.default_rng(0)), n=200).set_index("question")
    assert list(report.index) == ["label", "attack", "speaker", "duration"]  # one codec is no question
    assert report.known[["label", "speaker", "duration"]].all() and not report.known["attack"]
    assert report.chance["speaker"] == pytest.approx(1 / 12) and report.recordings["attack"] == 60
    assert report.groups["speaker"] == 120 and report.groups["label"] == 12
    ax = plot_probes(report.reset_index())
    assert [text.get_text() for text in ax.get_yticklabels()] == list(report.index)[::-1]


def test_a_probe_has_not_met_the_group():
    """Each group has a class and a place of its own: who has met it knows the class, and nobody else does."""
    rng = np.random.default_rng(0)
    groups, truth = np.repeat(np.arange(20), 10), np.repeat(rng.permutation(np.arange(20) % 2), 10)
    points = 9 * rng.normal(size=(20, 30))[groups] + rng.normal(size=(200, 30))
    assert probe_right(points, truth, np.arange(200)).mean() > 0.95
    assert probe_right(points, truth, groups).mean() < 0.75


def test_chance_lies_in_the_interval_where_nothing_is_known():
    rng = np.random.default_rng(0)
    said = []
    for _ in range(15):
        table = known(rng).assign(label=lambda t: rng.permutation(t.label))
        said.append(probe_report(table, {"label": "speaker"}, n=60).known[0])
    assert sum(said) <= 1


def test_balanced_accuracy_is_sklearns():
    from sklearn.metrics import balanced_accuracy_score

    rng = np.random.default_rng(0)
    truth, said = rng.choice(list("aaab"), 50), rng.choice(list("ab"), 50)
    assert balanced_hits(truth == said, truth).mean() == pytest.approx(balanced_accuracy_score(truth, said))


def test_a_map_by_probe_separates_what_is_known_across():
    table = known(np.random.default_rng(1))
    bona = (table.label == "bonafide").to_numpy()
    flat = probe_map(points_of(table), bona.astype(int), table.speaker)
    assert flat.shape == (120, 2) and flat[bona, 0].mean() > flat[~bona, 0].mean() + 1
    ax = plot_points(flat, table.speaker, "who", most=3)
    assert len(ax.collections) == 4 and ax.get_title() == "who"


def test_what_is_refused():
    table = known(np.random.default_rng(0))
    with pytest.raises(ValueError, match="unknown column 'accent'"):
        probe_report(table, {"accent": "speaker"})
    with pytest.raises(ValueError, match="two classes and two groups"):
        probe_right(np.zeros((4, 2)), [0, 1, 0, 1], ["a"] * 4)
    assert len(probe_report(table, {"codec": "speaker"})) == 0
