"""Experiments in notebooks: what can be set is checked, and what happened is written down."""

import ast
import dataclasses
import json
import os
import shutil
import subprocess

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from tests.conftest import ROOT
from tests.training.runs import tiny_recipe
from wedefense_nb.data.audio import save
from wedefense_nb.data.manifest import Manifest
from wedefense_nb.features.upstreams import Upstream
from wedefense_nb.localization.frame_files import read_frame_scores
from wedefense_nb.localization.localizers import localize
from wedefense_nb.localization.metrics import frame_rates, point_eer
from wedefense_nb.metrics import cllr, eer
from wedefense_nb.models.detector import build, load_model, save_model
from wedefense_nb.scores.calibration import load_calibration
from wedefense_nb.scores.fusion import LinearFusion
from wedefense_nb.task import label_ids
from wedefense_nb.training import recipes
from wedefense_nb.training.generality import attack_folds, held_out_errors
from wedefense_nb.training.loop import FitConfig
from wedefense_nb.training.recipes import (
    check_values,
    environment,
    find_recipe,
    fit_parameters,
    merge_parameters,
    recipe_parameters,
    run_recipe,
    start_run,
)
from wedefense_nb.training.scoring import score
from wedefense_nb.use.predict import CANNOT_SAY, Predictor

RECIPES = sorted((ROOT / "nbs/recipes").glob("*.ipynb"))
SCORES = ROOT / "data_samples/scores"


# Parameters


def merged(*pairs, file=None):
    return merge_parameters(find_recipe("detection"), file, [pair.split("=", 1) for pair in pairs])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("epochs: 7\nlr: 1e-4\nmodel: resnet18\n")
    return path


def test_recipes_are_found_by_name_and_path(tmp_path, monkeypatch):
    detection = ROOT / "nbs/recipes/detection.ipynb"
    assert find_recipe("detection") == detection and find_recipe(str(detection)) == detection
    monkeypatch.chdir(tmp_path)  # among those of the package
    assert find_recipe("detection") == detection
    with pytest.raises(ValueError, match="unknown recipe 'detecton': did you mean 'detection'"):
        find_recipe("detecton")


def test_the_command_line_wins_over_the_file_and_both_over_the_recipe(file):
    got = merged("epochs=9", "data=a b", "balance=true", "model_options={n_mels: 40}", file=file)
    training = got.pop("training")
    assert got == {"model": "resnet18", "data": "a b", "model_options": {"n_mels": 40}}
    assert training["epochs"] == 9 and training["lr"] == 1e-4 and training["balance"] is True
    own = recipes._literals(find_recipe("detection"))["training"]["default"]
    assert training["batch_size"] == own["batch_size"] and set(training) == {*own, "lr"}


def test_fields_may_be_put_together_and_the_later_one_still_wins(file):
    file.write_text("training: {epochs: 7, lr: 1e-4, seed: 5}\n")
    got = merged("epochs=9", file=file)
    assert got["training"]["epochs"] == 9 and got["training"]["lr"] == 1e-4
    assert got["seed"] == 5  # the recipe's own
    assert merged("epochs=9", "training={epochs: 4}")["training"]["epochs"] == 4
    with pytest.raises(ValueError, match="parameter training: 3 is not of type dict"):
        merged("training=3")


