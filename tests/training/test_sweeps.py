"""Many runs of one recipe: their names, their plan, and an engine that is killed and goes on."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT
from wedefense_nb.files import alone
from wedefense_nb.training import sweeps
from wedefense_nb.training.sweeps import (
    combinations,
    conduct,
    failure,
    find_profile,
    read_sweep,
    setting_name,
    states,
    write_sweep,
)

STUB = """#!/bin/bash
# instead of wedefense-nb: notes its call, takes its time, fails at x=5 as a cell would
while [ $# -gt 0 ]; do [ "$1" = --out ] && out=$2; [ "$1" = --file ] && given=$2; shift; done
echo "$out" >> "$CALLS"
sleep ${STUB_SECONDS:-0}
if grep -q 'x: 5.0' "$given"; then echo "error: cell 2 of toy.ipynb failed: ValueError: 5" >&2; exit 1; fi
echo '{}' > "$out/result.json"
"""


def toy(path, cell: str = 'if x > 2:\n    raise ValueError("x is too large")'):
    """A recipe with a parameter `x`."""
    parameters = 'out: str = "run"  # folder\nx: float = 1.0  # result\nseed: int = 7  # of everything random'
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in (parameters, cell)])
    book.cells[0].metadata.tags = ["parameters"]
    book.metadata.kernelspec = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(book, path)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a toy recipe and a stub of the command, where one works."""
    toy(tmp_path / "toy.ipynb")
    (tmp_path / "bin").mkdir()
    for name, text in (("wedefense-nb", STUB), ("python", f'#!/bin/bash\nexec {sys.executable} "$@"\n')):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls.txt"))
    return tmp_path


def plan(folder, **content):
    """A sweep file and what it says."""
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"recipe": "toy.ipynb", "out": "out"} | content, sort_keys=False))
    return read_sweep(path)


def calls(folder) -> list[str]:
    path = folder / "calls.txt"
    return path.read_text().split() if path.is_file() else []


def test_combinations_are_all_of_them_once():
    grid = {"a": [1, 2, 3], "b": ["x", "y"]}
    listed = [{"c": 1}, {"c": 2, "d": 0}]
    brute = [entry | {"a": a, "b": b} for entry in listed for a in grid["a"] for b in grid["b"]]
    assert list(combinations(grid, listed)) == brute and list(combinations({}, [])) == [{}]
    with pytest.raises(ValueError, match="a stands in the grid and in the list"):
        list(combinations({"a": [1]}, [{"a": 2}]))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=60),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,12}", fullmatch=True), values, max_size=12))
def test_any_setting_has_a_name_that_every_file_system_takes(setting):
    name = setting_name(setting)
    assert name == setting_name(dict(setting)) and 0 < len(name.encode()) <= 255
    assert not set(name) & set('/\\:*?"<>| \n\0') and name not in (".", "..")


def test_names_tell_values_apart():
    odd = ["a/b", "a b", "a:b", "a" * 41, "a" * 42, "", None, [], {}, [1], 1, 1.5, True, "é"]
    names = [setting_name({"x": value}) for value in odd]
    assert len(set(names)) == len(names)
    long = [{f"parameter_{i}": i + k for i in range(40)} for k in range(2)]
    assert setting_name(long[0]) != setting_name(long[1])


def test_a_plan_has_every_run_with_its_values(here):
    sweep = plan(here, grid={"x": [1, 2.5]}, seeds=3, threads=2, resources={"gpu": 1})
    brute = {f"x={x}/seed={seed}": {"x": x, "seed": seed} for x, seed in itertools.product([1.0, 2.5], range(3))}
    assert sweep.runs == brute == sweep.varied and str(sweep.out) == "out"
    assert (sweep.threads, sweep.resources) == (2, {"gpu": 1}) and not (here / "out").exists()
    assert list(plan(here, list=[{"x": 2.0}], seeds=[4]).runs) == ["x=2.0/seed=4"]
    assert list(plan(here).runs) == ["all/seed=7"] and list(plan(here, fixed={"seed": 3}).runs) == ["all"]
    (here / "more.yaml").write_text("x: 2.0\nseed: 9\n")
    assert plan(here, file="more.yaml").runs == {"all/seed=9": {"x": 2.0, "seed": 9}}
    assert list(plan(here, grid={"seed": [1, 2]}).runs) == ["seed=1", "seed=2"]


