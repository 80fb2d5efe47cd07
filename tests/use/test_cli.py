import ast
import json
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import yaml
from typer.testing import CliRunner

from wedefense_nb.data.manifest import Manifest
from wedefense_nb.training.recipes import find_recipe, merge_parameters, recipe_parameters, run_recipe
from wedefense_nb.registry import import_modules
from wedefense_nb.use.cli import app

from tests.conftest import ROOT

import_modules("wedefense_nb.use.commands")  # what the program does before it looks at its arguments
COMMANDS = (
    "demo",
    "run",
    "corpora",
    "download",
    "prepare",
    "shard",
    "extract",
    "score",
    "evaluate",
    "calibrate",
    "fuse",
)


def command(*args, cwd=ROOT, progress=False, **kwargs):
    """The installed command, as a user calls it."""
    env = os.environ | {"NO_COLOR": "1", "TERM": "dumb"}
    if progress:
        env.pop("TQDM_DISABLE")
    exe = os.path.join(os.path.dirname(sys.executable), "wedefense-nb")
    return subprocess.run([exe, *map(str, args)], cwd=cwd, env=env, capture_output=True, text=True, **kwargs)


def test_help_shows_commands_and_examples():
    out = CliRunner().invoke(app, ["--help"], env={"NO_COLOR": "1"}).output
    assert all(c in out for c in COMMANDS)
    for c in COMMANDS:
        result = CliRunner().invoke(app, [c, "--help"], env={"NO_COLOR": "1"})
        assert result.exit_code == 0 and "Example" in result.output and f"wedefense-nb {c}" in result.output


def test_parameters_are_checked(tmp_path):
    recipe = find_recipe("detection")

    def merge(*pairs, file=None):
        return merge_parameters(recipe, file, [p.split("=", 1) for p in pairs])

    file = tmp_path / "p.yaml"
    file.write_text("epochs: 7\nlr: 1e-4\nmodel: resnet18\n")
    got = merge("epochs=9", "data=a b", "balance=true", "model_options={n_mels: 40}", file=file)
    training = {"epochs": 9, "lr": 1e-4, "balance": True}
    assert got == {
        "model": "resnet18",
        "data": "a b",
        "model_options": {"n_mels": 40},
        "training": got["training"],
    }
    assert training.items() <= got["training"].items()
    for pair, what in [
        ("epoch=1", "unknown parameter 'epoch': did you mean 'epochs'"),
        ("epochs=", "no value"),
        ("epochs=many", "epochs.*valid integer"),
        ("epochs=1.5", "epochs.*valid integer"),
        ("epochs=0", "epochs"),
        ("balance=3", "balance.*valid boolean"),
        ("lr=fast", "lr.*valid number"),
        ("model=3", "not of type str"),
        ("optimizer=sgdd", "optimizer"),
        ("batch_seconds=20", "batch_seconds"),
    ]:
        with pytest.raises(ValueError, match=what):
            merge(pair)
    file.write_text("learning_rate: 1\n")
    with pytest.raises(ValueError, match="unknown parameter 'learning_rate'.*lr"):
        merge(file=file)


def test_recipes_are_found_by_name_and_path(tmp_path, monkeypatch):
    assert find_recipe("detection") == ROOT / "nbs/recipes/detection.ipynb"
    assert find_recipe(str(ROOT / "nbs/recipes/detection.ipynb")).is_file()
    monkeypatch.chdir(tmp_path)  # beside the package
    assert find_recipe("detection") == ROOT / "nbs/recipes/detection.ipynb"
    with pytest.raises(ValueError, match="unknown recipe 'detecton': did you mean 'detection'"):
        find_recipe("detecton")


@pytest.mark.parametrize("recipe", sorted((ROOT / "nbs/recipes").glob("*.ipynb")), ids=lambda p: p.stem)
def test_recipe_parameters_are_typed_commented_literals(recipe):
    known = recipe_parameters(recipe)
    assert {"out", "seed"} <= set(known) and all(p["help"] for p in known.values())
    cell = next(
        c for c in json.loads(recipe.read_text())["cells"] if "parameters" in c["metadata"].get("tags", [])
    )
    for node in ast.parse("".join(cell["source"])).body:
        assert isinstance(node, ast.AnnAssign) and "# " in cell["source"][node.end_lineno - 1]


