"""Curves against plain loops, what padding must not change, choices on dev, a localizer without parameters."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.features.ssl_files import STILL
from wedefense_nb.data.manifest import Manifest
from wedefense_nb.features.pretrained import TINY
from wedefense_nb.features.spectra import make_front
from wedefense_nb.features.upstreams import Upstream
from wedefense_nb.files import locate
from wedefense_nb.localization.frames import frame_count
from wedefense_nb.localization.localizers import localize
from wedefense_nb.localization.metrics import judge
from wedefense_nb.localization.trajectory import (
    CURVES,
    HalvesHead,
    Trajectory,
    at_frames,
    cosine,
    curvature,
    curve_statistics,
    frame_speed,
    layer_scores,
    rank_on_dev,
    smoothed,
    standardised,
    steps,
)
from wedefense_nb.models.detector import LOCALIZERS, build
from wedefense_nb.models.losses import LinearHead
from wedefense_nb.registry import UnknownName
from wedefense_nb.task import BONAFIDE, SPOOF


def plain_curves(rows):
    """Speed, cosine and curvature of one recording (F, D), frame by frame."""
    units = [row / np.linalg.norm(row) for row in rows]
    moved = [units[i + 1] - units[i] for i in range(len(units) - 1)]
    found = {"speed": [], "cosine": [], "curvature": []}
    for i in range(len(units)):
        beside = [k for k in (i - 1, i) if 0 <= k < len(moved)]
        found["speed"].append(np.mean([np.linalg.norm(moved[k]) for k in beside]) if beside else 0.0)
        found["cosine"].append(np.mean([1 - units[k] @ units[k + 1] for k in beside]) if beside else 0.0)
        turn = 0.0
        if 0 < i < len(moved):
            turn = 1 - moved[i - 1] @ moved[i] / np.linalg.norm(moved[i - 1]) / np.linalg.norm(moved[i])
        found["curvature"].append(turn)
    return {name: np.array(values) for name, values in found.items()}


def some(lengths, dim=5, seed=0, padding=0.0):
    """Random features (B, F, D) with something in the padding, and frames (B,)."""
    rng = np.random.default_rng(seed)
    feats = torch.full((len(lengths), max(lengths), dim), padding)
    for row, n in enumerate(lengths):
        feats[row, :n] = torch.from_numpy(rng.normal(size=(n, dim)))
    return feats.double(), torch.tensor(lengths)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(0, 999), st.sampled_from([0.0, 7.0]))
def test_curves_are_those_of_a_plain_loop_whatever_lies_in_the_padding(lengths, seed, padding):  # pitfall 17
    feats, frames = some(lengths, seed=seed, padding=padding)
    for name, curve in CURVES.items():
        values = curve(feats, frames)
        assert values.shape == feats.shape[:2]
        for row, n in enumerate(lengths):
            want = plain_curves(feats[row, :n].numpy())[name]
            assert np.allclose(values[row, :n], want, atol=1e-7), name
            assert (values[row, n:] == 0).all()


def test_five_frames_by_hand():
    angles = torch.deg2rad(torch.tensor([0.0, 10.0, 20.0, 80.0, 90.0]))
    feats = torch.stack([angles.cos(), angles.sin()], 1)[None] * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])[:, None]
    short = 2 * np.sin(np.deg2rad(5))
    assert np.allclose(
        frame_speed(feats, torch.tensor([5])), [short, short, (short + 1) / 2, (short + 1) / 2, short]
    )
    assert np.allclose(cosine(feats, torch.tensor([5]))[0, :2], 1 - np.cos(np.deg2rad(10)), atol=1e-6)
    assert np.allclose(curvature(feats, torch.tensor([5]))[0, 1:3], 1 - np.cos(np.deg2rad([10, 35])), atol=1e-5)


def test_frames_that_stand_still_or_are_zero_give_numbers():
    still = torch.ones(1, 6, 3)
    empty = torch.zeros(1, 6, 3)
    for feats in (still, empty):
        for curve in CURVES.values():
            assert (curve(feats, torch.tensor([6])) == 0).all()
    feats = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])  # the way from a standstill has no angle
    assert curvature(feats, torch.tensor([3])).tolist() == [[0.0, 0.0, 0.0]]
    assert steps(torch.ones(2, 1, 3), torch.tensor([1, 1])).shape == (2, 0, 3)


def test_values_of_steps_become_values_of_frames():
    between = torch.tensor([[2.0, 4.0, 99.0], [2.0, 99.0, 99.0]])
    assert at_frames(between, torch.tensor([3, 1])).tolist() == [[2.0, 3.0, 4.0, 0.0], [0.0, 0.0, 0.0, 0.0]]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3, 5, 9]), st.integers(0, 99))
def test_the_moving_average_is_over_the_frames_that_there_are(n, more, width, seed):  # pitfall 17
    values = np.random.default_rng(seed).normal(size=n)
    curve = torch.full((1, n + more), 50.0).double()
    curve[0, :n] = torch.from_numpy(values)
    got = smoothed(curve, torch.tensor([n]), width)[0]
    want = [values[max(0, i - width // 2) : i + width // 2 + 1].mean() for i in range(n)]
    assert np.allclose(got[:n], want) and (got[n:] == 0).all()


def test_standardised_recordings_have_mean_0_and_deviation_1():
    curve = torch.from_numpy(np.random.default_rng(0).normal(3, 5, size=(2, 20)))
    got = standardised(curve, torch.tensor([20, 7]))
    for row, n in enumerate((20, 7)):
        assert np.isclose(got[row, :n].mean(), 0) and np.isclose(got[row, :n].std(correction=0), 1)
        assert np.allclose(
            got[row, :n], (curve[row, :n] - curve[row, :n].mean()) / curve[row, :n].std(correction=0)
        )
    assert (got[1, 7:] == 0).all()
    assert (standardised(torch.full((1, 4), 2.0), torch.tensor([4])) == 0).all()


@pytest.mark.parametrize("width", [0, 2, -1])
def test_even_widths_are_refused(width):
    with pytest.raises(ValueError, match="odd number of frames"):
        smoothed(torch.zeros(1, 4), torch.tensor([4]), width)
    with pytest.raises(ValueError, match="odd number of frames"):
        build("trace", width=width)


def test_unknown_names_are_refused():
    with pytest.raises(UnknownName, match="curve.*speed"):
        build("trace", curve="sped")
    with pytest.raises(UnknownName, match="class"):
        build("trace", fast="fake")


def test_a_jump_scores_lowest_and_the_other_way_round_highest():  # pitfall 1
    feats, frames = some([30], seed=1)
    feats[:] = feats[:, :1] + 0.01 * feats
    feats[0, 12:] += 9
    scores = {}
    for fast in ("spoof", "bonafide"):
        values, _ = Trajectory(fast=fast)(feats, frames)
        logits = HalvesHead(1)(values[0])
        scores[fast] = (logits[:, BONAFIDE] - logits[:, SPOOF]).numpy()
        assert np.allclose(scores[fast], values[0, :, 0])
    assert set(np.argsort(scores["spoof"])[:2]) == {11, 12}
    assert np.allclose(scores["spoof"], -scores["bonafide"]) and (scores["spoof"] <= 0).all()


def test_the_prior_of_a_training_that_was_none_is_not_subtracted():
    net = build("trace")
    logits = net(torch.randn(1, 8000), torch.tensor([8000]))[0]
    before = net.score(logits)
    net.log_prior_odds.fill_(3.0)
    assert torch.equal(net.score(logits), before)


def test_nothing_learns_unless_a_head_is_asked_for():
    assert "trace" in LOCALIZERS and LOCALIZERS.paper("trace").link.endswith("2604.01083")
    for options in ({}, STILL):
        assert [p for p in build("trace", **options).parameters() if p.requires_grad] == []
    net = build("trace", head="linear")
    assert isinstance(net.head, LinearHead) and net.head.dim == 1


@pytest.fixture(scope="module")
def samples():
    return Manifest.read(locate("data_samples")).subset(kind="partial", split="dev", attack="lpc")


@pytest.mark.parametrize("name", ["tiny", "fbank"])
def test_all_layers_at_once_are_the_layers_one_by_one(samples, name):
    torch.manual_seed(0)
    front = Upstream(asdict(TINY), layers="all") if name == "tiny" else make_front("fbank")
    found = layer_scores(front, samples, "cosine", width=3, standard=True, batch_size=3)
    assert len(found) == (TINY.layers + 1 if name == "tiny" else 1)
    hop = 0.02 if name == "tiny" else 0.01
    for layer in range(len(found)):
        options = {"curve": "cosine", "width": 3, "standard": True}
        if name == "tiny":
            torch.manual_seed(0)
            net = build("trace", upstream=asdict(TINY), layers=layer, **options)
        else:
            net = build("trace", **options)
        want = localize(net, samples, progress=False)
        assert list(found[layer]) == list(want) == samples.utterances.utt.tolist()
        for utt in want:
            assert np.allclose(found[layer][utt], want[utt], atol=2e-3), (layer, utt)
    judge(found[0], samples, hop)  # every recording is covered to its end
    assert len(found[0][samples.utterances.utt.iloc[0]]) == frame_count(
        round(samples.utterances.duration.iloc[0] * 16000), hop
    )


def dev_of(labels):
    """Recordings whose frames of 20 ms have these labels, half of each."""
    rows = [dict(utt=u, path="", label="spoof", split="", speaker="", attack="", codec="") for u in labels]
    table = pd.DataFrame(rows).assign(duration=0.08, sample_rate=16000)
    parts = [dict(utt=u, start=0.0, end=0.04, label="spoof", attack="") for u in labels]
    return Manifest(table, pd.DataFrame(parts))


def test_dev_ranks_by_distance_from_chance_and_tells_the_direction():
    dev = dev_of(["a"])
    good = {"a": np.array([0.0, 1.0, 2.0, 3.0])}
    turned = {"a": -good["a"]}
    middling = {"a": np.array([0.0, 3.0, 1.0, 2.0])}
    table = rank_on_dev({"middling": middling, "turned": turned}, dev, 0.02)
    assert table.name.tolist() == ["turned", "middling"]
    assert table.auc.tolist() == [0.0, 0.5] and table.fast.tolist() == ["bonafide", "spoof"]
    assert rank_on_dev({"good": good}, dev, 0.02).fast.tolist() == ["spoof"]
    with pytest.raises(ValueError, match="no scores"):
        rank_on_dev({"good": {}}, dev, 0.02)


def test_recordings_by_their_statistics():
    table = curve_statistics({"a": [-1.0, -2.0, -6.0], "b": np.array([-4.0])})
    assert table.loc["a"].tolist() == [-3.0, -6.0, -np.std([1, 2, 6])] and table.loc["b"].tolist() == [-4, -4, 0]
    with pytest.raises(ValueError, match="c has no frames"):
        curve_statistics({"c": []})
