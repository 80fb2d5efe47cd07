"""A server on this computer, asked by many at once for a minute: answers, errors, waiting times and memory.

    python benchmarks/serve_load.py [--clients 20] [--seconds 60] [--line 10] [--model FOLDER]

Without a model it makes one that has learned nothing. Everything stays on the loopback address.
"""

import argparse
import collections
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import torch

from wedefense_nb.data.manifest import Manifest
from wedefense_nb.files import locate
from wedefense_nb.models.detector import build, save_model
from wedefense_nb.scores.calibration import AffineCalibration, save_calibration
from wedefense_nb.use.demo import BUSY, Limits, Server, visit


def untrained(folder: Path) -> Path:
    """A model folder for measuring time."""
    torch.manual_seed(0)
    place = save_model(build("bands"), folder / "model")
    save_calibration(AffineCalibration().fit([0.0, 1.0, 2.0, 3.0], [0, 1, 0, 1]), place / "calibration.json")
    return place


def megabytes(server: Server) -> dict[str, float]:
    """Resident memory of this process, with its visitors, and of the worker."""
    both = {"server and clients": psutil.Process(), "worker": psutil.Process(server.worker.process.pid)}
    return {name: round(process.memory_info().rss / 2**20, 1) for name, process in both.items()}


def load(server: Server, files: list[Path], clients: int, seconds: float) -> dict:
    """Ask for so many seconds."""
    end = time.monotonic() + seconds
    took: list[float] = []
    said: collections.Counter = collections.Counter()
    course = []

    def keep_asking(number: int) -> None:
        k = number
        while time.monotonic() < end:
            began = time.monotonic()
            try:
                got = visit(server.address, files[k % len(files)], seconds=120.0)
            except Exception as error:
                said[f"failed: {type(error).__name__}"] += 1
                continue
            whole = bool(got.words and got.page)
            kind = "busy" if got.problem == BUSY else got.problem or ("answered" if whole else "half an answer")
            said[kind] += 1
            if kind == "answered":
                took.append(time.monotonic() - began)
            elif kind == "busy":
                time.sleep(0.5)
            k += 1

    with ThreadPoolExecutor(clients + 1) as pool:
        for number in range(clients):
            pool.submit(keep_asking, number)
        while time.monotonic() < end:
            time.sleep(min(10.0, max(0.1, end - time.monotonic())))
            course.append(megabytes(server))
    last = time.monotonic() - end
    quantiles = [round(float(q), 2) for q in np.quantile(took or [np.nan], [0.5, 0.95, 1.0])]
    return {"said": dict(said), "seconds_50_95_100": quantiles, "last_answer_after_end": round(last, 1)} | {
        "memory": course
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--line", type=int, default=10)
    parser.add_argument("--model", type=Path)
    given = parser.parse_args()
    files = Manifest.read(locate("data_samples")).paths()[:20]
    with tempfile.TemporaryDirectory() as tmp:
        model = given.model or untrained(Path(tmp))
        with Server(model, limits=Limits(clients=given.line), port=0) as server:
            for _ in range(5):
                visit(server.address, files[0])
            before = megabytes(server)
            found = load(server, files, given.clients, given.seconds)
            left = {"uploads": len(server.uploads), "answers": len(server.answers)}
            print(json.dumps({"before": before, **found, "left": left}, indent=1))


if __name__ == "__main__":
    main()
