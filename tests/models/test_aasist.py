"""AASIST's parts against literal versions, its masks, and the memory of its attention."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from wedefense_nb.models.aasist import (
    CrossAttention,
    GraphAttention,
    GraphBlock,
    GraphEncoder,
    GraphPool,
    GraphReadout,
    MaxGraph,
    pair_scores,
)
from wedefense_nb.models.detector import build


def literal_scores(h, project, vectors):
    return torch.tanh(project(h[:, :, None] * h[:, None])) @ vectors


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numel = max(self.numel, out.numel())
        return out


@given(n=st.integers(1, 23), budget=st.sampled_from([1, 64, 1000, None]), k=st.integers(1, 3))
def test_pair_scores_are_the_literal_ones(n, budget, k):  # pitfall 46
    torch.manual_seed(n)
    h = torch.randn(2, n, 6).double()
    project = nn.Linear(6, 5).double()
    v = torch.randn(5, k).double()
    assert torch.allclose(pair_scores(h, project, v, budget), literal_scores(h, project, v), atol=1e-12)


@pytest.mark.parametrize("n", [20, 600])  # 600 nodes are computed again on the way back
def test_pair_scores_have_the_literal_gradients(n):
    project = nn.Linear(48, 4)
    v = torch.randn(4, 2, requires_grad=True)
    h = torch.randn(1, n, 48, requires_grad=True)
    pull = torch.randn(1, n, n, 2)
    wanted = [h, v, *project.parameters()]
    ours = torch.autograd.grad((pair_scores(h, project, v) * pull).sum(), wanted)
    literal = torch.autograd.grad((literal_scores(h, project, v) * pull).sum(), wanted)
    for a, b in zip(ours, literal, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


def test_the_tensor_of_all_pairs_is_never_made():  # pitfall 46
    h = torch.randn(1, 300, 64)
    project = nn.Linear(64, 64)
    v = torch.randn(64, 1)
    with torch.no_grad(), Largest() as ours:
        pair_scores(h, project, v)
    with torch.no_grad(), Largest() as literal:
        literal_scores(h, project, v)
    assert literal.numel == 300 * 300 * 64 and ours.numel <= max(2**18, 300 * 300)


def test_attention_layers_are_the_definition():
    layer = GraphAttention(6, 4).eval()
    h = torch.randn(2, 7, 6)
    shares = (literal_scores(h, layer.pair, layer.vector)[..., 0] / 2.0).softmax(-1)
    want = torch.selu(
        layer.norm((layer.mix(shares @ h) + layer.keep(h)).transpose(1, 2)[..., None], torch.tensor(True))
    )
    assert torch.allclose(layer(h, torch.ones(2, 7, dtype=torch.bool)), want[..., 0].transpose(1, 2), atol=1e-5)


def test_cross_attention_uses_a_vector_for_each_kind_of_pair():
    layer = CrossAttention(6, 4).eval()
    t = torch.randn(1, 3, 6)
    s = torch.randn(1, 2, 6)
    m = torch.randn(1, 1, 6)
    h = torch.cat([layer.time(t), layer.band(s)], 1)
    scores = torch.zeros(5, 5)
    for i in range(5):
        for j in range(5):
            kind = {2: layer.vector_tt, 0: layer.vector_ss, 1: layer.vector_ts}[(i < 3) + (j < 3)]
            scores[i, j] = (torch.tanh(layer.pair(h[0, i] * h[0, j])) @ kind)[0] / 100
    mixed = layer.mix(scores.softmax(-1) @ h[0]) + layer.keep(h[0])
    times, bands, master = layer(t, s, m, torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool))
    assert torch.allclose(torch.cat([times, bands], 1)[0], torch.selu(mixed / (1 + 1e-5) ** 0.5), atol=1e-5)
    share = (torch.tanh(layer.pair_master(h * m)) @ layer.vector_master / 100).softmax(1)
    assert torch.allclose(master, layer.mix_master((share * h).sum(1, True)) + layer.keep_master(m), atol=1e-5)


def test_pooling_keeps_each_recordings_own_best_nodes():
    pool = GraphPool(5, 0.7).eval()
    h = torch.randn(2, 29, 5)
    h[1, 10:] = 50.0  # padding with huge scores
    kept, counts = pool(h, torch.tensor([29, 10]))
    assert counts.tolist() == [20, 7] and kept.shape == (2, 20, 5) and not kept[1, 7:].any()
    score = pool.proj(h[1, :10])[:, 0]
    best = score.argsort(descending=True)[:7]
    assert torch.allclose(kept[1, :7], h[1, best] * torch.sigmoid(score[best])[:, None], atol=1e-6)
    assert pool(h[:, :1], torch.tensor([1, 1]))[1].tolist() == [1, 1]


def test_equal_scores_are_kept_in_order():
    pool = GraphPool(3, 0.5).eval()
    h = torch.randn(1, 40, 3)
    nn.init.zeros_(pool.proj.weight)
    assert torch.allclose(pool(h, torch.tensor([40]))[0], h[:, :20] * torch.sigmoid(pool.proj.bias), atol=1e-6)


@pytest.mark.parametrize("pool", [True, False])
def test_a_block_never_sees_padding(pool):
    block = GraphBlock(3, 5, pool=pool).eval()
    for n in (1, 2, 3, 10):
        x = torch.randn(1, 3, 4, n)
        padded = torch.nn.functional.pad(x, (0, 8))
        y, frames = block(padded, torch.tensor([n]))
        alone, _ = block(x, torch.tensor([n]))
        k = max(n // 3, 1) if pool else n
        assert frames.item() == k and torch.allclose(y[..., :k], alone, atol=1e-6) and not y[..., k:].any()


def test_the_dead_norm_is_dead_in_legacy_only():  # pitfall 40
    torch.manual_seed(1)
    alive = GraphBlock(4, 4)
    dead = GraphBlock(4, 4, legacy=True)
    dead.load_state_dict(alive.state_dict())
    x = torch.randn(2, 4, 5, 9)
    frames = torch.tensor([9, 9])
    assert not torch.allclose(alive.eval()(x, frames)[0], dead.eval()(x, frames)[0])
    before = dead(x, frames)[0].detach()
    nn.init.constant_(dead.norm1.weight, 7.0)
    assert torch.equal(dead(x, frames)[0], before)
    model = build("aasist", legacy=True)
    silent = {name: p.numel() for name, p in model.named_parameters() if not p.requires_grad}
    assert len(silent) == 10 and sum(silent.values()) == 512
    assert sum(p.numel() for p in build("aasist_l", legacy=True).parameters() if not p.requires_grad) == 272
    assert all(p.requires_grad for p in build("aasist").parameters())


def test_legacy_trains_all_that_is_not_dead():
    model = build("aasist_l", legacy=True).train()
    model.loss(0.1 * torch.randn(2, 9000), torch.tensor([9000, 9000]), torch.tensor([0, 1])).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)


def test_the_ratios_are_the_published_ones():  # pitfall 41
    for name, ratios in (("aasist", (0.5, 0.7, 0.5)), ("aasist_l", (0.4, 0.5, 0.7))):
        graph = build(name).pool
        inner = {p.ratio for b in graph.branches for p in (b.pool_s, b.pool_t)}
        assert (graph.pool_s.ratio, graph.pool_t.ratio) == ratios[:2] and inner == {ratios[2]}
        assert graph.attend_s.temperature == 2 and graph.branches[0].attend2.temperature == 100


def test_fixed_samples_hear_the_beginning_or_a_repetition():
    model = build("aasist_l", samples=8000).eval()
    wave = 0.1 * torch.randn(1, 12000)
    with torch.no_grad():
        cut, whole = (model(w, torch.tensor([w.shape[1]])) for w in (wave[:, :8000], wave))
        short, repeated = (
            model(w, torch.tensor([w.shape[1]])) for w in (wave[:, :3000], wave[:, :3000].repeat(1, 3))
        )
    assert torch.equal(cut, whole) and torch.allclose(short, repeated, atol=1e-6)


def test_the_parts_serve_other_maps_too():
    """As SSL-AASIST needs them: blocks without pooling, nodes from elsewhere, 42 bands, a free number of frames."""
    encoder = GraphEncoder(42, (32, 32, 64), pool=False).eval()
    x, frames = encoder(torch.randn(2, 30, 42), torch.tensor([30, 17]))
    readout = GraphReadout(bands=42, channels=64, ratios=(0.5, 0.5, 0.5)).eval()
    maps = x.unflatten(2, (64, 42))
    assert x.shape == (2, 30, encoder.dim) and frames.tolist() == [30, 17] and not x[1, 17:].any()
    assert readout(maps.mean(1).transpose(1, 2), maps.mean(3), frames).shape == (2, readout.dim)
    assert MaxGraph(42, 64)(x, frames).shape == (2, 160)
