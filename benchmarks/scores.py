"""Metrics, intervals and calibration on as many trials as ASVspoof 5 has: `python benchmarks/scores.py`.

680,774 Gaussian LLRs. Every time is the best of three (intervals: one run), on one process; the last column is
the ratio to scikit-learn's `roc_auc_score` in the same run. The challenge package's own times, quoted for
comparison, were measured elsewhere (two cores of a 2.5 GHz Xeon): compute_eer 0.18 s, compute_mindcf 0.89 s,
calculate_CLLR 0.008 s, and about 0.2 s for each bootstrap replicate that sorts again.
"""

import resource

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score
from timing import best

from wedefense_nb.metrics import act_dcf, auc, cllr, confidence_interval, eer, min_cllr, min_dcf
from wedefense_nb.scores.calibration import AffineCalibration, PAVCalibration


def main() -> None:
    rng = np.random.default_rng(2024)
    scores = np.r_[rng.normal(2, 2, 138_688), rng.normal(-2, 2, 542_086)]
    labels = np.r_[np.ones(138_688, int), np.zeros(542_086, int)]
    speakers = rng.integers(0, 737, len(labels))
    dev = rng.permutation(len(labels))[:140_950]
    three = ["eer", "min_dcf", "cllr"]
    calls = {
        "scikit-learn roc_auc_score (baseline)": lambda: roc_auc_score(labels, scores),
        "auc": lambda: auc(scores, labels),
        "eer": lambda: eer(scores, labels),
        "min_dcf": lambda: min_dcf(scores, labels),
        "act_dcf": lambda: act_dcf(scores, labels),
        "cllr": lambda: cllr(scores, labels),
        "min_cllr": lambda: min_cllr(scores, labels),
        "AffineCalibration.fit, 140,950 trials": lambda: AffineCalibration().fit(scores[dev], labels[dev]),
        "PAVCalibration.fit, 140,950 trials": lambda: PAVCalibration().fit(scores[dev], labels[dev]),
    }
    rows = {name: best(call, warm=0) for name, call in calls.items()}
    rows["1,000 replicates of eer, min_dcf and cllr, trials"] = best(
        lambda: confidence_interval(three, scores, labels), 1, 0
    )
    rows["the same, drawing 737 speakers"] = best(
        lambda: confidence_interval(three, scores, labels, speakers), 1, 0
    )
    table = pd.DataFrame({"seconds": rows})
    table["ratio"] = table.seconds / table.seconds.iloc[0]
    print(table.round(3).to_string())
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
