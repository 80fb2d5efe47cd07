"""Front ends against torchaudio and against slow, literal versions written from the definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.fft import dct
from torchaudio.compliance.kaldi import fbank
from torchaudio.functional import compute_deltas
from torchaudio.transforms import LFCC as TorchLFCC

from wedefense_nb.data.audio import load
from wedefense_nb.data.batches import collate, frame_mask
from wedefense_nb.data.crops import Item
from wedefense_nb.features.cepstra import LFCC, PRESETS, delta
from wedefense_nb.features.spectra import (
    Fbank,
    filter_blocks,
    linear_filters,
    mean_norm,
    mel_filters,
    sum_bands,
)

FRONTS = {
    "fbank": Fbank(80),
    "fbank, mean": Fbank(80, mean_norm=True),
    **{n: LFCC.preset(n) for n in PRESETS},
}


def noise(*shape, seed=0):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def alone(front, wave):
    return front(wave[None], torch.tensor([len(wave)]))


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


@pytest.mark.parametrize("n_mels", [5, 16, 23, 80, 400])
def test_blocks_leave_out_zeros_and_nothing_else(n_mels):
    filters = mel_filters(n_mels)
    power = torch.rand(2, 5, 257)
    blocks = filter_blocks(filters)
    assert torch.allclose(sum_bands(power, filters, blocks), power @ filters, rtol=1e-5)
    assert n_mels < 80 or sum((r.stop - r.start) * 16 for r, _ in blocks) < 0.25 * filters.numel()


def test_gradients_are_right_and_the_input_is_left_as_it_was():
    wave = noise(1, 720).double().requires_grad_()
    before = wave.detach().clone()
    for front in (Fbank(5).double(), LFCC.preset("house", n_filters=6, n_coefficients=4).double()):
        assert torch.autograd.gradcheck(
            lambda w, f=front: f(w, torch.tensor([720]))[0][:, :1], wave, atol=1e-3, rtol=1e-3
        )
    assert torch.equal(wave.detach(), before)


def test_a_three_second_chunk_is_300_frames():
    assert Fbank().frames(torch.tensor([48240])).item() == 300
    assert LFCC.preset("torchaudio").frames(torch.tensor([48240])).item() == 299  # the field's off-by-one


def test_dither_is_for_training_only():
    front = Fbank(dither=1.0)
    wave = noise(8000)
    assert torch.equal(alone(front.eval(), wave)[0], alone(Fbank(), wave)[0])
    assert not torch.equal(alone(front.train(), wave)[0], alone(Fbank(), wave)[0])


def test_torchaudio_preset_equals_torchaudio_with_deltas_along_time():
    wave = noise(16000)
    stft = {"n_fft": 512, "win_length": 320, "hop_length": 160, "center": False}
    c = TorchLFCC(16000, n_filter=128, n_lfcc=20, speckwargs=stft)(wave[None] * 32768)
    want = torch.cat([c, compute_deltas(c), compute_deltas(compute_deltas(c))], 1)[0].T
    assert torch.allclose(alone(LFCC.preset("torchaudio"), wave)[0][0], want, atol=5e-3)


def literal(wave, name):
    """LFCC frame by frame in float64, from the table of definitions."""
    o = PRESETS[name]
    x = np.asarray(wave, dtype=np.float64)
    if o.get("preemphasis"):
        x = np.append(x[0], x[1:] - 0.97 * x[:-1])
    if o["start"] < 0:
        n = 1 + len(x) // o["hop"]
    else:
        n = max(1, int(np.ceil((len(x) - (o["size"] - o["hop"])) / o["hop"])))
    x = np.concatenate([np.zeros(max(0, -o["start"])), x, np.zeros(o["size"] + n * o["hop"])])
    k = np.arange(o["size"])
    window = 0.54 - 0.46 * np.cos(2 * np.pi * k / (o["size"] if o["periodic"] else o["size"] - 1))
    edges = np.linspace(0, o["top"], o["n_filters"] + 2)
    f = np.arange(o["n_fft"] // 2 + 1) * 16000 / o["n_fft"]
    bank = np.stack([np.interp(f, edges[i : i + 3], [0, 1, 0], left=0, right=0) for i in range(o["n_filters"])])
    out = []
    for i in range(n):
        power = np.abs(np.fft.rfft(x[i * o["hop"] : i * o["hop"] + o["size"]] * window, o["n_fft"])) ** 2
        c = dct(np.log10(bank @ power + o["floor"]), norm="ortho")[: o.get("n_coefficients", 20)]
        if o["energy"]:
            c[0] = np.log10(power.sum() / o["n_fft"] + o["floor"])
        out.append(c)
    c = np.array(out)
    if o.get("mean_norm"):
        c = c - c.mean(0)
    parts = [c]
    for _ in range(o.get("deltas", 2)):
        p = np.pad(parts[-1], ((1, 1), (0, 0)), mode="edge")
        parts.append(p[2:] - p[:-2])
    return np.concatenate(parts, 1)


@pytest.mark.parametrize("name", [n for n in PRESETS if n != "torchaudio"])
@pytest.mark.parametrize("n", [320, 4801, 8000])
def test_presets_equal_the_literal_definition(name, n):
    wave = noise(n)
    got = alone(LFCC.preset(name), wave)[0][0]
    assert got.shape == literal(wave, name).shape and np.allclose(got, literal(wave, name), atol=2e-4)


def test_presets_differ_from_each_other():
    wave = noise(16000)
    first = {n: alone(LFCC.preset(n), wave)[0][0, 10, :20] for n in PRESETS}
    names = list(first)
    assert all(not torch.allclose(first[a], first[b], atol=0.05) for a in names for b in names if a < b)


@pytest.mark.parametrize("name", FRONTS)
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


@pytest.mark.parametrize("name", FRONTS)
def test_gradients_reach_every_sample_and_silence_is_finite(name):
    wave = noise(1, 4000).requires_grad_()
    FRONTS[name](wave, torch.tensor([4000]))[0].square().sum().backward()
    assert torch.isfinite(wave.grad).all() and (wave.grad[0, 200:3500] != 0).float().mean() > 0.9
    assert torch.isfinite(FRONTS[name](torch.zeros(1, 4000), torch.tensor([4000]))[0]).all()


@pytest.mark.parametrize("name", FRONTS)
def test_wrong_shapes_and_lengths_are_refused(name):
    front = FRONTS[name]
    for wave, lengths in [
        (noise(4000), [4000]),
        (noise(2, 4000), [4000]),
        (noise(1, 4000), [4001]),
        (noise(1, 4000), [0]),
    ]:
        with pytest.raises(ValueError):
            front(wave, torch.tensor(lengths))
    if name.startswith("fbank"):
        with pytest.raises(ValueError, match="400 to"):  # shorter than one frame
            front(noise(1, 4000), torch.tensor([399]))


@pytest.mark.parametrize("band", [3, 10, 17])
def test_a_tone_at_a_filters_centre_peaks_there(band):
    centre = 8000 * (band + 1) / 21
    wave = torch.sin(2 * torch.pi * centre * torch.arange(16000) / 16000)
    power = torch.stft(wave, 512, window=torch.hann_window(512), return_complex=True).abs().square()[:, 30]
    assert (power @ linear_filters(20, 512, 8000.0)).argmax() == band


def test_energy_coefficient_of_white_noise_is_parsevals():
    wave = noise(160000)
    got = alone(LFCC.preset("nii", preemphasis=0.0), wave)[0][0, 5:-5, 0].mean()
    window = torch.hamming_window(320)
    want = torch.log10(0.01 * window.square().sum() / 2)  # one-sided spectrum: half of the energy
    assert abs(got - want) < 0.02


def test_filters_are_triangles():
    bank = linear_filters(20, 1024, 4000.0)
    assert bank.shape == (513, 20) and bank.max() <= 1 and (bank[257:] == 0).all()
    assert torch.allclose(bank[14:240].sum(1), torch.ones(226), atol=1e-5)  # neighbours overlap to 1
    assert mel_filters()[-1].sum() == 0


@given(st.integers(3, 20), st.floats(-3, 3), st.floats(-3, 3))
def test_delta_of_a_ramp_is_constant_and_of_a_constant_zero(n, slope, offset):
    ramp = offset + slope * torch.arange(float(n))[None, :, None].repeat(1, 1, 2)
    for kind, factor in (("difference", 2.0), ("regression", 1.0)):
        d = delta(ramp, torch.tensor([n]), kind)[0, 2:-2]
        assert torch.allclose(d, torch.full_like(d, factor * slope), atol=1e-4)
        assert delta(torch.full((1, n, 2), offset), torch.tensor([n]), kind).abs().max() < 1e-5


def test_mean_norm_removes_gain_and_ignores_padding():  # pitfall 34
    front = Fbank(mean_norm=True)
    wave = noise(8000)
    assert torch.allclose(alone(front, wave)[0], alone(front, 3 * wave)[0], atol=1e-3)
    x = torch.tensor([[[1.0], [3.0], [100.0]]])
    assert mean_norm(x, torch.tensor([2]))[0, :, 0].tolist() == [-1, 1, 0]


def test_options_and_names_are_checked():
    with pytest.raises(ValueError, match="unknown LFCC preset"):
        LFCC.preset("mfcc")
    with pytest.raises(TypeError):
        LFCC.preset("nii", hopp=160)
    assert frame_mask(torch.tensor([0, 2]), 3).tolist() == [[False] * 3, [True, True, False]]
