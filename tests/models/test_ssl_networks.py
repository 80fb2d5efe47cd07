"""Networks on self-supervised features: published counts, and parts against plain versions."""

from dataclasses import asdict

import pytest
import torch
from torch import nn

from tests.features.ssl_files import STILL
from wedefense_nb.features.pretrained import TINY
from wedefense_nb.models.detector import build
from wedefense_nb.models.layers import Excitation
from wedefense_nb.models.ssl_networks import (
    GMLP,
    AttentiveGraph,
    GMLPBlock,
    InnerRes2,
    NarrowGraph,
    Nes2Net,
    Res1D,
    TimeGate,
    patch_max,
)

SMALL = 1 / (1 + 1e-5) ** 0.5  # what a fresh norm multiplies with


def size(*parts):
    return sum(p.numel() for part in parts for p in part.parameters())


def whole(frames):
    """A mask (1, 1, frames) without padding."""
    return torch.ones(1, 1, frames, dtype=torch.bool)


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("ssl_res1d", {"legacy": True}, 5_646_592),
        ("ssl_nes2net_x", {"legacy": True}, 571_797),
        ("ssl_aasist", {"legacy": "wedefense"}, 487_624),
        ("ssl_gmlp", {"legacy": True}, 374_698),
    ],
)
def test_published_counts_before_the_head(name, options, count):
    model = build(name, upstream={"stored": {"dim": 1024, "states": 0}}, **options)
    assert size(model.backbone, model.pool, model.embedding) == count


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("ssl_nes2net", {}, 510_769 + 1025),
        ("ssl_nes2net_x", {}, 512_039),
        ("ssl_aasist", {"legacy": True}, 447_242),
        # the published attentive forms have one bias a feature that a softmax over time cancels
        ("ssl_nes2net", {"pool": "attentive"}, 775_089 + 2049 - 1024),
        ("ssl_nes2net_x", {"pool": "attentive"}, 775_334 + 2049 - 1024),
    ],
)
def test_published_counts_with_the_head(name, options, count):
    model = build(name, upstream={"stored": {"dim": 1024, "states": 0}}, **options)
    assert size(model.backbone, model.pool, model.embedding, model.head) == count


def test_what_cannot_be_built_is_said():
    with pytest.raises(ValueError, match="32 features cannot be split into 8 × 8"):
        build("ssl_nes2net", **STILL)
    with pytest.raises(ValueError, match="halved 5 times"):
        build("ssl_gmlp", **STILL)
    with pytest.raises(ValueError, match="legacy must be"):
        build("ssl_aasist", **STILL, legacy="tak")


# Res1D


def test_res1d_is_three_convolutions_a_gate_and_a_shortcut():
    net = Res1D(6, 4).eval()
    x = torch.randn(1, 9, 6)
    mask = whole(9)
    y = x.transpose(1, 2)
    for conv in net.convs:
        y = SMALL * torch.relu(conv.conv(y))
    want = net.project(x.transpose(1, 2) + net.excitation(y, mask))
    assert torch.allclose(net(x, torch.tensor([9]))[0], want.transpose(1, 2), atol=1e-5)


# Nes2Net


def test_groups_are_convolved_in_a_chain():
    net = InnerRes2(8, groups=4, dilation=1, hidden=3, weighted=False).eval()
    x = torch.randn(1, 8, 9)
    a, b, c, last = net.enter(x, whole(9)).chunk(4, 1)
    done = []
    for group, conv in zip((a, b, c), net.convs, strict=True):
        group = group + done[-1] if done else group
        done.append(SMALL * torch.relu(conv(group[..., None])[..., 0]))
    want = x + net.excitation(net.leave(torch.cat([*done, last], 1), whole(9)), whole(9))
    assert torch.allclose(net(x, whole(9)), want, atol=1e-5)


def test_groups_of_the_x_form_lie_side_by_side():
    net = InnerRes2(8, groups=4, dilation=1, hidden=3, weighted=True).eval()
    for weights in net.sums:
        weights.data = torch.rand_like(weights)
    x = torch.randn(1, 8, 9)
    a, b, c, last = net.enter(x, whole(9)).chunk(4, 1)
    columns = [last]
    done = []
    for group, conv, weights in zip((a, b, c), net.convs, net.sums, strict=True):
        columns = [SMALL * torch.relu(conv(column[..., None])[..., 0]) for column in [*columns, group]]
        done.append(sum(w * column for w, column in zip(weights.flatten(), columns, strict=True)))
    want = x + net.excitation(net.leave(torch.cat([*done, last], 1), whole(9)), whole(9))
    assert torch.allclose(net(x, whole(9)), want, atol=1e-5)
    assert [w.numel() for w in net.sums] == [2, 3, 4]


