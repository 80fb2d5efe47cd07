"""Back ends on self-supervised features: golden outputs of the published forms, counts, any length, complete folders."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wedefense_nb.features.pretrained import TINY
from wedefense_nb.features.stored import Stored, extract
from wedefense_nb.features.upstreams import Upstream, tiny_checkpoint
from wedefense_nb.models.checkpoints import (
    LAYOUTS,
    OURS_ALONE,
    formula_numbers,
    formula_weights,
    load_published,
    published_shapes,
    rename,
)
from wedefense_nb.models.detector import build, load_model, save_model
from wedefense_nb.models.layers import AttentivePool, MaskedBatchNorm, SelfWeightedPool, POOLS, make_pool
from wedefense_nb.models.ssl_backends import (
    MHFAPool,
    SLSPool,
    WedefenseFront,
    ssl_front,
    window_max,
)
from wedefense_nb.models.ssl_networks import GMLP, Nes2Net, TimeGate, patch_max
from wedefense_nb.models.wedefense import load_with_upstream
from wedefense_nb.task import BONAFIDE

from tests.features.ssl_files import SSL, STILL
from tests.models.test_checkpoints import agrees, manifest

NOISE = 0.1 * torch.randn(3, 20000, generator=torch.Generator().manual_seed(1))
KINDS = {  # kind: manifest, golden entry, frames
    "wedefense/mhfa": ("wedefense_mhfa_large", "wedefense_mhfa_large", 150),
    "wedefense/sls": ("wedefense_sls", "wedefense_sls", 150),
    "wedefense/res1d": ("wedefense_res1d", "wedefense_res1d", 150),
    "wedefense/nes2net": ("wedefense_nes2net", "wedefense_nes2net", 150),
    "wedefense/ssl_aasist": ("wedefense_ssl_aasist", "wedefense_ssl_aasist", 150),
    "wedefense/gmlp": ("wedefense_gmlp", "wedefense_gmlp", 150),
    "ssl_antispoofing": ("ssl_antispoofing_backend", "ssl_antispoofing", 201),
}


def size(*parts):
    return sum(p.numel() for part in parts for p in part.parameters())


def useful(kind):
    return {k: v for k, v in manifest(KINDS[kind][0]).items() if not k.startswith(LAYOUTS[kind].ignore or "none")}


@pytest.mark.parametrize("kind", KINDS)
def test_layouts_are_the_published_ones(kind):
    assert published_shapes(kind) == useful(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_golden_outputs(kind):  # pitfalls 19, 34, 40, 42
    name, entry, n = KINDS[kind]
    layout = LAYOUTS[kind]
    model = build(**layout.detector).double().eval()
    weights = rename(formula_weights(useful(kind)), model, layout)
    model.load_state_dict(model.state_dict() | weights)
    frames = torch.tensor([n, n])
    if model.front.stacked:
        x = (2 * formula_numbers(2 * 1024 * n * 25) - 1).reshape(2, 1024, n, 25).permute(0, 3, 2, 1)
    else:
        x = (2 * formula_numbers(2 * n * 1024) - 1).reshape(2, n, 1024)
    with torch.no_grad():
        embedding = model.embedding(model.pool(*model.backbone(x, frames)))
        if kind != "ssl_antispoofing":
            agrees(embedding, f"{entry}/emb", 1e-4)
        agrees(model.head(embedding), f"{entry}/logits", 1e-4)  # in the file's order of classes
        if model.front.stacked:
            agrees(model.pool.frame_vectors(x, frames), f"{entry}/frame", 1e-4)


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("ssl_mhfa", {"legacy": True}, 1_315_410),
        ("ssl_sls", {"legacy": True}, 4_366_083),
        ("ssl_res1d", {"legacy": True}, 5_646_592),
        ("ssl_nes2net_x", {"legacy": True}, 571_797),
        ("ssl_aasist", {"legacy": "wedefense"}, 487_624),
        ("ssl_gmlp", {"legacy": True}, 374_698),
    ],
)
def test_published_counts_before_the_head(name, options, count):
    states = 25 if name in ("ssl_mhfa", "ssl_sls") else 0
    model = build(name, upstream={"stored": {"dim": 1024, "states": states}}, **options)
    assert size(model.backbone, model.pool, model.embedding) == count


@pytest.mark.parametrize(
    ("name", "dim", "options", "count"),
    [
        ("ssl_linear", 768, {}, 1_538),
        ("ssl_nes2net", 1024, {}, 510_769 + 1025),
        ("ssl_nes2net_x", 1024, {}, 512_039),
        ("ssl_aasist", 1024, {"legacy": True}, 447_242),
        # the published attentive forms have one bias a feature that a softmax over time cancels
        ("ssl_nes2net", 1024, {"pool": "attentive"}, 775_089 + 2049 - 1024),
        ("ssl_nes2net_x", 1024, {"pool": "attentive"}, 775_334 + 2049 - 1024),
    ],
)
def test_published_counts_with_the_head(name, dim, options, count):
    model = build(name, upstream={"stored": {"dim": dim, "states": 0}}, **options)
    assert size(model.backbone, model.pool, model.embedding, model.head) == count


def test_sls_of_the_authors_has_its_published_size():
    model = build("ssl_sls", upstream={"stored": {"dim": 1024, "states": 24}}, rows=67, embed_dim=1024)
    assert size(model.backbone, model.pool, model.embedding, model.head) == 23_399_429


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
        model.loss(NOISE, torch.tensor([20000, 15000, 9000]), torch.tensor([0, 1, 1])).backward()
        got = [p.grad is not None for p in model.front.encoder.layers[-1].parameters()]
        below = [p.grad is not None for p in model.front.encoder.layers[0].parameters()]
        assert all(got) == any(got) == learns and not any(below)


@pytest.mark.parametrize("name", SSL)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_model_folder_needs_no_upstream(name, legacy, tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "tiny.pt")
    options = SSL[name] | {"upstream": str(checkpoint)}
    if legacy and name in ("ssl_linear", "ssl_nes2net", "ssl_sls", "ssl_gmlp"):
        options |= {"ssl_sls": {"rows": 20, "legacy": True}, "ssl_gmlp": {"legacy": True}}.get(name, {})
    elif legacy:
        options |= {"legacy": True}
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


def test_features_from_disk_give_the_same_scores(few, tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "tiny.pt")
    part = few.subset(utt=few.utterances.utt[:4].tolist())
    for layers, name in (("all", "ssl_mhfa"), ("last", "ssl_res1d"), ("all", "ssl_res1d")):
        live = Upstream(checkpoint, layers=layers).eval()
        folder = tmp_path / f"{layers}-{name}"
        extract(live, part, folder)
        how = {"layers": "weighted"} if name == "ssl_res1d" else {}
        model = build(name, upstream=str(folder), **how).eval()
        feats, frames = live(NOISE, torch.tensor([20000, 15000, 9000]))
        on_disk = feats.transpose(1, 2) if layers == "all" else feats
        with torch.no_grad():
            scores = model(on_disk, frames)
        whole = build(
            name,
            upstream=str(checkpoint),
            layers="weighted" if name == "ssl_res1d" and layers == "all" else layers,
        )
        own = {k: v for k, v in model.state_dict().items() if not k.startswith("front.")}
        assert not whole.load_state_dict(own, strict=False).unexpected_keys
        with torch.no_grad():
            assert torch.allclose(whole.eval()(NOISE, torch.tensor([20000, 15000, 9000])), scores, atol=1e-5)
        back = load_model(save_model(model, tmp_path / f"model-{layers}-{name}"))
        assert torch.equal(back(on_disk, frames), scores)
    with pytest.raises(ValueError, match="are what they are"):
        build("ssl_res1d", upstream=str(folder), top=1)


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
    with pytest.raises(ValueError, match="32 features cannot be split into 8 × 8"):
        build("ssl_nes2net", **STILL)
    with pytest.raises(ValueError, match="halved 5 times"):
        build("ssl_gmlp", **STILL)
    with pytest.raises(ValueError, match="legacy must be"):
        build("ssl_aasist", **STILL, legacy="tak")


def test_published_limits_are_errors():  # pitfall 42
    sls = SLSPool(32, legacy=True)
    for n in (149, 153):
        with pytest.raises(ValueError, match="takes 150 to 152 frames"):
            sls(torch.randn(1, 3, n, 32), torch.tensor([n]))
    assert sls(torch.randn(1, 3, 152, 32), torch.tensor([152])).shape == (1, 500)
    with pytest.raises(ValueError, match="takes 62 steps at most, not 64"):
        GMLP(128, legacy=True)(torch.randn(1, 63 * 32, 128), torch.tensor([63 * 32]))


def test_mhfa_frame_vectors_do_not_shrink_with_length():  # pitfall 19
    x = torch.randn(1, 3, 75, 32)
    for legacy, ratio in ((False, 1.0), (True, 1 / 8)):
        pool = MHFAPool(32, 3, legacy=legacy)
        short = pool.frame_vectors(x, torch.tensor([75]))
        long = pool.frame_vectors(x.repeat(1, 1, 8, 1), torch.tensor([600]))[:, :75]
        assert torch.allclose(long, short * ratio, atol=1e-6)


@given(st.lists(st.integers(1, 70), min_size=1, max_size=4), st.integers(1, 60))
def test_windows_are_adaptive_pooling(frames, rows):
    x = torch.randn(len(frames), 70, 5)
    want = [torch.nn.functional.adaptive_max_pool2d(x[i : i + 1, :n], (rows, 5)) for i, n in enumerate(frames)]
    assert torch.equal(window_max(x, torch.tensor(frames), rows), torch.cat(want))


@pytest.mark.parametrize("name", POOLS)
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


def test_pools_by_hand():
    x = torch.tensor([[[1.0], [2.0], [3.0], [99.0]]])
    frames = torch.tensor([3])
    pool = SelfWeightedPool(1, deviation=True)
    torch.nn.init.zeros_(pool.score.weight)
    assert torch.allclose(pool(x, frames), torch.tensor([[2.0, (2 / 3) ** 0.5]]))
    pool = AttentivePool(1, context=True)
    torch.nn.init.zeros_(pool.score.weight)
    assert torch.allclose(pool(x, frames), torch.tensor([[2.0, (2 / 3) ** 0.5]]))


def test_patches_by_hand():
    x = torch.arange(20.0).reshape(1, 5, 4)
    y, n = patch_max(x, torch.tensor([3]), 2)
    assert n.tolist() == [1] and y[0, 0].tolist() == [5.0, 7.0] and y[0, 1].tolist() == [0.0, 0.0]
    y, n = patch_max(x, torch.tensor([5]), 2, pad=1)
    assert n.tolist() == [3] and y[0, :, 0].tolist() == [1.0, 9.0, 17.0]
    assert patch_max(x[:, :1], torch.tensor([1]), 3)[0].tolist() == [[[2.0]]]


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


def test_nes2net_hears_about_a_second():
    """Seven convolutions of three frames in each of seven nested networks: 49 frames to both sides."""
    net = Nes2Net(128, groups=8, inner=8).eval()
    for part in net.modules():  # without squeeze and excitation, which sees everything
        if hasattr(part, "squeeze"):
            part.forward = lambda x, mask: x
    x = torch.randn(1, 201, 128, requires_grad=True)
    net(x, torch.tensor([201]))[0][0, 100].sum().backward()
    seen = x.grad[0].abs().sum(1).nonzero()[:, 0]
    assert seen.min() >= 100 - 49 and seen.max() <= 100 + 49 and len(seen) > 30


def test_gradients_of_norms_on_transposed_views():
    """torch 2.11's own batch norm gives wrong ones for a transposed view with one column."""
    x = torch.randn(3, 21, 8)
    w = torch.randn(3, 8, 21, 1)
    mask = torch.ones(3, 1, 21, 1, dtype=torch.bool)
    for training in (True, False):
        norm = MaskedBatchNorm(8).train(training)
        grads = []
        for view in (
            lambda a: a.transpose(1, 2)[..., None],
            lambda a: a.transpose(1, 2).contiguous()[..., None],
        ):
            a = x.clone().requires_grad_()
            norm(view(a), mask).backward(w)
            grads.append(a.grad)
        assert torch.allclose(*grads, atol=1e-6)


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


