"""nbs/pages/results.md: what the committed scores and the recipes' own outputs say. `make book` runs it.

With --check nothing is written, and the exit code says whether the page is out of step.
"""

import sys
from pathlib import Path

import nbformat
import pandas as pd

from wedefense_nb.data.manifest import Manifest
from wedefense_nb.metrics import drawn_together, report, show
from wedefense_nb.scores.comparison import breakdown
from wedefense_nb.task import label_ids

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "nbs/pages/results.md"
SYSTEMS = {
    "lcnn": "the recipe's former defaults, an LCNN-LSTM on LFCC",
    "resnet": "ResNet18 on Fbank, `params/data_samples/resnet18.yaml`",
}
# (recipe, words that the output holds, what it is)
PRINTED = [
    ("detection", "dev, after", "A committee of small detectors, on dev, before and after calibration"),
    ("fusion", "linear minus", "Fusion of the two systems above, against the better of them, paired"),
    ("generalisation", "worst", "Training without an attack, EER in percent on that attack, at the smallest size"),
    ("localization", "AP@0.5", "Finds of a small localizer, matched with the fake stretches of dev"),
]
DEV = "on which calibration was fitted"
EVAL = "other voices, four attacks that were in no training"
HEAD = """# Results

> All numbers that come with this repository: small, honest, and made on a laptop.

Made by `make book` from scores and notebooks that are committed; nothing here was typed. The embedded \
corpus has synthesizer voices only ([its README](../../data_samples/README.md)), so these numbers say how \
methods compare on a toy, and nothing about people. What came of real voices is told on the [first \
page](../index.ipynb#what-the-demo-can-tell-you-and-what-it-cannot); what published systems reach at home \
and elsewhere is in chapter [4.13](../4_models/13_zoo.ipynb).

A run of your own leaves the same numbers in its `result.json`, with the seed, the versions and the processor.
"""


def table(frame: pd.DataFrame) -> list[str]:
    """A table as Markdown."""
    head = [frame.index.name or "", *map(str, frame.columns)]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * len(frame.columns)]
    return [*lines, *("| " + " | ".join(map(str, [name, *row])) + " |" for name, *row in frame.itertuples()), ""]


def in_percent(row: pd.Series) -> str:
    return f"{row.value:.1%} [{row.low:.1%}, {row.high:.1%}]"


def scores(split: str) -> tuple[pd.DataFrame, dict, object]:
    """(trials, llrs by system, labels) of the committed scores."""
    tables = {n: pd.read_csv(ROOT / f"data_samples/scores/{n}/{split}.csv", index_col="utt") for n in SYSTEMS}
    corpus = Manifest.read(ROOT / "data_samples").utterances.set_index("utt")
    first = next(iter(tables.values()))
    trials = corpus.loc[first.index]
    return trials, {n: t.llr[first.index].to_numpy() for n, t in tables.items()}, label_ids(trials.label)


def two_systems() -> list[str]:
    lines = ["## Two detectors on the embedded corpus", ""]
    lines += [*(f"- **{name}**: {about}." for name, about in SYSTEMS.items()), ""]
    for split in ("dev", "eval"):
        trials, llr, labels = scores(split)
        groups, text = drawn_together(trials, labels)
        about = DEV if split == "dev" else EVAL
        lines += [f"**{split}**, {len(trials)} recordings, {about}; {text}:", ""]
        lines += table(show(report(llr, labels, groups)))
    trials, llr, labels = scores("eval")
    lines += [
        "By attack, eval, each against all bona fide recordings, the worst for `lcnn` first. EER with an interval "
        "of 95 % from trials drawn singly, which is too narrow:",
        "",
    ]
    columns = {}
    for name in SYSTEMS:
        found = breakdown("eer", llr[name], labels, trials.attack.to_numpy()).set_index("condition")
        columns[name] = found.drop(index="average").apply(in_percent, axis=1)
    worst_first = columns["lcnn"].index
    return [*lines, *table(pd.DataFrame(columns).loc[worst_first].rename_axis("attack"))]


def printed() -> list[str]:
    """Tables from the committed outputs of the recipes."""
    lines = ["## What the recipes print", "", "At the size at which they come, from their saved outputs.", ""]
    for recipe, words, about in PRINTED:
        notebook = nbformat.read(ROOT / f"nbs/recipes/{recipe}.ipynb", 4)
        outputs = [o.get("data", {}).get("text/plain", "") for c in notebook.cells for o in c.get("outputs", [])]
        (text,) = [text for text in outputs if words in text]
        lines += [f"{about} ([{recipe}](../recipes/{recipe}.ipynb)):", "", "```", text, "```", ""]
    return lines


def page() -> str:
    return "\n".join([HEAD, *two_systems(), *printed()]).strip() + "\n"


if __name__ == "__main__":
    made = page()
    if "--check" in sys.argv:
        sys.exit("nbs/pages/results.md is out of step: run `make book`" if PAGE.read_text() != made else 0)
    PAGE.write_text(made, encoding="utf-8")
