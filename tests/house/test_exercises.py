"""Every chapter runs, and of every exercise the right answer is accepted, a wrong one is not, the untouched cell
asks.

This is where `make test` executes the chapters; nbdev-test executes the opening pages, and
tests/training/test_recipes.py the recipes.
"""

import json

import nbformat
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