def test_fresh_weights_of_the_x_form_average():
    net = InnerRes2(64, groups=8, dilation=1, hidden=3, weighted=True)
    assert all(torch.allclose(w.sum(), torch.ones(())) for w in net.sums)


def test_the_outer_chain_is_that_of_the_inner_one():
    net = Nes2Net(16, groups=4, inner=2).eval()
    x = torch.randn(1, 9, 16)
    *groups, last = x.transpose(1, 2).chunk(4, 1)
    done = []
    for group, inner in zip(groups, net.nets, strict=True):
        group = group + done[-1] if done else group
        done.append(SMALL * torch.relu(inner(group, whole(9))))
    want = torch.relu(SMALL * torch.cat([*done, last], 1)).transpose(1, 2)
    assert torch.allclose(net(x, torch.tensor([9]))[0], want, atol=1e-5)


@pytest.mark.parametrize("dilation", [1, 2])
def test_nes2net_hears_about_a_second(dilation):
    """Seven convolutions of three frames in each of seven nested networks: 49 frames to both sides."""
    net = Nes2Net(128, groups=8, inner=8, dilation=dilation).eval().double()
    for part in net.modules():  # without squeeze and excitation, which sees everything
        if isinstance(part, Excitation):
            part.forward = lambda x, mask: x
    for parameter in net.parameters():
        parameter.data.abs_()  # so that no ReLU hides anything
    x = torch.rand(1, 401, 128, requires_grad=True, dtype=torch.double)
    net(x, torch.tensor([401]))[0][0, 200].sum().backward()
    seen = x.grad[0].abs().sum(1).nonzero()[:, 0]
    assert seen.min() == 200 - 49 * dilation and seen.max() == 200 + 49 * dilation


def test_hidden_channels_of_the_excitation_follow_the_ratio():
    nets = Nes2Net(64, groups=4, inner=4, se_ratio=8).nets
    assert {net.excitation.squeeze.out_channels for net in nets} == {2}
    legacy = build("ssl_nes2net_x", upstream={"stored": {"dim": 64, "states": 0}}, legacy=True, groups=4, inner=4)
    assert legacy.backbone.nets[0].excitation.squeeze.out_channels == 2


# SSL-AASIST


def test_patches_by_hand():
    x = torch.arange(20.0).reshape(1, 5, 4)
    y, n = patch_max(x, torch.tensor([3]), 2)
    assert n.tolist() == [1] and y[0, 0].tolist() == [5.0, 7.0] and y[0, 1].tolist() == [0.0, 0.0]
    y, n = patch_max(x, torch.tensor([5]), 2, pad=1)
    assert n.tolist() == [3] and y[0, :, 0].tolist() == [1.0, 9.0, 17.0]
    assert patch_max(x[:, :1], torch.tensor([1]), 3)[0].tolist() == [[[2.0]]]


def test_padding_never_is_the_maximum():
    x = -1 - torch.rand(2, 6, 4)  # every real value is below zero
    y, n = patch_max(x, torch.tensor([6, 3]), 2)
    assert n.tolist() == [3, 1] and (y[0] < 0).all() and torch.equal(y[1, 0, 0], x[1, :2, :2].max())
    y, n = patch_max(x[:1], torch.tensor([6]), 2, pad=1)  # half of the first patch is before the recording
    assert n.tolist() == [4] and torch.equal(y[0, 0, 0], x[0, 0, :2].max())


def test_maps_of_ssl_aasist():
    net = NarrowGraph(8).eval()
    x = torch.randn(1, 9, 8)
    frames = torch.tensor([9])
    patches = net.narrow(x)[:, :, :126].unflatten(1, (3, 3)).unflatten(3, (42, 3)).amax((2, 4))
    maps, n = net(x, frames)
    assert n.tolist() == [3] and torch.allclose(maps, net.encoder(patches, n)[0], atol=1e-5)


