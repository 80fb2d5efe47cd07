"""Which system is better, and where: paired differences, break-downs and bins."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wedefense_nb.metrics import bootstrap, confidence_interval, eer, min_dcf
from wedefense_nb.scores.comparison import bins, breakdown, paired_test, plot_breakdown, training_spread


@pytest.fixture(scope="module")
def systems():
    """Two systems that find the same trials hard, one of them noisier; and the labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(600) % 2
    base = rng.normal(size=600) + 1.5 * labels
    return base + 0.2 * rng.normal(size=600), base + 0.9 * rng.normal(size=600), labels


# Paired


def test_paired_test_sees_what_two_intervals_cannot(systems):
    better, worse, labels = systems
    alone = [confidence_interval("eer", scores, labels, n=300) for scores in (better, worse)]
    assert alone[0].high > alone[1].low  # they overlap
    test = paired_test("eer", better, worse, labels, n=300)
    assert test.high < 0 and test.p_value < 0.05
    assert test.value == pytest.approx(eer(better, labels) - eer(worse, labels))
    swapped = paired_test("eer", worse, better, labels, n=300)
    assert swapped.value == pytest.approx(-test.value) and swapped.low > 0 and swapped.p_value < 0.05


def test_interval_and_p_value_are_those_of_the_same_drawn_trials(systems):
    better, worse, labels = systems
    drawn = bootstrap(["eer"], [better, worse], labels, n=200, seed=4)[..., 0]
    differences = drawn[:, 0] - drawn[:, 1]
    test = paired_test("eer", better, worse, labels, n=200, level=0.8, seed=4)
    assert [test.low, test.high] == pytest.approx(np.quantile(differences, [0.1, 0.9]))
    rarer = min((differences <= 0).sum(), (differences >= 0).sum())
    assert test.p_value == pytest.approx(2 * (1 + rarer) / 201) and test.replicates == 200


def test_a_system_does_not_differ_from_itself(systems):
    better, _, labels = systems
    assert paired_test("eer", better, better, labels, n=50) == (0, 0, 0, 1, 50)


