"""LCNN-LSTM and ResNets: published sizes, steps, and parts against plain versions."""

import pytest
import torch
from torch import nn

from wedefense_nb.features.spectra import Fbank
from wedefense_nb.models.cnn import LCNN, ConvMFM, ResBlock, ResNet, mfm
from wedefense_nb.models.detector import Detector, build
from wedefense_nb.models.layers import StatsPool


def size(module):
    return sum(p.numel() for p in module.parameters())


PUBLISHED = [
    ("lcnn_lstm", {}, 275_840),
    ("lcnn_lstm", {"feature": "fbank", "pool": "stats", "embed_dim": 256}, 549_440),
    ("resnet18", {}, 4_105_440),
    ("resnet34", {}, 6_634_336),
]


@pytest.mark.parametrize(("name", "options", "count"), PUBLISHED)
def test_parameter_counts_are_the_published_ones(name, options, count):
    model = build(name, **options)
    assert size(model) - size(model.head) == count


def test_resnet34_is_a_resnet_of_sixteen_blocks():
    model = Detector(Fbank(), ResNet(80, (3, 4, 6, 3)), StatsPool(), 256)
    theirs = build("resnet34")
    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert shapes == {name: p.shape for name, p in theirs.named_parameters()}
    assert theirs.front.mean_norm and build("resnet18").front.mean_norm


def test_max_feature_map_by_hand():
    x = torch.tensor([1.0, 5.0, 3.0, 2.0]).view(1, 4, 1, 1)
    assert mfm(x).flatten().tolist() == [3, 5]


def test_output_steps():
    frames = torch.tensor([301, 15, 16, 47])
    x, n = LCNN(60).eval()(torch.randn(4, 301, 60), frames)
    assert n.tolist() == [18, 1, 1, 2] and x.shape == (4, 18, 96)
    x, n = ResNet(80).eval()(torch.randn(4, 301, 80), frames)
    assert n.tolist() == [38, 2, 2, 6] and x.shape == (4, 38, 2560)
    with pytest.raises(ValueError, match="at least 16"):
        LCNN(12)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_a_block_never_sees_padding(pool, norm):
    block = ConvMFM(2, 3, kernel=3, pool=pool, norm=norm).eval()
    for n in (1, 2, 5, 10):
        x = torch.randn(1, 2, n, 6)
        padded = nn.functional.pad(x, (0, 0, 0, 8), value=7.0) * (torch.arange(n + 8) < n)[:, None]
        alone, _ = block(nn.functional.pad(x, (0, 0, 0, 1)), torch.tensor([n]))  # two rows, or nothing to pool
        y, frames = block(padded, torch.tensor([n]))
        k = max(n // 2, 1) if pool else n
        assert frames.item() == k and torch.allclose(y[:, :, :k], alone[:, :, :k], atol=1e-6)
        assert not y[:, :, k:].any()


def test_a_residual_block_is_two_convolutions_and_a_shortcut():
    block = ResBlock(4, 6, stride=2).eval()
    x = torch.randn(2, 4, 8, 10)
    y, frames = block(x, torch.tensor([10, 10]))
    small = 1 / (1 + 1e-5) ** 0.5  # a fresh norm
    want = small * block.conv2(torch.relu(small * block.conv1(x))) + small * block.shortcut(x)
    assert frames.tolist() == [5, 5] and torch.allclose(y, torch.relu(want), atol=1e-5)
    same = ResBlock(4, 4)
    assert same.shortcut is None and same.norm3 is None
    y, _ = same.eval()(x, torch.tensor([10, 10]))
    want = small * same.conv2(torch.relu(small * same.conv1(x))) + x
    assert torch.allclose(y, torch.relu(want), atol=1e-5)


def test_stages_double_the_channels_and_halve_the_axes():
    seen = []
    net = ResNet(16, (1, 2, 1, 1)).eval()
    for block in net.blocks:
        block.register_forward_hook(lambda _, __, out: seen.append((*out[0].shape[1:], out[1].item())))
    x, _ = net(torch.randn(1, 21, 16), torch.tensor([21]))
    assert seen == [(32, 16, 21, 21), (64, 8, 11, 11), (64, 8, 11, 11), (128, 4, 6, 6), (256, 2, 3, 3)]
    assert x.shape == (1, 3, 512) and net.dim == 512


def test_steps_are_flattened_channel_by_channel():
    net = ResNet(16, (1, 1, 1, 1)).eval()
    maps = []
    net.blocks[-1].register_forward_hook(lambda _, __, out: maps.append(out[0]))
    x, _ = net(torch.randn(1, 24, 16), torch.tensor([24]))
    assert torch.equal(x[0, 2], maps[0][0, :, :, 2].flatten())


def test_the_lstm_corrects_what_it_reads():
    net = LCNN(32).eval()
    for part in net.lstm.parameters():
        nn.init.zeros_(part)  # it answers nothing
    seen = []
    net.blocks[-1].register_forward_hook(lambda _, __, out: seen.append(out[0]))
    x, _ = net(torch.randn(1, 64, 32), torch.tensor([64]))
    assert torch.allclose(x, seen[0].transpose(1, 2).flatten(2))


def test_features_of_the_lcnn_by_name():
    assert build("lcnn_lstm").front.dim == 60
    assert isinstance(build("lcnn_lstm", feature="fbank", feature_options={"n_mels": 40}).front, Fbank)
    with pytest.raises(ValueError, match="unknown pool 'max'"):
        build("lcnn_lstm", pool="max")
