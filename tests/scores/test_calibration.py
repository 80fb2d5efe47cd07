"""Calibration against exact minima, at any class balance, and the bugs that published toolkits had."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.conftest import GOLDEN_DIR
from wedefense_nb.metrics import act_dcf, cllr, eer, min_cllr, min_dcf
from wedefense_nb.scores import calibration
from wedefense_nb.scores.calibration import (
    AffineCalibration,
    PAVCalibration,
    bayes_error,
    calibrate,
    cross_calibrate,
    eer_threshold,
    effective_p_spoof,
    fit_weights,
    load_calibration,
    logits_to_llr,
    plot_bayes_error,
    reliability,
    save_calibration,
    trial_weights,
)
from wedefense_nb.task import bayes_threshold, posterior

ORACLE = json.loads((GOLDEN_DIR / "calibration.json").read_text())
LOGITS = json.loads((GOLDEN_DIR / "logits.json").read_text())
DEV, EVAL = (pd.read_csv(GOLDEN_DIR / "calibration" / f"{n}.csv") for n in ("dev", "eval"))
SINGLE = {k: v for k, v in ORACLE["cases"].items() if len(v["systems"]) == 1}


def gaussian(n_bona, n_spoof, d=2.0, seed=0):
    rng = np.random.default_rng(seed)
    s = np.r_[rng.normal(d**2 / 2, d, n_bona), rng.normal(-(d**2) / 2, d, n_spoof)]
    return s, np.r_[np.ones(n_bona, int), np.zeros(n_spoof, int)]


@pytest.mark.parametrize("case", SINGLE)
def test_affine_oracle(case):
    v = SINGLE[case]
    dev = DEV[v["systems"][0]].to_numpy()
    ev = EVAL[v["systems"][0]].to_numpy()
    c = AffineCalibration(v["p_spoof"]).fit(dev, DEV.label)
    assert c.a_ == pytest.approx(v["w"][0], abs=1e-6) and c.b_ == pytest.approx(v["b"], abs=1e-6)
    got = {"cllr": cllr, "min_cllr": min_cllr, "act_dcf": act_dcf, "min_dcf": min_dcf, "eer_interp": eer}
    for name, f in got.items():
        assert f(c.transform(ev), EVAL.label) == pytest.approx(v["eval"][name], abs=1e-6), name


@pytest.mark.parametrize("n", [(20000, 20000), (2000, 40000), (40000, 2000), (3000, 27000)])
@pytest.mark.parametrize("p_spoof", [0.5, 0.3448, 0.05])
def test_llrs_are_left_alone_at_any_class_balance(n, p_spoof):  # pitfall 8
    c = AffineCalibration(p_spoof).fit(*gaussian(*n))
    assert c.a_ == pytest.approx(1, abs=0.06) and c.b_ == pytest.approx(0, abs=0.09)


@given(st.floats(0.05, 20), st.floats(-50, 50))
def test_calibration_undoes_any_rising_line(a, b):
    s, y = gaussian(300, 900)
    base = AffineCalibration().fit(s, y).transform(s)
    moved = AffineCalibration().fit(a * s + b, y).transform(a * s + b)
    assert np.allclose(base, moved, atol=1e-4)


def test_inverted_scores_get_a_negative_slope_not_a_silent_flip():
    s, y = gaussian(300, 900)
    with pytest.warns(UserWarning, match="slope is -.*turns the scores round.*check their sign"):
        turned = AffineCalibration().fit(-s, y)
    assert turned.a_ < 0 and turned.inverted_ and not AffineCalibration().fit(s, y).inverted_


def test_saturated_scores_do_not_overflow():
    s, y = gaussian(500, 500)
    c = AffineCalibration().fit(1e6 * s, y)
    assert np.isfinite([c.a_, c.b_]).all() and cllr(c.transform(1e6 * s), y) < 0.6


def test_separable_scores_stay_finite_and_say_so():
    s = np.r_[np.arange(5.0), np.arange(10.0, 15.0)]
    y = np.arange(10) // 5
    with pytest.warns(UserWarning, match="separable"):
        c = AffineCalibration().fit(s, y)
    assert c.separable_ and np.isfinite([c.a_, c.b_]).all() and eer(c.transform(s), y) == 0
    assert not AffineCalibration().fit(*gaussian(200, 200)).separable_
    with pytest.warns(UserWarning, match="separable"), pytest.warns(UserWarning, match="slope is -"):
        inverted = AffineCalibration().fit(-s, y)  # however they lie
    assert inverted.separable_ and inverted.a_ == pytest.approx(-c.a_)
    touching = AffineCalibration().fit([0.0, 1.0, 1.0, 2.0], [0, 0, 1, 1])  # a tie is no gap
    assert not touching.separable_


def test_bad_input_is_refused_by_name():
    s, y = gaussian(20, 20)
    for bad, what in [
        (np.r_[s[:-1], np.nan], "NaN"),
        (np.r_[s[:-1], np.inf], "infinite"),
        (s[:-1], "39 scores but 40"),
    ]:
        with pytest.raises(ValueError, match=what):
            AffineCalibration().fit(bad, y)
    with pytest.raises(ValueError, match="only bonafide"):
        AffineCalibration().fit(s[:20], y[:20])
    with pytest.raises(ValueError, match="p_spoof"):
        AffineCalibration(p_spoof=1.5).fit(s, y)


def test_it_is_a_scikit_learn_estimator():
    s, y = gaussian(200, 600)
    c = clone(AffineCalibration(p_spoof=0.3))
    assert c.get_params() == {"p_spoof": 0.3}
    pipe = make_pipeline(StandardScaler(), AffineCalibration()).fit(s[:, None], y)
    assert np.allclose(pipe.transform(s[:, None])[:, 0], AffineCalibration().fit(s, y).transform(s), atol=1e-6)
    with pytest.raises(Exception, match="not fitted"):
        c.transform(s)


def test_json_round_trip(tmp_path):
    s, y = gaussian(200, 600)
    c = AffineCalibration(0.3).fit(s, y)
    back = load_calibration(save_calibration(c, tmp_path / "c.json", fitted_on="dev"))
    assert np.array_equal(back.transform(s), c.transform(s)) and back.p_spoof == 0.3
    (tmp_path / "c.json").write_text('{"kind": "spline"}')
    with pytest.raises(ValueError, match="c.json: unknown calibration 'spline'; there are affine, pav"):
        load_calibration(tmp_path / "c.json")


def test_scores_of_several_systems_are_refused_and_columns_are_not():
    s, y = gaussian(50, 50)
    for model in (AffineCalibration(), PAVCalibration()):
        with pytest.raises(ValueError, match=r"one system, got the shape \(100, 2\)"):
            model.fit(np.stack([s, -s], axis=1), y)
        column = model.fit(pd.DataFrame({"a": s}), y).transform(s)
        assert np.array_equal(column, model.fit(s.tolist(), y).transform(s))


def test_effective_prior_has_the_same_threshold_at_equal_costs():
    assert effective_p_spoof(0.05, 1, 10) == pytest.approx(1 - 0.655172, abs=1e-6)
    for prior, miss, fa in [(0.01, 1, 10), (0.5, 1, 1), (0.3, 5, 2)]:
        effective = effective_p_spoof(prior, miss, fa)
        assert bayes_threshold(effective, 1, 1) == pytest.approx(bayes_threshold(prior, miss, fa))


def test_each_class_weighs_what_the_prior_says():
    labels = np.array([1, 0, 0, 0, 1])
    weights = trial_weights(labels, 0.7)
    assert weights[labels == 1].tolist() == [0.35, 0.35] and np.allclose(weights[labels == 0], 0.1)


def test_sample_weights_are_repetitions():
    """A trial that counts three times is three trials; the unit does not matter."""
    s, y = gaussian(30, 50)
    times = np.random.default_rng(1).integers(1, 4, len(s))
    repeated = AffineCalibration(0.3).fit(np.repeat(s, times), np.repeat(y, times))
    weighted = AffineCalibration(0.3).fit(s, y, sample_weight=0.02 * times)
    assert weighted.a_ == pytest.approx(repeated.a_, abs=1e-7)
    assert weighted.b_ == pytest.approx(repeated.b_, abs=1e-7)
    assert weighted.a_ != pytest.approx(AffineCalibration(0.3).fit(s, y).a_, abs=1e-3)
    for bad in (times[:-1], times - 1, np.where(times == 1, np.nan, 1.0)):
        with pytest.raises(ValueError, match="a positive number for each score"):
            AffineCalibration().fit(s, y, sample_weight=bad)


def test_the_fit_is_the_minimum_of_the_objective():
    """The formula of the chapter, term by term, at the solution and around it."""
    s, y = gaussian(80, 240)

    def objective(a, b, p=0.7, ridge=0.0):
        llr = a * s + b + np.log(p / (1 - p))
        loss = p * np.logaddexp(0, -llr[y == 1]).mean() + (1 - p) * np.logaddexp(0, llr[y == 0]).mean()
        return loss + ridge / 2 * (a * np.abs(s).max()) ** 2

    for ridge in (0.0, 0.01):
        (a,), b = fit_weights(s[:, None], y, 0.7, ridge)
        least = objective(a, b, ridge=ridge)
        for step in (1e-3, -1e-3):
            assert objective(a + step, b, ridge=ridge) > least and objective(a, b + step, ridge=ridge) > least


@pytest.mark.parametrize("case", LOGITS["cases"])
def test_logit_oracle(case):
    v = LOGITS["cases"][case]
    for name, equal in (("training_mixture", False), ("equal_attacks", True)):
        assert np.allclose(
            logits_to_llr(v["logits"], v["counts"], v["classes"], equal), v["want"][name], atol=1e-9
        ), name


def test_logits_to_llr_finds_classes_by_name():  # pitfalls 2, 3 and 5
    z = np.array([[0.2, 1.5], [3.0, -1.0]])
    counts = {"spoof": 900, "bonafide": 100}
    llr = logits_to_llr(z, counts)
    assert np.allclose(logits_to_llr(z[:, ::-1], counts, ("bonafide", "spoof")), llr)
    assert np.allclose(logits_to_llr(z + 5, counts), llr)
    assert logits_to_llr([[1.0, 1.0]], {"spoof": 7, "bonafide": 7})[0] == 0
    for bad in (("fake", "real"), ("bonafide", "bonafide"), ("spoof",)):
        with pytest.raises(ValueError):
            logits_to_llr(z, counts, bad)
    with pytest.raises(ValueError, match="counts are for"):
        logits_to_llr(z, {"spoof": 3})


@pytest.mark.parametrize("p_spoof", [0.5, 0.2, 0.9])
@pytest.mark.parametrize("n", [(30000, 30000), (10000, 50000)])
def test_reliability_of_true_llrs_is_the_diagonal_at_any_prior(n, p_spoof):
    """Whatever the classes' numbers are: they are reweighted to the prior."""
    table = reliability(*gaussian(*n), p_spoof=p_spoof)
    assert (np.abs(table.predicted - table.observed) < 0.05).all() and table["count"].sum() == sum(n)