@pytest.mark.parametrize(
    "pair, what",
    [
        ("epoch=1", "unknown parameter 'epoch': did you mean 'epochs'"),
        ("Epochs=1", "unknown parameter 'Epochs'"),
        ("epochs=", "no value"),
        ("epochs=many", "epochs.*valid integer"),
        ("epochs=1.5", "epochs.*valid integer"),
        ("epochs=0", "epochs is 0"),
        ("balance=3", "balance.*valid boolean"),
        ("lr=fast", "lr.*valid number"),
        ("model=3", "not of type str"),
        ("seed=true", "not of type int"),
        ("p_spoof=half", "not of type float"),
        ("optimizer=sgdd", "unknown parameter 'optimizer'"),
        ("batch_seconds=20", "unset one"),
        ("model_options={a", "'{a' is not YAML"),
    ],
)
def test_wrong_parameters_are_refused_in_one_line(pair, what):
    with pytest.raises(ValueError, match=what) as error:
        merged(pair)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, what",
    [
        ("learning_rate: 1\n", "unknown parameter 'learning_rate'.*lr"),
        ("- epochs\n", "expected lines of the form"),
        ("epochs: [1\n", "p.yaml: while parsing"),
    ],
)
def test_wrong_files_are_refused_in_one_line(file, text, what):
    file.write_text(text)
    with pytest.raises(ValueError, match=what) as error:
        merged(file=file)
    assert "\n" not in str(error.value)


def test_a_file_of_comments_alone_changes_nothing(file):
    file.write_text("# everything at its default\n")
    assert merged(file=file) == {}


def test_numbers_are_read_as_they_are_written():
    assert merged("p_spoof=1e-2") == {"p_spoof": 0.01} and merged("p_spoof=1") == {"p_spoof": 1.0}
    assert merged("crop=null")["training"]["crop"] is None
    assert merged("lr=3e-4")["training"]["lr"] == 3e-4
    assert merged("class_weights=[1, 2]")["training"]["class_weights"] == (1.0, 2.0)


def test_another_model_comes_without_the_options_of_the_one_before(file, capsys):
    assert merged("model=resnet18") == {"model": "resnet18", "model_options": {}}
    said = capsys.readouterr().err
    assert (
        said == "model_options of 'committee' are left out, since model is 'resnet18': it has its own defaults\n"
    )
    file.write_text("model: resnet18\nmodel_options: {n_mels: 40}\n")
    for pairs, model, options in [
        ([], "resnet18", {"n_mels": 40}),
        (["model=resnet18"], "resnet18", {"n_mels": 40}),
        (["model_options={n_mels: 20}"], "resnet18", {"n_mels": 20}),
        (["model=bands", "model_options={n_mels: 20}"], "bands", {"n_mels": 20}),
        (["model_options={n_mels: 20}", "model=bands"], "bands", {"n_mels": 20}),
    ]:
        got = merged(*pairs, file=file)
        assert (got["model"], got["model_options"]) == (model, options) and not capsys.readouterr().err
    assert merged("model=bands", file=file)["model_options"] == {} and "of 'resnet18'" in capsys.readouterr().err
    file.write_text("model: bands\n")
    assert merged("model_options={n_mels: 20}", file=file)["model_options"] == {"n_mels": 20}
    assert not capsys.readouterr().err
    assert "model_options" not in merged("model=committee")  # the same as before
    assert merged("objective=mixup")["objective_options"] == {} and not capsys.readouterr().err  # nothing was lost


def test_every_model_can_be_named_alone():
    """Also on top of a parameter file of another."""
    for file in (None, ROOT / "params/data_samples/resnet18.yaml"):
        for name in ("bands", "lcnn_lstm", "aasist_l"):
            values = merge_parameters(find_recipe("detection"), file, [("model", name)])
            check_values(find_recipe("detection"), values)


def test_all_settings_of_the_loop_are_parameters_of_every_recipe_that_trains():
    fields = {field.name for field in dataclasses.fields(FitConfig)}
    for name in ("detection", "localization", "pretraining", "generalisation"):
        assert fields <= set(recipe_parameters(find_recipe(name)))
    for pair in ("class_weights=[2, 1]", "warmup=0.2", "clip=1", "average_by=last", "save_every=7"):
        name, text = pair.split("=")
        found = merged(pair)["training"][name]
        assert found == (tuple(yaml.safe_load(text)) if name == "class_weights" else yaml.safe_load(text))


