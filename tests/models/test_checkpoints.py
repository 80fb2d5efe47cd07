"""Published checkpoints: layouts, golden outputs of formula weights, refusals, and real weights, if any."""

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import ROOT
from tests.models.golden import agrees, manifest
from wedefense_nb.models.checkpoints import (
    LAYOUTS,
    OURS_ALONE,
    Layout,
    find_weights,
    formula_numbers,
    formula_weights,
    layout_of,
    load_published,
    published,
    published_score,
    published_shapes,
    read_weights,
    rename,
)
from wedefense_nb.models.detector import build, load_model, save_model
from wedefense_nb.task import BONAFIDE, SPOOF

REAL = ROOT.parent / "shared" / "data" / "weights"
if not REAL.is_dir():
    REAL = ROOT.parent.parent / "shared" / "data" / "weights"
MANIFESTS = {"clovaai/aasist": "aasist", "clovaai/aasist-l": "aasist_l"}
each_kind = pytest.mark.parametrize("kind", MANIFESTS)


# Layouts


@each_kind
def test_layouts_are_the_published_ones(kind):
    assert published_shapes(kind) == manifest(MANIFESTS[kind])


@pytest.mark.parametrize("name", OURS_ALONE)
def test_what_is_ours_alone_is_in_every_detector_and_in_no_file(name):
    for layout in LAYOUTS.values():
        assert name in build(**layout.detector).state_dict()
    assert not any(name in published_shapes(kind) for kind in LAYOUTS)


AASIST_NAMES = {  # ours: theirs, of all that equally long names and shapes would let one mix up
    "pool.attend_s.pair.weight": "GAT_layer_S.att_proj.weight",
    "pool.attend_t.vector": "GAT_layer_T.att_weight",
    "pool.pool_s.proj.weight": "pool_S.proj.weight",
    "pool.pool_t.proj.weight": "pool_T.proj.weight",
    "pool.branches.0.pool_s.proj.bias": "pool_hS1.proj.bias",
    "pool.branches.1.pool_t.proj.bias": "pool_hT2.proj.bias",
    "pool.branches.0.master": "master1",
    "pool.branches.1.master": "master2",
    "pool.branches.0.attend1.vector_tt": "HtrgGAT_layer_ST11.att_weight11",
    "pool.branches.0.attend2.vector_ss": "HtrgGAT_layer_ST12.att_weight22",
    "pool.branches.1.attend1.vector_ts": "HtrgGAT_layer_ST21.att_weight12",
    "pool.branches.1.attend2.vector_master": "HtrgGAT_layer_ST22.att_weightM",
    "pool.branches.0.attend1.time.weight": "HtrgGAT_layer_ST11.proj_type1.weight",
    "pool.branches.0.attend1.band.weight": "HtrgGAT_layer_ST11.proj_type2.weight",
    "pool.branches.0.attend1.mix.bias": "HtrgGAT_layer_ST11.proj_with_att.bias",
    "pool.branches.0.attend1.keep_master.bias": "HtrgGAT_layer_ST11.proj_without_attM.bias",
    "backbone.blocks.3.norm1.weight": "encoder.3.0.bn1.weight",
    "backbone.blocks.4.norm2.weight": "encoder.4.0.bn2.weight",
    "backbone.blocks.5.conv1.weight": "encoder.5.0.conv1.weight",
}


@each_kind
def test_names_that_formula_weights_cannot_tell_apart(kind):
    assert {ours: LAYOUTS[kind].published_name(ours) for ours in AASIST_NAMES} == AASIST_NAMES


def test_names_are_replaced_part_by_part_in_order():
    layout = Layout({"name": "bands"}, [("head", "a"), ("a.out", "b"), ("out", "c")])
    assert layout.published_name("head.out.weight") == "b.weight"
    assert layout.published_name("ahead.out") == "ahead.c"  # whole parts of names


# Golden outputs


@pytest.fixture(scope="module")
def formula(tmp_path_factory):
    """Path of a file with formula weights, by kind."""
    folder = tmp_path_factory.mktemp("formula")
    files = {}
    for kind, name in MANIFESTS.items():
        files[kind] = folder / f"{name}.pth"
        torch.save(formula_weights(manifest(name)), files[kind])
    return files


@each_kind
def test_golden_outputs_of_aasist(kind, formula):  # pitfalls 40, 41
    model = load_published(formula[kind], kind)
    name = MANIFESTS[kind]
    wave = (0.1 * (2 * formula_numbers(2 * 64600) - 1)).reshape(2, 64600).float()
    with torch.no_grad():
        hidden = model.embed(wave, torch.tensor([64600, 64600]))
        agrees(hidden, f"{name}/hash/hidden", 1e-3)
        agrees(model.head(hidden), f"{name}/hash/logits", 1e-3)


