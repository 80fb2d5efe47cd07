"""Log spectrogram and MFCC: against torch, scipy and torchaudio's Kaldi; blind to padding."""

import numpy as np
import pytest
import torch
from scipy.fft import dct
from torchaudio.compliance.kaldi import mfcc

from wedefense_nb.features.cepstra import MFCC
from wedefense_nb.features.spectra import Fbank, LogSpectrogram

FRONTS = {
    "spectrogram": LogSpectrogram(),
    "long": LogSpectrogram(1024, 100, 2048, mean_norm=True),
    "mfcc": MFCC(),
    "mfcc, all": MFCC(20, 40, 0.0, 2, True),
}
each = pytest.mark.parametrize("name", FRONTS)


def noise(*shape, seed=0):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def alone(front, wave):
    return front(wave[None], torch.tensor([len(wave)]))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", [{}, {"n_coefficients": 20, "n_mels": 40}, {"lifter": 0.0}])
def test_mfcc_equals_kaldi(seed, options):
    wave = noise(16000 + 777 * seed, seed=seed)
    names = {"n_coefficients": "num_ceps", "n_mels": "num_mel_bins", "lifter": "cepstral_lifter"}
    want = mfcc(wave[None] * 32768, dither=0.0, **{names[k]: v for k, v in options.items()})
    got, frames = alone(MFCC(**options), wave)
    assert frames.item() == len(want) and torch.allclose(got[0], want, atol=1e-4)


@pytest.mark.parametrize("size, hop, n_fft", [(512, 160, 512), (400, 160, 512), (400, 100, 1024)])
def test_spectrogram_equals_numpy_and_torch(size, hop, n_fft):
    wave = noise(8000)
    got, frames = alone(LogSpectrogram(size, hop, n_fft), wave)
    window = torch.hann_window(size, dtype=torch.float64).numpy()
    cut = np.lib.stride_tricks.sliding_window_view(wave.double().numpy(), size)[::hop]
    want = np.log(np.abs(np.fft.rfft(cut * window, n_fft)) ** 2 + 1e-8)
    assert frames.item() == len(want) and np.allclose(got[0].numpy(), want, atol=1e-4)
    if size == n_fft:
        other = torch.stft(wave, n_fft, hop, window=torch.hann_window(size), center=False, return_complex=True)
        assert torch.allclose(got[0], (other.abs().square() + 1e-8).log().T, atol=1e-4)


def test_mfcc_is_the_cosine_transform_of_the_bands():
    wave = noise(4000)
    front = MFCC(lifter=0.0)
    bands, _ = alone(front.bands, wave)
    assert np.allclose(alone(front, wave)[0][0], dct(bands[0].numpy(), norm="ortho")[:, :13], atol=1e-4)
    assert not torch.equal(front.bands.window, Fbank(23).window)


@each
def test_padding_and_neighbours_change_nothing(name):  # pitfall 57
    front = FRONTS[name].eval()
    waves = [noise(n, seed=n) for n in (16000, 9123, 1200)]
    wave = torch.full((3, 18000), 7.0)  # what lies beyond the end must not matter
    for row, w in zip(wave, waves, strict=True):
        row[: len(w)] = w
    feats, frames = front(wave, torch.tensor([len(w) for w in waves]))
    for i, w in enumerate(waves):
        want, n = alone(front, w)
        assert frames[i] == n and torch.allclose(feats[i, :n], want[0], atol=1e-4)
        assert feats[i, n:].abs().sum() == 0 and feats.shape[-1] == front.dim


@each
def test_gradients_reach_every_sample_and_silence_is_finite(name):
    wave = noise(1, 4000).requires_grad_()
    FRONTS[name](wave, torch.tensor([4000]))[0].square().sum().backward()
    assert torch.isfinite(wave.grad).all() and (wave.grad[0, 200:3500] != 0).float().mean() > 0.9
    assert torch.isfinite(FRONTS[name](torch.zeros(1, 4000), torch.tensor([4000]))[0]).all()


def test_gradients_are_right():
    wave = noise(1, 700).double().requires_grad_()
    for front in (LogSpectrogram(64, 160, 64).double(), MFCC(3, 5).double()):
        assert torch.autograd.gradcheck(
            lambda w, f=front: f(w, torch.tensor([700]))[0][:, 0], wave, atol=1e-3, rtol=1e-3
        )


@each
def test_wrong_shapes_and_lengths_are_refused(name):
    for wave, lengths in [
        (noise(4000), [4000]),
        (noise(2, 4000), [4000]),
        (noise(1, 4000), [4001]),
        (noise(1, 4000), [300]),
    ]:
        with pytest.raises(ValueError):
            FRONTS[name](wave, torch.tensor(lengths))


def test_a_tone_is_a_line():
    tone = torch.sin(2 * torch.pi * 2000 * torch.arange(8000) / 16000)
    assert (alone(LogSpectrogram(), tone)[0][0].argmax(1) == 64).all()  # 2000 / 31.25


def test_options_are_checked():
    for wrong in (
        lambda: LogSpectrogram(600, 160, 512),
        lambda: LogSpectrogram(hop=0),
        lambda: LogSpectrogram(floor=0),
        lambda: MFCC(24),
        lambda: MFCC(0),
    ):
        with pytest.raises(ValueError):
            wrong()
