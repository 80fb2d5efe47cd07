"""RawBoost against its literal numpy version: `python benchmarks/augmentation.py [cpu|cuda]`.

4 s utterances, one CPU thread; the literal version works on one utterance at a time, ours on batches of 32.
Drawing is included everywhere: "published" draws as the published program does (all samples permuted, noise in
float64), "same draws" takes ours, whose time stands beside it ("drawing"). The tests prove ours against this
very `literal` on the same draws.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from scipy.signal import firwin, freqz, lfilter
from threadpoolctl import threadpool_limits

from wedefense_nb.augmentation.rawboost import ALGORITHMS, Draws, RawBoost, RawBoostOptions, draw, white_noise
from wedefense_nb.data.batches import Batch, collate
from wedefense_nb.data.crops import Item
from wedefense_nb.data.manifest import utt_rng


def through(x: np.ndarray, cascade: np.ndarray) -> np.ndarray:
    b = np.ones(1)
    for low, high, taps in cascade[:-1]:
        b = np.convolve(b, firwin(int(taps), [low, high], window="hamming", fs=16000))
    b = 10 ** (cascade[-1, 0] / 20) * b / np.abs(freqz(b)[1]).max()
    delay = (len(b) - 1) // 2
    return lfilter(b, 1, np.append(x, np.zeros(delay)))[delay:]


def limit(y: np.ndarray) -> np.ndarray:
    return y / max(1, np.abs(y).max())


def literal(x: np.ndarray, d: Draws, kinds: str) -> np.ndarray:
    """The published definition, step by step."""
    if "+" in kinds:
        return limit(literal(x, d, "L") + literal(x, d, "I"))
    for kind in kinds:
        if kind == "L":
            y = sum(through(x ** (i + 1), c) for i, c in enumerate(d.convolutive))
            x = limit(y - y.mean())
        elif kind == "I":
            y = x.copy()
            y[d.positions] += 2.0 * y[d.positions] * d.impulses
            x = limit(y)
        else:
            noise = through(d.noise.astype(float), d.colour)
            x = x + noise * np.linalg.norm(x) / np.linalg.norm(noise) / 10 ** (d.snr / 20)
    return x


def draw_as_published(rng: np.random.Generator, length: int, kinds: str) -> Draws:
    """The same distributions as the published program draws them: all samples permuted, numbers in float64."""
    o = RawBoostOptions()
    d = draw(rng, length, kinds.replace("I", ""), o)
    if "I" in kinds:
        n = int(length * rng.uniform(0, o.impulses) / 100)
        d.positions = rng.permutation(length)[:n]
        d.impulses = rng.uniform(-1, 1, n) * rng.uniform(-1, 1, n)
    if "S" in kinds:
        rng.normal(0, 1, length)
    return d


def mean_ms(f: Callable[[int], object], n: int = 8, rounds: int = 3) -> float:
    """Mean time of f(0) to f(n - 1), which draw differently; of several rounds, the fastest counts. In ms."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for i in range(n):
            f(i)
        times.append(time.perf_counter() - start)
    return 1e3 * min(times) / n


def compare(algo: int, kinds: str, waves: np.ndarray, batch: Batch) -> dict:
    boost = RawBoost(algo)
    o = RawBoostOptions()
    n = waves.shape[1]
    published = mean_ms(lambda i: literal(waves[i], draw_as_published(utt_rng(f"{i}"), n, kinds), kinds))
    same = mean_ms(lambda i: literal(waves[i], draw(utt_rng(f"{i}"), n, kinds, o), kinds))
    drawing = mean_ms(lambda i: draw(utt_rng(f"{i}"), n, kinds, o))
    ours = mean_ms(lambda i: boost(batch, i).wave.sum().item(), 3) / len(waves)  # the sum waits for a GPU
    row = {
        "algo": algo,
        "kinds": kinds,
        "published": published,
        "same draws": same,
        "drawing": drawing,
        "ours": ours,
    }
    return row | {"ratio": published / ours, "ratio same draws": same / ours}


def main() -> None:
    device = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    torch.set_num_threads(1)
    white_noise(device)  # made once
    waves = 0.1 * np.random.default_rng(0).normal(size=(32, 64000))
    batch = collate([Item(f"u{i}", x.astype(np.float32), 1) for i, x in enumerate(waves)]).to(device)
    with threadpool_limits(1):  # numpy's and scipy's
        table = pd.DataFrame([compare(algo, kinds, waves, batch) for algo, kinds in ALGORITHMS.items()])
    print(f"{device}, one thread, ms a 4 s utterance, batch 32\n" + table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
