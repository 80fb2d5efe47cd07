"""Metrics against test vectors from exact arithmetic, cross-checked with independent public implementations."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import norm

from tests.conftest import GOLDEN_DIR
from wedefense_nb import metrics
from wedefense_nb.metrics import (
    at_threshold,
    auc,
    cllr,
    confidence_interval,
    det,
    eer,
    looks_inverted,
    min_cllr,
    min_dcf,
    operating_points,
    plot_det,
    report,
    roc,
    show,
)
from wedefense_nb.task import bayes_threshold

ORACLE = json.loads((GOLDEN_DIR / "detection.json").read_text())
LARGE = json.loads((GOLDEN_DIR / "large.json").read_text())
FUNCTIONS = {
    "eer_interp": lambda s, y: eer(s, y), "eer_nearest": lambda s, y: eer(s, y, "nearest"),
    "eer_rocch": lambda s, y: eer(s, y, "rocch"), "min_dcf": min_dcf, "act_dcf": metrics.act_dcf, "cllr": cllr,
    "min_cllr": min_cllr, "auc": auc,
}  # fmt: skip


def vector(file):
    table = pd.read_csv(GOLDEN_DIR / file, dtype={"filename": str})
    return table.score.to_numpy(float), table.label.to_numpy(int)


def close(got, want):
    want = float(want)
    return got == want if np.isinf(want) else abs(got - want) <= 1e-9 * max(1, abs(want))


@pytest.mark.parametrize("name", ORACLE["vectors"])
def test_detection_vectors(name):
    v = ORACLE["vectors"][name]
    s, y = vector(v["file"])
    if v.get("raises") or "raises" in v.get("want", {}):
        for f in FUNCTIONS.values():
            with pytest.raises(ValueError):
                f(s, y)
        return
    wrong = {
        k: (FUNCTIONS[k](s, y), w)
        for k, w in v["want"].items()
        if k in FUNCTIONS and not close(FUNCTIONS[k](s, y), w)
    }
    assert not wrong and set(FUNCTIONS) <= set(v["want"])
    if "asvspoof5_package" in v and v["asvspoof5_package"].get("eer") is not None:
        assert close(eer(s, y, "asvspoof"), v["asvspoof5_package"]["eer"])


@pytest.mark.parametrize("kind", ["continuous", "rounded_3dp"])
def test_large_vector(kind):
    g = np.random.default_rng(2024)
    b = g.normal(2.0, 2.0, LARGE["n_bonafide"])
    s = g.normal(-2.0, 2.0, LARGE["n_spoof"])
    if kind == "rounded_3dp":
        b = b.round(3)
        s = s.round(3)
    assert np.allclose(b[:3], LARGE[kind]["check"]["first_bonafide"]) and np.isclose(
        s.sum(), LARGE[kind]["check"]["sum_spoof"]
    )
    scores = np.r_[b, s]
    labels = np.r_[np.ones(len(b), int), np.zeros(len(s), int)]
    for name, want in LARGE[kind]["want"].items():
        assert close(FUNCTIONS[name](scores, labels), want), name


def test_by_hand():
    s = [0.9, 0.8, 0.7, 0.3, 0.6, 0.4, 0.2, 0.1, 0.05]
    y = [1, 1, 1, 1, 0, 0, 0, 0, 0]
    assert np.allclose([eer(s, y), eer(s, y, "nearest"), eer(s, y, "rocch")], [0.25, 0.225, 2 / 13])
    with pytest.raises(ValueError, match="method must be"):
        eer(s, y, "bosaris")


def test_constant_scores_are_chance_not_certain_failure():  # pitfall 6
    y = np.arange(100) % 2
    assert (eer(np.ones(100), y), eer(np.ones(100), y, "rocch"), auc(np.ones(100), y)) == (0.5, 0.5, 0.5)
    assert eer(np.ones(100), y, "asvspoof") == 1.0  # the official program
    assert cllr(np.zeros(100), y) == 1.0 and min_dcf(np.zeros(100), y) == 1.0


def test_cllr_neither_overflows_nor_underflows():  # pitfall 7
    assert cllr([1e4, -1e4], [0, 1]) == pytest.approx(1e4 / np.log(2)) and cllr([1e4, -1e4], [1, 0]) == 0
    assert cllr([np.inf, -np.inf], [1, 0]) == 0 and cllr([np.inf, 0.0], [0, 1]) == np.inf


def trials():
    return st.lists(st.tuples(st.integers(-400, 400), st.booleans()), min_size=6, max_size=60).map(
        lambda t: (np.array([a for a, _ in t]) / 16, np.array([b for _, b in t]).astype(int))
    )


@given(trials())
def test_monotone_maps_change_no_measure_of_discrimination(t):
    s, y = t
    assume(0 < y.sum() < len(y))
    for f in (eer, min_dcf, min_cllr, auc):
        assert (
            f(s, y) == pytest.approx(f(3 * s - 7, y), abs=1e-12) == pytest.approx(f(np.sinh(s / 8), y), abs=1e-12)
        )


@given(trials(), st.integers(0, 10))
def test_order_and_duplication_change_nothing(t, seed):
    s, y = t
    assume(0 < y.sum() < len(y))
    order = np.random.default_rng(seed).permutation(len(s))
    for name, f in FUNCTIONS.items():
        assert f(s[order], y[order]) == pytest.approx(f(s, y), abs=1e-12), name
        assert f(np.tile(s, 2), np.tile(y, 2)) == pytest.approx(f(s, y), abs=1e-12), name


@given(trials())
def test_negating_scores_and_swapping_labels(t):
    s, y = t
    assume(0 < y.sum() < len(y))
    for f in (eer, auc, cllr):
        assert f(-s, 1 - y) == pytest.approx(f(s, y), abs=1e-12)
    assert auc(-s, y) == pytest.approx(1 - auc(s, y), abs=1e-12)


@given(trials())
def test_orderings_that_always_hold(t):
    s, y = t
    assume(0 < y.sum() < len(y))
    assert eer(s, y, "rocch") <= eer(s, y) + 1e-12 and eer(s, y, "rocch") <= 0.5
    assert min_dcf(s, y) <= min(1, metrics.act_dcf(s, y)) + 1e-12 and min_cllr(s, y) <= cllr(s, y) + 1e-12


def test_inverted_scores_are_reported_never_flipped():  # pitfall 1
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    s = rng.normal(size=200) + 2 * y
    assert looks_inverted(s, y) == "" and "check the sign" in looks_inverted(-s, y) and eer(-s, y) > 0.5


def test_tied_and_infinite_scores_are_operating_points():
    t, miss, fa = operating_points([1, 1, 2], [0, 1, 1])
    assert t.tolist() == [1, 2, np.inf] and miss.tolist() == [0, 0.5, 1] and fa.tolist() == [1, 0, 0]
    t, miss, fa = operating_points([-np.inf, 0, np.inf], [0, 1, 1])
    assert (miss[0], fa[0], miss[-1], fa[-1]) == (0, 1, 1, 0)


def test_roc_and_det_are_curves_from_corner_to_corner():
    r = roc([1, 2, 3, 4], [0, 1, 0, 1])
    assert r.pmiss.tolist() == [0, 0, 0.5, 0.5, 1] and r.pfa.tolist() == [1, 0.5, 0.5, 0, 0]
    assert np.isfinite(det([1, 2, 3, 4], [0, 1, 0, 1]).x.iloc[1:3]).all()


@pytest.mark.parametrize("name", ORACLE["bootstrap"]["vectors"])
def test_bootstrap_agrees_with_an_independent_one(name):
    s, y = vector(ORACLE["vectors"][name]["file"])
    for metric, want in ORACLE["bootstrap"]["vectors"][name].items():
        got = confidence_interval(metric.replace("_interp", ""), s, y, n=1000, seed=1)
        assert got.value == pytest.approx(want["value"], abs=1e-9)
        low, high = want["iid_95"]
        if np.isnan(got.low):  # a minimum: we give no interval, but its replicates agree
            drawn = metrics.bootstrap([metric], [s], y, n=1000, seed=1)
            got = got._replace(**dict(zip(("low", "high"), np.quantile(drawn, [0.025, 0.975]), strict=True)))
        assert abs(got.low - low) < 0.12 * (high - low) and abs(got.high - high) < 0.12 * (high - low), metric


def test_groups_widen_intervals_where_speakers_differ():
    rng = np.random.default_rng(0)
    speaker = np.repeat(np.arange(20), 20)
    y = (speaker < 10).astype(int)
    s = rng.normal(size=400) + 2 * y + rng.normal(size=20)[speaker]
    single, grouped = (confidence_interval("eer", s, y, groups=g, n=300) for g in (None, speaker))
    assert grouped.high - grouped.low > 1.5 * (single.high - single.low) and grouped.value == single.value


def test_bootstrap_is_seeded_counts_lost_classes_and_refuses_hopeless_sets():
    s = [3.0, 2.0, 1.0, 0.0]
    y = [1, 0, 0, 0]
    a, b = (confidence_interval("auc", s, y, n=200, seed=5) for _ in range(2))
    assert a == b and a.skipped > 0 and a.replicates + a.skipped == 200
    draws = [list(map(list, metrics.draw_weights(20, None, 3, seed))) for seed in (5, 5, 6)]
    assert draws[0] == draws[1] != draws[2]
    with pytest.raises(ValueError, match="lost a class"):
        confidence_interval("auc", s, y, groups=["a", "b", "b", "b"], n=400, seed=0)
    with pytest.raises(ValueError, match="3 groups but 4"):
        confidence_interval("auc", s, y, groups=["a", "b", "b"])


def test_the_interval_holds_the_middle_of_the_replicates():
    rng = np.random.default_rng(0)
    y = np.arange(80) % 2
    s = rng.normal(size=80) + y
    kept = metrics.bootstrap(["eer"], [s], y, n=400, seed=3)[:, 0, 0]
    for level in (0.95, 0.5):
        got = confidence_interval("eer", s, y, n=400, level=level, seed=3)
        outside = (kept < got.low).mean(), (kept > got.high).mean()
        assert max(outside) <= (1 - level) / 2 and got.low == np.quantile(kept, (1 - level) / 2)


def test_report_and_its_reading_form():
    rng = np.random.default_rng(0)
    y = np.arange(100) % 2
    s = rng.normal(size=100) + 2 * y
    table = report({"a": s, "b": 2 * s}, y, n=50)
    assert table.columns.tolist() == ["system", "metric", "value", "low", "high"] and len(table) == 10
    minima = table.metric.isin(["min_dcf", "min_cllr"])
    assert table[minima][["low", "high"]].isna().to_numpy().all() and minima.sum() == 4
    inside = table[~minima]
    assert (inside.low <= inside.value + 1e-9).all() and (inside.value <= inside.high + 1e-9).all()
    text = show(table)
    assert text.columns.tolist() == ["EER", "minDCF", "actDCF", "Cllr", "minCllr"] and "%" in text.loc["a", "EER"]
    assert text.loc["a", "minDCF"] == f"{min_dcf(s, y):.3f}" and "[" in text.loc["a", "actDCF"]
    assert text.loc["a", "EER"] == text.loc["b", "EER"] and text.loc["a", "Cllr"] != text.loc["b", "Cllr"]


def test_det_curves_with_bands_and_marks():
    import matplotlib.pyplot as plt

    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    s = rng.normal(size=60) + 2 * y
    ax = plot_det({"x": s, "y": (s[:30], y[:30])}, y, n=20)
    assert len(ax.lines) == 6 and len(ax.collections) == 2 and "false acceptance (%)" in ax.get_xlabel()
    far = plot_det({"x": s + 100}, y)  # all are accepted: the dot lies outside, and stands on the edge
    marks = [line.get_marker() for line in far.lines if len(line.get_xdata()) == 1]
    assert marks[-1] == "D" and far.lines[-1].get_ydata()[0] == far.get_ylim()[0]
    plt.close("all")


@pytest.mark.parametrize("name", [n for n, v in ORACLE["vectors"].items() if "at_threshold_0" in v])
def test_decisions_at_a_threshold(name):
    v = ORACLE["vectors"][name]
    want = v["at_threshold_0"]
    (s, y) = vector(v["file"])
    if want["tp"] + want["fp"] == 0:
        with pytest.warns(UserWarning, match="nothing is called spoof"):
            got = at_threshold(s, y)
    else:
        got = at_threshold(s, y)
    for key in ("precision", "recall", "f1", "balanced_accuracy"):
        assert close(got[key], want[key]), key


def test_a_trial_on_the_threshold_is_accepted():
    """Two trials exactly on the Bayes threshold: the bona fide one is not missed, the spoof gets through."""
    on = bayes_threshold()
    miss, fa = metrics.cost_weights()
    assert metrics.act_dcf([on, 9.0, on, -9.0], [1, 1, 0, 0]) == pytest.approx(0.0 * miss + 0.5 * fa)
    assert at_threshold([0.0, -1.0], [1, 0])["accuracy"] == 1.0


def test_positive_class_is_named():
    s = [0.9, 0.4, 0.6, 0.1]
    y = [1, 1, 0, 0]
    a, b = (at_threshold(s, y, 0.5, positive=p) for p in ("spoof", "bonafide"))
    assert a["balanced_accuracy"] == b["balanced_accuracy"] == 0.5
    with pytest.raises(ValueError):
        at_threshold(s, y, positive="fake")


def test_redrawn_counts_equal_a_recomputation():
    rng = np.random.default_rng(0)
    s = rng.normal(size=300).round(1)
    y = rng.integers(0, 2, 300)
    table = metrics.Resampler(s, y)
    for weight in metrics.draw_weights(300, None, 3, seed=1):
        again = metrics.count(np.repeat(s, weight), np.repeat(y, weight))
        for name, core in metrics.METRICS.items():
            assert core(table.counts(weight)) == pytest.approx(core(again), abs=1e-12), name


def test_options_reach_their_metric_and_unknown_ones_are_refused():
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    s = rng.normal(size=200) + 2 * y
    both = confidence_interval(["eer", "min_dcf"], s, y, n=20, p_spoof=0.5, method="rocch")
    assert both["eer"].value == eer(s, y, "rocch") and both["min_dcf"].value == min_dcf(s, y, p_spoof=0.5)
    with pytest.raises(ValueError, match="unknown metric 'EER'; there are eer"):
        confidence_interval("EER", s, y, n=5)
    with pytest.raises(ValueError, match="unknown option 'prior'; there are p_spoof"):
        confidence_interval("eer", s, y, n=5, prior=0.5)


# Do the intervals hold what they promise?


def coverage(names, truth, draw, labels, groups=None, experiments=60, replicates=80):
    """How often a percentile interval of redrawn trials holds the true value, by metric."""
    held = []
    for k in range(experiments):
        drawn = metrics.bootstrap(names, [draw(np.random.default_rng(1000 + k))], labels, groups, replicates, k)
        low, high = np.quantile(drawn[:, 0], [0.025, 0.975], axis=0)
        held.append((low <= truth) & (truth <= high))
    return dict(zip(names, np.mean(held, 0), strict=True))


def test_intervals_that_are_given_cover_and_those_that_do_not_are_not_given():
    y = np.repeat([1, 0], [40, 160])
    heap = 2 * norm.ppf((np.arange(5000) + 0.5) / 5000)
    exact = metrics.count(np.r_[heap + 2, heap - 2], np.repeat([1, 0], 5000))
    names = ["eer", "act_dcf", "cllr", "auc", "min_dcf", "min_cllr"]
    truth = np.array([metrics.METRICS[name](exact) for name in names])
    assert truth[0] == pytest.approx(norm.cdf(-1), abs=1e-3)
    found = coverage(names, truth, lambda rng: rng.normal(4 * y - 2, 2), y)
    got = confidence_interval(names, np.random.default_rng(0).normal(4 * y - 2, 2), y, n=20)
    for name, share in found.items():
        if np.isnan(got[name].low):
            assert share < 0.8 and np.isnan(got[name].high) and np.isfinite(got[name].value), name
        else:
            assert share > 0.82, name  # 60 experiments, 80 replicates: three standard deviations below 0.92
    assert confidence_interval("min_cllr", np.arange(200.0), y, n=20).replicates == 20


def test_speakers_cover_where_trials_do_not():
    who = np.repeat(np.arange(60), 8)
    y = (who < 20).astype(int)
    truth = norm.cdf(-1.5 / np.sqrt(2))

    def draw(rng):
        return 3 * y - 1.5 + rng.normal(size=60)[who] + rng.normal(size=len(y))

    singly, grouped = (coverage(["eer"], truth, draw, y, groups)["eer"] for groups in (None, who))
    assert singly < 0.85 and grouped > singly + 0.08 and grouped > 0.8


def test_speakers_are_drawn_where_they_are_known_and_few_of_them_are_told():
    y = np.tile([1, 0], 100)
    table = pd.DataFrame({"speaker": np.repeat(np.arange(25).astype(str), 8)})
    groups, text = metrics.drawn_together(table, y)
    assert len(set(groups)) == 25 and text == "intervals: groups drawn by speaker, 25 bona fide and 25 spoof"
    table.loc[y == 1, "speaker"] = np.repeat(["a", "b"], 50)
    groups, text = metrics.drawn_together(table, y)
    assert "2 bona fide and 25 spoof; too narrow with fewer than 20 of a class" in text
    table.loc[:5, "speaker"] = None  # nobody knows who: alone
    assert len(set(metrics.drawn_together(table, y)[0])) == len(set(table.speaker.dropna())) + 6
    table.loc[y == 1, "speaker"] = "a"
    for odd, said in (
        (table, "too few groups"),
        (table[[]], "no speakers are known"),
        (table * 0, "no speaker is"),
    ):
        groups, text = metrics.drawn_together(odd, y)
        assert groups is None and "singly" in text and said in text and "too narrow" in text
    assert metrics.drawn_together(table, y, "") == (None, "intervals: trials drawn singly")
    with pytest.raises(ValueError, match="no column 'source' to draw by; there are speaker"):
        metrics.drawn_together(table, y, "source")
