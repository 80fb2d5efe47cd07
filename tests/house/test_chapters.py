"""What a notebook looks like, and what was committed with it."""

import ast
import json
import re
import statistics
import subprocess
import sys

import pytest
import yaml

from tests.conftest import ROOT
from tests.house.house import (
    CHAPTERS,
    NBS,
    NOTEBOOKS,
    OPENINGS,
    RECIPES,
    cells,
    default_exp,
    each_chapter,
    each_notebook,
    name_of,
    prose,
    python,
    tracked,
)

each_recipe = pytest.mark.parametrize("path", RECIPES, ids=name_of)


@each_chapter
def test_lesson_cells_are_small(path):
    """Cells that are not exported can be read at one glance; what is exported is as long as it needs to be."""
    sizes = [len(c.source.splitlines()) for c in cells(path) if not c.source.startswith("#| export")]
    assert statistics.median(sizes) <= 7 and max(sizes) <= 30, sorted(sizes)[-3:]


@each_chapter
def test_imports_stand_alone_in_exported_cells(path):
    for cell in cells(path):
        if cell.source.startswith("#| export"):
            kinds = {isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(cell.source).body}
            assert len(kinds) <= 1, cell.source[:120]


@each_chapter
def test_chapter_has_all_its_parts(path):
    title, opening = (cell.source for cell in cells(path, "markdown")[:2])
    assert re.fullmatch(r"# \S+\n\n> .+", title.strip()), title
    assert re.search(r"^Time: \d+ min · (CPU|GPU) · uses .+ · builds on .+\.$", opening, re.M)
    sentences = re.findall(r"[.?!](?=\s|$)", opening.split("\nTime:")[0])
    assert 3 <= len(sentences) <= 9, len(sentences)
    text = prose(path)
    parts = [text.index(f"\n## {part}\n") for part in ("What to remember", "Exercises", "References")]
    assert parts == sorted(parts)
    assert len(re.findall(r"^- ", text[parts[0] : parts[1]], re.M)) == 3
    assert re.findall(r"\*\*(\d\. \w+)\.\*\*", text) == ["1. Predict", "2. Change", "3. Break"]
    assert len(re.findall(r"\]\(https?://", text[parts[2] :])) >= 1
    assert default_exp(path).split(".")[-1] == path.stem[3:] == title.split("\n")[0][2:]


@each_chapter
def test_chapter_has_the_right_length(path):
    words = len(re.findall(r"\w+", prose(path)))
    assert 500 <= words <= 2200, f"{words} words"


@pytest.mark.parametrize("path", OPENINGS[1:], ids=name_of)
def test_a_part_opens_with_a_question_a_map_and_two_lines(path):
    book = yaml.safe_load((ROOT / "tools/book.yaml").read_text())["parts"]
    part = path.parent.name
    title = cells(path, "markdown")[0].source
    assert title.startswith(f"# {part[0]} · {book[part]['title']}\n\n> ") and "?" in title + prose(path)
    assert "**Main line**" in prose(path)
    (drawing,) = [c.source for c in cells(path)]
    main = json.loads(re.search(r"main=(\[.*?\])", drawing)[1])
    assert f'plot_map("{part[2:]}"' in drawing and main == book[part]["main"]
    stems = {p.stem[3:] for p in CHAPTERS if p.parent == path.parent}
    assert set(main) <= stems and (
        main == list(stems) or len(stems) == len(main) or "**Side rooms**" in prose(path)
    )


def test_the_main_line_is_read_in_one_weekend():
    weekend = list(yaml.safe_load((ROOT / "tools/book.yaml").read_text())["weekend"])
    assert weekend == sorted(weekend) and 13 <= len(weekend) <= 17
    assert set(weekend) <= {name_of(path) for path in CHAPTERS}


@each_notebook
def test_markdown_is_portable(path):
    for c in cells(path, "markdown"):
        assert not re.search(r":::|<(div|span|img|br|center)\b|\\\(|\\\[", c.source), c.source[:100]


@each_notebook
def test_outputs_are_there_clean_and_small(path):
    assert path.stat().st_size <= 200_000, f"{path.stat().st_size} bytes"
    shown = [c for c in cells(path) if c.outputs]
    assert len(shown) >= 0.3 * len(cells(path)) or path in RECIPES or path in OPENINGS
    assert shown, "executed notebooks are committed: make notebooks"
    for c in cells(path):
        for out in c.outputs:
            assert out.output_type != "error" and out.get("name") != "stderr", c.source[:100]
            text = json.dumps({k: v for k, v in out.get("data", {}).items() if k.startswith("text")})
            text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text + str(out.get("text")))
            found = re.search(r"/(tmp|home|root|work|Users|usr|opt)/|it/s\]|s/it\]|\d+%\|| at 0x[0-9a-f]+", text)
            assert not found, f"{found[0]!r} in the output of {c.source[:80]}"


@each_recipe
def test_recipe(path):
    code = cells(path)
    tagged = [c.source for c in code if "parameters" in c.metadata.get("tags", [])]
    assert tagged == [code[0].source] and "smoke" not in path.read_text()
    for node in ast.parse(tagged[0]).body:
        assert isinstance(node, ast.AnnAssign) and "# " in tagged[0].splitlines()[node.end_lineno - 1]
    assert "start_run(" in code[1].source and "run.finish(" in code[-1].source
    assert not any(c.source.startswith("#| export") for c in code)
    assert re.match(r"# \S+\n\n> .+", cells(path, "markdown")[0].source)
    assert "if smoke" not in "".join(python(c) for c in code)


def test_readme_shows_a_program_that_runs(tmp_path):
    """The lines under "As a library", with one epoch."""
    text = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"## As a library\n.*?```python\n(.*?)```", text, re.S)
    code = code.replace("epochs=5", "epochs=1").replace("eer(table", "print(eer(table").rstrip() + ")"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and 0 < float(done.stdout.split()[-1]) < 1, done.stderr[-800:]
    assert (tmp_path / "runs/first/checkpoints/last.pt").is_file()


def test_no_sound_or_weights_outside_data_samples():
    heavy = "wav flac mp3 ogg m4a pt pth safetensors ckpt bin npy".split()
    suffixes = tuple(f".{suffix}" for suffix in heavy)
    assert [n for n in tracked() if n.endswith(suffixes) and not n.startswith("data_samples/")] == []


def test_no_conflict_marks_or_places_of_this_machine():
    marks = ["<" * 7 + " ", r"/work/[a-z]", r"file:" + "///(root|home)", "local" + r"host:\d"]
    places = re.compile("|".join(marks))
    kinds = (".py", ".ipynb", ".md", ".toml", ".ini", ".yml", ".yaml", ".txt", "Makefile")
    for name in tracked():
        if name.endswith(kinds) and "test_chapters" not in name:
            text = re.sub(r'"image/png": "[^"]+"', "", (ROOT / name).read_text(encoding="utf-8"))
            assert not (m := places.search(text)), f"{name}: {m[0]}"


def test_notebooks_lie_where_they_belong():
    assert {p.relative_to(NBS).as_posix() for p in NOTEBOOKS} >= {
        n.removeprefix("nbs/") for n in tracked() if n.endswith(".ipynb")
    }