@pytest.mark.parametrize(
    "file", sorted((ROOT / "params").rglob("*.yaml")), ids=lambda p: f"{p.parent.name}-{p.stem}"
)
def test_parameter_files_fit_their_recipe_and_model(file):
    from wedefense_nb.models.detector import build

    values = merge_parameters(find_recipe("detection"), file, [])
    assert values["out"].startswith("runs/")
    build(values["model"], **values["model_options"])


@pytest.mark.parametrize(
    "args, what",
    [
        (("run", "detection", "-p", "nope=1"), "unknown parameter 'nope'"),
        (("run", "detection", "-p", "epochs"), "has no value"),
        (("run", "no-such-recipe"), "unknown recipe"),
        (("run", "detection", "-f", "no-such.yaml"), "no-such.yaml"),
        (("score", "no-such-model", "data_samples"), "is this a model folder"),
        (("evaluate", "no-such.csv"), "no-such.csv"),
        (("demo", "--data", "no-such-corpus", "-p", "epochs=zero"), "valid integer"),
        (("frobnicate",), "frobnicate"),
    ],
)
def test_mistakes_get_one_line_and_an_exit_code(args, what, tmp_path):  # pitfall 66
    done = command(*args)
    assert done.returncode != 0 and what in done.stderr.replace("\n", " ") and "Traceback" not in done.stderr
    if done.stderr.startswith("error:"):
        assert len(done.stderr.strip().splitlines()) <= 2


def test_asking_for_help_does_not_load_torch():
    code = "import sys; sys.argv=['x','--help']; import wedefense_nb.use.cli as c\ntry: c.main()\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules and 'papermill' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def corpus(few, tmp_path_factory):
    """A manifest folder with a few recordings, elsewhere on the disk."""
    from wedefense_nb.data.manifest import Manifest

    folder = tmp_path_factory.mktemp("corpus")
    u = few.utterances.assign(path=[str(p) for p in few.paths()])
    Manifest(u, few.segments).write(folder)
    return folder


QUICK = ["-p", "epochs=2", "-p", "replicates=100", "-p", "crop=0.4", "-p", "average=1"]


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    return home, command("demo", "--data", corpus, *QUICK, cwd=home, progress=True)


def test_progress_is_streamed_with_the_time_left(finished):
    bars = finished[1].stderr + finished[1].stdout
    assert re.search(r"train: +\d+%.*\d+/\d+ \[\d+:\d+<\d+:\d+", bars) and "bootstrap" in bars
    assert "epoch 2/2, loss" in bars and "dev EER" in bars


def test_demo_leaves_a_complete_run_folder(finished, corpus):
    home, done = finished
    assert done.returncode == 0, done.stderr[-2000:]
    run = home / "runs" / f"demo-{corpus.name}"
    for metric in ("EER", "minDCF", "actDCF", "Cllr", "minCllr", "eval, before", "eval, after", "dev, after"):
        assert metric in done.stdout
    for path in ("detection.ipynb", "detection.html"):
        assert f"runs/demo-{corpus.name}/{path}" in done.stdout and (run / path).stat().st_size > 10_000
    result = json.loads((run / "result.json").read_text())
    assert result["training"]["epochs"] == 2 and result["threads"] >= 1 and result["processor"]
    assert result["seed"] == 0 and result["wall_time_s"] > 0
    assert {m["metric"] for m in result["metrics"]} == {"eer", "min_dcf", "act_dcf", "cllr", "min_cllr"}
    assert all(m["low"] <= m["value"] + 1e-9 and m["value"] <= m["high"] + 1e-9 for m in result["metrics"])
    assert set(result["versions"]) >= {"python", "wedefense_nb", "torch"}
    assert yaml.safe_load((run / "params.yaml").read_text()) == result["parameters"]
    for split in ("dev", "eval"):
        t = pd.read_csv(run / "scores" / f"{split}.csv")
        assert t.columns.tolist() == ["utt", "score", "llr", "label"] and set(t.label) == {
            "bonafide",
            "spoof",
        }
    assert {p.name for p in (run / "model").iterdir()} == {
        "model.safetensors",
        "config.yaml",
        "calibration.json",
        "card.md",
    }
    assert (run / "checkpoints/last.pt").is_file() and "learning only" not in (run / "model/card.md").read_text()


def test_the_executed_notebook_has_no_piles_of_progress_bars(finished, corpus):
    book = (finished[0] / "runs" / f"demo-{corpus.name}" / "detection.ipynb").read_text()
    assert book.count("steps/s") + book.count("step/s") <= 2 and len(book) < 1_000_000


