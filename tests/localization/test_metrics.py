"""Measures of localization against the oracle vectors, brute force, and the traps of published programs."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score, roc_curve

from tests.conftest import GOLDEN_DIR
from wedefense_nb.data.manifest import Manifest
from wedefense_nb.localization import metrics as module
from wedefense_nb.localization.frames import coarser, frame_count, manifest_labels, segments_to_frames
from wedefense_nb.localization.metrics import (
    PEEK,
    TICK_RATE,
    Frames,
    Ranking,
    Threshold,
    auc_replicates,
    boundary_rates,
    calibrated,
    draw_utterances,
    eer_replicates,
    find_threshold,
    frame_auc,
    frame_calibration,
    frame_rates,
    frames_at,
    judge,
    llr_costs,
    localization_report,
    match_boundaries,
    point_eer,
    range_eer,
    utterance_eer,
)
from wedefense_nb.metrics import Counts, act_dcf, cllr, eer

SR = 16000
ORACLE = json.loads((GOLDEN_DIR / "localization.json").read_text())["vectors"]


def manifest(recordings, fakes=()):
    """Recordings (utt, label, seconds) and fake segments (utt, start, end)."""
    u = pd.DataFrame(recordings, columns=["utt", "label", "duration"])
    u = u.assign(path=u.utt, split="", speaker="", attack="", codec="", sample_rate=SR)
    s = pd.DataFrame(list(fakes), columns=["utt", "start", "end"]).assign(label="spoof", attack="")
    return Manifest(u, s)


def vector(name):
    """Truth and frame scores of an oracle vector."""
    recordings = []
    segments = []
    for line in (GOLDEN_DIR / "localization" / f"{name}.labels.txt").read_text().splitlines():
        utt, seconds, label, *pieces = line.split()
        recordings.append((utt, label, float(seconds)))
        for piece in pieces:
            start, end, kind = piece.split("-")
            segments.append({"utt": utt, "start": float(start), "end": float(end), "label": kind, "attack": ""})
    table = pd.read_csv(GOLDEN_DIR / "localization" / f"{name}.scores.txt", sep=" ", header=None)
    scores = {utt: rows[2].to_numpy() for utt, rows in table.groupby(0, sort=False)}
    return Manifest(manifest(recordings).utterances, pd.DataFrame(segments)), scores


JUDGED = {}


def judged(name):
    if name not in JUDGED:
        truth, scores = vector(name)
        rest = "cut" if "long_scores" in name else "error"
        JUDGED[name] = judge(scores, truth, ORACLE[name]["unit_seconds"], rest)
    return JUDGED[name]


def made(n=12, seed=0, hop=0.02, ties=False, longest=3.0):
    """Truth and scores of recordings of all kinds: real, partly fake, fake as a whole."""
    rng = np.random.default_rng(seed)
    seconds = rng.integers(1, int(longest * 1e4), n) / 1e4 + 0.3
    names = [f"u{seed}-{i}" for i in range(n)]
    fakes = []
    for utt, length in list(zip(names, seconds, strict=True))[::2]:
        cuts = np.sort(rng.uniform(0, length, 2 * int(rng.integers(1, 4))).round(4)).reshape(-1, 2)
        fakes += [(utt, a, b) for a, b in cuts if b - a > 0.001]
    with_fake = {f[0] for f in fakes}
    labels = ["spoof" if utt in with_fake or i % 6 == 1 else "bonafide" for i, utt in enumerate(names)]
    truth = manifest(list(zip(names, labels, seconds, strict=True)), fakes)
    scores = {utt: 1.5 * y + rng.normal(0, 1, len(y)) for utt, y in manifest_labels(truth, hop).items()}
    if ties:
        scores = {utt: row.round(0) for utt, row in scores.items()}
    return truth, scores


def close(want):
    return pytest.approx(want, abs=1e-9)


def expect(want, key, function):
    """The wanted value, or the wanted refusal."""
    if "raises" in want:
        with pytest.raises(ValueError, match="both classes are needed"):
            function()
    else:
        assert function() == close(want[key])


@pytest.mark.parametrize("method", ["interp", "nearest"])
@pytest.mark.parametrize("name", ORACLE)
def test_oracle_of_equal_error_rates(name, method):  # pitfall 28
    want = ORACLE[name]["want"]
    j = judged(name)
    key = f"eer_{method}"
    expect(want["range"], key, lambda: range_eer(j, method=method))
    expect(want["utterance"], key, lambda: utterance_eer(j, method=method))
    for resolution, rules in want["point"].items():
        for rule, value in rules.items():
            r = int(resolution.removesuffix("ms")) / 1000
            expect(value, key, lambda r=r, rule=rule: point_eer(j, resolution=r, rule=rule, method=method))
            frames = frames_at(j, r, rule)
            assert frames.bona.sum() + frames.spoof.sum() == value["n_frames"]
            assert frames.spoof.sum() == value["n_spoof"]


@pytest.mark.parametrize("name", ORACLE)
def test_oracle_of_seconds_and_frame_rates(name):  # pitfall 27
    """F1 with spoof as the positive class; bona fide, as published, only if asked for."""
    want = ORACLE[name]["want"]
    j = judged(name)
    bona, spoof = (x.sum() / TICK_RATE for x in j.time)
    assert bona == close(want["range"]["bonafide_seconds"]) and spoof == close(want["range"]["spoof_seconds"])
    for positive, wanted in want["frame_prf"].items():
        got = frame_rates(j, threshold=0.5, positive=positive)
        assert {k: got[k] for k in ("precision", "recall", "f1")} == close(
            {k: wanted[k] for k in ("precision", "recall", "f1")}
        )
    assert frame_rates(j, threshold=0.5) == frame_rates(j, threshold=0.5, positive="spoof")


def test_oracle_through_the_public_names():
    """The signatures that other code relies on, from scores and truth."""
    truth, scores = vector("L01_hand")
    want = ORACLE["L01_hand"]["want"]
    assert point_eer(scores, truth, 0.02) == close(want["point"]["20ms"]["any"]["eer_interp"])
    assert point_eer(scores, truth, 0.02, 0.04, "majority") == close(0.0)
    assert range_eer(scores, truth, 0.02) == close(want["range"]["eer_interp"])
    assert utterance_eer(scores, truth, 0.02) == close(0.0)


def slow_point_eer(scores, truth, hop, resolution, rule):
    """One frame after the other, then scikit-learn."""
    rows, labels = [], []
    u = truth.utterances.set_index("utt")
    for utt, row in scores.items():
        s = truth.segments[truth.segments.utt == utt]
        n = round(u.duration[utt] * SR)
        fakes = s[["start", "end"]].to_numpy()
        if u.label[utt] == "spoof" and len(s) == 0:
            fakes = [[0, n / SR]]
        y = segments_to_frames(fakes, n, resolution, rule)
        if resolution >= hop:
            x = coarser(row, round(resolution / hop))
        else:
            x = np.repeat(row, round(hop / resolution))[: len(y)]
        rows.append(x)
        labels.append(y)
    fpr, tpr, _ = roc_curve(np.concatenate(labels), np.concatenate(rows), drop_intermediate=False)
    k = np.argmax(fpr >= 1 - tpr)  # rates on the straight line at which both errors are equal
    a, b = 1 - tpr[k - 1] - fpr[k - 1], fpr[k] - (1 - tpr[k])
    return fpr[k - 1] + (fpr[k] - fpr[k - 1]) * a / (a + b)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("resolution", [0.005, 0.01, 0.02, 0.06, 0.16])
@pytest.mark.parametrize("rule", ["any", "majority"])
def test_point_eer_equals_one_frame_after_the_other(seed, resolution, rule):
    truth, scores = made(seed=seed, ties=seed == 3)
    want = slow_point_eer(scores, truth, 0.02, resolution, rule)
    assert point_eer(scores, truth, 0.02, resolution, rule) == pytest.approx(want, abs=1e-12)


def test_point_eer_at_a_hop_that_is_no_whole_number_of_samples():
    truth, scores = made(seed=7, hop=1 / 75)
    for resolution in (1 / 75, 4 / 75, 1 / 150):
        want = slow_point_eer(scores, truth, 1 / 75, resolution, "any")
        assert point_eer(scores, truth, 1 / 75, resolution) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_range_eer_equals_the_eer_of_all_samples(seed):
    """Every sample with the score of its frame: nothing is weighted, nothing can be forgotten."""
    truth, scores = made(6, seed, ties=seed == 2, longest=1.0)
    u = truth.utterances
    truth = Manifest(u.assign(duration=(u.duration * SR).round() / SR), truth.segments)
    x, y = [], []
    for utt, row in scores.items():
        n = round(truth.utterances.set_index("utt").duration[utt] * SR)
        x.append(np.repeat(row, 320)[:n])
        y.append(manifest_labels(truth.subset(utt=utt), 1 / SR)[utt])
    want = {m: eer(np.concatenate(x), np.concatenate(y), m) for m in ("interp", "nearest")}
    for method, value in want.items():
        assert range_eer(scores, truth, 0.02, method=method) == pytest.approx(value, abs=2e-4)  # times in 10 kHz


def test_on_the_grid_point_and_range_are_one():
    j = judged("L02_on_grid")
    for method in ("interp", "nearest"):
        assert point_eer(j, method=method) == close(range_eer(j, method=method))
    assert range_eer(judged("L05_perfect")) == 0 and point_eer(judged("L05_perfect")) == 0


@pytest.mark.parametrize("name", ["L02_on_grid", "L04_with_full_utts", "L11_tiny_segments"])
def test_splitting_frames_and_scaling_time_change_nothing(name):
    truth, scores = vector(name)
    halves = {utt: np.repeat(row, 2) for utt, row in scores.items()}
    assert range_eer(halves, truth, 0.01, rest="cut") == close(range_eer(scores, truth, 0.02))
    u = truth.utterances.assign(duration=truth.utterances.duration * 3)
    s = truth.segments.assign(start=truth.segments.start * 3, end=truth.segments.end * 3)
    assert range_eer(scores, Manifest(u, s), 0.06) == close(range_eer(scores, truth, 0.02))


def test_a_rest_is_stretched_or_cut_only_if_asked_for():  # pitfalls 16 and 17
    """The last score stands for the rest; frames beyond the end, and padding, are nobody's."""
    truth, scores = vector("L04_with_full_utts")
    short = {utt: row[:-1] for utt, row in scores.items()}
    for function in (point_eer, range_eer, utterance_eer, frame_auc, llr_costs, frame_rates, boundary_rates):
        with pytest.raises(ValueError, match="CON_D_0000000 has 143 frames .* rest='repeat'"):
            function(short, truth, 0.02)
    long = {utt: np.append(row, [-99.0, 99.0]) for utt, row in scores.items()}
    for function in (point_eer, range_eer, utterance_eer):
        with pytest.raises(ValueError, match="has 146 frames .* rest='cut'"):
            function(long, truth, 0.02)
        assert function(long, truth, 0.02, rest="cut") == function(scores, truth, 0.02)
        last = {utt: np.append(row[:-1], row[-2]) for utt, row in scores.items()}
        assert function(short, truth, 0.02, rest="repeat") == function(last, truth, 0.02)
    mixed = {utt: (long if i % 2 else short)[utt] for i, utt in enumerate(scores)}
    assert 0 < range_eer(mixed, truth, 0.02, rest="fit") < 1