def test_ssl_antispoofing_hears_raw_waves():  # pitfall 30
    model = build("ssl_aasist", upstream=asdict(TINY), legacy=True)
    assert TINY.normalize and not model.front.config.normalize and not model.config["upstream"]["normalize"]
    assert build("ssl_aasist", upstream=asdict(TINY)).front.config.normalize


@pytest.mark.parametrize("kind", ["wedefense/mhfa", "wedefense/res1d", "ssl_antispoofing"])
def test_heads_load_with_their_classes_in_our_order(kind, tmp_path):
    torch.save(formula_weights(useful(kind)), tmp_path / "head.pt")
    model = load_published(tmp_path / "head.pt", kind)
    layout = LAYOUTS[kind]
    ours = "head.vectors" if kind == "wedefense/res1d" else "head.out.weight"
    theirs = formula_weights(useful(kind))[layout.published_name(ours)].float()
    assert torch.equal(model.state_dict()[ours][BONAFIDE], theirs[layout.bonafide])
    assert isinstance(model.front.front if hasattr(model.front, "front") else model.front, Stored)


WHOLE = [
    ("wedefense/mhfa", False),
    ("wedefense/res1d", True),
    ("ssl_antispoofing", False),
    ("antideepfake", False),
]
PREFIX = {"ssl_antispoofing": "ssl_model.model.", "antideepfake": "m_ssl.model."}


