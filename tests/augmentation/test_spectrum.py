"""Low-pass, detours through lower rates, SpecAugment."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import firwin

from wedefense_nb.augmentation.spectrum import (
    LowPass,
    Resample,
    SpecAugment,
    lowpass_response,
    spec_draws,
    strips,
)
from wedefense_nb.data.batches import collate
from wedefense_nb.data.crops import Item
from wedefense_nb.features.spectra import Fbank

RNG = np.random.default_rng(0)
WHITE = collate([Item(f"u{i}", (0.1 * RNG.normal(size=32000)).astype(np.float32), 1) for i in range(6)])


def band_energy(wave, low, high):
    power = np.abs(np.fft.rfft(wave.numpy())) ** 2
    hertz = np.fft.rfftfreq(wave.shape[-1], 1 / 16000)
    return power[..., (hertz >= low) & (hertz < high)].mean(-1)


@given(st.floats(100, 7900))
def test_lowpass_is_scipys(cutoff):
    ours = lowpass_response(torch.tensor([cutoff], dtype=torch.float64))[0, 0].roll(255)[:511].numpy()
    assert np.abs(ours - firwin(511, cutoff, fs=16000)).max() < 1e-12


def test_lowpass_removes_what_lies_above_and_keeps_level_and_time():
    out = LowPass(3000, 3000)(WHITE).wave
    assert (band_energy(out, 3200, 8000) < 1e-4 * band_energy(out, 0, 2800)).all()
    assert torch.allclose(out.norm(dim=1), WHITE.wave.norm(dim=1), rtol=1e-4)
    click = torch.zeros(1, 4000)
    click[0, 2000] = 0.5
    out = LowPass(2000, 2000)(collate([Item("u", click[0].numpy(), 1)])).wave[0]
    assert int(out.argmax()) == 2000 and torch.allclose(out[2000:2200], out[1801:2001].flip(0), atol=1e-6)


def test_cutoffs_are_uniform():
    many = collate([Item(f"u{i}", WHITE.wave[0, :4000].numpy(), 1) for i in range(200)])
    power = np.abs(np.fft.rfft(LowPass(2000, 6000)(many).wave.numpy())) ** 2
    power = power.reshape(200, -1)[:, :2000].reshape(200, 50, 40).mean(2)  # bands of 160 Hz
    edges = 160 * (power > 0.05 * power[:, :10].mean(1, keepdims=True)).sum(1)
    assert edges.min() < 2500 and edges.max() > 5500 and edges.mean() == pytest.approx(4000, abs=300)


@pytest.mark.parametrize("rate", [8000, 11025, 12000])
def test_a_detour_loses_what_lies_above_half_the_rate(rate):
    out = Resample([rate])(WHITE).wave
    assert out.shape == WHITE.wave.shape and torch.allclose(out.norm(dim=1), WHITE.wave.norm(dim=1), rtol=1e-4)
    assert (band_energy(out, rate / 2 + 100, 8000) < 1e-4 * band_energy(out, 0, 0.4 * rate)).all()
    assert np.ptp(10 * np.log10(band_energy(out, 0, 0.2 * rate) / band_energy(out, 0.2 * rate, 0.4 * rate))) < 1.5


def test_full_rate_and_bad_settings():
    assert torch.allclose(Resample([16000])(WHITE).wave, WHITE.wave, atol=1e-6)
    for rates in ((), [1000], [8000, 44100]):
        with pytest.raises(ValueError, match="rates must lie between"):
            Resample(rates)
    for edges in ((5000, 3000), (0, 10), (100, 8000)):
        with pytest.raises(ValueError, match="cutoffs must lie between"):
            LowPass(*edges)


# SpecAugment


def feats(*frames, d=80, layers=None):
    shape = (len(frames), max(frames), d) if layers is None else (len(frames), layers, max(frames), d)
    values = np.random.default_rng(1).normal(size=shape).astype(np.float32) + 5
    return torch.from_numpy(values), torch.tensor(frames)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=5), st.integers(0, 100), st.integers(1, 4))
def test_never_all_frames_and_widths_relative_to_the_length(frames, seed, n):
    x, f = feats(*frames)
    augment = SpecAugment(time=0.9 / n, freq=0.0, n_time=n, n_freq=0, p=1.0)
    out = augment(x, f, spec_draws([f"u{i}" for i in range(len(frames))], seed))
    for row, m in zip(out, frames, strict=True):
        covered = (row[:m] == 0).all(1)
        assert covered.sum() <= 0.9 * m and not covered.all()
        assert ((row[:m] == 0).any(1) == covered).all()  # strips of time go over all bands


def test_strips_are_uniform_in_width_and_place():
    draws = spec_draws([f"u{i}" for i in range(20000)], n_draws=2)
    covered = strips(torch.full((20000,), 50), 50, 0.2, draws)
    widths = covered.sum(1)
    assert np.bincount(widths, minlength=11) == pytest.approx(20000 / 11, rel=0.15) and widths.max() == 10
    ten = covered[widths == 10]
    first = ten.float().argmax(1)
    assert np.bincount(first, minlength=41) == pytest.approx(len(ten) / 41, rel=0.5) and first.max() == 40


def test_strips_of_time_and_of_bands_have_their_own_widths():
    x, f = feats(*[100] * 400)
    out = SpecAugment(time=0.05, freq=0.25, p=1.0)(x, f, spec_draws([f"u{i}" for i in range(400)]))
    in_time = (out == 0).all(2).sum(1)
    in_freq = (out == 0).all(1).sum(1)
    assert in_time.max() == 5 and in_freq.max() == 20 and in_time.min() == in_freq.min() == 0


def test_each_recording_has_its_own_draw():  # one mask for the whole batch is the published mistake
    x, f = feats(*[100] * 40)
    utts = [f"u{i}" for i in range(40)]
    augment = SpecAugment(n_time=2, n_freq=2, p=0.5)
    out = augment(x, f, spec_draws(utts, seed=1, epoch=2))
    changed = [i for i in range(40) if not torch.equal(out[i], x[i])]
    assert 10 <= len(changed) <= 30 and len({(out[i] == 0).numpy().tobytes() for i in changed}) == len(changed)
    assert torch.equal(augment(x[[7]], f[[7]], spec_draws(["u7"], 1, 2)), out[[7]])  # alone and in a batch
    longer = torch.nn.functional.pad(x, (0, 0, 0, 30))
    assert torch.equal(augment(longer, f, spec_draws(utts, 1, 2))[:, :100], out)  # padding
    assert not torch.equal(augment(x, f, spec_draws(utts, 1, 3)), out)
    assert not torch.equal(augment(x, f, spec_draws(utts, 2, 2)), out)


def test_layers_share_the_mask():
    x, f = feats(60, 40, layers=3)
    draws = spec_draws(["a", "b"])
    out = SpecAugment(0.2, 0.2, 2, 2, p=1.0)(x, f, draws)
    assert torch.equal(out[:, 0] == 0, out[:, 2] == 0)
    assert torch.equal(out[:, 1], SpecAugment(0.2, 0.2, 2, 2, p=1.0)(x[:, 1], f, draws))


def test_gradient_passes_and_input_stays():
    wave = WHITE.wave.clone().requires_grad_()
    x, f = Fbank(mean_norm=True)(wave, WHITE.lengths)
    before = x.detach().clone()
    out = SpecAugment(0.2, 0.2, p=1.0)(x, f, spec_draws(WHITE.utts))
    out.square().sum().backward()
    assert wave.grad.abs().sum() > 0 and torch.equal(x, before) and not torch.equal(out, x)
    x = torch.ones(1, 50, 20, requires_grad=True)
    out = SpecAugment(0.3, 0.3, p=1.0)(x, torch.tensor([50]), spec_draws(["a"]))
    out.sum().backward()
    assert torch.equal(x.grad, (out != 0).float()) and 0 < float(x.grad.mean()) < 1


def test_only_in_training_and_only_with_enough_draws():
    x, f = feats(50)
    augment = SpecAugment(n_time=8, n_freq=8, time=0.1, freq=0.1, p=1.0)
    with pytest.raises(ValueError, match="need 1 x 33 draws"):
        augment(x, f, spec_draws(["a"]))
    assert not torch.equal(augment(x, f, spec_draws(["a"], n_draws=augment.n_draws)), x)
    assert augment.eval()(x, f, spec_draws(["a"])) is x
    for bad in ({"time": 0.5, "n_time": 2}, {"freq": 1.0}, {"p": 2.0}, {"n_time": -1}):
        with pytest.raises(ValueError, match="leave something"):
            SpecAugment(**bad)