def test_a_second_start_continues_instead_of_training(finished, corpus):
    home, _ = finished
    checkpoint = home / "runs" / f"demo-{corpus.name}" / "checkpoints" / "last.pt"
    step = checkpoint.stat().st_size
    done = command("demo", "--data", corpus, *QUICK, cwd=home)
    assert done.returncode == 0 and checkpoint.stat().st_size == step
    other = command("demo", "--data", corpus, *QUICK, "-p", "lr=0.5", cwd=home)
    assert (
        other.returncode == 1 and "lr: 0.001 before, 0.5 now" in other.stderr and "another folder" in other.stderr
    )


def test_score_and_evaluate(finished, corpus, tmp_path):
    home, _ = finished
    model = home / "runs" / f"demo-{corpus.name}" / "model"
    done = command("score", model, corpus, "-o", tmp_path / "s.csv", "--split", "eval")
    assert done.returncode == 0 and "recordings scored" in done.stdout
    ours = pd.read_csv(tmp_path / "s.csv").set_index("utt")
    recipe = pd.read_csv(model.parent / "scores/eval.csv").set_index("utt").loc[ours.index]
    assert np.allclose(ours.llr, recipe.llr, atol=1e-3) and np.allclose(ours.score, recipe.score, atol=1e-3)
    done = command("evaluate", tmp_path / "s.csv", "--replicates", "50")
    assert done.returncode == 0 and "minCllr" in done.stdout and "llr" in done.stdout
    sf.write(tmp_path / "one.wav", 0.1 * np.random.default_rng(0).normal(size=22050), 22050)
    done = command("score", model, tmp_path, "-o", tmp_path / "t.csv")
    table = pd.read_csv(tmp_path / "t.csv")
    assert done.returncode == 0 and table.utt.tolist() == ["one"] and table.label.isna().all()
    done = command("score", model, tmp_path / "one.wav", "-o", tmp_path / "u.csv")
    assert done.returncode == 0 and pd.read_csv(tmp_path / "u.csv").llr.equals(table.llr)
    assert command("score", model, corpus, "--split", "test").returncode == 1


def test_evaluate_refuses_doubles_and_reports_inverted_scores(tmp_path):
    y = np.arange(40) % 2
    t = pd.DataFrame(
        {
            "utt": [f"u{i}" for i in range(40)],
            "score": -2.0 * y + np.linspace(0, 1, 40),
            "label": np.where(y, "bonafide", "spoof"),
        }
    )
    t.to_csv(tmp_path / "s.csv", index=False)
    done = command("evaluate", tmp_path / "s.csv", "--replicates", "20")
    assert done.returncode == 0 and "check the sign" in done.stderr
    pd.concat([t, t.head(1)]).to_csv(tmp_path / "s.csv", index=False)
    assert "1 utterances occur more than once (u0)" in command("evaluate", tmp_path / "s.csv").stderr
    t.drop(columns="label").to_csv(tmp_path / "s.csv", index=False)
    assert "has no labels; name a key file with --keys" in command("evaluate", tmp_path / "s.csv").stderr


def test_a_failing_recipe_leaves_its_notebook_and_shows_the_cell(tmp_path):
    import nbformat

    book = nbformat.v4.new_notebook()
    cells = [
        f'out: str = "{tmp_path}/run"  # run folder\nseed: int = 0  # unused',
        "print('half way')",
        "1 / seed",
    ]
    book.cells = [nbformat.v4.new_code_cell(c) for c in cells]
    book.metadata.kernelspec = {"name": "python3", "display_name": "python3", "language": "python"}
    book.cells[0].metadata.tags = ["parameters"]
    nbformat.write(book, tmp_path / "bad.ipynb")
    with pytest.raises(RuntimeError, match="ZeroDivisionError") as error:
        run_recipe(str(tmp_path / "bad.ipynb"), {}, stream=False)
    assert "1 / seed" in str(error.value) and f"{tmp_path}/run/bad.ipynb" in str(error.value)
    partial = nbformat.read(tmp_path / "run/bad.ipynb", 4)
    assert any("half way" in str(c.get("outputs")) for c in partial.cells)


def test_a_notebook_without_parameters_is_no_recipe(tmp_path):
    with pytest.raises(ValueError, match="no cell tagged"):
        recipe_parameters(ROOT / "nbs/0_question/01_task.ipynb")