def test_reliability_by_hand():
    """Bins of width one half; bona fide trials weigh 0.8 / 2 each, spoofs 0.2 / 3."""
    llr = np.array([0.0, -3.0, -3.0, -3.0, 0.0])
    labels = np.array([1, 1, 0, 0, 0])
    low, high = posterior([-3.0, 0.0], 0.2)
    table = reliability(llr, labels, p_spoof=0.2, bins=2)
    assert low < 0.5 < high == pytest.approx(0.8)
    assert table.bin.tolist() == [0, 1] and table["count"].tolist() == [3, 2]
    assert table.predicted.tolist() == pytest.approx([low, high])
    weighted = [0.4 / (0.4 + 0.4 / 3), 0.4 / (0.4 + 0.2 / 3)]
    assert table.observed.tolist() == pytest.approx(weighted)
    assert reliability([50.0, -50.0], [1, 0]).bin.tolist() == [0, 9]  # certainty stays in the last bin


@pytest.mark.parametrize("name", ORACLE["pav"])
def test_pav_blocks_oracle(name):
    v = ORACLE["pav"][name]
    fitted = PAVCalibration().fit(DEV[name], DEV.label)
    limit = np.log(len(DEV) + 1)
    want = [(b["score_min"], b["score_max"], np.clip(float(b["llr"]), -limit, limit)) for b in v["blocks"]]
    for low, high, llr in want:
        assert fitted.transform([low, (low + high) / 2, high]) == pytest.approx(llr, abs=1e-9)
    assert np.isfinite(fitted.transform([-np.inf, np.inf, -1e9, 1e9])).all()
    assert (np.diff(fitted.transform(np.sort(EVAL[name]))) >= 0).all()
    assert np.isfinite(cllr(fitted.transform(EVAL[name]), EVAL.label))
    inner = fitted.transform(DEV[name].to_numpy())
    assert cllr(inner, DEV.label) == pytest.approx(v["dev_min_cllr"], abs=2e-3)


