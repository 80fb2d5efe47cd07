"""What each of two processes does in `test_loop`; it runs in processes of its own."""

import dataclasses

import numpy as np
import torch

from tests.training.runs import QUICK, small, weights
from wedefense_nb.data.manifest import Manifest
from wedefense_nb.files import locate
from wedefense_nb.models.detector import build
from wedefense_nb.training import loop
from wedefense_nb.training.loop import fit
from wedefense_nb.training.scoring import score


def corpus_for_ranks() -> Manifest:
    """Six recordings of each class and split."""
    corpus = Manifest.read(locate("data_samples"))
    full = corpus.subset(kind="full").utterances
    groups = [group.head(6) for _, group in full.groupby(["split", "label"])]
    return corpus.subset(utt=[utt for group in groups for utt in group.utt])


def two_ranks(folder: str) -> None:
    """Train in three ways, score, and note what this process ended with in `rank<number>.npz`."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    corpus = corpus_for_ranks()
    train = corpus.subset(split="train")
    dev = corpus.subset(split="dev")
    stopping = dataclasses.replace(QUICK, epochs=4, patience=1)
    by_number = fit(small(), train, dev, stopping, out=folder)
    table = score(by_number.model, corpus.subset(split="eval"))

    trained = []
    step = loop._step
    loop._step = lambda *given: trained.append(given[1]) or step(*given)
    seconds = dataclasses.replace(QUICK, epochs=2, balance=False, crop=None, batch_seconds=6.0)
    by_seconds = fit(build("bands"), train, dev, seconds, out=f"{folder}/seconds")
    loop._step = step

    tiled = dataclasses.replace(QUICK, epochs=1, crop=2.0, crop_policy="start+tile", workers=1)
    from_shards = fit(build("bands"), Manifest.read(f"{folder}/tar"), dev, tiled, out=f"{folder}/tiled")

    found = {
        "weights": torch.cat([weights(result.model) for result in (by_number, by_seconds, from_shards)]).numpy(),
        "errors": by_number.history.dev_eer.to_numpy(),
        "utts": table.utt.to_numpy().astype(str),
        "scores": table.score.to_numpy(),
        "train": train.utterances.utt.to_numpy().astype(str),
        "trained": np.array([utt for batch in trained for utt in batch.utts]),
        "largest": max(batch.wave.numel() for batch in trained) / 16000,
    }
    np.savez(f"{folder}/rank{dist.get_rank()}.npz", **found)
