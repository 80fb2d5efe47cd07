"""Localizing one hour of audio, beside six minutes: `python benchmarks/long_recording.py`.

A process of its own for each length, so that the peaks of memory do not mix; tinted noise in a WAV, scored by
`localization.localizers.localize` in pieces. The ratio to the short recording says whether memory is bounded: the
samples themselves grow tenfold (230 MB an hour).
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile as sf


def write_noise(path: Path, minutes: float) -> None:
    """Tinted noise, written minute by minute."""
    rng = np.random.default_rng(0)
    with sf.SoundFile(path, "w", 16000, 1, subtype="PCM_16") as file:
        for _ in range(round(minutes)):
            file.write(0.05 * np.convolve(rng.normal(size=16000 * 60), [1, 0.7, 0.3], "same"))


def one(model: str, minutes: float) -> None:
    """Score one recording in this process and print seconds, megabytes and frames."""
    import torch

    from wedefense_nb.data.manifest import from_folder
    from wedefense_nb.localization.localizers import localize
    from wedefense_nb.models.detector import build

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_noise(Path(folder) / "long.wav", minutes)
        corpus = from_folder(folder)
        localizer = build(model).eval()
        start = time.perf_counter()
        scores = localize(localizer, corpus, progress=False)
        took = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(took, peak, len(next(iter(scores.values()))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["frame_linear", "frame_res1d", "frame_lcnn_lstm", "tdl"])
    parser.add_argument("--minutes", nargs=2, type=float, default=[6, 60])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(given.one, given.minutes[0])
        return
    rows = []
    for model in given.models:
        found = []
        for minutes in given.minutes:
            command = [sys.executable, __file__, "--one", model, "--minutes", str(minutes), str(minutes)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr[-2000:])
            found.append([float(value) for value in done.stdout.split()])
        (short, small, _), (long, large, frames) = found
        rows.append((model, int(frames), short, long, long / short, small, large, large / small))
    names = ["model", "frames", "short s", "long s", "ratio", "short MB", "long MB", "ratio "]
    print(pd.DataFrame(rows, columns=names).round(2).to_string(index=False))


if __name__ == "__main__":
    main()
