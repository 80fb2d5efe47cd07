"""A small detector, quick settings, how two trainings are compared, and the smallest of recipes."""

import nbformat
import torch

from wedefense_nb.models.detector import build
from wedefense_nb.training.loop import FitConfig

QUICK = FitConfig(epochs=3, batch_size=4, crop=0.4, lr=2e-3, balance=True, average=2, seed=3, save_every=2)


class Stop(Exception):
    """A power cut."""


def small():
    """A detector with dropout and running statistics, always with the same first weights."""
    torch.manual_seed(1)
    return build("lcnn_lstm", dropout=0.5)


def weights(model) -> torch.Tensor:
    """Everything in a state dictionary, one after the other."""
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


class Scripted:
    """A validation that says these numbers one after the other, and keeps the weights it was asked about."""

    __name__ = "scripted"

    def __init__(self, *numbers: float):
        self.numbers = list(numbers)
        self.asked = []

    def __call__(self, model, dev, config, accelerator) -> float:
        self.asked.append({name: value.clone() for name, value in model.state_dict().items()})
        return self.numbers[len(self.asked) - 1]


def tiny_recipe(path, *cells):
    """A notebook with the parameters `out` and `seed`."""
    book = nbformat.v4.new_notebook()
    parameters = f'out: str = "{path.parent}/run"  # run folder\nseed: int = 0  # unused'
    book.cells = [nbformat.v4.new_code_cell(source) for source in (parameters, *cells)]
    book.cells[0].metadata.tags = ["parameters"]
    book.metadata.kernelspec = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(book, path)
    return str(path)
