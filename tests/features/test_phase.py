"""Slopes of the phase against plain loops, and against signals whose answer is known by hand."""

import math

import numpy as np
import pytest
import torch
from scipy import signal

from wedefense_nb.features.phase import (
    PHASE_FLOOR,
    ComplexSpectrogram,
    GroupDelay,
    InstantaneousFrequency,
    JointFront,
    ModifiedGroupDelay,
    PhaseDifference,
    PulseCoherence,
    RelativePhase,
    group_delay,
)
from wedefense_nb.features.spectra import make_front


def noise(n, seed=0, level=0.1):
    return level * np.random.default_rng(seed).standard_normal(n)


def run(front, wave):
    wave = torch.as_tensor(wave, dtype=torch.float32)[None]
    feats, frames = front(wave, torch.tensor([wave.shape[1]]))
    assert feats.shape == (1, int(frames), front.dim)
    return feats[0].numpy()


def hann(n):
    return np.array([0.5 - 0.5 * math.cos(2 * math.pi * i / n) for i in range(n)])


def triangle(n_bands, bins):
    """Weights (bins, n_bands) of equal triangles, written out."""
    edges = np.linspace(0, bins - 1, n_bands + 2)
    weights = np.zeros((bins, n_bands))
    for b in range(n_bands):
        for k in range(bins):
            rise = (k - edges[b]) / (edges[b + 1] - edges[b])
            fall = (edges[b + 2] - k) / (edges[b + 2] - edges[b + 1])
            weights[k, b] = max(0.0, min(rise, fall))
    return weights


