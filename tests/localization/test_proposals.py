"""AP and AR against the oracle and a version with loops and fractions; runs, gaps and suppression by hand."""

import json
import time
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import GOLDEN_DIR
from wedefense_nb.data.manifest import Manifest
from wedefense_nb.localization.proposals import (
    Overlaps,
    average_precision,
    average_recall,
    drop_short,
    fake_stretches,
    grouped_proposals,
    iou,
    merge_gaps,
    proposal_report,
    runs_to_proposals,
    soft_suppress,
    suppress,
)

CASES = json.loads((GOLDEN_DIR / "localization" / "proposals.json").read_text())["cases"]


def corpus(fakes: dict, duration: float = 100.0, **labels) -> Manifest:
    """A truth from {utt: stretches}; by default spoof where there are some."""
    label = {utt: labels.get(utt, "spoof" if len(some) else "bonafide") for utt, some in fakes.items()}
    u = pd.DataFrame({"utt": label.keys(), "label": label.values()})
    u = u.assign(path="", split="", speaker="", attack="", codec="", duration=duration, sample_rate=16000)
    rows = [(utt, a, b, "spoof", "") for utt, some in fakes.items() for a, b in some]
    return Manifest(u, pd.DataFrame(rows, columns=["utt", "start", "end", "label", "attack"]))


@pytest.mark.parametrize("name", CASES)
def test_oracle(name):
    case = CASES[name]
    truth = corpus(case["truth"])
    for at, want in case["want"]["ap"].items():
        assert average_precision(case["proposals"], truth, float(at)) == pytest.approx(want, abs=1e-9), at
    for at, want in case["compat_ap"].items():
        got = average_precision(case["proposals"], truth, float(at), compat=True)
        assert got == pytest.approx(want, abs=1e-9), at
    for n, want in case["want"]["ar"].items():
        assert average_recall(case["proposals"], truth, int(n)) == pytest.approx(want, abs=1e-9), n


def share(p, t) -> Fraction:
    """IoU of stretches in whole hundredths of a second."""
    common = max(0, min(p[1], t[1]) - max(p[0], t[0]))
    return Fraction(common, p[1] - p[0] + t[1] - t[0] - common)


def plain_ap(proposals, truths, above, compat=False) -> Fraction:
    """The definition, in loops, on whole numbers."""
    everyone = [(utt, p) for utt in truths for p in proposals.get(utt, [])]
    everyone.sort(key=lambda item: -item[1][0])
    free = {utt: list(some) for utt, some in truths.items()}
    points = []
    right = 0
    for k, (utt, (_, *times)) in enumerate(everyone):
        best = max(free[utt], key=lambda t: share(times, t), default=None)
        if best is not None and share(times, best) > above:
            free[utt].remove(best)
            right += 1
        points.append((Fraction(right, k + 1), Fraction(right, sum(map(len, truths.values())))))
    area = Fraction(0)
    for k, (_, recall) in enumerate(points):
        if k == 0 and compat:
            continue
        before = points[k - 1][1] if k else 0
        area += (recall - before) * max(precision for precision, _ in points[k:])
    return area


def plain_ar(proposals, truths, n) -> Fraction:
    found = []
    for utt, some in truths.items():
        first = sorted(proposals.get(utt, []), key=lambda p: -p[0])[:n]
        for t in some:
            best = max((share(p[1:], t) for p in first), default=Fraction(0))
            found.append(Fraction(sum(best > Fraction(k, 100) for k in range(50, 100, 5)), 10))
    return sum(found) / len(found)


def drawn_case(seed: int, recordings: int = 12):
    """Truths and proposals in whole hundredths of a second; confidences in tenths, so that many are tied."""
    rng = np.random.default_rng(seed)
    truths, proposals = {}, {}
    for i in range(recordings):
        cuts = np.sort(rng.choice(np.arange(1, 60), 2 * rng.integers(0, 4), replace=False)).reshape(-1, 2)
        truths[f"u{i}"] = [tuple(map(int, cut)) for cut in cuts]
        some = []
        for _ in range(rng.integers(0, 6)):
            start, end = np.sort(rng.choice(60, 2, replace=False))
            if len(cuts) and rng.random() < 0.6:
                start, end = cuts[rng.integers(len(cuts))] + rng.integers(-1, 2, 2)
            if start < end:
                some.append((int(rng.integers(0, 10)), int(start), int(end)))
        if rng.random() < 0.9:
            proposals[f"u{i}"] = some
    truths["last"] = [(1, 2)]
    return truths, proposals


