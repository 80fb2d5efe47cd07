"""The rules of the house: what a notebook looks like, who imports whom, what is generated stays in step."""

import ast
import configparser
import json
import re
import shutil
import statistics
import subprocess
import sys
import tomllib

import nbformat
import pytest

from tests.conftest import ROOT

NBS = ROOT / "nbs"
CHAPTERS = sorted(NBS.glob("[0-9]*.ipynb"))
RECIPES = sorted((NBS / "recipes").glob("*.ipynb"))
ALL = [NBS / "index.ipynb", *CHAPTERS, *RECIPES]
MODULES = sorted(p for p in (ROOT / "wedefense_nb").rglob("*.py") if not p.name.startswith("_"))
each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
each_notebook = pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
each_module = pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)


def cells(path, kind="code"):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == kind]


def exported(path):
    return [c.source for c in cells(path) if c.source.startswith("#| export")]


def lines(source: str) -> int:
    return len(source.splitlines())


def default_exp(path) -> str:
    return next(m[1] for c in cells(path) if (m := re.match(r"#\| default_exp (\S+)", c.source)))


def tracked() -> list[str]:
    out = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if out.returncode:
        pytest.skip("not a git checkout")
    return [name for name in out.stdout.splitlines() if (ROOT / name).is_file()]


NUMBER = {f"wedefense_nb.{default_exp(p)}": int(p.name[:2]) for p in CHAPTERS}


# What is generated


def test_export_clean_and_readme_leave_no_difference(tmp_path):
    bin_ = f"{sys.prefix}/bin"
    for name in ("nbs", "wedefense_nb", "tools"):
        ignore = shutil.ignore_patterns("__pycache__", "runs", ".ipynb_checkpoints")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore, symlinks=True)
    for name in ("pyproject.toml", "settings.ini", "setup.py", "README.md", "_quarto.yml"):
        shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run([f"{bin_}/nbdev-export"], cwd=tmp_path, check=True, capture_output=True)
    subprocess.run([f"{bin_}/nbdev-clean"], cwd=tmp_path, check=True, capture_output=True)
    subprocess.run([sys.executable, "tools/make_readme.py"], cwd=tmp_path, check=True, capture_output=True)
    compared = [p.relative_to(ROOT) for p in [*ALL, ROOT / "README.md", *(ROOT / "wedefense_nb").rglob("*.py")]]
    for name in compared:
        assert (tmp_path / name).read_text() == (ROOT / name).read_text(), f"{name} is out of step"
    made = {p.relative_to(tmp_path) for p in (tmp_path / "wedefense_nb").rglob("*.py")}
    assert made == {p.relative_to(ROOT) for p in (ROOT / "wedefense_nb").rglob("*.py")}


