import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wedefense_nb.book import check
from wedefense_nb.metrics import equal_error, operating_points
from wedefense_nb.task import (
    BONAFIDE,
    LABELS,
    SPOOF,
    bayes_threshold,
    check_trials,
    decide,
    label_ids,
    posterior,
    prior_log_odds,
)

scores = st.lists(st.floats(-50, 50), min_size=4, max_size=40)
priors = st.floats(0.001, 0.999)


def rate(s, y):
    return equal_error(*operating_points(s, y)[1:])


def labels_for(s):
    return np.arange(len(s)) % 2


def test_label_numbers_are_the_house_convention():
    assert (SPOOF, BONAFIDE) == (0, 1) and LABELS[SPOOF] == "spoof" and LABELS[BONAFIDE] == "bonafide"
    assert label_ids(["bonafide", "spoof"]).tolist() == [1, 0]


@pytest.mark.parametrize("bad", [["real"], ["bona-fide"], ["Spoof"], [0], ["bonafide", ""]])
def test_other_spellings_are_refused_by_name(bad):
    with pytest.raises(ValueError, match="unknown labels"):
        label_ids(bad)


def test_asvspoof5_threshold_is_minus_log_beta():
    assert np.isclose(bayes_threshold(0.05, 1, 10), -np.log(1.9), atol=1e-12)


@pytest.mark.parametrize("bad", [(0, 1, 1), (1, 1, 1), (0.5, 0, 1), (0.5, 1, -1), (float("nan"), 1, 1)])
def test_impossible_priors_and_costs(bad):
    with pytest.raises(ValueError):
        bayes_threshold(*bad)


@given(st.floats(-30, 30), priors, st.floats(0.1, 100), st.floats(0.1, 100))
def test_decision_minimises_the_expected_cost(llr, p_spoof, c_miss, c_fa):
    p_bona = float(posterior([llr], p_spoof)[0])
    accept = c_fa * (1 - p_bona)
    reject = c_miss * p_bona
    if abs(accept - reject) > 1e-9 * (accept + reject):
        assert decide([llr], p_spoof, c_miss, c_fa)[0] == (BONAFIDE if accept < reject else SPOOF)


@given(priors)
def test_zero_llr_leaves_the_prior(p_spoof):
    assert np.isclose(posterior([0.0], p_spoof)[0], 1 - p_spoof)


def test_posterior_does_not_overflow():
    assert posterior([1e4, -1e4, np.inf, -np.inf]).tolist() == [1, 0, 1, 0]


def test_nan_is_no_score():
    with pytest.raises(ValueError, match="NaN"):
        decide([0.0, float("nan")])


def test_prior_log_odds_needs_both_classes():
    assert prior_log_odds(10, 10) == 0
    with pytest.raises(ValueError, match="both classes"):
        prior_log_odds(0, 5)


@pytest.mark.parametrize(
    "s, y, what",
    [
        ([], [], "empty"),
        ([1, 2], [1], "2 scores but 1"),
        ([1, np.nan], [0, 1], "NaN"),
        ([1, 2], [1, 1], "only bonafide"),
        ([1, 2], [0, 2], "labels must be"),
        ([1, 2], ["spoof", "bonafide"], "label_ids"),
    ],
)
def test_bad_trials_are_refused_by_name(s, y, what):
    with pytest.raises(ValueError, match=what):
        check_trials(s, y)


def test_infinite_scores_are_allowed():
    t, miss, fa = operating_points([-np.inf, 0, np.inf], [0, 1, 1])
    assert (miss[0], fa[0], miss[-1], fa[-1]) == (0, 1, 1, 0)


def test_equal_scores_give_half():  # pitfall 6: a published scorer says 100 %
    assert rate(np.zeros(10), labels_for(range(10))) == 0.5


def test_tied_scores_move_together():
    t, miss, fa = operating_points([1, 1, 2], [0, 1, 1])
    assert t.tolist() == [1, 2, np.inf] and miss.tolist() == [0, 0.5, 1] and fa.tolist() == [1, 0, 0]


@given(scores)
def test_eer_ignores_monotone_maps_order_and_duplication(s):
    s = np.round(s, 3)
    y = labels_for(s)
    base = rate(np.round(s, 3), labels_for(s))
    order = np.random.default_rng(0).permutation(len(s))
    assert np.isclose(rate(np.exp(s / 10) * 7 - 3, y), base) or len(np.unique(np.exp(s / 10))) < len(np.unique(s))
    assert np.isclose(rate(s[order], y[order]), base)
    assert np.isclose(rate(np.tile(s, 3), np.tile(y, 3)), base)


@given(scores)
def test_negating_scores_and_swapping_labels_keeps_the_eer(s):
    y = labels_for(s)
    assert np.isclose(rate(-np.asarray(s), 1 - y), rate(s, y))


def test_exercise_checker_accepts_right_and_refuses_wrong():
    assert (
        check(0.3333, 1 / 3).startswith("✓")
        and check("a", "a").startswith("✓")
        and check(True, True).startswith("✓")
    )
    assert check(0.34, 1 / 3).startswith("✗") and check("b", "a").startswith("✗") and check("x", 3).startswith("✗")
    assert check(..., 1).startswith("✎")
