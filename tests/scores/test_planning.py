"""A test of methods holds its level, and a computed power is that of experiments."""

import numpy as np
import pytest
from scipy.stats import norm, ttest_1samp

from wedefense_nb.metrics import METRICS, bootstrap
from wedefense_nb.scores.planning import Noise, method_test, needed_seeds, noise_of, plot_power, power


def world(rng, trials=400, speakers=20, seeds=4, gaps=(2.0, 2.0), training=0.3, liking=0.0):
    """Scores of two methods, labels, and who speaks."""
    who = np.arange(trials) % speakers
    labels = (np.arange(trials) // speakers) % 2
    hardness = rng.normal(size=trials)
    methods = []
    for gap in gaps:
        slope = gap + training * rng.normal(size=(seeds, 1)) + liking * rng.normal(size=speakers)[who]
        methods.append(slope * (labels - 0.5) + hardness + 0.3 * rng.normal(size=(seeds, trials)))
    return *methods, labels, who


def test_the_parts_are_those_of_the_formula():
    first, second, labels, who = world(np.random.default_rng(0))
    found = method_test("auc", first, second, labels, who, n=60, seed=3)
    values = np.array([[METRICS["auc"](row, labels) for row in method] for method in (first, second)])
    gains = values[0] - values[1]
    drawn = bootstrap(["auc"], [*first, *second], labels, who, 60, 3)[..., 0]
    error = np.sqrt((drawn[:, :4].mean(1) - drawn[:, 4:].mean(1)).var(ddof=1) + gains.var(ddof=1) / 4)
    assert found.value == pytest.approx(gains.mean()) and found.replicates == 60
    half = (found.high - found.low) / 2
    assert norm.ppf(0.975) * error < half < 3.183 * error  # between infinitely many degrees of freedom and three
    swapped = method_test("auc", second, first, labels, who, n=60, seed=3)
    assert swapped.value == pytest.approx(-found.value) and swapped.p_value == pytest.approx(found.p_value)


def test_with_endless_trials_it_is_students_test_of_the_seeds():
    first, second, labels, _ = world(np.random.default_rng(1), trials=20_000, seeds=3)
    found = method_test("auc", first, second, labels, n=20)
    gains = [METRICS["auc"](a, labels) - METRICS["auc"](b, labels) for a, b in zip(first, second, strict=True)]
    assert found.p_value == pytest.approx(ttest_1samp(gains, 0).pvalue, rel=0.15)


def test_equal_scores_are_no_difference_and_options_arrive():
    first, second, labels, who = world(np.random.default_rng(2))
    same = method_test("eer", first, first, labels, who, n=20)
    assert same.value == 0 and same.p_value == 1 and same.low == same.high == 0
    costs = [method_test("act_dcf", first, second, labels, n=20, p_spoof=p).value for p in (0.05, 0.5)]
    assert costs[0] != costs[1]
    wide, narrow = (method_test("eer", first, second, labels, n=20, level=level) for level in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize("rows", [(1, 1), (2, 3), (0, 0)])
def test_seeds_must_pair(rows):
    labels = [0, 1, 0, 1]
    with pytest.raises(ValueError, match="pairs of trainings, two or more"):
        method_test("eer", [[1.0, 2, 3, 4]] * rows[0], [[1.0, 2, 3, 4]] * rows[1], labels)


def test_it_is_rarely_wrong_where_one_run_each_often_is():
    rng = np.random.default_rng(4)
    wrong = [method_test("auc", *world(rng), n=40).p_value < 0.05 for _ in range(60)]
    assert np.mean(wrong) <= 0.13  # 0.05 expected, and cautious


def test_noise_is_found_again():
    rng = np.random.default_rng(5)
    first, second, labels, who = world(rng, 8000, 200, 12, (2.0, 2.2), training=0.2, liking=0.8)
    found = noise_of("auc", first, second, labels, who, n=100)
    gains = [METRICS["auc"](a, labels) - METRICS["auc"](b, labels) for a, b in zip(first, second, strict=True)]
    assert found.trainings == pytest.approx(np.std(gains, ddof=1)) and found.speakers > 0
    trial = bootstrap(["auc"], [*first, *second], labels, None, 100, 0)[..., 0]
    alone = (trial[:, :12] - trial[:, 12:]).mean(1).std(ddof=1)
    assert found.trials == pytest.approx(alone * np.sqrt(8000))
    nobody = noise_of("auc", *world(rng, 2000, 1000, 3), n=50)
    assert nobody.speakers < 0.5 * found.speakers


def test_power_is_that_of_the_test_it_plans():
    """Students of known noise: draw the means and the seeds' spread, and count."""
    noise, effect, trials, speakers, seeds = Noise(0.1, 0.01, 0.006), 0.006, 4000, 100, 4
    by_trials = noise.trials**2 / trials + noise.speakers**2 / speakers
    rng = np.random.default_rng(6)
    gains = effect + noise.trainings * rng.normal(size=(20_000, seeds))
    gains += np.sqrt(by_trials) * rng.normal(size=(20_000, 1))
    spread = gains.var(axis=1, ddof=1) / seeds
    t = np.abs(gains.mean(axis=1)) / np.sqrt(by_trials + spread)
    from scipy.stats import t as student

    freedom = (by_trials + spread) ** 2 / (spread**2 / (seeds - 1))
    found = (t > student.ppf(0.975, freedom)).mean()
    assert power(effect, noise, trials, speakers, seeds) == pytest.approx(found, abs=0.03)


def test_power_rises_with_everything_and_has_its_limits():
    noise = Noise(0.1, 0.01, 0.004)
    base = power(0.005, noise, 2000, 40, 5)
    for more in ((8000, 40, 5), (2000, 400, 5), (2000, 40, 20)):
        assert power(0.005, noise, *more) > base
    assert power(-0.005, noise, 2000, 40, 5) == base and power(0.05, noise, 2000, 40, 5) > 0.99
    assert power(0.0, noise, 2000, 40, 5, level=0.9) == pytest.approx(0.1)
    assert power(0.01, Noise(0.1, 0.0, 0.0), 400, 1, 2) == pytest.approx(norm.sf(-0.04) + norm.sf(3.96), abs=1e-3)
    for bad in ((0, 4, 2), (10, 0, 2), (10, 4, 1)):
        with pytest.raises(ValueError, match="1, 1 and 2 at least"):
            power(0.01, noise, *bad)


def test_needed_seeds_is_the_first_that_suffices():
    noise = Noise(0.1, 0.01, 0.004)
    found = needed_seeds(0.005, noise, 8000, 100)
    assert power(0.005, noise, 8000, 100, found) >= 0.8 > power(0.005, noise, 8000, 100, found - 1)
    assert needed_seeds(0.005, noise, 100, 10, most=5) is None and needed_seeds(0.5, noise, 8000, 100) == 2


def test_the_picture_has_a_line_for_each_number_of_speakers():
    ax = plot_power(0.005, Noise(0.1, 0.01, 0.004), [20, 200], 5)
    few, many = (line.get_ydata() for line in ax.lines[:2])
    assert np.all(np.diff(few) > -1e-9) and many[-1] > few[-1] and len(ax.get_legend().texts) == 2