@pytest.mark.parametrize(
    "recipe, value, what",
    [
        ("detection", {"p_spoof": 2.0}, "p_spoof is 2.0: it must lie between 0 and 1"),
        ("detection", {"p_spoof": 1.0}, "p_spoof is 1.0"),
        ("detection", {"replicates": -5}, "replicates is -5: it must be at least 1"),
        ("detection", {"model": "resnet19", "model_options": {}}, "unknown detector or localizer 'resnet19'"),
        ("detection", {"model": "bands", "model_options": {"mels": 3}}, "unknown option of bands 'mels'"),
        ("detection", {"model": "bands", "model_options": {"n_mels": "x"}}, "detection.ipynb: TypeError"),
        ("detection", {"model": "ssl_mhfa", "model_options": {"upstream": "x", "mels": 3}}, "option of ssl_mhfa"),
        ("detection", {"model": "no_such:net", "model_options": {}}, "no module 'no_such'"),
        ("detection", {"objective": "detektion"}, "unknown objective 'detektion'"),
        ("detection", {"objective_options": {"alpha": 1}}, "unknown option of objective detection"),
        ("detection", {"training": {"augment": "rawboost+nois"}}, "unknown augmentation 'nois'"),
        ("detection", {"data": "nowhere"}, "nowhere: not found.*prepare generic"),
        ("detection", {"start": "nowhere"}, "nowhere: not found"),
        ("localization", {"rule": "most"}, "unknown rule 'most'; there are any, majority"),
        ("localization", {"threshold": "f2"}, "unknown threshold 'f2'"),
        ("localization", {"validation": "eer"}, "eer"),
        ("localization", {"tolerance": -1.0}, "tolerance is -1.0"),
        ("localization", {"data": "nowhere"}, "prepare generic"),
        ("fusion", {"systems": {"alone": "x"}}, "needs two systems or more, got \\['alone'\\]"),
        ("fusion", {"ridge": -1.0}, "ridge is -1.0: it must be at least 0"),
        ("fusion", {"column": "posterior"}, "column is 'posterior'"),
        ("evaluation", {"p_spoof": 0.0}, "p_spoof is 0.0"),
        ("evaluation", {"systems": {}}, "an evaluation needs a system"),
        ("evaluation", {"c_fa": -1.0}, "c_fa is -1.0"),
        ("pretraining", {"task": "bert"}, "'bert'"),
        ("pretraining", {"size": "huge"}, "huge"),
        ("pretraining", {"label": "real"}, "unknown label 'real'"),
        ("generalisation", {"steps": {"a": {"model": "bands", "model_options": {"x": 1}}}}, "option of bands 'x'"),
        ("generalisation", {"steps": {"a": {"modle": "bands"}}}, "unknown part of a step 'modle'"),
        ("generalisation", {"steps": {"a": {"training": {"epoch": 3}}}}, "epoch"),
        ("generalisation", {"steps": {"a": {"objective": "detektion"}}}, "detektion"),
        ("generalisation", {"seeds": []}, "seeds is 0"),
    ],
)
def test_a_value_that_cannot_be_right_is_refused_before_anything_starts(tmp_path, recipe, value, what):
    out = tmp_path / "run"
    with pytest.raises((ValueError, OSError), match=what) as error:
        run_recipe(recipe, {"out": str(out), **value})
    assert not out.exists() and "\n" not in str(error.value)


def test_a_step_with_another_model_comes_without_the_options_of_the_start():
    start = {"model": "xvector", "model_options": {"width": 32}}
    values = {"start": start, "steps": {"a": {}, "b": {"model": "bands"}, "c": {"model_options": {"width": 64}}}}
    check_values(find_recipe("generalisation"), values)


