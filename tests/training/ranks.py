"""What each process of `test_processes` does: ``accelerate launch ranks.py FOLDER``."""

import dataclasses
import sys
import warnings
from dataclasses import asdict

import numpy as np
import torch
import torch.distributed as dist

from tests.training.runs import QUICK, small, weights
from wedefense_nb.data.manifest import Manifest
from wedefense_nb.features.pretrained import TINY
from wedefense_nb.files import locate
from wedefense_nb.models.detector import build
from wedefense_nb.training import loop
from wedefense_nb.training.loop import FitConfig, fit
from wedefense_nb.training.scoring import score

SAME = FitConfig(epochs=1, batch_size=5, crop=0.4, lr=2e-3, class_weights=(1.0, 3.0), average=1, seed=3)
ALONE = dataclasses.replace(SAME, batch_size=11)  # of twelve recordings the last step has one


def corpus_for_ranks() -> Manifest:
    """Six recordings of each class and split."""
    corpus = Manifest.read(locate("data_samples"))
    full = corpus.subset(kind="full").utterances
    groups = [group.head(6) for _, group in full.groupby(["split", "label"])]
    return corpus.subset(utt=[utt for group in groups for utt in group.utt])


def bands():
    """A detector without dropout or running statistics, whose steps are the same however they are divided."""
    torch.manual_seed(2)
    return build("bands", n_mels=20, embed_dim=8)


def refused(folder: str, train: Manifest, dev: Manifest) -> str:
    """What is said to a run that was begun by another number of processes."""
    try:
        fit(bands(), train, dev, SAME, out=f"{folder}/one")
    except ValueError as error:
        return str(error)
    return ""


def several_ranks(folder: str) -> None:
    """Train in some ways, score, and note what this process ended with in `rank<number>.npz`."""
    torch.set_num_threads(1)
    corpus = corpus_for_ranks()
    train = corpus.subset(split="train")
    dev = corpus.subset(split="dev")
    stopping = dataclasses.replace(QUICK, epochs=4, patience=1)
    by_number = fit(small(), train, dev, stopping, out=f"{folder}/number")
    table = score(by_number.model, corpus.subset(split="eval"))

    trained = []
    step = loop._step

    def spy(run, parts, *given):
        trained.extend([] if run.idle else parts)
        return step(run, parts, *given)

    loop._step = spy
    seconds = dataclasses.replace(QUICK, epochs=2, balance=False, crop=None, batch_seconds=6.0)
    by_seconds = fit(build("bands"), train, dev, seconds, out=f"{folder}/seconds")
    loop._step = step

    tiled = dataclasses.replace(QUICK, epochs=1, crop=2.0, crop_policy="start+tile", workers=1)
    from_shards = fit(build("bands"), Manifest.read(f"{folder}/tar"), dev, tiled, out=f"{folder}/tiled")
    skipping = build("ssl_linear", upstream=asdict(TINY) | {"layerdrop": 0.5}, frozen=False)
    dropped = fit(skipping, train, dev, dataclasses.replace(SAME, steps=3), out=f"{folder}/dropped")

    same = [fit(bands(), train, dev, dataclasses.replace(SAME, accumulate=2), out=f"{folder}/parts")]
    same.append(fit(bands(), train, dev, ALONE, out=f"{folder}/alone"))
    results = [by_number, by_seconds, from_shards, dropped]
    found = {
        "weights": torch.cat([weights(result.model) for result in results]).numpy(),
        "errors": by_number.history.dev_eer.to_numpy(),
        "utts": table.utt.to_numpy().astype(str),
        "scores": table.score.to_numpy(),
        "train": train.utterances.utt.to_numpy().astype(str),
        "trained": np.array([utt for batch in trained for utt in batch.utts]),
        "largest": max(batch.wave.numel() for batch in trained) / 16000,
        "refused": refused(folder, train, dev),
    }
    for i, result in enumerate(same):
        found[f"same{i}"] = weights(result.model).numpy()
        found[f"history{i}"] = result.history.to_numpy()
    np.savez(f"{folder}/rank{dist.get_rank()}.npz", **found)
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    several_ranks(sys.argv[1])
