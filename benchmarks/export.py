"""Parity and time of exported models: `python benchmarks/export.py lcnn_lstm resnet18 ...`."""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from timing import best

from wedefense_nb.models.detector import DETECTORS, LOCALIZERS, build
from wedefense_nb.understanding.reference import SHORTEST
from wedefense_nb.use.export import SUFFIXES, Deployable, Deployed, parity, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="Names; all by default.")
    parser.add_argument("--seconds", type=float, default=4.0, help="Of the wave that is timed.")
    parser.add_argument("--formats", nargs="+", default=["torchscript", "pt2", "onnx"])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    wave = 0.1 * np.random.default_rng(0).normal(size=(1, round(16000 * chosen.seconds))).astype(np.float32)
    suffixes = {kind: suffix for suffix, kind in SUFFIXES.items()}
    print("| model | format | difference | kB | time / PyTorch | reason |\n|---|---|---|---|---|---|")
    for name in chosen.models or [*DETECTORS, *LOCALIZERS]:
        torch.manual_seed(0)
        try:
            part = Deployable(build(name).eval())
        except (ValueError, OSError) as error:
            print(f"| {name} | | | | | {str(error).splitlines()[0][:100]} |")
            continue
        inputs = torch.from_numpy(wave), torch.tensor([wave.shape[1]])
        with torch.inference_mode():
            plain = best(lambda: part(*inputs))  # noqa: B023
        for row in parity(part, tuple(chosen.formats)).itertuples():
            ratio = ""
            if not row.reason:
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / f"model{suffixes[row.format]}"
                    model = Deployed(write(part, {"shortest_input": str(SHORTEST)}, path))
                    ratio = f"{best(lambda: model(wave)) / plain:.2f}"  # noqa: B023
            print(f"| {name} | {row.format} | {row.difference:.1e} | {row.kilobytes} | {ratio} | {row.reason} |")


if __name__ == "__main__":
    main()
