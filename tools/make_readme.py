"""README.md and its pictures from nbs/index.ipynb: `make readme`. With --check, fail if they are out of step."""

import re
import sys
from pathlib import Path

from make_book import MARK
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).parent.parent
PICTURES = Path("images")
FIRST = "<!-- made from nbs/index.ipynb by `make readme`: edit the notebook -->"
LINK = re.compile(r"\]\((?!https?:|#|mailto:|images/)([^)\s]+)\)")


def seen_from_root(match: re.Match) -> str:
    """A link of the notebook, which lies in nbs/, as it must be in the repository's root."""
    target = match[1]
    return f"]({target.removeprefix('../')})" if target.startswith("../") else f"](nbs/{target})"


def readme() -> dict[Path, bytes]:
    """README.md and the pictures in it, by path from the repository's root."""
    config = Config({"NbConvertBase": {"display_data_priority": ["image/png", "text/markdown", "text/plain"]}})
    text, found = MarkdownExporter(config=config).from_filename(str(ROOT / "nbs" / "index.ipynb"))
    files = {}
    for i, (name, data) in enumerate(found["outputs"].items()):
        picture = PICTURES / f"readme_{i}.png"
        text = text.replace(f"![png]({name})", f"![figure {i + 1}]({picture.as_posix()})")
        files[picture] = data
    text = re.sub(rf"{re.escape(MARK)}\n+", "", LINK.sub(seen_from_root, text))
    text = re.sub(r"\n{3,}", "\n\n", text)
    return files | {Path("README.md"): f"{FIRST}\n\n{text.strip()}\n".encode()}


if __name__ == "__main__":
    for path, data in readme().items():
        place = ROOT / path
        if "--check" in sys.argv:
            if not place.is_file() or place.read_bytes() != data:
                sys.exit(f"{path} is out of step: run `make readme`")
        else:
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(data)
