"""Drift between two heaps of recordings: distances, permutations by speaker, many questions, refusals."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from wedefense_nb.models.detector import build
from wedefense_nb.understanding.drift import (
    DISTANCES,
    EMBEDDING,
    HEARD,
    Drift,
    Pool,
    Sample,
    TooFew,
    chance,
    divisions,
    find_drift,
    holm,
    permuted,
    refused,
    sample_of,
)
from wedefense_nb.understanding.quality import SOUND
from wedefense_nb.understanding.reference import known_sounds, make_reference

SETTINGS = {"n": 1999, "alpha": 0.05}


def heap(
    seed: int, speakers: int, each: int, moved: dict | None = None, known: bool = True, dims: int = 5
) -> Sample:
    """A made-up heap, in which recordings of a speaker are alike."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(speakers), each)

    def drawn(columns: int) -> np.ndarray:
        return rng.normal(size=(speakers, columns))[who] + 0.5 * rng.normal(size=(len(who), columns))

    facts = pd.DataFrame(drawn(len(HEARD)), columns=HEARD)
    points = drawn(dims)
    for name, by in (moved or {}).items():
        if name == EMBEDDING:
            points = points + by
        else:
            facts[name] += by
    names = np.array([f"s{i}" for i in who]) if known else np.full(len(who), "")
    return Sample(facts, points, names)


# Distances

numbers = arrays(float, st.integers(2, 12), elements=st.integers(-4, 4).map(float))


@given(numbers, numbers)
def test_distances_are_those_of_scipy_with_ties_too(old, new):
    pool = Pool(np.concatenate([old, new])[:, None])
    wasserstein, ks, kl = pool.apart(np.arange(len(old) + len(new)) >= len(old))[:, 0]
    assert wasserstein == pytest.approx(stats.wasserstein_distance(old, new))
    assert ks == pytest.approx(stats.ks_2samp(old, new).statistic)
    if old.std() > 0 and new.std() > 0:
        a, b = old.std(), new.std()
        assert kl == pytest.approx(math.log(a / b) + (b**2 + (old.mean() - new.mean()) ** 2) / (2 * a**2) - 0.5)
    assert np.isfinite(kl)


def test_the_surprise_is_that_of_who_expects_the_reference():
    values = np.array([-0.1, 0.1, -10.0, 10.0])[:, None]
    narrow_first = Pool(values).apart(np.array([False, False, True, True]))[DISTANCES.index("kl"), 0]
    wide_first = Pool(values).apart(np.array([True, True, False, False]))[DISTANCES.index("kl"), 0]
    assert narrow_first > 1000 > 10 > wide_first > 0


def test_weights_are_as_if_rows_came_several_times():
    rng = np.random.default_rng(0)
    values, weights, new = rng.normal(size=(9, 2)), rng.integers(1, 4, 9), np.arange(9) % 2 == 0
    repeated = Pool(np.repeat(values, weights, axis=0)).apart(np.repeat(new, weights))
    assert np.allclose(Pool(values, weights).apart(new), repeated)


@pytest.mark.parametrize("values", [np.zeros(3), np.full((3, 1), np.nan)])
def test_what_is_no_table_of_numbers_is_refused(values):
    with pytest.raises(ValueError, match="finite numbers"):
        Pool(values)


# Permutations


def test_few_divisions_come_once_each_and_the_real_one_first():
    side = np.array([True, False, True, False, False])
    count, drawn = divisions(side, 99)
    drawn = [tuple(one) for one in drawn]
    assert count == math.comb(5, 2) == len(set(drawn)) == len(drawn) and drawn[0] == tuple(side)
    assert all(sum(one) == 2 for one in drawn)


