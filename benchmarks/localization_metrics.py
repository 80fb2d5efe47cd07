"""All measures of localization on ten million frames: `python benchmarks/localization_metrics.py`.

20,000 recordings of 500 frames of 20 ms, every second one with two fake stretches, Gaussian scores. Seconds of one
processor, whatever else the machine does; each measure is taken once, and after the join of scores and truth all
share what was sorted. The last column is the ratio to one `numpy.argsort` of the scores in the same run.
`--replicates N` adds the report with intervals. The peak of memory (`resource.getrusage`) is that of the process:
with the corpus alone, after the measures, and after the intervals.
"""

import argparse
import resource
import time
from typing import Any

import numpy as np
import pandas as pd
import torch

from wedefense_nb.data.manifest import Manifest
from wedefense_nb.localization.frames import manifest_labels
from wedefense_nb.localization.metrics import (
    boundary_rates,
    calibrated,
    find_threshold,
    frame_auc,
    frame_calibration,
    frame_rates,
    judge,
    llr_costs,
    localization_report,
    point_eer,
    range_eer,
    utterance_eer,
)

HOP = 0.02


def corpus(n: int, frames: int, seed: int = 0) -> tuple[Manifest, dict[str, np.ndarray]]:
    """Truth and frame scores."""
    rng = np.random.default_rng(seed)
    length = frames * HOP
    names = np.array([f"{seed}-{i:06d}" for i in range(n)])
    u = pd.DataFrame({"utt": names, "path": names, "duration": length, "sample_rate": 16000})
    u = u.assign(label=np.where(np.arange(n) % 2, "bonafide", "spoof"), split="", speaker="", attack="", codec="")
    fake = np.repeat(names[::2], 2)
    half = np.tile([0.0, length / 2], len(fake) // 2)
    start = half + rng.uniform(0, length / 4, len(fake))
    end = start + rng.uniform(0.1, length / 4, len(fake))
    s = pd.DataFrame({"utt": fake, "start": start, "end": end, "label": "spoof", "attack": ""})
    truth = Manifest(u, s)
    scores = {}
    for at in range(0, n, 1000):  # little by little: the peak of memory is that of the measures
        part = truth.subset(utt=names[at : at + 1000])
        scores |= {utt: rng.normal(2.5 * labels) for utt, labels in manifest_labels(part, HOP).items()}
    return truth, scores


def seconds(function) -> float:
    """Processor time of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def peak() -> float:
    """Most memory that this process has had so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=int, default=20_000)
    parser.add_argument("--replicates", type=int, default=0)
    given = parser.parse_args()
    truth, scores = corpus(given.recordings, 500)
    dev, dev_scores = corpus(max(2, given.recordings // 10), 500, seed=1)
    memory = {"corpus": peak()}
    held: dict[str, Any] = {}

    def join() -> None:
        held["judged"] = judge(scores, truth, HOP)

    def learn() -> None:
        held["threshold"] = find_threshold(dev_scores, dev, HOP)
        calibrated(frame_calibration(dev_scores, dev, HOP), scores)

    rows = {"join scores and truth": seconds(join)}
    judged = held["judged"]
    rows["range EER, with the sort"] = seconds(lambda: range_eer(judged))
    rows["utterance EER"] = seconds(lambda: utterance_eer(judged))
    for resolution in (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64):
        rows[f"point EER, {1000 * resolution:g} ms"] = seconds(
            lambda r=resolution: point_eer(judged, resolution=r)
        )
    rows["AUC"] = seconds(lambda: frame_auc(judged))
    rows["threshold and calibration on a dev set of a tenth"] = seconds(learn)
    rows["frame P, R, F1"] = seconds(lambda: frame_rates(judged, threshold=held["threshold"]))
    rows["boundary P, R, F1, error"] = seconds(lambda: boundary_rates(judged, threshold=held["threshold"]))
    rows["Cllr, minCllr, actDCF, minDCF per second"] = seconds(lambda: llr_costs(judged))
    total = sum(rows.values())
    memory["measures"] = peak()
    if given.replicates:
        rows[f"report with intervals, {given.replicates} replicates"] = seconds(
            lambda: localization_report(
                judged, threshold=held["threshold"], resolutions=[0.02, 0.16], llr=True, n=given.replicates
            )
        )
        memory["intervals"] = peak()
    sort = seconds(lambda: np.argsort(judged.scores))
    table = pd.DataFrame({"seconds": rows | {"all, without intervals": total, "numpy.argsort (baseline)": sort}})
    table["ratio"] = table.seconds / sort
    print(table.round(3).to_string())
    peaks = ", ".join(f"{what} {size:.2f} GB" for what, size in memory.items())
    print(f"{len(judged.scores):,} frames; peak memory so far: {peaks}")


if __name__ == "__main__":
    main()
