"""Utterances a second from files and from shards, against a plain loop: `python benchmarks/loading.py [flac|wav]`.

1024 recordings of 4 s, made from data_samples/, crops of 2 s, batches of 16, several epochs in one run, one
thread a process. The baseline is the loop that anyone would write, `soundfile.read` and a random crop, without
batches; beside W workers it runs in W processes at once, so that cores that share their parts do so on both
sides. Two rates: by the clock, and by the processor time of all processes together, which also counts what the
main process does to receive batches. Worker starts are included. Best of two rounds; in a round each is run
once. Files are in the cache of the operating system: the numbers are about computation, and shards save seeks
on top of it.
"""

import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile as sf
import torch

from wedefense_nb.data.audio import SAMPLE_RATE, load
from wedefense_nb.data.batches import AudioDataset, epoch_batches, loader
from wedefense_nb.data.crops import Crop
from wedefense_nb.data.manifest import Manifest
from wedefense_nb.data.shards import ShardStream, write_shards

N, CROP, BATCH = 1024, 2.0, 16


def corpus(folder: Path, suffix: str, seconds: float) -> Manifest:
    """Recordings of equal length, each begun at another place of all samples' sound."""
    samples = Manifest.read(Path(__file__).parents[1] / "data_samples")
    sound = np.concatenate([load(p)[0] for p in samples.paths()[:400]])
    n = round(seconds * SAMPLE_RATE)
    rows = []
    for i in range(N):
        sf.write(folder / f"u{i:04d}.{suffix}", np.roll(sound, -i * 997)[:n], SAMPLE_RATE)
        rows.append({"utt": f"u{i:04d}", "path": f"u{i:04d}.{suffix}", "label": "spoof" if i % 2 else "bonafide"})
    blank = {
        "split": "",
        "speaker": "",
        "attack": "",
        "codec": "",
        "duration": seconds,
        "sample_rate": SAMPLE_RATE,
    }
    return Manifest(pd.DataFrame(rows).assign(**blank), root=folder)


def plain_loop(manifest: Manifest, epochs: int) -> int:
    """What everything is compared with."""
    rng = np.random.default_rng(0)
    n = round(CROP * SAMPLE_RATE)
    for path in manifest.paths() * epochs:
        wave, _ = sf.read(path, dtype="float32")
        start = rng.integers(len(wave) - n + 1)
        wave = wave[start : start + n]
    return len(manifest) * epochs


def plain_loops(manifest: Manifest, epochs: int, workers: int) -> int:
    """The plain loop in so many processes at once, each over a part of the work; 0: in this one."""
    if not workers:
        return plain_loop(manifest, epochs)
    parts = [Manifest(manifest.utterances.iloc[i::workers], root=manifest.root) for i in range(workers)]
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        n = sum(pool.starmap(plain_loop, [(part, epochs) for part in parts], chunksize=1))
        pool.close()
        pool.join()
    return n


def planned(manifest: Manifest, epochs: int, workers: int) -> int:
    """Shuffled epochs of random crops, joined to one long one."""
    plan = [batch for epoch in range(epochs) for batch in epoch_batches(manifest, BATCH, epoch)]
    return sum(len(b.utts) for b in loader(AudioDataset(manifest, Crop(CROP)), plan, workers))


def streamed(manifest: Manifest, epochs: int, workers: int) -> int:
    """The same, from front to back; every shard is named as often as there are epochs."""
    names = [str(p) for p in sorted(manifest.root.glob("*.tar"))] * epochs
    return sum(len(b.utts) for b in ShardStream(names, BATCH, Crop(CROP), buffer=100).batches(workers))


def processor_seconds() -> float:
    """Of this process and of all its children that have ended."""
    return sum(os.times()[:4])


def best(calls: dict, rounds: int = 2) -> pd.DataFrame:
    """Utterances a second of each call's fastest round, by the clock and by processor time."""
    rates = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            used = processor_seconds()
            n = call()
            rates[name].append([n / (time.perf_counter() - start), n / (processor_seconds() - used)])
    return pd.DataFrame(
        {k: np.max(v, axis=0) for k, v in rates.items()}, index=["a second", "a processor second"]
    ).T


def main() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores
    for suffix in sys.argv[1:] or ("flac", "wav"):
        with tempfile.TemporaryDirectory() as name:
            files = corpus(Path(name), suffix, 4.0)
            packed = write_shards(files, Path(name) / "shards", size=64)
            epochs = {"flac": 4, "wav": 16}[suffix]  # a few seconds each, so that starting workers does not decide
            kinds = [("plain loop (baseline)", plain_loops, files), ("files", planned, files)]
            kinds += [("shards", planned, packed), ("streamed", streamed, packed)]
            calls = {}
            for what, read, m in kinds:
                calls |= {(what, w): lambda read=read, m=m, e=epochs, w=w: read(m, e, w) for w in range(5)}
            table = best(calls).rename_axis(["source", "workers"])
        for rate, what in (
            ("a second", "of as many loops"),
            ("a processor second", "processor, of as many loops"),
        ):
            table[what] = (table[rate] / table[rate]["plain loop (baseline)"]).map("{:.0%}".format)
        print(
            f"{suffix}, {os.cpu_count()} cores\n{table.round(0).reset_index().to_string(index=False)}\n",
            flush=True,
        )


if __name__ == "__main__":
    main()
