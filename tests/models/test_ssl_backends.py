"""Back ends on self-supervised features: their front ends, counts, any length, complete folders, MHFA and SLS."""

import json
from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.features.ssl_files import SSL, STILL
from wedefense_nb.features.pretrained import TINY
from wedefense_nb.features.stored import Stored, extract
from wedefense_nb.features.upstreams import Upstream, tiny_checkpoint
from wedefense_nb.models.detector import DETECTORS, build, load_model, options_of, save_model
from wedefense_nb.models.ssl_backends import (
    MHFAPool,
    Mixed,
    SLSPool,
    WedefenseFront,
    portable,
    ssl_front,
    window_max,
)

NOISE = 0.1 * torch.randn(3, 20000, generator=torch.Generator().manual_seed(1))
LENGTHS = torch.tensor([20000, 15000, 9000])


def size(*parts):
    return sum(p.numel() for part in parts for p in part.parameters())


# Front ends


def test_a_front_end_from_anything(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "tiny.pt")
    assert isinstance(ssl_front(str(checkpoint)), Upstream) and isinstance(ssl_front(asdict(TINY)), Upstream)
    flat = {"stored": {"dim": 6, "states": 0}}
    layered = {"stored": {"dim": 6, "states": 3}}
    assert isinstance(ssl_front(flat), Stored) and not ssl_front(flat).stacked
    assert isinstance(ssl_front(layered, "all"), Stored) and ssl_front(layered, "all").stacked
    assert isinstance(ssl_front(layered, "weighted"), Mixed) and not ssl_front(layered, "weighted").stacked
    assert isinstance(ssl_front(flat, "weighted"), Stored)  # nothing to mix
    with pytest.raises(ValueError, match="needs upstream"):
        ssl_front(None)


@pytest.mark.parametrize("option", [{"top": 1}, {"frozen": False}, {"normalize": True}, {"normalize": False}])
def test_features_on_disk_are_what_they_are(option):
    with pytest.raises(ValueError, match="are what they are"):
        ssl_front({"stored": {"dim": 6, "states": 0}}, **option)


def test_options_reach_the_upstream():
    front = ssl_front(asdict(TINY), layers=1, top=1, normalize=False)
    assert not front.config.normalize and any(p.requires_grad for p in front.encoder.layers[-1].parameters())
    assert not any(p.requires_grad for p in ssl_front(asdict(TINY)).parameters())


def test_a_mix_begins_as_the_mean_of_the_states_and_has_weights():
    mixed = ssl_front({"stored": {"dim": 4, "states": 3}}, "weighted")
    feats = torch.randn(2, 7, 3, 4)  # as on disk: frames, states
    got, frames = mixed(feats, torch.tensor([7, 7]))
    assert torch.allclose(got, feats.mean(2), atol=1e-6) and frames.tolist() == [7, 7]
    mixed.mix.weights.data = torch.tensor([1.0, 0.0, -2.0])
    want = torch.einsum("k,bfkd->bfd", mixed.mix.weights.softmax(0), feats)
    assert torch.allclose(mixed(feats, torch.tensor([7, 7]))[0], want, atol=1e-6)


def test_what_is_portable_builds_the_same_shape():
    for front in (ssl_front(asdict(TINY), "all"), ssl_front({"stored": {"dim": 6, "states": 3}}, "weighted")):
        again = ssl_front(json.loads(json.dumps(portable(front))), "all")
        assert again.dim == front.dim and again.states == (3 if isinstance(front, Mixed) else front.states)


def test_options_are_those_of_the_front_end_and_its_own():
    options = options_of("ssl_mhfa")
    assert options["upstream"] is None and options["layers"] == "all" and options["heads"] == 32
    assert options_of("ssl_res1d")["layers"] == "last" and "front" not in options
    assert {"frozen", "top", "normalize"} <= set(options)


# Sizes


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [("ssl_mhfa", {"legacy": True}, 1_315_410), ("ssl_sls", {"legacy": True}, 4_366_083)],
)
def test_published_counts_before_the_head(name, options, count):
    model = build(name, upstream={"stored": {"dim": 1024, "states": 25}}, **options)
    assert size(model.backbone, model.pool, model.embedding) == count


def test_the_plainest_has_its_published_size():
    model = build("ssl_linear", upstream={"stored": {"dim": 768, "states": 0}})
    assert size(model) == 1_538 and isinstance(model.embedding, nn.Identity)