def test_settings_ini_is_the_single_source():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "settings.ini")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "project" not in project and settings["DEFAULT"]["lib_name"] == "wedefense_nb"
    version = settings["DEFAULT"]["version"]
    out = subprocess.run(
        [sys.executable, "setup.py", "--name", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert out.stdout.split()[-2:] == ["wedefense_nb", version]
    for name in ("setup.py", "pyproject.toml", "Makefile", "wedefense_nb/__init__.py", "_quarto.yml"):
        assert version not in re.findall(r"\d+\.\d+\.\d+", (ROOT / name).read_text()), name


def test_constraints_pin_every_requirement():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "settings.ini")
    pinned = {
        x.split("==")[0].lower().replace("_", "-")
        for x in (ROOT / "constraints.txt").read_text().split()
        if "==" in x
    }
    wanted = " ".join(v for k, v in settings["DEFAULT"].items() if k.endswith("requirements")).split()
    names = {re.split(r"[\[<>=!~]", w)[0].lower().replace("_", "-") for w in wanted if w[0].isalpha()}
    assert names and names <= pinned, names - pinned


def test_gate_is_the_test_command():
    commands = [x for x in (ROOT / ".ci/run").read_text().splitlines() if x and not x.startswith("#")]
    assert commands[-1] == "make test" and "make test" in (ROOT / "README.md").read_text()


def test_site_lists_every_notebook():
    text = (ROOT / "_quarto.yml").read_text()
    index = (NBS / "index.ipynb").read_text()
    for path in [*CHAPTERS, *RECIPES]:
        name = path.relative_to(NBS).as_posix()
        assert name in text and f"({name})" in index, name


def test_no_sound_or_weights_outside_data_samples():
    suffixes = (
        ".wav",
        ".flac",
        ".mp3",
        ".ogg",
        ".m4a",
        ".pt",
        ".pth",
        ".safetensors",
        ".ckpt",
        ".bin",
        ".npy",
    )
    assert [n for n in tracked() if n.endswith(suffixes) and not n.startswith("data_samples/")] == []


# Who imports whom


@each_module
def test_imports_point_down(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    assert name in NUMBER, f"{name} is exported by no chapter"
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.ImportFrom):
            assert not any(a.name == "*" for a in node.names), "imports are explicit"
            package = name.split(".")[: -node.level] if node.level else []  # nbdev writes relative imports
            module = ".".join([*package, *([node.module] if node.module else [])])
            modules = [m for m in [module, *(f"{module}.{a.name}" for a in node.names)] if m in NUMBER]
        elif isinstance(node, ast.Import):
            modules = [a.name for a in node.names if a.name in NUMBER]
        above = [m for m in modules if NUMBER[m] >= NUMBER[name]]
        assert not above, f"{name} ({NUMBER[name]}) imports from above: {above}"


@each_module
def test_module_is_ordinary_python(path):
    text = path.read_text()
    assert lines(text) <= 300, f"{path.name} has {lines(text)} lines"
    assert "fastcore" not in text and "@patch" not in text


def test_importing_the_package_is_light():
    code = "import sys, wedefense_nb, wedefense_nb.use.cli; print([m for m in ('torch', 'sklearn', 's3prl') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stdout + out.stderr


def definitions(path):
    """(qualified name, node) of every function and class at the top level, and the methods."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node
            for sub in getattr(node, "body", []):
                if isinstance(node, ast.ClassDef) and isinstance(sub, ast.FunctionDef):
                    yield f"{node.name}.{sub.name}", sub


def code_lines(node) -> int:
    """Lines of a definition, its docstring left out."""
    doc = node.body[0] if ast.get_docstring(node) is not None else None
    return node.end_lineno - node.lineno + 1 - (doc.end_lineno - doc.lineno + 1 if doc else 0)


@each_module
def test_definitions_are_short_and_documented(path):
    for name, node in definitions(path):
        is_class = isinstance(node, ast.ClassDef)
        limit = 60 if is_class else 30
        assert node.end_lineno - node.lineno + 1 <= limit, f"{name} has more than {limit} lines"
        public = not any(part.startswith("_") for part in name.split("."))
        if public and name.split(".")[-1] not in ("forward", "paths"):
            assert ast.get_docstring(node), f"{name} has no docstring"
        if public and not is_class and "." not in name and not node.decorator_list:
            assert node.returns is not None or name.startswith(("plot_", "play")), f"{name}: what does it return?"


# How a chapter looks


@each_chapter
def test_cells_are_small(path):
    sizes = [lines(c.source) for c in cells(path)]
    assert statistics.median(sizes) <= 6, f"median {statistics.median(sizes)}"
    for c in cells(path):
        body = [n for n in ast.parse(c.source).body] if not c.source.startswith("%") else []
        single_class = len(body) == 1 and isinstance(body[0], ast.ClassDef)
        limit = 62 if single_class and c.source.startswith("#| export") else 31 if "#| export" in c.source else 30
        assert lines(c.source) <= limit, f"{lines(c.source)} lines: {c.source[:80]}"


@each_chapter
def test_imports_stand_alone_in_exported_cells(path):
    for source in exported(path):
        kinds = {isinstance(n, ast.Import | ast.ImportFrom) for n in ast.parse(source).body}
        assert len(kinds) <= 1, source[:120]


@each_chapter
def test_chapter_has_all_its_parts(path):
    notebook = nbformat.read(path, as_version=4)
    title = notebook.cells[0].source
    opening = notebook.cells[1].source
    assert re.fullmatch(r"# \S+\n\n> .+", title.strip()), title
    assert re.search(r"^Time: \d+ min · (CPU|GPU) · uses .+ · builds on .+\.$", opening, re.M)
    sentences = re.findall(r"[.?!](?=\s|$)", opening.split("\nTime:")[0])
    assert 3 <= len(sentences) <= 9, len(sentences)
    text = "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    parts = [text.index(f"\n## {part}\n") for part in ("What to remember", "Exercises", "References")]
    assert parts == sorted(parts)
    assert len(re.findall(r"^- ", text[parts[0] : parts[1]], re.M)) == 3
    assert re.findall(r"\*\*(\d\. \w+)\.\*\*", text) == ["1. Predict", "2. Change", "3. Break"]
    assert len(re.findall(r"\]\(https?://", text[parts[2] :])) >= 1
    assert default_exp(path).split(".")[-1] == path.stem[3:] == title.split("\n")[0][2:]


@each_chapter
def test_chapter_has_the_right_length(path):
    words = len(re.findall(r"\w+", "\n".join(c.source for c in cells(path, "markdown"))))
    assert 600 <= words <= 2000, f"{words} words"


@each_notebook
def test_markdown_is_portable(path):
    for c in cells(path, "markdown"):
        assert not re.search(r":::|<(div|span|img|br|center)\b|\\\(|\\\[", c.source), c.source[:100]


@each_notebook
def test_links_lead_somewhere(path):
    for c in cells(path, "markdown"):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", c.source):
            assert (path.parent / target).exists(), target


# What was committed with it


@each_notebook
def test_outputs_are_there_clean_and_small(path):
    assert path.stat().st_size <= 200_000, f"{path.stat().st_size} bytes"
    shown = [c for c in cells(path) if c.outputs]
    assert len(shown) >= 0.3 * len(cells(path)) or path.parent.name == "recipes" or path.stem == "index"
    assert shown, "executed notebooks are committed: make notebooks"
    for c in cells(path):
        for out in c.outputs:
            assert out.output_type != "error" and out.get("name") != "stderr", c.source[:100]
            text = json.dumps({k: v for k, v in out.get("data", {}).items() if k.startswith("text")}) + str(
                out.get("text")
            )
            text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
            found = re.search(r"/(tmp|home|root|work|Users|usr|opt)/|it/s\]|s/it\]|\d+%\|| at 0x[0-9a-f]+", text)
            assert not found, f"{found[0]!r} in the output of {c.source[:80]}"


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe(path):
    tagged = [c.source for c in cells(path) if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1 and "smoke" not in path.read_text()
    for line in tagged[0].splitlines():
        assert re.fullmatch(r"\w+: [\w\[\], |]+ = .+  # .+", line), line
    assert "result.json" in cells(path)[-1].source and not exported(path)
    with_steps = [c.source for c in cells(path, "markdown")]
    assert re.match(r"# \S+\n\n> .+", with_steps[0])


def test_full_size_parameters_are_known_to_their_recipe():
    import yaml

    known = {}
    for path in RECIPES:
        tagged = next(c.source for c in cells(path) if "parameters" in c.metadata.get("tags", []))
        known[path.stem] = set(re.findall(r"^(\w+):", tagged, re.M))
    files = sorted((ROOT / "params").rglob("*.yaml"))
    assert files
    for file in files:
        values = yaml.safe_load(file.read_text())
        assert any(set(values) <= names for names in known.values()), file


def test_no_conflict_marks_or_places_of_this_machine():
    places = re.compile(
        "|".join(["<" * 7 + " ", r"/work/[a-z]", r"file:" + "///(root|home)", "local" + r"host:\d"])
    )
    kinds = (".py", ".ipynb", ".md", ".toml", ".ini", ".yml", ".yaml", ".txt", "Makefile")
    for name in tracked():
        if name.endswith(kinds) and "test_hygiene" not in name:
            text = re.sub(r'"image/png": "[^"]+"', "", (ROOT / name).read_text(encoding="utf-8"))
            assert not (m := places.search(text)), f"{name}: {m[0]}"
