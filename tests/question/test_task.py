import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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

priors = st.floats(0.001, 0.999)


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


def test_a_score_on_the_threshold_is_accepted():
    assert decide([bayes_threshold()]).tolist() == [BONAFIDE]
    assert decide([0.0], 0.5, 1, 1).tolist() == [BONAFIDE] and decide([-1e-9], 0.5, 1, 1).tolist() == [SPOOF]


def test_nan_is_no_score():
    with pytest.raises(ValueError, match="NaN"):
        decide([0.0, float("nan")])


def test_prior_log_odds_needs_both_classes():
    assert prior_log_odds(10, 10) == 0 and np.isclose(prior_log_odds(1, 9), -np.log(9))
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