@pytest.mark.parametrize(("kind", "mixed"), WHOLE)
def test_whole_files_load_with_their_upstream(kind, mixed, tmp_path, monkeypatch):
    from wedefense_nb.features.upstreams import weight_shapes

    layout = LAYOUTS[kind]
    small = {"dim": TINY.dim, "states": 3 if layout.detector["upstream"]["stored"]["states"] else 0}
    monkeypatch.setitem(layout.detector, "upstream", {"stored": small})
    prefix = PREFIX.get(kind, "frontend.upstream.upstream.model.")
    state = formula_weights(published_shapes(kind))
    tuned = {k: v.float() for k, v in formula_weights(weight_shapes(TINY)).items()}
    state |= {prefix + k: v for k, v in tuned.items()} | {prefix + "mask_emb": torch.zeros(TINY.dim)}
    state |= {"frontend.featurizer.weights": torch.tensor([0.0, 1.0, 2.0])} if mixed else {}
    torch.save(state, tmp_path / "whole.pt")
    model = load_with_upstream(tmp_path / "whole.pt", kind, asdict(TINY), seen=(1, 3))
    front = next(m for m in model.front.modules() if isinstance(m, Upstream))
    assert torch.equal(front.encoder.layers[1].fc1.weight, tuned["encoder.layers.1.fc1.weight"])
    assert (front.mix is not None) == mixed and (not mixed or front.mix.weights.tolist() == [0, 1, 2])
    assert torch.isfinite(model(NOISE, torch.tensor([20000, 20000, 9000]))).all()
    del state[prefix + "encoder.layers.1.fc1.weight"]
    torch.save(state, tmp_path / "torn.pt")
    with pytest.raises((RuntimeError, KeyError), match="fc1"):
        load_with_upstream(tmp_path / "torn.pt", kind, asdict(TINY))
    head = {k: v for k, v in state.items() if not k.startswith(("frontend", "ssl_model", "m_ssl"))}
    torch.save(head, tmp_path / "head.pt")
    checkpoint = tiny_checkpoint(tmp_path / "tiny.pt")  # the head alone: the given upstream keeps its own weights
    model = load_with_upstream(tmp_path / "head.pt", kind, checkpoint)
    front = next(m for m in model.front.modules() if isinstance(m, Upstream))
    assert torch.equal(front.encoder.layers[1].fc1.weight, Upstream(checkpoint).encoder.layers[1].fc1.weight)


