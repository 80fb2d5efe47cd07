"""Every pitfall of the page is guarded by a test that names it, or is said to be still to come."""

import re

from tests.conftest import ROOT

PAGE = (ROOT / "nbs/pages/pitfalls.md").read_text()
ITEMS = {int(n): text for n, text in re.findall(r"^### (\d+)\. (.*?)(?=^### |^## |\Z)", PAGE, re.M | re.S)}


def named() -> dict[int, list[str]]:
    """Numbers that the comments of tests name, and where."""
    found = {}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for line in path.read_text().splitlines():
            for numbers in re.findall(r"pitfalls? ((?:\d+(?:, | and )?)+)", line):
                for number in re.findall(r"\d+", numbers):
                    found.setdefault(int(number), []).append(path.name)
    return found


def test_the_list_is_whole():
    assert list(ITEMS) == list(range(1, 70))
    assert all("*Here*:" in text for text in ITEMS.values())


def test_every_pitfall_is_guarded_or_still_to_come():
    tests = named()
    assert set(tests) <= set(ITEMS), set(tests) - set(ITEMS)
    unguarded = [n for n, text in ITEMS.items() if n not in tests and "to come with part" not in text]
    assert unguarded == []
