"""The site: its builder on a few pages, and what it is made of. All pages, in Chromium, are `make check-docs`."""

import importlib
import json
import os
import re
import subprocess
import sys

import nbformat
import pytest

from tests.conftest import ROOT
from tests.house.house import CHAPTER_OF, CHAPTERS, NBS
from tests.house.test_pitfalls import named

SITE = ROOT / "tools/site"


@pytest.fixture(scope="module")
def tools():
    """The modules of the builder, which is no package."""
    names = ("book", "links", "notebooks", "pitfalls", "reference", "vendor")
    sys.path[:0] = [str(SITE)]
    yield type("tools", (), {name: importlib.import_module(name) for name in names})
    sys.path.remove(str(SITE))
    for name in names:
        sys.modules.pop(name)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Two chapters and the pages, without node and without a network."""
    out, work = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("work")
    command = [
        sys.executable,
        str(SITE / "build.py"),
        "--by",
        "sphinx",
        "-j",
        "1",
        "-o",
        str(out),
        "--work",
        str(work),
    ]
    bare = os.environ | {"PATH": os.path.dirname(sys.executable)}
    command += ["--only", "0_question/01", "0_question/03", "pages/"]
    done = subprocess.run(command, env=bare, capture_output=True, text=True, cwd=work)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "MathML" in done.stderr and "node is not installed" in done.stderr
    odd = [line for line in done.stderr.splitlines() if "WARNING" in line and "xref_missing" not in line]
    assert not odd
    return out


def text(site, name: str) -> str:
    return (site / name).read_text(encoding="utf-8")


def test_links_anchors_weights_and_texts(site, tools):
    absent = frozenset(
        f"{prefix}{page.rsplit('.', 1)[0]}.html" for page in tools.book.pages() for prefix in ("", "pages/")
    )
    absent |= {f"api/{module}.html" for module in CHAPTER_OF}
    found = list(tools.links.problems(site, absent))
    left_out = r"no anchor #\S+\.(ipynb|md)$|: nothing at .*_modules"  # what links to pages becomes without them
    assert [line for line in found if not re.search(left_out, line)] == []


def test_a_chapter_leads_to_the_reference_and_back(site):
    chapter, page = text(site, "0_question/01_task.html"), text(site, "api/task.html")
    assert 'href="../api/task.html#wedefense_nb.task.bayes_threshold"' in chapter
    back = re.findall(r'href="\.\./0_question/01_task\.html#([\w-]+)"', page)
    assert back and set(back) <= set(re.findall(r'id="([\w-]+)"', chapter))
    assert "../_modules/wedefense_nb/task.html#" in page  # source
    assert "SPOOF" in page  # constants too


def test_words_are_links_where_they_are_used_first(site):
    chapter = text(site, "0_question/01_task.html")
    terms = re.findall(r'class="term[^"]*" href="\.\./pages/glossary\.html#([\w-]+)"', chapter)
    assert len(terms) > 5 and len(terms) == len(set(terms))
    anchors = re.findall(r'id="([\w-]+)"', text(site, "pages/glossary.html"))
    assert set(terms) <= set(anchors)
    for page in site.rglob("*.html"):  # a link within a link is none
        assert not re.search(r"<a [^>]*>(?:(?!</a>).)*<a ", page.read_text(encoding="utf-8"), re.S), page.name


def test_search_knows_terms_and_functions(site):
    index = text(site, "searchindex.js")
    known = json.loads(index[index.index("{") : index.rindex("}") + 1])
    assert {"mindcf", "llr", "bona fide"} <= set(known["indexentries"])
    pages = [known["docnames"][entry[0]] for entry in known["indexentries"]["mindcf"]]
    assert pages == ["pages/glossary"]
    assert "bayes_threshold" in {row[4] for row in known["objects"]["wedefense_nb.task"]}


def test_the_first_page_lets_guess_without_scripts(site):
    page = text(site, "index.html")
    guess = page[: page.index("In more words")]
    sounds = re.findall(r'<audio controls[^>]* src="([^"]+)"', guess)
    assert len(sounds) == 2 and all((site / sound).stat().st_size < 50_000 for sound in sounds)
    assert "<summary>The answer</summary>" in guess and guess.count('class="door"') == 3
    assert not re.search(r"LLR_|SOUND_|DEMO", guess) and "0_question/01_task.html" in guess


def test_pages_have_formulas_texts_and_the_notebook(site):
    chapter = text(site, "0_question/01_task.html")
    assert "<math" in chapter and "katex" not in chapter
    assert re.search(r'<img alt="Figure\. \w[^"]{20,}', text(site, "0_question/03_book.html"))
    assert (site / "notebooks/0_question/01_task.ipynb").read_bytes() == (
        NBS / "0_question/01_task.ipynb"
    ).read_bytes()
    assert 'href="../notebooks/0_question/01_task.ipynb" download' in chapter


def test_previous_and_next_follow_the_main_line(tools):
    line = tools.book.main_line()
    assert line[:3] == ["index.ipynb", "0_question/index.ipynb", "0_question/01_task.ipynb"]
    assert line == sorted(line, key=tools.book.pages().index) and len(line) < len(CHAPTERS)


def test_every_public_name_has_its_place(tools):
    for module in CHAPTER_OF:
        page = tools.reference.page(module, tools.book.chapter_modules()[module])
        there = set(re.findall(r"^\.\. (?:auto\w+|py:data):: (\w+)$", page, re.M))
        names = re.search(r"__all__ = (\[[^\]]*\])", tools.reference.source(module))
        assert there == set(eval(names[1])) if names else not there, module
        assert page.count("*Built in*") == len(there)


def test_every_pitfall_shows_its_tests(tools):
    page = (NBS / "pages/pitfalls.md").read_text()
    shown = tools.pitfalls.with_tests(page)
    assert re.sub(r"\n*<details.*?</details>", "", shown, flags=re.S).split() == page.split()
    holders = tools.pitfalls.holders()
    assert set(holders) == set(named()) and len(re.findall("<details", shown)) == len(holders)
    assert ("tests/question/test_metrics.py", "test_inverted_scores_are_reported_never_flipped") in holders[1]
    assert all((ROOT / file).is_file() for held in holders.values() for file, _ in held)


def test_terms_are_one_each(tools):
    terms = tools.notebooks.terms((NBS / "pages/glossary.md").read_text())
    names = [name.lower() for called, _, _ in terms for name in called]
    assert len(names) == len(set(names)) and len(terms) > 40
    assert all(len(first.split()) > 4 for _, _, first in terms)


def test_figures_get_the_claim_above_them(tools):
    above = "A step.\n\nLouder is worse. The claim of the figure: errors *rise* with `noise`."
    said = tools.notebooks.text_of_figure(above, 'ax.set(xlabel="noise (dB)", ylabel="error")')
    assert said == "Figure. Errors rise with noise. Axes: error against noise (dB)."
    for path in CHAPTERS:
        nb = tools.notebooks.as_page(nbformat.read(path, 4), path.relative_to(NBS).as_posix())
        drawn = [c for c in nb.cells if any("image/png" in o.get("data", {}) for o in c.get("outputs", []))]
        assert all(len(c.metadata["mystnb"]["image"]["alt"]) > 25 for c in drawn), path
        assert not any(re.match(r"#\|", c.source) for c in nb.cells)


def test_the_check_finds_what_is_wrong(tools, tmp_path):
    page = '<h1 id="a">A</h1><a href="b.html">b</a><a href="#c">c</a><a href="index.html#a">a</a><img src="x.png">'
    page += (
        '<img src="y.png" alt="y"><script src="https://cdn.example/x.js"></script><a href="https://b.org">b</a>'
    )
    (tmp_path / "index.html").write_text(page)
    (tmp_path / "y.png").write_bytes(bytes(tools.links.HEAVIEST))
    found = list(tools.links.problems(tmp_path))
    wanted = [
        "nothing at b.html",
        "no anchor #c",
        "no file x.png",
        "another server",
        "bytes with",
        "without a text",
    ]
    assert len(found) == len(wanted) and all(any(w in line for line in found) for w in wanted), found
    assert "nothing at b.html" not in str(list(tools.links.problems(tmp_path, frozenset({"b.html"}))))


def test_what_npm_brings_must_be_what_was_checked(tools, tmp_path, monkeypatch):
    def bring(command, cwd, **_):
        (tmp_path / cwd / "katex.tgz").write_bytes(b"another")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(tools.vendor.subprocess, "run", bring)
    with pytest.raises(ValueError, match="katex .* is not what was checked"):
        tools.vendor.from_npm("katex", tmp_path)


def test_results_are_those_of_the_committed_scores(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    made = importlib.import_module("make_results").page()
    assert (NBS / "pages/results.md").read_text() == made, "run `make book`"
