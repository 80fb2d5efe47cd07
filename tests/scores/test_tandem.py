"""Tandem metrics against test vectors from exact arithmetic."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import GOLDEN_DIR
from wedefense_nb.scores.tandem import ODYSSEY, AsvRates, Costs, a_dcf, asv_rates, min_tdcf, min_tdcf_2019, t_eer

ORACLE = json.loads((GOLDEN_DIR / "sasv.json").read_text())
VECTORS = sorted(ORACLE["vectors"])


def vector(name):
    t = pd.read_csv(GOLDEN_DIR / ORACLE["vectors"][name]["file"], dtype={"filename": str})
    return (
        t["cm-score"].to_numpy(),
        t["asv-score"].to_numpy(),
        t["sasv-score"].to_numpy(),
        t["asv-label"].to_numpy(),
    )


@pytest.mark.parametrize("name", VECTORS)
def test_sasv_vectors(name):
    cm, asv, sasv, kinds = vector(name)
    v = ORACLE["vectors"][name]
    want = v["want"]
    own = asv_rates(asv, kinds, v["own_asv"]["threshold"])
    got = {
        "a_dcf": a_dcf(sasv, kinds),
        "a_dcf_odyssey": a_dcf(sasv, kinds, ODYSSEY),
        "min_tdcf_default_asv": min_tdcf(cm, kinds),
        "min_tdcf_own_asv": min_tdcf(cm, kinds, own),
        "min_tdcf_2019_own_asv": min_tdcf_2019(cm, kinds, own),
        "t_eer": t_eer(cm, asv, kinds),
    }
    assert set(want) == set(got)
    assert got == pytest.approx(want, abs=1e-9)
    assert own._asdict() == pytest.approx(v["own_asv"], abs=1e-12)
    # the nearest point is never farther from the diagonal than the package's threshold
    near = asv_rates(asv, kinds)
    assert abs(near.p_miss_target - near.p_fa_nontarget) <= abs(own.p_miss_target - own.p_fa_nontarget) + 1e-12


def test_default_rates_and_costs_are_the_published_ones():
    rates = AsvRates()._asdict()
    rates.pop("threshold")
    assert rates == ORACLE["conventions"]["default_asv_rates"]
    assert ODYSSEY._asdict() == ORACLE["conventions"]["odyssey"]


@given(st.integers(0, 2**32 - 1))
def test_invariances(seed):
    rng = np.random.default_rng(seed)
    kinds = np.repeat(["target", "nontarget", "spoof"], [15, 12, 18])
    cm = rng.integers(-8, 8, 45) / 2.0
    asv = rng.integers(-8, 8, 45) / 2.0
    order = rng.permutation(45)
    rates = AsvRates(0.05, 0.05, 0.6)
    for f in (lambda c, a, k: a_dcf(c, k), lambda c, a, k: min_tdcf(c, k, rates), t_eer):
        value = f(cm, asv, kinds)
        assert f(cm[order], asv[order], kinds[order]) == pytest.approx(value, abs=1e-12, nan_ok=True)
        assert f(np.sinh(cm), 3 * asv + 1, kinds) == pytest.approx(value, abs=1e-12, nan_ok=True)
        assert f(np.tile(cm, 2), np.tile(asv, 2), np.tile(kinds, 2)) == pytest.approx(
            value, abs=1e-12, nan_ok=True
        )
    assert 0 <= a_dcf(cm, kinds) <= 1 and 0 <= min_tdcf(cm, kinds, rates) <= 1


def brute_t_eer(cm, asv, kinds):
    """The definition, literally: every pair of thresholds."""
    sets = {k: (cm[kinds == k], asv[kinds == k]) for k in ("target", "nontarget", "spoof")}
    bona = np.concatenate([sets["target"][0], sets["nontarget"][0]])
    best = (np.inf, np.nan)
    for ta in [*np.unique(asv), np.inf]:
        m = (sets["target"][1] < ta).mean()
        non = (sets["nontarget"][1] >= ta).mean()
        spf = (sets["spoof"][1] >= ta).mean()
        if not m < 0.5 * non + 0.5 * spf or spf == 0:
            continue
        pairs = []
        for tc in [*np.unique(cm), np.inf]:
            cm_miss = (bona < tc).mean()
            cm_fa = (sets["spoof"][0] >= tc).mean()
            tandem_miss = cm_miss + (1 - cm_miss) * m
            tandem_fa = 0.5 * (1 - cm_miss) * non + 0.5 * cm_fa * spf
            pairs.append((abs(tandem_miss - tandem_fa), cm_miss, cm_fa))
        nearest = min(p[0] for p in pairs) + 1e-12
        _, cm_miss, cm_fa = next(p for p in pairs if p[0] <= nearest)
        if cm_miss < 1 and (gap := abs(non / spf - cm_fa / (1 - cm_miss))) < best[0] - 1e-12:
            best = (gap, spf * cm_fa)
    return best[1]


@given(st.integers(0, 2**32 - 1))
def test_t_eer_equals_the_literal_search(seed):
    rng = np.random.default_rng(seed)
    kinds = np.repeat(["target", "nontarget", "spoof"], [20, 20, 20])
    cm = rng.normal(size=60).round(1) + 2 * (kinds != "spoof")
    asv = rng.normal(size=60).round(1) + 3 * (kinds == "target") + 1.5 * (kinds == "spoof")
    assert t_eer(cm, asv, kinds) == pytest.approx(brute_t_eer(cm, asv, kinds), abs=1e-9, nan_ok=True)


KINDS = np.repeat(["target", "nontarget", "spoof"], [4, 2, 2])
CM = np.array([3.0, 2.0, 1.0, -1.0, 2.0, -3.0, -2.0, 0.0])
ASV = np.array([3.0, 2.0, 1.0, 0.0, -1.0, 1.0, 2.0, 0.0])


def test_rates_of_a_verifier_by_hand():
    rates = asv_rates(ASV, KINDS, threshold=1.0)
    assert rates == (0.25, 0.5, 0.5, 1.0)  # accepted on the threshold
    own = asv_rates(ASV, KINDS)
    assert own.threshold == 1.0 and own[:3] == rates[:3]


def test_costs_by_hand():
    """The detector's best threshold is 1: it misses two of six bona fide trials and stops both spoofs."""
    costs = Costs(0.5, 0.2, 0.3, 2.0, 3.0, 4.0)
    asv = AsvRates(0.1, 0.2, 0.6)
    c0 = 0.5 * 2 * 0.1 + 0.2 * 3 * 0.2
    c1 = 0.5 * 2 - c0
    c2 = 0.3 * 4 * 0.6
    assert min_tdcf(CM, KINDS, asv, costs) == pytest.approx((c0 + c1 * 2 / 6) / (c0 + c2))
    old_c1 = 0.5 * (2.5 - 2 * 0.1) - 0.2 * 3 * 0.2
    assert min_tdcf_2019(CM, KINDS, asv, costs, c_miss_cm=2.5) == pytest.approx(old_c1 * 2 / 6 / c2)
    # one score: threshold 1 rejects one of four targets, accepts one of two nontargets and one of two spoofs
    alone = [2 * 0.5 * 0.25 + 3 * 0.2 * 0.5 + 4 * 0.3 * 0.5, 2 * 0.5 * 0.5 + 4 * 0.3 * 0.5, 2 * 0.5 * 0.75]
    assert a_dcf(ASV, KINDS, costs) == pytest.approx(min(alone) / (2 * 0.5))


