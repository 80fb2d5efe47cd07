"""README.md from nbs/index.ipynb: `make readme`. With --check, fail if README.md is out of step."""

import sys
from pathlib import Path

from nbconvert import MarkdownExporter

ROOT = Path(__file__).parent.parent


def readme() -> str:
    """The index as Markdown, its links seen from the repository's root."""
    text, _ = MarkdownExporter().from_filename(str(ROOT / "nbs" / "index.ipynb"))
    text = text.replace("](../", "](")
    for name in sorted(p.relative_to(ROOT / "nbs").as_posix() for p in (ROOT / "nbs").rglob("*.ipynb")):
        text = text.replace(f"]({name})", f"](nbs/{name})")
    return "<!-- made from nbs/index.ipynb by `make readme`: edit the notebook -->\n\n" + text.strip() + "\n"


if __name__ == "__main__":
    path = ROOT / "README.md"
    if "--check" in sys.argv:
        sys.exit(
            0 if path.read_text(encoding="utf-8") == readme() else "README.md is out of step: run `make readme`"
        )
    path.write_text(readme(), encoding="utf-8")