def test_pav_handles_ties_infinities_and_refuses_nan():
    fitted = PAVCalibration().fit([0.0, 0.0, 0.0, 1.0, 1.0, 1.0], [0, 0, 1, 0, 1, 1])
    assert np.allclose(fitted.transform([0.0, 0.5, 1.0]), [-np.log(2), 0, np.log(2)])
    extreme = PAVCalibration().fit([-np.inf, -1.0, 1.0, np.inf], [0, 1, 0, 1])
    assert np.isfinite(extreme.transform([-np.inf, 0.0, np.inf])).all()
    with pytest.raises(ValueError, match="NaN"):
        fitted.transform([0.0, np.nan])
    with pytest.raises(ValueError, match="only"):
        PAVCalibration().fit([0.0, 1.0], [1, 1])


def test_pav_is_an_estimator_and_travels_as_json(tmp_path):
    s, y = gaussian(100, 300)
    c = clone(PAVCalibration()).fit(s[:, None], y)
    assert c.transform(s[:, None]).shape == (400, 1)
    back = load_calibration(save_calibration(c, tmp_path / "c.json", data="dev"))
    assert np.array_equal(back.transform(s), c.transform(s))


def test_140000_trials_converge():
    s, y = gaussian(31_334, 109_616)
    c = AffineCalibration().fit(20 * s + 300, y)
    assert (c.a_ * 20, c.a_ * 300 + c.b_) == pytest.approx((1, 0), abs=0.05)