def test_every_recording_is_scored_exactly_once():  # pitfalls 18 and 21
    """A long file, or any other, cannot be left out; count in is count out."""
    truth, scores = vector("L02_on_grid")
    first, *others = scores
    with pytest.raises(ValueError, match=f"1 of 20 recordings have no scores, such as {first}"):
        judge({utt: scores[utt] for utt in others}, truth, 0.02)
    with pytest.raises(ValueError, match="scores of 1 recordings that the truth does not have, such as x"):
        judge(scores | {"x": np.ones(3)}, truth, 0.02)
    j = judge(scores, truth, 0.02)
    assert len(j.scores) == sum(len(row) for row in scores.values()) == j.counts.sum()
    turned = {utt: scores[utt] for utt in reversed(scores)}
    assert np.array_equal(judge(turned, truth, 0.02).scores, j.scores)  # joined by name
    assert judge(j, None, None) is j
    with pytest.raises(ValueError, match="the truth and the hop"):
        judge(scores, truth, None)


def test_numbers_as_names_stay_names():  # pitfall 21
    """Ids such as 0012 and 12 are two recordings."""
    truth = manifest([("0012", "spoof", 0.04), ("12", "bonafide", 0.04)])
    assert utterance_eer({"0012": [0.0, 0.0], "12": [1.0, 1.0]}, truth, 0.02) == 0


