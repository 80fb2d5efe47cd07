"""Every chapter runs, and of every exercise the right answer is accepted, a wrong one is not, the untouched cell
asks. At least one expected answer of each chapter is computed: who looks at the cell sees how, and not what.

This is where `make test` executes the chapters; nbdev-test executes the opening pages, and
tests/training/test_recipes.py the recipes.
"""

import ast
import builtins
import json

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import GOLDEN_DIR
from tests.house.house import CHAPTERS, each_chapter, name_of

SOLUTIONS = json.loads((GOLDEN_DIR / "solutions.json").read_text())
WRONG = "-12345.678"


def test_every_chapter_has_three_solved_exercises():
    assert sorted(SOLUTIONS) == [name_of(path) for path in CHAPTERS]
    assert all(len(answers) == 3 for answers in SOLUTIONS.values())


def text_of(cell) -> str:
    return "".join(str(o.get("data", {}).get("text/plain", "")) for o in cell.outputs)


def is_written_down(value: ast.expr, cell: ast.Module, seen: frozenset[str] = frozenset()) -> bool:
    """Can an answer be read off its cell: a literal or a formula of literals, also by a name given in the cell?"""
    for name in {n.id for n in ast.walk(value) if isinstance(n, ast.Name)} - seen - {*dir(builtins), "math", "np"}:
        given = [
            n.value for n in ast.walk(cell) if isinstance(n, ast.Assign) and name in map(ast.unparse, n.targets)
        ]
        if not given or is_changed(name, cell) or not all(is_written_down(v, cell, seen | {name}) for v in given):
            return False
    return True


def is_changed(name: str, cell: ast.Module) -> bool:
    """Is `name += …`, `name[…] = …` or `name.append(…)` in a cell?"""
    for node in ast.walk(cell):
        match node:
            case ast.AugAssign(target=ast.Name(id=found)):
                pass
            case ast.Subscript(value=ast.Name(id=found), ctx=ast.Store()):
                pass
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=found)))):
                pass
            case _:
                continue
        if found == name:
            return True
    return False


def expected(source: str) -> tuple[ast.expr, ast.Module]:
    """The second argument of the check that ends an exercise's cell, and the cell."""
    cell = ast.parse(source)
    return cell.body[-1].value.args[1], cell


@pytest.mark.parametrize("source", ["check(a, 3 * 0.9)", "x = 2\ncheck(a, x + len('abc'))", "check(a, math.pi)"])
def test_what_is_written_down(source):
    assert is_written_down(*expected(source))


@pytest.mark.parametrize(
    "source",
    [
        "check(a, eer(x))",
        "x = f(2)\ncheck(a, x)",
        "n = 0\nn += 1\ncheck(a, n)",
        "x = []\nx.append(f(2))\ncheck(a, len(x))",
    ],
)
def test_what_is_computed(source):
    assert not is_written_down(*expected(source))


@each_chapter
def test_an_answer_is_computed(path):
    cells = json.loads(path.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    exercises = [source for source in sources if "answer = ..." in source]
    assert not all(is_written_down(*expected(source)) for source in exercises)


@each_chapter
def test_exercises(path):
    chapter = name_of(path)
    nb = nbformat.read(path, as_version=4)
    exercises = [i for i, c in enumerate(nb.cells) if c.cell_type == "code" and "answer = ..." in c.source]
    after = [i for i, c in enumerate(nb.cells) if c.cell_type == "code" and i >= exercises[0]]
    assert exercises == after and len(exercises) == 3  # so all that comes before is run below
    cells = list(nb.cells[: exercises[0]])
    added = []
    for i, solution in zip(exercises, SOLUTIONS[chapter], strict=True):
        for answer, sign in ((solution, "✓"), (WRONG, "✗"), ("...", "✎")):
            cell = nbformat.v4.new_code_cell(nb.cells[i].source.replace("answer = ...", f"answer = {answer}"))
            cells.append(cell)
            added.append((cell, sign, answer))
    nb.cells = cells
    NotebookClient(nb, timeout=900, resources={"metadata": {"path": str(path.parent)}}).execute()
    for cell, sign, answer in added:
        assert sign in text_of(cell), f"{chapter}: {answer} should give {sign}, got {text_of(cell)}\n{cell.source}"