def test_options_and_groups_reach_the_paired_test(systems):
    better, worse, labels = systems
    costs = {"p_spoof": 0.5, "c_fa": 1.0}
    test = paired_test("min_dcf", better, worse, labels, groups=np.arange(600) // 60, n=100, **costs)
    assert test.value == pytest.approx(min_dcf(better, labels, **costs) - min_dcf(worse, labels, **costs))
    single = paired_test("min_dcf", better, worse, labels, n=100, **costs)
    assert single.value == test.value and single.low != test.low
    drawn = bootstrap(["min_dcf"], [better, worse], labels, n=100, options={"min_dcf": costs})[..., 0]
    differences = drawn[:, 0] - drawn[:, 1]
    assert [single.low, single.high] == pytest.approx(np.quantile(differences, [0.025, 0.975]))
    with pytest.raises(ValueError, match="unknown option 'cost'"):
        paired_test("min_dcf", better, worse, labels, cost=1)


# Broken down


@pytest.fixture(scope="module")
def attacked():
    """Forty bona fide trials, an easy and a hard attack."""
    rng = np.random.default_rng(0)
    scores = np.r_[rng.normal(2, 1, 40), rng.normal(-3, 1, 40), rng.normal(2, 1, 40)]
    return scores, np.r_[np.ones(40, int), np.zeros(80, int)], [""] * 40 + ["easy"] * 40 + ["hard"] * 40


def test_attacks_meet_all_bona_fide_trials_worst_first(attacked):  # pitfall 12
    scores, labels, attack = attacked
    table = breakdown("eer", scores, labels, attack, n=50).set_index("condition")
    assert table.index.tolist() == ["hard", "easy", "pooled", "average"]
    bona = np.r_[:40]
    assert table.value["easy"] == eer(scores[:80], labels[:80])
    assert table.value["hard"] == eer(scores[np.r_[bona, 80:120]], labels[np.r_[bona, 80:120]])
    assert table.value["pooled"] == eer(scores, labels)
    assert table.value["average"] == pytest.approx((table.value["easy"] + table.value["hard"]) / 2)
    assert table.loc["hard", ["bonafide", "spoof"]].tolist() == [40, 40]
    assert table.loc["pooled", ["bonafide", "spoof"]].tolist() == [40, 80]
    found = confidence_interval("eer", scores[:80], labels[:80], n=50)
    assert table.loc["easy", ["low", "high"]].tolist() == [found.low, found.high]


def test_a_condition_with_both_classes_is_compared_within_itself(attacked):
    scores, labels, _ = attacked
    codec = np.array(["mp3", "none", "opus"] * 40)
    table = breakdown("min_dcf", scores, labels, codec, n=50, p_spoof=0.5).set_index("condition")
    for name in ("mp3", "none", "opus"):
        here = codec == name
        assert table.value[name] == min_dcf(scores[here], labels[here], p_spoof=0.5)
        assert table.bonafide[name] == labels[here].sum()
    assert table.bonafide[["mp3", "none", "opus"]].sum() == 40


def test_conditions_without_a_class_or_an_interval_are_shown(attacked):
    scores, labels, _ = attacked
    place = np.where(np.arange(120) < 100, "a", "b")
    lonely = breakdown("eer", scores, labels, place, n=20).set_index("condition")
    assert np.isnan(lonely.value["b"]) and lonely.spoof["b"] == 20
    assert lonely.value["average"] == lonely.value["a"]
    few = np.r_[0, 1, 2, 100:120]  # too few bona fide trials for most replicates
    rare = np.where(np.isin(np.arange(120), [0, 119]), "rare", "other")[few]
    table = breakdown("eer", scores[few], labels[few], rare, n=40).set_index("condition")
    assert np.isfinite(table.value["rare"]) and table.bonafide["rare"] == table.spoof["rare"] == 1


def test_conditions_that_do_not_fit_are_refused(attacked):
    scores, labels, _ = attacked
    with pytest.raises(ValueError, match="3 conditions but 120 scores"):
        breakdown("eer", scores, labels, ["a"] * 3)
    with pytest.raises(ValueError, match="unknown metric"):
        breakdown("EER", scores, labels, ["a"] * 120)


def test_the_figure_shows_each_row_in_percent(attacked):
    import matplotlib.pyplot as plt

    scores, labels, attack = attacked
    table = breakdown("eer", scores, labels, attack, n=20)
    ax = plot_breakdown(table)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["hard  40+40", "easy  40+40", "pooled  40+80"] and ax.get_xlabel() == "EER (%)"
    points = ax.lines[0]
    assert np.allclose(points.get_xdata(), 100 * table.value[:3]) and points.get_ydata().tolist() == [2, 1, 0]
    assert plot_breakdown(breakdown("cllr", scores, labels, attack, n=20), "cllr").get_xlabel() == "Cllr"
    plt.close("all")


# Bins


@given(st.lists(st.floats(0.1, 50), min_size=8, max_size=60, unique=True))
def test_bins_hold_their_values_and_are_even(values):
    labels = pd.Series(bins(values))
    sizes = labels.value_counts()
    assert len(sizes) <= 4 and sizes.max() <= -(-len(values) // 4) + 4 * (len(sizes) < 4) * len(values)
    for value, label in zip(values, labels, strict=True):
        low, high = (float(number) for number in label.removesuffix(" s").split(" to "))
        assert low * 0.99 <= value <= high * 1.01


def test_bins_of_many_values_are_quarters():
    seconds = np.random.default_rng(0).uniform(1, 4, 200)
    labels, counts = np.unique(bins(seconds), return_counts=True)
    assert counts.tolist() == [50] * 4 and all(label.endswith(" s") for label in labels)
    assert len(np.unique(bins(seconds, n=10, unit="ms"))) == 10
    assert set(bins(["2.5"] * 10, unit="Hz")) == {"2.5 Hz"}
    classes = (np.arange(200) % 3 == 0).astype(int)
    assert len(breakdown("eer", seconds + classes, classes, bins(seconds), n=20)) == 6


def test_groups_reach_the_breakdown_unless_a_class_has_one(attacked):
    scores, labels, attack = attacked
    who = np.arange(120) // 8
    table = breakdown("eer", scores, labels, attack, n=60, groups=who).set_index("condition")
    want = confidence_interval("eer", scores[:80], labels[:80], who[:80], n=60)
    assert table.loc["easy", ["low", "high"]].tolist() == [want.low, want.high]
    lonely = breakdown("eer", scores, labels, attack, n=60, groups=["a"] * 40 + ["b", "c"] * 40)
    pd.testing.assert_frame_equal(lonely, breakdown("eer", scores, labels, attack, n=60))
    with pytest.raises(ValueError, match="3 groups but 120"):
        breakdown("eer", scores, labels, attack, groups=["a"] * 3)


def test_intervals_of_a_difference_cover_also_for_minima():
    """The biases of two minima nearly cancel, so the paired test may be used where single intervals may not."""
    y = np.repeat([1, 0], [40, 160])
    held = {"min_dcf": [], "min_cllr": []}
    for k in range(25):
        rng = np.random.default_rng(k)
        hard = rng.normal(size=200)
        a, b = (4 * y - 2 + 1.6 * hard + 1.2 * rng.normal(size=200) for _ in range(2))  # equally good
        for metric, found in held.items():
            test = paired_test(metric, a, b, y, n=60, seed=100 + k)
            found.append(test.low <= 0 <= test.high)
    assert min(np.mean(found) for found in held.values()) > 0.75


def test_the_spread_of_trainings_is_students():
    from scipy import stats

    runs = np.random.default_rng(0).normal(0.1, 0.02, 6)
    got = training_spread(runs)
    low, high = stats.t.interval(0.95, 5, runs.mean(), stats.sem(runs))
    assert [got.low, got.high] == pytest.approx([low, high]) and got.runs == 6
    assert got["mean"] == runs.mean() and got["std"] == pytest.approx(np.std(runs, ddof=1))
    assert training_spread(runs, level=0.5).high < got.high
    with pytest.raises(ValueError, match="two runs or more"):
        training_spread([0.1])