def in_seconds(truths, proposals):
    truth = corpus({utt: [(a / 100, b / 100) for a, b in some] for utt, some in truths.items()})
    return truth, {utt: [(c / 10, a / 100, b / 100) for c, a, b in some] for utt, some in proposals.items()}


@pytest.mark.parametrize("seed", range(25))
def test_like_the_definition_in_fractions(seed):
    truths, whole = drawn_case(seed)
    truth, proposals = in_seconds(truths, whole)
    for percent in (0, 10, 30, 50, 75, 95):  # below 50, a proposal may have several to choose from
        for compat in (False, True):
            want = plain_ap(whole, truths, Fraction(percent, 100), compat)
            got = average_precision(proposals, truth, percent / 100, compat)
            assert got == pytest.approx(float(want), abs=1e-12), (percent, compat)
    for n in (1, 2, 5):
        assert average_recall(proposals, truth, n) == pytest.approx(float(plain_ar(whole, truths, n)), abs=1e-12)


def test_the_order_of_lists_and_recordings_does_not_matter():  # pitfall 27
    rng = np.random.default_rng(0)
    truths, whole = drawn_case(3, recordings=30)
    truth, proposals = in_seconds(truths, whole)
    distinct = {utt: [(rng.random(), a, b) for _, a, b in some] for utt, some in proposals.items()}
    names = list(distinct)
    for _ in range(5):
        rng.shuffle(names)
        shuffled = {utt: [distinct[utt][i] for i in rng.permutation(len(distinct[utt]))] for utt in names}
        assert average_precision(shuffled, truth, 0.5) == average_precision(distinct, truth, 0.5)
        assert average_recall(shuffled, truth, 2) == average_recall(distinct, truth, 2)


def test_ties_keep_the_order_of_the_truth_then_of_the_list():
    truth = corpus({"a": [(0, 1)], "b": [(0, 1)]})
    late = {"b": [(1, 0, 1), (1, 5, 6)], "a": [(1, 5, 6), (1, 0, 1)]}  # a false, a right, b right, b false
    assert average_precision(late, truth, 0.5) == pytest.approx(2 / 3)
    assert average_precision(late | {"a": late["a"][::-1]}, truth, 0.5) == pytest.approx(5 / 6)


def test_strictly_greater_even_where_binary_numbers_round():
    fakes = {f"{k}": [(k / 10, (k + 2) / 10)] for k in range(1, 200)}  # proposals are a half of them
    halves = {f"{k}": [(1.0, k / 10, (k + 1) / 10)] for k in range(1, 200)}
    assert (iou([p[0][1:] for p in halves.values()], [t[0] for t in fakes.values()]) > 0.5).any()
    assert average_precision(halves, corpus(fakes), 0.5) == average_recall(halves, corpus(fakes), 1) == 0.0
    assert average_precision({"a": [(1.0, 0.0, 0.50001)]}, corpus({"a": [(0.0, 1.0)]}), 0.5) == 1.0


def test_recordings_without_proposals_and_recordings_that_are_all_fake():
    truth = corpus({"a": [(0, 1)], "b": [], "whole": [], "c": [(2, 3)]}, duration=5.0, whole="spoof")
    rows, stretches = fake_stretches(truth)
    assert rows.tolist() == [0, 2, 3] and stretches.tolist() == [[0, 1], [0, 5], [2, 3]]
    assert average_precision({"whole": [(1, 0, 5)]}, truth, 0.5) == pytest.approx(1 / 3)
    assert average_recall({"whole": [(1, 0, 5)]}, truth, 5) == pytest.approx(1 / 3)
    assert average_precision({}, truth, 0.5) == average_precision({"a": []}, truth, 0.5) == 0.0
    assert average_precision({}, truth, 0.5, compat=True) == average_recall({}, truth, 3) == 0.0


def test_bona_fide_segments_are_no_fakes():
    truth = corpus({"a": [(1, 2)]})
    real = pd.DataFrame([("a", 0.0, 1.0, "bonafide", "")], columns=truth.segments.columns)
    truth = Manifest(truth.utterances, pd.concat([real, truth.segments]))
    assert fake_stretches(truth)[1].tolist() == [[1, 2]]


def test_arrays_are_proposals_too():
    truth = corpus({"a": [(0, 1)]})
    assert average_precision({"a": np.array([[0.5, 0, 1]])}, truth, 0.5) == 1.0
    assert average_precision({"a": np.zeros((0, 3))}, truth, 0.5) == 0.0


