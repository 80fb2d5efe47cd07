"""Pairs are compared as the formulas have it, what they share cancels, and a training with them repeats itself."""

import dataclasses
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from tests.conftest import ROOT, power_cut
from tests.training.runs import QUICK, Stop, small, weights
from wedefense_nb.augmentation.copies import Copies, pairs_of
from wedefense_nb.augmentation.policies import Policy, make_policy
from wedefense_nb.augmentation.transforms import Chain, Gain, changing_loader
from wedefense_nb.data.batches import AudioDataset, collate
from wedefense_nb.data.crops import Crop
from wedefense_nb.models.detector import build, with_head
from wedefense_nb.models.losses import HEADS
from wedefense_nb.training import loop
from wedefense_nb.training.loop import fit
from wedefense_nb.training.objectives import Detection, make_objective
from wedefense_nb.training.pairs import (
    Compared,
    Contrastive,
    Paired,
    contrastive_loss,
    makes_pairs,
    ordered,
    paired_loss,
)

SETTINGS = SimpleNamespace(class_weights=(0.5, 2.0), seed=7)
KINDS = {"paired": Paired, "contrastive": Contrastive}


@pytest.fixture(scope="module")
def batch(splits):
    """Three of each class, and the doubles of the real ones: rows 0 and 6, 1 and 7, 2 and 8."""
    data = AudioDataset(splits[0], Crop(0.5))
    rows = [*np.flatnonzero(data.labels == 1)[:3], *np.flatnonzero(data.labels == 0)[:3]]
    return Copies(p=1.0, routes=["phase_noise"], keep=True)(collate([data[0, row] for row in rows]))


@pytest.fixture(scope="module")
def unpaired(splits):
    data = AudioDataset(splits[0], Crop(0.5))
    rows = [*np.flatnonzero(data.labels == 1)[:2], *np.flatnonzero(data.labels == 0)[:2]]
    return collate([data[0, row] for row in rows])


# Ranking


@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(0.1, 20))
@settings(max_examples=40, deadline=None)
def test_the_paired_loss_is_the_likelihood_of_who_is_real(seed, n, scale):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=2 * n + 3)
    rows = rng.permutation(2 * n + 3)
    pairs = [(int(rows[2 * i]), int(rows[2 * i + 1])) for i in range(n)]
    total = 0.0
    for i, j in pairs:  # by Bayes: one of two is real
        first, second = (expit(scale * scores[k]) for k in (i, j))
        lost = second * (1 - first)
        total += math.log1p(lost / max(first * (1 - second), 1e-300))
    if np.abs(scale * scores).max() < 30:
        assert paired_loss(torch.from_numpy(scores), pairs, scale).item() == pytest.approx(total / n, rel=1e-6)
    moved = scores.copy()
    for i, j in pairs:
        moved[[i, j]] += rng.normal() * 9
    same = paired_loss(torch.from_numpy(moved), pairs, scale).item()
    assert same == pytest.approx(paired_loss(torch.from_numpy(scores), pairs, scale).item(), abs=1e-9)