def test_fields_of_the_loop_stand_beside_the_recipes_own_parameters():
    known = recipe_parameters(find_recipe("detection"))
    assert known["epochs"]["default"] == 12 and known["lr"]["default"] == 1e-3 and "training" not in known
    assert known["seed"]["help"] == "of everything random"
    with pytest.raises(ValueError, match="unknown field of FitConfig 'epoch': did you mean 'epochs'"):
        fit_parameters({"epoch": 3})


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_parameters_are_typed_commented_literals(recipe):
    known = recipe_parameters(recipe)
    assert {"out", "seed"} <= set(known) and all(p["help"] for p in known.values())
    cells = nbformat.read(recipe, as_version=4).cells
    (source,) = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    for node in ast.parse(source).body:
        assert isinstance(node, ast.AnnAssign) and "  # " in source.splitlines()[node.end_lineno - 1]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_starts_its_run_straight_after_its_parameters(recipe):
    """There `globals()` holds the parameters and nothing else."""
    code = [cell for cell in nbformat.read(recipe, as_version=4).cells if cell.cell_type == "code"]
    assert code[0].metadata.tags == ["parameters"]
    assert all(cell.metadata.get("tags") == ["checks"] for cell in code[2:] if "tags" in cell.metadata)
    lines = code[1].source.splitlines()
    assert lines[-1] == f'run = start_run("{recipe.stem}", globals())' and lines[0].startswith("from wedefense_nb")
    assert code[-1].source.startswith("run.finish(")


def test_a_notebook_without_parameters_is_no_recipe():
    with pytest.raises(ValueError, match="no cell tagged 'parameters'"):
        recipe_parameters(ROOT / "nbs/0_question/01_task.ipynb")


# What is written down


def test_the_environment_says_what_bits_depend_on(monkeypatch):
    facts = environment()
    assert facts["threads"] == torch.get_num_threads() and facts["cores"] == os.cpu_count()
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0] and facts["processor"]
    monkeypatch.setattr(recipes, "LIBRARIES", ("no-such-library",))
    assert environment()["versions"]["no-such-library"] is None


