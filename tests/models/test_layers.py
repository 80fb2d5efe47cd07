"""Pooling and norms against their formulas on each recording alone, whatever lies in the padding."""

import pytest
import torch
from torch import nn

from wedefense_nb.models.layers import (
    POOLS,
    AttentivePool,
    ConvReluNorm,
    EmbeddingNorm,
    Excitation,
    Identity,
    MaskedBatchNorm,
    MeanPool,
    SelfWeightedPool,
    StatsPool,
    make_pool,
    masked_norm,
    shared_stats,
    time_shares,
)

each_pool = pytest.mark.parametrize("name", POOLS)


# Pooling


@each_pool
def test_pools_leave_padding_out_and_are_finite(name):  # pitfalls 43, 57
    pool = make_pool(name, 12)
    x = torch.randn(3, 20, 12)
    frames = torch.tensor([20, 7, 1])
    x.requires_grad_()
    out = pool(x, frames)
    assert out.shape == (3, pool.out_dim(12)) and torch.isfinite(out).all()
    out.square().sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad[1, 7:].abs().sum() == 0 and x.grad[2, 1:].abs().sum() == 0
    alone = [pool(x[i : i + 1, :n], frames[i : i + 1]) for i, n in enumerate(frames.tolist())]
    assert torch.allclose(out, torch.cat(alone), atol=1e-5)


@each_pool
@pytest.mark.parametrize("junk", [1e6, float("inf"), float("nan")])
def test_padding_may_hold_anything(name, junk):
    pool = make_pool(name, 5)
    x = torch.randn(2, 6, 5)
    frames = torch.tensor([6, 2])
    before = pool(x, frames)
    x[1, 2:] = junk
    assert torch.equal(pool(x, frames), before)


@each_pool
def test_pools_know_no_order(name):
    pool = make_pool(name, 5)
    x = torch.randn(1, 9, 5)
    frames = torch.tensor([9])
    assert torch.allclose(pool(x.flip(1), frames), pool(x, frames), atol=1e-5)


def test_pools_by_hand():
    x = torch.tensor([[[1.0], [2.0], [3.0], [99.0]]])
    frames = torch.tensor([3])
    mean_and_deviation = torch.tensor([[2.0, (2 / 3) ** 0.5]])
    assert MeanPool()(x, frames).item() == 2.0
    assert torch.allclose(StatsPool()(x, frames), mean_and_deviation)
    assert torch.allclose(StatsPool(correction=1)(x, frames), torch.tensor([[2.0, 1.0]]))
    for pool in (SelfWeightedPool(1, deviation=True), AttentivePool(1), AttentivePool(1, context=True)):
        nn.init.zeros_(pool.score.weight)  # equal scores
        assert torch.allclose(pool(x, frames), mean_and_deviation)


def test_the_deviation_of_one_frame_is_nearly_zero():  # pitfall 43
    x = torch.tensor([[[4.0], [99.0]]])
    for pool in (StatsPool(), StatsPool(correction=1)):
        mean, deviation = pool(x, torch.tensor([1]))[0].tolist()
        assert mean == 4.0 and deviation == pytest.approx(1e-7**0.5, rel=1e-3)


def test_self_weighted_pooling_is_the_formula():
    pool = SelfWeightedPool(4)
    x = torch.randn(1, 5, 4)
    shares = torch.tanh(x @ pool.score.weight[0]).softmax(1)[0]
    assert torch.allclose(pool(x, torch.tensor([5]))[0], (shares[:, None] * x[0]).sum(0), atol=1e-6)
    with_deviation = SelfWeightedPool(4, deviation=True)
    with_deviation.load_state_dict(pool.state_dict())
    both = with_deviation(x, torch.tensor([5]))
    assert both.shape == (1, 8) and torch.equal(both[:, :4], pool(x, torch.tensor([5])))