def test_cross_calibration_never_sees_its_own_trial():
    s, y = gaussian(60, 240)
    llr = cross_calibrate(PAVCalibration(), s, y, folds=5, seed=1)
    assert np.isfinite(llr).all() and np.array_equal(llr, cross_calibrate(PAVCalibration(), s, y, folds=5, seed=1))
    assert cllr(PAVCalibration().fit(s, y).transform(s), y) < cllr(llr, y)
    line = cross_calibrate(AffineCalibration(), s, y, folds=5, seed=1)
    moved = s.copy()
    moved[0] += 50
    again = cross_calibrate(AffineCalibration(), moved, y, folds=5, seed=1)
    slope = (again[0] - line[0]) / 50  # of a map that has not seen it, whatever its value
    assert 0.5 < slope < 2
    same = np.isclose(again, line, rtol=0, atol=1e-9)
    assert same.sum() == len(s) // 5 - 1  # the others of its fold; all other maps have seen it


def test_folds_have_the_same_share_of_each_class_and_depend_on_the_seed():
    s, y = gaussian(50, 150)
    fold = calibration._stratified_folds(y, 5, seed=3)
    assert [(y[fold == i] == 1).sum() for i in range(5)] == [10] * 5
    assert not np.array_equal(fold, calibration._stratified_folds(y, 5, seed=4))