def test_frames_that_fit_the_published_layers_of_sls():
    """The authors flatten 22,847 numbers, WeDefense 17,050: windows of 3 × 3, of 1024 features."""
    fitting = {22_847: [], 17_050: []}
    for frames in range(140, 220):
        size = torch.nn.functional.max_pool2d(torch.zeros(1, frames, 1024), 3).numel()
        if size in fitting:
            fitting[size].append(frames)
    assert fitting == {22_847: [201, 202, 203], 17_050: [150, 151, 152]}
    assert build("ssl_sls", upstream={"stored": {"dim": 1024, "states": 24}}, rows=67).pool.out_dim(1024) == 22_847


def test_sls_of_the_authors_has_its_published_size():
    model = build("ssl_sls", upstream={"stored": {"dim": 1024, "states": 24}}, rows=67, embed_dim=1024)
    assert size(model.backbone, model.pool, model.embedding, model.head) == 23_399_429


# All back ends


@pytest.mark.parametrize("name", SSL)
@pytest.mark.parametrize("seconds", [0.025, 0.75, 3.0, 20.0])
def test_any_length_and_any_neighbour(name, seconds):  # pitfalls 42, 43
    model = build(name, **SSL[name]).eval()
    n = round(16000 * seconds)
    wave = 0.1 * torch.randn(1, n, generator=torch.Generator().manual_seed(n))
    padded = torch.nn.functional.pad(wave, (0, 5000), value=0.5)
    batch = torch.cat([padded, padded.flip(1)])
    with torch.no_grad():
        alone = model(wave, torch.tensor([n]))
        together = model(batch, torch.tensor([n, n + 5000]))
    assert torch.isfinite(alone).all() and torch.allclose(together[:1], alone, atol=1e-4)


@pytest.mark.parametrize("name", SSL)
def test_training_reaches_the_top_of_the_upstream_only_if_asked(name):  # pitfall 33
    for top, learns in ((0, False), (1, True)):
        model = build(name, **SSL[name], top=top).train()
        model.loss(NOISE, LENGTHS, torch.tensor([0, 1, 1])).backward()
        got = [p.grad is not None for p in model.front.encoder.layers[-1].parameters()]
        below = [p.grad is not None for p in model.front.encoder.layers[0].parameters()]
        assert all(got) == any(got) == learns and not any(below)