def test_antideepfake_is_a_mean_over_normalised_waves(tmp_path):  # pitfall 30
    raw = replace(TINY, normalize=False)  # as wav2vec 2.0 base: the recipe normalises all the same
    head = {"proj_fc.weight": torch.randn(2, TINY.dim), "proj_fc.bias": torch.tensor([0.1, -0.2])}
    torch.save(head, tmp_path / "head.pt")
    torch.manual_seed(0)
    model = load_with_upstream(tmp_path / "head.pt", "antideepfake", asdict(raw))
    assert model.front.config.normalize and model.config["upstream"]["normalize"]
    wave = 3 * NOISE[:1] + 0.5
    scaled = (wave - wave.mean()) / (wave.var(correction=0) + 1e-5).sqrt()
    wanted = model.front.encoder(scaled, torch.tensor([20000]), [TINY.layers])[0].mean(1)
    wanted = wanted @ head["proj_fc.weight"].T + head["proj_fc.bias"]
    assert torch.allclose(model(wave, torch.tensor([20000])), wanted, atol=1e-4)
    assert torch.allclose(load_model(save_model(model, tmp_path))(wave, torch.tensor([20000])), wanted, atol=1e-4)


def test_our_own_names_stay_out_of_published_ones():
    assert OURS_ALONE == ("log_prior_odds",)
