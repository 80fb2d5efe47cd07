"""RawBoost against its literal numpy version: `python benchmarks/augmentation.py [cpu|cuda]`.

4 s utterances, one CPU thread; the literal version works on one utterance at a time, ours on batches of 32. Both get the
same draws, and the time to draw them is included in both. The tests prove ours against this very `literal`.
"""

import sys
import time

import numpy as np
import pandas as pd
import torch
from scipy.signal import firwin, freqz, lfilter

from wedefense_nb.rawboost import ALGORITHMS, Draws, RawBoost, RawBoostOptions, draw


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


def main() -> None:
    device = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    wave = torch.from_numpy(0.1 * rng.normal(size=(32, 64000)).astype(np.float32)).to(device)
    lengths, utts, rows = torch.full((32,), 64000, device=device), [f"u{i}" for i in range(32)], []
    for algo, kinds in ALGORITHMS.items():
        start = time.perf_counter()
        for i in range(4):
            literal(wave[i].double().cpu().numpy(), draw(np.random.default_rng(i), 64000, kinds, RawBoostOptions()), kinds)
        slow, boost, times = (time.perf_counter() - start) / 4, RawBoost(algo), []
        for epoch in range(4):
            start = time.perf_counter()
            boost(wave, lengths, utts, epoch).sum().item()  # waits for a GPU
            times.append((time.perf_counter() - start) / 32)
        fast = min(times)
        rows.append({"algo": algo, "kinds": kinds, "literal ms": 1e3 * slow, "ours ms": 1e3 * fast, "ratio": slow / fast})
    print(f"{device}, one thread, 4 s utterances, batch 32\n" + pd.DataFrame(rows).round(2).to_string(index=False))


if __name__ == "__main__":
    main()
