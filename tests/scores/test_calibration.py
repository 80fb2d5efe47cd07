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
from wedefense_nb.scores.calibration import (
    AffineCalibration,
    PAVCalibration,
    bayes_error,
    calibrate,
    cross_calibrate,
    eer_threshold,
    effective_p_spoof,
    load_calibration,
    logits_to_llr,
    reliability,
    save_calibration,
)
from wedefense_nb.task import bayes_threshold

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
    assert AffineCalibration().fit(-s, y).a_ < 0


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


def test_effective_prior_of_asvspoof5():
    assert effective_p_spoof(0.05, 1, 10) == pytest.approx(1 - 0.655172, abs=1e-6)


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


def test_reliability_of_true_llrs_is_the_diagonal():
    r = reliability(*gaussian(30000, 30000))
    assert (np.abs(r.predicted - r.observed) < 0.03).all() and r["count"].sum() == 60000


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
    moved = s.copy()
    moved[0] += 50  # its own value may change what it gets, but not by way of the fit
    again = cross_calibrate(AffineCalibration(), moved, y, folds=5, seed=1)
    assert again[0] > cross_calibrate(AffineCalibration(), s, y, folds=5, seed=1)[0]


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


def test_fitting_on_eval_must_be_asked_for_in_words():
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


def test_eer_threshold_is_the_midpoint_at_the_crossing():
    assert eer_threshold([1.0, 2.0, 3.0, 4.0], [0, 0, 1, 1]) == 2.5
    s, y = gaussian(500, 500)
    t = eer_threshold(s, y)
    assert (s[y == 1] < t).mean() == pytest.approx((s[y == 0] >= t).mean(), abs=0.01)
    assert np.isfinite(eer_threshold(np.zeros(4), [0, 1, 0, 1]))