def test_the_formula_by_hand():
    weights = formula_weights(
        {
            "a.weight": (2, 6),
            "norm.weight": (3,),
            "norm.bias": (3,),
            "norm.running_mean": (3,),
            "norm.running_var": (3,),
            "norm.num_batches_tracked": (),
            "position": (3,),
        }
    )
    u = {
        n: torch.frac(torch.sin(12.9898 * torch.arange(1, 13).double() + 78.233 * n) * 43758.5453)
        for n in range(30)
    }
    u = {n: torch.where(x < 0, x + 1, x) for n, x in u.items()}
    assert torch.allclose(weights["a.weight"].flatten(), (2 * u[8] - 1) * (3 / 6) ** 0.5)
    assert torch.allclose(weights["norm.weight"], 1 + 0.2 * (2 * u[11][:3] - 1))
    assert torch.allclose(weights["norm.bias"], 0.1 * (2 * u[9][:3] - 1))
    assert torch.allclose(weights["norm.running_mean"], 0.1 * (2 * u[17][:3] - 1))
    assert torch.allclose(weights["norm.running_var"], 1 + 0.5 * u[16][:3])
    assert torch.allclose(weights["position"], 2 * u[8][:3] - 1)
    assert weights["norm.num_batches_tracked"].tolist() == 0


# Loading


@each_kind
def test_class_order_is_ours(kind, formula):  # pitfall 3
    model = load_published(formula[kind], kind)
    theirs = read_weights(formula[kind])[LAYOUTS[kind].published_name("head.out.bias")].float()
    assert model.head.out.bias[BONAFIDE] == theirs[LAYOUTS[kind].bonafide] and not model.training
    assert model.head.out.bias[SPOOF] == theirs[1 - LAYOUTS[kind].bonafide]


def test_the_prior_is_what_the_loss_saw(formula):
    kind = "clovaai/aasist-l"
    assert load_published(formula[kind], kind).log_prior_odds.item() == pytest.approx(0.0182, abs=1e-3)
    assert load_published(formula[kind], kind, seen=(1, 9)).log_prior_odds.item() == pytest.approx(
        -2.1972, abs=1e-3
    )


def test_scores_as_published_and_as_ours():
    z = torch.tensor([[1.0, 3.0]])
    assert published_score(z, "clovaai/aasist").tolist() == [3.0]
    assert published_score(z, "wedefense/resnet18").tolist() == [2.0]


def test_everything_that_does_not_fit_is_in_one_message(formula, tmp_path):  # pitfall 45
    state = read_weights(formula["clovaai/aasist-l"])
    state["extra"] = state.pop("pos_S")
    state["out_layer.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"3 problems: missing pos_S; unexpected extra; out_layer.bias is \(3,\)"):
        load_published(tmp_path / "x.pth", "clovaai/aasist-l")
    with pytest.raises(ValueError, match=r"aasist, \d\d+ problems.*and \d+ more"):
        load_published(formula["clovaai/aasist-l"], "clovaai/aasist")
    with pytest.raises(ValueError, match="unknown kind of checkpoint .clova.; there are .*clovaai/aasist"):
        load_published(tmp_path / "x.pth", "clova")


def test_what_a_layout_ignores_may_be_there():
    model = build("bands", n_mels=24)
    layout = Layout({"name": "bands"}, [("head.out", "out")], ignore=("unused.",))
    state = {layout.published_name(k): v for k, v in model.state_dict().items() if k not in OURS_ALONE}
    assert set(rename(state | {"unused.a": torch.zeros(1)}, model, layout)) == set(model.state_dict()) - {
        *OURS_ALONE
    }
    with pytest.raises(ValueError, match="1 problems: unexpected used.a"):
        rename(state | {"used.a": torch.zeros(1)}, model, layout)


TYPED = {
    "clovaai/aasist": ["aasist", "AASIST", "clovaai/aasist", "Clovaai/AASIST", " aasist "],
    "clovaai/aasist-l": ["aasist-l", "AASIST-L", "AASIST_L", "aasist_l", "AASIST L", "clovaai/aasist_l"],
    "wedefense/ssl_aasist": ["ssl_aasist", "ssl-aasist", "SSL AASIST", "SSL-AASIST", "WeDefense/SSL-AASIST"],
    "wedefense/lcnn_lstm": ["LCNN-LSTM", "lcnn lstm"],
    "wedefense/res1d": ["res1d", "Res1D"],
    "wedefense/nes2net": ["Nes2Net"],
    "ssl_antispoofing": ["SSL_Anti-spoofing", "ssl-antispoofing", "SSL antispoofing"],
    "antideepfake": ["AntiDeepfake", "anti-deepfake"],
}


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in TYPED.items() for text in texts])
def test_kinds_are_understood_as_people_type_them(kind, text):
    name, layout = layout_of(text)
    assert name == kind and layout is LAYOUTS[kind]


def test_every_kind_has_a_short_name_of_its_own():
    for kind in LAYOUTS:
        for text in (kind, kind.upper(), kind.rpartition("/")[2]):
            assert layout_of(text)[0] == kind


