"""Our metrics of localization beside those of public programs, on the same scores and the same truth.

`python benchmarks/public_metrics.py --checkout DIR` with a copy of hieuthi/partialspoof-metrics in DIR (its
`metrics/mseer.py`, `metrics/eer.py` and `utils/label.py` are called, unchanged). Where `pyannote.metrics` is
installed (pip install pyannote.metrics), the range EER is also taken as PartialSpoof's own program does, which
lets pyannote count every recording anew at each threshold of a bisection. `--recordings N`: of 500 frames each.
"""

import argparse
import importlib.util
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from localization_metrics import HOP, corpus
from timing import seconds

from wedefense_nb.data.manifest import Manifest
from wedefense_nb.localization.metrics import point_eer, range_eer


def as_lists(truth: Manifest) -> dict[str, list]:
    """[start, end, class] of every stretch of every recording, 1 = spoof, as the public program wants it."""
    fakes = {utt: rows for utt, rows in truth.segments.groupby("utt")}
    lists = {}
    for u in truth.utterances.itertuples():
        at = 0.0
        stretches: list[list] = []
        for s in fakes[u.utt].sort_values("start").itertuples() if u.utt in fakes else []:
            if s.start > at:
                stretches.append([at, s.start, 0])
            stretches.append([s.start, s.end, 1])
            at = s.end
        lists[u.utt] = [*stretches, [at, u.duration, 0]]
    return lists


def of_pyannote(truth: Manifest, scores: dict[str, np.ndarray], steps: int = 15) -> float:
    """Range EER by a bisection of `steps` thresholds, each counted by pyannote, as PartialSpoof's program does."""
    from pyannote.core import Annotation, Segment
    from pyannote.metrics.detection import DetectionCostFunction

    lists = as_lists(truth)
    everything = np.concatenate(list(scores.values()))
    low, high = 0.0, 100.0
    for _ in range(steps):
        middle = (low + high) / 2
        threshold = np.percentile(everything, middle)
        cost = DetectionCostFunction()
        for utt, row in scores.items():
            reference = Annotation()
            for start, end, fake in lists[utt]:
                if fake:
                    reference[Segment(start, end)] = "spoof"
            flags = np.concatenate([[0], (row <= threshold).astype(int), [0]])
            edges = np.flatnonzero(np.diff(flags)) * HOP
            found = Annotation()
            for start, end in edges.reshape(-1, 2):
                found[Segment(start, end)] = "spoof"
            cost(reference=reference, hypothesis=found, uem=Segment(0, len(row) * HOP), detailed=True)
        counts = cost.accumulated_
        alarms = counts["false alarm"] / counts["negative class total"]
        misses = counts["miss"] / counts["positive class total"]
        low, high = (middle, high) if alarms < misses else (low, middle)
    return (alarms + misses) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, help="a copy of hieuthi/partialspoof-metrics")
    parser.add_argument("--recordings", type=int, default=400)
    given = parser.parse_args()
    truth, scores = corpus(given.recordings, 500)
    found: dict[str, Any] = {}

    def run(name: str, function) -> float:
        def keep() -> None:
            found[name] = function()

        return seconds(keep)

    ours = {
        "range EER": run("range", lambda: range_eer(scores, truth, HOP)),
        "point EER": run("point", lambda: point_eer(scores, truth, HOP)),
    }
    rows = []
    if given.checkout:
        if not (given.checkout / "metrics" / "mseer.py").is_file():
            sys.exit(f"{given.checkout}: no metrics/mseer.py there; --checkout wants hieuthi/partialspoof-metrics")
        sys.path.insert(0, str(given.checkout))
        from metrics.eer import compute_eer
        from metrics.mseer import compute_mseer
        from utils.label import segs_to_lab

        warnings.simplefilter("ignore")
        spoof = {utt: -row for utt, row in scores.items()}  # theirs are higher = more spoof
        limit = max(np.abs(row).max() for row in spoof.values()) + 1.0
        limits = {"resolution": 100_000, "minval": -limit, "maxval": limit}
        stretches = {
            utt: [[i * HOP, (i + 1) * HOP, value] for i, value in enumerate(row.tolist())]
            for utt, row in spoof.items()
        }
        lists = as_lists(truth)
        fakes = {utt: [part for part in row if part[2]] for utt, row in lists.items()}
        length = dict(zip(truth.utterances.utt, truth.utterances.duration, strict=True))

        def point() -> float:
            labels = {utt: segs_to_lab(row, length[utt], unit=HOP) for utt, row in fakes.items()}
            return compute_eer(labels, spoof, **limits)[0]

        theirs = run("their range", lambda: compute_mseer(lists, stretches, **limits)[0])
        rows.append(("range EER", "partialspoof-metrics, mseer", theirs, found["their range"]))
        theirs = run("their point", point)
        rows.append(("point EER", "partialspoof-metrics, eer", theirs, found["their point"]))
    if importlib.util.find_spec("pyannote") is not None:
        theirs = run("pyannote", lambda: of_pyannote(truth, scores))
        rows.append(("range EER", "pyannote, bisection", theirs, found["pyannote"]))
    if not rows:
        sys.exit("nothing to compare with: give --checkout, or pip install pyannote.metrics")
    mine = {"range EER": found["range"], "point EER": found["point"]}
    lines = [(m, program, mine[m], value, ours[m], t, t / ours[m]) for m, program, t, value in rows]
    table = pd.DataFrame(
        lines, columns=["measure", "program", "our EER", "their EER", "our s", "their s", "ratio"]
    )
    print(table.round(4).to_string(index=False))


if __name__ == "__main__":
    main()
