"""What masks cost: a training step of ResNet18 with and without them: `python benchmarks/norms.py [device]`.

Eight recordings, once all of 2 s and once from 1 to 2 s, so that a quarter of a batch is padding. The baseline
is the step of equal lengths whose norms are torch's own `BatchNorm2d`, which look at everything. Each row is
the best of three steps, in the same run, on one thread.
"""

import sys

import pandas as pd
import torch
from timing import best

from wedefense_nb.models import layers
from wedefense_nb.models.detector import build


class PlainNorm(torch.nn.BatchNorm2d):
    """What most programs do: statistics over all positions, also those that are padding."""

    def forward(self, x, mask):
        return super().forward(x) * mask


def step(lengths: torch.Tensor, plain: bool, device: str):
    """A function that makes one training step."""
    torch.manual_seed(0)
    model = build("resnet18").to(device).train()
    if plain:
        for module in model.modules():
            if isinstance(module, layers.MaskedBatchNorm):
                module.__class__ = PlainNorm
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    wave = 0.1 * torch.randn(len(lengths), int(lengths.max()), device=device)
    labels = torch.arange(len(lengths), device=device) % 2

    def run() -> None:
        optimizer.zero_grad()
        model.loss(wave, lengths.to(device), labels).backward()
        optimizer.step()

    return run


def main() -> None:
    device = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    torch.set_num_threads(1)
    equal = torch.full((8,), 32000)
    unequal = torch.linspace(16000, 32000, 8).long()
    cases = {
        "BatchNorm2d, equal lengths (baseline)": (equal, True),
        "BatchNorm2d, unequal lengths": (unequal, True),
        "MaskedBatchNorm, equal lengths": (equal, False),
        "MaskedBatchNorm, unequal lengths": (unequal, False),
    }
    seconds = {name: best(step(*case, device), device=device) for name, case in cases.items()}
    table = pd.DataFrame({"seconds a step": pd.Series(seconds)})
    table["ratio"] = table["seconds a step"] / table["seconds a step"].iloc[0]
    print(table.round(3).to_string())


if __name__ == "__main__":
    main()
