"""Maps are scored as the definitions say, RCQ equals the oracles, baselines ask no model."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from tests.conftest import GOLDEN_DIR
from wedefense_nb.metrics import mean_interval
from wedefense_nb.understanding.attribution import ATTRIBUTIONS, Attribution, attribute
from wedefense_nb.understanding.explanations import (
    CHANCE,
    FRAME_TYPES,
    SCORES,
    against_truth,
    explanation_report,
    judge_maps,
    plot_report,
    rcq,
    typed_segments,
)

ORACLES = json.loads((GOLDEN_DIR / "rcq.json").read_text())


def _case(name):
    folder = GOLDEN_DIR / "rcq" / name
    segments = {}
    for file in folder.glob("*.vad"):
        lines = [line.split() for line in file.read_text().splitlines()]
        segments[file.stem] = [(float(start), float(end), int(code)) for start, end, code in lines]
    return dict(json.loads((folder / "cam.json").read_text())), segments


@pytest.mark.filterwarnings("ignore:codes")
@pytest.mark.parametrize("name", ORACLES["cases"])
def test_rcq_equals_the_oracles(name):
    found = rcq(*_case(name))
    want = {
        key: np.nan if value is None else value for key, value in ORACLES["cases"][name]["want_percent"].items()
    }
    assert list(found) == list(FRAME_TYPES) and set(want) == set(FRAME_TYPES)
    for key, value in want.items():
        assert found[key] == pytest.approx(value, abs=ORACLES["conventions"]["tolerance"], nan_ok=True), key


def test_rcq_warns_of_codes_it_does_not_know_and_names_them():
    with pytest.warns(UserWarning, match=r"codes \[0\]"):
        rcq(*_case("R7_unknown_label"))


@pytest.mark.parametrize(("code", "name"), [(20, "spoof_speech"), (120, "spoof_nonspeech"), (2, "spoof_speech")])
def test_all_codes_of_an_attack_have_its_type(code, name):
    found = rcq({"a": np.arange(10.0)}, {"a": [(0.0, 0.1, 101), (0.1, 0.2, code)]})
    assert {key for key, value in found.items() if np.isfinite(value)} == {"bonafide_nonspeech", name}


@pytest.mark.parametrize("code", [21, 121, -1])
def test_codes_outside_are_left_out(code):
    with pytest.warns(UserWarning, match="left out"):
        found = rcq({"a": np.arange(1.0, 11.0)}, {"a": [(0.0, 0.1, 101), (0.1, 0.2, code)]})
    assert found["bonafide_nonspeech"] == 0


def test_rcq_of_a_map_of_zeros_is_undefined_and_scale_does_not_matter():
    maps, segments = _case("R3_random")
    assert np.isnan(list(rcq({u: np.zeros(len(x)) for u, x in maps.items()}, segments).values())).all()
    scaled = rcq({u: 7 * np.array(x) for u, x in maps.items()}, segments)
    assert scaled == pytest.approx(rcq(maps, segments))


@pytest.mark.parametrize(
    ("maps", "segments", "says"),
    [
        ({}, {}, "no maps"),
        ({"a": [1.0, 2.0]}, {}, "a: a map without segments"),
        ({"a": [1.0, 2.0]}, {"a": []}, "a: a map without segments"),
        ({"a": [1.0]}, {"a": [(0.0, 0.1, 1)]}, "at least two"),
        ({"a": [1.0, np.nan]}, {"a": [(0.0, 0.1, 1)]}, "finite"),
    ],
)
def test_rcq_refuses(maps, segments, says):
    with pytest.raises(ValueError, match=says):
        rcq(maps, segments)


def _plainly(values, fakes, samples, hop, tolerance):
    """The same scores, sample by sample."""
    is_fake = np.zeros(samples, bool)
    near = np.zeros(samples, bool)
    for start, end in fakes:
        is_fake[round(start * 16000) : round(end * 16000)] = True
    for joint in np.flatnonzero(np.diff(is_fake)) + 1:
        reach = round(tolerance * 16000)
        near[max(0, joint - reach) : joint + reach] = True
    size = round(hop * 16000)
    frames = [slice(i, min(i + size, samples)) for i in range(0, samples, size)]
    fake = np.array([is_fake[f].mean() for f in frames])
    close = np.array([near[f].mean() for f in frames])
    x = np.asarray(values[: len(frames)])
    plus = np.maximum(x, 0)
    if plus.sum() == 0:
        plus = np.ones(len(x))
    return {
        "pointing": np.mean(fake[x == x.max()] > 0.5),
        "auc": roc_auc_score(fake > 0.5, x),
        "mass": (plus * fake).sum() / plus.sum(),
        "joints": (plus * close).sum() / plus.sum(),
        "fake_share": is_fake.mean(),
        "joint_share": near.mean(),
    }


@given(st.integers(0, 10_000))
def test_scores_equal_those_counted_sample_by_sample(seed):
    rng = np.random.default_rng(seed)
    samples = int(rng.integers(4000, 9000))
    cuts = np.sort(rng.choice(samples // 80, 4, replace=False)) * 80 / 16000
    fakes = (
        [(0.0, max(cuts[0], 0.03)), (cuts[2], cuts[3] + 0.01)]
        if rng.random() < 0.3
        else [(cuts[1], cuts[2] + 0.03)]
    )
    fakes = [(start, min(end, samples / 16000)) for start, end in fakes]
    hop = float(rng.choice([0.01, 0.02, 0.025]))
    values = rng.integers(-2, 4, size=int(np.ceil(samples / (hop * 16000))) + 2).astype(float)
    try:
        found = against_truth(values, fakes, samples, hop)
    except ValueError as error:
        assert "one class" in str(error)
        return
    assert found == pytest.approx(_plainly(values, fakes, samples, hop, 0.04))


def test_a_map_of_nothing_scores_as_chance():
    found = against_truth(np.zeros(10), [[0.04, 0.1]], 3200)
    assert found["auc"] == 0.5 and found["pointing"] == pytest.approx(0.3)
    assert found["mass"] == pytest.approx(found["fake_share"]) and found["joints"] == pytest.approx(
        found["joint_share"]
    )
    negative = against_truth(-np.ones(10), [[0.04, 0.1]], 3200)
    assert negative == found


@pytest.mark.parametrize(
    ("values", "fakes", "says"),
    [
        (np.ones(9), [[0.04, 0.1]], "shorter than its recording"),
        (np.full(10, np.inf), [[0.04, 0.1]], "finite"),
        (np.ones((10, 2)), [[0.04, 0.1]], "one finite number a frame"),
        (np.ones(10), [], "only one class"),
        (np.ones(10), [[0.0, 0.2]], "only one class"),
    ],
)
def test_maps_that_cannot_be_judged_are_refused(values, fakes, says):
    with pytest.raises(ValueError, match=says):
        against_truth(values, fakes, 3200)


@pytest.fixture(scope="module")
def partial(samples):
    return samples.subset(split="eval", kind="partial")


def _truth_map(manifest, utt):
    row = manifest.utterances.set_index("utt").loc[utt]
    own = manifest.segments[(manifest.segments.utt == utt) & (manifest.segments.label == "spoof")]
    middles = 0.005 + 0.01 * np.arange(int(np.ceil(row.duration / 0.01 - 1e-6)))
    inside = [((own.start <= t) & (t < own.end)).any() for t in middles]
    edges = np.minimum(0.01 * np.arange(len(middles) + 1), row.duration)
    return Attribution(np.array(inside, float), edges)


def test_the_truth_itself_scores_best_and_beats_chance(partial):
    utts = partial.utterances.utt[:12]
    truth = judge_maps({utt: _truth_map(partial, utt) for utt in utts}, partial)
    assert (truth.pointing == 1).all() and (truth.auc > 0.97).all() and (truth.mass > 0.95).all()
    assert truth.speaker.tolist() == partial.utterances.speaker[:12].tolist()
    even = truth.assign(pointing=truth.fake_share, auc=0.5, mass=truth.fake_share, joints=truth.joint_share)
    report = explanation_report({"truth": truth, "even": even}, groups="utt", n=100)
    beats = report.set_index(["method", "score"]).beats
    assert beats["truth"][["pointing", "auc", "mass"]].all() and not beats["even"].any()
    assert report.score.tolist() == 2 * list(SCORES)
    assert report.chance[0] == pytest.approx(truth.fake_share.mean()) and report.chance[1] == 0.5
    plot_report(report, "mass").figure.clf()
    with pytest.raises(ValueError, match="did you mean 'mass'"):
        plot_report(report, "masses")


def test_intervals_are_those_of_the_library_and_draw_whole_speakers():
    table = pd.DataFrame({"utt": list("abcdef"), "speaker": list("xxyyzz"), "auc": [0.1, 0.2, 0.5, 0.5, 0.9, 0.8]})
    for score in SCORES:
        table[score] = table.auc
    table = table.assign(**dict.fromkeys(set(CHANCE.values()), 0.2))
    report = explanation_report({"m": table}, n=300, seed=3)
    want = mean_interval(table.auc, table.speaker, 300, seed=3)
    assert tuple(report.loc[1, ["value", "low", "high"]]) == pytest.approx((want.value, want.low, want.high))
    single = explanation_report({"m": table}, groups="utt", n=300, seed=3)
    assert single.high[1] - single.low[1] < report.high[1] - report.low[1]


def test_mean_interval_is_that_of_scipy():
    from scipy.stats import bootstrap

    values = np.random.default_rng(0).normal(size=80)
    found = mean_interval(values, n=4000)
    want = bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=0).confidence_interval
    assert found.value == pytest.approx(values.mean()) and found.replicates == 4000 and found.skipped == 0
    assert (found.low, found.high) == pytest.approx(tuple(want), abs=0.02)
    for values, groups in (([], None), ([np.nan], None), ([1.0, 2.0], ["a"])):
        with pytest.raises(ValueError, match=r"finite values|1 groups but 2"):
            mean_interval(values, groups)


def test_judging_names_the_recording_that_cannot_be_judged(partial):
    utt = partial.utterances.utt.iloc[0]
    with pytest.raises(ValueError, match="no maps"):
        judge_maps({}, partial)
    with pytest.raises(ValueError, match="S9999"):
        judge_maps({"S9999": np.ones(50)}, partial)
    with pytest.raises(ValueError, match=f"{utt}: a map of 2 frames"):
        judge_maps({utt: np.ones(2)}, partial)
    first = judge_maps({utt: np.ones(400)}, partial)
    other = judge_maps({partial.utterances.utt.iloc[1]: np.ones(400)}, partial)
    with pytest.raises(ValueError, match="different recordings"):
        explanation_report({"a": first, "b": other})


def test_baselines_ask_no_model():
    rng = np.random.default_rng(0)
    wave = 0.01 * rng.normal(size=8000)
    wave[3200:4800] *= 30
    model = torch.nn.Identity()  # would fail if it were asked
    energy = attribute(model, wave, "energy")
    assert set(np.argsort(energy.values)[-5:]) == set(range(10, 15))
    change = attribute(model, wave, "change")
    assert set(np.argsort(change.values)[-2:]) == {10, 15}
    first = attribute(model, wave, "random")
    assert np.array_equal(first.values, attribute(model, wave, "random").values)
    assert not np.array_equal(first.values, attribute(model, wave, "random", seed=1).values)
    assert not np.array_equal(first.values, attribute(model, wave[::-1].copy(), "random").values)
    assert {"random", "energy", "change"} <= set(ATTRIBUTIONS)
    for found in (energy, change, first):
        assert len(found.values) == 25 and found.edges[-1] == 0.5
    odd = attribute(model, wave[:7999], "energy")
    assert len(odd.values) == 25 and odd.edges[-1] == 7999 / 16000


def test_typed_segments_cover_a_recording_and_feed_rcq():
    rng = np.random.default_rng(0)
    wave = np.r_[1e-4 * rng.normal(size=3200), rng.normal(size=9600), 1e-4 * rng.normal(size=3205)]
    found = typed_segments(wave, [[0.4, 0.9]])
    assert [code for *_, code in found] == [101, 1, 100, 2, 102, 100, 101]
    assert found[0][0] == 0 and found[-1][1] == pytest.approx(len(wave) / 16000)
    assert all(a[1] == b[0] for a, b in zip(found[:-1], found[1:], strict=True))
    joint = found[2]
    assert (joint[0], joint[1]) == pytest.approx((0.38, 0.42))
    values = np.ones(51)
    values[19:21] = 3.0
    assert rcq({"a": values}, {"a": found})["transition"] > 50
    softer = typed_segments(wave, [[0.4, 0.9]], depth_db=100)
    assert {code for *_, code in softer} == {1, 2, 100}
