"""The loss of a detector, what it remembers, and the number by which epochs are sorted."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.training.runs import small
from wedefense_nb.augmentation.policies import Policy, make_policy
from wedefense_nb.data.batches import AudioDataset, collate
from wedefense_nb.data.crops import Crop
from wedefense_nb.data.manifest import Manifest
from wedefense_nb.metrics import eer
from wedefense_nb.models.detector import Detector, build
from wedefense_nb.models.losses import LinearHead
from wedefense_nb.task import label_ids, prior_log_odds
from wedefense_nb.training import objectives
from wedefense_nb.training.objectives import Detection, Objective, check_classes, dev_eer
from wedefense_nb.training.scoring import score

SETTINGS = SimpleNamespace(class_weights=(0.2, 0.8), seed=7, batch_size=3, score_seconds=5.0, workers=0)


@pytest.fixture(scope="module")
def train(few):
    return few.subset(split="train", kind="full")


@pytest.fixture(scope="module")
def batch(train):
    """Two bona fide recordings and four spoofs."""
    data = AudioDataset(train, Crop(0.5))
    rows = [*np.flatnonzero(data.labels == 1)[:2], *np.flatnonzero(data.labels == 0)[:4]]
    return collate([data[0, row] for row in rows])


def test_the_base_asks_for_nothing_and_counts_nothing(train, batch):
    base = Objective(nn.Linear(2, 2))
    assert base.check(train) is None and base.check_dev(train) is None and base.finish(torch.zeros(0)) is None
    assert len(base.seen(batch)) == 0
    with pytest.raises(NotImplementedError):
        base(batch)


def test_the_loss_is_that_of_the_head_with_class_weights(batch):
    model = build("bands")
    got = Detection(model, SETTINGS)(batch)
    logits = model(batch.wave, batch.lengths)
    want = nn.functional.cross_entropy(logits, batch.labels, weight=torch.tensor([0.2, 0.8]))
    assert got.item() == pytest.approx(want.item(), abs=1e-6)
    other = nn.functional.cross_entropy(logits, batch.labels, weight=torch.tensor([0.8, 0.2]))
    assert abs(got.item() - other.item()) > 1e-3


def test_margins_are_told_how_far_training_is(batch):
    model = build("bands")
    Detection(model, SETTINGS)(batch, progress=0.25)
    assert model.head.progress == 0.25


def test_strips_are_drawn_by_seed_epoch_and_name(train, batch):
    def loss(seed=7, epoch=0, training=True):
        torch.manual_seed(3)
        settings = SimpleNamespace(class_weights=(1.0, 1.0), seed=seed)
        objective = Detection(build("bands"), settings, make_policy("specaugment", train))
        return objective.train(training)(batch, epoch).item()

    assert loss() == loss() and loss(epoch=1) != loss() and loss(seed=8) != loss()
    assert loss(training=False) == loss(epoch=1, training=False)
    plain = Detection(small(), SETTINGS, Policy())
    assert plain.masks is None and plain._cover(batch.utts, 0) is None


def test_what_the_loss_saw_is_counted_and_written_as_weighted_log_odds(batch):  # pitfalls 4 and 5
    model = build("bands")
    objective = Detection(model, SETTINGS)
    assert objective.seen(batch).tolist() == [4, 2]
    objective.finish(torch.tensor([600, 100]))
    assert float(model.log_prior_odds) == pytest.approx(prior_log_odds(0.8 * 100, 0.2 * 600), abs=1e-6)
    assert float(model.log_prior_odds) == pytest.approx(-0.4055, abs=1e-4)  # log of 80 to 120


class Gaussian(nn.Module):
    """The head of a detector, on numbers that need no front end."""

    score = Detector.score

    def __init__(self):
        super().__init__()
        self.head = LinearHead(1)
        self.register_buffer("log_prior_odds", torch.zeros(()))

    def forward(self, wave, lengths):
        return self.head.out(wave)

    def loss(self, wave, lengths, labels, weights, change):
        return nn.functional.cross_entropy(self(wave, lengths), labels, weights)


def test_weighted_training_gives_unbiased_llrs():  # pitfall 4
    """Numbers whose true LLR is the number itself, one in ten bona fide, with class weights that say otherwise."""
    rng = np.random.default_rng(0)
    labels = (rng.random(20000) < 0.1).astype(int)
    numbers = np.where(labels == 1, rng.normal(2, 2, 20000), rng.normal(-2, 2, 20000))
    wave = torch.tensor(numbers, dtype=torch.float32)[:, None]
    batch = SimpleNamespace(wave=wave, lengths=None, labels=torch.tensor(labels), utts=[])
    model = Gaussian()
    objective = Detection(model, SETTINGS)
    optimizer = torch.optim.LBFGS(objective.parameters(), max_iter=100)

    def closure():
        optimizer.zero_grad()
        loss = objective(batch)
        loss.backward()
        return loss

    optimizer.step(closure)
    objective.finish(objective.seen(batch))
    llr = model.score(model(wave, None)).detach()
    assert abs(float((llr - wave[:, 0]).mean())) < 0.1


def test_what_cannot_be_learned_or_chosen_from_is_refused(train):
    objective = Detection(build("bands"), SETTINGS)
    objective.check(train)
    objective.check_dev(train)
    with pytest.raises(ValueError, match="the training set has no bonafide recordings"):
        objective.check(train.subset(label="spoof"))
    with pytest.raises(ValueError, match="the dev set has no spoof recordings"):
        objective.check_dev(train.subset(label="bonafide"))
    strangers = Manifest(train.utterances.assign(label="", attack=""), root=train.root)
    first = train.utterances.utt[0]
    with pytest.raises(ValueError, match=f"{len(train)} training recordings have no label, such as .'{first}'"):
        check_classes(strangers, "training")


def test_dev_eer_is_the_eer_of_the_scores(few, monkeypatch):
    dev = few.subset(split="dev")
    model = build("bands")
    table = score(model, dev)
    assert dev_eer(model, dev, SETTINGS) == pytest.approx(eer(table.score, label_ids(table.label)), abs=0.02)
    asked = {}
    monkeypatch.setattr(objectives, "score", lambda *given, **options: asked.update(options) or table)
    assert dev_eer(model, dev, SETTINGS) == eer(table.score, label_ids(table.label))
    assert asked == {
        "batch_size": 3,
        "batch_seconds": 5.0,
        "workers": 0,
        "progress": False,
        "accelerator": None,
        "windows": None,
    }