def test_fields_of_the_loop_are_named_by_what_they_became(here):
    sweep = plan(here, recipe="detection", fixed={"model": "bands"}, grid={"lr": [1, "1e-3"]})
    assert list(sweep.runs) == ["lr=1.0/seed=0", "lr=0.001/seed=0"]
    assert [values["training"]["lr"] for values in sweep.runs.values()] == [1.0, 0.001]


@pytest.mark.parametrize(
    "content, what",
    [
        ({"treads": 2}, "did you mean 'threads'"),
        ({"recipe": 3}, "recipe: name a recipe"),
        ({"recipe": "none"}, "unknown recipe"),
        ({"grid": {"y": [1]}}, "unknown parameter 'y'"),
        ({"grid": {"x": 1}}, "grid: x needs a list"),
        ({"grid": {"x": []}}, "grid: x needs a list"),
        ({"grid": [1]}, "grid must be a dict"),
        ({"grid": {"x": [1, 1.0]}}, "two runs would lie in x=1.0/seed=7"),
        ({"grid": {"x": ["one"]}}, "not of type float"),
        ({"list": [1]}, "each entry is a setting"),
        ({"fixed": {"out": "there"}}, "out is the key of the file"),
        ({"seeds": 0}, "neither a number of seeds nor a list"),
        ({"seeds": True}, "neither a number of seeds nor a list"),
        ({"seeds": 2, "fixed": {"seed": 1}}, "seed is given elsewhere"),
        ({"threads": 0}, "no number of cores"),
        ({"resources": 4}, "resources must be a dict"),
        ({"recipe": "detection", "grid": {"model": ["bands", "resnet19"]}}, "resnet19"),
    ],
)
def test_mistakes_are_told_before_anything_runs(here, content, what):
    with pytest.raises(ValueError, match=what):
        plan(here, **content)


def test_a_folder_with_other_values_is_refused(here):
    folder = here / "out/all/seed=7"
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text("x: 1.0\nseed: 7\n")
    shutil.copy("toy.ipynb", folder)
    assert plan(here).runs
    with pytest.raises(ValueError, match=r"x: 1.0 before, 2.0 now"):
        plan(here, fixed={"x": 2.0})


def test_states_are_what_lies_in_the_folders(here):
    sweep = plan(here, grid={"x": [1.0, 2.0]})
    assert set(states(sweep).values()) == {"waiting"}
    first, second = (sweep.out / name for name in sweep.runs)
    first.mkdir(parents=True)
    (first / "result.json").write_text("{}")  # of a run that was started by hand
    assert states(sweep)["x=1.0/seed=7"] == "waiting"
    write_sweep(sweep)
    os.utime(first / "result.json", ns=(1, 1))
    assert states(sweep)["x=1.0/seed=7"] == "waiting"  # older than its values
    (first / "result.json").write_text("{}")
    (second / "run.log").write_text("loading\nerror: cell 2 of toy.ipynb failed: KeyError: 'a'\n    a\n")
    assert list(states(sweep).values()) == ["done", "failed"]
    assert failure(second).startswith("cell 2 of toy") and failure(second).endswith("a")
    (second / "params.yaml").write_text("{}")
    (second / "run.log").write_text("Epoch 3")
    assert list(states(sweep).values()) == ["done", "begun"]
    (second / "run.log").write_text("Traceback (most recent call last):\n  x\nKeyError: 'low'\n")
    assert states(sweep)["x=2.0/seed=7"] == "failed" and failure(second) == "KeyError: 'low'"
    (second / "run.log").write_text("Traceback (most recent call last):\n  x\nKeyboardInterrupt\n")
    assert states(sweep)["x=2.0/seed=7"] == "begun" and failure(first) == ""
    stamp = (first / "given.yaml").stat().st_mtime_ns
    write_sweep(sweep)
    assert (first / "given.yaml").stat().st_mtime_ns == stamp
    with alone(second, "recipe"):
        assert list(states(sweep).values()) == ["done", "at work"]
    assert states(plan(here, grid={"x": [1.0, 2.0]}, seeds=[8])) == {
        "x=1.0/seed=8": "waiting",
        "x=2.0/seed=8": "waiting",
    }