def test_nodes_of_ssl_aasist_are_means_with_learned_shares():
    graph = AttentiveGraph(bands=3, channels=4).eval()
    x = torch.randn(2, 7, 4 * 3)
    frames = torch.tensor([7, 5])
    given = []
    graph.attend_s.register_forward_pre_hook(lambda _, args: given.append(args[0] - graph.position))
    graph.attend_t.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    graph(x, frames)
    bands, times = given
    for i, n in enumerate(frames.tolist()):
        maps = torch.selu(SMALL * x[i, :n].reshape(n, 4, 3).permute(1, 2, 0))[None]  # (1, C, S, n)
        scores = graph.score(SMALL * torch.selu(graph.hidden(maps)))
        want = (maps * scores.softmax(3)).sum(3)[0].T
        assert torch.allclose(bands[i], want, atol=1e-5)
        want = (maps * scores.softmax(2)).sum(2)[0].T
        assert torch.allclose(times[i, :n], want, atol=1e-5)


def test_ssl_antispoofing_hears_raw_waves():  # pitfall 30
    model = build("ssl_aasist", upstream=asdict(TINY), legacy=True)
    assert TINY.normalize and not model.front.config.normalize and not model.config["upstream"]["normalize"]
    assert build("ssl_aasist", upstream=asdict(TINY)).front.config.normalize


def test_forms_of_ssl_aasist():  # pitfall 40
    stored = {"upstream": {"stored": {"dim": 8, "states": 0}}}
    ours = build("ssl_aasist", **stored)
    tak = build("ssl_aasist", **stored, legacy=True)
    theirs = build("ssl_aasist", **stored, legacy="wedefense")
    assert not any(block.dead for block in ours.backbone.encoder.blocks)
    assert [block.dead for block in tak.backbone.encoder.blocks] == [False] + 5 * [True]
    assert all(block.norm1 is None for block in theirs.backbone.encoder.blocks)
    assert ours.pool.score.bias is None and tak.pool.score.bias is not None
    assert theirs.embedding.out_features == 256 and isinstance(tak.embedding, nn.Identity)
    assert {p.ratio for b in ours.pool.branches for p in (b.pool_s, b.pool_t)} == {0.5}
    assert (ours.pool.pool_s.ratio, ours.pool.pool_t.ratio) == (0.5, 0.5)
    assert build("ssl_aasist", **STILL, samples=9000).front.samples == 9000


# gMLP


def test_the_relative_gate_is_a_matrix_of_distances():
    gate = TimeGate(6, steps=4)
    x = torch.randn(2, 9, 6)
    frames = torch.tensor([9, 5])
    mask = (torch.arange(9) < frames[:, None])[..., None]
    at = torch.arange(9)
    distance = at[None] - at[:, None]
    inside = distance.abs() < 4
    matrix = torch.where(inside, gate.weight[0, 0][(distance + 3).clamp(0, 6)], 0.0)
    assert torch.allclose(gate(x, frames), matrix @ (gate.norm(x) * mask) + gate.bias, atol=1e-6)


def test_the_published_gate_is_a_matrix_of_positions():
    gate = TimeGate(6, steps=9, legacy=True)
    x = torch.randn(1, 7, 6)
    want = torch.einsum("ij,bjc->bic", gate.weight[:7, :7], gate.norm(x)) + gate.bias[:7, None]
    assert torch.allclose(gate(x, torch.tensor([7])), want, atol=1e-6)
    with pytest.raises(ValueError, match="takes 9 steps at most, not 10"):
        gate(torch.randn(1, 10, 6), torch.tensor([10]))


def test_half_of_the_features_gates_the_other():
    block = GMLPBlock(16, steps=5)
    x = torch.randn(1, 7, 16)
    frames = torch.tensor([7])
    y = nn.functional.gelu(block.enter(block.norm(x)))
    want = x + block.leave(y[..., :4] * block.gate(y[..., 4:], frames))
    assert torch.allclose(block(x, frames), want, atol=1e-6)


def test_time_and_features_are_halved_five_times():
    net = GMLP(128).eval()
    steps = []
    for linear in net.scales:
        linear.register_forward_hook(lambda _, __, out: steps.append(tuple(out.shape[1:])))
    x, n = net(torch.randn(2, 150, 128), torch.tensor([150, 40]))
    assert steps == [(75, 64), (37, 32), (18, 16), (9, 8), (4, 4)] and n.tolist() == [4, 1]
    legacy = GMLP(128, legacy=True).eval()
    assert legacy(torch.randn(1, 150, 128), torch.tensor([150]))[1].tolist() == [5]  # padded before the fifth
    assert legacy.blocks[0].gate.steps == 62 and GMLP(128, scale=3).blocks[0].gate.steps == 250
    with pytest.raises(ValueError, match="takes 62 steps at most, not 64"):  # pitfall 42
        legacy(torch.randn(1, 63 * 32, 128), torch.tensor([63 * 32]))