@pytest.mark.parametrize("name", SSL)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_model_folder_needs_no_upstream(name, legacy, tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "tiny.pt")
    options = SSL[name] | {"upstream": str(checkpoint)}
    if legacy and "legacy" in options_of(name):
        options |= {"legacy": True}
    if legacy and name == "ssl_sls":
        options |= {"rows": 20}  # 60 frames
    model = build(name, **options).eval()
    lengths = torch.tensor([19200, 19200])
    model.log_prior_odds.fill_(0.7)
    save_model(model, tmp_path / "model")
    checkpoint.unlink()
    back = load_model(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(back(NOISE[:2], lengths), model(NOISE[:2], lengths))
    assert back.config == model.config and str(tmp_path) not in json.dumps(back.config)
    assert back.log_prior_odds == model.log_prior_odds


@pytest.mark.parametrize(
    ("layers", "name", "how"),
    [("all", "ssl_mhfa", "all"), ("last", "ssl_res1d", "last"), ("all", "ssl_res1d", "weighted")],
)
def test_features_from_disk_give_the_same_scores(few, tmp_path, layers, name, how):
    checkpoint = tiny_checkpoint(tmp_path / "tiny.pt")
    live = Upstream(checkpoint, layers=layers).eval()
    extract(live, few.subset(utt=few.utterances.utt[:4].tolist()), tmp_path / "features")
    model = build(name, upstream=str(tmp_path / "features"), layers=how).eval()
    feats, frames = live(NOISE, LENGTHS)
    on_disk = feats.transpose(1, 2) if layers == "all" else feats
    with torch.no_grad():
        scores = model(on_disk, frames)
    whole = build(name, upstream=str(checkpoint), layers=how).eval()
    own = {k: v for k, v in model.state_dict().items() if not k.startswith("front.")}
    assert not whole.load_state_dict(own, strict=False).unexpected_keys
    with torch.no_grad():
        assert torch.allclose(whole(NOISE, LENGTHS), scores, atol=1e-5)
    back = load_model(save_model(model, tmp_path / "model"))
    assert torch.equal(back(on_disk, frames), scores)


def test_what_does_not_fit_is_said_with_both_shapes():
    with pytest.raises(
        ValueError, match=r"ssl_mhfa reads features \(B, 3, F, 32\), this front end gives \(B, F, 32\)"
    ):
        build("ssl_mhfa", **STILL, layers="last")
    with pytest.raises(
        ValueError, match=r"ssl_res1d reads features \(B, F, 32\).*gives \(B, 3, F, 32\).*weighted"
    ):
        build("ssl_res1d", **STILL, layers="all")
    with pytest.raises(ValueError, match=r"\(B, L, F, 32\).*\(B, F, 32\)"):
        build("ssl_sls", upstream={"stored": {"dim": 32, "states": 0}})
    with pytest.raises(ValueError, match="needs upstream"):
        build("ssl_linear")
    with pytest.raises(ValueError, match="unknown option of ssl_linear 'heads'"):
        build("ssl_linear", heads=3)
    with pytest.raises(ValueError, match="unknown pool 'max'"):
        build("ssl_linear", **STILL, pool="max")
    assert all(name in DETECTORS for name in SSL)


# The published habits


def test_habits_of_wedefense_front_ends():  # pitfalls 31, 34
    for layers in ("all", "last"):
        front = ssl_front(STILL["upstream"], layers).eval()
        ours = WedefenseFront(front)
        lengths = torch.tensor([16000, 9000])
        with torch.no_grad():
            (x, frames) = front(NOISE[:2], lengths)
            (y, more) = ours(NOISE[:2], lengths)
        x = x[..., : int(frames[0]), :]
        y = y[..., : int(more[0]), :]
        assert frames.tolist() == [49, 27] and more.tolist() == [50, 29]
        if layers == "all":
            assert torch.allclose(y[0, :, :49], x[0] - x[0].mean(-1, keepdim=True), atol=1e-5)
        else:
            mean = torch.cat([x[1, :27], x[1, 26:27], x[1, 26:27]]).mean(0)
            assert torch.allclose(y[1, :27], x[1, :27] - mean, atol=1e-5)
        assert torch.allclose(y[1, ..., 28, :], y[1, ..., 26, :], atol=1e-5) and y[1, ..., 29:, :].abs().sum() == 0


def test_features_from_disk_keep_their_frames():
    front = WedefenseFront(ssl_front({"stored": {"dim": 4, "states": 0}}))
    feats = torch.randn(2, 7, 4)
    got, frames = front(feats, torch.tensor([7, 5]))
    assert frames.tolist() == [7, 5] and torch.allclose(got[1, :5], feats[1, :5] - feats[1, :5].mean(0), atol=1e-6)


# MHFA


def test_mhfa_is_its_formula():
    pool = MHFAPool(6, states=3, heads=2, compress=4)
    pool.key_weights.data = torch.tensor([2.0, 0.0, -1.0])  # keys and values look into different layers
    pool.value_weights.data = torch.tensor([-1.0, 0.5, 2.0])
    x = torch.randn(2, 3, 7, 6)
    frames = torch.tensor([7, 4])
    got = pool(x, frames)
    for i, n in enumerate(frames.tolist()):
        own = x[i, :, :n]
        key = torch.einsum("l,lfd->fd", pool.key_weights.softmax(0), own) @ pool.key.weight.T
        value = pool.value(torch.einsum("l,lfd->fd", pool.value_weights.softmax(0), own))
        shares = (key @ pool.score.weight.T).softmax(0)
        want = torch.stack([(shares[:, h, None] * value).sum(0) for h in range(2)])
        assert torch.allclose(got[i], want.flatten(), atol=1e-5)
        vectors = n * shares.mean(1, keepdim=True) * value
        assert torch.allclose(pool.frame_vectors(x, frames)[i, :n], vectors, atol=1e-5)


def test_biases_that_cannot_learn_are_kept_for_published_weights():
    assert MHFAPool(6, 3).key.bias is None and MHFAPool(6, 3).score.bias is None
    pool = MHFAPool(6, 3, legacy=True)
    x = torch.randn(1, 3, 7, 6)
    before = pool(x, torch.tensor([7]))
    pool.key.bias.data += 3.0
    pool.score.bias.data -= 2.0
    assert torch.allclose(pool(x, torch.tensor([7])), before, atol=1e-5)
    assert build("ssl_mhfa", **STILL).embedding.bias is None
    assert build("ssl_mhfa", **STILL, legacy=True).embedding.bias is not None


def test_mhfa_frame_vectors_do_not_shrink_with_length():  # pitfall 19
    x = torch.randn(1, 3, 75, 32)
    for legacy, ratio in ((False, 1.0), (True, 1 / 8)):
        pool = MHFAPool(32, 3, legacy=legacy)
        short = pool.frame_vectors(x, torch.tensor([75]))
        long = pool.frame_vectors(x.repeat(1, 1, 8, 1), torch.tensor([600]))[:, :75]
        assert torch.allclose(long, short * ratio, atol=1e-6)


# SLS


def test_sls_is_its_formula():
    pool = SLSPool(6, rows=2).eval()
    x = torch.randn(2, 3, 12, 6)
    frames = torch.tensor([12, 6])
    weights = pool.layer_weights(x, frames)
    averaged = SLSPool(6, rows=2, average=True).eval()
    averaged.load_state_dict(pool.state_dict())
    for i, n in enumerate(frames.tolist()):
        own = x[i, :, :n]
        want = torch.sigmoid(own.mean(1) @ pool.weigh.weight[0] + pool.weigh.bias)
        assert torch.allclose(weights[i], want, atol=1e-6)
        fused = torch.einsum("l,lfd->fd", want, own) / (1 + 1e-5) ** 0.5  # a fresh norm
        assert torch.allclose(pool.frame_vectors(x, frames)[i, :n], torch.selu(fused), atol=1e-5)
        third = torch.selu(fused / 3)
        assert torch.allclose(averaged.frame_vectors(x, frames)[i, :n], third, atol=1e-5)
        windows = torch.selu(fused).unflatten(0, (2, n // 2)).amax(1)  # two windows of frames
        features = windows.unflatten(1, (2, 3)).amax(2)  # of three features each
        assert torch.allclose(pool(x, frames)[i], features.flatten(), atol=1e-5)


def test_sls_alone_and_in_a_batch_differ_by_the_rounding_of_its_long_sum():
    """The pooled vectors agree to the last bits; the embedding adds up 17,050 products in another order."""
    model = build("ssl_sls", upstream={"stored": {"dim": 1024, "states": 3}}).eval()
    linear = model.embedding[0]
    assert linear.in_features == 50 * (1024 // 3)
    x = 100 * torch.randn(2, 3, 160, 1024)
    frames = torch.tensor([160, 90])
    with torch.no_grad():
        pooled = model.pool(x, frames)
        for i, n in enumerate(frames.tolist()):
            alone = model.pool(x[i : i + 1, :, :n], frames[i : i + 1])
            assert torch.allclose(pooled[i], alone[0], rtol=1e-6, atol=1e-6 * float(pooled.abs().max()))
            terms = linear.weight.abs() @ pooled[i].abs()  # what the sum adds up, without signs
            assert ((linear(pooled)[i] - linear(alone)[0]).abs() < 2e-7 * terms).all()


def test_legacy_windows_are_those_of_three_frames():
    torch.manual_seed(0)
    legacy = SLSPool(6, rows=5, legacy=True).eval()
    free = SLSPool(6, rows=5).eval()
    free.load_state_dict(legacy.state_dict())
    x = torch.randn(1, 3, 17, 6)
    assert torch.equal(legacy(x[:, :, :15], torch.tensor([15])), free(x[:, :, :15], torch.tensor([15])))
    got = legacy(x, torch.tensor([17]))  # the last two frames are not heard, but for the layers' weights
    windows = legacy.frame_vectors(x, torch.tensor([17]))[0, :15].unflatten(0, (5, 3)).amax(1)
    assert torch.allclose(got[0], windows.unflatten(1, (2, 3)).amax(2).flatten(), atol=1e-6)
    for n in (14, 18):
        with pytest.raises(ValueError, match="takes 15 to 17 frames"):
            legacy(torch.randn(1, 3, n, 6), torch.tensor([n]))


def test_published_limits_are_errors():  # pitfall 42
    sls = SLSPool(32, legacy=True)
    for n in (149, 153):
        with pytest.raises(ValueError, match="takes 150 to 152 frames"):
            sls(torch.randn(1, 3, n, 32), torch.tensor([n]))
    assert sls(torch.randn(1, 3, 152, 32), torch.tensor([152])).shape == (1, 500)


@given(st.lists(st.integers(1, 70), min_size=1, max_size=4), st.integers(1, 60))
def test_windows_are_adaptive_pooling(frames, rows):
    x = torch.randn(len(frames), 70, 5)
    want = [torch.nn.functional.adaptive_max_pool2d(x[i : i + 1, :n], (rows, 5)) for i, n in enumerate(frames)]
    assert torch.equal(window_max(x, torch.tensor(frames), rows), torch.cat(want))
