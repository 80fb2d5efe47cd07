"""Reading a corpus of 1.2 million trials: `python benchmarks/corpora.py` (add `--files 20000` to also read that
many headers).

Lists like those of ASVspoof 5 are written with made-up ids and read by `prepare`; the baseline is plain
`pandas.read_csv` of the same files, ten columns of text, in the same run. What `prepare` adds: checks of every
line, of the labels against the attacks, of doubles, and the Manifest with its own checks. Headers of as many
hard links to one FLAC are read in one thread, in eight, and from the cache; their baseline is a loop over
`soundfile.info`.
"""

import argparse
import csv
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile as sf

from wedefense_nb.data.audio import save
from wedefense_nb.data.corpora import prepare, read_headers, scan

SIZES = {"train": 250_000, "dev": 200_000, "eval": 750_000}
NAMES = {
    "train": "ASVspoof5.train.tsv",
    "dev": "ASVspoof5.dev.track_1.tsv",
    "eval": "ASVspoof5.eval.track_1.tsv",
}


def write_lists(root: Path) -> list[Path]:
    """ASVspoof 5's three lists, 1.2 million lines in all; 17 % bona fide."""
    rng = np.random.default_rng(0)
    (root / "ASVspoof5_protocols").mkdir(parents=True)
    for split, n in SIZES.items():
        letter = split[0].upper()
        speaker = rng.integers(0, 2000, n)
        kind = rng.integers(0, 100, n)
        codec = rng.integers(0, 12, n)
        attack = rng.integers(1, 33, n)
        with open(root / "ASVspoof5_protocols" / NAMES[split], "w") as f:
            for i, (s, k, c, a) in enumerate(zip(speaker, kind, codec, attack, strict=True)):
                coded = f"C{c:02d} {1 + i % 5} {letter}_{i // 2:010d}" if c and split == "eval" else "- 0 -"
                label = "- bonafide bonafide" if k < 17 else f"AC1 A{a:02d} spoof"
                f.write(f"{letter}_{s:04d} {letter}_{i:010d} {'MF'[i % 2]} {coded} {label} -\n")
    return [root / "ASVspoof5_protocols" / name for name in NAMES.values()]


def seconds(function, *args, **kwargs):
    start = time.perf_counter()
    value = function(*args, **kwargs)
    return time.perf_counter() - start, value


def plain(files: list[Path]) -> pd.DataFrame:
    """The baseline: read the same text with pandas and do nothing with it."""
    return pd.concat([pd.read_csv(f, sep=" ", header=None, dtype=str, quoting=csv.QUOTE_NONE) for f in files])


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # GB


def headers(root: Path, n: int) -> None:
    """Read n headers in a loop, with one thread, with eight, and again."""
    save(
        root / "sounds/0.flac",
        0.1 * np.random.default_rng(0).normal(size=64000).clip(-3, 3).astype(np.float32),
    )
    for i in range(1, n):
        os.link(root / "sounds/0.flac", root / f"sounds/{i}.flac")
    walk, files = seconds(scan, root / "sounds")
    loop, _ = seconds(lambda: [sf.info(root / "sounds" / p) for p in files.path])
    rows = {"loop over soundfile.info (baseline)": loop, "scan (names, sizes, times)": walk}
    for workers in (1, 8):
        rows[f"read_headers, workers={workers}"], _ = seconds(
            read_headers, root / "sounds", files, root / f"c{workers}", workers
        )
    rows["read_headers again (cache)"], _ = seconds(read_headers, root / "sounds", files, root / "c1")
    table = pd.DataFrame({"seconds": rows})
    print(
        f"\n{n} files\n"
        + table.assign(ratio=table.seconds / loop, per_second=n / table.seconds).round(3).to_string()
    )


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--files", type=int, default=0)
    n = options.parse_args().files
    with tempfile.TemporaryDirectory() as folder:
        files = write_lists(Path(folder))
        base, table = seconds(plain, files)
        before = peak()
        del table
        took, m = seconds(prepare, "asvspoof5", folder, files=False)
        table = pd.DataFrame(
            {"seconds": {"pandas.read_csv (baseline)": base, "prepare('asvspoof5', files=False)": took}}
        )
        print(f"{len(m)} trials\n" + table.assign(ratio=table.seconds / base).round(2).to_string())
        print(f"peak memory {peak():.2f} GB, after the baseline alone {before:.2f} GB")
        subset, _ = seconds(m.subset, split="eval")
        print(f"subset(split='eval') {subset:.2f} s")
        if n:
            headers(Path(folder), n)


if __name__ == "__main__":
    main()