def test_t_eer_of_a_verifier_without_any_use_is_that_of_the_detector_at_best():
    """It gives everybody the same score, so the detector alone decides."""
    assert t_eer(CM, np.zeros(8), KINDS) == pytest.approx(brute_t_eer(CM, np.zeros(8), KINDS))
    perfect = np.where(KINDS == "spoof", -1.0, 1.0)
    assert t_eer(perfect, np.where(KINDS == "nontarget", -1.0, 1.0), KINDS) == 0


def test_bad_input_is_refused_by_name():  # pitfall 10: both systems hold the same trials
    kinds = ["target", "nontarget", "spoof"]
    for scores, k, words in [
        ([1.0, 2.0], kinds, "2 scores but 3 kinds"),
        ([1.0, np.nan, 0.0], kinds, "NaN"),
        ([1.0, 2.0, 3.0], ["target", "nontarget", "fake"], "unknown"),
        ([1.0, 2.0, 3.0], ["target", "spoof", "spoof"], "without trials"),
    ]:
        with pytest.raises(ValueError, match=words):
            a_dcf(scores, k)
    with pytest.raises(ValueError, match="hard decisions"):
        min_tdcf([1.0, 1.0, 0.0], kinds)
    with pytest.raises(ValueError, match="nothing for a detector"):
        min_tdcf([1.0, 2.0, 0.0], kinds, AsvRates(1.0, 1.0, 0.0))
    with pytest.raises(ValueError, match="2 scores but 3 kinds"):
        t_eer([1.0, 2.0, 0.0], [1.0, 2.0], kinds)
