"""Speaker networks as detectors: published sizes and parts. What all detectors promise is in test_promises."""

import pytest
import torch

from wedefense_nb.models.detector import build
from wedefense_nb.models.layers import EmbeddingNorm, StatsPool
from wedefense_nb.models.speaker_models import (
    ECAPA,
    BandFront,
    CAMPlusPlus,
    ContextMask,
    DenseBlock,
    Res2Block,
    Res2Conv,
    SERes2Block,
    XVector,
    segment_means,
)

SMALL = 1 / (1 + 1e-5) ** 0.5  # what a fresh norm multiplies with
PUBLISHED = [
    ("xvector", {}, 4_610_524),
    ("ecapa", {}, 5_797_504),
    ("ecapa", {"channels": 1024}, 14_263_872),
    ("ecapa", {"context": True}, 6_190_720),
    ("ecapa", {"channels": 1024, "context": True}, 14_657_088),
    ("res2net34", {}, 4_689_024),
    ("cam_plus_plus", {}, 7_176_224),
]


@pytest.mark.parametrize(("name", "options", "count"), PUBLISHED)
def test_parameter_counts_are_the_published_ones(name, options, count):
    model = build(name, **options)
    assert sum(p.numel() for n, p in model.named_parameters() if not n.startswith("head")) == count


def test_the_view_of_the_x_vector_is_fifteen_frames():
    net = XVector(6, width=8).eval()
    x = torch.randn(1, 60, 6)
    frames = torch.tensor([60])
    other = x.clone()
    other[:, 30] += 1
    changed = (net(x, frames)[0] != net(other, frames)[0]).any(2)[0].nonzero().flatten().tolist()
    assert changed == list(range(23, 38))


def test_res2_convolves_in_a_chain_and_keeps_the_last_group():
    layer = Res2Conv(8, 1, scale=4).eval()
    x = torch.randn(1, 8, 5)
    mask = torch.ones(1, 1, 5, dtype=torch.bool)
    a, b, c, d = x.chunk(4, 1)
    first = layer.convs[0](a, mask)
    second = layer.convs[1](first + b, mask)
    assert torch.allclose(layer(x, mask), torch.cat([first, second, layer.convs[2](second + c, mask), d], 1))
    with pytest.raises(ValueError, match="equal groups"):
        Res2Conv(100, 2)


def test_a_block_of_ecapa_gates_and_adds():
    block = SERes2Block(16, dilation=2, bottleneck=4).eval()
    x = torch.randn(1, 16, 20)
    mask = torch.ones(1, 1, 20, dtype=torch.bool)
    y = block.after(block.res2(block.before(x, mask), mask), mask)
    assert torch.allclose(block(x, mask), x + block.excitation(y, mask))


def test_ecapa_joins_the_outputs_of_its_three_blocks():
    net = ECAPA(6, channels=16).eval()
    outputs = []
    for block in net.blocks:
        block.register_forward_hook(lambda _, __, out: outputs.append(out))
    x, _ = net(torch.randn(1, 20, 6), torch.tensor([20]))
    assert torch.allclose(x, torch.relu(net.join(torch.cat(outputs, 1))).transpose(1, 2))
    assert [block.res2.convs[0].conv.dilation[0] for block in net.blocks] == [2, 3, 4]


def test_embeddings_of_x_vector_and_ecapa_have_norms_where_published():
    linear, relu, norm, last = build("xvector").embedding
    assert isinstance(relu, torch.nn.ReLU) and not norm.affine and last.in_features == last.out_features == 512
    norm, linear = build("ecapa").embedding
    assert isinstance(norm, EmbeddingNorm) and norm.affine and linear.in_features == 2 * 1536
    assert isinstance(build("xvector").pool, StatsPool) and build("ecapa", context=True).pool.context
    assert all(build(name).front.mean_norm for name in ("xvector", "ecapa", "res2net34", "cam_plus_plus"))


def test_a_block_of_res2net_convolves_one_of_two_groups_and_is_cut_at_20():
    block = Res2Block(8, 4, stride=2).eval()
    x = 10 * torch.randn(1, 8, 6, 10)
    y, frames = block(x, torch.tensor([10]))
    first, second = (SMALL * block.conv1(x)).clamp(0, 20).chunk(2, 1)
    first = (SMALL * block.conv2(first)).clamp(0, 20)
    want = SMALL * block.conv3(torch.cat([first, second], 1)) + SMALL * block.shortcut(x)
    assert frames.item() == 5 and torch.allclose(y, want.clamp(0, 20), atol=1e-4)
    assert block(100 * x, torch.tensor([10]))[0].max() == 20
    assert Res2Block(8, 4).shortcut is None  # 8 channels in and out


