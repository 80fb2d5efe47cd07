"""Which tests hold a pitfall: from the comments of the tests."""

import ast
import functools
import re

from book import ROOT

MARK = re.compile(r"pitfalls? ((?:\d+(?:, | and )?)+)")


@functools.cache
def holders() -> dict[int, list[tuple[str, str]]]:
    """By number: (file, name) of the tests whose comments name it; name is empty outside of functions."""
    found: dict[int, list[tuple[str, str]]] = {}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "pitfall" not in text or path.name == "test_pitfalls.py":
            continue
        functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        for i, line in enumerate(text.splitlines(), 1):
            mark = MARK.search(line)
            if not mark:
                continue
            around = [n for n in functions if n.lineno <= i <= n.end_lineno]
            name = min(around, key=lambda n: n.end_lineno - n.lineno).name if around else ""
            for number in re.findall(r"\d+", mark[1]):
                pair = (path.relative_to(ROOT).as_posix(), name)
                if pair not in found.setdefault(int(number), []):
                    found[int(number)].append(pair)
    return found


def with_tests(page: str) -> str:
    """The page of pitfalls, with the tests that hold each item behind it."""
    tests = holders()
    parts = re.split(r"(?m)^(?=### \d+\. )", page)
    for i, part in enumerate(parts):
        number = re.match(r"### (\d+)\. ", part)
        held = tests.get(int(number[1]), []) if number else []
        if not held:
            continue
        item, rest = re.match(r"(.*?)(\n+(?=## )|\n*\Z)", part, re.S), ""
        rest = part[item.end(1) :]
        lines = [
            f"- `{file}`" + (f": {name.removeprefix('test_').replace('_', ' ')}" if name else "")
            for file, name in held
        ]
        word = "the test that holds" if len(held) == 1 else f"the {len(held)} tests that hold"
        more = f'\n\n<details class="tests"><summary>{word} it</summary>\n\n' + "\n".join(lines) + "\n\n</details>"
        parts[i] = item[1].rstrip("\n") + more + (rest or "\n")
        if not parts[i].endswith("\n\n"):
            parts[i] += "\n" if parts[i].endswith("\n") else "\n\n"
    return "".join(parts)
