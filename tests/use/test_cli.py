"""The program as a whole: its help, its way with mistakes, and an experiment from beginning to end."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.data.test_voices import deb, g722, speech
from tests.training.runs import tiny_recipe
from tests.use.shell import PROGRAM, command, environment, quick
from wedefense_nb import __version__
from wedefense_nb.augmentation.policies import noise_sources
from wedefense_nb.data.manifest import Manifest
from wedefense_nb.metrics import HINDSIGHT
from wedefense_nb.use import cli

COMMANDS = (
    "demo",
    "run",
    "corpora",
    "download",
    "prepare",
    "shard",
    "extract",
    "score",
    "localize",
    "evaluate",
    "calibrate",
    "fuse",
    "detect",
    "reference",
    "sweep",
    "runs",
)


def test_help_shows_commands_and_examples():
    out = quick("--help").stdout
    for name in COMMANDS:
        assert name in out
        result = quick(name, "--help")
        assert result.returncode == 0 and "Example" in result.stdout and f"wedefense-nb {name}" in result.stdout
    assert quick("--version").stdout.strip() == __version__


def test_asking_for_help_does_not_load_torch():
    code = "import sys; sys.argv = ['x', '--help']; import wedefense_nb.use.cli as program\n"
    code += "try: program.main()\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules and 'papermill' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    "args, what",
    [
        (("run", "detection", "-p", "nope=1"), "unknown parameter 'nope'"),
        (("run", "detection", "-p", "epochs"), "parameter 'epochs' has no value: write -p epochs=VALUE"),
        (("run", "detection", "-p", "=3"), "parameter '=3' has no value: write -p NAME=VALUE"),
        (("run", "detection", "-p", "model_options={a"), "is not YAML"),
        (("run", "no-such-recipe"), "unknown recipe"),
        (("run", "detection", "-f", "no-such.yaml"), "no-such.yaml"),
        (("score", "no-such-model", "data_samples"), "is this a model folder"),
        (("evaluate", "no-such.csv"), "no-such.csv"),
        (("demo", "--data", "no-such-corpus", "-p", "epochs=zero"), "valid integer"),
        (("frobnicate",), "frobnicate"),
    ],
)
def test_mistakes_get_one_line_and_an_exit_code(args, what):  # pitfall 66
    done = quick(*args)
    assert done.returncode != 0 and what in " ".join(done.stderr.split()) and "Traceback" not in done.stderr
    if done.stderr.startswith("error:"):
        assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1


def test_a_mistake_in_a_process_of_its_own():
    done = command("run", "no-such-recipe")
    assert done.returncode == 1 and done.stdout == "" and done.stderr.startswith("error: unknown recipe")


def test_the_whole_traceback_comes_if_it_is_asked_for(monkeypatch):
    monkeypatch.setenv("WEDEFENSE_NB_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown recipe"):
        quick("run", "no-such-recipe")


def test_parameters_are_listed():
    listed = quick("run", "detection", "--parameters").stdout.splitlines()
    assert "epochs = 12  passes over the training set" in listed and len(listed) == 45


def test_a_recipe_of_ones_own_runs_and_need_not_leave_a_result(tmp_path):
    recipe = tiny_recipe(tmp_path / "own.ipynb", "print(seed)")
    done = quick("run", recipe, "-p", "seed=5", "-o", tmp_path / "there")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == [
        f"notebook   {tmp_path}/there/own.ipynb",
        f"page       {tmp_path}/there/own.html",
        f"run folder {tmp_path}/there",
    ]


# An experiment

QUICK = ["-p", "epochs=6", "-p", "replicates=100", "-p", "crop=0.4", "-p", "average=2"]


@pytest.fixture(scope="module")
def corpus(few, tmp_path_factory):
    """A manifest folder with a few recordings, elsewhere on the disk."""
    folder = tmp_path_factory.mktemp("corpus")
    utterances = few.utterances.assign(path=[str(path) for path in few.paths()])
    Manifest(utterances, few.segments).write(folder)
    return folder


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """The folder that the demo was started in, and how it ended."""
    home = tmp_path_factory.mktemp("home")
    return home, command("demo", "--data", corpus, *QUICK, cwd=home, progress=True)


@pytest.fixture(scope="module")
def run(finished, corpus):
    """Its run folder."""
    home, done = finished
    assert done.returncode == 0, done.stderr[-2000:]
    return home / "runs" / f"demo-{corpus.name}"


def test_a_table_with_columns_of_its_own_is_shown_as_it_is(tmp_path, capsys):
    rows = [{"set": "dev", "metric": "point EER", "resolution": 0.02, "value": 0.25}]
    rows.append({"set": "dev", "metric": "range EER", "resolution": None, "value": 0.123456})
    (tmp_path / "result.json").write_text(json.dumps({"metrics": rows}))
    cli._report_run(tmp_path, "localization")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["set", "metric", "resolution", "value"]
    assert lines[3].split() == ["dev", "range", "EER", "0.1235"]


def test_progress_is_streamed_with_the_time_left(finished):
    bars = finished[1].stderr + finished[1].stdout
    assert re.search(r"train: +\d+%.*\d+/\d+ \[\d+:\d+<\d+:\d+", bars) and "bootstrap" in bars
    assert "epoch 6/6, loss" in bars and "dev EER" in bars


def test_the_table_and_the_places_are_printed(finished, run):
    out = finished[1].stdout
    assert "eval is scored too (final: true)" in out
    for word in ("EER", "minDCF", "actDCF", "Cllr", "minCllr", "eval, before", "eval, after", "dev, after"):
        assert word in out
    for name in ("detection.ipynb", "detection.html"):
        assert f"runs/{run.name}/{name}" in out and (run / name).stat().st_size > 10_000


def test_the_result_says_what_was_found_and_on_what(run):
    result = json.loads((run / "result.json").read_text())
    assert result["training"]["epochs"] == 6 and result["seed"] == 0 and result["wall_time_s"] > 0
    assert result["threads"] >= 1 and result["processor"] and result["device"]
    assert set(result["versions"]) >= {"python", "wedefense_nb", "torch"}
    assert {row["metric"] for row in result["metrics"]} == {"eer", "min_dcf", "act_dcf", "cllr", "min_cllr"}
    for row in result["metrics"]:
        if row["metric"] in HINDSIGHT:
            assert row["low"] is row["high"] is None
        else:
            assert row["low"] - 1e-9 <= row["value"] <= row["high"] + 1e-9
    assert yaml.safe_load((run / "params.yaml").read_text()) == result["parameters"]
    dev = next(
        row["value"] for row in result["metrics"] if (row["system"], row["metric"]) == ("dev, before", "eer")
    )
    assert dev == pytest.approx(result["dev_eer"], abs=0.02)  # scored in other batches


def test_the_run_folder_is_complete(run, few):
    for split in ("dev", "eval"):
        table = pd.read_csv(run / f"scores/{split}.csv")
        assert table.columns.tolist() == ["utt", "score", "llr", "label"]
        assert table.utt.tolist() == few.subset(split=split).utterances.utt.tolist()
        assert table.label.tolist() == few.subset(split=split).utterances.label.tolist()
    model = {path.name for path in (run / "model").iterdir()}
    known = {"reference.json", "reference.safetensors", "evidence.json"}
    assert model == known | {"model.safetensors", "config.yaml", "calibration.json", "card.md"}
    card = (run / "model/card.md").read_text()
    assert "Trained on 24 recordings" in card and "eval, after" in card
    assert (run / "checkpoints/last.pt").is_file()


def test_the_executed_notebook_has_no_piles_of_progress_bars(run):
    book = (run / "detection.ipynb").read_text()
    assert book.count("steps/s") + book.count("step/s") <= 2 and len(book) < 1_000_000


def test_the_model_folder_gives_the_scores_of_the_recipe(run, corpus, tmp_path):
    done = quick("score", run / "model", corpus, "-o", tmp_path / "s.csv", "--split", "eval")
    assert done.returncode == 0 and "recordings scored" in done.stdout and "not calibrated" not in done.stdout
    ours = pd.read_csv(tmp_path / "s.csv").set_index("utt")
    recipe = pd.read_csv(run / "scores/eval.csv").set_index("utt").loc[ours.index]
    assert np.allclose(ours.llr, recipe.llr, atol=1e-3) and np.allclose(ours.score, recipe.score, atol=1e-3)
    assert ours.label.equals(recipe.label)


def steps_logged(run) -> int:
    """Training steps in TensorBoard's logs, of all starts together."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    count = 0
    for file in (run / "logs").rglob("events*"):
        events = EventAccumulator(str(file)).Reload()
        if "train/loss" in events.Tags()["scalars"]:
            count += len(events.Scalars("train/loss"))
    return count


