"""What each of two processes does in `test_pairs`; a module of its own, so that the launcher can find it."""

from types import SimpleNamespace

import numpy as np
import torch
from accelerate import Accelerator

from wedefense_nb.augmentation.copies import Copies, pairs_of
from wedefense_nb.augmentation.policies import Policy
from wedefense_nb.data.batches import AudioDataset, collate
from wedefense_nb.data.crops import Crop
from wedefense_nb.data.manifest import Manifest
from wedefense_nb.files import locate
from wedefense_nb.models.detector import build
from wedefense_nb.training.objectives import make_objective

SETTINGS = SimpleNamespace(class_weights=(1.0, 1.0), seed=0)


def gradient(model) -> np.ndarray:
    """All gradients, one after the other."""
    return torch.cat([p.grad.flatten() for p in model.parameters()]).numpy()


def two_ranks(folder: str) -> None:
    """Gradients of one batch with pairs on the first process, and of one without on the second."""
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    train = Manifest.read(locate("data_samples")).subset(split="train", kind="full")
    data = AudioDataset(train, Crop(0.5))
    rows = [*np.flatnonzero(data.labels == 1)[:3], *np.flatnonzero(data.labels == 0)[:3]]
    batch = collate([data[0, row] for row in rows])
    change = Copies(p=1.0, routes=["phase_noise"], keep=True)
    if rank == 0:
        batch = change(batch)
    for name in ("paired", "contrastive"):
        found = {"pairs": len(pairs_of(batch.utts))}
        for kind in ("alone", "gradient"):
            torch.manual_seed(0)
            model = build("bands")
            objective = make_objective(name)(model, SETTINGS, Policy(change))
            if kind == "gradient":
                objective = accelerator.prepare(objective)
            objective(batch).backward()
            found[kind] = gradient(model)
        np.savez(f"{folder}/{name}{rank}.npz", **found)
    accelerator.end_training()
