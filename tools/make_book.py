"""Tables of chapters and the site's sidebar, from `tools/book.yaml` and the chapters themselves: `make book`.

Written are the cell that begins with the mark below in each part's opening page and in the landing page, and the
sidebar in `_quarto.yml`. With --check nothing is written, and the exit code says whether anything is out of step.
"""

import functools
import os
import re
import sys
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).parent.parent
NBS = ROOT / "nbs"
MARK = "<!-- made by `make book` -->"
BOOK = yaml.safe_load((ROOT / "tools" / "book.yaml").read_text())


def chapters(part: str) -> list[Path]:
    """The chapters of a part, in order."""
    return sorted((NBS / part).glob("[0-9]*.ipynb"))


def number(path: Path) -> str:
    """4_models/08_wedefense.ipynb is chapter 4.8."""
    return f"{path.parent.name[0]}.{int(path.name[:2])}"


@functools.cache
def facts(path: Path) -> dict:
    """What the first two cells of a chapter say of it: title, subtitle, minutes."""
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells[:2])
    patterns = {"title": r"^# (.+)", "about": r"^> (.+)", "minutes": r"^Time: (\d+) min"}
    found = {name: re.findall(pattern, text, re.M)[0] for name, pattern in patterns.items()}
    return found | {"minutes": int(found["minutes"])}


def link(path: Path, seen_from: Path) -> str:
    """Markdown: the chapter's number and title, linked."""
    return f"[{number(path)} {facts(path)['title']}]({os.path.relpath(path, seen_from).replace(os.sep, '/')})"


def part_table(part: str) -> str:
    """Main line and side rooms of a part, with what they are about and how long they take."""
    main = BOOK["parts"][part]["main"]
    text = [MARK]
    rooms = {
        "Main line": [p for p in chapters(part) if p.stem[3:] in main],
        "Side rooms": [p for p in chapters(part) if p.stem[3:] not in main],
    }
    for name, paths in rooms.items():
        if not paths:
            continue
        total = sum(facts(path)["minutes"] for path in paths)
        text += [f"\n**{name}**, {total} minutes:\n", "| chapter | min | about |", "|---|---:|---|"]
        for path in paths:
            text.append(f"| {link(path, NBS / part)} | {facts(path)['minutes']} | {facts(path)['about']} |")
    return "\n".join(text)


def weekend_table() -> str:
    """The main line of the whole book, and what each chapter adds to the running example."""
    text = [MARK, "", "| chapter | min | what it adds |", "|---|---:|---|"]
    total = 0
    for name, adds in BOOK["weekend"].items():
        path = NBS / f"{name}.ipynb"
        total += facts(path)["minutes"]
        text.append(f"| {link(path, NBS)} | {facts(path)['minutes']} | {adds} |")
    text.append(f"\nTogether {total // 60} h {total % 60} min of reading, and as much again for exercises.")
    return "\n".join(text)


def book_table() -> str:
    """All parts and chapters."""
    text = [MARK, "", "| part | chapters |", "|---|---|"]
    for part, about in BOOK["parts"].items():
        links = " · ".join(link(path, NBS) for path in chapters(part))
        text.append(f"| [{part[0]} {about['title']}]({part}/index.ipynb) | {links} |")
    recipes = " · ".join(f"[{p.stem}](recipes/{p.name})" for p in sorted((NBS / "recipes").glob("*.ipynb")))
    return "\n".join([*text, f"| Recipes | {recipes} |"])


def sidebar() -> str:
    """The sidebar of the site, as lines of _quarto.yml."""
    lines = ["      - index.ipynb"]
    for part, about in BOOK["parts"].items():
        lines += [f"      - section: {about['title']}", "        contents:"]
        lines += [f"          - {part}/index.ipynb"]
        lines += [f"          - {path.relative_to(NBS).as_posix()}" for path in chapters(part)]
    lines += ["      - section: Recipes", "        contents:"]
    lines += [f"          - {p.relative_to(NBS).as_posix()}" for p in sorted((NBS / "recipes").glob("*.ipynb"))]
    for section, names in BOOK["pages"].items():
        lines += [f"      - section: {section}", "        contents:"]
        lines += [f"          - pages/{name}.md" for name in names]
    return "\n".join(lines)


def with_tables(path: Path, tables: list[str]) -> str:
    """A notebook whose marked cells hold these tables, as text."""
    notebook = nbformat.read(path, as_version=4)
    marked = [cell for cell in notebook.cells if cell.cell_type == "markdown" and cell.source.startswith(MARK)]
    if len(marked) != len(tables):
        raise ValueError(f"{path}: {len(marked)} cells begin with {MARK}, must be {len(tables)}")
    for cell, table in zip(marked, tables, strict=True):
        cell.source = table
    return nbformat.writes(notebook) + "\n"


def made() -> dict[Path, str]:
    """Every file that is made here, and what it should hold."""
    files = {NBS / "index.ipynb": with_tables(NBS / "index.ipynb", [weekend_table(), book_table()])}
    for part in BOOK["parts"]:
        files[NBS / part / "index.ipynb"] = with_tables(NBS / part / "index.ipynb", [part_table(part)])
    quarto = ROOT / "_quarto.yml"
    pattern = r"(?<=    contents:\n)(?:      .*\n)+(?=\nformat:)"
    files[quarto] = re.sub(pattern, lambda _: sidebar() + "\n", quarto.read_text(), count=1)
    return files


if __name__ == "__main__":
    odd = {path: text for path, text in made().items() if path.read_text(encoding="utf-8") != text}
    names = ", ".join(path.relative_to(ROOT).as_posix() for path in odd)
    if "--check" in sys.argv:
        sys.exit(f"out of step: {names}: run `make book`" if odd else 0)
    for path, text in odd.items():
        path.write_text(text, encoding="utf-8")
    print(f"written: {names or 'nothing, all was in step'}")
