"""WeDefense's detectors and files, and other SSL detectors: layouts, golden outputs, whole files."""

import math
from dataclasses import asdict, replace

import pytest
import torch

from tests.models.golden import agrees, manifest
from wedefense_nb.features.pretrained import TINY
from wedefense_nb.features.stored import Stored
from wedefense_nb.features.upstreams import Upstream, tiny_checkpoint, weight_shapes
from wedefense_nb.models.checkpoints import (
    LAYOUTS,
    formula_numbers,
    formula_weights,
    load_published,
    published_score,
    published_shapes,
    rename,
)
from wedefense_nb.models.detector import DETECTORS, build, load_model, save_model
from wedefense_nb.models.wedefense import load_with_upstream
from wedefense_nb.task import BONAFIDE, SPOOF

NOISE = 0.1 * torch.randn(3, 20000, generator=torch.Generator().manual_seed(1))
KINDS = {  # kind: manifest, golden entry, frames of features that it was given
    "wedefense/resnet18": ("wedefense_resnet18", "wedefense_resnet18", 300),
    "wedefense/lcnn_lstm": ("wedefense_lcnn_lstm", "wedefense_lcnn_lstm", 300),
    "wedefense/mhfa": ("wedefense_mhfa_large", "wedefense_mhfa_large", 150),
    "wedefense/sls": ("wedefense_sls", "wedefense_sls", 150),
    "wedefense/res1d": ("wedefense_res1d", "wedefense_res1d", 150),
    "wedefense/nes2net": ("wedefense_nes2net", "wedefense_nes2net", 150),
    "wedefense/ssl_aasist": ("wedefense_ssl_aasist", "wedefense_ssl_aasist", 150),
    "wedefense/gmlp": ("wedefense_gmlp", "wedefense_gmlp", 150),
    "ssl_antispoofing": ("ssl_antispoofing_backend", "ssl_antispoofing", 201),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def useful(kind):
    """What we need of a published file."""
    return {k: v for k, v in manifest(KINDS[kind][0]).items() if not k.startswith(LAYOUTS[kind].ignore)}


@each_kind
def test_layouts_are_the_published_ones(kind):
    assert published_shapes(kind) == useful(kind)


def test_every_layout_is_tested():
    others = {"clovaai/aasist", "clovaai/aasist-l", "antideepfake"}
    ours = {kind for kind, layout in LAYOUTS.items() if layout.detector["name"] in DETECTORS}
    assert {*KINDS} | others == ours


@each_kind
def test_golden_outputs(kind):  # pitfalls 19, 34, 40, 42
    _, entry, n = KINDS[kind]
    layout = LAYOUTS[kind]
    model = build(**layout.detector).double().eval()
    model.load_state_dict(model.state_dict() | rename(formula_weights(useful(kind)), model, layout))
    dim = model.front.dim
    if getattr(model.front, "stacked", False):
        x = (2 * formula_numbers(2 * dim * n * 25) - 1).reshape(2, dim, n, 25).permute(0, 3, 2, 1)
    else:
        x = (2 * formula_numbers(2 * n * dim) - 1).reshape(2, n, dim)
    frames = torch.tensor([n, n])
    with torch.no_grad():
        embedding = model.embedding(model.pool(*model.backbone(x, frames)))
        if kind != "ssl_antispoofing":
            agrees(embedding, f"{entry}/emb", 1e-4)
        agrees(model.head(embedding), f"{entry}/logits", 1e-4)  # in the file's order of classes
        if x.ndim == 4:
            agrees(model.pool.frame_vectors(x, frames), f"{entry}/frame", 1e-4)


NAMES = [  # of all that equally long names and shapes would let one mix up: formula weights cannot tell them apart
    ("wedefense/mhfa", "pool.key_weights", "weights_k"),
    ("wedefense/mhfa", "pool.value_weights", "weights_v"),
    ("wedefense/mhfa", "pool.key.weight", "cmp_linear_k.weight"),
    ("wedefense/mhfa", "pool.value.weight", "cmp_linear_v.weight"),
    ("wedefense/resnet18", "backbone.blocks.1.norm1.weight", "layer1.1.bn1.weight"),
    ("wedefense/resnet18", "backbone.blocks.4.norm2.weight", "layer3.0.bn2.weight"),
    ("wedefense/resnet18", "backbone.blocks.7.conv1.weight", "layer4.1.conv1.weight"),
    ("wedefense/lcnn_lstm", "backbone.blocks.6.norm.running_var", "m_transform.21.running_var"),
    ("wedefense/lcnn_lstm", "backbone.blocks.7.norm.running_var", "m_transform.24.running_var"),
    ("wedefense/lcnn_lstm", "backbone.lstm.bias_ih_l0", "m_lstm.0.l_blstm.bias_ih_l0"),
    ("wedefense/lcnn_lstm", "backbone.lstm.bias_hh_l1", "m_lstm.1.l_blstm.bias_hh_l0"),
    ("wedefense/lcnn_lstm", "backbone.lstm.weight_ih_l1_reverse", "m_lstm.1.l_blstm.weight_ih_l0_reverse"),
    ("wedefense/nes2net", "backbone.nets.2.enter.conv.weight", "Build_in_Res2Nets.2.conv1.weight"),
    ("wedefense/nes2net", "backbone.nets.2.enter.norm.bias", "Build_in_Res2Nets.2.bn1.bias"),
    ("wedefense/nes2net", "backbone.nets.3.leave.conv.weight", "Build_in_Res2Nets.3.conv3.weight"),
    ("wedefense/nes2net", "backbone.nets.3.leave.norm.bias", "Build_in_Res2Nets.3.bn3.bias"),
    ("wedefense/nes2net", "backbone.nets.0.norms.4.weight", "Build_in_Res2Nets.0.bns.4.weight"),
    ("wedefense/nes2net", "backbone.norms.4.weight", "bns.4.weight"),
    ("wedefense/res1d", "backbone.convs.2.conv.weight", "res1D.res1D.2.conv.weight"),
    ("wedefense/gmlp", "backbone.blocks.3.gate.norm.weight", "post_nets_utt.layers.3.sgu.norm.weight"),
    ("wedefense/ssl_aasist", "pool.branches.1.attend2.vector_ss", "HtrgGAT_layer_ST22.att_weight22"),
    ("ssl_antispoofing", "pool.branches.0.attend1.time.bias", "HtrgGAT_layer_ST11.proj_type1.bias"),
]


@pytest.mark.parametrize(("kind", "ours", "theirs"), NAMES)
def test_names_that_formula_weights_cannot_tell_apart(kind, ours, theirs):
    assert LAYOUTS[kind].published_name(ours) == theirs and theirs in published_shapes(kind)


@pytest.mark.parametrize("name", ["wedefense_lcnn_lstm", "wedefense_resnet18"])
def test_the_detectors_hear_mean_normalised_bands_and_pool_a_sample(name):
    model = build(name)
    assert model.front.mean_norm and model.front.dim == 80 and model.pool.correction == 1
    assert model.embedding.out_features == 256


def test_order_of_classes_and_score_of_each_file():
    of_labels = {kind: layout.bonafide for kind, layout in LAYOUTS.items()}
    assert {kind for kind, index in of_labels.items() if index == 0} == {k for k in LAYOUTS if "wedefense" in k}
    z = torch.tensor([[1.0, 3.0]])
    assert (
        published_score(z, "ssl_antispoofing").item() == 3.0 and published_score(z, "antideepfake").item() == 2.0
    )


@pytest.mark.parametrize("kind", ["wedefense/lcnn_lstm", "wedefense/mhfa", "wedefense/res1d", "ssl_antispoofing"])
def test_heads_load_with_their_classes_in_our_order(kind, tmp_path):
    torch.save(formula_weights(useful(kind)), tmp_path / "head.pt")
    model = load_published(tmp_path / "head.pt", kind)
    layout = LAYOUTS[kind]
    ours = "head.vectors" if kind == "wedefense/res1d" else "head.out.weight"
    theirs = formula_weights(useful(kind))[layout.published_name(ours)].float()
    assert torch.equal(model.state_dict()[ours][BONAFIDE], theirs[layout.bonafide])
    assert torch.equal(model.state_dict()[ours][SPOOF], theirs[1 - layout.bonafide])
    as_weighted = math.log(0.9 * 2580 / (0.1 * 22800)) if kind == "ssl_antispoofing" else 0.0
    assert model.log_prior_odds.item() == pytest.approx(as_weighted, abs=1e-6)


WHOLE = [
    ("wedefense/mhfa", False),
    ("wedefense/res1d", True),
    ("ssl_antispoofing", False),
    ("antideepfake", False),
]
PREFIX = {"ssl_antispoofing": "ssl_model.model.", "antideepfake": "m_ssl.model."}


@pytest.mark.parametrize(("kind", "mixed"), WHOLE)
def test_whole_files_load_with_their_upstream(kind, mixed, tmp_path, monkeypatch):
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
    assert model.log_prior_odds.item() == pytest.approx(math.log(1 / 3)) and not model.training
    front = next(m for m in model.front.modules() if isinstance(m, Upstream))
    assert torch.equal(front.encoder.layers[1].fc1.weight, tuned["encoder.layers.1.fc1.weight"])
    assert (front.mix is not None) == mixed and (not mixed or front.mix.weights.tolist() == [0, 1, 2])
    assert torch.isfinite(model(NOISE, torch.tensor([20000, 20000, 9000]))).all()
    assert getattr(model.front, "samples", None) == (64600 if kind == "ssl_antispoofing" else None)
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


def test_a_wrong_kind_is_told_before_the_file_is_read(tmp_path):
    with pytest.raises(ValueError, match="unknown kind of checkpoint 'wav2vec'"):
        load_with_upstream(tmp_path / "none.pt", "wav2vec", asdict(TINY))


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


def test_features_on_disk_hold_no_upstream(tmp_path):
    head = {"proj_fc.weight": torch.randn(2, 8), "proj_fc.bias": torch.zeros(2)}
    torch.save(head, tmp_path / "head.pt")
    stored = {"stored": {"dim": 8, "states": 0}}
    with pytest.raises(ValueError, match="are no upstream: use load_published"):
        load_with_upstream(tmp_path / "head.pt", "antideepfake", stored, normalize=None)
    model = load_published(tmp_path / "head.pt", "antideepfake", upstream=stored)
    assert isinstance(model.front, Stored) and torch.equal(model.head.out.weight, head["proj_fc.weight"])
