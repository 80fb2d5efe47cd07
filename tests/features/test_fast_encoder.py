"""The network written out: the same numbers as s3prl and transformers, and its pieces one by one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.features.ssl_files import HF_MODELS, QUIET_S3PRL, SSL_FAMILIES, hf_folder
from wedefense_nb.features.fast_encoder import (
    ConvLayer,
    FastEncoder,
    Gate,
    PositionConv,
    distance_buckets,
    linear,
    time_norm,
)
from wedefense_nb.features.pretrained import BASE, TINY
from wedefense_nb.features.upstreams import Upstream, normalize_waves

pytestmark = QUIET_S3PRL


# All of it


@pytest.mark.parametrize("family", SSL_FAMILIES)
def test_fast_equals_s3prl(files, batch, family):  # pitfall 31: K = L + 1 states, the same ones
    theirs, ours = (Upstream(files[family], layers="all", backend=b).eval() for b in ("s3prl", "fast"))
    with torch.no_grad():
        (want, frames) = theirs(*batch)
        (got, same) = ours(*batch)
    assert got.shape == (3, 3, 27, 32) and torch.equal(frames, same)
    assert float((got - want).abs().max()) < 1e-4 * max(1.0, float(want.std()))


@pytest.mark.parametrize("kind", HF_MODELS)
def test_fast_equals_transformers(kind, tmp_path, batch):
    model = hf_folder(kind, tmp_path)
    wave = batch[0][:1]
    lengths = batch[1][:1]
    upstream = Upstream(tmp_path, layers="all").eval()
    with torch.no_grad():
        got = upstream(wave, lengths)[0][0]
        want = model(normalize_waves(wave, lengths), output_hidden_states=True)
    assert float((got[-1] - want.last_hidden_state[0]).abs().max()) < 1e-4
    assert all(float((got[i] - want.hidden_states[i][0]).abs().max()) < 1e-4 for i in range(2))


def test_wrong_weights_are_refused(tmp_path, tiny):  # pitfall 45
    state = torch.load(tiny, weights_only=True)
    del state["model"]["encoder.layers.1.fc1.bias"]
    torch.save(state, tmp_path / "less.pt")
    with pytest.raises(ValueError, match="does not fit.*fc1.bias"):
        Upstream(tmp_path / "less.pt")


def test_last_state_of_pre_norm_networks_is_normalised(tiny, batch):
    upstream = Upstream(tiny).eval()
    with torch.no_grad():
        last = upstream(*batch)[0][0] - upstream.encoder.norm.bias
    assert last.mean(-1).abs().max() < 1e-4 and (last.var(-1, correction=0) - 1).abs().max() < 1e-2


def test_published_number_of_weights_of_the_two_stage_recipe():
    """Seed 001: the top two layers of wav2vec 2.0 base have 2 × 7,087,872 weights."""
    with torch.device("meta"):
        encoder = FastEncoder(BASE)
    assert sum(p.numel() for p in encoder.layers[-2:].parameters()) == 14_175_744
    # 95,044,608 are counted with what pre-training needs. s3prl's encoder part is the rest, and the 128 lengths of
    # weight norm are multiplied into its directions here.
    spare = 768 + (320 * 2 * 128 + 512 * 640 + 640) + (256 * 256 + 256) + (768 * 256 + 256)
    assert sum(p.numel() for p in encoder.parameters()) == 95_044_608 - spare - 128


def test_layer_drop_skips_layers_only_in_training(tiny, batch):
    upstream = Upstream(tiny, frozen=False)
    for layer in upstream.encoder.layers:
        layer.config = replace(TINY, dropout=0.0, attention_dropout=0.0)
    upstream.encoder.config = replace(TINY, layerdrop=1.0, dropout=0.0)
    with torch.no_grad():
        trained = upstream.train()(*batch)[0]
        evaluated = upstream.eval()(*batch)[0]
        everything = Upstream(tiny).eval()(*batch)[0]
    assert torch.equal(evaluated, everything) and not torch.allclose(trained, everything)


def test_recomputing_layers_gives_the_same_gradients(tiny, batch):
    grads = []
    for again in (False, True):
        upstream = Upstream(tiny, frozen=False, checkpointing=again).train()
        upstream.encoder.config = replace(TINY, layerdrop=0.0)
        torch.manual_seed(0)
        upstream(*batch)[0].square().sum().backward()
        grads.append({n: p.grad for n, p in upstream.named_parameters()})
    assert all(torch.allclose(grads[0][n], grads[1][n], rtol=1e-4, atol=1e-4) for n in grads[0])
    with pytest.raises(ValueError, match="use backend='fast'"):
        Upstream(tiny, backend="s3prl", checkpointing=True)


# Pieces


def test_linear_equals_linear():
    layer = torch.nn.Linear(7, 5)
    x = torch.randn(2, 3, 7, requires_grad=True)
    with torch.no_grad():
        assert torch.allclose(linear(x, layer), layer(x), atol=1e-6)
    got = linear(x, layer)
    want = layer(x)
    a, b = (torch.autograd.grad(y.square().sum(), [x, *layer.parameters()]) for y in (got, want))
    assert all(torch.allclose(p, q, atol=1e-5) for p, q in zip(a, b, strict=True))


def test_norm_over_time_is_group_norm_of_each_recordings_own_frames():
    x = 3 + torch.randn(3, 30, 6)
    weight, bias = torch.randn(2, 6)
    for frames in (torch.tensor([30, 30, 30]), torch.tensor([30, 17, 2])):
        for learning in (False, True):
            with torch.set_grad_enabled(learning):
                got = time_norm(x, frames, weight, bias)
            for row, own, n in zip(got, x, frames.tolist(), strict=True):
                want = torch.nn.functional.group_norm(own[None, :n].transpose(1, 2), 6, weight, bias)[0].T
                assert torch.allclose(row[:n], want, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("norm", ["group", "layer", ""])
def test_convolutions_are_the_same_with_and_without_gradients(channels, norm):
    layer = ConvLayer(channels, 8, kernel=5, stride=2, bias=True, norm=norm)
    x = torch.randn(2, 31, channels)
    frames = torch.tensor([14, 9])
    with torch.no_grad():
        quick = layer(x, frames)
    assert quick.shape == (2, 14, 8) and torch.allclose(quick, layer(x, frames), atol=1e-5)


@pytest.mark.parametrize("kernel, depth", [(16, 1), (19, 5)])
def test_position_convolutions_are_centred_and_blind_to_padding(kernel, depth):
    position = PositionConv(replace(TINY, pos_kernel=kernel, pos_depth=depth))
    x = torch.randn(1, 60, 32)
    mask = torch.ones(1, 60, 1)
    mask[:, 40:] = 0
    moved = x.clone()
    moved[:, 40:] += 5
    with torch.no_grad():
        assert torch.equal(position(x, mask), position(moved, mask))
        other = x.clone()
        other[:, 20] += 1
        reached = (position(other, mask) != position(x, mask)).any(-1)[0].nonzero().flatten()
    if depth == 1:
        assert reached.tolist() == list(range(20 - kernel // 2 + 1, 20 + kernel // 2 + 1))


def test_distance_buckets_are_symmetric_halves():
    table = distance_buckets(400, 320, 800).numpy()
    assert (np.diag(table) == 0).all() and table.max() < 320
    assert (table[0, 1:] == table[1:, 0] + 160).all() and (np.diff(table[0]) >= 0).all()


def test_gate_of_a_fresh_network_lies_between_1_and_2():
    gate = Gate(32, heads=4)(10 * torch.randn(2, 50, 32))
    assert gate.shape == (2, 4, 50, 1) and 1 <= gate.min() < 1.1 and 1.9 < gate.max() <= 2