REFUSED = {
    "another recording": ({"zz": [(1, 0, 1)], "a": []}, r"does not have: 'zz'"),
    "many others": ({f"z{i}": [] for i in range(8)}, r"'z4' and 3 more"),
    "confidence NaN": ({"a": [(np.nan, 0, 1)]}, r"of 'a'.*NaN"),
    "start NaN": ({"a": [(1, np.nan, 1)]}, r"of 'a'.*NaN"),
    "end infinite": ({"a": [(1, 0, np.inf)]}, r"of 'a'"),
    "empty": ({"a": [(1, 2, 2)]}, r"of 'a'.*end after"),
    "backwards": ({"a": [(1, 0, 1), (1, 3, 2)]}, r"of 'a'.*\(1.0, 3.0, 2.0\)"),
    "two numbers": ({"a": [(0, 1)]}, r"of 'a'.*confidence, start, end"),
    "text": ({"a": [("much", 0, 1)]}, r"of 'a'.*three numbers"),
    "ragged": ({"a": [(1, 0, 1), (1, 0)]}, r"of 'a'.*three numbers"),
    "a bare proposal": ({"a": (1.0, 0.0, 1.0)}, r"of 'a'"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_refusals(why):
    proposals, message = REFUSED[why]
    truth = corpus({"b": [(0, 1)], "a": [(0, 1)]})
    for measure in (lambda: average_precision(proposals, truth, 0.5), lambda: average_recall(proposals, truth, 1)):
        with pytest.raises(ValueError, match=message):
            measure()


def test_refused_settings_and_truths():
    truth = corpus({"a": [(0, 1)]})
    for bad in (-0.1, 1.0, 50, np.nan):
        with pytest.raises(ValueError, match=r"in \[0, 1\)"):
            average_precision({}, truth, bad)
    for n in (0, -1, 2.5):
        with pytest.raises(ValueError, match="whole number"):
            average_recall({}, truth, n)
    with pytest.raises(ValueError, match="no fake stretch"):
        average_precision({}, corpus({"a": []}), 0.5)
    with pytest.raises(ValueError, match="no label for 'a'"):
        fake_stretches(corpus({"a": []}, a=""))
    unread = corpus({"a": []}, a="spoof").utterances.assign(duration=np.nan, sample_rate=0)
    with pytest.raises(ValueError, match="no duration for 'a'"):
        fake_stretches(Manifest(unread))


def test_hundred_thousand_truths_in_seconds():
    rng = np.random.default_rng(0)
    n = 50_000
    u = pd.DataFrame({"utt": [f"u{i}" for i in range(n)], "label": "spoof", "duration": 10.0})
    u = u.assign(path="", split="", speaker="", attack="", codec="", sample_rate=16000)
    start = np.concatenate([rng.uniform(0, 3, n), rng.uniform(5, 8, n)])
    s = pd.DataFrame({"utt": [*u.utt, *u.utt], "start": start, "end": start + 1, "label": "spoof", "attack": ""})
    truth = Manifest(u, s)
    near = start.reshape(2, n).T[:, :, None] + rng.normal(0, 0.2, (n, 2, 5))
    table = np.stack([rng.random((n, 10)), near.reshape(n, 10), near.reshape(n, 10) + 1], axis=-1)
    proposals = dict(zip(u.utt, table, strict=True))
    begun = time.perf_counter()
    assert 0.3 < average_precision(proposals, truth, 0.5) < 1
    assert 0.3 < average_recall(proposals, truth, 10) < 1
    assert time.perf_counter() - begun < 20  # about 2 s alone


def test_pairs_are_the_same_however_many_at_once(monkeypatch):
    truths, whole = drawn_case(1, recordings=40)
    truth, proposals = in_seconds(truths, whole)
    want = Overlaps(proposals, truth)
    for at_once in (1, 7):
        monkeypatch.setattr("wedefense_nb.localization.proposals._AT_ONCE", at_once)
        got = Overlaps(proposals, truth)
        assert np.array_equal(got.hits(0.3), want.hits(0.3)) and np.array_equal(got.best(3), want.best(3))


def test_iou():
    a, b = [[0, 1], [1, 3]], [[0, 1], [0, 2], [5, 6]]
    assert iou(a, b) == pytest.approx(np.array([[1, 0.5, 0], [0, 1 / 3, 0]]))
    assert iou(np.zeros((0, 2)), b).shape == (0, 3)
    with pytest.raises(ValueError, match="ends after it starts"):
        iou([[1, 1]], b)


def test_intervals_are_those_of_redrawn_corpora():
    """Weights stand for recordings that were really drawn several times."""
    truths, whole = drawn_case(5, recordings=8)
    truth, proposals = in_seconds(truths, whole)
    distinct = {
        utt: [(c + 0.001 * i + 0.01 * j, a, b) for j, (c, a, b) in enumerate(some)]
        for i, (utt, some) in enumerate(proposals.items())
    }
    table = proposal_report({"one": distinct}, truth, ious=[0.5], ns=[2], n=1, seed=4)
    rng = np.random.default_rng(4)
    rows = rng.integers(len(truth), size=len(truth))
    names = truth.utterances.utt.to_numpy()
    drawn = {f"{k}": truths[names[row]] for k, row in enumerate(sorted(rows))}
    redrawn = corpus({k: [(a / 100, b / 100) for a, b in some] for k, some in drawn.items()})
    again = {f"{k}": distinct.get(names[row], []) for k, row in enumerate(sorted(rows))}
    want = [average_precision(again, redrawn, 0.5), average_recall(again, redrawn, 2)]
    assert table.low.tolist() == pytest.approx(want, abs=1e-12) == table.high.tolist()
    assert table.value.tolist() == [average_precision(distinct, truth, 0.5), average_recall(distinct, truth, 2)]


def test_report():
    truths, whole = drawn_case(5, recordings=30)
    truth, proposals = in_seconds(truths, whole)
    table = proposal_report({"a": proposals, "b": proposals}, truth, n=50)
    assert table.metric.tolist() == ["AP@0.5", "AP@0.75", "AP@0.95", "AR@50", "AR@20", "AR@10", "AR@5"] * 2
    assert (table.low <= table.value).all() and (table.value <= table.high).all()
    assert (table.low < table.high).any()
    first, second = (table[table.system == s].drop(columns="system").reset_index(drop=True) for s in "ab")
    assert first.equals(second)  # the same draws
    one_group = proposal_report({"a": proposals}, truth, groups=["x"] * len(truth), n=5)
    assert (one_group.low == one_group.high).all()
    other = proposal_report({"a": proposals}, truth, n=50, seed=1)
    assert not np.array_equal(other.low, table.low[:7])
    with pytest.raises(ValueError, match="2 groups but"):
        proposal_report({"a": {}}, truth, groups=["x", "y"])
    alone = corpus({"fake": [(0, 1)], **{f"real{i}": [] for i in range(30)}})
    with pytest.raises(ValueError, match="1 of 1 replicates had no fake"):
        proposal_report({"a": {}}, alone, n=1, seed=2)
    assert proposal_report({"a": {}}, alone, n=100).high.max() == 0.0  # those without a fake are left out


def test_runs_by_hand():
    scores = [2.0, -1.0, -3.0, 0.0, -4.0]  # at 0 the threshold is reached: bona fide
    assert runs_to_proposals(scores, 0.02, 0.0, 1500) == [(2.0, 0.02, 0.06), (4.0, 0.08, 1500 / 16000)]
    assert runs_to_proposals(scores, 0.02, 0.0, 1500, "max")[0][0] == 3.0
    assert runs_to_proposals(scores, 0.02, 0.0, 1500, "sum")[0][0] == 4.0
    assert runs_to_proposals(scores, 0.02, -9.0, 1500) == []
    assert runs_to_proposals(scores, 0.02, 9.0, 1500) == [(1.2, 0.0, 1500 / 16000)]
    assert runs_to_proposals([-1.0, -np.inf], 0.02, 0.0, 640)[0] == (np.inf, 0.0, 0.04)


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(1, 320))
def test_runs_cover_just_the_fake_frames(fake, last):
    samples = 320 * (len(fake) - 1) + last
    found = runs_to_proposals(np.where(fake, -1.0, 1.0), 0.02, 0.0, samples)
    covered = np.zeros(samples, bool)
    for _, start, end in found:
        covered[round(start * 16000) : round(end * 16000)] = True
    assert np.array_equal(covered, np.repeat(fake, 320)[:samples])
    assert len(found) == sum(a and not b for a, b in zip(fake, [False, *fake], strict=False))


def test_frames_that_do_not_fit_are_refused():  # pitfall 16
    for samples, what in ((1601, "repeat"), (1280, "cut")):
        with pytest.raises(ValueError, match=f"has 5 frames of 0.02 s.*rest='{what}'"):
            runs_to_proposals(np.zeros(5), 0.02, 0.0, samples)
    with pytest.raises(ValueError, match="not NaN"):
        runs_to_proposals([0.0, np.nan], 0.02, 0.0, 640)
    with pytest.raises(ValueError, match="one-dimensional"):
        runs_to_proposals(np.zeros((2, 2)), 0.02, 0.0, 640)
    with pytest.raises(ValueError, match="confidence of a proposal 'median'"):
        runs_to_proposals([0.0], 0.02, 1.0, 320, "median")


def test_gaps_and_short_ones():
    some = [(0.1, 2.0, 2.1), (0.5, 1.0, 1.2), (0.9, 1.24, 1.5), (0.2, 1.3, 1.4)]
    assert merge_gaps(some, 0.04) == [(0.9, 1.0, 1.5), (0.1, 2.0, 2.1)]  # 1.24 - 1.2 is a hair more than 0.04
    assert merge_gaps(some, 0.03) == [(0.5, 1.0, 1.2), (0.9, 1.24, 1.5), (0.1, 2.0, 2.1)]
    assert merge_gaps([], 0.1) == [] == drop_short([], 1.0)
    assert drop_short([(1, 0.1, 0.4), (2, 0.0, 0.2)], 0.3) == [(1, 0.1, 0.4)]  # 0.4 - 0.1 too
    with pytest.raises(ValueError, match="not negative"):
        merge_gaps(some, -0.1)
    with pytest.raises(ValueError, match="does not end after"):
        merge_gaps([(1, 2, 1)], 0.1)


def test_suppression_by_hand():
    some = [(0.5, 1.0, 2.0), (0.9, 1.0, 1.5), (0.7, 1.4, 1.5), (0.2, 3.0, 4.0), (0.9, 3.0, 4.0)]
    assert suppress(some, 0.5) == [(0.9, 1.0, 1.5), (0.9, 3.0, 4.0), (0.7, 1.4, 1.5), (0.5, 1.0, 2.0)]  # 0.5 stays
    assert suppress(some, 0.49) == [(0.9, 1.0, 1.5), (0.9, 3.0, 4.0), (0.7, 1.4, 1.5)]
    assert suppress([], 0.5) == [] == soft_suppress([])


def test_soft_suppression_by_hand():
    some = [(0.5, 1.0, 2.0), (0.9, 1.0, 1.5), (0.8, 3.0, 4.0), (0.6, 1.0, 1.5)]
    found = soft_suppress(some, sigma=0.4)
    second = 0.6 * np.exp(-1 / 0.4)  # the same stretch as the best
    third = 0.5 * np.exp(-0.25 / 0.4)
    assert [p[1:] for p in found] == [(1.0, 1.5), (3.0, 4.0), (1.0, 2.0), (1.0, 1.5)]
    assert [p[0] for p in found] == pytest.approx([0.9, 0.8, third, second * np.exp(-0.25 / 0.4)])
    assert len(soft_suppress(some, sigma=0.4, least=0.1)) == 3
    assert some[0] == (0.5, 1.0, 2.0)
    with pytest.raises(ValueError, match="task.posterior"):
        soft_suppress([(-1.0, 0, 1)])
    with pytest.raises(ValueError, match="positive sigma"):
        soft_suppress(some, sigma=0.0)
    table = np.array(some)
    soft_suppress(table)
    assert np.array_equal(table, some)  # what was given is left alone


def plain_groups(scores, threshold, least):
    """Stretches of frames by temporal actionness grouping, in loops."""
    below = [s < threshold for s in scores]
    found = set()
    for i in range(len(below)):
        if not below[i] or (i and below[i - 1]):
            continue
        end = i
        while end < len(below) and below[end]:
            end += 1
        for j in range(end, len(below) + 1):
            at_an_end = below[j - 1] and (j == len(below) or not below[j])
            if at_an_end and sum(below[i:j]) >= least * (j - i) - 1e-9:
                end = max(end, j)
            elif at_an_end:
                break
        found.add((i, end))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_grouping_like_loops(seed):
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 1, 40)
    levels, shares = [-0.5, 0.0, 0.5], [1.0, 0.75, 0.5]
    found = grouped_proposals(scores, 0.02, 40 * 320, levels, shares, same=1.0, confidence="mean")
    want = set().union(*(plain_groups(scores, level, least) for level in levels for least in shares))
    assert {(round(a / 0.02), round(b / 0.02)) for _, a, b in found} == want
    for c, a, b in found:
        assert c == pytest.approx(-scores[round(a / 0.02) : round(b / 0.02)].mean())
    assert [c for c, _, _ in found] == sorted((c for c, _, _ in found), reverse=True)
    fewer = grouped_proposals(scores, 0.02, 40 * 320, levels, shares, same=0.6)
    overlaps = iou([p[1:] for p in fewer], [p[1:] for p in fewer])
    assert (overlaps[~np.eye(len(fewer), dtype=bool)] <= 0.6 + 1e-9).all() and len(fewer) < len(found)


def test_grouping_refuses():
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        grouped_proposals([0.0], 0.02, 320, [0.0], shares=[0.0])
    assert grouped_proposals([1.0], 0.02, 320, [0.0]) == []
