"""The web site in _docs/, from the notebooks as they are: `make docs`.

Titles, order and parts come from _quarto.yml, the same file that quarto reads. Nothing is executed and nothing is
asked of the network by the pages: formulas' fonts are fetched from npm once, while the site is built.
"""

import argparse
import configparser
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent
DIRECTIVE = re.compile(r"^#\|\s*\S.*\n?", re.MULTILINE)
CODE = re.compile(r"^#\|\s*export\b", re.MULTILINE)


def contents() -> list:
    """Pages and sections of the sidebar, in order, as _quarto.yml has them."""
    return yaml.safe_load((ROOT / "_quarto.yml").read_text())["website"]["sidebar"]["contents"]


def pages() -> list[str]:
    """All pages, as paths under nbs/."""
    return [p for entry in contents() for p in (entry["contents"] if isinstance(entry, dict) else [entry])]


def module_of(nb) -> str:
    """The module that a notebook exports, such as scores.calibration; empty for none."""
    for cell in nb.cells:
        found = re.search(r"^#\|\s*default_exp\s+(\S+)", cell.source) if cell.cell_type == "code" else None
        if found:
            return found[1]
    return ""


def as_page(nb, path: str):
    """The notebook as the site shows it: without directives, with the way to its module and to the file itself."""
    module = module_of(nb)
    cells = []
    for cell in nb.cells:
        if cell.cell_type == "code":
            exported = bool(CODE.search(cell.source))
            cell.source = DIRECTIVE.sub("", cell.source).strip("\n")
            if not cell.source and not cell.outputs:
                continue
            if exported:
                cell.metadata["tags"] = [*cell.metadata.get("tags", []), "exported"]
        cells.append(cell)
    name = Path(path).name
    line = f"{{download}}`Download this notebook <{name}>`"
    if module:
        line += f" · builds the module [`{module}`]({'../' * path.count('/')}api/{module}.md)"
    cells.insert(1, nbformat.v4.new_markdown_cell(f"::::{{container}} download\n{line}\n::::"))
    nb.cells = cells
    return nb


def toctrees() -> str:
    """The sidebar as Sphinx wants it, for the end of the first page."""
    blocks = []
    for entry in contents():
        if not isinstance(entry, dict):
            continue
        names = "\n".join(page.rsplit(".", 1)[0] for page in entry["contents"])
        blocks.append(f"```{{toctree}}\n:hidden:\n:caption: {entry['section']}\n\n{names}\n```")
    blocks.append("```{toctree}\n:hidden:\n:caption: Look up\n\napi/index\n```")
    return "\n\n".join(blocks)


def reference(source: Path, chapters: dict[str, str]) -> None:
    """One page for each module, and an index of all of them by part."""
    folder = source / "api"
    folder.mkdir()
    lines = ["# Reference", "", "Every public name, by the module that has it.", ""]
    names = []
    for module, path in sorted(chapters.items(), key=lambda pair: pair[1]):
        title = nbformat.read(ROOT / "nbs" / path, 4).cells[0].source
        about = (re.findall(r"^>\s*(.+)$", title, re.MULTILINE) or [""])[0]
        text = f"# {module}\n\n{about}\n\nBuilt in the chapter [{path[:-6]}](../{path}).\n\n"
        text += f"```{{eval-rst}}\n.. automodule:: wedefense_nb.{module}\n   :members:\n```\n"
        (folder / f"{module}.md").write_text(text)
        lines.append(f"- [`{module}`]({module}.md) {about}")
        names.append(module)
    lines += ["", "```{toctree}\n:hidden:\n", *names, "```", ""]
    (folder / "index.md").write_text("\n".join(lines))


def katex_files(into: Path) -> None:
    """KaTeX's style and fonts, of the version that the extension sets formulas with, from npm."""
    from sphinxcontrib.katex import katex_version

    with tempfile.TemporaryDirectory() as tmp:
        subprocess.run(["npm", "pack", "--silent", f"katex@{katex_version}"], cwd=tmp, check=True, stdout=sys.stderr)
        (archive,) = Path(tmp).glob("katex-*.tgz")
        with tarfile.open(archive) as tar:
            tar.extractall(tmp, filter="data")
        dist = Path(tmp) / "package/dist"
        into.mkdir(parents=True)
        shutil.copy(dist / "katex.min.css", into)
        (into / "fonts").mkdir()
        for font in (dist / "fonts").glob("*.woff2"):
            shutil.copy(font, into / "fonts")


def write_source(source: Path) -> None:
    """All that Sphinx reads, in a folder of its own."""
    chapters = {}
    for page in pages():
        place = source / page
        place.parent.mkdir(parents=True, exist_ok=True)
        if page.endswith(".md"):
            shutil.copy(ROOT / "nbs" / page, place)
            continue
        nb = nbformat.read(ROOT / "nbs" / page, 4)
        module = module_of(nb)
        if module:
            chapters[module] = page
        nb = as_page(nb, page)
        if page == "index.ipynb":
            nb.cells.append(nbformat.v4.new_markdown_cell(toctrees()))
        nbformat.write(nb, place)
    for folder in ("images",):
        if (ROOT / "nbs" / folder).is_dir():
            shutil.copytree(ROOT / "nbs" / folder, source / folder)
    reference(source, chapters)
    static = source / "_static"
    shutil.copytree(HERE / "static", static)
    katex_files(static / "katex")
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    settings = settings["DEFAULT"]
    facts = {"title": settings["lib_name"], "version": settings["version"], "author": settings["author"]}
    (source / "facts.json").write_text(json.dumps(facts | {"node": shutil.which("node") or ""}))
    shutil.copy(HERE / "conf.py", source)


def main() -> None:
    """Write the source, run Sphinx, put the site in its place."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "_docs")
    parser.add_argument("--work", type=Path, default=ROOT / "build/site", help="source and what Sphinx remembers")
    args = parser.parse_args()
    source = args.work / "source"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    write_source(source)
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-j", "auto", "-q"]
    command += ["-d", str(args.work / "doctrees"), str(source), str(args.out)]
    raise SystemExit(subprocess.run(command).returncode)


if __name__ == "__main__":
    main()
