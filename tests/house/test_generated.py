"""What is made from something else is in step with it."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import tomllib

import yaml

from tests.conftest import ROOT
from tests.house.house import CHAPTER_OF, NOTEBOOKS

SETTINGS = configparser.ConfigParser(delimiters=["="])
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = SETTINGS["DEFAULT"]


def test_export_clean_and_readme_leave_no_difference(tmp_path):
    ignore = shutil.ignore_patterns("__pycache__", "runs", ".ipynb_checkpoints")
    for name in ("nbs", "wedefense_nb", "tools", "images"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore, symlinks=True)
    for name in ("pyproject.toml", "settings.ini", "setup.py", "README.md", "_quarto.yml"):
        shutil.copy(ROOT / name, tmp_path / name)
    for command in ("nbdev-export", "nbdev-clean"):
        subprocess.run([f"{sys.prefix}/bin/{command}"], cwd=tmp_path, check=True, capture_output=True)
    for script in ("make_book.py", "make_readme.py"):
        subprocess.run([sys.executable, f"tools/{script}"], cwd=tmp_path, check=True, capture_output=True)
    package = [p for p in (ROOT / "wedefense_nb").rglob("*") if p.is_file() and p.suffix in (".py", ".typed")]
    pictures = list((ROOT / "images").iterdir())
    for path in [*NOTEBOOKS, *package, *pictures, ROOT / "README.md", ROOT / "_quarto.yml"]:
        name = path.relative_to(ROOT)
        assert (tmp_path / name).read_bytes() == path.read_bytes(), f"{name} is out of step"
    made = {p.relative_to(tmp_path) for p in (tmp_path / "wedefense_nb").rglob("*.py")}
    assert made == {p.relative_to(ROOT) for p in package if p.suffix == ".py"}
    assert {p.name for p in (tmp_path / "images").iterdir()} == {p.name for p in pictures}


def test_settings_ini_is_the_single_source():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "project" not in project and SETTINGS["lib_name"] == "wedefense_nb"
    version = SETTINGS["version"]
    asked = subprocess.run(
        [sys.executable, "setup.py", "--name", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert asked.stdout.split()[-2:] == ["wedefense_nb", version]
    for name in ("setup.py", "pyproject.toml", "Makefile", "wedefense_nb/__init__.py", "_quarto.yml"):
        assert version not in re.findall(r"\d+\.\d+\.\d+", (ROOT / name).read_text()), name
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def requirements() -> list[str]:
    """Names of all requirements, of the library and of its extras, as pip writes them."""
    wanted = " ".join(value for key, value in SETTINGS.items() if key.endswith("requirements")).split()
    return [re.split(r"[\[<>=!~]", w)[0].lower().replace("_", "-") for w in wanted if w[0].isalpha()]


def test_constraints_pin_every_requirement():
    lines = (ROOT / "constraints.txt").read_text().split()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert requirements() and set(requirements()) <= pinned, set(requirements()) - pinned
    assert not any("fairseq" in name for name in pinned)  # pitfall 35


def test_requirements_are_the_packages_that_are_meant():  # pitfall 64
    """A name one letter off, or a namesake, would be installed without a word: ask each for what only it has."""
    has = {
        "numpy": "numpy.einsum", "scipy": "scipy.signal.ShortTimeFFT", "pandas": "pandas.DataFrame",
        "pyarrow": "pyarrow.parquet.read_table", "torch": "torch.nn.Module",
        "torchaudio": "torchaudio.transforms.LFCC", "soundfile": "soundfile.SoundFile",
        "av": "av.AudioFrame", "accelerate": "accelerate.Accelerator",
        "scikit-learn": "sklearn.isotonic.isotonic_regression", "safetensors": "safetensors.torch.save_file",
        "matplotlib": "matplotlib.pyplot.subplots", "seaborn": "seaborn.set_theme", "tqdm": "tqdm.tqdm",
        "joblib": "joblib.Parallel", "pyyaml": "yaml.safe_load", "pydantic": "pydantic.TypeAdapter",
        "pooch": "pooch.retrieve", "requests": "requests.Session", "typer": "typer.Typer",
        "papermill": "papermill.execute_notebook", "nbconvert": "nbconvert.HTMLExporter",
        "ipykernel": "ipykernel.kernelapp.IPKernelApp", "tensorboard": "tensorboard.version.VERSION",
        "webdataset": "webdataset.WebDataset", "pyworld-prebuilt": "pyworld.synthesize",
        "braceexpand": "braceexpand.braceexpand",
        "pyroomacoustics": "pyroomacoustics.ShoeBox", "s3prl": "s3prl.upstream.wav2vec2.hubconf",
        "filelock": "filelock.FileLock", "omegaconf": "omegaconf.OmegaConf",
        "transformers": "transformers.Wav2Vec2Model", "nbdev": "nbdev.export.nb_export",
        "jupyterlab": "jupyterlab.labapp.LabApp", "ipywidgets": "ipywidgets.IntSlider",
        "pytest": "pytest.raises", "pytest-xdist": "xdist.plugin", "hypothesis": "hypothesis.given",
        "ruff": "ruff.find_ruff_bin", "mypy": "mypy.api.run", "selenium": "selenium.webdriver.Chrome",
        "peft": "peft.inject_adapter_in_model",
        "onnx": "onnx.ModelProto", "onnxscript": "onnxscript.script",
        "onnxruntime": "onnxruntime.InferenceSession", "gradio": "gradio.Blocks",
        "captum": "captum.attr.IntegratedGradients", "jinja2": "jinja2.Environment",
        "umap-learn": "umap.UMAP", "sphinx": "sphinx.application.Sphinx",
        "myst-nb": "myst_nb.setup", "furo": "furo.setup", "numpydoc": "numpydoc.docscrape.NumpyDocString",
        "snakemake": "snakemake.api.SnakemakeApi",
    }  # fmt: skip
    assert set(requirements()) <= set(has), f"say what is special about {set(requirements()) - set(has)}"
    only_samples = {"pyroomacoustics"}  # not in the environment of the tests
    code = "import importlib, sys\nfor name in sys.argv[1:]:\n    place, _, thing = name.rpartition('.')\n"
    code += "    try: getattr(importlib.import_module(place), thing)\n    except AttributeError:"
    code += " importlib.import_module(name)\n"
    wanted = [has[name] for name in set(requirements()) - only_samples]
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, *wanted], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-600:]


def test_gate_is_the_test_command():
    commands = [x for x in (ROOT / ".ci/run").read_text().splitlines() if x and not x.startswith("#")]
    assert commands[-1] == "make test" and "make test" in (ROOT / "README.md").read_text()


def test_the_site_shows_every_page_in_the_order_of_the_book():
    site = yaml.safe_load((ROOT / "_quarto.yml").read_text())["website"]["sidebar"]["contents"]
    pages = [page for entry in site for page in (entry["contents"] if isinstance(entry, dict) else [entry])]
    found = [p.relative_to(ROOT / "nbs") for pattern in ("*.ipynb", "*.md") for p in (ROOT / "nbs").rglob(pattern)]
    there = {p.as_posix() for p in found if not {"runs", ".ipynb_checkpoints"} & set(p.parts)}
    assert len(pages) == len(set(pages)) and set(pages) == there
    chapters = [page for page in pages if re.match(r"\d_\w+/\d\d_", page)]
    assert chapters == sorted(chapters) and len(chapters) == len(CHAPTER_OF)
    assert os.path.samefile(ROOT / "nbs/_quarto.yml", ROOT / "_quarto.yml")