def test_a_second_start_trains_nothing_and_finds_the_same(finished, run, corpus):
    home, _ = finished
    last = run / "checkpoints/last.pt"
    before = last.read_bytes(), last.stat().st_mtime_ns
    weights = (run / "model/model.safetensors").read_bytes()
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert steps_logged(run) == 12  # six epochs of 24 recordings in batches of 16
    done = command("demo", "--data", corpus, *QUICK, cwd=home)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (last.read_bytes(), last.stat().st_mtime_ns) == before and steps_logged(run) == 12
    assert (run / "model/model.safetensors").read_bytes() == weights
    assert json.loads((run / "result.json").read_text())["metrics"] == metrics


def test_a_start_with_other_parameters_is_refused(finished, run, corpus, monkeypatch):
    monkeypatch.chdir(finished[0])
    other = quick("demo", "--data", corpus, *QUICK, "-p", "lr=0.5")
    assert other.returncode == 1 and "lr: 0.001 before, 0.5 now" in other.stderr
    assert "another folder" in other.stderr and (run / "result.json").is_file()


def steps_saved(run) -> int:
    """Of all, in `last.pt`; -1 if there is none yet."""
    try:
        return torch.load(run / "checkpoints/last.pt", weights_only=True)["step"]
    except FileNotFoundError:
        return -1


