"""RawNet2 in both published forms: sizes, dead norms, channel scaling, the state at the recording's own end."""

import pytest
import torch
from torch import nn

from wedefense_nb.features.sinc import sinc_edges
from wedefense_nb.models.detector import build
from wedefense_nb.models.rawnet2 import ChannelScale, LastState, RawNet, WaveBlock


def test_published_parameter_counts():
    for legacy in (True, False):
        for name, want in (("rawnet2", 17_621_410), ("rawnet2_2019", 25_433_602)):
            assert sum(p.numel() for p in build(name, legacy=legacy).parameters()) == want


def test_dead_norms_are_those_of_2021():  # pitfall 40
    dead = {n: p.numel() for n, p in build("rawnet2", legacy=True).named_parameters() if not p.requires_grad}
    assert len(dead) == 10 and sum(dead.values()) == 848
    assert all(p.requires_grad for p in build("rawnet2_2019", legacy=True, hidden=8).parameters())
    alive = WaveBlock(4, 4)
    legacy = WaveBlock(4, 4, legacy=True)
    legacy.load_state_dict(alive.state_dict())
    x = torch.randn(1, 4, 30)
    frames = torch.tensor([30])
    assert not torch.allclose(alive.eval()(x, frames)[0], legacy.eval()(x, frames)[0])


def test_a_block_is_norm_leaky_relu_convolution_twice_and_a_shortcut():
    block = WaveBlock(4, 6).eval()
    x = torch.randn(1, 4, 9)
    frames = torch.tensor([9])
    small = 1 / (1 + 1e-5) ** 0.5  # a fresh norm
    leaky = nn.LeakyReLU(0.3)
    y = block.conv2(leaky(small * block.conv1(leaky(small * x)))) + block.shortcut(x)
    want = block.scale(y.unflatten(2, (3, 3)).amax(3), torch.tensor([3]))
    assert torch.allclose(block(x, frames)[0], want, atol=1e-5)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_block_never_sees_padding(legacy):
    block = WaveBlock(3, 5, legacy=legacy).eval()
    for n in (1, 2, 3, 10):
        x = torch.randn(1, 3, n)
        y, frames = block(nn.functional.pad(x, (0, 8)), torch.tensor([n]))
        alone, _ = block(x, torch.tensor([n]))
        k = max(n // 3, 1)
        assert frames.item() == k and torch.allclose(y[..., :k], alone, atol=1e-6) and not y[..., k:].any()


def test_the_backbone_norms_before_and_after_its_blocks():
    net = RawNet(4, (4, 6)).eval()
    x = torch.randn(1, 18, 4)
    frames = torch.tensor([18])
    small = 1 / (1 + 1e-5) ** 0.5
    y = torch.selu(small * x.transpose(1, 2))
    n = frames
    for block in net.blocks:
        y, n = block(y, n)
    got, left = net(x, frames)
    assert left.tolist() == [2] and torch.allclose(got, torch.selu(small * y).transpose(1, 2), atol=1e-6)
    assert net.blocks[0].norm1 is None and net.blocks[1].norm1 is not None


def test_filters_of_both_forms():  # pitfall 47
    assert torch.equal(
        build("rawnet2", hidden=8).front.filters, build("rawnet2", legacy=True, hidden=8).front.filters
    )
    top = []
    for legacy in (False, True):
        last = build("rawnet2_2019", legacy=legacy, hidden=8).front.filters[-1, 0].double()
        top.append(float((torch.fft.rfft(last, 16000).abs() > 0.5).nonzero().max()))
    assert abs(top[0] - 8000) < 30 and abs(top[1] - 7669) < 60
    assert float(sinc_edges(130)[128]) == pytest.approx(7669, abs=1)
    with pytest.raises(ValueError, match="another sign"):
        build("rawnet2_2019", legacy=True, scale="inverse_mel")


def test_channel_scale_by_hand():
    scale = ChannelScale(2)
    nn.init.eye_(scale.gate.weight)
    nn.init.zeros_(scale.gate.bias)
    x = torch.tensor([[[1.0, 3.0, 100.0], [0.0, 0.0, 100.0]]])
    got = scale(x, torch.tensor([2]))
    s = torch.sigmoid(torch.tensor([2.0, 0.0]))
    assert torch.allclose(got[0, 0], torch.tensor([s[0] + s[0], 3 * s[0] + s[0], 0.0]))
    assert torch.allclose(got[0, 1], torch.tensor([0.5, 0.5, 0.0]))


def test_the_state_is_that_of_the_last_own_step():
    pool = LastState(4, 6, layers=2).eval()
    x = torch.randn(3, 9, 4)
    got = pool(x, torch.tensor([9, 4, 1]))
    for i, n in enumerate((9, 4, 1)):
        assert torch.allclose(got[i], pool.gru(x[i : i + 1, :n])[0][0, -1], atol=1e-6)


def test_steps_of_the_published_length():
    front = build("rawnet2", hidden=8).front
    feats, frames = front(0.1 * torch.randn(1, 64600), torch.tensor([64600]))
    x, n = RawNet(20, (20, 20, 128, 128, 128, 128)).eval()(feats, frames)
    assert frames.item() == 21192 and n.item() == 29 and x.shape == (1, 29, 128)


def test_fixed_samples_hear_the_beginning():
    model = build("rawnet2", hidden=8, samples=8000).eval()
    wave = 0.1 * torch.randn(1, 12000)
    with torch.no_grad():
        whole = model(wave, torch.tensor([12000]))
        assert torch.equal(model(wave[:, :8000], torch.tensor([8000])), whole)
