"""RawBoost: equal to a literal version on the same draws, and well-behaved as an augmentation."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.augmentation import literal
from wedefense_nb.augmentation.rawboost import (
    ALGORITHMS,
    NOISE_LENGTH,
    Draws,
    RawBoost,
    RawBoostOptions,
    convolutive,
    draw,
    impulsive,
    notch_response,
    stationary,
    white_noise,
)
from wedefense_nb.data.batches import collate
from wedefense_nb.data.crops import Item
from wedefense_nb.data.manifest import utt_rng

N = 9000


def sound(n=N, seed=0):
    rng = np.random.default_rng(seed)
    t = np.arange(n) / 16000
    return (0.3 * np.sin(2 * np.pi * 300 * t) * np.sin(2 * np.pi * 3 * t) + 0.02 * rng.normal(size=n)).astype(
        np.float32
    )


def batch(*lengths):
    wave = torch.zeros(len(lengths), max(lengths))
    for i, n in enumerate(lengths):
        wave[i, :n] = torch.from_numpy(sound(n, i))
    return wave, torch.tensor(lengths)


def items(*lengths):
    return collate([Item("abc"[i], sound(n, i), 1) for i, n in enumerate(lengths)])


@given(st.integers(0, 2**32 - 1))
def test_equal_to_the_literal_version_on_the_same_draws(seed):
    wave, lengths = batch(N, 3000)
    wave[0] *= 3.5  # loud enough for the limiter
    draws = [
        draw(np.random.default_rng([seed, i]), int(n), "LIS", RawBoostOptions()) for i, n in enumerate(lengths)
    ]
    for kind, f in {"L": convolutive, "I": impulsive, "S": stationary}.items():
        got = f(wave, lengths, draws)
        for row, x, n, d in zip(got, wave, lengths.tolist(), draws, strict=True):
            want = literal(x[:n].double().numpy(), d, kind)
            assert np.abs(row[:n].numpy() - want).max() < 1e-5 * max(1, np.abs(want).max()), kind
            assert row[n:].abs().sum() == 0


@pytest.mark.parametrize("algo", [a for a, kinds in ALGORITHMS.items() if "S" not in kinds])
def test_is_limited_where_the_published_one_is(algo):  # noise has no limiter
    loud = items(N, 1600, 4000)
    loud.wave *= 3
    assert RawBoost(algo, seed=3)(loud).wave.abs().max() <= 1 + 1e-6


def test_more_bands_than_published_need_longer_filters():
    """Twelve notches of 99 taps are 1177 taps: longer than one FFT of the gain's 512 frequencies."""
    cascade = np.array([[300.0 * i, 300.0 * i + 150, 99.0] for i in range(1, 13)] + [[-3.0, 0.0, 0.0]])
    x = sound()
    d = Draws(convolutive=[cascade])
    got = convolutive(torch.from_numpy(x)[None], torch.tensor([N]), [d])[0].numpy()
    assert np.abs(got - literal(x.astype(float), d, "L")).max() < 1e-5


def test_noise_is_a_stretch_that_goes_round():
    d = Draws(stretch=(NOISE_LENGTH - 10, 30))
    assert np.array_equal(d.noise[:10], white_noise()[-10:]) and np.array_equal(d.noise[10:], white_noise()[:20])
    starts = [draw(utt_rng(str(i)), 100, "S", RawBoostOptions()).stretch[0] for i in range(200)]
    assert len(set(starts)) == 200 and np.mean(starts) == pytest.approx(NOISE_LENGTH / 2, rel=0.1)
    power = np.abs(np.fft.rfft(white_noise()[: 2**20].reshape(-1, 256).numpy())) ** 2  # white: flat
    assert np.ptp(10 * np.log10(power.mean(0))[1:-1]) < 0.7


def test_a_channel_of_several_steps_is_their_sequence():
    wave, lengths = batch(N)
    d = [draw(np.random.default_rng(0), N, "LIS", RawBoostOptions())]
    one = convolutive(wave, lengths, d)
    two = impulsive(convolutive(wave, lengths, d), lengths, d)
    boost = RawBoost(5)
    assert torch.equal(boost._apply(wave, lengths, d, "L"), one)
    assert torch.equal(boost._apply(wave, lengths, d, "LI"), two)
    assert torch.equal(boost._apply(wave, lengths, d, "LIS"), stationary(two, lengths, d))
    both = one + impulsive(wave, lengths, d)
    assert torch.allclose(boost._apply(wave, lengths, d, "L+I"), both / both.abs().max().clamp(min=1))
    assert not torch.allclose(boost._apply(wave, lengths, d, "L+I"), two)


@pytest.mark.parametrize("algo, steps", [(4, (1, 2, 3)), (5, (1, 2)), (6, (1, 3)), (7, (2, 3))])
def test_algorithms_are_the_published_sequences(algo, steps):
    wave, lengths = batch(N, 4000)
    functions = {1: ("L", convolutive), 2: ("I", impulsive), 3: ("S", stationary)}
    assert ALGORITHMS[algo] == "".join(functions[step][0] for step in steps)
    rngs = [utt_rng(f"RawBoost of {utt}", 3) for utt in "ab"]
    for rng in rngs:
        rng.random()  # whether at all
    draws = [draw(rng, n, ALGORITHMS[algo], RawBoostOptions()) for rng, n in zip(rngs, (N, 4000), strict=True)]
    for step in steps:
        wave = functions[step][1](wave, lengths, draws)
    assert torch.allclose(RawBoost(algo, seed=3)(items(N, 4000)).wave, wave, atol=1e-6)


