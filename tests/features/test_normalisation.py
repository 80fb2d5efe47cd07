"""Normalisation: against numpy and torchaudio, blind to padding, on the right axis."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchaudio.functional import sliding_window_cmn

from wedefense_nb.features.cepstra import LFCC
from wedefense_nb.features.normalisation import (
    CMVN,
    Normalised,
    SpeakerCMVN,
    cmvn,
    legacy_cmvn,
    sliding_cmvn,
    window_edges,
)
from wedefense_nb.features.spectra import Fbank, mean_norm

FRAMES = torch.tensor([40, 17, 1])


def feats(*shape, seed=0):
    return 3 + 5 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


WAYS = {
    "mean": cmvn,
    "variance": lambda x, n: cmvn(x, n, variance=True),
    "sliding": lambda x, n: sliding_cmvn(x, n, window=12, variance=True),
    "causal": lambda x, n: sliding_cmvn(x, n, window=12, causal=True, shortest=5),
    "legacy": legacy_cmvn,
}


@pytest.mark.parametrize("variance", [False, True])
def test_cmvn_equals_numpy(variance):
    x = feats(3, 40, 6)
    got = cmvn(x, FRAMES, variance)
    for row, out, n in zip(x.double().numpy(), got.numpy(), FRAMES.tolist(), strict=True):
        want = row[:n] - row[:n].mean(0)
        if variance and n > 1:
            want = want / row[:n].std(0)
        assert np.allclose(out[:n], want, atol=1e-4) and np.abs(out[n:]).max(initial=0) == 0
    assert torch.allclose(cmvn(x, FRAMES), mean_norm(x, FRAMES), atol=1e-5)


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("shape", [(3, 60, 6), (3, 2, 60, 6)])
def test_padding_and_neighbours_change_nothing(name, shape):  # pitfall 57
    if name == "legacy" and len(shape) == 3:
        return
    x = feats(*shape)
    way = WAYS[name]
    dirty = x.clone()
    for row, n in zip(dirty, FRAMES.tolist(), strict=True):
        row[..., n:, :] = torch.nan  # what lies beyond must not matter
    out = way(dirty, FRAMES)
    assert torch.isfinite(out).all() and out.shape == x.shape
    for i, n in enumerate(FRAMES.tolist()):
        alone = way(x[i : i + 1, ..., :n, :], FRAMES[i : i + 1])[0]
        assert torch.allclose(out[i, ..., :n, :], alone, atol=1e-5) and out[i, ..., n:, :].abs().sum() == 0


@pytest.mark.parametrize("name", ["mean", "variance", "sliding", "causal"])
def test_layers_are_normalised_along_time(name):  # pitfall 34
    x = feats(3, 4, 40, 6)
    way = WAYS[name]
    out = way(x, FRAMES)
    for layer in range(4):
        assert torch.allclose(out[:, layer], way(x[:, layer], FRAMES), atol=1e-5)
    if name in ("mean", "variance"):
        assert out[0].mean(1).abs().max() < 1e-5  # over time


def test_legacy_takes_the_mean_over_features():  # pitfall 34
    x = feats(3, 4, 40, 6) + torch.arange(6.0)
    out = legacy_cmvn(x, FRAMES)
    assert out[0].mean(-1).abs().max() < 1e-5 and out[0].mean(1).abs().max() > 1
    wedefense = x.permute(0, 3, 2, 1)  # (B, D, F, L), where the toolkit subtracts the mean of axis 1
    want = (wedefense - wedefense.mean(1, keepdim=True)).permute(0, 3, 2, 1)
    assert torch.allclose(out[0], want[0], atol=1e-6)
    with pytest.raises(ValueError, match="layer-wise"):
        legacy_cmvn(x[:, 0], FRAMES)


@pytest.mark.parametrize("variance", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [1, 7, 100, 600])
@pytest.mark.parametrize("n", [1, 2, 99, 160])
def test_sliding_equals_torchaudio(variance, causal, window, n):
    x = feats(1, n, 5, seed=n)
    got = sliding_cmvn(x, torch.tensor([n]), window, variance, causal)[0].double()
    want = sliding_window_cmn(
        x[0].double(), cmn_window=window, min_cmn_window=100, center=not causal, norm_vars=variance
    )
    want = want.reshape(n, 5)  # torchaudio loses the axis of a single frame
    finite = torch.isfinite(want)  # torchaudio divides 0 by 0 where a window holds one frame or equal ones
    assert torch.allclose(got[finite], want[finite], atol=1e-4) and torch.isfinite(got).all()
    assert finite.all() or variance


@given(st.integers(1, 50), st.integers(1, 60))
def test_windows_have_their_length_wherever_they_can(n, window):
    start, end = window_edges(torch.tensor([n]), 60, window)
    inside = (end - start)[0, :n]
    assert (inside == min(window, n)).all() and start.min() >= 0 and end.max() <= n
    t = torch.arange(n)
    assert ((start[0, :n] <= t) & (t < end[0, :n])).all()


def test_sliding_sums_lose_nothing_to_a_large_offset():
    x = feats(1, 4000, 2)
    frames = torch.tensor([4000])
    got = sliding_cmvn(x + 1000, frames, 300, variance=True)
    assert torch.allclose(got, sliding_cmvn(x, frames, 300, variance=True), atol=2e-3)


def test_a_long_window_is_the_whole_recording():
    x = feats(3, 40, 6)
    for variance in (False, True):
        assert torch.allclose(sliding_cmvn(x, FRAMES, 1000, variance), cmvn(x, FRAMES, variance), atol=1e-4)


def test_gain_and_channel_are_removed():
    wave = 0.1 * torch.randn(2, 8000)
    lengths = torch.tensor([8000, 5000])
    for front in (Normalised(Fbank()), Normalised(Fbank(), variance=True), Normalised(Fbank(), window=30)):
        assert torch.allclose(front(wave, lengths)[0], front(3 * wave, lengths)[0], atol=2e-3)
        assert front.dim == 80 and torch.equal(front.frames(lengths), Fbank().frames(lengths))
    x = feats(3, 40, 6)
    assert torch.allclose(cmvn(x, FRAMES), cmvn(x + torch.arange(6.0), FRAMES), atol=1e-5)
    assert torch.allclose(cmvn(x, FRAMES, True), cmvn(x * torch.arange(1.0, 7), FRAMES, True), atol=1e-4)


@pytest.mark.parametrize("variance", [False, True])
def test_a_speaker_is_its_recordings_joined(variance):
    x = feats(4, 40, 6)
    speakers = ["ann", "bob", "ann", "bob"]
    frames = torch.tensor([40, 11, 30, 40])
    norm = SpeakerCMVN(variance)
    norm.add(x[:2], frames[:2], speakers[:2])
    norm.add(x[2:], frames[2:], speakers[2:])
    out = norm(x, frames, speakers)
    for who in ("ann", "bob"):
        rows = [i for i, s in enumerate(speakers) if s == who]
        joined = torch.cat([x[i, : frames[i]] for i in rows])
        want = (joined - joined.mean(0)) / (joined.std(0, correction=0) if variance else 1)
        assert torch.allclose(torch.cat([out[i, : frames[i]] for i in rows]), want, atol=1e-4)
    assert out[1, 11:].abs().sum() == 0
    with pytest.raises(ValueError, match="carl"):
        norm(x[:1], frames[:1], ["carl"])
    with pytest.raises(ValueError, match="1 speakers"):
        norm.add(x, frames, ["ann"])


def test_speakers_of_layers():
    x = feats(2, 3, 40, 6)
    norm = SpeakerCMVN(True)
    norm.add(x, torch.tensor([40, 20]), ["a", "b"])
    out = norm(x, torch.tensor([40, 20]), ["a", "b"])
    assert torch.allclose(out, cmvn(x, torch.tensor([40, 20]), True), atol=1e-4)


@pytest.mark.parametrize("name", WAYS)
def test_gradients_are_finite_even_without_variance(name):
    x = torch.ones(3, 2, 40, 6, requires_grad=True)
    WAYS[name](x, FRAMES).square().sum().backward()
    assert torch.isfinite(x.grad).all()
    y = feats(3, 2, 40, 6).requires_grad_()
    WAYS[name](y, FRAMES).pow(3).sum().backward()
    assert torch.isfinite(y.grad).all() and y.grad[0].abs().sum() > 0 and y.grad[1, :, 17:].abs().sum() == 0


def test_module_and_its_errors():
    x = feats(3, 4, 40, 6)
    assert torch.equal(CMVN(True)(x, FRAMES), cmvn(x, FRAMES, True))
    assert torch.equal(CMVN(window=9, causal=True)(x, FRAMES), sliding_cmvn(x, FRAMES, 9, causal=True))
    assert torch.equal(CMVN(legacy=True)(x, FRAMES), legacy_cmvn(x, FRAMES))
    cepstra = Normalised(LFCC.preset("nii"))(0.1 * torch.randn(1, 4000), torch.tensor([4000]))[0]
    assert cepstra.shape == (1, 26, 60)
    for wrong in ({"legacy": True, "variance": True}, {"legacy": True, "window": 3}, {"causal": True}):
        with pytest.raises(ValueError):
            CMVN(**wrong)
    for y, n in (
        (x[0, 0], FRAMES),
        (x, FRAMES[:2]),
        (x, torch.tensor([41, 1, 1])),
        (x, torch.tensor([0, 1, 1])),
    ):
        with pytest.raises(ValueError):
            cmvn(y, n)