def test_evaluate_reads_challenge_files_and_breaks_down(tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3 == 0
    utts = [f"E_{i:04d}" for i in range(120)]
    attack = np.where(y, "-", np.where(np.arange(120) % 2 == 0, "A17", "A18"))
    keys = [
        f"S{i % 7} {u} F C05 1 {u} AC1 {'bonafide' if b else a} {'bonafide' if b else 'spoof'} -"
        for i, (u, b, a) in enumerate(zip(utts, y, attack, strict=True))
    ]
    (tmp_path / "key.tsv").write_text("\n".join(keys) + "\n")
    scores = [f"{u}\t{s}" for u, s in zip(utts, rng.normal(size=120) + 3 * y, strict=True)]
    (tmp_path / "llr.txt").write_text("\n".join(["filename\tcm-score", *scores]) + "\n")
    files = [tmp_path / "llr.txt", "--keys", tmp_path / "key.tsv", "--replicates", "30"]
    done = command("evaluate", *files, "--by", "attack")
    assert (
        done.returncode == 0 and "minCllr" in done.stdout and "A17" in done.stdout and "pooled" in done.stdout
    ), done.stderr
    assert "no column ['transmission']" in command("evaluate", *files, "--by", "transmission").stderr
    (tmp_path / "key.tsv").write_text("\n".join(keys[1:]) + "\n")
    assert "keys: 1 missing utterances (E_0000)" in command("evaluate", *files).stderr
    assert command("evaluate", *files, "--allow-extra").returncode == 0


def test_calibrate_and_fuse(tmp_path):
    a, b = (ROOT / "data_samples/scores" / n for n in ("lcnn", "resnet"))
    done = command(
        "calibrate", a / "dev.csv", a / "eval.csv", "-o", tmp_path / "llr.csv", "--save", tmp_path / "c.json"
    )
    assert done.returncode == 0 and "trials calibrated (affine)" in done.stdout, done.stderr
    recipe, ours = (pd.read_csv(p).set_index("utt") for p in (a / "eval.csv", tmp_path / "llr.csv"))
    assert np.allclose(ours.llr, recipe.llr.loc[ours.index], atol=1e-5)  # the recipe's own calibration
    assert json.loads((tmp_path / "c.json").read_text())["kind"] == "affine"
    assert (
        command("calibrate", a / "dev.csv", a / "eval.csv", "--method", "pav", "-o", tmp_path / "p.csv").returncode
        == 0
    )
    refused = command("calibrate", a / "eval.csv", a / "eval.csv", "-o", tmp_path / "q.csv")
    assert (
        refused.returncode == 1 and "ask for it in words" in refused.stderr and not (tmp_path / "q.csv").exists()
    )
    words = ["--allow", "fit on the evaluation set"]
    assert command("calibrate", a / "eval.csv", a / "eval.csv", "-o", tmp_path / "q.csv", *words).returncode == 0
    pair = [f"{n}={d / 'dev.csv'},{d / 'eval.csv'}" for n, d in (("A", a), ("B", b))]
    done = command("fuse", *pair, "-o", tmp_path / "f.csv")
    fused = pd.read_csv(tmp_path / "f.csv")
    assert (
        done.returncode == 0
        and "weights: A " in done.stdout
        and {"utt", "label", "A", "B", "llr"} <= set(fused.columns)
    )
    again = (
        pd.read_csv(tmp_path / "f.csv")
        if command("fuse", *pair[::-1], "-o", tmp_path / "f.csv").returncode == 0
        else None
    )
    # the order of systems does not matter
    assert np.allclose(again.set_index("utt").llr.loc[fused.utt], fused.llr)
    assert "two or more systems" in command("fuse", pair[0]).stderr
    short = pd.read_csv(b / "eval.csv").iloc[1:]
    short.to_csv(tmp_path / "short.csv", index=False)
    assert "1 missing utterances" in command("fuse", pair[0], f"B={b / 'dev.csv'},{tmp_path / 'short.csv'}").stderr


@pytest.mark.parametrize("recipe", ["evaluation", "fusion"])
def test_score_recipes_run_headlessly(recipe, tmp_path):
    done = command("run", recipe, "-p", "replicates=40", "-o", tmp_path / "run", cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert {m["metric"] for m in result["metrics"]} == {"eer", "min_dcf", "act_dcf", "cllr", "min_cllr"}
    assert (tmp_path / f"run/{recipe}.html").is_file() and "minCllr" in done.stdout
    if recipe == "evaluation":
        assert {r["by"] for r in result["breakdown"]} == {"attack", "language", "duration"} and len(
            result["differences"]
        ) == 3
    else:
        assert (
            set(result["fusion"]["weights"]) == {"lcnn", "resnet"} and (tmp_path / "run/scores/eval.csv").is_file()
        )


def test_corpora_are_listed_and_prepared(tmp_path):
    from tests.data.trees import lists, sound, tree

    listed = command("corpora")
    assert (
        listed.returncode == 0 and listed.stdout.count("\n    http") == 19 and "1,004,081 trials" in listed.stdout
    )
    assert (
        "musan" not in command("corpora", "localization").stdout and command("corpora", "cooking").returncode == 1
    )
    root = tree("partialspoof", tmp_path / "ps")
    out = tmp_path / "out"
    done = command("prepare", "partialspoof", root, out, "-o", "resolution=0.16")
    assert done.returncode == 0 and "5 utterances, 4 segments" in done.stdout and "2580" in done.stdout, (
        done.stderr
    )
    assert "train bonafide: published 2,580, found 1; spoof: published 22,800, found 2\n" in done.stdout
    m = Manifest.read(out)  # files=True: every recording is found from anywhere
    assert len(m) == 5 and (out / "report.csv").read_text().startswith("problem,path,detail")
    assert pd.read_csv(out / "counts.csv").published.max() == 63882
    sound(root / "database/train/con_wav/CON_T_9.wav")
    done = command("prepare", "partialspoof", root, tmp_path / "strict", "--strict")
    assert done.returncode == 1 and "1 extra, first: train/con_wav/CON_T_9.wav" in done.stderr
    assert not (tmp_path / "strict/utterances.csv").exists()
    done = command("prepare", "in_the_wild", lists("in_the_wild", tmp_path / "w"), tmp_path / "wild", "--no-files")
    assert done.returncode == 0 and len(Manifest.read(tmp_path / "wild", files=False)) == 3
    done = command("prepare", "asvspoof5", tmp_path / "w", tmp_path / "no")
    assert (
        done.returncode == 1
        and "Expected here: ASVspoof5_protocols" in done.stderr
        and len(done.stderr.splitlines()) == 1
    )


def test_download_refuses_in_one_line(tmp_path):
    done = command("download", "mlaad", tmp_path)
    assert (
        done.returncode == 1
        and "see https://deepfake-total.com/mlaad" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_features_are_extracted_and_read(tmp_path, samples):
    from wedefense_nb.features.stored import open_dataset
    from wedefense_nb.features.upstreams import tiny_checkpoint

    few = samples.subset(utt=samples.utterances.utt[:5].tolist())
    few.utterances["path"] = [str(p) for p in few.paths()]
    few.write(tmp_path / "few")
    network = tiny_checkpoint(tmp_path / "tiny.pt")
    done = command("extract", network, tmp_path / "few", tmp_path / "features", "--layers", "1", "--device", "cpu")
    assert done.returncode == 0 and "5 recordings, 1 shards" in done.stdout, done.stderr
    assert open_dataset(Manifest.read(tmp_path / "features"))[0, 2].wave.shape[1] == 32
    wrong = command("extract", network, tmp_path / "few", tmp_path / "features", "--layers", "9")
    assert wrong.returncode == 1 and wrong.stderr.strip().startswith("error: layers must be")
    other = command("extract", network, tmp_path / "few", tmp_path / "features", "--layers", "all")
    assert other.returncode == 1 and "choose an empty folder" in other.stderr and "Traceback" not in other.stderr


def test_shard(tmp_path):
    run = CliRunner().invoke(
        app, ["shard", str(ROOT / "data_samples"), str(tmp_path / "out"), "--split", "dev", "--size", "50"]
    )
    assert run.exit_code == 0, run.output
    made = Manifest.read(tmp_path / "out")
    assert f"{len(made)} recordings in {-(-len(made) // 50)} shards" in run.output and set(
        made.utterances.split
    ) == {"dev"}
    again = command("shard", "data_samples", tmp_path / "out")
    assert again.returncode == 1 and "error:" in again.stderr and "already holds shards" in again.stderr
    assert len(again.stderr.strip().splitlines()) == 1