def attentive(context, dim=5):
    torch.manual_seed(1)
    return AttentivePool(dim, bottleneck=4, context=context, legacy=True)


@pytest.mark.parametrize("context", [False, True])
def test_attentive_pooling_is_the_formula_on_each_recordings_own_frames(context):
    pool = attentive(context)
    x = torch.randn(3, 7, 5)
    frames = torch.tensor([7, 4, 1])
    got = pool(x, frames)
    for i, n in enumerate(frames.tolist()):
        own = x[i, :n]
        seen = own
        if context:
            seen = torch.cat([own, StatsPool()(own[None], frames[i : i + 1]).expand(n, -1)], 1)
        alpha = pool.score(torch.tanh(pool.hidden(seen.T))).T.softmax(0)
        mean = (alpha * own).sum(0)
        deviation = ((alpha * own**2).sum(0) - mean**2).clamp(min=0).add(1e-7).sqrt()
        assert torch.allclose(got[i], torch.cat([mean, deviation]), atol=1e-4)


def test_one_frame_has_a_finite_gradient():  # pitfall 43
    for pool in (attentive(True), StatsPool(), SelfWeightedPool(5, deviation=True)):
        x = torch.randn(1, 1, 5, requires_grad=True)
        pool(x, torch.tensor([1])).sum().backward()
        assert torch.isfinite(x.grad).all()


def test_shares_are_of_a_recordings_own_frames():
    shares = time_shares(torch.randn(2, 6, 3), torch.tensor([6, 2]))
    assert torch.allclose(shares.sum(1), torch.ones(2, 3)) and not shares[1, 2:].any()
    assert time_shares(torch.tensor([[[0.0], [0.0], [2.0]]]).log(), torch.tensor([3])).flatten().tolist() == [
        0,
        0,
        1,
    ]


def test_shared_statistics_by_hand():
    x = torch.tensor([[[0.0, 1.0], [4.0, 1.0]]])
    stats = shared_stats(x, torch.tensor([[[0.25], [0.75]]]))
    assert torch.allclose(stats, torch.tensor([[3.0, 1.0, 3**0.5, 1e-7**0.5]]), atol=1e-5)


def test_an_unknown_pool_is_told():
    with pytest.raises(ValueError, match="unknown pool 'max'; there are attentive, attentive_context, mean"):
        make_pool("max", 4)


# Norms


def test_masked_batch_norm_trains_as_if_there_were_no_padding():  # pitfall 57
    ours = MaskedBatchNorm(3)
    plain = nn.BatchNorm2d(3)
    real = torch.randn(2, 3, 5, 4, requires_grad=True)
    padded = nn.functional.pad(real.detach(), (0, 0, 0, 7), value=9.0).requires_grad_()
    mask = (torch.arange(12) < 5)[None, None, :, None]
    a = ours(padded, mask)
    b = plain(real)
    assert torch.allclose(a[:, :, :5], b, atol=1e-5) and a[:, :, 5:].abs().sum() == 0
    for name, value in plain.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], value), name
    a.square().sum().backward()
    b.square().sum().backward()
    assert torch.allclose(padded.grad[:, :, :5], real.grad, atol=1e-5) and padded.grad[:, :, 5:].abs().sum() == 0


def test_masked_batch_norm_uses_its_statistics_in_evaluation():
    norm = MaskedBatchNorm(2).eval()
    norm.running_mean.copy_(torch.tensor([1.0, 2.0]))
    norm.running_var.copy_(torch.tensor([4.0, 9.0]))
    mask = torch.tensor([True, False])[None, None, :, None]
    y = norm(torch.full((1, 2, 2, 1), 5.0), mask)
    assert torch.allclose(y[0, :, 0, 0], torch.tensor([2.0, 1.0]), atol=1e-5) and not y[0, :, 1].any()
    assert norm.num_batches_tracked == 0


