"""What Sphinx learns for this site: formulas without a network, links of terms and names, the way onwards."""

import atexit
import html
import json
import os
import re
import subprocess

import notebooks
from book import NBS
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging

LOG = logging.getLogger(__name__)
SERVE = """
const katex = require(process.argv[1]);
require('readline').createInterface({input: process.stdin}).on('line', line => {
  const [tex, display] = JSON.parse(line);
  let answer;
  try { answer = {html: katex.renderToString(tex, {displayMode: display, strict: 'ignore'})}; }
  catch (error) { answer = {error: error.message}; }
  console.log(JSON.stringify(answer));
});
"""
NO_TERMS_IN = (
    nodes.reference,
    addnodes.pending_xref,  # a link to another page, before Sphinx has found it
    addnodes.download_reference,
    nodes.title,
    nodes.literal,
    nodes.literal_block,
    nodes.math,
    nodes.raw,
    nodes.strong,
)


class Formulas:
    """TeX to HTML: by KaTeX in a process of its own where it is there, by docutils as MathML elsewhere."""

    def __init__(self, katex: str):
        self.katex = katex
        self.known: dict[tuple[str, bool], str] = {}
        self.process: subprocess.Popen | None = None
        self.owner = 0

    def __getstate__(self):  # a process cannot be sent to another
        return {"katex": self.katex, "known": {}, "process": None, "owner": 0}

    def ask(self, tex: str, display: bool) -> dict:
        if self.process is None or self.owner != os.getpid():  # Sphinx forks
            command = ["node", "-e", SERVE, self.katex]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.owner = os.getpid()
            atexit.register(self.process.kill)
        self.process.stdin.write(json.dumps([tex, display]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def html(self, tex: str, display: bool) -> str:
        key = (tex, display)
        if key not in self.known:
            self.known[key] = self.by_katex(tex, display) if self.katex else self.by_docutils(tex, display)
        return self.known[key]

    def by_katex(self, tex: str, display: bool) -> str:
        answer = self.ask(tex, display)
        if "error" in answer:
            LOG.warning("a formula that KaTeX does not know: %s: %s", tex, answer["error"])
        return answer.get("html") or f"<code>{html.escape(tex)}</code>"

    def by_docutils(self, tex: str, display: bool) -> str:
        try:
            return tex2mathml(tex, as_block=display)
        except (SyntaxError, ValueError, KeyError, IndexError, AttributeError):
            return f"<code>{html.escape(tex)}</code>"


def visit_math(self, node):
    formulas = self.builder.config.site_formulas
    self.body.append(f'<span class="math">{formulas.html(node.astext(), False)}</span>')
    raise nodes.SkipNode


def visit_math_block(self, node):
    formulas = self.builder.config.site_formulas
    self.body.append(f'<div class="math">{formulas.html(node.astext(), True)}</div>')
    raise nodes.SkipNode


def pattern_of(names: list[str]) -> str:
    """Words of a term, in the plural too; small first letters also as capitals."""
    parts = []
    for name in names:
        word = re.escape(name).replace(r"\ ", r"[\s-]")
        if name[0].islower():
            word = f"[{name[0].upper()}{name[0]}]" + word[1:]
        parts.append(word + "s?")
    return "|".join(sorted(parts, key=len, reverse=True))


class Words:
    """The glossary's terms are links where a page uses them first, and so are public names."""

    def __init__(self, names: dict[str, str]):
        page = (NBS / "pages/glossary.md").read_text(encoding="utf-8")
        self.terms = notebooks.terms(page)
        groups = [f"(?P<t{i}>{pattern_of(names)})" for i, (names, *_) in enumerate(self.terms)]
        groups.sort(key=len, reverse=True)
        self.pattern = re.compile(rf"(?<![\w-])(?:{'|'.join(groups)})(?![\w-])")
        self.names = names

    def __call__(self, app: Sphinx, doctree: nodes.document) -> None:
        page = app.env.docname
        up = "../" * page.count("/")
        if page not in ("pages/glossary", "index", "genindex") and not page.startswith(("api/", "more/")):
            self.link_terms(doctree, up)
        self.link_names(doctree, up, page)

    def link_terms(self, doctree: nodes.document, up: str) -> None:
        seen: set[str] = set()
        for text in list(doctree.findall(nodes.Text)):
            around, node = [], text.parent
            while node is not None:
                around.append(node)
                node = node.parent
            if not any(isinstance(node, nodes.paragraph | nodes.entry) for node in around):
                continue
            if any(isinstance(node, NO_TERMS_IN) for node in around):
                continue
            new, at, words = [], 0, str(text)
            for found in self.pattern.finditer(words):
                number = int(found.lastgroup[1:])
                _, anchor, first = self.terms[number]
                if anchor in seen:
                    continue
                seen.add(anchor)
                new.append(nodes.Text(words[at : found.start()]))
                link = nodes.reference("", found[0], refuri=f"{up}pages/glossary.html#{anchor}", classes=["term"])
                link["reftitle"] = first
                new.append(link)
                at = found.end()
            if new:
                text.parent.replace(text, [*new, nodes.Text(words[at:])])

    def link_names(self, doctree: nodes.document, up: str, page: str) -> None:
        seen: set[str] = set()
        for literal in list(doctree.findall(nodes.literal)):
            words = literal.astext().removesuffix("()")
            # a name alone must look like one of ours, not like a word or an argument
            alone = re.fullmatch(r"\w*_\w*[a-z]\w*|[A-Z]\w*[a-z]\w*", words)
            place = self.names.get(words) if "." in words or alone else None
            if not place or place in seen or page == f"api/{place.split('.html')[0]}":
                continue
            if isinstance(literal.parent, nodes.reference | nodes.title | addnodes.pending_xref):
                continue
            seen.add(place)
            link = nodes.reference("", "", refuri=f"{up}api/{place}", classes=["name"])
            literal.parent.replace(literal, link)
            link += literal


def way_through(app: Sphinx, page: str, template: str, context: dict, doctree) -> None:
    """Previous and next: on the main line, the main line's; in side rooms, the neighbours."""
    line = app.config.site_main_line
    if page in line and template == "page.html":
        at = line.index(page)
        for side, other in (("prev", at - 1), ("next", at + 1)):
            there = 0 <= other < len(line) and line[other] in app.env.titles
            context[side] = describe(app, page, line[other]) if there else None
    tree = context.get("furo_navigation_tree", "")
    context["furo_navigation_tree"] = tree.replace('role="heading"', 'role="heading" aria-level="2"')
    for side in ("prev", "next"):
        other = context.get(side)
        if other and page not in line:  # a neighbour by its address: titles alone have no number
            names = app.config.site_titles
            for name, words in names.items():
                if app.builder.get_relative_uri(page, name) == other["link"]:
                    other["title"] = words


def describe(app: Sphinx, page: str, other: str) -> dict[str, str]:
    return {"link": app.builder.get_relative_uri(page, other), "title": app.config.site_titles[other]}


def leave_out(app, what, name, thing, skip, options):
    """Fields of named tuples say nothing of their own, and what a class has from elsewhere is not ours."""
    ours = (getattr(thing, "__module__", None) or "wedefense_nb").startswith("wedefense_nb")
    return True if not ours or "Alias for field number" in (getattr(thing, "__doc__", "") or "") else None


def plain_marks(app, what, name, thing, options, lines: list[str]) -> None:
    """`**options` and |x| in a docstring's sentences mean themselves; examples are left as they are."""
    example = False
    for i, line in enumerate(lines):
        example = line.strip().startswith(">>>") or example and bool(line.strip())
        if not example:
            parts = re.split(r"(`[^`]*`)", line)
            parts[::2] = [re.sub(r"(?<![\w*\\])(\*\*?)(?=\w+(?![\w*]))", r"\\\1", part) for part in parts[::2]]
            parts[::2] = [part.replace("|", "\\|") for part in parts[::2]]
            lines[i] = re.sub(r"(`[^`]+`)(?=[a-z])", r"\1\\ ", "".join(parts))


def setup(app: Sphinx) -> dict:
    facts = json.loads((app.srcdir / "facts.json").read_text())
    app.add_config_value("site_formulas", Formulas(facts["katex"]), "")
    app.add_config_value("site_main_line", [], "html")
    app.add_config_value("site_titles", {}, "html")
    app.add_html_math_renderer("here", (visit_math, None), (visit_math_block, None))
    app.connect("doctree-read", Words(facts["names"]))
    app.connect("html-page-context", way_through, priority=900)  # after the theme
    app.connect("autodoc-skip-member", leave_out)
    app.connect("autodoc-process-docstring", plain_marks, priority=400)  # before numpydoc
    return {"parallel_read_safe": True, "parallel_write_safe": True}
