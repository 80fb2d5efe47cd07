"""Fusion against exact minima, and the accidents that published fusions had."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.pipeline import make_pipeline

from tests.conftest import GOLDEN_DIR
from wedefense_nb.metrics import act_dcf, cllr, eer, min_cllr, min_dcf
from wedefense_nb.scores.calibration import AffineCalibration
from wedefense_nb.scores.fusion import (
    LinearFusion,
    MinMaxAverage,
    join,
    leave_one_out,
    same_trials,
    weight_intervals,
)

ORACLE = json.loads((GOLDEN_DIR / "calibration.json").read_text())
DEV, EVAL = (pd.read_csv(GOLDEN_DIR / f"calibration/{s}.csv", dtype={"filename": str}) for s in ("dev", "eval"))
MEASURES = {"cllr": cllr, "min_cllr": min_cllr, "act_dcf": act_dcf, "min_dcf": min_dcf, "eer_interp": eer}
FUSED = [k for k, v in ORACLE["cases"].items() if len(v.get("systems", [])) > 1 and "w" in v]
assert len(FUSED) >= 2


def check_eval(llr, want):
    got = {k: f(llr, EVAL.label) for k, f in MEASURES.items() if k in want}
    assert got == pytest.approx({k: want[k] for k in got}, abs=1e-6)


@pytest.mark.parametrize("case", FUSED)
def test_linear_fusion_oracle(case):
    v = ORACLE["cases"][case]
    f = LinearFusion(1 - v["p_bonafide"]).fit(DEV[v["systems"]], DEV.label)
    assert np.allclose(f.weights_, v["w"], atol=1e-6) and f.b_ == pytest.approx(v["b"], abs=1e-6)
    check_eval(f.transform(EVAL[v["systems"]]), v["eval"])


def test_min_max_average_oracle():
    v = ORACLE["min_max_average"]
    score = MinMaxAverage().fit(DEV[v["systems"]]).transform(EVAL[v["systems"]])
    check_eval(score, v["eval"])


def test_one_system_is_affine_calibration():
    f = LinearFusion().fit(DEV[["sys1"]], DEV.label)
    a = AffineCalibration().fit(DEV.sys1, DEV.label)
    assert f.weights_.tolist() == pytest.approx([a.a_]) and f.b_ == pytest.approx(a.b_)


def test_systems_are_found_by_name_not_by_place():  # pitfall 9
    names = ["sys1", "sys2", "sys3"]
    shuffled = EVAL.assign(extra=0.0)[["sys3", "extra", "sys1", "sys2"]]
    for model in (LinearFusion(), MinMaxAverage()):
        model.fit(DEV[names], DEV.label)
        assert np.array_equal(model.transform(EVAL[names]), model.transform(shuffled))
        with pytest.raises(ValueError, match="no scores of systems .'sys2'"):
            model.transform(EVAL[["sys1", "sys3"]])


def test_join_is_by_utterance_and_refuses_other_trials():
    a = pd.DataFrame({"utt": ["x", "y", "z"], "score": [1.0, 2.0, 3.0], "label": ["bonafide", "spoof", "spoof"]})
    b = a.sample(frac=1, random_state=1).assign(score=lambda t: -t.score)
    out = join({"b": b, "a": a})
    assert out.columns.tolist() == ["utt", "label", "b", "a"] and (out.a == -out.b).all()
    with pytest.raises(ValueError, match=r"a: 1 missing utterances \(w\).*b: 1 missing utterances \(z\)"):
        join({"a": a, "b": b.replace({"utt": {"z": "w"}})})
    with pytest.raises(ValueError, match=r"b: 1 duplicate utterances \(x\)"):
        same_trials({"a": a, "b": pd.concat([b, b[b.utt == "x"]])})
    with pytest.raises(ValueError, match="b: its labels differ from those of a"):
        join({"a": a, "b": b.assign(label="spoof")})
    assert "label" not in join({"a": a.drop(columns="label"), "b": b})
    other = join({"a": a.assign(llr=7.0), "b": b.assign(llr=8.0)}, column="llr")
    assert (other.a == 7).all() and (other.b == 8).all()


def test_many_missing_trials_are_counted_and_the_first_five_named():
    table = pd.DataFrame({"utt": [f"u{i}" for i in range(9)]})
    with pytest.raises(ValueError) as error:
        same_trials({"a": table, "b": table.iloc[7:]})
    assert str(error.value) == "b: 7 missing utterances (u0, u1, u2, u3, u4, …)"


def test_min_max_average_by_hand():
    average = MinMaxAverage().fit(pd.DataFrame({"a": [0.0, 4.0, 2.0], "b": [10.0, 30.0, 20.0]}))
    assert average.transform(pd.DataFrame({"b": [30.0, 10.0], "a": [2.0, 8.0]})).tolist() == [0.75, 1.0]


def test_non_negative_weights_and_ridge():
    names = ["sys1", "sys2", "sys3"]
    free = LinearFusion().fit(DEV[names], DEV.label)
    assert free.weights_.min() < 0
    modest = LinearFusion(nonnegative=True).fit(DEV[names], DEV.label)
    assert modest.weights_.min() == 0 and modest.weights_["sys1"] > 0
    left = [name for name in names if modest.weights_[name] > 0]
    again = LinearFusion().fit(DEV[left], DEV.label)  # the constrained minimum is the free one of the systems left
    assert np.allclose(modest.weights_[left], again.weights_, atol=1e-4)
    assert modest.b_ == pytest.approx(again.b_, abs=1e-4)
    one = LinearFusion(nonnegative=True).fit(DEV[["sys1"]], DEV.label)
    assert np.allclose(one.weights_, LinearFusion().fit(DEV[["sys1"]], DEV.label).weights_, atol=1e-5)
    ridged = LinearFusion(ridge=0.1).fit(DEV[names], DEV.label)
    assert ridged.weights_.abs().sum() < free.weights_.abs().sum()


def test_ridge_means_the_same_with_and_without_the_constraint():
    for names, prior in ((["sys1", "sys2"], 0.5), (["sys1"], 0.2)):
        one = LinearFusion(prior, ridge=0.05).fit(DEV[names], DEV.label)
        two = LinearFusion(prior, ridge=0.05, nonnegative=True).fit(DEV[names], DEV.label)
        assert one.weights_.min() > 0
        assert np.allclose(one.weights_, two.weights_, rtol=1e-3) and one.b_ == pytest.approx(two.b_, abs=1e-3)


def test_systems_that_separate_the_classes_together_are_told_and_stay_finite():
    """Neither does so alone."""
    x = pd.DataFrame({"a": [0.0, 2.0, 1.0, 3.0], "b": [1.0, 3.0, 0.0, 2.0]})
    y = np.array([0, 0, 1, 1])
    for nonnegative in (False, True):
        assert not LinearFusion(nonnegative=nonnegative).fit(x[["a"]], y).separable_
    with pytest.warns(UserWarning, match="together separate the classes: .* set ridge"):
        fusion = LinearFusion().fit(x, y)
    assert fusion.separable_ and fusion.weights_.abs().max() < 20
    assert np.array_equal(fusion.weights_, LinearFusion(ridge=1e-4).fit(x, y).weights_)
    assert not LinearFusion(ridge=1e-4).fit(x, y).separable_
    with pytest.warns(UserWarning, match="together separate the classes"):
        LinearFusion(nonnegative=True).fit(x.assign(b=-x.b), y)


def test_bad_input_is_refused_by_name():
    x = DEV[["sys1", "sys2"]].copy()
    with pytest.raises(ValueError, match="'sys2'.*NaN or infinite"):
        LinearFusion().fit(x.assign(sys2=np.nan), DEV.label)
    with pytest.raises(ValueError, match="'sys2'.*same score"):
        MinMaxAverage().fit(x.assign(sys2=1.0))
    with pytest.raises(ValueError, match="one name"):
        LinearFusion().fit(pd.concat([x, x], axis=1), DEV.label)
    with pytest.raises(ValueError, match="only"):
        LinearFusion().fit(x[DEV.label == 1], DEV.label[DEV.label == 1])


def test_they_are_scikit_learn_estimators():
    f = clone(LinearFusion(p_spoof=0.3, ridge=0.1, nonnegative=True))
    assert f.get_params() == {"p_spoof": 0.3, "ridge": 0.1, "nonnegative": True}
    x = DEV[["sys1", "sys2"]].to_numpy()
    pipe = make_pipeline(MinMaxAverage(), AffineCalibration()).fit(x, DEV.label)
    assert cllr(pipe.transform(EVAL[["sys1", "sys2"]].to_numpy()), EVAL.label) < 1
    with pytest.raises(Exception, match="not fitted"):
        MinMaxAverage().transform(x)


def test_what_a_system_is_worth():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=len(EVAL))
    dev = DEV.assign(noise=rng.normal(size=len(DEV)))[["sys1", "sys2", "noise"]]
    ev = EVAL.assign(noise=noise)[["sys1", "sys2", "noise"]]
    worth = leave_one_out(LinearFusion(), dev, DEV.label, ev, EVAL.label, n=50)
    assert worth.loc["sys1", "low"] > 0 and worth.loc["sys1", "gain"] > 0.05
    assert abs(worth.loc["noise", "gain"]) < 0.01
    others = LinearFusion().fit(dev[["sys2", "noise"]], DEV.label).transform(ev)
    everything = LinearFusion().fit(dev, DEV.label).transform(ev)
    assert worth.without["sys1"] == pytest.approx(cllr(others, EVAL.label))
    assert worth.gain["sys1"] == pytest.approx(cllr(others, EVAL.label) - cllr(everything, EVAL.label))
    by_eer = leave_one_out(LinearFusion(), dev, DEV.label, ev, EVAL.label, metric="eer", n=20)
    assert by_eer.without["sys1"] == pytest.approx(eer(others, EVAL.label))
    weights = weight_intervals(LinearFusion(), dev, DEV.label, n=50)
    scaled = LinearFusion().fit(dev, DEV.label).weights_ * dev.std()
    assert np.allclose(weights.weight, scaled)
    assert weights.loc["noise", "low"] < 0 < weights.loc["noise", "high"] and weights.loc["sys1", "low"] > 0
    assert (weights.low <= weights.weight).all() and (weights.weight <= weights.high).all()