def test_leave_one_group_out_keeps_groups_apart():
    class Spy(AffineCalibration):
        seen = []

        def fit(self, X, y):
            Spy.seen.append(set(np.asarray(X).tolist()))
            return super().fit(X, y)

    s, y = gaussian(40, 120)
    attack = np.r_[np.full(40, ""), np.repeat(["a", "b", "c"], 40)]
    llr = cross_calibrate(Spy(), s, y, groups=attack)
    assert np.isfinite(llr).all() and len(Spy.seen) == 3
    for name, seen in zip("abc", Spy.seen, strict=True):
        assert not seen & set(s[attack == name].tolist()) and len(seen) < 160
    with pytest.raises(ValueError, match="3 groups"):
        cross_calibrate(AffineCalibration(), s, y, groups=["a"] * 3)


def test_a_group_is_calibrated_by_the_others():
    s, y = gaussian(60, 120)
    speaker = np.arange(180) % 3
    llr = cross_calibrate(AffineCalibration(), s, y, groups=[f"speaker {i}" for i in speaker])
    for i in range(3):
        here = speaker == i
        assert np.allclose(llr[here], AffineCalibration().fit(s[~here], y[~here]).transform(s[here]))


def test_fitting_on_eval_must_be_asked_for_in_words():  # pitfall 13
    s, y = gaussian(50, 150)
    table = pd.DataFrame(
        {"utt": np.arange(200).astype(str), "score": s, "label": np.where(y, "bonafide", "spoof")}
    )
    with pytest.raises(ValueError, match="200 utterances are in both"):
        calibrate(AffineCalibration(), table, table)
    with pytest.raises(ValueError, match="in both"):
        calibrate(AffineCalibration(), table, table, allow="yes")
    out = calibrate(AffineCalibration(), table, table, allow="fit on the evaluation set")
    assert np.allclose(out.llr, AffineCalibration().fit(s, y).transform(s)) and "llr" not in table
    apart = calibrate(AffineCalibration(), table, table.assign(utt="e" + table.utt))
    assert np.allclose(apart.llr, out.llr)


def test_bayes_error_agrees_with_the_dcf_everywhere():
    s, y = gaussian(200, 800)
    for p_spoof, c_miss, c_fa in [(0.05, 1, 10), (0.5, 1, 1), (0.01, 1, 1), (0.9, 3, 1)]:
        t = bayes_error(s, y, [-bayes_threshold(p_spoof, c_miss, c_fa)])
        assert t.actual[0] == pytest.approx(act_dcf(s, y, p_spoof, c_miss, c_fa))
        assert t.minimum[0] == pytest.approx(min_dcf(s, y, p_spoof, c_miss, c_fa))
    t = bayes_error(s, y)
    assert (t.minimum <= t.actual + 1e-9).all() and (t.minimum <= 1 + 1e-9).all()
    assert t.log_odds.iloc[[0, 60, -1]].tolist() == [-6, 0, 6]


def test_a_score_on_the_bayes_threshold_is_accepted():
    scores = [-1.0, 0.0, 0.0, 2.0]
    labels = [0, 1, 1, 1]
    assert bayes_error(scores, labels, [0.0]).actual.tolist() == [0.0]
    assert bayes_error(scores, [0, 0, 1, 1], [0.0]).actual.tolist() == [0.5]


def test_the_bayes_error_plot_draws_both_costs_and_the_working_point():
    import matplotlib.pyplot as plt

    s, y = gaussian(50, 200)
    ax = plot_bayes_error({"one": s, "two": s + 1}, y)
    solid = [line for line in ax.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 121]
    dotted = [line for line in ax.lines if line.get_linestyle() == ":"]
    assert len(solid) == len(dotted) == 2
    assert np.allclose(solid[1].get_ydata(), bayes_error(s + 1, y).actual)
    assert np.allclose(dotted[1].get_ydata(), bayes_error(s + 1, y).minimum)
    assert np.allclose(ax.lines[-1].get_xdata(), -bayes_threshold())
    plt.close("all")


def test_eer_threshold_is_the_midpoint_at_the_crossing():
    assert eer_threshold([1.0, 2.0, 3.0, 4.0], [0, 0, 1, 1]) == 2.5
    s, y = gaussian(500, 500)
    t = eer_threshold(s, y)
    assert (s[y == 1] < t).mean() == pytest.approx((s[y == 0] >= t).mean(), abs=0.01)
    assert np.isfinite(eer_threshold(np.zeros(4), [0, 1, 0, 1]))
