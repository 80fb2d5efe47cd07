"""The wheel is whole: built, installed in a folder of its own, and used in another, without a network."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.conftest import ROOT
from tests.house.house import MODULES, name_of, tracked


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from what is committed or about to be, in a copy, since building leaves folders behind."""
    source = tmp_path_factory.mktemp("source")
    for name in tracked():
        if not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name, follow_symlinks=False)
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir"]
    command = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", out, source]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """(environment, folder with the command) of a Python that finds the installed package before this clone."""
    site = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--target", str(site), str(wheel)], check=True, capture_output=True)
    return os.environ | {"PYTHONPATH": str(site), "NO_COLOR": "1", "TERM": "dumb"}, site


def test_everything_is_in_it(wheel):  # pitfall 65
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {p.relative_to(ROOT).as_posix() for p in (ROOT / "wedefense_nb").rglob("*.py")}
    assert len(MODULES) < len(package) and package <= names and "wedefense_nb/py.typed" in names
    assets = {n.removeprefix("wedefense_nb/assets/") for n in names if n.startswith("wedefense_nb/assets/")}
    wanted = {n for n in tracked() if n.startswith(("nbs/recipes/", "params/", "data_samples/"))}
    assert assets == wanted and len(assets) > 800
    assert not any(n.startswith(("tests", "nbs", "tools", "benchmarks")) for n in names)
    assert wheel.stat().st_size < 25_000_000


def test_every_module_imports_from_there(installed, tmp_path):
    env, site = installed
    names = ["wedefense_nb", *(f"wedefense_nb.{name_of(path)}" for path in MODULES)]
    code = "import importlib, pathlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    code += "print(pathlib.Path(sys.modules['wedefense_nb'].__file__).parent.parent)"
    command = [sys.executable, "-c", code, *names]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]
    assert os.path.samefile(done.stdout.strip(), site)


def test_the_demo_runs_in_an_empty_folder(installed, tmp_path):
    env, site = installed

    def command(*args):
        return subprocess.run(
            [sys.executable, str(site / "bin/wedefense-nb"), *args],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
        )

    assert command("--version").stdout.strip() in (ROOT / "settings.ini").read_text()
    assert "epochs = 12" in command("run", "detection", "--parameters").stdout
    quick = ["model=bands", "model_options={}", "augment=none", "epochs=1", "average=1", "replicates=50"]
    done = command("demo", *(word for value in quick for word in ("-p", value)), "-o", "here")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "minCllr" in done.stdout and (tmp_path / "here/model/model.safetensors").is_file()
    scored = command(
        "score", "here/model", str(site / "wedefense_nb/assets/data_samples"), "--split", "dev", "-o", "s.csv"
    )
    assert scored.returncode == 0 and (tmp_path / "s.csv").is_file(), scored.stderr[-1000:]
