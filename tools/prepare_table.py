"""What `wedefense-nb prepare` makes of every miniature corpus of the tests: `python tools/prepare_table.py`, one
table.

Each tree is built in a temporary folder with the owners' layout, and read by the command itself.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.trees import tree  # noqa: E402

from wedefense_nb.data.corpora import CORPORA  # noqa: E402
from wedefense_nb.data.manifest import Manifest  # noqa: E402

COMMAND = [sys.executable, "-c", "from wedefense_nb.cli import main; main()", "prepare"]
HEAD = ["name", "utterances", "train / dev / eval / none", "bona fide / spoof / none", "attacks", "segments"]
HEAD += ["problems", "published numbers that agree"]


def numbers(column: pd.Series, kinds: list[str]) -> str:
    """How many there are of each kind."""
    return " / ".join(str(int((column == kind).sum())) for kind in kinds)


def row(name: str, folder: Path) -> list:
    """Build a tree, prepare it, and sum up what was written and said."""
    out = folder / "out"
    done = subprocess.run(
        [*COMMAND, name, tree(name, folder / "tree"), out], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr}")
    m = Manifest.read(out)
    report = pd.read_csv(out / "report.csv")
    counts = pd.read_csv(out / "counts.csv", na_filter=False)
    problems = ", ".join(f"{n} {what}" for what, n in report.problem.value_counts().items())
    same = (counts.difference == "0").sum()
    published = (counts.published != "").sum()
    splits = numbers(m.utterances.split, ["train", "dev", "eval", ""])
    labels = numbers(m.utterances.label, ["bonafide", "spoof", ""])
    attacks = m.utterances.attack[m.utterances.attack != ""].nunique()
    agree = f"{same} of {published}" if published else ""
    return [name, len(m), splits, labels, attacks, len(m.segments), problems or "none", agree]


if __name__ == "__main__":
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    with tempfile.TemporaryDirectory() as folder:
        for name in CORPORA:
            print("| " + " | ".join(map(str, row(name, Path(folder) / name))) + " |", flush=True)
