"""The reference: a page for each module, with every public name from its docstring, and the way to its chapter."""

import ast
import functools
import re
from pathlib import Path

import notebooks
from book import ROOT, about, number, sections, title


@functools.cache
def source(module: str) -> str:
    """The text of an exported module."""
    return (ROOT / "wedefense_nb" / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8")


@functools.cache
def public(module: str) -> dict[str, ast.stmt]:
    """By public name, in the order of the file: the statement that defines it."""
    tree = ast.parse(source(module))
    names: list[str] = []
    found: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name) and name.id == "__all__" and node.value:
                        names = ast.literal_eval(node.value)
                    elif isinstance(name, ast.Name):
                        found[name.id] = node
    return {name: node for name, node in found.items() if name in names}


@functools.cache
def definitions(module: str) -> dict[str, str]:
    """By public name: the cell that defines it."""
    cells = [
        (text.count("\n", 0, m.start()) + 1, m[1])
        for text in [source(module)]
        for m in re.finditer(r"^# %% \S+ #(\w+)", text, re.M)
    ]
    return {
        name: max((c for c in cells if c[0] <= node.lineno), default=(0, ""))[1]
        for name, node in public(module).items()
    }


def comment(module: str, node: ast.stmt) -> str:
    """What is said of a constant: the comment behind it, or the lines of comment above it."""
    lines = source(module).splitlines()
    behind = re.search(r"#\s*(.+)$", lines[node.end_lineno - 1][node.end_col_offset :])
    if behind:
        return behind[1]
    above = []
    for line in reversed(lines[: node.lineno - 1]):
        if not line.startswith("# ") or line.startswith("# %%"):
            break
        above.insert(0, line[2:])
    return " ".join(above)


def code(text: str) -> str:
    """Comments say names in backticks, as docstrings do."""
    return re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", text).replace("*", "\\*").replace("|", "\\|")


def first_line(node: ast.stmt) -> str:
    text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef | ast.ClassDef) else ""
    return code((text or "").split("\n\n")[0].replace("\n", " "))


def entry(module: str, name: str, node: ast.stmt, built: str) -> list[str]:
    """One public name, as Sphinx wants it."""
    if isinstance(node, ast.FunctionDef):
        return [f".. autofunction:: {name}", "", f"   {built}", ""]
    if isinstance(node, ast.ClassDef):
        return [f".. autoclass:: {name}", "   :members:", "", f"   {built}", ""]
    lines = [f".. py:data:: {name}"]
    given = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
    value = ast.unparse(given) if given else ""
    if value and len(value) <= 60:
        lines.append(f"   :value: {value}")
    said = comment(module, node)
    return [*lines, "", *([f"   {code(said)}", ""] if said else []), f"   {built}", ""]


def page(module: str, chapter: str) -> str:
    """The page of a module, in reST."""
    above = notebooks.headings(chapter)
    html = f"../{chapter.rsplit('.', 1)[0]}.html"
    where = f"{number(chapter)} {title(chapter)}"
    name = f"wedefense_nb.{module}"
    lines = [
        name,
        "=" * len(name),
        "",
        f"*{code(about(chapter))}*",
        "",
        f"Built in the chapter `{where} <{html}>`__.",
        "",
    ]
    lines += [f".. py:module:: {name}", ""]
    entries = []
    for item, node in public(module).items():
        text, anchor = above.get(definitions(module)[item], ("", ""))
        place = f"{html}#{anchor}" if anchor else html
        label = (f"{where}, {text}" if anchor else where).replace("`", "").replace("<", "").replace(">", "")
        entries += entry(module, item, node, f"*Built in* `{label} <{place}>`__.")
        said = first_line(node) or code(comment(module, node))
        lines.append(f"- :py:obj:`{item} <{name}.{item}>`" + (f": {said}" if said else ""))
    return "\n".join([*lines, "", *entries])


def write(folder: Path, modules: dict[str, str]) -> None:
    """All pages, and the page that lists them by part."""
    folder.mkdir()
    lines = ["Every public name", "=================", "", "By module, in the order of the book. "]
    lines += ["The list by the alphabet is the :ref:`index <genindex>`, which works without scripts.", ""]
    for section, contents in sections():
        here = [(module, chapter) for module, chapter in modules.items() if chapter in contents]
        if here:
            lines += [section, "-" * len(section), ""]
        for module, chapter in here:
            (folder / f"{module}.rst").write_text(page(module, chapter), encoding="utf-8")
            names = ", ".join(f":py:obj:`{n} <wedefense_nb.{module}.{n}>`" for n in public(module))
            lines += [f":doc:`{module} <{module}>`", f"   {code(about(chapter))}", "", f"   {names}", ""]
    lines += [".. toctree::", "   :hidden:", "", *(f"   {m} <{m}>" for m in modules), ""]
    (folder / "index.rst").write_text("\n".join(lines), encoding="utf-8")


def public_names(modules: dict[str, str]) -> dict[str, str]:
    """What pages may call a public name: full, with its module, alone if unique; and its address below api/."""
    places: dict[str, set[str]] = {}
    for module in modules:
        for name in public(module):
            place = f"{module}.html#wedefense_nb.{module}.{name}"
            full = f"{module}.{name}"
            for called in {full, f"wedefense_nb.{full}", ".".join(full.split(".")[-2:]), name}:
                places.setdefault(called, set()).add(place)
        places.setdefault(module, set()).add(f"{module}.html")
    return {called: there.pop() for called, there in places.items() if len(there) == 1}