def test_scores_that_are_none_are_refused():  # pitfall 20
    """NaN, and two logits a frame: their difference is the score, not one of them."""
    truth, scores = vector("L01_hand")
    bad = scores | {"LA_D_0000001": np.array([0.9, 0.8, np.nan, 0.45, 0.75, 0.85])}
    with pytest.raises(ValueError, match="1 frame scores are NaN, the first in LA_D_0000001"):
        judge(bad, truth, 0.02)
    with pytest.raises(ValueError, match="CON_D_0000000: need one value a frame"):
        judge(scores | {"CON_D_0000000": np.ones((10, 2))}, truth, 0.02)
    both = {utt: np.stack([-row, row], 1) + 7 * np.arange(len(row))[:, None] for utt, row in scores.items()}
    difference = {utt: rows[:, 1] - rows[:, 0] for utt, rows in both.items()}
    assert point_eer(difference, truth, 0.02) == point_eer(scores, truth, 0.02)
    assert point_eer({utt: rows[:, 1] for utt, rows in both.items()}, truth, 0.02) > 0.3


def test_resolutions_and_methods_that_are_none():
    j = judged("L01_hand")
    for resolution in (0.03, 0.015, 0.05):
        with pytest.raises(ValueError, match="neither a multiple nor a whole part"):
            point_eer(j, resolution=resolution)
    with pytest.raises(ValueError, match="label rule 'half'"):
        point_eer(j, rule="half")
    for method in ("asvspoof", "rocch", "linear"):
        with pytest.raises(ValueError, match=f"method {method!r}"):
            range_eer(j, method=method)