def test_many_divisions_are_drawn_and_the_same_for_the_same_seed():
    side = np.arange(30) < 12
    count, drawn = divisions(side, 50, seed=3)
    drawn = list(drawn)
    assert count == len(drawn) == 51 and np.array_equal(drawn[0], side) and {one.sum() for one in drawn} == {12}
    assert all(np.array_equal(a, b) for a, b in zip(drawn, divisions(side, 50, seed=3)[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(drawn, divisions(side, 50, seed=4)[1], strict=True))


def test_p_is_that_of_a_plain_count_and_never_zero():
    rng = np.random.default_rng(0)
    value = np.r_[rng.normal(size=4), rng.normal(3.0, 1.0, size=3)]
    p = chance(permuted(Pool(value[:, None]), np.arange(7), np.arange(7) >= 4))[:, 0]
    own = stats.wasserstein_distance(value[:4], value[4:])
    plain = []
    for some in itertools.combinations(range(7), 3):
        inside = np.isin(np.arange(7), some)
        plain.append(stats.wasserstein_distance(value[~inside], value[inside]) >= own - 1e-9)
    assert p[0] == pytest.approx(np.mean(plain)) and p.min() >= 1 / 35
    far = np.r_[np.zeros(20), np.full(20, 9.0)] + 0.01 * rng.normal(size=40)
    assert chance(permuted(Pool(far[:, None]), np.arange(40), np.arange(40) >= 20, n=99))[0, 0] == 0.01


def test_divisions_that_are_measured_together_are_those_measured_alone():
    rng = np.random.default_rng(0)
    pool = Pool(rng.normal(size=(40, 3)).round(1), rng.uniform(0.5, 2.0, size=40))
    sides = rng.random((130, 40)) < 0.4
    alone = np.stack([pool.apart(side) for side in sides])
    assert np.allclose(pool.apart(sides), alone, atol=1e-12)
    found = permuted(
        pool, np.arange(40), sides[0], n=129, seed=1
    )  # more than are measured at once, and not a multiple
    drawn = divisions(sides[0], 129, seed=1)[1]
    assert np.allclose(found, np.stack([pool.apart(side) for side in drawn]), atol=1e-12)


def test_a_speaker_is_never_torn_apart():
    units = np.repeat(np.arange(6), 3)

    class Watch(Pool):
        seen: list = []

        def apart(self, incoming):
            self.seen.extend(incoming.copy())
            return super().apart(incoming)

    permuted(Watch(np.random.default_rng(0).normal(size=(18, 1))), units, np.arange(6) >= 3)
    assert len(Watch.seen) == 20
    for incoming in Watch.seen:
        assert all(len(set(incoming[units == unit])) == 1 for unit in range(6))


def null_p(together: bool, runs: int = 100) -> np.ndarray:
    """Smallest p, adjusted by nothing, of Wasserstein-1 where nothing has changed."""
    found = []
    units = np.repeat(np.arange(16), 5)
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        value = rng.normal(size=16)[units] + rng.normal(size=80)
        if together:
            drawn = permuted(Pool(value[:, None]), units, np.arange(16) >= 8, 99, seed)
        else:
            drawn = permuted(Pool(value[:, None]), np.arange(80), units >= 8, 99, seed)
        found.append(chance(drawn)[0, 0])
    return np.array(found)


def test_p_is_uniform_where_nothing_changed_if_speakers_stay_together():
    assert stats.kstest(null_p(True), "uniform").pvalue > 0.05
    assert (null_p(False, 50) <= 0.05).mean() > 0.2


# Many questions


def test_holm_is_as_by_hand_and_keeps_shape_and_order():
    p = np.array([[0.2, 0.001], [0.01, 0.9]])
    assert np.allclose(holm(p), [[0.4, 0.004], [0.03, 0.9]])
    assert np.allclose(holm([0.6, 0.7]), [1.0, 1.0]) and np.allclose(holm([0.03, 0.03]), [0.06, 0.06])


# Two heaps


def test_nothing_is_found_where_nothing_changed_and_false_alarms_are_rare():
    alarms = [find_drift(heap(seed, 10, 3), heap(seed + 500, 9, 4), **SETTINGS).found for seed in range(6)]
    assert sum(alarms) <= 1


@pytest.mark.parametrize("what", ["bandwidth", EMBEDDING])
def test_what_moved_is_named_first(what):
    found = find_drift(heap(0, 10, 4), heap(500, 10, 4, {what: 6.0}))
    assert found.found and found.table.index[0] == what and found.table.drifted.sum() == 1
    assert found.table.wasserstein.iloc[0] > 1.2 > found.table["by chance"].iloc[0]
    assert what in found.text() and "DRIFT" in found.text() and found.shown().count("drifted") == 1
    assert found.units == (10, 10) and found.divisions == 10_000


def test_medians_are_those_of_what_was_compared():
    known, came = heap(0, 30, 1), heap(500, 30, 1, {"level": 9.0})
    table = find_drift(known, came, **SETTINGS).table
    assert table.reference["level"] == pytest.approx(known.facts.level.median())
    assert table.incoming["level"] == pytest.approx(came.facts.level.median())
    assert table.loc[EMBEDDING, ["reference", "incoming"]].isna().all() and sorted(table.index) == sorted(
        [*HEARD, EMBEDDING]
    )


def test_units_and_places_of_the_numbers_do_not_matter():
    known, came = heap(0, 10, 3), heap(500, 10, 3, {"level": 3.0})
    first = find_drift(known, came, **SETTINGS).table
    other = [Sample(s.facts * 1000 + 7, s.points * 0.01 - 3, s.speakers) for s in (known, came)]
    second = find_drift(*other, **SETTINGS).table.loc[first.index]
    assert np.allclose(first[["wasserstein", "ks", "kl", "p"]], second[["wasserstein", "ks", "kl", "p"]])


def test_one_talkative_person_is_still_one_person():
    known = heap(0, 12, 3)
    came = heap(500, 12, 3)
    rows = np.r_[np.arange(36), np.repeat(35, 400)]  # somebody sends one message four hundred times
    many = Sample(came.facts.iloc[rows], came.points[rows], came.speakers[rows])
    found = find_drift(known, many, **SETTINGS)
    assert found.recordings == (36, 36) and found.units == (12, 12)
    assert found.table["by chance"].max() < 2 and not found.found


def test_unknown_speakers_stand_for_themselves():
    found = find_drift(heap(0, 12, 2, known=False), heap(500, 12, 2, known=False), **SETTINGS)
    assert found.units == (24, 24) and found.recordings == (24, 24)


def test_the_same_name_on_both_sides_is_no_reason_to_mix_them_up():
    found = find_drift(heap(0, 10, 3), heap(0, 10, 3), **SETTINGS)
    assert found.units == (10, 10) and found.table.wasserstein.max() < 1e-9 and found.table.p.min() == 1


@pytest.mark.parametrize(
    "known, came, said",
    [
        ((10, 3), (2, 20), "2 speakers|of 2"),
        ((10, 3), (9, 1), "9 of 9"),
        ((0, 0), (10, 3), "0 recordings of 0"),
        ((5, 3), (5, 3), "252 ways"),
    ],
)
def test_too_few_are_refused_with_a_word(known, came, said):
    with pytest.raises(TooFew, match=said):
        find_drift(heap(0, *known), heap(500, *came), **SETTINGS)


def test_too_few_divisions_cannot_find_anything_and_are_refused():
    with pytest.raises(TooFew, match="100 are tried"):
        find_drift(heap(0, 10, 3), heap(500, 10, 3), n=99)


def test_impossible_questions_are_refused():
    with pytest.raises(ValueError, match="chance of a false alarm"):
        find_drift(heap(0, 10, 3), heap(500, 10, 3), alpha=1.0)
    with pytest.raises(ValueError, match="two models"):
        find_drift(heap(0, 10, 3), heap(500, 10, 3, dims=6))


def test_a_fact_that_never_varies_does_no_harm():
    known, came = heap(0, 10, 3), heap(500, 10, 3)
    known.facts["snr"] = came.facts["snr"] = 5.0
    table = find_drift(known, came, **SETTINGS).table
    assert table.wasserstein["snr"] == 0 and table.p["snr"] == 1 and np.isfinite(table.kl).all()


def test_every_dimension_can_be_compared_as_it_is():
    table = find_drift(heap(0, 10, 4), heap(500, 10, 4, {EMBEDDING: 6.0}), components=None, **SETTINGS).table
    assert table.drifted[EMBEDDING] and table.wasserstein[EMBEDDING] > 1.2


def test_json_has_everything():
    found = find_drift(heap(0, 10, 4), heap(500, 10, 4, {"bandwidth": 6.0}), **SETTINGS)
    content = json.loads(found.to_json())
    assert content["drift"] is True and content["facts"][0]["fact"] == "bandwidth" and content["units"] == [10, 10]
    assert content["facts"][0]["p"] == pytest.approx(found.table.p.iloc[0]) and isinstance(found, Drift)


# Recordings


def test_a_sample_is_what_was_heard_and_what_the_manifest_knows(few):
    part = few.subset(utt=list(few.utterances.utt[:7]))
    model = build("bands")
    sample = sample_of(model, part, longest=0.5, progress=False)
    assert np.allclose(sample.facts.duration, part.utterances.duration) and (sample.facts.speech <= 0.5).all()
    assert list(sample.speakers) == list(part.utterances.speaker) and sample.points.shape == (7, 32)
    assert set(sample_of(model, part, alone=True, progress=False).speakers) == {""}


def test_what_a_model_refuses_is_what_its_reference_says(few):
    part = few.subset(utt=list(few.utterances.utt[:24]))
    sample = sample_of(build("bands"), part, progress=False)
    labels = np.arange(24) % 2
    reference = make_reference((sample.points, labels, sample.facts), (sample.points, sample.facts))
    assert refused(reference, sample).mean() < 0.2
    quiet = Sample(sample.facts.assign(level=-70.0), sample.points, sample.speakers)
    assert refused(reference, quiet).all()
    strange = Sample(sample.facts.assign(**{name: 99.0 for name in SOUND}), sample.points, sample.speakers)
    assert refused(reference, strange).all()
    textures = (sample.textures, sample.textures)
    learned = (sample.points, labels, sample.facts), (sample.points, sample.facts)
    listening = make_reference(*learned, textures=textures)
    assert refused(listening, sample).mean() < 0.2
    sounds = known_sounds()[:24, len(SOUND) :]
    assert refused(listening, replace(sample, textures=sounds)).mean() > 0.9
