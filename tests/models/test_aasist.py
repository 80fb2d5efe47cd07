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
    GraphBranch,
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
    want = torch.selu((layer.mix(shares @ h) + layer.keep(h)) / (1 + 1e-5) ** 0.5)  # a fresh norm
    assert torch.allclose(layer(h, torch.ones(2, 7, dtype=torch.bool)), want, atol=1e-5)


def test_cross_attention_uses_a_vector_for_each_kind_of_pair():
    layer = CrossAttention(6, 4, temperature=0.5).eval()  # 100 would hide the differences between scores
    t = torch.randn(1, 3, 6)
    s = torch.randn(1, 2, 6)
    m = torch.randn(1, 1, 6)
    h = torch.cat([layer.time(t), layer.band(s)], 1)
    scores = torch.zeros(5, 5)
    for i in range(5):
        for j in range(5):
            if i < 3 and j < 3:
                vector = layer.vector_tt
            elif i >= 3 and j >= 3:
                vector = layer.vector_ss
            else:
                vector = layer.vector_ts
            scores[i, j] = (torch.tanh(layer.pair(h[0, i] * h[0, j])) @ vector)[0] / layer.temperature
    mixed = layer.mix(scores.softmax(-1) @ h[0]) + layer.keep(h[0])
    times, bands, master = layer(t, s, m, torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool))
    assert torch.allclose(torch.cat([times, bands], 1)[0], torch.selu(mixed / (1 + 1e-5) ** 0.5), atol=1e-5)
    share = (torch.tanh(layer.pair_master(h * m)) @ layer.vector_master / layer.temperature).softmax(1)
    assert torch.allclose(master, layer.mix_master((share * h).sum(1, True)) + layer.keep_master(m), atol=1e-5)


def test_padding_reaches_neither_nodes_nor_master():
    layer = CrossAttention(6, 4).eval()
    t = torch.randn(1, 5, 6)
    s = torch.randn(1, 4, 6)
    m = torch.randn(1, 1, 6)
    own = torch.arange(5)[None] < 3, torch.arange(4)[None] < 2
    times, bands, master = layer(t, s, m, *own)
    alone = layer(t[:, :3], s[:, :2], m, own[0][:, :3], own[1][:, :2])
    assert torch.allclose(times[:, :3], alone[0], atol=1e-6) and not times[:, 3:].any()
    assert torch.allclose(bands[:, :2], alone[1], atol=1e-6) and not bands[:, 2:].any()
    assert torch.allclose(master, alone[2], atol=1e-6)


@pytest.mark.parametrize(
    ("ratio", "n", "kept"), [(0.5, 29, 14), (0.7, 29, 20), (0.4, 23, 9), (1.0, 5, 5), (0.5, 1, 1)]
)
def test_pooling_keeps_a_share_rounded_down_and_a_node_at_least(ratio, n, kept):
    h, counts = GraphPool(4, ratio).eval()(torch.randn(1, n, 4), torch.tensor([n]))
    assert h.shape == (1, kept, 4) and counts.tolist() == [kept]


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


def test_published_counts_of_parameters():
    for name, want in (("aasist", 297_866), ("aasist_l", 85_306)):
        for legacy in (True, False):
            assert sum(p.numel() for p in build(name, legacy=legacy).parameters()) == want


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


def test_a_block_is_norm_selu_convolution_twice_and_a_shortcut():
    block = GraphBlock(3, 5, pool=False).eval()
    x = torch.randn(2, 3, 4, 9)
    small = 1 / (1 + 1e-5) ** 0.5  # a fresh norm
    y = block.conv1(torch.selu(small * x))
    y = block.conv2(torch.selu(small * y)) + block.shortcut(x)
    assert torch.allclose(block(x, torch.tensor([9, 9]))[0], y, atol=1e-5)
    pooled = GraphBlock(3, 5)
    pooled.load_state_dict(block.state_dict())
    got, frames = pooled.eval()(x, torch.tensor([9, 9]))
    assert frames.tolist() == [3, 3] and torch.allclose(got, y.unflatten(3, (3, 3)).amax(4), atol=1e-5)


def test_recordings_pass_the_encoder_one_by_one_with_the_same_result():
    encoder = GraphEncoder(5, (4, 6)).eval()
    x = torch.randn(2, 30, 5)
    frames = torch.tensor([30, 17])
    together, counts = encoder(x, frames)  # gradients are on: in one go
    with torch.no_grad():
        apart, same = encoder(x, frames)
    assert torch.allclose(together, apart, atol=1e-6) and counts.tolist() == same.tolist() == [3, 1]


def test_legacy_trains_all_that_is_not_dead():
    model = build("aasist_l", legacy=True).train()
    model.loss(0.1 * torch.randn(2, 9000), torch.tensor([9000, 9000]), torch.tensor([0, 1])).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("name", "ratios", "kept"),  # of 23 bands and 29 times, in the graph and then in the branches
    [("aasist", (0.5, 0.7, 0.5), (11, 20, 5, 10)), ("aasist_l", (0.4, 0.5, 0.7), (9, 14, 6, 9))],
)
def test_the_ratios_are_the_published_ones(name, ratios, kept):  # pitfall 41
    graph = build(name).eval().pool
    assert (graph.pool_s.ratio, graph.pool_t.ratio) == ratios[:2]
    assert {p.ratio for b in graph.branches for p in (b.pool_s, b.pool_t)} == {ratios[2]}
    assert graph.attend_s.temperature == graph.attend_t.temperature == 2
    crossing = [part for b in graph.branches for part in (b.attend1, b.attend2)]
    assert {part.temperature for part in crossing} == {100}
    left = []
    pools = [graph.pool_s, graph.pool_t, graph.branches[0].pool_s, graph.branches[0].pool_t]
    for pool in pools:
        pool.register_forward_hook(lambda _, __, out: left.append((out[0].shape[1], out[1].item())))
    graph(torch.randn(1, 29, build(name).backbone.dim), torch.tensor([29]))
    assert [n for n, _ in left] == [n for _, n in left] == [kept[0], kept[1], kept[3], kept[2]]  # times first


