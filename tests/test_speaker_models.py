"""Speaker networks as detectors: published sizes, pooling, parts. What all detectors share is in test_models."""

import pytest
import torch

from wedefense_nb.detector import EmbeddingNorm, StatsPool, build
from wedefense_nb.models.speaker_models import Res2Conv, XVector
from wedefense_nb.models.ssl_backends import AttentivePool
from wedefense_nb.models.ssl_networks import ConvReluNorm

PUBLISHED = [
    ("xvector", {}, 4_610_524),
    ("ecapa", {}, 5_797_504),
    ("ecapa", {"channels": 1024}, 14_263_872),
    ("ecapa", {"context": True}, 6_190_720),
    ("ecapa", {"channels": 1024, "context": True}, 14_657_088),
    ("res2net34", {}, 4_689_024),
    ("resnet34", {}, 6_634_336),
]


@pytest.mark.parametrize(("name", "options", "count"), PUBLISHED)
def test_parameter_counts_are_the_published_ones(name, options, count):
    model = build(name, **options)
    assert sum(p.numel() for n, p in model.named_parameters() if not n.startswith("head")) == count


def set_pool(context, dim=5):
    torch.manual_seed(1)
    return AttentivePool(dim, bottleneck=4, context=context, legacy=True)


@pytest.mark.parametrize("context", [False, True])
def test_attentive_pooling_is_the_formula_on_each_recordings_own_frames(context):
    pool, x, frames = set_pool(context), torch.randn(3, 7, 5), torch.tensor([7, 4, 1])
    got = pool(x, frames)
    for i, n in enumerate(frames.tolist()):
        own = x[i, :n]
        seen = torch.cat([own, StatsPool()(own[None], frames[i : i + 1]).expand(n, -1)], 1) if context else own
        alpha = pool.score(torch.tanh(pool.hidden(seen.T))).T.softmax(0)
        mean = (alpha * own).sum(0)
        deviation = ((alpha * own**2).sum(0) - mean**2).clamp(min=0).add(1e-7).sqrt()
        assert torch.allclose(got[i], torch.cat([mean, deviation]), atol=1e-4)


@pytest.mark.parametrize("context", [False, True])
def test_padding_cannot_reach_the_pool(context):
    pool, x, frames = set_pool(context), torch.randn(2, 6, 5), torch.tensor([6, 2])
    before = pool(x, frames)
    for junk in (1e6, float("nan")):
        x[1, 2:] = junk
        assert torch.equal(pool(x, frames), before)


def test_equal_weights_are_statistics_pooling():
    pool, x, frames = set_pool(False), torch.randn(2, 6, 5), torch.tensor([6, 3])
    torch.nn.init.zeros_(pool.score.weight)
    assert torch.allclose(pool(x, frames), StatsPool()(x, frames), atol=1e-6)


def test_one_frame_has_a_finite_gradient():  # pitfall 43
    pool, x = set_pool(True), torch.randn(1, 1, 5, requires_grad=True)
    pool(x, torch.tensor([1])).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_training_statistics_leave_padding_out():  # pitfall 57
    alone, padded = ConvReluNorm(3, 4, 3), ConvReluNorm(3, 4, 3)
    padded.load_state_dict(alone.state_dict())
    x = torch.randn(1, 3, 9)
    wide, mask = torch.nn.functional.pad(x, (0, 6), value=5.0), (torch.arange(15) < 9)[None, None]
    a, b = alone(x, mask[..., :9]), padded(wide, mask)
    assert torch.allclose(a, b[..., :9], atol=1e-6) and torch.allclose(alone.norm.running_var, padded.norm.running_var)


def test_the_view_of_the_x_vector_is_fifteen_frames():
    net, x, frames = XVector(6, width=8).eval(), torch.randn(1, 60, 6), torch.tensor([60])
    other = x.clone()
    other[:, 30] += 1
    changed = (net(x, frames)[0] != net(other, frames)[0]).any(2)[0].nonzero().flatten().tolist()
    assert changed == list(range(23, 38))


def test_res2_convolves_in_a_chain_and_keeps_the_last_group():
    layer, x, mask = Res2Conv(8, 1, scale=4).eval(), torch.randn(1, 8, 5), torch.ones(1, 1, 5, dtype=torch.bool)
    a, b, c, d = x.chunk(4, 1)
    first = layer.convs[0](a, mask)
    second = layer.convs[1](first + b, mask)
    assert torch.allclose(layer(x, mask), torch.cat([first, second, layer.convs[2](second + c, mask), d], 1))
    with pytest.raises(ValueError, match="equal groups"):
        Res2Conv(100, 2)


def test_norm_of_embeddings_takes_one_recording():
    norm, x = EmbeddingNorm(3), torch.randn(4, 3)
    assert torch.allclose(norm(x), torch.nn.BatchNorm1d(3)(x))
    assert torch.allclose(norm(x[:1]), norm.eval()(x[:1]))
