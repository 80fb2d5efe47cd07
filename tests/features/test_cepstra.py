"""MFCC and LFCC: against scipy, torchaudio's Kaldi, and slow, literal versions written from the definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.fft import dct
from torchaudio.compliance.kaldi import mfcc
from torchaudio.functional import compute_deltas
from torchaudio.transforms import LFCC as TorchLFCC

from wedefense_nb.features.cepstra import LFCC, MFCC, PRESETS, dct_matrix, delta, lfcc
from wedefense_nb.features.spectra import Fbank, mean_norm


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


def test_mfcc_is_the_cosine_transform_of_the_bands():
    wave = noise(4000)
    front = MFCC(lifter=0.0)
    bands, _ = alone(front.bands, wave)
    assert np.allclose(alone(front, wave)[0][0], dct(bands[0].numpy(), norm="ortho")[:, :13], atol=1e-4)
    assert not torch.equal(front.bands.window, Fbank(23).window)


def test_mfcc_with_mean_and_slopes_is_made_of_its_parts():
    wave = noise(1, 8000)
    lengths = torch.tensor([8000])
    static, frames = MFCC()(wave, lengths)
    static = mean_norm(static, frames)
    slope = delta(static, frames, "regression")
    want = torch.cat([static, slope, delta(slope, frames, "regression")], -1)
    assert torch.allclose(MFCC(deltas=2, mean_norm=True)(wave, lengths)[0], want, atol=1e-5)


def test_dct_matrix_is_scipys_and_orthonormal():
    x = np.random.default_rng(0).normal(size=(5, 24))
    assert np.allclose(x @ dct_matrix(24, 24).double().numpy(), dct(x, norm="ortho"), atol=1e-5)
    assert torch.allclose(dct_matrix(7, 24), dct_matrix(24, 24)[:, :7])


@given(st.integers(3, 20), st.floats(-3, 3), st.floats(-3, 3))
def test_delta_of_a_ramp_is_constant_and_of_a_constant_zero(n, slope, offset):
    ramp = offset + slope * torch.arange(float(n))[None, :, None].repeat(1, 1, 2)
    for kind, factor in (("difference", 2.0), ("regression", 1.0)):
        d = delta(ramp, torch.tensor([n]), kind)[0, 2:-2]
        assert torch.allclose(d, torch.full_like(d, factor * slope), atol=1e-4)
        assert delta(torch.full((1, n, 2), offset), torch.tensor([n]), kind).abs().max() < 1e-5


def test_delta_repeats_each_recordings_own_ends():
    x = noise(2, 9, 3)
    frames = torch.tensor([9, 5])
    for kind in ("difference", "regression"):
        got = delta(x, frames, kind)
        assert torch.allclose(got[1:, :5], delta(x[1:, :5], frames[1:], kind))
    want = compute_deltas(x.transpose(1, 2)).transpose(1, 2)
    assert torch.allclose(delta(x, torch.tensor([9, 9]), "regression"), want, atol=1e-6)
    with pytest.raises(ValueError, match="unknown kind of delta 'slope'"):
        delta(x, frames, "slope")


def test_torchaudio_preset_equals_torchaudio_with_deltas_along_time():
    wave = noise(16000)
    stft = {"n_fft": 512, "win_length": 320, "hop_length": 160, "center": False}
    c = TorchLFCC(16000, n_filter=128, n_lfcc=20, speckwargs=stft)(wave[None] * 32768)
    want = torch.cat([c, compute_deltas(c), compute_deltas(compute_deltas(c))], 1)[0].T
    assert torch.allclose(alone(LFCC.preset("torchaudio"), wave)[0][0], want, atol=5e-3)


def test_decibels_end_80_below_the_loudest_of_the_recording_itself():
    quiet = 1e-6 * noise(1, 8000)
    quiet[0, 4000:4400] += noise(400)
    loud = noise(1, 8000)
    front = LFCC.preset("torchaudio", n_coefficients=128, deltas=0)
    lengths = torch.tensor([8000, 8000])
    bands = front(torch.cat([quiet, loud]), lengths)[0] @ dct_matrix(128, 128).T
    assert (bands.amax((1, 2)) - bands.amin((1, 2)) <= 80.01).all()
    assert bands[0].max() - bands[0].min() > 79.9


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


def test_energy_coefficient_of_white_noise_is_parsevals():
    wave = noise(160000)
    got = alone(LFCC.preset("nii", preemphasis=0.0), wave)[0][0, 5:-5, 0].mean()
    window = torch.hamming_window(320)
    want = torch.log10(0.01 * window.square().sum() / 2)  # one-sided spectrum: half of the energy
    assert abs(got - want) < 0.02


def test_a_three_second_chunk_has_one_frame_less_than_a_filter_bank():
    chunk = torch.tensor([48240])
    assert LFCC.preset("torchaudio").frames(chunk).item() == 299  # the field's off-by-one
    assert Fbank().frames(chunk).item() == MFCC().frames(chunk).item() == 300


def test_gradients_are_right():
    wave = noise(1, 720).double().requires_grad_()
    for front in (MFCC(3, 5).double(), LFCC.preset("house", n_filters=6, n_coefficients=4).double()):
        assert torch.autograd.gradcheck(
            lambda w, f=front: f(w, torch.tensor([720]))[0][:, :1], wave, atol=1e-3, rtol=1e-3
        )


def test_options_and_names_are_checked():
    for n_coefficients in (0, 24):
        with pytest.raises(ValueError, match="n_coefficients <= n_mels"):
            MFCC(n_coefficients)
    with pytest.raises(ValueError, match="unknown LFCC preset"):
        LFCC.preset("mfcc")
    with pytest.raises(TypeError):
        LFCC.preset("nii", hopp=160)
    assert lfcc("house").dim == 60 and lfcc().options == LFCC.preset("nii").options