def test_branches_without_ratios_keep_a_half():
    readout = GraphReadout(bands=4, channels=6)
    assert (readout.pool_s.ratio, readout.pool_t.ratio, readout.branches[1].pool_s.ratio) == (0.5, 0.7, 0.5)


def test_a_branch_attends_pools_and_adds():
    branch = GraphBranch((6, 4), 0.5).eval()
    times = torch.randn(1, 8, 6)
    bands = torch.randn(1, 6, 6)
    got, counts = branch(times, bands, torch.tensor([8]), torch.tensor([6]))
    masks = [torch.ones(1, n, dtype=torch.bool) for n in (8, 6, 4, 3)]
    t, s, m = branch.attend1(times, bands, branch.master, *masks[:2])
    t, n_t = branch.pool_t(t, torch.tensor([8]))
    s, n_s = branch.pool_s(s, torch.tensor([6]))
    more = branch.attend2(t, s, m, *masks[2:])
    assert [n.item() for n in counts] == [n_t.item(), n_s.item()] == [4, 3]
    for a, b, c in zip(got, (t, s, m), more, strict=True):
        assert torch.allclose(a, b + c, atol=1e-6)


def test_the_readout_is_largest_and_mean_of_what_both_branches_say():
    readout = GraphReadout(bands=6, channels=5, dims=(5, 4)).eval()
    bands = torch.randn(2, 6, 5)
    times = torch.randn(2, 8, 5)
    frames = torch.tensor([8, 5])
    said = []
    for branch in readout.branches:
        branch.register_forward_hook(lambda _, __, out: said.append(out))
    got = readout(bands, times, frames)
    (a, counts), (b, _) = said
    t, s, m = (torch.maximum(x, y) for x, y in zip(a, b, strict=True))
    for i in range(2):
        own_t = t[i, : counts[0][i]]
        own_s = s[i, : counts[1][i]]
        parts = [own_t.abs().amax(0), own_t.mean(0), own_s.abs().amax(0), own_s.mean(0), m[i, 0]]
        assert torch.allclose(got[i], torch.cat(parts), atol=1e-6)


def test_bands_know_their_place_and_times_do_not():
    readout = GraphReadout(bands=6, channels=5, dims=(5, 4)).eval()
    bands = torch.randn(1, 6, 5)
    times = torch.randn(1, 8, 5)
    frames = torch.tensor([8])
    before = readout(bands, times, frames)
    assert torch.allclose(readout(bands, times.flip(1), frames), before, atol=1e-5)
    assert not torch.allclose(readout(bands.flip(1), times, frames), before, atol=1e-3)


def test_nodes_are_the_largest_values_over_the_other_axis():
    graph = MaxGraph(3, 5, dims=(5, 4)).eval()
    x = torch.randn(2, 7, 5 * 3)
    maps = x.reshape(2, 7, 5, 3).abs()
    frames = torch.tensor([7, 7])
    bands = torch.stack([maps[:, :, :, i].amax(1) for i in range(3)], 1)
    times = torch.stack([maps[:, i].amax(2) for i in range(7)], 1)
    assert torch.equal(graph(x, frames), GraphReadout.forward(graph, bands, times, frames))


def test_fixed_samples_hear_the_beginning_or_a_repetition():
    model = build("aasist_l", samples=8000).eval()
    wave = 0.1 * torch.randn(1, 12000)

    def logits(wave):
        with torch.no_grad():
            return model(wave, torch.tensor([wave.shape[1]]))

    assert torch.equal(logits(wave[:, :8000]), logits(wave))
    assert torch.allclose(logits(wave[:, :3000]), logits(wave[:, :3000].repeat(1, 3)), atol=1e-6)


def test_the_parts_serve_other_maps_too():
    """As SSL-AASIST needs them: blocks without pooling, nodes from elsewhere, 42 bands, any number of frames."""
    encoder = GraphEncoder(42, (32, 32, 64), pool=False).eval()
    x, frames = encoder(torch.randn(2, 30, 42), torch.tensor([30, 17]))
    readout = GraphReadout(bands=42, channels=64, ratios=(0.5, 0.5, 0.5)).eval()
    maps = x.unflatten(2, (64, 42))
    assert x.shape == (2, 30, encoder.dim) and frames.tolist() == [30, 17] and not x[1, 17:].any()
    assert readout(maps.mean(1).transpose(1, 2), maps.mean(3), frames).shape == (2, readout.dim)
    assert MaxGraph(42, 64)(x, frames).shape == (2, 160)


def test_filters_fall_silent_in_training_only_if_asked():
    assert build("aasist").front.mask == 0 and build("aasist_l", freq_mask=9).front.mask == 9
    assert build("aasist").front.dim == 23  # 70 filters in groups of three
