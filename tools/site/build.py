"""The web site in _docs/, from the notebooks as they are: `make docs`.

Contents, order and titles of the sections come from _quarto.yml, the file that quarto reads. Where quarto is
installed it builds the site; elsewhere Sphinx with myst-nb does, and that is what is tested. Nothing is executed,
and the pages ask nothing of any other server. With npm and node, formulas are set by KaTeX, fetched once and kept
in the work folder; without them they become MathML, which browsers set with fonts of their own.
"""

import argparse
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import notebooks  # noqa: E402
import pitfalls  # noqa: E402
import reference  # noqa: E402
import vendor  # noqa: E402
from book import NBS, ROOT, chapter_modules, main_line, pages, sections, titles  # noqa: E402


def toctrees(there: set[str]) -> dict[str, str]:
    """By page: the tree of pages below it, as Sphinx wants it. Parts fold, so that the sidebar stays short."""
    names = titles()
    trees = {}
    root = []
    for section, entries in sections():
        entries = [page for page in entries if page in there]
        if not entries:
            continue
        if entries[0].endswith("/index.ipynb"):
            below = "\n".join(f"{names[p]} <{Path(p).stem}>" for p in entries[1:])
            trees[entries[0]] = f"```{{toctree}}\n:hidden:\n\n{below}\n```"
            entries, section = entries[:1], "The course"
        if not root or root[-1][0] != section:
            root.append((section, []))
        root[-1][1].extend(entries)
    root.append(("Reference", ["api/index.rst"]))
    blocks = []
    for section, entries in root:
        lines = "\n".join(f"{names.get(p, 'Every public name')} <{p.rsplit('.', 1)[0]}>" for p in entries)
        blocks.append(f"```{{toctree}}\n:hidden:\n:caption: {section}\n\n{lines}\n```")
    trees["index.ipynb"] = "\n\n".join(blocks)
    return trees


def write_source(source: Path, extra: Path, only: list[str], has_demo: bool) -> None:
    """All that Sphinx reads, in a folder of its own; in `extra`, what goes to the site as it is."""
    wanted = [page for page in pages() if not only or page == "index.ipynb" or any(o in page for o in only)]
    # an opening page holds the tree of its chapters
    parts = {page.split("/")[0] for page in wanted}
    wanted = [page for page in pages() if page in wanted or page.split("/")[0] in parts and "/index" in page]
    trees = toctrees(set(wanted))
    modules = {name: page for name, page in chapter_modules().items() if page in wanted}
    outside = notebooks.Outside(source)
    for page in wanted:
        place = source / page
        place.parent.mkdir(parents=True, exist_ok=True)
        if page.endswith(".md"):
            text = (NBS / page).read_text(encoding="utf-8")
            text = pitfalls.with_tests(text) if page == "pages/pitfalls.md" else text
            text = notebooks.with_index(text) if page == "pages/glossary.md" else text
            text = re.sub(r"\n(?=\*(?:Seen in|Here|Also)\*:)", "\n\n", text)  # each begins a line
            place.write_text(outside.rewritten(text, NBS / page, place), encoding="utf-8")
            continue
        (extra / "notebooks" / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(NBS / page, extra / "notebooks" / page)
        nb = notebooks.as_page(nbformat.read(NBS / page, 4), page)
        if page == "index.ipynb":
            nb = notebooks.landing(nb, has_demo)
        if page in trees:
            nb.cells.append(nbformat.v4.new_markdown_cell(trees[page]))
        for cell in nb.cells:
            if cell.cell_type == "markdown":
                cell.source = outside.rewritten(cell.source, NBS / page, place)
        nbformat.write(nb, place)
    for picture in [p for p in NBS.rglob("*.png") if p.relative_to(NBS).parts[0] != "runs"]:
        (source / picture.relative_to(NBS)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, source / picture.relative_to(NBS))
    reference.write(source / "api", modules)
    (extra / "sounds").mkdir(parents=True, exist_ok=True)
    for name in notebooks.SOUNDS:
        shutil.copy(ROOT / f"data_samples/audio/{name}.flac", extra / "sounds")


def write_settings(work: Path, source: Path, extra: Path) -> None:
    """What conf.py asks for: facts about the package, and where things are."""
    shutil.copytree(HERE / "static", source / "_static")
    katex = vendor.katex(work)
    if katex:
        shutil.copytree(katex, source / "_static/katex", ignore=shutil.ignore_patterns("*.js", "*.json"))
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    settings = settings["DEFAULT"]
    facts = {
        "title": settings["lib_name"],
        "version": settings["version"],
        "author": settings["author"],
        "about": settings["description"],
        "here": str(HERE),
        "extra": str(extra),
        "katex": str(katex / "katex.min.js") if katex else "",
        "main": [page.rsplit(".", 1)[0] for page in main_line()],
        "titles": {page.rsplit(".", 1)[0]: name for page, name in titles().items()},
        "names": reference.public_names(chapter_modules()),
    }
    (source / "facts.json").write_text(json.dumps(facts))
    shutil.copy(HERE / "conf.py", source)


def by_sphinx(out: Path, work: Path, demo: Path, only: list[str], jobs: str) -> int:
    """Write the source, add the demo of the browser if there is one, run Sphinx."""
    if out.is_dir() and any(out.iterdir()) and not (out / "objects.inv").is_file():
        raise SystemExit(f"error: {out} holds something that is no site: name another folder, or empty this one")
    source, extra = work / "source", work / "extra"
    for folder in (source, extra, out):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    has_demo = (demo / "index.html").is_file()
    write_source(source, extra, only, has_demo)
    write_settings(work, source, extra)
    if has_demo:
        shutil.copytree(demo, extra / "demo")
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-j", jobs, "-q", "-E"]
    command += ["-d", str(work / "doctrees"), str(source), str(out)]
    left = out.parent / "jupyter_execute"  # where myst-nb puts notebooks again, beside what it makes
    before = left.exists()
    code = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode
    if not before:
        shutil.rmtree(left, ignore_errors=True)
    shutil.rmtree(out / ".doctrees", ignore_errors=True)
    (out / ".nojekyll").touch()
    return code


def by_quarto() -> int:
    """As nbdev does it; settings are in pyproject.toml and _quarto.yml."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(["nbdev-docs"], cwd=ROOT, env=os.environ | {"PATH": path}).returncode


def main() -> None:
    """Choose the builder and say which it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "_docs")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build/site", help="source, and what is fetched from npm"
    )
    parser.add_argument(
        "--demo", type=Path, default=ROOT / "build/demo", help="the browser's demo, if it was built"
    )
    parser.add_argument("--by", choices=["quarto", "sphinx"], help="default: quarto where it is installed")
    parser.add_argument("--only", nargs="*", default=[], help="words: pages with one of them in their path")
    parser.add_argument("-j", "--jobs", default="auto")
    args = parser.parse_args()
    builder = args.by or ("quarto" if shutil.which("quarto") and not args.only else "sphinx")
    print(f"building the site with {builder}", file=sys.stderr)
    if builder == "quarto":
        code = by_quarto()
    else:
        code = by_sphinx(args.out.resolve(), args.work.resolve(), args.demo, args.only, args.jobs)
    if code == 0:
        print(f"the site is in {args.out}: open {args.out / 'index.html'}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
