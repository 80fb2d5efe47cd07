"""Who imports whom, what modules look like, and what is known under which name."""

import ast
import collections
import functools
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.house.house import (
    CHAPTER_OF,
    CHAPTERS,
    MODULES,
    cells,
    default_exp,
    each_chapter,
    each_module,
    imported,
    name_of,
    place,
    prose,
    python,
)


@each_module
def test_imports_point_down(path):
    """The rule of the house. Imports by name would dodge it: only what fills a registry may use them."""
    name = name_of(path)
    assert name in CHAPTER_OF, f"{name} is exported by no chapter"
    here = place(CHAPTER_OF[name])
    above = [other for other in imported(path.read_text(), name) if place(CHAPTER_OF[other]) >= here]
    assert not above, f"{name} {here} imports from above: {above}"
    by_name = {"registry", "features.upstreams"}  # discovery of a package's modules; s3prl's hubconf of a family
    assert "import_module(" not in path.read_text() or name in by_name, "imports are written out"


def linked(path, text) -> set:
    """Chapters that a text in a chapter links."""
    return {(path.parent / target).resolve() for target in re.findall(r"\]\(([^)\s]+\.ipynb)\)", text)} & set(
        CHAPTERS
    )


@functools.cache
def builds_on(path) -> set:
    """Chapters that stand in a chapter's line "builds on", and those that they build on."""
    opening = cells(path, "markdown")[1].source
    named = linked(path, opening.split("builds on")[-1])
    assert all(place(other) < place(path) for other in named), "it builds on a later chapter"
    return named.union(*map(builds_on, named))


@each_chapter
def test_a_chapter_borrows_only_from_what_it_builds_on(path):
    """In all cells; only `book` is everywhere, and a cell that exports nothing may preview a linked chapter."""
    before = builds_on(path)
    for cell in cells(path):
        for module in imported(python(cell)) - {default_exp(path), "book", "files"}:
            other = CHAPTER_OF[module]
            preview = other in linked(path, prose(path)) and not cell.source.startswith("#| export")
            assert other in before or preview, f"{module} is not among what it builds on"


def test_every_module_is_exported_by_one_chapter():
    assert sorted(CHAPTER_OF) == sorted(name_of(path) for path in MODULES)
    assert all(default_exp(path).split(".")[-1] == path.stem[3:] for path in CHAPTERS)


@each_module
def test_module_is_ordinary_python(path):
    text = path.read_text()
    assert "fastcore" not in text and "@patch" not in text and "__signature__" not in text
    for node in ast.walk(ast.parse(text)):
        assert not (isinstance(node, ast.ImportFrom) and any(a.name == "*" for a in node.names)), (
            "imports are explicit"
        )
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple) and len(node.value.elts) > 3:
            assert not isinstance(node.targets[0], ast.Tuple), f"packed: {ast.unparse(node)}"


@pytest.mark.parametrize("module", ["wedefense_nb", "wedefense_nb.use.cli", "wedefense_nb.metrics"])
def test_importing_is_light(module):
    heavy = ("torch", "s3prl", "matplotlib", "papermill")
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
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


INHERITED = {"forward", "paths", "fit", "transform", "sample", "apply", "frames", "loss", "hop", "out_dim"}


@each_module
def test_public_definitions_are_documented(path):
    for name, node in definitions(path):
        overload = any(getattr(d, "id", "") == "overload" for d in node.decorator_list)
        if overload or any(part.startswith("_") for part in name.split(".")):
            continue
        if name.split(".")[-1] not in INHERITED:
            assert ast.get_docstring(node), f"{name} has no docstring"
        if isinstance(node, ast.FunctionDef) and "." not in name and not node.decorator_list:
            assert node.returns is not None or name.startswith(("plot_", "play")), f"{name}: what does it return?"


def test_one_name_one_thing():
    """No public name is defined by two modules of the library (commands are called like what they run)."""
    owners = collections.defaultdict(set)
    for path in MODULES:
        if name_of(path).startswith("use."):
            continue
        for node in ast.parse(path.read_text()).body:
            names = [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
            if isinstance(node, ast.Assign):
                names = [t.id for t in node.targets if isinstance(t, ast.Name)]
            for name in names:
                if not name.startswith("_"):
                    owners[name].add(name_of(path))
    assert {name: sorted(found) for name, found in owners.items() if len(found) > 1} == {}
