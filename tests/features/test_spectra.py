"""Log spectrogram and filter bank: against numpy, torch and torchaudio's Kaldi."""

import numpy as np
import pytest
import torch
from torchaudio.compliance.kaldi import fbank

from wedefense_nb.data.audio import load
from wedefense_nb.data.batches import collate
from wedefense_nb.data.crops import Item
from wedefense_nb.features.spectra import (
    Fbank,
    LogSpectrogram,
    filter_blocks,
    linear_filters,
    mean_norm,
    mel_filters,
    sum_bands,
)


def noise(*shape, seed=0):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def alone(front, wave):
    return front(wave[None], torch.tensor([len(wave)]))


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


def test_a_tone_is_a_line_at_its_frequency():
    tone = torch.sin(2 * torch.pi * 2000 * torch.arange(8000) / 16000)
    assert (alone(LogSpectrogram(), tone)[0][0].argmax(1) == 64).all()  # 2000 / 31.25


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n_mels", [23, 80])
def test_fbank_equals_kaldi(seed, n_mels):
    wave = noise(16000 + 777 * seed, seed=seed)
    want = fbank(wave[None] * 32768, num_mel_bins=n_mels, window_type="hamming", dither=0.0)
    got, frames = alone(Fbank(n_mels), wave)
    assert frames.item() == len(want) and torch.allclose(got[0], want, atol=1e-4)


def test_fbank_equals_kaldi_on_speech(few):
    items = [Item(str(i), load(path)[0], 1) for i, path in enumerate(few.paths()[:12])]
    batch = collate(items)
    feats, frames = Fbank()(batch.wave, batch.lengths)
    for row, n, item in zip(feats, frames, items, strict=True):
        wave = torch.from_numpy(item.wave)[None] * 32768
        want = fbank(wave, num_mel_bins=80, window_type="hamming", dither=0.0)
        assert torch.allclose(row[:n], want, atol=1e-4)


def test_silence_has_kaldis_floor():
    wave = torch.zeros(4000)
    want = fbank(wave[None], window_type="hamming", num_mel_bins=80, dither=0.0)
    assert torch.equal(alone(Fbank(), wave)[0][0], want)


def test_dither_is_for_training_only():
    front = Fbank(dither=1.0)
    wave = noise(8000)
    assert torch.equal(alone(front.eval(), wave)[0], alone(Fbank(), wave)[0])
    assert not torch.equal(alone(front.train(), wave)[0], alone(Fbank(), wave)[0])


def test_gradients_are_right_and_the_input_is_left_as_it_was():
    wave = noise(1, 720).double().requires_grad_()
    before = wave.detach().clone()
    for front in (LogSpectrogram(64, 160, 64).double(), Fbank(5).double()):
        assert torch.autograd.gradcheck(
            lambda w, f=front: f(w, torch.tensor([720]))[0][:, :1], wave, atol=1e-3, rtol=1e-3
        )
    assert torch.equal(wave.detach(), before)


def test_a_three_second_chunk_is_300_frames():
    assert Fbank().frames(torch.tensor([48240])).item() == 300


def test_mean_norm_removes_gain_and_ignores_padding():  # pitfall 34
    front = Fbank(mean_norm=True)
    wave = noise(8000)
    assert torch.allclose(alone(front, wave)[0], alone(front, 3 * wave)[0], atol=1e-3)
    x = torch.tensor([[[1.0], [3.0], [100.0]]])
    assert mean_norm(x, torch.tensor([2]))[0, :, 0].tolist() == [-1, 1, 0]


@pytest.mark.parametrize("n_mels", [5, 16, 23, 80, 400])
def test_blocks_leave_out_zeros_and_nothing_else(n_mels):
    filters = mel_filters(n_mels)
    power = torch.rand(2, 5, 257)
    blocks = filter_blocks(filters)
    assert torch.allclose(sum_bands(power, filters, blocks), power @ filters, rtol=1e-5)
    if n_mels >= 80:
        assert sum((rows.stop - rows.start) * 16 for rows, _ in blocks) < 0.25 * filters.numel()


def test_filters_are_triangles():
    bank = linear_filters(20, 1024, 4000.0)
    assert bank.shape == (513, 20) and bank.max() <= 1 and (bank[257:] == 0).all()
    assert torch.allclose(bank[14:240].sum(1), torch.ones(226), atol=1e-5)  # neighbours overlap to 1
    assert mel_filters()[-1].sum() == 0


@pytest.mark.parametrize("band", [3, 10, 17])
def test_a_tone_at_a_filters_centre_peaks_there(band):
    centre = 8000 * (band + 1) / 21
    wave = torch.sin(2 * torch.pi * centre * torch.arange(16000) / 16000)
    power = torch.stft(wave, 512, window=torch.hann_window(512), return_complex=True).abs().square()[:, 30]
    assert (power @ linear_filters(20, 512, 8000.0)).argmax() == band


def test_options_are_checked():
    for wrong in ({"size": 600}, {"hop": 0}, {"floor": 0}):
        with pytest.raises(ValueError, match="need 0 < size <= n_fft"):
            LogSpectrogram(**wrong)