def test_options_reach_the_steps():
    b = items(N)
    hits = {strength: RawBoost(2, seed=1, strength=strength)(b).wave - b.wave for strength in (0.5, 1.0)}
    assert hits[0.5].any() and torch.allclose(2 * hits[0.5], hits[1.0], atol=1e-6)
    assert RawBoost(1, n_bands=2).options.n_bands == 2


def test_impulses_leave_nine_tenths_alone():
    b = items(N)
    changed = [float((RawBoost(2, seed=s)(b).wave != b.wave).float().mean()) for s in range(200)]
    assert max(changed) <= 0.1 and np.mean(changed) == pytest.approx(0.05, abs=0.006)


def test_stationary_noise_has_the_drawn_snr():
    wave, lengths = batch(N)
    realised = []
    for seed in range(60):
        d = draw(np.random.default_rng(seed), N, "S", RawBoostOptions())
        noise = stationary(wave, lengths, [d]) - wave
        assert 20 * np.log10(float(wave.norm() / noise.norm())) == pytest.approx(d.snr, abs=0.1)
        realised.append(d.snr)
    assert 10 <= min(realised) and max(realised) <= 40 and np.mean(realised) == pytest.approx(25, abs=3)


def test_a_notch_removes_its_frequency_and_does_not_delay():
    cascade = np.array([[2500.0, 3500.0, 99.0], [0.0, 0.0, 0.0]])
    tone = torch.from_numpy(np.sin(2 * np.pi * 3000 * np.arange(N) / 16000).astype(np.float32))[None]
    d = Draws(convolutive=[cascade])
    assert convolutive(tone, torch.tensor([N]), [d])[0, 200:-200].abs().max() < 0.01
    click = torch.zeros(1, N)
    click[0, 4000] = 0.9
    assert convolutive(click, torch.tensor([N]), [d])[0].abs().argmax() == 4000  # the published code: 3999
    assert notch_response(torch.from_numpy(cascade)).abs().argmax() == 0


def test_draws_have_the_published_ranges():
    o = RawBoostOptions()
    many = [draw(utt_rng(str(i)), 16000, "LIS", o) for i in range(200)]
    rows = np.concatenate([c[:-1] for d in many for c in d.convolutive])
    assert set(rows[:, 2] % 2) == {1} and rows[:, 2].min() >= 11 and rows[:, 2].max() <= 99
    width = rows[:, 1] - rows[:, 0]
    inside = (rows[:, 0] > 0.01) & (rows[:, 1] < 7999.9)
    assert width[inside].min() >= 100 and width[inside].max() <= 1000
    assert width[inside].mean() == pytest.approx(550, abs=15)
    gains = np.array([[c[-1, 0] for c in d.convolutive] for d in many])
    assert (gains[:, 0] == 0).all() and gains[:, 1:].min() >= -20 and gains[:, 1:].max() <= -5
    assert gains[:, 1:].mean() == pytest.approx(-12.5, abs=0.5) and len(many[0].convolutive) == 5
    factors = np.concatenate([d.impulses for d in many])
    assert np.abs(factors).max() <= 1 and factors.mean() == pytest.approx(0, abs=0.01)
    assert factors.var() == pytest.approx(1 / 9, abs=0.005)  # of a product of two uniform variables
    assert all(len(set(d.positions)) == len(d.positions) for d in many)


def test_powers_add_what_the_level_lets_them_unless_a_peak_is_set():
    """Scaled by a tenth, the cube falls by 40 dB against the signal; with `peak` the level does not matter."""
    wave, lengths = batch(N, N - 1000)
    draws = [
        draw(utt_rng(name), n, "L", RawBoostOptions()) for name, n in zip("ab", lengths.tolist(), strict=True)
    ]
    linear = [Draws(convolutive=d.convolutive[:1]) for d in draws]
    added = []
    for level in (0.9, 0.009):
        x = level * wave / wave.abs().amax(1, keepdim=True)
        y = convolutive(x, lengths, draws)
        without = convolutive(x, lengths, linear)
        added.append(float((y - without).norm() / without.norm()))
    assert added[1] < added[0] / 50  # the square alone falls by a hundred
    x = wave / wave.abs().amax(1, keepdim=True)
    loud = convolutive(x, lengths, draws, peak=0.5)
    quiet = convolutive(0.01 * x, lengths, draws, peak=0.5)
    assert torch.allclose(100 * quiet, loud, atol=1e-4) and (loud[1, lengths[1] :] == 0).all()
    assert torch.allclose(convolutive(0.5 * x, lengths, draws), 0.5 * loud, atol=1e-5)
    assert (convolutive(torch.zeros_like(x), lengths, draws, peak=0.5) == 0).all()
    one = items(N)
    boosted = [RawBoost(1, seed=2, peak=peak)(one).wave for peak in (0.0, 0.5)]
    assert not torch.allclose(*boosted)


def test_bad_settings():
    for bad in ({"algo": 0}, {"algo": 9}, {"p": 1.5}):
        with pytest.raises(ValueError):
            RawBoost(**bad)
    with pytest.raises(TypeError):
        RawBoost(5, loudness=3)