def spectrum(piece, n_fft):
    """The transform by its definition."""
    n = np.arange(len(piece))
    return np.array([np.sum(piece * np.exp(-2j * np.pi * k * n / n_fft)) for k in range(n_fft // 2 + 1)])


def starts(front, n):
    return range(0, n - front.size - front.extra + 1, front.hop)


# Group delay


@pytest.mark.parametrize("shift", [0, 1, 7, 30])
def test_a_shifted_impulse_is_delayed_by_its_shift(shift):
    frame = torch.zeros(31, dtype=torch.float64)
    frame[shift] = -2.0
    assert torch.allclose(group_delay(frame, 64), torch.full((33,), float(shift), dtype=torch.float64))


def test_group_delay_is_scipys():
    x = noise(20)
    want = signal.group_delay((x, [1.0]), w=2 * np.pi * np.arange(17) / 32)[1]
    assert np.allclose(group_delay(torch.from_numpy(x), 32), want, atol=1e-6)
    assert not group_delay(torch.zeros(8), 8).any()


def test_bands_of_group_delay_are_the_plain_loop():
    front = GroupDelay(32, 10, 40, n_bands=5)
    x = noise(75)
    weights = triangle(5, 21)
    want = []
    for start in starts(front, 75):
        piece = x[start : start + 32] * hann(32)
        a, b = spectrum(piece, 40), spectrum(piece * (np.arange(32) - 16) / 16, 40)
        energy = weights.T @ np.abs(a) ** 2 + PHASE_FLOOR
        mean = weights.T @ (a.conj() * b).real / energy
        spread = np.sqrt(weights.T @ np.abs(b) ** 2 / energy - mean**2)
        want.append(np.concatenate([mean, spread]))
    assert np.allclose(run(front, x), want, atol=1e-4)


def test_a_later_pulse_is_later_and_two_are_spread():
    front = GroupDelay(n_bands=4)
    for at in (32, 64, 96):
        click = np.zeros(128)
        click[at] = 0.5
        assert np.allclose(run(front, click)[0], [at / 64 - 1] * 4 + [0.001] * 4, atol=2e-3)
    click[32] = 0.5
    wide = run(front, click)[0]
    assert np.allclose(wide[:4], 0, atol=0.05) and np.allclose(wide[4:], 0.5, atol=0.05)


def test_loudness_does_not_matter_and_silence_says_nothing():
    x = noise(2000)
    for front in (GroupDelay(), InstantaneousFrequency(), PhaseDifference(), PulseCoherence(), RelativePhase()):
        assert np.allclose(run(front, x), run(front, 3 * x), atol=2e-2)
    for front in (GroupDelay(spread=False), PhaseDifference(), RelativePhase(), ComplexSpectrogram()):
        assert not run(front, np.zeros(2000)).any()


@pytest.mark.parametrize("alpha, gamma", [(0.4, 0.9), (1.0, 0.5)])
def test_modified_group_delay_is_the_plain_loop(alpha, gamma):
    front = ModifiedGroupDelay(6, alpha, gamma, lifter=3, size=30, hop=12, n_fft=32)
    x = noise(60)
    want = []
    for start in starts(front, 60):
        piece = x[start : start + 30] * hann(30)
        a, b = spectrum(piece, 32), spectrum(piece * np.arange(30) / 30, 32)
        log = np.log(np.abs(a) ** 2 + PHASE_FLOOR)
        cepstrum = [
            np.mean([log[min(k, 32 - k)] * math.cos(2 * math.pi * k * q / 32) for k in range(32)])
            for q in range(4)
        ]
        row = np.zeros(6)
        for k in range(17):
            smooth = cepstrum[0] + 2 * sum(cepstrum[q] * math.cos(2 * math.pi * k * q / 32) for q in (1, 2, 3))
            delay = (a[k].real * b[k].real + a[k].imag * b[k].imag) / math.exp(smooth) ** gamma
            bent = math.copysign((abs(delay) + 1e-6) ** alpha, delay)
            for j in range(6):
                scale = math.sqrt((1 if j == 0 else 2) / 17)
                row[j] += scale * bent * math.cos(math.pi / 17 * (k + 0.5) * j)
        want.append(row)
    assert np.allclose(run(front, x), want, atol=1e-3)


# Along time


@pytest.mark.parametrize("hertz", [990.0, 1010.0, 3333.0])
def test_every_bin_that_hears_a_tone_says_its_frequency(hertz):
    tone = 0.5 * np.cos(2 * np.pi * hertz * np.arange(400) / 16000 + 0.4)
    front = InstantaneousFrequency(n_fft=400, n_bands=199, spread=False)
    near = int(hertz / 40)
    said = run(front, tone)[0, near - 2 : near + 2] * 40 + 40 * np.arange(near - 1, near + 3)
    assert np.allclose(said, hertz, atol=1.0)


def test_instantaneous_frequency_is_the_step_to_the_next_sample():
    """The slope of the window gives what the phases of two windows one sample apart give."""
    x = signal.lfilter([1.0], [1, -1.6, 0.8], noise(2000))
    front = InstantaneousFrequency(256, 100, 256, n_bands=127, spread=False)
    said = run(front, x)
    for row, start in enumerate(starts(front, 2000)):
        if start == 0 or start + 257 > 2000:
            continue
        before, at, after = (spectrum(x[start + d : start + d + 256] * hann(256), 256) for d in (-1, 0, 1))
        step = np.angle(after * before.conj()) / 2
        loud = np.abs(at) > np.abs(at).max() / 3
        bins = 2 * np.pi * np.arange(129) / 256
        wrapped = (step - bins + np.pi / 2) % np.pi - np.pi / 2
        want = (wrapped * 256 / (2 * np.pi))[1:-1]
        assert np.allclose(said[row][loud[1:-1]], want[loud[1:-1]], atol=0.02)


def test_phase_difference_is_the_plain_loop():
    front = PhaseDifference(32, 16, 40, n_bands=6, lag=5)
    x = noise(90)
    weights = triangle(6, 21)
    want = []
    for start in starts(front, 90):
        a = spectrum(x[start : start + 32] * hann(32), 40)
        b = spectrum(x[start + 5 : start + 37] * hann(32), 40)
        z = b * a.conj() * np.exp(-2j * np.pi * np.arange(21) * 5 / 40)
        sides = (weights.T @ np.abs(a) ** 2 + PHASE_FLOOR) * (weights.T @ np.abs(b) ** 2 + PHASE_FLOOR)
        mean = weights.T @ z / np.sqrt(sides)
        want.append(np.concatenate([mean.real, mean.imag]))
    got = run(front, x)
    assert np.allclose(got, want, atol=1e-4)
    assert (got[:, :6] ** 2 + got[:, 6:] ** 2 <= 1 + 1e-4).all()


# Harmonics and pulses


@pytest.mark.parametrize("pitch", [100.0, 125.0, 200.0])
def test_relative_phase_forgets_the_frame_and_keeps_the_shape(pitch):
    phases = [0.3, 1.1, -0.5, 2.0]
    n = np.arange(1500) / 16000
    voice = sum(0.1 * np.cos(2 * np.pi * (k + 1) * pitch * n + p) for k, p in enumerate(phases))
    got = run(RelativePhase(harmonics=4), voice)
    for k in (2, 3, 4):
        want = phases[k - 1] - k * phases[0]
        angle = np.arctan2(got[:, 3 + k - 2], got[:, k - 2])
        assert np.abs(np.exp(1j * angle) - np.exp(1j * want)).max() < 0.15
    assert np.hypot(got[:, 0], got[:, 3]).min() > 0.9


def test_relative_phase_says_nothing_without_a_voice_or_above_the_band():
    got = run(RelativePhase(), noise(16000))
    assert np.abs(got).mean() < 0.3
    high = sum(0.05 * np.cos(2 * np.pi * k * 400 * np.arange(2000) / 16000) for k in range(1, 20))
    assert not run(RelativePhase(harmonics=25, highest=500), high)[:, 20:24].any()


def test_pulse_coherence_is_the_plain_loop():
    front = PulseCoherence(size=16, hop=8, n_fft=16, n_bands=3, step=4, span=6)
    x = noise(60)
    weights = triangle(3, 9)
    want = []
    for start in starts(front, 60):
        beats = []
        for i in range(6):
            at = start + 4 * i
            power = np.abs(spectrum(x[at : at + 16] * hann(16), 16)) ** 2
            beats.append(np.log(weights.T @ power + PHASE_FLOOR))
        bands = [signal.detrend(band) for band in np.array(beats).T]
        depth = [np.sqrt(np.mean(band**2) + 1e-4) for band in bands]
        unit = [band / d for band, d in zip(bands, depth, strict=True)]
        together = []
        for i in range(3):
            others = np.mean([unit[j] for j in range(3) if j != i], axis=0)
            together.append(np.mean(unit[i] * others) / np.sqrt(np.mean(others**2) + 1e-4))
        beside = [np.mean(unit[i] * unit[i + 1]) for i in range(2)]
        want.append([*depth, *together, *beside])
    assert np.allclose(run(front, x), want, atol=1e-3)


def test_pulses_beat_together_and_scrambled_ones_do_not():
    pulses = np.zeros(8000)
    pulses[::128] = 1.0
    voice = signal.lfilter([1.0], [1, -0.9], pulses) + noise(8000, level=1e-3)
    phases = np.random.default_rng(0).uniform(0, 2 * np.pi, 4001)
    scrambled = np.fft.irfft(np.abs(np.fft.rfft(voice)) * np.exp(1j * phases), 8000)
    front = PulseCoherence()
    together = slice(10, 20)
    assert run(front, voice)[:, together].mean() > 0.9 > 0.5 > run(front, scrambled)[:, together].mean()


def test_complex_spectrogram_keeps_the_phase_and_bends_the_magnitude():
    x = noise(200)
    got = run(ComplexSpectrogram(16, 8, 16, power=0.5), x)
    z = got[:, :9] + 1j * got[:, 9:]
    want = np.array([spectrum(x[s : s + 16] * hann(16), 16) for s in range(0, 185, 8)])
    loud = np.abs(want) > 0.05
    assert np.allclose(np.abs(z)[loud], np.abs(want)[loud] ** 0.5, rtol=1e-2)
    assert np.allclose(np.exp(1j * np.angle(z))[loud], np.exp(1j * np.angle(want))[loud], atol=1e-3)
    plain = run(ComplexSpectrogram(16, 8, 16, power=1.0), x)
    assert np.allclose(plain[:, :9] + 1j * plain[:, 9:], want, atol=1e-4)


# Side by side


def test_joint_is_its_parts_side_by_side():
    parts = [{"name": "fbank", "n_mels": 20}, {"name": "pulse_coherence", "span": 32}]
    x = noise(4000)
    first, second = run(make_front("fbank", n_mels=20), x), run(make_front("pulse_coherence", span=32), x)
    got = run(make_front("joint", parts=parts), x)
    assert len(got) == len(second) < len(first)
    assert np.array_equal(got, np.concatenate([first[: len(second)], second], 1))


@pytest.mark.parametrize(
    "parts, word",
    [
        ([], "list of front ends"),
        ([{"n_mels": 20}], "with its name"),
        (["fbank"], "with its name"),
        ([{"name": "fbank"}, {"name": "group_delay"}], "one hop"),
        ([{"name": "fbnk"}], "fbank"),
        ([{"name": "fbank", "mels": 2}], "n_mels"),
    ],
)
def test_joint_refuses(parts, word):
    with pytest.raises(ValueError, match=word):
        JointFront(parts)


@pytest.mark.parametrize(
    "name, options",
    [
        ("group_delay", {"size": 200}),
        ("group_delay", {"hop": 0}),
        ("group_delay", {"n_fft": 10**9}),
        ("group_delay", {"n_bands": 0}),
        ("modified_group_delay", {"n_coefficients": 300}),
        ("modified_group_delay", {"alpha": 0.0}),
        ("modified_group_delay", {"lifter": 0}),
        ("phase_difference", {"lag": 0}),
        ("relative_phase", {"harmonics": 1}),
        ("relative_phase", {"lowest": 40.0}),
        ("relative_phase", {"lowest": 500.0}),
        ("complex_spectrogram", {"power": 0.0}),
        ("pulse_coherence", {"hop": 100}),
        ("pulse_coherence", {"span": 3}),
        ("pulse_coherence", {"n_bands": 1}),
    ],
)
def test_options_that_cannot_be_are_refused(name, options):
    with pytest.raises(ValueError):
        make_front(name, **options)
