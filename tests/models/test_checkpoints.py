"""Published checkpoints: layouts, golden outputs from formula weights, refusals, and real weights where they are."""

import json
import pickle

import pytest
import torch

from wedefense_nb.models.checkpoints import (
    LAYOUTS,
    find_weights,
    formula_numbers,
    formula_weights,
    layout_of,
    load_published,
    published,
    published_score,
    published_shapes,
    read_weights,
)
from wedefense_nb.models.detector import build, load_model, save_model
from wedefense_nb.task import BONAFIDE, SPOOF

from tests.conftest import GOLDEN_DIR, ROOT

GOLDEN = json.loads((GOLDEN_DIR / "golden_outputs.json").read_text())
REAL = ROOT.parent / "shared" / "data" / "weights"
if not REAL.is_dir():
    REAL = ROOT.parent.parent / "shared" / "data" / "weights"
MANIFESTS = {
    "clovaai/aasist": "aasist",
    "clovaai/aasist-l": "aasist_l",
    "wedefense/resnet18": "wedefense_resnet18",
    "wedefense/lcnn_lstm": "wedefense_lcnn_lstm",
}


def manifest(name):
    return {k: tuple(v) for k, v in json.loads((GOLDEN_DIR / "state_dicts" / f"{name}.json").read_text()).items()}


def agrees(x, entry, rtol):
    """Does a tensor agree with a golden entry: shape, first and last values, sum and absolute sum?"""
    want = GOLDEN[entry]
    flat = x.double().flatten()
    got = [*flat[:4].tolist(), *flat[-2:].tolist()]
    assert list(x.shape) == want["shape"]
    n = min(4, flat.numel())
    assert got == pytest.approx([*want["first"][:n], *want["last"]], rel=rtol, abs=rtol * 0.01 + 1e-6)
    assert float(flat.sum()) == pytest.approx(want["sum"], rel=rtol, abs=rtol * want["abs_sum"])
    assert float(flat.abs().sum()) == pytest.approx(want["abs_sum"], rel=rtol)


@pytest.mark.parametrize("kind", MANIFESTS)
def test_layouts_are_the_published_ones(kind):
    assert set(MANIFESTS) <= set(LAYOUTS)
    assert published_shapes(kind) == manifest(MANIFESTS[kind])


@pytest.fixture(scope="module")
def formula(tmp_path_factory):
    """Path of a file with formula weights, by kind."""
    folder = tmp_path_factory.mktemp("formula")
    for name in MANIFESTS.values():
        torch.save(formula_weights(manifest(name)), folder / f"{name}.pth")
    return {kind: folder / f"{name}.pth" for kind, name in MANIFESTS.items()}


@pytest.mark.parametrize("kind", ["clovaai/aasist", "clovaai/aasist-l"])
def test_golden_outputs_of_aasist(kind, formula):  # pitfalls 40, 41
    model = load_published(formula[kind], kind)
    name = MANIFESTS[kind]
    wave = (0.1 * (2 * formula_numbers(2 * 64600) - 1)).reshape(2, 64600).float()
    with torch.no_grad():
        hidden = model.embed(wave, torch.tensor([64600, 64600]))
        agrees(hidden, f"{name}/hash/hidden", 1e-3)
        agrees(model.head(hidden), f"{name}/hash/logits", 1e-3)


@pytest.mark.parametrize("kind", ["wedefense/resnet18", "wedefense/lcnn_lstm"])
def test_golden_outputs_of_wedefense(kind, formula):
    model = load_published(formula[kind], kind, seen=(1, 1)).double()
    name = MANIFESTS[kind]
    model.load_state_dict(load_published_exactly(formula[kind], kind, model))
    feats = (2 * formula_numbers(2 * 300 * 80) - 1).reshape(2, 300, 80)
    with torch.no_grad():
        embedding = model.embedding(model.pool(*model.backbone(feats, torch.tensor([300, 300]))))
        agrees(embedding, f"{name}/emb", 1e-4)
        agrees(model.head(embedding).flip(1), f"{name}/logits", 1e-4)  # in the file's order: bona fide first


def load_published_exactly(path, kind, model):
    """The file's float64 numbers for a model that has been made float64."""
    from wedefense_nb.models.checkpoints import rename

    state = rename(read_weights(path), model, LAYOUTS[kind])
    state |= {k: state[k].flip(0) for k in ("head.out.weight", "head.out.bias")}
    return model.state_dict() | state


@pytest.mark.parametrize("kind", ["clovaai/aasist-l", "wedefense/lcnn_lstm"])
def test_class_order_is_ours(kind, formula):  # pitfall 3
    model = load_published(formula[kind], kind)
    raw = read_weights(formula[kind])
    name = LAYOUTS[kind].published_name("head.out.bias")
    theirs = raw[name].float()
    assert model.head.out.bias[BONAFIDE] == theirs[LAYOUTS[kind].bonafide]
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


def test_kinds_are_understood_as_people_type_them(formula):
    for text in ("aasist", "AASIST", "clovaai/aasist", "Clovaai/AASIST"):
        assert layout_of(text)[0] == "clovaai/aasist"
    for text in ("aasist-l", "AASIST_L", "aasist_l"):
        assert layout_of(text)[0] == "clovaai/aasist-l"
    assert layout_of("res1d")[0] == "wedefense/res1d" and layout_of("AntiDeepfake")[0] == "antideepfake"
    assert load_published(formula["clovaai/aasist"], "aasist").config["name"] == "aasist"
    for text in ("lcnn", "", "wedefense"):
        with pytest.raises(ValueError, match="unknown kind of checkpoint"):
            layout_of(text)


class Evil:
    def __reduce__(self):
        return eval, ("1 + 1",)


def test_code_in_a_file_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1), "b": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"a": Evil()}, protocol=2))
    (tmp_path / "text.pth").write_text("not a checkpoint")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, message in [
        ("evil.pth", "could run code"),
        ("plain.pkl", "could run code|not a checkpoint"),
        ("text.pth", "could run code|not a checkpoint"),
        ("list.pth", "holds no weights"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_weights(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="published"):
        read_weights(tmp_path / "nothing.pth")


def test_wrappers_prefixes_and_safetensors_are_understood(tmp_path):
    from safetensors.torch import save_file

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


def test_published_counts_of_parameters():
    for name, want in (("aasist", 297_866), ("aasist_l", 85_306)):
        for legacy in (True, False):
            assert sum(p.numel() for p in build(name, legacy=legacy).parameters()) == want


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
