"""Time and peak memory of every registered detector: `python benchmarks/models.py [--models a b] [--batch 1 32]`

One forward pass (evaluation) and one training step (forward, loss, backward, AdamW) on recordings of 4 s, the
best of `--repeats` after one that does not count (the first call itself, if it takes more than 10 s). Each
measurement runs in a process of its own, so that peak memory is its own: on a CPU what the process grew by, on
a GPU what torch allocated. The real-time factor is the forward time over the duration of the batch. What does
not fit in memory says so in its row. SSL back ends hear stored features of a large network (1024 numbers, 25
states, 50 frames/s), so the back end alone is timed; `--upstream base` or `large` puts a frozen network of that
size with random weights before them. `--compile` adds the forward pass under torch.compile, beside eager.
`--seconds 60` shows that long recordings run in bounded memory. `--out table.csv` writes the table, row by row.
`--attention` compares AASIST's pair scores with the literal version, which makes the (N, N, D) tensor of all
pairs, at equal outputs.
"""

import argparse
import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from timing import best, seconds

NO_MEMORY = "out of memory"


def status(field: str) -> float:
    """A memory field of this process in MB, from Linux."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) / 1e3


def start_memory(device: str) -> float:
    """MB in use before the measurement; from here on the peak counts."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest value so far
    return status("VmRSS")


def peak_memory(device: str) -> float:
    """MB at the highest point since `start_memory`."""
    return torch.cuda.max_memory_allocated() / 1e6 if device != "cpu" else status("VmHWM")


def limit_memory() -> None:
    """An allocation beyond what is free now fails, instead of ending some process, perhaps another's."""
    line = next(x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemAvailable"))
    allowed = round(0.8 * 1024 * int(line.split()[1]) + 1e6 * status("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))


def make(name: str, upstream: str | None) -> torch.nn.Module:
    """The detector; a back end reads stored features, or a network of the size `upstream` with random weights."""
    from wedefense_nb.models.shapes import needs_upstream, specimen
    from wedefense_nb.models.zoo import ENCODER_SIZES

    if upstream and needs_upstream(name):
        return specimen(name, upstream=asdict(ENCODER_SIZES[upstream]))
    return specimen(name)


def measure(args, name: str, batch: int, what: str) -> dict:
    """One row's numbers; `what` is forward, train or compile. Runs in a fresh process."""
    from wedefense_nb.models.shapes import noise

    device = args.device
    if device == "cpu":
        limit_memory()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = make(name, args.upstream).to(device)
    wave, lengths = (x.to(device) for x in noise(model, args.seconds, batch))
    labels = torch.arange(batch, device=device) % 2
    before = start_memory(device)
    if what == "train":
        optimizer = torch.optim.AdamW(p for p in model.train().parameters() if p.requires_grad)

        def step():
            model.loss(wave, lengths, labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    else:
        call = torch.compile(model) if what == "compile" else model

        def step():
            with torch.no_grad():
                call(wave, lengths)

    took = seconds(step, device)  # a warm-up, unless it takes so long that its share does not matter
    if took < 10 or what == "compile":
        took = best(step, args.repeats, warm=0, device=device)
    return {f"{what} ms": 1e3 * took, f"{what} MB": peak_memory(device) - before}


def in_own_process(args, name: str, batch: int, what: str) -> dict:
    """`measure` in a fresh process; what goes wrong there is said in the row."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measure, args, name, batch, what).result()
        except (MemoryError, torch.OutOfMemoryError, BrokenProcessPool):
            return {f"{what} ms": NO_MEMORY}
        except RuntimeError as error:
            text = str(error).splitlines()[0]
            return {f"{what} ms": NO_MEMORY if "allocate memory" in str(error) else text[:60]}


def ratio(a, b) -> float | None:
    """a / b, or nothing where one of them is a word."""
    return a / b if isinstance(a, float) and isinstance(b, float) else None


def models(args) -> pd.DataFrame:
    """The table of detectors."""
    from wedefense_nb.models.detector import DETECTORS

    kinds = ["forward"] + ["train"] * (not args.forward_only) + ["compile"] * args.compile
    rows = []
    for name in args.models or DETECTORS:
        size = sum(p.numel() for p in make(name, args.upstream).parameters())
        for batch in args.batch:
            row = {"model": name, "parameters": size, "batch": batch}
            for what in kinds:
                row |= in_own_process(args, name, batch, what)
            row["real-time factor"] = ratio(row["forward ms"], 1e3 * args.seconds * batch)
            if args.compile:
                row["eager / compiled"] = ratio(row["forward ms"], row["compile ms"])
            rows.append(row)
            print(pd.DataFrame(rows[-1:]).round(4).to_string(index=False), flush=True)
            if args.out:
                pd.DataFrame(rows).to_csv(args.out, index=False)
    return pd.DataFrame(rows)


def attention(args) -> pd.DataFrame:
    """AASIST's pair scores against the literal version, forward and with gradients; outputs are asserted equal."""
    from wedefense_nb.models.aasist import pair_scores

    def literal(h, project, v):
        return torch.tanh(project(h[:, :, None] * h[:, None])) @ v

    torch.set_num_threads(args.threads)
    project = torch.nn.Linear(64, 64).to(args.device)
    v = torch.randn(64, 1, device=args.device)
    rows = []
    for batch, n in ((1, 29), (32, 29), (1, 438), (8, 438)):
        h = torch.randn(batch, n, 64, device=args.device, requires_grad=True)
        torch.testing.assert_close(pair_scores(h, project, v), literal(h, project, v), atol=1e-4, rtol=1e-4)
        row: dict[str, float] = {"recordings": batch, "nodes": n, "seconds of sound": round(n * 2187 / 16000)}
        for what in ("forward", "train"):
            times = []
            for function in (literal, pair_scores):

                def step(function=function, h=h, what=what):
                    with torch.set_grad_enabled(what == "train"):
                        out = function(h, project, v)
                    if what == "train":
                        out.sum().backward()

                times.append(1e3 * best(step, args.repeats, device=args.device))
            row |= {
                f"literal {what} ms": times[0],
                f"ours {what} ms": times[1],
                f"{what}: times faster": times[0] / times[1],
            }
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", help="names; default: all")
    parser.add_argument("--batch", nargs="*", type=int, default=[1, 32])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--forward-only", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument(
        "--upstream",
        choices=["base", "large"],
        help="a network before SSL back ends; default: stored features",
    )
    parser.add_argument("--out", type=Path, help="a CSV file for the table")
    parser.add_argument("--attention", action="store_true", help="only the pair scores")
    args = parser.parse_args()
    device = torch.cuda.get_device_name() if args.device != "cpu" else f"CPU, {args.threads} threads"
    print(f"{device}, torch {torch.__version__}")
    table = attention(args) if args.attention else models(args)
    print(table.round(4).to_string(index=False))
    if args.out:
        table.to_csv(args.out, index=False)


if __name__ == "__main__":
    main()
