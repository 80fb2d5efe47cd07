"""Every mention of a chapter is a link, and every link leads somewhere."""

import os
import re

import pytest

from tests.conftest import ROOT
from tests.house.house import CHAPTERS, NBS, NOTEBOOKS, PAGES, cells, name_of, place, prose, python, tracked

LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
NUMBER_OF = {path.resolve(): ".".join(map(str, place(path))) for path in CHAPTERS}
DOCUMENTS = [
    *NOTEBOOKS,
    *PAGES,
    *(ROOT / n for n in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
]
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())


def anchors(path) -> set[str]:
    """Anchors of a document's headings, as GitHub, JupyterLab and the site make them."""
    text = re.sub(r"```.*?```", "", prose(path), flags=re.S)
    headings = re.findall(r"^#{1,6} (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def links(path) -> list[tuple[str, str]]:
    text = prose(path) if path.suffix == ".ipynb" else path.read_text()
    return LINK.findall(re.sub(r"`[^`\n]*`", "", re.sub(r"```.*?```", "", text, flags=re.S)))


@each_document
def test_links_lead_somewhere(path):
    for text, target in links(path):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        goal = (path.parent / file).resolve() if file else path
        assert goal.exists() and not os.path.isabs(file), f"[{text}]({target})"
        if anchor:
            assert anchor in anchors(goal), f"[{text}]({target}): {sorted(anchors(goal))}"


@each_document
def test_numbers_of_chapters_are_those_of_what_they_link_to(path):
    for text, target in links(path):
        number = re.match(r"\d\.\d+\b", text)
        if number and not target.startswith("http"):
            goal = (path.parent / target.partition("#")[0]).resolve()
            assert NUMBER_OF.get(goal) == number[0], f"[{text}]({target})"


@each_document
def test_every_mention_of_a_chapter_is_a_link(path):
    """In words outside links and code; where the form itself is explained, it is not one."""
    text = prose(path) if path.suffix == ".ipynb" else path.read_text()
    text = re.sub(r"```.*?```|`[^`\n]*`", "", LINK.sub("", text), flags=re.S)
    text = (
        text.replace('"chapter 4.8"', "").replace("Chapter 4.8 is the eighth", "").replace("chapter 4.5 and", "")
    )
    found = re.findall(r"\b[Cc]hapters? \d[\d.]*|\b[Nn]otebooks? \d\d|§ ?\d\.\d", text)
    assert not found, found


def test_code_names_modules_not_chapters():
    """Messages and docstrings outlive the order of the book."""
    for path in NOTEBOOKS:
        for cell in cells(path):
            found = re.search(r"\b[Cc]hapters? \d|\b\d\d_[a-z_0-9]+\.ipynb", python(cell))
            assert not found, f"{name_of(path)}: {found[0]}"
    for name in tracked():
        if name.endswith((".py", ".yaml")) and name.startswith(("tests/", "tools/", "benchmarks/", "params/")):
            if name not in ("tests/house/test_links.py", "tools/make_book.py"):
                found = re.search(r"\b[Cc]hapters? \d+", (ROOT / name).read_text())
                assert not found, f"{name}: {found[0]}"


def test_pages_are_reachable_from_the_landing_page():
    seen = set()
    todo = [NBS / "index.ipynb"]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        for _, target in links(path):
            goal = (path.parent / target.partition("#")[0]).resolve()
            if not target.startswith("http") and goal.suffix in (".ipynb", ".md") and NBS in goal.parents:
                todo.append(goal)
    assert {name_of(p) for p in [*NOTEBOOKS, *PAGES]} == {name_of(p) for p in seen}