def test_a_kind_may_be_typed_for_all_that_takes_one(formula):
    assert load_published(formula["clovaai/aasist-l"], kind="AASIST L").config["name"] == "aasist_l"
    assert published_shapes("AASIST")["out_layer.weight"] == (2, 160)
    assert published_score(torch.tensor([[1.0, 3.0]]), "AASIST") == 3.0


@pytest.mark.parametrize("text", ["lcnn", "", " - ", "wedefense", "aasist/clovaai", "aasist-m", None])
def test_unknown_kinds_are_refused_with_the_list_of_what_there_is(text, tmp_path):
    with pytest.raises(ValueError, match="unknown kind of checkpoint") as error:
        load_published(tmp_path / "none.pth", text)  # told before the file is looked for
    assert all(kind in str(error.value) for kind in LAYOUTS)


def test_a_short_name_of_two_kinds_is_refused_with_both(monkeypatch):
    two = {"here/twin": LAYOUTS["clovaai/aasist"], "there/Twin": LAYOUTS["clovaai/aasist-l"]}
    monkeypatch.setattr(LAYOUTS, "_found", {**LAYOUTS, **two})
    with pytest.raises(ValueError, match="unknown kind of checkpoint 'twin'.* here/twin, there/Twin$"):
        layout_of("twin")
    assert layout_of("THERE/twin")[0] == "there/Twin"


def test_a_file_that_does_not_fit_is_told_the_other_kinds_of_its_detector(tmp_path):
    torch.save(formula_weights(published_shapes("ssl_antispoofing")), tmp_path / "tak.pth")
    with pytest.raises(ValueError, match="problems: missing .*Other kinds of this detector: ssl_antispoofing$"):
        load_published(tmp_path / "tak.pth", "SSL-AASIST")


# Files


class Evil:
    def __reduce__(self):
        return eval, ("1 + 1",)


def test_code_in_a_file_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1), "b": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"a": Evil()}, protocol=2))
    (tmp_path / "text.pth").write_text("not a checkpoint")
    (tmp_path / "text.safetensors").write_text("not a checkpoint")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, message in [
        ("evil.pth", "could run code"),
        ("plain.pkl", "could run code|not a checkpoint"),
        ("text.pth", "could run code|not a checkpoint"),
        ("text.safetensors", "not a checkpoint"),
        ("empty.pth", "not a checkpoint"),
        ("list.pth", "holds no weights"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_weights(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="published"):
        read_weights(tmp_path / "nothing.pth")


def test_wrappers_prefixes_and_safetensors_are_understood(tmp_path):
    w = {"a.weight": torch.ones(2)}
    torch.save({"model": {"module.a.weight": w["a.weight"]}, "epoch": 3}, tmp_path / "a.pth")
    torch.save({"state_dict": w}, tmp_path / "b.pth")
    save_file(w, tmp_path / "c.safetensors")
    for name in ("a.pth", "b.pth", "c.safetensors"):
        assert list(read_weights(tmp_path / name)) == ["a.weight"]


def test_a_loaded_detector_can_be_saved_as_a_model_folder(formula, tmp_path):
    model = load_published(formula["clovaai/aasist-l"], "clovaai/aasist-l")
    back = load_model(save_model(model, tmp_path))
    wave = 0.1 * torch.randn(1, 9000)
    lengths = torch.tensor([9000])
    with torch.no_grad():
        assert torch.equal(back.score(back(wave, lengths)), model.score(model(wave, lengths)))


def test_the_table_leads_to_files(tmp_path):
    table = published()
    assert set(table.kind) <= set(LAYOUTS) and table.file.is_unique and table.url.str.startswith("https://").all()
    with pytest.raises(FileNotFoundError, match="426,428 bytes, licence MIT"):
        find_weights("AASIST-L.pth", tmp_path)
    (tmp_path / "AASIST-L.pth").write_bytes(b"x" * 426428)  # the right size is not enough
    with pytest.raises(ValueError, match="not the published file"):
        find_weights("AASIST-L.pth", tmp_path)
    (tmp_path / "best.pth").write_bytes(b"x" * 1275639)  # nobody has noted its sum
    assert find_weights("best.pth", tmp_path) == tmp_path / "best.pth"
    with pytest.raises(ValueError, match="unknown published file 'AASIST.pt': did you mean 'AASIST.pth'"):
        find_weights("AASIST.pt", tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason="the published weights are not in this checkout")
def test_published_weights_give_published_logits():
    import numpy as np

    model = load_published(find_weights("AASIST-L.pth", REAL), "clovaai/aasist-l")
    wave = torch.from_numpy(np.load(REAL / "synthetic.npy")).float().reshape(1, -1)
    want = json.loads((REAL / "aasist_l_expected.json").read_text())["logits"]
    waves = dict(zip(want, (wave, torch.zeros(1, 64600), wave[:, :20000]), strict=True))
    for name, x in waves.items():
        with torch.no_grad():
            assert model(x, torch.tensor([x.shape[1]]))[0].tolist() == pytest.approx(want[name], abs=1e-3)
