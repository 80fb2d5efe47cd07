"""What every front end promises, whatever it computes: one line in `FRONTS` puts it under all tests."""

from dataclasses import asdict, replace

import pytest
import torch

from wedefense_nb.features.cepstra import LFCC, MFCC, PRESETS
from wedefense_nb.features.phase import (
    ComplexSpectrogram,
    GroupDelay,
    InstantaneousFrequency,
    JointFront,
    ModifiedGroupDelay,
    PhaseDifference,
    PulseCoherence,
    RelativePhase,
)
from wedefense_nb.features.pretrained import TINY
from wedefense_nb.features.sinc import sinc
from wedefense_nb.features.spectra import FRONT_ENDS, Fbank, LogSpectrogram, make_front
from wedefense_nb.features.upstreams import Upstream

# Front end and the shortest recording that it takes, in samples.
FRONTS = {
    "log_spectrogram": (LogSpectrogram(), 400),
    "log_spectrogram, long": (LogSpectrogram(1024, 100, 2048, mean_norm=True), 1024),
    "fbank": (Fbank(80), 400),
    "fbank, mean": (Fbank(80, mean_norm=True), 400),
    "mfcc": (MFCC(), 400),
    "mfcc, all": (MFCC(20, 40, 0.0, 2, True), 400),
    **{f"lfcc, {name}": (LFCC.preset(name), 512 if name == "torchaudio" else 1) for name in PRESETS},
    "sinc": (sinc(), 131),
    "group_delay": (GroupDelay(), 128),
    "group_delay, long": (GroupDelay(400, 160, 512, 40, spread=False, mean_norm=True), 400),
    "modified_group_delay": (ModifiedGroupDelay(), 400),
    "instantaneous_frequency": (InstantaneousFrequency(), 400),
    "phase_difference": (PhaseDifference(), 480),
    "relative_phase": (RelativePhase(), 512),
    "complex_spectrogram": (ComplexSpectrogram(), 64),
    "pulse_coherence": (PulseCoherence(), 304),
    "joint": (JointFront(), 304),
    "upstream": (Upstream(asdict(replace(TINY, dropout=0.0, layerdrop=0.0))), 400),
    "upstream, all": (Upstream(asdict(TINY), layers="all"), 400),
}
each = pytest.mark.parametrize("name", FRONTS)


def noise(*shape, seed=0):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_every_registered_front_end_is_listed():
    assert set(FRONT_ENDS) == {name.split(",")[0] for name in FRONTS}


@each
def test_a_hop_later_there_is_one_frame_more(name):
    front = FRONTS[name][0]
    lengths = torch.tensor([16000]) + front.hop * torch.arange(4)
    frames = front(noise(4, int(lengths.max())), lengths)[1]
    assert frames.diff().tolist() == [1, 1, 1]


@each
def test_padding_and_neighbours_change_nothing(name):  # pitfall 57
    front = FRONTS[name][0].eval()
    waves = [noise(n, seed=n) for n in (16000, 9123, 1200)]
    wave = torch.full((3, 18000), 7.0)  # what lies beyond the end must not matter
    for row, w in zip(wave, waves, strict=True):
        row[: len(w)] = w
    if name.startswith("upstream"):  # networks are given zeros there, as `collate` writes them
        wave[wave == 7.0] = 0
    with torch.no_grad():
        feats, frames = front(wave, torch.tensor([len(w) for w in waves]))
        for i, w in enumerate(waves):
            alone, n = front(w[None], torch.tensor([len(w)]))
            assert frames[i] == n == alone.shape[-2] and feats.shape[-1] == alone.shape[-1] == front.dim
            assert torch.allclose(feats[i, ..., :n, :], alone[0], atol=1e-4)
            assert not feats[i, ..., n:, :].any()
    if hasattr(front, "frames"):
        assert torch.equal(front.frames(torch.tensor([len(w) for w in waves])), frames), "known without running"


@each
def test_gradients_reach_every_sample_and_silence_is_finite(name):
    front = FRONTS[name][0].eval()
    wave = noise(1, 4000).requires_grad_()
    front(wave, torch.tensor([4000]))[0].square().sum().backward()
    assert torch.isfinite(wave.grad).all() and (wave.grad[0, 200:3500] != 0).float().mean() > 0.9
    assert torch.isfinite(front(torch.zeros(1, 4000), torch.tensor([4000]))[0]).all()


@each
def test_wrong_shapes_and_lengths_are_refused(name):
    front, shortest = FRONTS[name]
    for wave, lengths in [
        (noise(4000), [4000]),
        (noise(2, 4000), [4000]),
        (noise(1, 4000), [4001]),
        (noise(1, 4000), [shortest - 1]),
    ]:
        with pytest.raises(ValueError):
            front(wave, torch.tensor(lengths))
    assert front(noise(1, 4000), torch.tensor([shortest]))[1].item() == 1


def test_names_and_options_are_checked():
    assert make_front("fbank", n_mels=40).dim == 40 and make_front("lfcc", preset="air").options.energy is False
    with pytest.raises(ValueError, match="unknown front end 'fbnk': did you mean 'fbank'"):
        make_front("fbnk")
    with pytest.raises(ValueError, match="n_mel"):
        make_front("fbank", n_mel=40)