def kill(process: subprocess.Popen) -> None:
    """The process and all that it started, at once and without warning."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        os.kill(member.pid, signal.SIGKILL)
    psutil.wait_procs(family)
    process.wait()


def test_a_killed_run_ends_with_the_same_bits(finished, run, corpus):
    """Killed in the middle, notebook kernel and all, and started again."""
    home, _ = finished
    words = ["demo", "--data", corpus, *QUICK, "-p", "save_every=1", "-o", "broken"]
    broken = home / "broken"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment(), "cwd": home}
    process = subprocess.Popen([PROGRAM, *map(str, words)], **quiet)
    while steps_saved(broken) < 4 and process.poll() is None:
        time.sleep(0.005)
    kill(process)
    assert 4 <= steps_saved(broken) < 18 and not (broken / "result.json").exists()
    done = command(*words, cwd=home)
    assert done.returncode == 0, done.stderr[-2000:]
    whole = load_file(run / "model/model.safetensors")
    again = load_file(broken / "model/model.safetensors")
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
    assert (broken / "scores/eval.csv").read_text() == (run / "scores/eval.csv").read_text()
    results = [json.loads((folder / "result.json").read_text()) for folder in (run, broken)]
    assert results[0]["metrics"] == results[1]["metrics"] and results[0]["epochs"] == results[1]["epochs"]


def test_a_fresh_start_deletes_a_run_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    done = quick("demo", "--fresh", "-o", "mine")
    assert done.returncode == 1 and "mine holds no run of the recipe detection" in done.stderr
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"
    (tmp_path / "mine/detection.ipynb").write_text((ROOT / "nbs/recipes/detection.ipynb").read_text())
    (tmp_path / "mine/params.yaml").write_text("seed: 9\n")
    done = quick("demo", "--fresh", "-o", "mine", "--data", "no-such-corpus")
    assert done.returncode == 1 and "no-such-corpus: not found" in done.stderr and "prepare generic" in done.stderr
    assert (tmp_path / "mine/thesis.txt").exists()  # for values that cannot be right nothing is deleted
    started = []
    monkeypatch.setattr("wedefense_nb.training.recipes.run_recipe", lambda name, values: started.append(values))
    monkeypatch.setattr(cli, "_report_run", lambda *_: None)
    done = quick("demo", "--fresh", "-o", "mine", "-p", "model=bands", "-p", "final=false")
    assert done.returncode == 0 and not (tmp_path / "mine").exists()
    assert started[0]["model_options"] == {} and not started[0]["final"] and "eval is scored" not in done.stdout
    assert "model_options of 'committee' are left out" in done.stderr


OWN = """from wedefense_nb.features.spectra import Fbank
from wedefense_nb.models.detector import Detector
from wedefense_nb.models.layers import Identity, StatsPool


def net(n_mels: int = 10):
    return Detector(Fbank(n_mels), Identity(n_mels), StatsPool(), 4)