def test_infinite_scores_are_scores():
    truth, scores = vector("L01_hand")
    sure = {utt: np.where(row > 0.5, np.inf, row) for utt, row in scores.items()}
    assert 0 <= range_eer(sure, truth, 0.02) <= 1 and 0 <= point_eer(sure, truth, 0.02, 0.04) <= 1


def flat_of(truth, scores):
    labels = manifest_labels(truth, 0.02)
    return np.concatenate([scores[utt] for utt in labels]), np.concatenate(list(labels.values()))


def test_auc_and_rates_are_those_of_scikit_learn():
    truth, scores = made(20, seed=5, ties=True)
    x, y = flat_of(truth, scores)
    assert frame_auc(scores, truth, 0.02) == pytest.approx(roc_auc_score(y, x), abs=1e-12)
    for number, positive in enumerate(("spoof", "bonafide")):
        got = frame_rates(scores, truth, 0.02, 1.0, positive=positive)
        p, r, f, _ = precision_recall_fscore_support(y, (x >= 1.0).astype(int), pos_label=number, average="binary")
        assert [got["precision"], got["recall"], got["f1"]] == pytest.approx([p, r, f], abs=1e-12)
    recalls = [((x >= 1.0) == (y == k))[y == k].mean() for k in (0, 1)]
    recalls[0] = (x < 1.0)[y == 0].mean()
    assert got["balanced_accuracy"] == pytest.approx(np.mean(recalls), abs=1e-12)


def test_rates_with_nothing_called_so():
    j = judged("L01_hand")
    with pytest.warns(UserWarning, match="no frame is called spoof at the threshold -9"):
        got = frame_rates(j, threshold=-9)
    assert got == {"precision": 0, "recall": 0, "f1": 0, "balanced_accuracy": 0.5}
    with pytest.warns(UserWarning, match="no frame is called bonafide"):
        frame_rates(j, threshold=9, positive="bonafide")
    with pytest.raises(ValueError, match="class 'fake'"):
        frame_rates(j, positive="fake")
    with pytest.raises(ValueError, match="NaN is not a threshold"):
        frame_rates(j, threshold=np.nan)
    real = judge({"a": [0.5, 0.6]}, manifest([("a", "bonafide", 0.04)]), 0.02)
    with pytest.raises(ValueError, match="no frame is spoof"):
        frame_rates(real)


@pytest.mark.parametrize("seed", range(5))
def test_thresholds_are_the_best_on_dev(seed):
    truth, scores = made(8, seed, ties=seed > 2)
    x, y = flat_of(truth, scores)
    j = judge(scores, truth, 0.02)
    best = find_threshold(j)
    assert best.rule == "f1" and best.utts == set(scores)
    f1 = frame_rates(j, threshold=best, allow=PEEK)["f1"]
    every = [frame_rates(j, threshold=t)["f1"] for t in np.unique(x)[1:]]
    assert f1 == pytest.approx(max(every), abs=1e-12)
    at = find_threshold(j, at="eer").value
    below, above = np.mean(x[y == 1] < at), np.mean(x[y == 0] >= at)
    assert abs(below - above) < (0.6 if seed > 2 else 0.02)


def test_best_f1_may_call_everything_spoof():
    truth = manifest([("a", "spoof", 0.2)], [("a", 0.0, 0.18)])
    scores = {"a": np.array([9.0, 8, 7, 6, 5, 4, 3, 2, 1, 0])}
    value = find_threshold(scores, truth, 0.02).value
    assert value > 9 and frame_rates(scores, truth, 0.02, value)["recall"] == 1


def test_a_threshold_of_the_same_recordings_must_be_asked_for():
    truth, scores = made(8, 1)
    dev, dev_scores = made(8, 2)
    found = find_threshold(scores, truth, 0.02)
    for function in (frame_rates, boundary_rates, localization_report):
        with pytest.raises(ValueError, match="found on 8 of these recordings.*results would flatter"):
            function(scores, truth, 0.02, found)
        function(scores, truth, 0.02, found, allow=PEEK)
        function(scores, truth, 0.02, find_threshold(dev_scores, dev, 0.02))
    assert frame_rates(scores, truth, 0.02, found.value) == frame_rates(scores, truth, 0.02, found, allow=PEEK)
    some = Threshold(0.0, "eer", frozenset({"u1-0"}))
    with pytest.raises(ValueError, match=r"found on 1 of these recordings \(u1-0"):
        frame_rates(scores, truth, 0.02, some)
    with pytest.raises(ValueError, match="place for a threshold 'best'"):
        find_threshold(scores, truth, 0.02, at="best")


