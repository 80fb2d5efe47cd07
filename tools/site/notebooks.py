"""Notebooks and pages as the site shows them, with ways to the reference and with texts for figures."""

import json
import os
import re
import shutil
from pathlib import Path

import nbformat
import reference
from book import NBS, ROOT, chapter_modules
from docutils.nodes import make_id

HERE = Path(__file__).parent
DIRECTIVE = re.compile(r"^#\|\s*\S.*\n?", re.MULTILINE)
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
FENCE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
SOUNDS = ("S0468", "S0353")  # on the landing page: a vocoded copy, A, and the recording, B


def markdown(text: str):
    return nbformat.v4.new_markdown_cell(text)


def plain(text: str) -> str:
    """Markdown without its marks."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"\s+", " ", re.sub(r"[*`$\\|]|^#+ |^> ", "", text, flags=re.M)).strip()


def headings(page: str) -> dict[str, tuple[str, str]]:
    """By cell: the heading above it, as (text, anchor); an anchor that two headings share is left out."""
    found, here, seen = {}, ("", ""), []
    for cell in json.loads((NBS / page).read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"]) if cell["cell_type"] == "markdown" else ""
        for text in re.findall(r"^#{2,4} (.+)$", re.sub(r"```.*?```", "", source, flags=re.S), re.M):
            here = (plain(text), make_id(plain(text)))
            seen.append(here[1])
        found[cell.get("id", "")] = here
    return {cell: (text, anchor if seen.count(anchor) == 1 else "") for cell, (text, anchor) in found.items()}


def text_of_figure(above: str, code: str) -> str:
    """A text for those who do not see the figure: the claim that is made above it, and what its axes are."""
    paragraphs = [p for p in above.split("\n\n") if p.strip() and not p.startswith(("|", "```", "#"))]
    words = plain(paragraphs[-1]) if paragraphs else ""
    claim = re.search(r"[Cc]laim of (?:the|this)(?: next)? figure(?: below)?: (.+)", words)
    sentences = re.split(r"(?<=[.:?!]) (?=[A-Z])", claim[1] if claim else words)
    said = ""
    for sentence in sentences if claim else reversed(sentences):
        if said and len(said) + len(sentence) > 240:
            break
        said = f"{said} {sentence}" if claim else f"{sentence} {said}"
    labels = re.findall(r"\b(?:set_)?([xy])label(?:=|\()\s*[fr]?[\"']([^\"']+)[\"']", code)
    axes = {axis: plain(label) for axis, label in labels}
    about = " against ".join(axes[axis] for axis in "yx" if axis in axes)
    said = said.strip()[:400]
    return f"Figure. {said[:1].upper()}{said[1:]}" + (f" Axes: {about}." if about else "")


def as_page(nb, path: str):
    """The notebook with a line below its title, and links to the reference below what the package takes of it."""
    up = "../" * path.count("/")
    module = {page: name for name, page in chapter_modules().items()}.get(path, "")
    names: dict[str, list[str]] = {}
    for name, cell in reference.definitions(module).items() if module else ():
        names.setdefault(cell, []).append(name)
    cells, above = [], ""
    for cell in nb.cells:
        cells.append(cell)
        if cell.cell_type == "markdown":
            above = cell.source
            continue
        cell.source = DIRECTIVE.sub("", cell.source).strip("\n")
        if not cell.source and not cell.get("outputs"):
            cells.pop()
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
            cell.metadata["mystnb"] = {"image": {"alt": text_of_figure(above, cell.source)}}
        here = names.get(cell.get("id", ""), [])
        if here:
            links = ", ".join(
                f'<a href="{up}api/{module}.html#wedefense_nb.{module}.{n}"><code>{n}</code></a>' for n in here
            )
            cells.append(markdown(f'<p class="exported">In the reference: {links}</p>'))
    nb.metadata.pop("widgets", None)  # they would ask another server for their program
    if path != "index.ipynb":
        line = f'<a href="{up}notebooks/{path}" download>Download this notebook</a>'
        if module:
            line += f' · module <a href="{up}api/{module}.html"><code>wedefense_nb.{module}</code></a>'
        cells.insert(1, markdown(f'<p class="download">{line}</p>'))
    nb.cells = cells
    return nb


def llrs(utt: str) -> str:
    """What the two detectors whose scores come with the corpus say of a recording."""
    said = []
    for name in ("lcnn", "resnet"):
        table = (ROOT / f"data_samples/scores/{name}/eval.csv").read_text(encoding="utf-8")
        said.append(float(re.search(rf"^{utt},[^,]+,([^,]+),", table, re.M)[1]))
    return " and ".join(f"{value:.1f}".replace("-", "−") for value in said)


def landing(nb, has_demo: bool):
    """The first page: its sentence, two recordings, three doors and the weekend; then the rest as it is."""
    text = (HERE / "landing.md").read_text(encoding="utf-8")
    demo = "Or [let a detector in this browser judge](demo/index.html) a recording of your own; it stays with you."
    for letter, utt in zip("AB", SOUNDS, strict=True):
        text = text.replace(f"LLR_{letter}", llrs(utt)).replace(f"SOUND_{letter}", f"sounds/{utt}.flac")
    text = text.replace("DEMO", demo.replace("](demo/index.html)", "](URL)") if has_demo else "")
    text = re.sub(r"\[([^\]]+)\]\(URL\)", r'<a href="demo/index.html">\1</a>', text)
    weekend = [i for i, cell in enumerate(nb.cells) if "## One weekend" in cell.source]
    title, rest = nb.cells[0], nb.cells[1:]
    if weekend:
        at = weekend[0] - 1
        before, _, words = rest[at].source.partition("## One weekend")
        rest[at].source = before
        path = [markdown("## One weekend" + words), rest.pop(at + 1)]
    else:
        path = []
    nb.cells = [title, markdown(text), *path, markdown("## In more words"), *rest]
    return nb


def with_index(page: str) -> str:
    """The glossary, with entries for search and index: each term and what else it is called."""
    parts = re.split(r"(?m)^(?=### )", page)
    for i, part in enumerate(parts):
        for term in reversed(terms(part)[0][0] if terms(part) else []):
            head, _, rest = parts[i].partition("\n")
            parts[i] = f"{head}\n\n```{{index}} single: {term}\n```\n{rest}"
    return "".join(parts)


def terms(page: str) -> list[tuple[list[str], str, str]]:
    """(names, anchor, first sentence) of each term of the glossary."""
    found = []
    for head, body in re.findall(r"(?m)^### (.+)\n((?:(?!^#).*\n?)*)", page):
        also = re.search(r"^\*Also\*: (.+)$", body, re.M)
        names = [head.strip(), *(name.strip(" .") for name in (also[1].split(",") if also else []))]
        first = re.split(r"(?<=[.?!])\s", plain(body.strip().split("\n\n")[0].split("\n*")[0]))[0]
        found.append((names, make_id(head), first))
    return found


class Outside:
    """What pages link to: other pages stay where they are, files of the repository come along."""

    def __init__(self, source: Path):
        self.source = source
        self.done: set[Path] = set()

    def place(self, goal: Path) -> Path | None:
        """Where a file of the repository is on the site."""
        if NBS in goal.parents:
            return self.source / goal.relative_to(NBS)
        if goal == ROOT / "README.md":
            return self.source / "index.ipynb"
        if ROOT not in goal.parents or not goal.is_file():
            return None
        name = goal.relative_to(ROOT)
        if goal.suffix != ".md":
            place = self.source / "files" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(goal, place)
            return place
        place = self.source / "more" / ("_".join(name.parts).lower())
        if goal not in self.done:
            self.done.add(goal)
            place.parent.mkdir(parents=True, exist_ok=True)
            text = "---\norphan: true\n---\n\n" + goal.read_text(encoding="utf-8")
            place.write_text(self.rewritten(text, goal, place), encoding="utf-8")
        return place

    def rewritten(self, text: str, origin: Path, place: Path) -> str:
        """The text with its links as they are from its new place."""

        def link(found: re.Match) -> str:
            target, _, anchor = found[2].partition("#")
            if not target or re.match(r"[a-z]+:", target) or target.startswith("demo/"):
                return found[0]
            goal = self.place((origin.parent / target).resolve())
            if goal is None:
                return found[0]
            new = os.path.relpath(goal, place.parent).replace(os.sep, "/")
            return f"{found[1]}{new}{'#' + anchor if anchor else ''}{found[3]}"

        return "".join(p if p.startswith("`") else LINK.sub(link, p) for p in FENCE.split(text))
