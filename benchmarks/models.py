"""Time and peak memory of every registered detector: `python benchmarks/models.py [--models a b] [--batch 1 32] ...`

One forward pass (evaluation) and one training step (forward, loss, backward, AdamW) on recordings of 4 s. Each
measurement runs in a process of its own, so that peak memory is its own: on a CPU what the process grew by, on a GPU what
torch allocated. The real-time factor is the forward time over the duration of the batch. `--compile` adds the forward pass
under torch.compile, beside eager. `--seconds 60` shows that long recordings run in bounded memory. `--attention` compares
AASIST's pair scores with the literal version, which makes the (N, N, D) tensor of all pairs, at equal outputs.
"""

import argparse
import multiprocessing
from pathlib import Path

import pandas as pd
import torch
from timing import best


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


def measure(name: str, batch: int, what: str, device: str, seconds: float, repeats: int, threads: int) -> dict:
    """One row's numbers; `what` is forward, train or compile. Runs in a fresh process."""
    from wedefense_nb.detector import build

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = build(name).to(device)
    n = round(16000 * seconds)
    wave, lengths = 0.1 * torch.randn(batch, n, device=device), torch.full((batch,), n, device=device)
    labels = torch.arange(batch, device=device) % 2
    before = start_memory(device)
    if what == "train":
        if batch == 1:  # statistics over one value a channel do not exist: a batch of two halves
            wave, lengths, labels = wave.view(2, -1), torch.full((2,), n // 2, device=device), torch.arange(2, device=device)
        optimizer = torch.optim.AdamW(model.train().parameters())

        def step():
            model(wave, lengths, labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    else:
        model.eval()
        call = torch.compile(model) if what == "compile" else model

        def step():
            with torch.no_grad():
                call(wave, lengths)

    ms = 1e3 * best(step, repeats, device=device)
    return {f"{what} ms": ms, f"{what} MB": peak_memory(device) - before}


def in_own_process(*args) -> dict:
    """`measure` in a fresh process; what goes wrong there is said in the row."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            return pool.apply(measure, args)
        except (RuntimeError, MemoryError) as error:
            return {f"{args[2]} ms": str(error).splitlines()[0][:40]}


def models(args) -> pd.DataFrame:
    """The table of detectors."""
    from wedefense_nb.detector import build, names

    rows = []
    for name in args.models or names():
        size = sum(p.numel() for p in build(name).parameters())
        for batch in args.batch:
            row = {"model": name, "parameters": size, "batch": batch}
            for what in ["forward", "train"] * (not args.forward_only) or ["forward"]:
                row |= in_own_process(name, batch, what, args.device, args.seconds, args.repeats, args.threads)
            if args.compile:
                row |= in_own_process(name, batch, "compile", args.device, args.seconds, args.repeats, args.threads)
                row["eager / compiled"] = row["forward ms"] / row["compile ms"]
            row["real-time factor"] = row["forward ms"] / (1e3 * args.seconds * batch)
            rows.append(row)
            print(pd.DataFrame(rows[-1:]).round(4).to_string(index=False), flush=True)
    return pd.DataFrame(rows)


def attention(args) -> pd.DataFrame:
    """AASIST's pair scores against the literal version, forward and with gradients; outputs are asserted equal."""
    from wedefense_nb.models.aasist import pair_scores

    def literal(h, project, v):
        return torch.tanh(project(h[:, :, None] * h[:, None])) @ v

    torch.set_num_threads(args.threads)
    project, v, rows = torch.nn.Linear(64, 64).to(args.device), torch.randn(64, 1, device=args.device), []
    for batch, n in ((1, 29), (32, 29), (1, 438), (8, 438)):
        h = torch.randn(batch, n, 64, device=args.device, requires_grad=True)
        torch.testing.assert_close(pair_scores(h, project, v), literal(h, project, v), atol=1e-4, rtol=1e-4)
        row = {"recordings": batch, "nodes": n, "seconds of sound": round(n * 2187 / 16000)}
        for what in ("forward", "train"):
            times = []
            for function in (literal, pair_scores):

                def step(function=function, h=h, what=what):
                    with torch.set_grad_enabled(what == "train"):
                        out = function(h, project, v)
                    if what == "train":
                        out.sum().backward()

                times.append(1e3 * best(step, args.repeats, device=args.device))
            row |= {f"literal {what} ms": times[0], f"ours {what} ms": times[1], f"{what}: times faster": times[0] / times[1]}
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
    parser.add_argument("--attention", action="store_true", help="only the pair scores")
    args = parser.parse_args()
    device = torch.cuda.get_device_name() if args.device != "cpu" else f"CPU, {args.threads} threads"
    print(f"{device}, torch {torch.__version__}")
    table = attention(args) if args.attention else models(args)
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