def test_the_paired_gradient_pulls_apart_and_moves_nothing_else():
    scores = torch.tensor([0.3, -0.2, 4.0, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: paired_loss(s, [(0, 3), (4, 1)], 1.5), scores)
    paired_loss(scores, [(0, 3), (4, 1)], 1.5).backward()
    pull = 1.5 * expit(-1.5 * np.array([0.3 - 1.0, 2.0 + 0.2])) / 2
    assert np.allclose(scores.grad.numpy(), [-pull[0], pull[1], 0, pull[0], -pull[1]])
    extreme = torch.tensor([-1e4, 1e4], requires_grad=True)
    paired_loss(extreme, [(0, 1)]).backward()
    assert extreme.grad.tolist() == [-1.0, 1.0]


def test_nothing_to_compare_is_an_error():
    with pytest.raises(ValueError, match="no recording has its double"):
        paired_loss(torch.zeros(3), [])
    with pytest.raises(ValueError, match="no recording has its double"):
        ordered(np.zeros(3), [])


def test_ordered_is_the_area_of_matched_pairs():
    scores = np.array([1.0, 2.0, 3.0, 0.0, 2.0, 5.0])
    assert ordered(scores, [(0, 3), (1, 4), (2, 5)]) == pytest.approx((1 + 0.5 + 0) / 3)
    assert ordered(torch.tensor([1.0, 0.0]), [(0, 1)]) == 1.0


# Contrast


def literal_contrast(embedding, labels, pairs, temperature, hard, only):
    """Khosla et al., equation 2, in loops and double precision; a double stands `hard` times in the sum below."""
    z = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    doubles = {frozenset(pair) for pair in pairs}
    losses = []
    for i in range(len(z)):
        friends = [p for p in range(len(z)) if p != i and labels[p] == labels[i]]
        if not friends or (only and labels[i] != ("spoof", "bonafide").index(only)):
            continue
        below = 0.0
        for k in range(len(z)):
            if k != i:
                times = hard if frozenset((i, k)) in doubles else 1.0
                below += times * math.exp(z[i] @ z[k] / temperature)
        losses.append(-np.mean([math.log(math.exp(z[i] @ z[p] / temperature) / below) for p in friends]))
    return np.mean(losses) if losses else 0.0


@given(
    st.integers(0, 10**6),
    st.integers(1, 9),
    st.sampled_from([0.07, 0.5, 2.0]),
    st.sampled_from([1.0, 4.0]),
    st.sampled_from(["", "bonafide", "spoof"]),
)
@settings(max_examples=80, deadline=None)
def test_the_contrast_is_that_of_loops(seed, n, temperature, hard, only):
    rng = np.random.default_rng(seed)
    embedding = rng.normal(size=(n, 3))
    labels = rng.integers(0, 2, n)
    real, fake = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    pairs = [(int(a), int(b)) for a, b in zip(real, fake, strict=False)][: rng.integers(0, 4)]
    want = literal_contrast(embedding, labels, pairs, temperature, hard, only)
    given = (torch.from_numpy(embedding), torch.from_numpy(labels), pairs, temperature, hard, only)
    assert contrastive_loss(*given).item() == pytest.approx(want, rel=1e-4, abs=1e-5)
    assert contrastive_loss(7 * given[0], *given[1:]).item() == pytest.approx(want, rel=1e-4, abs=1e-5)


def test_with_one_friend_each_it_is_cross_entropy():
    torch.manual_seed(3)
    embedding = torch.randn(4, 8)
    unit = torch.nn.functional.normalize(embedding)
    cosines = (unit @ unit.T / 0.2).masked_fill(torch.eye(4, dtype=torch.bool), -math.inf)
    want = torch.nn.functional.cross_entropy(cosines, torch.tensor([2, 3, 0, 1]))
    assert torch.allclose(contrastive_loss(embedding, torch.tensor([0, 1, 0, 1]), temperature=0.2), want)


def test_the_gradient_of_the_contrast():
    torch.manual_seed(0)
    labels = torch.tensor([1, 1, 0, 0, 0])

    def loss(x):  # directions in single precision: a coarse check
        return contrastive_loss(x, labels, [(0, 2)], 0.5, 4.0)

    x = torch.randn(5, 3, requires_grad=True)
    loss(x).backward()
    numeric = torch.zeros(5, 3)
    for i in range(5):
        for j in range(3):
            step = torch.zeros(5, 3)
            step[i, j] = 1e-2
            numeric[i, j] = (loss(x.detach() + step) - loss(x.detach() - step)) / 2e-2
    assert torch.allclose(x.grad, numeric, atol=2e-3)
    assert torch.allclose((x.grad * x).sum(1), torch.zeros(5), atol=1e-5), "only directions matter"


@pytest.mark.parametrize("labels", [[1], [0, 1], [1, 0, 0]])
def test_without_friends_there_is_nothing_and_no_nan(labels):
    x = torch.randn(len(labels), 4, requires_grad=True)
    loss = contrastive_loss(x, torch.tensor(labels), only="bonafide")
    loss.backward()
    assert loss.item() == 0 and torch.equal(x.grad, torch.zeros_like(x))


def test_half_precision_loses_nothing():
    torch.manual_seed(0)
    x, labels = torch.randn(6, 16), torch.tensor([0, 1, 0, 1, 1, 0])
    plain = contrastive_loss(x, labels, [(1, 0)], 0.1, 4.0)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = contrastive_loss(x, labels, [(1, 0)], 0.1, 4.0)
    assert torch.equal(plain, mixed)


# Objectives


def test_who_makes_pairs(splits):
    train = splits[0]
    assert makes_pairs(make_policy("copy_pairs", train).change)
    assert makes_pairs(make_policy("copy_pairs+rawboost", train).change)
    assert makes_pairs(Chain(Gain(), Chain(Copies(keep=True))))
    for text in ("none", "copies", "rawboost"):
        assert not makes_pairs(make_policy(text, train).change)
    assert not makes_pairs(Copies(p=0.0, keep=True))


@pytest.mark.parametrize("head", sorted(HEADS))
def test_every_head_gets_its_loss_and_the_comparison(batch, head):
    torch.manual_seed(0)
    model = with_head(build("bands"), head)
    pairs = [(0, 6), (1, 7), (2, 8)]
    assert pairs_of(batch.utts) == pairs
    plain = Detection(model, SETTINGS)(batch, progress=0.5)
    embedding = model.embed(batch.wave, batch.lengths)
    logits = model.head(embedding)
    ranked = paired_loss(logits[:, 1] - logits[:, 0], pairs, 3.0)
    contrast = contrastive_loss(embedding, batch.labels, pairs, 0.2, 2.0, "bonafide")
    made = Paired(model, SETTINGS, weight=0.5, scale=3.0)(batch, progress=0.5)
    assert made.item() == pytest.approx((plain + 0.5 * ranked).item(), abs=1e-5)
    options = {"temperature": 0.2, "hard": 2.0, "only": "bonafide"}
    made = Contrastive(model, SETTINGS, weight=0.5, **options)(batch, progress=0.5)
    assert made.item() == pytest.approx((plain + 0.5 * contrast).item(), abs=1e-5)
    made.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", KINDS)
def test_weight_zero_is_plain(batch, unpaired, name):
    model = build("bands")
    objective = make_objective(name, weight=0.0)(model, SETTINGS)
    for some in (batch, unpaired):
        assert torch.equal(objective(some), Detection(model, SETTINGS)(some))


@pytest.mark.parametrize("name", KINDS)
def test_pairs_must_be_promised(splits, unpaired, name):
    train = splits[0]
    model = build("bands")
    for text in ("none", "copies"):
        objective = make_objective(name)(model, SETTINGS, make_policy(text, train))
        with pytest.raises(ValueError, match="set augment to copy_pairs, or weight to 0"):
            objective.check(train)
        with pytest.raises(ValueError, match="no recording of this batch has its double"):
            objective(unpaired)
    with pytest.raises(ValueError, match=unpaired.utts[0]):
        make_objective(name)(model, SETTINGS)(unpaired)
    make_objective(name, weight=0.0)(model, SETTINGS).check(train)
    promised = make_objective(name)(model, SETTINGS, make_policy("copy_pairs", train))
    promised.check(train)
    assert torch.allclose(promised(unpaired), Detection(model, SETTINGS)(unpaired))  # it was chance


@pytest.mark.parametrize(
    "name, option, message",
    [
        ("paired", {"weight": -1.0}, "weight is -1.0"),
        ("paired", {"scale": 0.0}, "scale is 0.0"),
        ("contrastive", {"weight": math.inf}, "weight is inf"),
        ("contrastive", {"temperature": 0.0}, "temperature is 0.0"),
        ("contrastive", {"hard": 0.5}, "hard is 0.5"),
        ("contrastive", {"only": "fake"}, "unknown class 'fake'"),
        ("contrastive", {"scale": 2.0}, "unknown option of objective contrastive 'scale'"),
    ],
)
def test_odd_comparisons_are_refused(name, option, message):
    with pytest.raises(ValueError, match=message):
        make_objective(name, **option)(build("bands"), SETTINGS)


def test_a_comparison_must_be_written(batch):
    with pytest.raises(NotImplementedError):
        Compared(build("bands"), SETTINGS)(batch)


def test_masks_cover_the_features_once_for_both_losses(splits, batch):
    policy = Policy(Copies(keep=True), make_policy("specaugment", splits[0]).masks)
    model = build("bands")
    policy.masks.train()
    covered = Paired(model, SETTINGS, policy)
    embedding = model.embed(batch.wave, batch.lengths, covered._cover(batch.utts, 2))
    logits = model.head(embedding)
    want = model.head.loss(embedding, batch.labels, covered.weights)
    want = want + paired_loss(logits[:, 1] - logits[:, 0], pairs_of(batch.utts))
    assert torch.allclose(covered(batch, 2), want) and not torch.allclose(covered(batch, 3), want, atol=1e-6)


def test_a_committee_can_be_compared(batch):
    model = build("committee", members=[{"name": "bands"}, {"name": "bands", "n_mels": 40}])
    for kind in KINDS.values():
        loss = kind(model, SETTINGS)(batch)
        loss.backward()
        assert torch.isfinite(loss)


# In the loop


@pytest.mark.parametrize("name, after", [("paired", 7), ("contrastive", 1)])
def test_an_interrupted_run_equals_an_uninterrupted_one(few, tmp_path, name, after):
    splits = (few.subset(split="train"), few.subset(split="dev"))
    config = dataclasses.replace(QUICK, epochs=2, augment="copy_pairs")
    objective = make_objective(name, weight=0.5)
    whole = fit(small(), *splits, config, objective, out=tmp_path / "whole")
    with power_cut(loop, "_step", after, Stop):
        fit(small(), *splits, config, objective, out=tmp_path / "cut")
    again = fit(build("lcnn_lstm", dropout=0.5), *splits, config, objective, out=tmp_path / "cut")
    assert torch.equal(weights(again.model), weights(whole.model)) and again.history.equals(whole.history)
    with pytest.raises(ValueError, match="objective weight"):
        fit(small(), *splits, config, make_objective(name, weight=0.3), out=tmp_path / "cut")


@pytest.mark.parametrize("name", KINDS)
def test_without_doubles_nothing_starts(few, tmp_path, name):
    splits = (few.subset(split="train"), few.subset(split="dev"))
    with pytest.raises(ValueError, match="set augment to copy_pairs"):
        fit(small(), *splits, QUICK, make_objective(name), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


LAUNCH = """
import sys
from accelerate import debug_launcher
from tests.training.pair_ranks import two_ranks
if __name__ == "__main__":
    debug_launcher(two_ranks, args=(sys.argv[1],), num_processes=2)
"""


def test_two_processes_average_their_gradients(tmp_path):
    """Also where only one of them has pairs; both end with the same weights, those of the mean of two losses."""
    (tmp_path / "launch.py").write_text(LAUNCH)
    command = [sys.executable, str(tmp_path / "launch.py"), str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in KINDS:
        first, second = (np.load(tmp_path / f"{name}{rank}.npz") for rank in (0, 1))
        assert np.array_equal(first["gradient"], second["gradient"])
        assert np.allclose(first["gradient"], (first["alone"] + second["alone"]) / 2, atol=1e-6)
        assert first["pairs"] > 0 and second["pairs"] == 0


@pytest.mark.parametrize("kind", KINDS.values())
def test_training_on_pairs_ranks_them(splits, kind):
    """On one easy route, a few steps put recordings above their doubles, and nearly never did before."""
    data = AudioDataset(splits[0], Crop(0.7))
    rows = [*np.flatnonzero(data.labels == 1)[:12], *np.flatnonzero(data.labels == 0)[:4]]
    change = Copies(p=1.0, routes=["lpc_any"], keep=True)
    batches = [changing_loader(data, [[(e, row) for row in rows]], 0, change, e) for e in range(2)]
    learn, judge = (next(iter(loader)) for loader in batches)
    torch.manual_seed(1)
    model = build("bands")
    objective = kind(model, SimpleNamespace(class_weights=(1.0, 1.0), seed=0), weight=2.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        objective(learn).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        scores = model.score(model(judge.wave, judge.lengths))
    assert ordered(scores, pairs_of(judge.utts)) > 0.9