def test_one_real_value_is_normalised_with_the_running_ones():  # pitfall 43
    norm = MaskedBatchNorm(2)
    mask = torch.tensor([True, False])[None, None, :, None]
    y = norm(torch.full((1, 2, 2, 1), 5.0), mask)
    assert torch.allclose(y[0, :, 0, 0], torch.full((2,), 5.0), atol=1e-4) and norm.num_batches_tracked == 0


def test_gradients_of_norms_on_transposed_views():
    """torch 2.11's own batch norm gives wrong ones for a transposed view with one column."""

    def transposed(a):
        return a.transpose(1, 2)[..., None]

    def copied(a):
        return a.transpose(1, 2).contiguous()[..., None]

    x = torch.randn(3, 21, 8)
    w = torch.randn(3, 8, 21, 1)
    mask = torch.ones(3, 1, 21, 1, dtype=torch.bool)
    for training in (True, False):
        norm = MaskedBatchNorm(8).train(training)
        grads = []
        for view in (transposed, copied):
            a = x.clone().requires_grad_()
            norm(view(a), mask).backward(w)
            grads.append(a.grad)
        assert torch.allclose(*grads, atol=1e-6)


def test_norm_of_embeddings_takes_one_recording():
    norm = EmbeddingNorm(3)
    x = torch.randn(4, 3)
    assert torch.allclose(norm(x), nn.BatchNorm1d(3)(x))
    assert torch.allclose(norm(x[:1]), norm.eval()(x[:1]))


def test_norm_over_time_is_that_of_an_image_with_one_column():
    norm = MaskedBatchNorm(4)
    x = torch.randn(2, 4, 9)
    mask = (torch.arange(9) < torch.tensor([9, 5])[:, None])[:, None]
    want = MaskedBatchNorm(4)(x[..., None], mask[..., None])[..., 0]
    assert torch.equal(masked_norm(norm, x, mask), want) and not want[1, :, 5:].any()


# Bricks


@pytest.mark.parametrize("dilation", [1, 3])
def test_convolution_relu_norm_in_this_order_and_without_padding(dilation):  # pitfall 57
    alone = ConvReluNorm(3, 4, 3, dilation)
    padded = ConvReluNorm(3, 4, 3, dilation)
    padded.load_state_dict(alone.state_dict())
    x = torch.randn(1, 3, 9)
    wide = nn.functional.pad(x, (0, 6), value=5.0)
    mask = (torch.arange(15) < 9)[None, None]
    a = alone(x, mask[..., :9])
    b = padded(wide, mask)
    assert a.shape == (1, 4, 9) and torch.allclose(a, b[..., :9], atol=1e-6) and not b[..., 9:].any()
    assert torch.allclose(alone.norm.running_var, padded.norm.running_var)
    assert torch.allclose(a, nn.BatchNorm1d(4)(torch.relu(alone.conv(x))), atol=1e-5)


@pytest.mark.parametrize("layer", [nn.Linear, lambda a, b: nn.Conv1d(a, b, 1)])
def test_excitation_is_a_gate_from_the_mean_of_a_recordings_own_frames(layer):
    gate = Excitation(4, 2, layer)
    x = torch.randn(2, 4, 9)
    mask = (torch.arange(9) < torch.tensor([9, 5])[:, None])[:, None]
    got = gate(x, mask)
    squeeze, excite = (part.weight.flatten(1) for part in (gate.squeeze, gate.excite))
    for i, n in enumerate((9, 5)):
        hidden = torch.relu(squeeze @ x[i, :, :n].mean(1) + gate.squeeze.bias)
        want = torch.sigmoid(excite @ hidden + gate.excite.bias)
        assert torch.allclose(got[i, :, :n], want[:, None] * x[i, :, :n], atol=1e-6)


def test_identity_gives_what_it_gets():
    x = torch.randn(1, 3, 80)
    frames = torch.tensor([3])
    assert Identity(80).dim == 80 and Identity(80)(x, frames) == (x, frames)