def test_the_commit_is_marked_where_files_were_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes.importlib.resources, "files", lambda name: tmp_path / name)
    assert recipes._commit() is None

    def git(*arguments):
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        command = ["git", *identity, *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    assert recipes._commit() is None  # nothing was committed yet
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-q", "-m", "first")
    assert recipes._commit() == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("two")
    assert recipes._commit() == git("rev-parse", "HEAD") + "+"


def test_a_run_notes_its_parameters_first_and_its_result_last(tmp_path):
    names = {"out": str(tmp_path / "run"), "seed": 3, "sizes": (1, 2), "options": {"a": None}}
    others = {"In": ["x"], "Out": {}, "_private": 1, "torch": torch, "function": print}
    (tmp_path / "run").mkdir()
    (tmp_path / "run/result.json").write_text("of an earlier execution")
    run = start_run("toy", names | others)
    assert not (run / "result.json").exists()
    noted = yaml.safe_load((run / "params.yaml").read_text())
    assert noted == names | {"sizes": [1, 2]}
    assert json.loads((run / "environment.json").read_text())["threads"] == torch.get_num_threads()
    run.started -= 60
    assert run.finish(metrics=[1], seed=4) == run / "result.json"
    result = json.loads((run / "result.json").read_text())
    assert result["recipe"] == "toy" and result["parameters"] == noted and result["metrics"] == [1]
    assert result["seed"] == 4 and 60 <= result["wall_time_s"] < 120
    assert {"versions", "commit", "processor", "threads", "device"} <= set(result)


def test_bars_leave_their_last_state():
    output = nbformat.v4.new_output
    pieces = ["train:  1%\r", "train: 50%\r", "train: 100%\n", "\x1b[A"]
    outputs = [output("stream", name="stderr", text=text) for text in pieces]
    outputs += [output("stream", name="stdout", text="\n"), output("display_data", data={"text/plain": "x"})]
    kept = recipes._joined(outputs)
    assert [out.get("text", "").strip() for out in kept] == ["train: 100%", ""] and kept[1].data


# Running


def test_a_failing_recipe_leaves_its_notebook_and_shows_the_cell(tmp_path):
    recipe = tiny_recipe(tmp_path / "bad.ipynb", "print('half way')", "1 / seed")
    with pytest.raises(RuntimeError, match="ZeroDivisionError") as error:
        run_recipe(recipe, {}, stream=False)
    assert "1 / seed" in str(error.value) and f"{tmp_path}/run/bad.ipynb" in str(error.value)
    partial = nbformat.read(tmp_path / "run/bad.ipynb", 4)
    assert any("half way" in str(cell.get("outputs")) for cell in partial.cells)


def test_a_recipe_is_executed_with_its_values_and_becomes_a_page(tmp_path, capfd):
    recipe = tiny_recipe(tmp_path / "good.ipynb", "print('seed', seed * 2)")
    folder = run_recipe(recipe, {"seed": 21, "out": str(tmp_path / "there")})
    assert folder == tmp_path / "there" and {p.name for p in folder.iterdir()} == {"good.ipynb", "good.html"}
    assert "seed 42" in capfd.readouterr().out and "seed 42" in (folder / "good.html").read_text()


def test_values_reach_the_notebook_as_what_they_are(tmp_path, monkeypatch):
    """Not as text: papermill would quote a tuple, such as the weights of the classes."""
    import papermill

    arrived = {}
    monkeypatch.setattr(recipes, "_tidy", lambda notebook: notebook)
    monkeypatch.setattr(papermill, "execute_notebook", lambda recipe, out, values, **rest: arrived.update(values))
    values = merged("class_weights=[2, 1]", "model=bands", f"out={tmp_path / 'run'}")
    run_recipe("detection", values, stream=False)
    assert arrived["training"]["class_weights"] == [2.0, 1.0] and arrived["model"] == "bands"


def test_a_folder_with_another_run_is_refused_before_anything_is_touched(tmp_path, monkeypatch):
    detection = find_recipe("detection")
    folder = tmp_path / "run"
    defaults = {name: p["default"] for name, p in recipes._literals(detection).items()}
    start_run("detection", defaults | {"out": str(folder)})
    shutil.copy(detection, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for change, what in [
        ({"training": {"epochs": 3}}, "epochs: 12 before, 3 now"),
        ({"training": {"lr": 0.5}}, "lr: 0.001 before, 0.5 now"),
        ({"seed": 1}, "seed: 0 before, 1 now"),
    ]:
        with pytest.raises(ValueError, match=what) as error:
            run_recipe("detection", {"out": str(folder), **change})
        assert "choose another folder or delete it" in str(error.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    own = defaults["training"]
    for allowed in (
        {},
        {"out": "elsewhere"},
        {"training": own | {"workers": 2}},
        {"training": own | {"lr": 1e-3}},
        {"final": True},
    ):
        recipes.refuse_others(folder, detection, allowed)
    recipes.refuse_others(folder, find_recipe("fusion"), {})  # another recipe may live in the same folder


@pytest.fixture(scope="module")
def tables():
    """Scores of both systems on both splits, joined by hand."""
    found = {}
    for split in ("dev", "eval"):
        found[split] = pd.read_csv(SCORES / f"lcnn/{split}.csv").set_index("utt")
        other = pd.read_csv(SCORES / f"resnet/{split}.csv").set_index("utt").loc[found[split].index]
        found[split]["score_resnet"] = other.score
        found[split]["llr_resnet"] = other.llr
    return found


def test_the_recipe_detection_runs_headlessly(tmp_path):
    """Of the default detector, in one epoch: the model folder holds all that a judgement needs."""
    pairs = [("epochs", "1"), ("replicates", "30"), ("final", "true"), ("out", str(tmp_path / "run"))]
    folder = run_recipe("detection", merge_parameters(find_recipe("detection"), None, pairs), stream=False)
    result = json.loads((folder / "result.json").read_text())
    assert result["epochs"] == [0] and result["training"]["epochs"] == 1
    assert {row["metric"] for row in result["metrics"]} >= {"eer", "min_dcf", "act_dcf", "cllr", "min_cllr"}
    corpus = Manifest.read(ROOT / "data_samples")
    calibration = load_calibration(folder / "model/calibration.json")
    for name in ("dev", "eval"):
        table = pd.read_csv(folder / f"scores/{name}.csv")
        truth = corpus.subset(split=name).utterances
        assert table.utt.tolist() == truth.utt.tolist() and table.label.tolist() == truth.label.tolist()
        assert np.allclose(calibration.transform(table.score), table.llr, atol=1e-6)
    one = corpus.subset(utt=[table.utt.iloc[0]])
    assert score(load_model(folder / "model"), one, progress=False).score.iloc[0] == pytest.approx(
        table.score.iloc[0], abs=1e-4
    )
    assert {"card.md", "config.yaml", "model.safetensors"} < {p.name for p in (folder / "model").iterdir()}
    assert (folder / "detection.html").is_file()


def test_the_recipe_pretraining_runs_headlessly(tmp_path):
    pairs = [("epochs", "1"), ("out", str(tmp_path / "run"))]
    folder = run_recipe("pretraining", merge_parameters(find_recipe("pretraining"), None, pairs), stream=False)
    result = json.loads((folder / "result.json").read_text())
    assert 0 < result["dev_masked_loss"] < result["fresh_dev_loss"] and result["epochs"] == [0]
    wave = torch.zeros(1, 16000)
    states, frames = Upstream(folder / "upstream", layers="all").eval()(wave, torch.tensor([16000]))
    assert states.shape[0] == 1 and states.isfinite().all() and frames.tolist() == [states.shape[2]]
    heard = Manifest.read(ROOT / "data_samples").subset(split="train", label="bonafide")
    assert f"Heard: {len(heard)} recordings" in (folder / "upstream/README.md").read_text()


def test_the_recipe_explanation_runs_headlessly(tmp_path):
    """On a model folder: maps that know nothing stand at chance, and every method has its row."""
    torch.manual_seed(0)
    model = save_model(build("bands"), tmp_path / "model")
    values = {"model": model, "recordings": 4, "sane": 1, "shown": 1, "replicates": 30, "out": tmp_path / "run"}
    values["methods"] = "{random: {}, energy: {}, saliency: {}}"
    pairs = [(name, str(value)) for name, value in values.items()]
    folder = run_recipe("explanation", merge_parameters(find_recipe("explanation"), None, pairs), stream=False)
    result = json.loads((folder / "result.json").read_text())
    rows = pd.DataFrame(result["explanations"])
    assert len(result["recordings"]) == 4 and set(rows.method) == {"random", "energy", "saliency"}
    chance = rows[(rows.method == "random") & (rows.score == "auc")].value.item()
    assert 0.3 < chance < 0.7 and set(result["rcq"]) == {"random", "energy", "saliency"}
    assert result["sanity"] and not result["refused"] and (folder / "explanation.html").is_file()


def test_every_recipe_is_run_here_or_beside_its_objective():
    """`nbdev-test` leaves the recipes out: here they run smaller, and their results are looked at."""
    recipes_there = {path.stem for path in (ROOT / "nbs/recipes").glob("*.ipynb")}
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    missing = {name for name in recipes_there if f"def test_the_recipe_{name}_runs_headlessly" not in tests}
    assert recipes_there and not missing, f"no test runs {missing}"


def test_the_recipe_evaluation_runs_headlessly(tmp_path, tables):
    pairs = [("replicates", "40"), ("out", str(tmp_path / "run"))]
    folder = run_recipe("evaluation", merge_parameters(find_recipe("evaluation"), None, pairs), stream=False)
    result = json.loads((folder / "result.json").read_text())
    found = {(row["system"], row["metric"]): row for row in result["metrics"]}
    labels = label_ids(tables["eval"].label)
    for system, column in (("lcnn", "llr"), ("resnet", "llr_resnet")):
        assert found[system, "eer"]["value"] == pytest.approx(eer(tables["eval"][column], labels))
        assert found[system, "cllr"]["value"] == pytest.approx(cllr(tables["eval"][column], labels))
    assert {metric for _, metric in found} == {"eer", "min_dcf", "act_dcf", "cllr", "min_cllr"}
    assert result["intervals"].startswith(
        "intervals: groups drawn by speaker, 4 bona fide and 9 spoof; too narrow"
    )
    assert found["lcnn", "min_dcf"]["low"] is None and found["lcnn", "eer"]["low"] < found["lcnn", "eer"]["high"]
    difference = next(row for row in result["differences"] if row["metric"] == "eer")
    assert difference["value"] == pytest.approx(found["lcnn", "eer"]["value"] - found["resnet", "eer"]["value"])
    assert {row["by"] for row in result["breakdown"]} == {"attack", "language", "duration"}
    assert (folder / "evaluation.html").is_file()


def test_the_recipe_localization_runs_headlessly_and_continues(tmp_path):
    rng = np.random.default_rng(0)
    speech, fakes = tmp_path / "speech", tmp_path / "fakes"
    for folder in (speech, fakes):
        (folder / "ann").mkdir(parents=True)
        for i in range(3):
            save(folder / f"ann/{i}.wav", rng.normal(size=12000).astype(np.float32) / 9)
    options = [
        "model=frame_linear",
        "model_options={utterance: learned}",
        "epochs=1",
        "replicates=30",
        "share=0.3",
        "augment=splices",
        f"speech={speech}",
        f"fakes={fakes}",
        "refine=1",
        "reference=30",
        "final=true",
    ]
    pairs = [pair.split("=", 1) for pair in [*options, "validation=both_eer", f"out={tmp_path / 'run'}"]]
    values = merge_parameters(find_recipe("localization"), None, pairs)
    folder = run_recipe("localization", values, stream=False)
    result = json.loads((folder / "result.json").read_text())
    metrics = pd.DataFrame(result["metrics"]).set_index(["set", "metric", "resolution"])
    assert {"point EER", "range EER", "f1 (spoof)", "boundary error", "utterance EER", "Cllr"} <= set(
        metrics.index.get_level_values("metric")
    )
    truth = Manifest.read(ROOT / "data_samples").subset(split="eval")
    frames, hop = read_frame_scores(folder / "scores/eval_frames.npz")
    assert list(frames) == truth.utterances.utt.tolist() and hop == 0.01
    assert metrics.value["eval", "point EER", 0.16] == pytest.approx(
        point_eer(frames, truth, 0.01, 0.16), abs=1e-6
    )
    rates = frame_rates(frames, truth, 0.01, result["threshold"]["value"])
    assert metrics.value["eval", "f1 (spoof)", 0.01] == pytest.approx(rates["f1"], abs=1e-3)
    assert list(result["dev_error"]) == ["dev_both_eer"] and {r["system"] for r in result["recordings"]} == {
        "dev",
        "eval",
    }
    looked = pd.DataFrame(result["proposals"]).set_index(["system", "metric"]).value
    assert {"coarse", "refined"} == set(looked.index.get_level_values(0)) and looked.between(0, 1).all()
    assert (folder / "refiner.safetensors").is_file()
    with pytest.raises(Exception, match="nowhere: no such folder"):
        run_recipe("localization", values | {"speech": "nowhere", "out": str(tmp_path / "no")}, stream=False)
    model = load_model(folder / "model")
    calibration = load_calibration(folder / "model/calibration.json")
    save(tmp_path / "tone.wav", np.sin(np.arange(32000) / 9).astype(np.float32) / 9)
    judged = Predictor.from_folder(folder / "model").detect(tmp_path / "tone.wav")
    assert judged.decision == CANNOT_SAY and judged.model["reference"]["train"] == 30
    one = truth.subset(utt=[truth.utterances.utt.iloc[0]])
    (name, scores), *_ = localize(model, one, progress=False).items()
    assert np.allclose(calibration.transform(scores), frames[name], atol=1e-4)
    trained = (folder / "checkpoints/last.pt").stat().st_mtime
    run_recipe("localization", values, stream=False)  # the training is there: it is not done again
    assert (folder / "checkpoints/last.pt").stat().st_mtime == trained
    assert json.loads((folder / "result.json").read_text())["metrics"] == result["metrics"]


def test_the_recipe_fusion_runs_headlessly(tmp_path, tables):
    pairs = [("replicates", "40"), ("out", str(tmp_path / "run"))]
    folder = run_recipe("fusion", merge_parameters(find_recipe("fusion"), None, pairs), stream=False)
    result = json.loads((folder / "result.json").read_text())
    columns = ["score", "score_resnet"]
    fusion = LinearFusion().fit(tables["dev"][columns], label_ids(tables["dev"].label))
    assert list(result["fusion"]["weights"].values()) == pytest.approx(fusion.weights_.tolist(), abs=1e-6)
    fused = pd.read_csv(folder / "scores/eval.csv").set_index("utt").loc[tables["eval"].index]
    assert np.allclose(fused.llr, fusion.transform(tables["eval"][columns]), atol=1e-6)
    assert {row["system"] for row in result["metrics"]} == {"lcnn", "resnet", "average", "linear"}
    assert {row["system"] for row in result["worth"]} == {"lcnn", "resnet"}


def test_the_recipe_generalisation_runs_headlessly_and_continues(tmp_path):
    steps = "{plain: {}, copies: {training: {augment: copies}}}"
    options = ["epochs=1", "replicates=30", "final=true", "held=[lpc]", "seeds=[0, 1]", f"steps={steps}"]
    pairs = [pair.split("=", 1) for pair in [*options, f"out={tmp_path / 'run'}"]]
    values = merge_parameters(find_recipe("generalisation"), None, pairs)
    folder = run_recipe("generalisation", values, stream=False)
    result = json.loads((folder / "result.json").read_text())
    corpus = Manifest.read(ROOT / "data_samples")
    (fold,) = attack_folds(corpus.subset(split="train"), corpus.subset(split="dev"), families={"lpc": ["lpc"]})
    assert "lpc" not in set(fold.train.utterances.attack) | set(fold.dev.utterances.attack)
    found = {}
    for step in ("plain", "copies"):
        tables = []
        for number in (0, 1):
            table = pd.read_csv(folder / f"folds/{step}-lpc-{number}.csv", dtype={"utt": str})
            assert sorted(table.utt) == sorted(fold.test.utterances.utt)
            tables.append(table.assign(held=f"lpc #{number}"))
        found[step] = pd.concat(tables, ignore_index=True)
    errors = {row["step"]: row for row in result["errors"]}
    for step, table in found.items():
        assert errors[step]["mean"] == pytest.approx(100 * held_out_errors(table).eer["mean"])
    (change,) = result["changes"]
    assert change["points"] == pytest.approx(errors["copies"]["mean"] - errors["plain"]["mean"])
    assert result["chosen"] == min(errors, key=lambda step: errors[step]["mean"])
    assert set(result["eval_by_attack"]) == {"plain", result["chosen"]}
    log = (folder / "folds/copies-lpc-0/checkpoints/last.pt").stat().st_mtime
    (folder / "folds/copies-lpc-1.csv").unlink()  # as if the run had been stopped there
    run_recipe("generalisation", values, stream=False)
    assert (folder / "folds/copies-lpc-0/checkpoints/last.pt").stat().st_mtime == log
    assert json.loads((folder / "result.json").read_text())["errors"] == result["errors"]