def settle(net):
    """Norms that do something in evaluation: random statistics, scales and shifts."""
    for part in net.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            part.running_mean.normal_(std=0.3)
            part.running_var.uniform_(0.5, 2.0)
            if part.affine:
                torch.nn.init.uniform_(part.weight, 0.5, 1.5)
                torch.nn.init.normal_(part.bias, std=0.3)
    return net.eval()


def test_segment_means_use_each_recordings_own_frames():
    x = torch.tensor([[[1.0, 3.0, 5.0, 5.0, 9.0, 70.0, 80.0]]])
    mask = (torch.arange(7) < 5)[None, None]
    assert segment_means(x, mask, 2).flatten().tolist() == [2.0, 5.0, 9.0, 0.0]
    assert segment_means(x[..., :1], mask[..., :1], 100).item() == 1.0


def test_the_context_mask_is_a_loop_over_recordings_and_segments():
    torch.manual_seed(0)
    gate = ContextMask(6, 4, segment=5)
    frames = torch.tensor([23, 15, 7, 1])
    x = torch.randn(4, 6, 23)
    mask = (torch.arange(23) < frames[:, None])[:, None]
    got = gate(x, mask)
    assert got.shape == (4, 4, 23)
    for i, n in enumerate(frames.tolist()):
        own = x[i, :, :n]
        for t in range(n):
            start = 5 * (t // 5)
            context = own.mean(1) + own[:, start : start + 5].mean(1)
            want = torch.sigmoid(gate.excite(torch.relu(gate.squeeze(context[:, None]))))[:, 0]
            assert torch.allclose(got[i, :, t], want, atol=1e-6)


def test_the_published_segment_has_a_hundred_frames():
    contexts = [m for m in CAMPlusPlus(8, growth=4).modules() if isinstance(m, ContextMask)]
    assert len(contexts) == 12 + 24 + 16 and {m.segment for m in contexts} == {100}
    x = torch.randn(1, 16, 250)
    mask = torch.ones(1, 1, 250, dtype=torch.bool)
    steps = contexts[0](x, mask).diff(dim=2).abs().amax((0, 1)).nonzero().flatten()
    assert steps.tolist() == [99, 199]


def test_dense_layers_see_all_former_outputs_and_the_block_halves():
    block = DenseBlock(8, depth=3, growth=4, dilation=2).eval()
    seen = []
    made = []
    for layer in block.layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        layer.register_forward_hook(lambda _, args, out: made.append(out))
    x = torch.randn(2, 8, 9)
    mask = torch.ones(2, 1, 9, dtype=torch.bool)
    y = block(x, mask)
    assert [s.shape[1] for s in seen] == [8, 12, 16] and y.shape == (2, 10, 9) and block.dim == 10
    for i, s in enumerate(seen):
        assert torch.equal(s, torch.cat([x, *made[:i]], 1))
    last = SMALL * torch.cat([x, *made], 1)
    assert torch.allclose(y, block.halve(torch.relu(last)), atol=1e-6)


@pytest.mark.parametrize("bands", [80, 24, 21])
def test_the_picture_front_halves_bands_three_times_and_keeps_frames(bands):
    front = BandFront(bands)
    out = front(torch.randn(2, 11, bands), torch.tensor([11, 6]))
    assert out.shape == (2, 32 * -(-bands // 8), 11) == (2, front.dim, 11)
    assert not out[1, :, 6:].any() and out[1, :, 5].any()


def test_frames_are_halved_rounded_up_with_padding_and_without():
    net = settle(CAMPlusPlus(8, growth=4))
    frames = torch.arange(1, 12)
    x = torch.randn(11, 14, 8) * (torch.arange(14) < frames[:, None])[..., None]
    y, halved = net(x, frames)
    assert halved.tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6] and y.shape == (11, 7, net.dim)
    for i, n in enumerate(frames.tolist()):
        alone, own = net(x[i : i + 1, :n], frames[i : i + 1])
        assert own.item() == alone.shape[1] == halved[i] and torch.allclose(alone[0], y[i, : halved[i]], atol=1e-4)
        assert not y[i, halved[i] :].any()


def test_without_masks_the_view_is_what_the_layers_add_up_to():
    net = settle(CAMPlusPlus(8, growth=4, depths=(2, 1, 1)).double())
    for part in net.modules():
        if isinstance(part, ContextMask):
            torch.nn.init.zeros_(part.excite.weight)
    x = torch.randn(1, 201, 8).double()
    other = x.clone()
    other[:, 100] += 1
    frames = torch.tensor([201])
    changed = (net(x, frames)[0] != net(other, frames)[0]).any(2)[0].nonzero().flatten().tolist()
    reach = 10 + 2 + 2 * (2 * 1 + 1 * 2 + 1 * 2)  # ten 3 x 3 convolutions, the strided one, dense ones at 20 ms
    assert changed == [t for t in range(101) if abs(2 * t - 100) <= reach]


def test_padding_never_changes_recordings_of_several_segments():  # pitfall 57
    torch.manual_seed(0)
    net = settle(build("cam_plus_plus", n_mels=16, growth=8))
    lengths = torch.tensor([16000 * 7, 16000 * 4 + 33])
    wave = 0.1 * torch.randn(2, 16000 * 7)
    labels = torch.tensor([0, 1])
    with torch.no_grad():
        both = net(wave, lengths)
        alone = net(wave[1:, : lengths[1]], lengths[1:])
        assert torch.allclose(both[1:], alone, atol=1e-4)
        net.train()
        padded = torch.nn.functional.pad(wave, (0, 16000 * 3), value=0.3)
        assert torch.allclose(net.loss(wave, lengths, labels), net.loss(padded, lengths, labels), atol=1e-4)


def published(net, x):
    """CAM++ for one recording (F, D) from the paper's description, in plain torch and without any mask."""
    f = torch.nn.functional

    def norm(part, x):
        return f.batch_norm(x, part.running_mean, part.running_var, part.weight, part.bias)

    def res(block, x, stride):
        y = norm(block.norm1, f.conv2d(x, block.conv1.weight, stride=(stride, 1), padding=1)).relu()
        y = norm(block.norm2, f.conv2d(y, block.conv2.weight, padding=1))
        if stride == 2:
            x = norm(block.norm3, f.conv2d(x, block.shortcut.weight, stride=(2, 1)))
        return (x + y).relu()

    front = net.front
    x = x.T[None, None]
    x = norm(front.norm, f.conv2d(x, front.stem.weight, padding=1)).relu()
    for block, stride in zip(front.blocks, (2, 1, 2, 1), strict=True):
        x = res(block, x, stride)
    x = norm(front.last_norm, f.conv2d(x, front.last.weight, stride=(2, 1), padding=1)).relu().flatten(1, 2)
    x = norm(net.enter_norm, f.conv1d(x, net.enter.weight, stride=2, padding=2)).relu()
    for block, dilation in zip(net.blocks, (1, 2, 2), strict=True):
        for layer in block.layers:
            y = f.conv1d(norm(layer.norm1, x).relu(), layer.squeeze.weight)
            y = norm(layer.norm2, y).relu()
            segment = torch.cat([p.mean(2, keepdim=True).expand_as(p) for p in y.split(100, 2)], 2)
            gate = layer.context.squeeze(y.mean(2, keepdim=True) + segment).relu()
            gate = layer.context.excite(gate).sigmoid()
            x = torch.cat([x, gate * f.conv1d(y, layer.conv.weight, padding=dilation, dilation=dilation)], 1)
        x = f.conv1d(norm(block.norm, x).relu(), block.halve.weight)
    return norm(net.norm, x).relu()[0].T


def test_cam_plus_plus_is_the_published_network():
    torch.manual_seed(0)
    net = settle(CAMPlusPlus(80))
    x = torch.randn(1, 431, 80)
    with torch.no_grad():
        got, frames = net(x, torch.tensor([431]))
        want = published(net, x[0])
    assert got.shape == (1, 216, 512) and torch.allclose(got[0], want, atol=1e-3 * want.abs().max())


def test_cam_plus_plus_has_biases_only_in_masks_and_norms_and_a_plain_last_norm():
    model = build("cam_plus_plus")
    linear, norm = model.embedding
    assert linear.bias is None and not norm.affine
    biases = {n for n, _ in model.backbone.named_parameters() if n.endswith("bias") and "norm" not in n}
    assert len(biases) == 2 * 52 and all(".context." in n for n in biases)
