"""What can be said of a built site without a browser: links, anchors, weights, texts of figures."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

HEAVIEST = 1_000_000  # bytes of a page with its pictures and sounds


class Page(HTMLParser):
    """Anchors, links and files of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.files: list[tuple[str, str]] = []  # (tag, address) of what the browser fetches by itself
        self.without_text: list[str] = []
        self.words = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids.update(v for v in (values.get("id"), values.get("name") if tag == "a" else None) if v)
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        address = values.get("href") if tag == "link" and "stylesheet" in (values.get("rel") or "") else None
        address = address or (values.get("src") if tag in ("script", "img", "audio", "source", "iframe") else None)
        if address:
            self.files.append((tag, address))
        if tag == "img" and not (values.get("alt") or "").strip():
            self.without_text.append(values.get("src") or "")

    def handle_data(self, data):
        self.words += len(data.split())


def is_elsewhere(address: str) -> bool:
    return bool(re.match(r"(https?:)?//|mailto:|data:|javascript:", address))


def problems(
    site: Path, absent: frozenset[str] = frozenset(), leave: tuple[str, ...] = ("demo",)
) -> Iterator[str]:
    """What is wrong, a line each. Pages in `absent` were left out on purpose; folders in `leave` are others'."""
    paths = sorted(p for p in site.rglob("*.html") if p.relative_to(site).parts[0] not in leave)
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in paths}
    for path, page in pages.items():
        name = path.relative_to(site.resolve()).as_posix()
        for address in page.links:
            if is_elsewhere(address):
                continue
            goal, anchor = target(path, address)
            if goal.is_dir():
                goal = goal / "index.html"
            if not goal.is_file():
                if goal.relative_to(site.resolve()).as_posix() not in absent:
                    yield f"{name}: nothing at {address}"
            elif anchor and goal in pages and anchor not in pages[goal].ids:
                yield f"{name}: no anchor {address}"
        weight = path.stat().st_size
        for tag, address in page.files:
            if address.startswith("data:"):
                continue
            if is_elsewhere(address):
                yield f"{name}: asks another server: {address}"
                continue
            goal, _ = target(path, address)
            if not goal.is_file():
                yield f"{name}: no file {address}"
            elif tag in ("img", "audio", "source"):
                weight += goal.stat().st_size
        if weight > HEAVIEST:
            yield f"{name}: {weight:,} bytes with its pictures and sounds"
        for picture in page.without_text:
            yield f"{name}: a picture without a text: {picture[-40:]}"


def target(path: Path, address: str) -> tuple[Path, str]:
    """(file, anchor) that an address on a page leads to."""
    parts = urlsplit(address)
    goal = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    return goal, unquote(parts.fragment)