def test_boundaries_of_the_example_on_paper():
    """True 0.08 and 0.14, found 0.08 and 0.12: errors 0 and 0.02 s; two false ones in the real recording."""
    truth, scores = vector("L01_hand")
    got = boundary_rates(scores, truth, 0.02, 0.5)
    assert got == close({"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "error": 0.01})
    strict = boundary_rates(scores, truth, 0.02, 0.5, tolerance=0.01)
    assert strict == close({"precision": 0.25, "recall": 0.5, "f1": 1 / 3, "error": 0.0})
    assert boundary_rates(scores, truth, 0.02, 0.5, tolerance=0.02) == close(got)  # at the tolerance is within it


def best_pairing(true, found, tolerance):
    """All ways to pair: (most pairs, least total distance)."""
    few, many = (true, found) if len(true) <= len(found) else (found, true)
    best = (0, 0)
    for chosen in itertools.permutations([*many, *[None] * len(few)], len(few)):
        near = [abs(a - b) for a, b in zip(few, chosen, strict=True) if b is not None and abs(a - b) <= tolerance]
        best = max(best, (len(near), -sum(near)))
    return best[0], -best[1]


@given(
    st.lists(st.integers(0, 40), max_size=4, unique=True),
    st.lists(st.integers(0, 40), max_size=4, unique=True),
    st.integers(0, 15),
)
def test_boundaries_are_matched_at_best(true, found, tolerance):
    true, found = np.array(sorted(true), dtype=int), np.array(sorted(found), dtype=int)
    pairs, far = match_boundaries(true, found, tolerance)
    assert len(set(pairs[:, 0])) == len(set(pairs[:, 1])) == len(pairs)
    assert far.tolist() == np.abs(true[pairs[:, 0]] - found[pairs[:, 1]]).tolist() and (far <= tolerance).all()
    assert (len(far), far.sum()) == best_pairing(true.tolist(), found.tolist(), tolerance)


def slow_boundaries(scores, truth, threshold, tolerance):
    """Recording by recording, kind by kind, with scipy on the whole matrix."""
    from scipy.optimize import linear_sum_assignment

    sums = np.zeros(4)
    for utt, row in scores.items():
        n = round(truth.utterances.set_index("utt").duration[utt] * SR)
        s = truth.segments[truth.segments.utt == utt]
        exact = segments_to_frames(s[["start", "end"]].to_numpy(), n, 1 / SR)
        if truth.utterances.set_index("utt").label[utt] == "spoof" and len(s) == 0:
            exact[:] = 0
        calls = (row >= threshold).astype(int)
        for kind in (-1, 1):
            true = np.flatnonzero(np.diff(exact) == kind) + 1
            found = (np.flatnonzero(np.diff(calls) == kind) + 1) * 320
            far = np.abs(true[:, None] - found[None])
            i, j = linear_sum_assignment(np.where(far <= tolerance * SR, far, 10**9))
            near = far[i, j][far[i, j] <= tolerance * SR]
            sums += [len(true), len(found), len(near), near.sum()]
    true, found, pairs, total = sums
    return {"precision": pairs / found, "recall": pairs / true, "f1": 2 * pairs / (true + found)} | {
        "error": total / pairs / SR
    }


@pytest.mark.parametrize("tolerance", [0.0101, 0.04, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_boundary_rates_equal_recording_by_recording(seed, tolerance):
    truth, scores = made(16, seed)
    want = slow_boundaries(scores, truth, 0.7, tolerance)
    assert boundary_rates(scores, truth, 0.02, 0.7, tolerance=tolerance) == pytest.approx(want, abs=1e-12)


def test_boundary_rates_at_the_edges():
    whole = manifest([("a", "spoof", 0.2), ("b", "bonafide", 0.2)])
    scores = {"a": np.zeros(10), "b": np.ones(10)}
    with pytest.raises(ValueError, match="no boundaries"):
        boundary_rates(scores, whole, 0.02, 0.5)
    part = manifest([("a", "spoof", 0.2), ("b", "bonafide", 0.2)], [("a", 0.1, 0.2)])
    none = boundary_rates(scores, part, 0.02, 0.5)  # no change between a and b
    assert (none["precision"], none["recall"], none["f1"]) == (0, 0, 0) and np.isnan(none["error"])
    with pytest.raises(ValueError, match="a tolerance is a number of seconds"):
        boundary_rates(scores, part, 0.02, 0.5, tolerance=-1)
    inverse = {"a": np.r_[np.zeros(5), np.ones(5)], "b": np.ones(10)}  # at the right place, of the wrong kind
    assert boundary_rates(inverse, part, 0.02, 0.5)["f1"] == 0


def test_calibration_of_frames_counts_seconds():
    """LLRs are found as they are; a frame counts by its time; two frames are one that is twice as long."""
    rng = np.random.default_rng(0)
    names = [f"r{i}" for i in range(60)]
    fakes = [(utt, 1.0, 1.5) for utt in names]
    truth = manifest([(utt, "spoof", 3.0) for utt in names], fakes)
    d = 2.0
    scores = {
        utt: rng.normal(np.where(y == 1, d**2 / 2, -(d**2) / 2), d)
        for utt, y in manifest_labels(truth, 0.02).items()
    }
    fitted = frame_calibration(scores, truth, 0.02)
    assert fitted.a_ == pytest.approx(1, abs=0.05) and fitted.b_ == pytest.approx(0, abs=0.1)
    halves = {utt: np.repeat(row, 2) for utt, row in scores.items()}
    again = frame_calibration(halves, truth, 0.01)
    assert (again.a_, again.b_) == pytest.approx((fitted.a_, fitted.b_), abs=1e-6)
    llrs = calibrated(fitted, {utt: 3 * row for utt, row in scores.items()})
    assert list(llrs) == names and np.allclose(llrs["r7"], fitted.a_ * 3 * scores["r7"] + fitted.b_)
    assert llr_costs(scores, truth, 0.02)["cllr"] < llr_costs(llrs, truth, 0.02)["cllr"]


def test_a_frame_of_both_classes_teaches_both():
    """Whoever counts it as spoof, by the rule "any", learns another map."""
    truth = manifest([("a", "spoof", 0.12)], [("a", 0.03, 0.08)])
    scores = {"a": np.array([3.0, 2.0, 0.5, 1.0, 2.5, 0.8])}
    fitted = frame_calibration(scores, truth, 0.02)
    x = np.array([3.0, 2.0, 2.0, 0.5, 1.0, 2.5, 0.8])
    y = np.array([1, 1, 0, 0, 0, 1, 1])
    seconds = np.array([2, 1, 1, 2, 2, 2, 2])
    want = module.AffineCalibration().fit(np.repeat(x, seconds), np.repeat(y, seconds))
    assert (fitted.a_, fitted.b_) == pytest.approx((want.a_, want.b_), abs=1e-6)


def test_costs_are_those_of_all_samples():
    truth, scores = made(8, 4, longest=1.0)
    u = truth.utterances
    truth = Manifest(u.assign(duration=(u.duration * SR).round() / SR), truth.segments)
    n = {utt: round(s * SR) for utt, s in zip(truth.utterances.utt, truth.utterances.duration, strict=True)}
    x = np.concatenate([np.repeat(row, 320)[: n[utt]] for utt, row in scores.items()])
    y = np.concatenate([manifest_labels(truth.subset(utt=utt), 1 / SR)[utt] for utt in scores])
    got = llr_costs(scores, truth, 0.02, p_spoof=0.3, c_miss=2, c_fa=3)
    assert got["cllr"] == pytest.approx(cllr(x, y), abs=2e-4)
    assert got["act_dcf"] == pytest.approx(act_dcf(x, y, 0.3, 2, 3), abs=1e-3)
    assert got["min_cllr"] <= got["cllr"] and got["min_dcf"] <= got["act_dcf"]


def test_infinite_llrs_cost_only_on_the_wrong_side():
    truth = manifest([("a", "spoof", 0.04), ("b", "bonafide", 0.04)])
    right = {"a": np.array([-np.inf, -1.0]), "b": np.array([np.inf, 1.0])}
    assert np.isfinite(llr_costs(right, truth, 0.02)["cllr"])
    wrong = {"a": np.array([np.inf, -1.0]), "b": np.array([np.inf, 1.0])}
    assert llr_costs(wrong, truth, 0.02)["cllr"] == np.inf
    table = localization_report(right, truth, 0.02, llr=True, n=0).set_index("metric").value
    assert table["Cllr"] == pytest.approx(llr_costs(right, truth, 0.02)["cllr"], abs=1e-12)


def slow_replicate(frames, draw, function):
    """The corpus written out: each recording as often as it was drawn."""
    order = np.argsort(frames.ranking.order)
    x = frames.ranking.sorted[order]
    owner = np.repeat(np.arange(len(frames.counts)), frames.counts)
    each = np.repeat(np.arange(len(x)), draw[owner].astype(int))
    distinct, group = np.unique(x[each], return_inverse=True)
    bona, spoof = (
        np.bincount(group, weights=w[each], minlength=len(distinct)) for w in (frames.bona, frames.spoof)
    )
    return function(Counts(distinct, bona, spoof))


@pytest.mark.parametrize("method", ["interp", "nearest"])
@pytest.mark.parametrize("ties", [False, True])
def test_replicates_are_exact(method, ties):
    """Blocks are a short cut, not an approximation."""
    truth, scores = made(14, 3, ties=ties)
    j = judge(scores, truth, 0.02)
    draws = draw_utterances(14, 40, seed=1)
    assert draws.shape == (40, 14) and (draws.sum(1) == 14).all()
    for frames in (frames_at(j), frames_at(j, 0.01), frames_at(j, 0.16, "majority"), j.seconds):
        got = eer_replicates(frames, draws, method)
        want = [slow_replicate(frames, draw, lambda c: eer(c, method=method)) for draw in draws]
        assert got == pytest.approx(want, abs=1e-12)
    got = auc_replicates(frames_at(j), draws)
    assert got == pytest.approx([slow_replicate(frames_at(j), d, module.auc) for d in draws], abs=1e-12)


def test_replicates_with_many_blocks_and_few_frames_in_each():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 30, 300)
    n = counts.sum()
    bona = rng.integers(0, 4, n)
    for scores in (rng.normal(size=n), rng.integers(0, 5, n).astype(float), np.zeros(n)):
        frames = Frames(Ranking(scores), bona, 3 - bona, counts, "frame")
        draws = draw_utterances(300, 30)
        want = [slow_replicate(frames, draw, eer) for draw in draws]
        assert eer_replicates(frames, draws) == pytest.approx(want, abs=1e-12)


def test_replicates_that_lose_a_class_are_nan():
    truth = manifest([("a", "spoof", 0.04), ("b", "bonafide", 0.04)])
    j = judge({"a": [0.0, 0.1], "b": [0.05, 1.0]}, truth, 0.02)
    draws = np.array([[2, 0], [1, 1], [0, 2]])
    for got in (eer_replicates(frames_at(j), draws), auc_replicates(frames_at(j), draws)):
        assert np.isnan(got).tolist() == [True, False, True]


def test_the_report_has_the_values_of_the_single_measures():
    truth, scores = made(24, 6)
    dev, dev_scores = made(24, 8)
    threshold = find_threshold(dev_scores, dev, 0.02)
    costs = {"p_spoof": 0.4, "c_miss": 2.0, "c_fa": 1.0}
    options = {"resolutions": [0.01, 0.02, 0.16], "llr": True, "costs": costs, "n": 200}
    table = localization_report(scores, truth, 0.02, threshold, **options)
    assert table.columns.tolist() == ["metric", "resolution", "rule", "value", "low", "high"]
    value = table.set_index(["metric", "resolution"]).value
    assert value[("utterance EER", np.nan)] == close(utterance_eer(scores, truth, 0.02))
    for r in (0.01, 0.02, 0.16):
        assert value[("point EER", r)] == close(point_eer(scores, truth, 0.02, r))
    by_name = table.drop_duplicates("metric").set_index("metric").value
    assert by_name["range EER"] == close(range_eer(scores, truth, 0.02))
    assert by_name["AUC"] == close(frame_auc(scores, truth, 0.02))
    for name, rate in frame_rates(scores, truth, 0.02, threshold).items():
        assert by_name[f"{name.replace('_', ' ')} (spoof)"] == close(rate)
    for name, rate in boundary_rates(scores, truth, 0.02, threshold).items():
        assert by_name[f"boundary {name}"] == close(rate)
    cost = llr_costs(scores, truth, 0.02, **costs)
    assert (by_name["Cllr"], by_name["actDCF"]) == close((cost["cllr"], cost["act_dcf"]))
    assert ((table.low < table.value) & (table.value < table.high)).all()
    again = localization_report(scores, truth, 0.02, threshold, **options)
    pd.testing.assert_frame_equal(table, again)
    other = localization_report(scores, truth, 0.02, threshold, **options | {"seed": 1})
    assert (other.value == table.value).all() and (other.low != table.low).any()


def test_intervals_are_those_of_redrawn_manifests():
    """A drawn corpus, really made: copies of recordings under other names give the replicate's values."""
    truth, scores = made(10, 9)
    draw = draw_utterances(10, 3, seed=5)[2]
    copies = [(utt, k) for utt, times in zip(truth.utterances.utt, draw, strict=True) for k in range(int(times))]
    u = truth.utterances.set_index("utt").loc[[utt for utt, _ in copies]].reset_index()
    u["utt"] = [f"{utt}#{k}" for utt, k in copies]
    s = [truth.segments[truth.segments.utt == utt].assign(utt=f"{utt}#{k}") for utt, k in copies]
    drawn = judge({f"{utt}#{k}": scores[utt] for utt, k in copies}, Manifest(u, pd.concat(s)), 0.02)
    j = judge(scores, truth, 0.02)
    assert eer_replicates(j.seconds, draw[None])[0] == close(range_eer(drawn))
    sums = module._sums(draw[None], module._confusion(j, 0.5))[0]
    assert module._rates(sums) == close(frame_rates(drawn, threshold=0.5))
    sums = module._sums(draw[None], module._boundary_sums(j, 0.5, 0.04))[0]
    assert module._boundary_rates(sums) == close(boundary_rates(drawn, threshold=0.5))
    sums = module._sums(draw[None], module._cost_sums(j, {}))[0]
    got, want = module._costs(sums, {}), llr_costs(drawn)
    assert (got["Cllr"], got["actDCF"]) == close((want["cllr"], want["act_dcf"]))


def test_a_report_without_one_class_has_no_number_for_it():
    j = judged("L01_hand")
    table = localization_report(j, resolutions=[0.02, 0.16], rule="majority", n=50)
    assert table.metric.tolist() == ["utterance EER", "point EER", "point EER", "range EER", "AUC"]
    assert np.isnan(table.value).tolist() == [False, False, True, False, False]
    none = localization_report(j, n=0)
    assert none.low.isna().all() and none.high.isna().all() and none.value.notna().all()
    with pytest.raises(ValueError, match="class 'fake'"):
        localization_report(j, threshold=0.5, positive="fake")


def test_intervals_draw_recordings_not_frames():
    """Ten copies of each frame are no new evidence."""
    truth, scores = made(30, 2)
    table = localization_report(scores, truth, 0.02, n=100)
    u = truth.utterances.assign(duration=truth.utterances.duration * 10)
    s = truth.segments.assign(start=truth.segments.start * 10, end=truth.segments.end * 10)
    longer = localization_report(scores, Manifest(u, s), 0.2, n=100)
    row = table.metric == "range EER"
    assert longer[row][["value", "low", "high"]].to_numpy() == close(
        table[row][["value", "low", "high"]].to_numpy()
    )


def test_millions_of_frames_take_seconds():
    """A tenth of what benchmarks/localization_metrics.py measures."""
    import time

    n = 2000
    names = [f"r{i}" for i in range(n)]
    fakes = [(utt, 1.234, 4.321) for utt in names[::2]]
    truth = manifest([(utt, "spoof" if i % 2 == 0 else "bonafide", 10.0) for i, utt in enumerate(names)], fakes)
    rng = np.random.default_rng(0)
    scores = {utt: 2 * y + rng.normal(size=len(y)) for utt, y in manifest_labels(truth, 0.02).items()}
    began = time.process_time()
    j = judge(scores, truth, 0.02)
    range_eer(j), utterance_eer(j), frame_auc(j), llr_costs(j)
    for k in (1, 2, 4, 8, 16, 32, 64):
        point_eer(j, resolution=k / 100)
    frame_rates(j, threshold=1.0), boundary_rates(j, threshold=1.0)
    assert time.process_time() - began < 4  # 0.6 s here
    assert frame_count(160000, 0.02) == 500


def sorted_and_copied(frames, draws, of):
    """Replicates as they were first counted: all frames copied in the order of their scores, for each corpus."""
    order = frames.ranking.order
    owner = np.repeat(np.arange(len(frames.counts)), frames.counts)[order]
    found = []
    for draw in draws.astype(np.int64):
        parts = (frames.ranking.pooled(draw[owner] * x[order]) for x in (frames.bona, frames.spoof))
        found.append(of(module.Counts(frames.ranking.distinct, *parts)))
    return np.array(found)


@pytest.mark.parametrize("ties", [False, True])
def test_replicates_in_little_memory_have_the_values_of_plain_ones(ties):
    rng = np.random.default_rng(2)
    counts = rng.integers(100, 300, 500)  # more frames than one block has
    n = counts.sum()
    scores = rng.normal(size=n).round(1 if ties else 15)
    spoof = (rng.normal(size=n) > scores).astype(np.int8)
    frames = Frames(Ranking(scores), 1 - spoof, spoof, counts, "frame")
    draws = draw_utterances(500, 20, seed=3)
    assert draws.dtype == np.uint16 and np.array_equal(draws[:5], draw_utterances(500, 5, seed=3))
    assert n > 2**16 and (frames.ranking.starts is not None) == ties
    assert np.array_equal(eer_replicates(frames, draws), sorted_and_copied(frames, draws, eer))
    assert auc_replicates(frames, draws) == pytest.approx(sorted_and_copied(frames, draws, module.auc), abs=1e-13)


def test_the_memory_of_intervals_does_not_grow_with_their_number():
    import tracemalloc

    rng = np.random.default_rng(4)
    n = 300_000
    labels = rng.integers(0, 2, n).astype(np.int8)
    frames = Frames(Ranking(rng.normal(size=n)), labels, 1 - labels, np.full(300, n // 300), "frame")
    for replicates in (eer_replicates, auc_replicates):
        most = []
        for many in (160, 320):
            draws = draw_utterances(300, many)
            tracemalloc.start()
            replicates(frames, draws)
            most.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert max(most) < 20 * n and most[1] < most[0] + 1e5, most
