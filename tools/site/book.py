"""What the site is made of: pages and their order from _quarto.yml, the main line from tools/book.yaml."""

import functools
import json
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent.parent
NBS = ROOT / "nbs"


def sections() -> list[tuple[str, list[str]]]:
    """(title, pages) of each section of the sidebar, in order; the first is the landing page alone."""
    entries = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    return [(e["section"], e["contents"]) for e in entries if isinstance(e, dict)]


def pages() -> list[str]:
    """All pages, as paths under nbs/."""
    return ["index.ipynb", *(page for _, contents in sections() for page in contents)]


@functools.cache
def sources(page: str) -> list[tuple[str, str]]:
    """(kind, text) of a notebook's cells; as JSON, which is much faster than nbformat's checks."""
    cells = json.loads((NBS / page).read_text(encoding="utf-8"))["cells"]
    return [(cell["cell_type"], "".join(cell["source"])) for cell in cells]


@functools.cache
def head(page: str) -> str:
    """The beginning of a page, where its title and subtitle are."""
    if page.endswith(".md"):
        return (NBS / page).read_text(encoding="utf-8")
    return "\n\n".join(text for _, text in sources(page)[:2])


def title(page: str) -> str:
    return re.search(r"^# (.+)$", head(page), re.M)[1]


def about(page: str) -> str:
    """The subtitle: the line that begins with >."""
    found = re.search(r"^> (.+)$", head(page), re.M)
    return found[1] if found else ""


def number(page: str) -> str:
    """4_models/08_ssl_backends.ipynb has the number 4.8, an opening page that of its part."""
    found = re.match(r"(\d)_\w+/(?:(\d\d)_)?", page)
    if not found:
        return ""
    return f"{found[1]}.{int(found[2])}" if found[2] else found[1]


def titles() -> dict[str, str]:
    """What the sidebar says for each page."""
    section_of = {contents[0]: name for name, contents in sections()}
    names = {}
    for page in pages():
        name = section_of[page] if page.endswith("/index.ipynb") else title(page)
        names[page] = f"{number(page)} {name}".strip()
    return names


def main_line() -> list[str]:
    """The landing page, opening pages and chapters that are to be read one after the other."""
    parts = yaml.safe_load((ROOT / "tools/book.yaml").read_text(encoding="utf-8"))["parts"]
    line = ["index.ipynb"]
    for page in pages():
        part, _, name = page.partition("/")
        if part in parts and (name == "index.ipynb" or name[3:-6] in parts[part]["main"]):
            line.append(page)
    return line


@functools.cache
def chapter_modules() -> dict[str, str]:
    """By module, as scores.calibration: the page that exports it, in the order of the book."""
    found = {}
    for page in pages():
        if not number(page) or page.endswith("/index.ipynb"):
            continue
        for kind, text in sources(page):
            exp = re.search(r"^#\|\s*default_exp\s+(\S+)", text, re.M)
            if exp and kind == "code":
                found[exp[1]] = page
    return found
