import numpy as np
import pytest

from wedefense_nb.metrics import confidence_interval, eer
from wedefense_nb.scores.comparison import bins, breakdown, paired_test, plot_breakdown


def test_paired_test_sees_what_two_intervals_cannot():
    rng = np.random.default_rng(0)
    y = np.arange(600) % 2
    base = rng.normal(size=600) + 1.5 * y
    better = base + 0.2 * rng.normal(size=600)
    worse = base + 0.9 * rng.normal(size=600)
    alone = [confidence_interval("eer", s, y, n=300) for s in (better, worse)]
    assert alone[0].high > alone[1].low  # they overlap
    test = paired_test("eer", better, worse, y, n=300)
    assert test.high < 0 and test.p_value < 0.05 and test.value == pytest.approx(alone[0].value - alone[1].value)
    assert paired_test("eer", base, base, y, n=50)[:4] == (0, 0, 0, 1)
    assert paired_test("min_dcf", better, worse, y, groups=np.arange(600) // 10, n=100).replicates == 100


def test_breakdown_by_attack_and_by_a_condition_with_both_classes():
    y = np.r_[np.ones(40, int), np.zeros(80, int)]
    rng = np.random.default_rng(0)
    s = np.r_[rng.normal(2, 1, 40), rng.normal(-3, 1, 40), rng.normal(2, 1, 40)]
    attack = [""] * 40 + ["easy"] * 40 + ["hard"] * 40
    table = breakdown("eer", s, y, attack, n=50).set_index("condition")
    assert table.index.tolist() == ["hard", "easy", "pooled", "average"]
    assert table.loc["easy", "value"] < 0.05 < 0.35 < table.loc["hard", "value"]
    assert table.loc["hard", ["bonafide", "spoof"]].tolist() == [40, 40]
    assert table.loc["average", "value"] == pytest.approx((table.value["easy"] + table.value["hard"]) / 2)
    assert table.loc["pooled", "value"] == eer(s, y)
    codec = ["mp3", "none", "opus"] * 40
    table = breakdown("eer", s, y, codec, n=50).set_index("condition")
    assert (
        table.bonafide.drop(["pooled", "average"]).sum() == 40
        and (table.low <= table.value + 1e-9).drop("average").all()
    )
    lonely = breakdown("eer", s, y, np.where(np.arange(120) < 100, "a", "b"), n=20).set_index("condition")
    assert np.isnan(lonely.loc["b", "value"]) and lonely.loc["b", "spoof"] == 20  # shown, not dropped
    with pytest.raises(ValueError, match="3 conditions"):
        breakdown("eer", s, y, ["a"] * 3)
    ax = plot_breakdown(table.reset_index())
    assert len(ax.get_yticklabels()) == 4 and "EER" in ax.get_xlabel()


def test_numbers_are_binned_evenly_for_a_breakdown():
    seconds = np.random.default_rng(0).uniform(1, 4, 200)
    labels, counts = np.unique(bins(seconds), return_counts=True)
    assert len(labels) == 4 and counts.min() >= 45 and all(x.endswith(" s") for x in labels)
    assert len(set(bins(np.ones(10)))) == 1
    y = (np.arange(200) % 3 == 0).astype(int)
    assert len(breakdown("eer", seconds + y, y, bins(seconds), n=20)) == 6
