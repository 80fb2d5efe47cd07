"""The stopwatch of the benchmarks."""

import time


def seconds(function, device: str = "cpu") -> float:
    """How long one call takes, until the device has done all of it."""
    if device == "cpu":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    import torch

    torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def best(function, repeats: int = 3, warm: int = 1, device: str = "cpu") -> float:
    """Seconds of the fastest of several calls, after `warm` calls that do not count."""
    times = [seconds(function, device) for _ in range(warm + repeats)]
    return min(times[warm:])