def test_the_engine_goes_on_after_a_failure_and_repeats_nothing(here, monkeypatch):
    monkeypatch.setattr(sweeps.sys, "executable", str(here / "bin/python"))
    sweep = plan(here, grid={"x": [1.0, 5.0, 2.0]})
    assert conduct(sweep, cores=2, quiet=True) is False
    assert list(states(sweep).values()) == ["done", "failed", "done"]
    assert failure(sweep.out / "x=5.0/seed=7") == "cell 2 of toy.ipynb failed: ValueError: 5"
    assert sorted(calls(here)) == [f"out/x={x}/seed=7" for x in (1.0, 2.0, 5.0)]
    grown = plan(here, grid={"x": [1.0, 2.0, 3.0]})
    assert conduct(grown, profile="cores", quiet=True) is True
    assert calls(here)[3:] == ["out/x=3.0/seed=7"]


def test_a_killed_sweep_leaves_nothing_at_work_and_continues(here, monkeypatch):
    sweep = plan(here, grid={"x": [1.0, 2.0, 3.0]})
    code = "import sys; from wedefense_nb.training import sweeps\n"
    code += "sweep = sweeps.read_sweep('sweep.yaml'); sweeps.sys.executable = sys.argv[1]\nsweeps.conduct(sweep)"
    env = os.environ | {"STUB_SECONDS": "60", "PYTHONPATH": str(ROOT)}
    killed = subprocess.Popen([sys.executable, "-c", code, str(here / "bin/python")], env=env)
    until = time.monotonic() + 120
    while not calls(here) and time.monotonic() < until:
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL and len(calls(here)) == 1
    while time.monotonic() < until:  # neither the engine nor its jobs outlive it
        alive = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
        if str(here) not in alive:
            break
        time.sleep(0.1)
    assert str(here) not in alive
    monkeypatch.setattr(sweeps.sys, "executable", str(here / "bin/python"))
    assert conduct(sweep, cores=3, quiet=True) is True and len(calls(here)) == 4


def test_a_run_at_work_is_waited_for(here, monkeypatch, capsys):
    sweep = plan(here)
    folder = sweep.out / "all/seed=7"
    busy = iter([True, True, False])
    monkeypatch.setattr(sweeps, "_at_work", lambda place: place == folder and next(busy))
    monkeypatch.setattr(sweeps.time, "sleep", lambda seconds: None)
    sweeps._wait(sweep)
    assert capsys.readouterr().err.count("waiting for them") == 1 and next(busy, None) is None


def test_two_at_once_are_refused_and_a_missing_engine_is_named(here, monkeypatch):
    sweep = plan(here)
    with alone(sweep.out, "sweep"), pytest.raises(ValueError, match="another process is at work"):
        conduct(sweep)
    monkeypatch.setattr(sweeps.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'wedefense_nb\[sweep\]'"):
        conduct(sweep)


def test_profiles_and_sweeps_that_we_bring():
    for name in ("cores", "slurm", "kubernetes"):
        content = yaml.safe_load((find_profile(name) / "config.yaml").read_text())
        assert content.get("executor", "local") == {"cores": "local"}.get(name, name)
    with pytest.raises(ValueError, match="unknown profile 'slrum'.*slurm"):
        find_profile("slrum")
    for path in (ROOT / "params/sweeps").glob("*.yaml"):
        assert (
            len(read_sweep(path).runs) > 1 and f"wedefense-nb sweep params/sweeps/{path.name}" in path.read_text()
        )
