"""What the tests of the house look at: chapters, recipes, pages, modules."""

import ast
import functools
import re
import subprocess
from pathlib import Path

import nbformat
import pytest

from tests.conftest import ROOT

NBS = ROOT / "nbs"
CHAPTERS = sorted(NBS.glob("[0-9]*/[0-9]*.ipynb"))
OPENINGS = [NBS / "index.ipynb", *sorted(NBS.glob("[0-9]*/index.ipynb"))]
RECIPES = sorted((NBS / "recipes").glob("*.ipynb"))
NOTEBOOKS = [*OPENINGS, *CHAPTERS, *RECIPES]
PAGES = sorted((NBS / "pages").glob("*.md"))
MODULES = sorted(p for p in (ROOT / "wedefense_nb").rglob("*.py") if not p.name.startswith("_"))


def name_of(path: Path) -> str:
    """nbs/4_models/05_cnn.ipynb is 4_models/05_cnn; wedefense_nb/models/cnn.py is models.cnn."""
    if path.suffix == ".py":
        return ".".join(path.relative_to(ROOT / "wedefense_nb").with_suffix("").parts)
    return path.relative_to(NBS).with_suffix("").as_posix()


each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=name_of)
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
each_module = pytest.mark.parametrize("path", MODULES, ids=name_of)


@functools.cache
def notebook(path: Path):
    return nbformat.read(path, as_version=4)


def cells(path: Path, kind: str = "code") -> list:
    return [c for c in notebook(path).cells if c.cell_type == kind]


def prose(path: Path) -> str:
    """The Markdown of a notebook or a page."""
    return path.read_text() if path.suffix == ".md" else "\n\n".join(c.source for c in cells(path, "markdown"))


def place(path: Path) -> tuple[int, int]:
    """(part, chapter) of a chapter."""
    return int(path.parent.name[0]), int(path.name[:2])


@functools.cache
def default_exp(path: Path) -> str:
    return next(m[1] for c in cells(path) if (m := re.match(r"#\| default_exp (\S+)", c.source)))


CHAPTER_OF = {default_exp(path): path for path in CHAPTERS}  # by module: "models.cnn"


def imported(source: str, module: str = "") -> set[str]:
    """Modules of ours that a source imports anywhere in it, relative imports resolved: {"models.cnn"}."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            base = ["wedefense_nb", *module.split(".")][: -node.level] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found |= {stem, *(f"{stem}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {n.removeprefix("wedefense_nb.") for n in found if n.startswith("wedefense_nb.")} & set(CHAPTER_OF)


def python(cell) -> str:
    """A cell's source without lines that only Jupyter understands."""
    return "\n".join(line for line in cell.source.splitlines() if not line.startswith(("%", "!")))


def tracked() -> list[str]:
    out = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if out.returncode:
        pytest.skip("not a git checkout")
    return [name for name in out.stdout.splitlines() if (ROOT / name).is_file()]
