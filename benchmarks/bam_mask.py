"""BAM's boundary mask against a loop over steps: `python benchmarks/bam_mask.py [cpu|cuda]`.

A batch of 8 recordings of 500 steps (80 s at 160 ms), one step in twenty a boundary, one thread. The baseline
builds the mask as the published program does: for every recording and every step, a running product over the
steps that follow, written into a row and a column. The two masks are compared before they are timed.
"""

import sys

import torch
from timing import best
from torch import Tensor

from wedefense_nb.localization.boundaries import boundary_mask

B, T = 8, 500


def looped(boundary: Tensor) -> Tensor:
    """(B, N) to (B, N, N), step by step."""
    free = (~boundary).long()
    batch, n = boundary.shape
    allowed = torch.zeros(batch, n, n, dtype=torch.long, device=boundary.device)
    for b in range(batch):
        for j in range(n):
            reached = free[b, j:].cumprod(0)
            allowed[b, j, j:] = reached
            allowed[b, j:, j] = reached
    return allowed.bool() | torch.eye(n, dtype=torch.bool, device=boundary.device)


def main() -> None:
    device = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    boundary = (torch.rand(B, T, generator=generator) < 0.05).to(device)
    if not torch.equal(looped(boundary), boundary_mask(boundary)):
        raise RuntimeError("the two masks differ, so their times mean nothing")
    loop = best(lambda: looped(boundary), device=device)
    ours = best(lambda: boundary_mask(boundary), repeats=20, device=device)
    print(f"{device}, one thread, {B} x {T} steps: loop {1e3 * loop:.1f} ms, ours {1e3 * ours:.2f} ms")
    print(f"ratio {loop / ours:.0f}, asked for 50")


if __name__ == "__main__":
    main()