"""


def test_a_model_of_ones_own_is_trained_kept_and_used_and_eval_is_opened_last(corpus, few, tmp_path, monkeypatch):
    (tmp_path / "mine_cli.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    words = ["-p", f"data={corpus}", "-p", "model=mine_cli:net", *QUICK, "-p", "epochs=2", "-p", "augment=none"]
    done = quick("run", "detection", *words, "-o", "own")
    assert done.returncode == 0, done.stderr[-2000:]
    own = tmp_path / "own"
    assert "not looked at" in done.stdout and "eval, " not in done.stdout
    assert {path.name for path in (own / "scores").iterdir()} == {"dev.csv"}
    result = json.loads((own / "result.json").read_text())
    assert {row["system"] for row in result["metrics"]} == {"dev, before", "dev, after"}
    assert result["eval"] == "not looked at" and "eval" not in (own / "model/card.md").read_text()
    at_start = json.loads((own / "environment.json").read_text())
    assert at_start["device"] == result["device"] and at_start["threads"] == result["threads"]
    dev = pd.read_csv(own / "scores/dev.csv")
    trained = (own / "checkpoints/last.pt").stat().st_mtime_ns
    done = quick("run", "detection", *words, "-o", "own", "-p", "final=true")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "eval, after" in done.stdout and "not looked at" not in done.stdout
    assert (own / "checkpoints/last.pt").stat().st_mtime_ns == trained
    assert pd.read_csv(own / "scores/dev.csv").equals(dev)
    table = pd.read_csv(own / "scores/eval.csv")
    assert table.utt.tolist() == few.subset(split="eval").utterances.utt.tolist()
    (tmp_path / "mine_cli.py").write_text(OWN + "# as before")
    sys.modules.pop("mine_cli", None)
    arguments = ["score", "own/model", corpus, "--split", "eval", "-o", "own.csv"]
    done = quick(*arguments)
    assert done.returncode == 1 and "--trust mine_cli:net" in done.stderr
    with pytest.warns(UserWarning, match="mine_cli:net is not what it was"):
        done = quick(*arguments, "--trust", "mine_cli:net")
    assert done.returncode == 0 and np.allclose(pd.read_csv("own.csv").llr, table.llr, atol=1e-3)
    (tmp_path / "mine_cli.py").write_text(OWN)
    sys.modules.pop("mine_cli", None)
    sound = str(few.subset(split="eval").paths()[0])
    assert "--trust mine_cli:net" in quick("detect", sound, "--model", "own/model").stderr
    done = quick("detect", sound, "--model", "own/model", "--trust", "mine_cli:net")
    assert done.returncode in (0, 3, 4), done.stderr
    sys.modules.pop("mine_cli", None)


def test_real_voices_are_made_once_and_only_trained_if_the_audit_finds_nothing(tmp_path, monkeypatch):
    found = pd.DataFrame({"": [""], "trivia": ["all together"], "auc": [0.7], "low": [0.6], "found": [True]})
    report = found
    asked = []

    def audit(made):
        asked.append(len(made))
        return report

    monkeypatch.setenv("WEDEFENSE_NB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("wedefense_nb.understanding.shortcuts.shortcuts", audit)
    music = {"usr/share/asterisk/moh/song.g722": g722(speech(1.0))}
    deb(tmp_path / "debs/asterisk-moh-opsound-g722_1_all.deb", music)
    for name, folder in (("ru", "ru_RU_f_IvrvoiceRU"), ("it", "it_IT_m_Carlo")):
        files = {f"usr/share/asterisk/sounds/{folder}/vm-a.g722": g722(speech(1.2))}
        deb(tmp_path / f"debs/asterisk-core-sounds-{name}-g722_1_all.deb", files)
    with pytest.raises(ValueError, match=r"tells the classes apart without listening \(AUC 0.70\); not trained"):
        cli._real_voices(tmp_path / "debs")
    report = found.assign(found=False)
    out = cli._real_voices(tmp_path / "debs")
    assert out == tmp_path / "cache/voices-doubles" and asked == [6, 6]
    assert cli._real_voices(tmp_path / "nowhere") == out and len(asked) == 2
    assert noise_sources(Manifest.read(out)).kind.value_counts().to_dict() == {"speech": 2, "music": 1}
    for arguments, what in (
        (["--root", tmp_path], "--root is for --data voices"),
        (["--data", "voices", "--root", tmp_path / "none"], "none of the packages is here"),
    ):
        monkeypatch.setenv("WEDEFENSE_NB_CACHE", str(tmp_path / "other"))
        (tmp_path / "none").mkdir(exist_ok=True)
        done = quick("demo", *arguments)
        assert done.returncode == 1 and what in done.stderr and len(done.stderr.strip().splitlines()) == 1
