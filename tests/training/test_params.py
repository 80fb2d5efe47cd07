"""Parameter files: each fits its recipe, builds its model at full size, and learns a step; each number has a file.

What is run here: the recipe's `checks` for each file; its model at its published size, without values; a step of
training of each form of model, on a tiny upstream; and one file from its first cell to its last. All of them from
the first to the last: `python tools/smoke_params.py`.
"""

import importlib.util
import json
import re
from dataclasses import asdict, replace
from functools import cache

import numpy as np
import pytest
import torch
import yaml

from tests.conftest import ROOT
from wedefense_nb.data.batches import Batch
from wedefense_nb.features.pretrained import BASE, LARGE, UPSTREAMS
from wedefense_nb.localization.learning import Localization
from wedefense_nb.models.detector import DETECTORS, Detector, build
from wedefense_nb.models.zoo import published_errors
from wedefense_nb.training.loop import FitConfig
from wedefense_nb.training.objectives import make_objective
from wedefense_nb.training.recipes import check_values, find_recipe
from wedefense_nb.training.stages import part_names, thaw


def _tool():
    spec = importlib.util.spec_from_file_location("smoke_params", ROOT / "tools/smoke_params.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = _tool()
OTHERS = ("profiles", "sweeps")  # settings of the engine, and plans: see test_sweeps
FILES = sorted(p for p in (ROOT / "params").rglob("*/*.yaml") if not set(OTHERS) & set(p.parts))
MODELS = [file for file in FILES if TOOL.recipe_of(file) in ("detection", "localization")]
INDEX = yaml.safe_load((ROOT / "params/papers.yaml").read_text(encoding="utf-8"))
SIZES = INDEX["sizes"]

GROUP = {"conv_norm": "group", "conv_bias": False, "norm_first": False, "normalize": False}
WAVLM = {"relative": (320, 800)}
DATA2VEC = {"conv_norm": "layer", "conv_bias": False, "norm_first": False, "pos_depth": 5, "pos_kernel": 19}
BILLION = replace(LARGE, dim=1280, layers=48, hidden=5120)
SHAPES = {  # of the published upstreams, whose own files say this too
    "wav2vec2_base_960": BASE,
    "hubert_base": BASE,
    "wavlm_base": replace(BASE, **WAVLM),
    "wavlm_base_plus": replace(BASE, **WAVLM),
    "data2vec_base_960": replace(BASE, **DATA2VEC),
    "wav2vec2_large_960": replace(LARGE, **GROUP),
    "wav2vec2_large_ll60k": LARGE,
    "wav2vec2_large_lv60_cv_swbd_fsh": LARGE,
    "xlsr_53": LARGE,
    "xls_r_300m": LARGE,
    "mms_300m": LARGE,
    "hubert_large_ll60k": replace(LARGE, conv_bias=False),
    "wavlm_large": replace(LARGE, conv_bias=False, **WAVLM),
    "data2vec_large_ll60k": replace(LARGE, **DATA2VEC),
    "xls_r_1b": BILLION,
    "mms_1b": BILLION,
    "xls_r_2b": replace(BILLION, dim=1920, hidden=7680),
}


def name_of(file) -> str:
    return file.relative_to(ROOT / "params").with_suffix("").as_posix()


def config_of(values: dict) -> FitConfig:
    return FitConfig(**values.get("training", {}))


@cache
def read(file) -> dict:
    return TOOL.parameters_of(file)


@cache
def measured(name: str, options: str, stages: str) -> tuple[int, int]:
    """Parameters of a model at its published size, and those that learn in the stage where the most do.

    With an upstream it is built without values, since it is large.
    """
    given = json.loads(options)
    place = "cpu"
    if "upstream" in given:
        given["upstream"] = asdict(SHAPES[given["upstream"]])
        place = "meta"
    with torch.device(place):
        model = build(name, **given)
    counts = []
    for stage in json.loads(stages) or [{}]:
        assert all(part_names(model, part) for part in stage.get("learn", []))
        if stage.get("learn"):
            thaw(model, stage["learn"])
        counts.append(sum(p.numel() for p in model.parameters() if p.requires_grad))
    return sum(p.numel() for p in model.parameters()), max(counts)


def size_of(file) -> tuple[int, int]:
    values = read(file)
    return measured(values["model"], json.dumps(values["model_options"]), json.dumps(values.get("stages", [])))


# The files


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_each_file_passes_its_recipes_own_checks(file):
    """An unknown or contradictory parameter, model option, policy, objective or stage is refused there."""
    recipe = TOOL.recipe_of(file)
    values = dict(read(file))
    ours = file.parent.name == "data_samples"
    assert values["out"].startswith("runs/") and values["out"].endswith(file.stem)
    said = re.findall(r"-f (params/\S+\.yaml)", file.read_text(encoding="utf-8"))
    assert f"params/{name_of(file)}.yaml" in said
    made = {read(other)["out"] for other in MODELS}
    if recipe in ("fusion", "explanation"):  # of models that other files train
        places = values["systems"].values() if recipe == "fusion" else [values["model"]]
        assert {re.match(r"runs/[^/]+", place)[0] for place in places} <= made
        return
    if recipe == "detection" and values.get("start"):
        assert values.pop("start").removesuffix("/model") in made
    if not ours:
        assert values["data"].startswith("data/")
    check_values(find_recipe(recipe), values | {"data": str(ROOT / "data_samples")})


@pytest.mark.parametrize("file", [f for f in MODELS if name_of(f) in SIZES], ids=name_of)
def test_each_model_has_the_size_that_the_index_states(file):
    assert [n / 1e6 for n in size_of(file)] == pytest.approx(SIZES[name_of(file)], abs=0.00051)
    upstream = read(file)["model_options"].get("upstream")
    if upstream:
        known = UPSTREAMS[upstream]
        assert (SHAPES[upstream].dim, SHAPES[upstream].layers + 1) == (known.dim, known.states)


ENCODER = {
    768: 95_044_608,
    1024: 317_390_592,
}  # published, wav2vec 2.0 and XLSR-53 with what only pre-training needs
ONLY_PRETRAINING = {768: 672_896, 1024: 1_951_872}  # quantizer and two projections
HEADS = {  # file: published parameters behind the upstream, and those of our head and mean over states
    "partialspoof/wedefense_v01_lcnn_lstm": (549_440, 514),
    "partialspoof/wedefense_v03_resnet18": (4_105_440, 512 + 514),
    "partialspoof/wedefense_v11_gmlp": (374_698, 32 + 34 + 25),
    "partialspoof/wedefense_v12_res1d": (5_646_592, 256 + 25),
    "partialspoof/wedefense_v13_aasist": (487_624, 512 + 514 + 25),
    "partialspoof/wedefense_v14_sls": (4_366_083, 514),
    "partialspoof/wedefense_v15_mhfa": (1_315_410, 512 + 514),
    "partialspoof/frozen_hubert_base_mhfa": (1_249_850, 512 + 514),
    "partialspoof/wedefense_bam": (50_348_323, 0),
    "asvspoof2019_la/aasist": (297_866, 0),
    "asvspoof2019_la/aasist_l": (85_306, 0),
    "asvspoof2019_la/rawnet2": (17_621_410, 0),
    "asvspoof2019_la/rawnet2_2019": (25_433_602, 0),
    "asvspoof2019_la/lcnn_lstm": (275_840, 2 * 64 + 2),
    "asvspoof2019_la/ssl_aasist_rawboost5": (447_242, 0),
    "asvspoof2019_la/nes2net_x": (512_039, 0),
    "asvspoof2019_la/two_stage_wav2vec2": (1_538, 0),
    "antideepfake/post_mms_300m": (2 * 1024 + 2, 0),
}


@pytest.mark.parametrize("name", HEADS)
def test_published_numbers_of_parameters(name):
    """To the last one: of the networks behind an upstream, and of the upstream itself where it is published."""
    file = ROOT / f"params/{name}.yaml"
    published, added = HEADS[name]
    behind = 0
    upstream = read(file)["model_options"].get("upstream")
    if upstream:
        dim = SHAPES[upstream].dim
        lengths_and_mask = SHAPES[upstream].pos_kernel + dim  # weight norm's, and what stands for masked frames
        behind = ENCODER[dim] - ONLY_PRETRAINING[dim] - lengths_and_mask
    assert size_of(file)[0] - behind == published + added


# Learning


def forms() -> dict:
    """One file for each form of model: what differs by upstream, schedule or a number alone is the same form."""
    found = {}
    for file in MODELS:
        values = read(file)
        options = {name: value for name, value in values["model_options"].items() if isinstance(value, bool | str)}
        options.pop("upstream", None)
        found.setdefault((values["model"], json.dumps(options), values.get("frame_balance")), file)
    return found


def a_batch(seconds: float = 0.5) -> Batch:
    torch.manual_seed(0)
    lengths = torch.full((2,), int(16_000 * seconds))
    fakes = [np.array([[0.1, 0.3]]), np.zeros((0, 2))]
    return Batch(0.1 * torch.randn(2, int(lengths[0])), lengths, torch.tensor([0, 1]), ["a", "b"], fakes)


@pytest.mark.parametrize("file", forms().values(), ids=name_of)
def test_each_form_of_model_learns_a_step(file):
    values = read(file)
    options = dict(values["model_options"])
    if "upstream" in options:
        options["upstream"] = TOOL.SMALL
    options.pop("samples", None)  # half a second is heard as it is
    config = config_of(values)
    torch.manual_seed(0)
    model = build(values["model"], **options)
    learner = Localization
    if isinstance(model, Detector):
        learner = make_objective(values.get("objective", "detection"), **values.get("objective_options", {}))
    objective = learner(model, config, None)
    objective.train()
    optimizer = torch.optim.AdamW(objective.groups(), lr=config.lr, weight_decay=config.weight_decay)
    before = [p.detach().clone() for group in objective.groups() for p in group["params"]]
    loss = objective(a_batch())
    loss.backward()
    optimizer.step()
    after = [p for group in objective.groups() for p in group["params"]]
    assert torch.isfinite(loss) and all(torch.isfinite(p).all() for p in after)
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_one_file_runs_from_its_first_cell_to_its_last(tmp_path):
    """Two stages, the published form of a back end, averages: all that a file can ask for."""
    corpus = TOOL.small_corpus(tmp_path / "corpus", each=2)
    file = ROOT / "params/partialspoof/tuned_wavlm_base_plus_mhfa_two_stage.yaml"
    folder = TOOL.smoke(file, corpus, tmp_path / "run")
    result = json.loads((folder / "result.json").read_text())
    assert {row["system"] for row in result["metrics"]} >= {"dev, after", "eval, after"}
    noted = result["parameters"]
    assert noted["model_options"]["legacy"] is True and len(noted["stages"]) == 2
    assert (folder / "stage_2").is_dir() and noted["training"]["augment"] == "none"


# The index


def rows() -> list[tuple[dict, dict]]:
    return [(table, row) for table in INDEX["tables"] for row in table["rows"]]


def files_of(row: dict) -> list[str]:
    named = row.get("params", [])
    return [named] if isinstance(named, str) else named


def test_each_row_has_a_file_or_a_reason_and_each_file_a_row():
    named = set()
    for table, row in rows():
        assert ("params" in row) != ("missing" in row), row
        assert table["paper"] in INDEX["papers"]
        assert len(row.get("values", table["columns"])) == len(table["columns"])
        assert len(row.get("means", table["columns"])) == len(table["columns"])
        named |= set(files_of(row))
    ours = {"asvspoof2019_la/resnet18", "asvspoof2019_la/pretraining"}  # no paper's
    known = {name_of(file) for file in FILES if file.parent.name != "data_samples"}
    assert named == known - ours and set(SIZES) == {name_of(f) for f in MODELS} & named


def test_the_zoo_tells_the_same_numbers():
    """Each number of the zoo that stands in the index too is the same one, rounded to a hundredth."""
    agreed = 0
    names = {name: corpus for corpus, name in INDEX["corpora"].items()} | {"ASVspoof5": "asvspoof5"}
    known = {}
    for table, row in rows():
        for file in files_of(row):
            path = ROOT / f"params/{file}.yaml"
            if path not in MODELS:
                continue
            model = read(path)["model"]
            for column, value in zip(table["columns"], row.get("values", []), strict=False):
                if column["measure"] == "eer" and value is not None and column["tested"].endswith("/eval"):
                    key = (model, row.get("trained", table.get("trained")), column["tested"].split("/")[0])
                    known.setdefault(key, []).append(round(value, 2))
    for detector in DETECTORS:
        for row in published_errors(detector).itertuples():
            key = (detector, names[row.trained], names[row.tested])
            if key in known and not row.source.startswith("spoof-SUPERB"):
                assert round(100 * row.eer, 2) in known[key], (detector, row)
                agreed += 1
    assert agreed >= 20
