"""What was never heard is left out, mixtures and adversaries do what they say, and off they are nothing."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from tests.conftest import power_cut
from tests.training.runs import QUICK, Stop, small, weights
from wedefense_nb.data.batches import AudioDataset, collate
from wedefense_nb.data.crops import Crop
from wedefense_nb.metrics import eer
from wedefense_nb.models.detector import build, with_head
from wedefense_nb.models.losses import HEADS
from wedefense_nb.task import label_ids
from wedefense_nb.training import loop
from wedefense_nb.training.generality import (
    Adversarial,
    Fold,
    Mix,
    Mixup,
    attack_folds,
    blend,
    draw_mix,
    held_out_difference,
    held_out_errors,
    held_out_scores,
    mixed_loss,
    reverse_gradient,
    rising,
)
from wedefense_nb.training.loop import fit
from wedefense_nb.training.objectives import Detection, make_objective

SETTINGS = SimpleNamespace(class_weights=(0.5, 2.0), seed=7)


@pytest.fixture(scope="module")
def batch(splits):
    """Three of each class."""
    data = AudioDataset(splits[0], Crop(0.5))
    rows = [*np.flatnonzero(data.labels == 1)[:3], *np.flatnonzero(data.labels == 0)[:3]]
    return collate([data[0, row] for row in rows])


# What was never heard


def test_a_fold_hears_nothing_of_its_attack(splits):
    train, dev = splits
    folds = attack_folds(train, dev)
    assert [fold.held for fold in folds] == sorted(set(train.utterances.attack) - {""})
    for fold in folds:
        for heard in (fold.train, fold.dev):
            assert fold.held not in set(heard.utterances.attack)
            assert {"bonafide", "spoof"} == set(heard.utterances.label)
        fakes = fold.test.utterances[fold.test.utterances.label == "spoof"]
        assert set(fakes.attack) == {fold.held} and set(fakes.split) == {"dev"}
        real = fold.test.utterances[fold.test.utterances.label == "bonafide"]
        assert sorted(real.utt) == sorted(dev.subset(label="bonafide").utterances.utt)
        lost = len(train) - len(fold.train)
        assert lost == (train.utterances.attack == fold.held).sum()


def test_families_go_together_and_an_attack_that_dev_lacks_comes_from_train(splits):
    train, dev = splits
    less = dev.subset(attack=[a for a in set(dev.utterances.attack) if a != "lpc"])
    fold = attack_folds(train, less, families={"lpc": ["lpc"]})[0]
    fakes = fold.test.utterances[fold.test.utterances.label == "spoof"]
    assert set(fakes.utt) == set(train.subset(attack="lpc").utterances.utt)
    assert not set(fakes.utt) & set(fold.train.utterances.utt)
    both = attack_folds(train, dev, families={"vocoders": ["lpc", "world"]})[0]
    assert not {"lpc", "world"} & (set(both.train.utterances.attack) | set(both.dev.utterances.attack))
    assert {"lpc", "world", ""} == set(both.test.utterances.attack)


def test_folds_that_cannot_be_are_refused(splits):
    train, dev = splits
    attacks = sorted(set(train.utterances.attack) - {""})
    with pytest.raises(ValueError, match="unknown column 'atack'"):
        attack_folds(train, dev, by="atack")
    with pytest.raises(ValueError, match="no fakes of 'neural'"):
        attack_folds(train, dev, families={"neural": ["hifigan"]})
    with pytest.raises(ValueError, match="without 'all' the training set has no fakes"):
        attack_folds(train, dev, families={"all": attacks})
    with pytest.raises(ValueError, match="without 'most' the dev set has no fakes"):
        attack_folds(train, dev.subset(attack=["", "lpc"]), families={"most": ["lpc"]})


def table_of(rng, shift=0.0, n=12):
    """Scores of two folds that share their bona fide recordings."""
    tables = []
    for held in ("lpc", "world"):
        utts = [f"b{i}" for i in range(n)] + [f"{held}{i}" for i in range(n)]
        labels = ["bonafide"] * n + ["spoof"] * n
        score = rng.normal(size=2 * n) + (np.array(labels) == "bonafide") * (1 + shift)
        tables.append(pd.DataFrame({"held": held, "utt": utts, "score": score, "label": labels}))
    return pd.concat(tables, ignore_index=True)


def test_errors_are_those_of_each_attack_with_mean_and_worst():
    scores = table_of(np.random.default_rng(0))
    table = held_out_errors(scores)
    by_hand = {held: eer(group.score.to_numpy(), label_ids(group.label)) for held, group in scores.groupby("held")}
    assert table.eer["lpc"] == by_hand["lpc"] and table.eer["world"] == by_hand["world"]
    assert table.eer["mean"] == pytest.approx(np.mean(list(by_hand.values())))
    assert table.eer["worst"] == max(by_hand.values()) and table.index.tolist()[-2:] == ["mean", "worst"]
    assert table.spoof["lpc"] == 12 and table.bonafide["lpc"] == 12


def test_the_difference_is_paired_and_drawn_by_recording():
    rng = np.random.default_rng(3)
    first = table_of(rng)
    second = first.assign(score=first.score + rng.normal(size=len(first)))
    same = held_out_difference(first, first.sample(frac=1, random_state=1), n=50)
    assert same[:3] == (0.0, 0.0, 0.0)
    found = held_out_difference(first, second, n=60, seed=5)
    assert found.value == pytest.approx(held_out_errors(second).eer["mean"] - held_out_errors(first).eer["mean"])
    assert found.low <= found.value <= found.high
    names = np.unique(first.utt)
    draws = np.random.default_rng(5)
    values = []
    for _ in range(60):  # by copying recordings as often as they are drawn
        times = pd.Series(np.bincount(draws.integers(len(names), size=len(names)), minlength=len(names)), names)
        means = []
        for table in (first, second):
            again = table.loc[table.index.repeat(table.utt.map(times))]
            errors = [eer(g.score.to_numpy(), label_ids(g.label)) for _, g in again.groupby("held")]
            means.append(np.mean(errors))
        values.append(means[1] - means[0])
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))
    by_kind = {name: name[0] for name in names}  # three groups: most draws miss one
    with pytest.raises(ValueError, match="replicates lost a class"):
        held_out_difference(first, second, groups=by_kind, n=100)
    pairs = {name: name[-1] for name in names}
    assert held_out_difference(first, second, groups=pairs, n=100)[1:3] != found[1:3]
    with pytest.raises(ValueError, match="not scored on the same recordings"):
        held_out_difference(first, second.iloc[1:])


def test_an_experiment_must_score_its_test(splits):
    folds = attack_folds(*splits, families={"lpc": ["lpc"]})

    def experiment(fold: Fold):
        u = fold.test.utterances
        return pd.DataFrame({"utt": u.utt, "score": np.arange(len(u), dtype=float), "label": u.label})

    table = held_out_scores(folds, experiment)
    assert table.columns.tolist() == ["held", "utt", "score", "label"] and set(table.held) == {"lpc"}
    with pytest.raises(ValueError, match="fold 'lpc' are not those"):
        held_out_scores(folds, lambda fold: experiment(fold).iloc[1:])


# Mixtures


def test_draws_are_functions_of_seed_epoch_and_name():
    utts = [f"u{i}" for i in range(20)]
    labels = torch.tensor([0, 1] * 10)

    def numbers(**given):
        mix = draw_mix(utts, labels, 0.4, **given)
        return [*mix.partners.tolist(), *mix.shares.tolist()]

    assert numbers() == numbers() and numbers(seed=1) != numbers() and numbers(epoch=1) != numbers()
    mix = draw_mix(utts, labels, 0.4)
    assert (mix.partners != torch.arange(20)).all() and mix.shares.min() >= 0.5 and mix.shares.max() <= 1
    assert (labels[draw_mix(utts, labels, 0.4, "same").partners] == labels).all()
    assert (labels[draw_mix(utts, labels, 0.4, "other").partners] != labels).all()
    alone = draw_mix(utts, torch.zeros(20, dtype=torch.long), 0.4, "other")
    assert alone.partners.tolist() == list(range(20)) and (alone.shares == 1).all()
    changed = draw_mix(["other name", *utts[1:]], labels, 0.4)
    assert changed.shares[1:].tolist() == mix.shares[1:].tolist() and changed.shares[0] != mix.shares[0]


def test_shares_are_the_larger_part_of_a_beta_draw():
    utts = [f"u{i}" for i in range(2000)]
    shares = draw_mix(utts, torch.zeros(2000, dtype=torch.long), 1.0).shares.numpy()
    assert shares.mean() == pytest.approx(0.75, abs=0.01)  # beta(1, 1) is uniform


@pytest.mark.parametrize("axis", [1, 2])
def test_blends_by_a_loop(axis):
    rng = np.random.default_rng(axis)
    x = torch.from_numpy(rng.normal(size=(4, 5, 6))).float()
    lengths = torch.tensor([5, 3, 1, 4])
    mix = Mix(torch.tensor([1, 0, 3, 3]), torch.tensor([0.6, 0.9, 0.5, 1.0]))
    got = blend(x, lengths, mix, axis)
    want = x.clone()
    for b in range(4):
        for t in range(x.shape[axis]):
            if t < min(lengths[b], lengths[mix.partners[b]]):
                own = x[b].select(axis - 1, t)
                other = x[mix.partners[b]].select(axis - 1, t)
                want[b].select(axis - 1, t).copy_(mix.shares[b] * own + (1 - mix.shares[b]) * other)
    assert torch.allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("name", sorted(HEADS))
@pytest.mark.parametrize("at", ["wave", "features", "embedding"])
def test_without_mixing_every_head_has_its_plain_loss(batch, name, at):
    model = with_head(build("bands"), name)
    plain = Detection(model, SETTINGS)(batch, progress=0.5)
    for objective in (Mixup(model, SETTINGS, alpha=0.0, at=at), Mixup(model, SETTINGS, at=at).eval()):
        model.train(True)
        objective.training = objective.alpha == 0
        assert torch.allclose(objective(batch, progress=0.5), plain, atol=1e-6)


def test_the_mixed_loss_weighs_both_labels(batch):
    head = build("bands", embed_dim=4).head
    torch.manual_seed(0)
    embedding = torch.randn(3, 4)
    labels = torch.tensor([0, 1, 1])
    mix = Mix(torch.tensor([1, 0, 0]), torch.tensor([0.75, 0.6, 1.0]))
    of_class = torch.tensor([0.5, 2.0])
    losses = {c: head.losses(embedding, torch.full((3,), c)) for c in (0, 1)}
    total, amount = 0.0, 0.0
    for i, (own, other) in enumerate([(0, 1), (1, 0), (1, 0)]):
        for c, share in ((own, mix.shares[i]), (other, 1 - mix.shares[i])):
            total += share * of_class[c] * losses[c][i]
            amount += share * of_class[c]
    assert mixed_loss(head, embedding, labels, mix, of_class).item() == pytest.approx((total / amount).item())


@pytest.mark.parametrize("at", ["wave", "features", "embedding"])
def test_what_is_mixed_is_what_is_asked_for(batch, at):
    model = build("bands")
    objective = Mixup(model, SETTINGS, at=at, alpha=1.0)
    mix = objective.draw(batch, epoch=3)
    got = objective.embedded(batch, 3, mix)
    if at == "wave":
        want = model.embed(blend(batch.wave, batch.lengths, mix), batch.lengths)
    elif at == "features":
        want = model.embed(batch.wave, batch.lengths, lambda feats, frames: blend(feats, frames, mix))
    else:
        plain = model.embed(batch.wave, batch.lengths)
        want = mix.shares[:, None] * plain + (1 - mix.shares[:, None]) * plain[mix.partners]
    assert torch.allclose(got, want, atol=1e-5)
    assert (mix.shares < 1).any() and not torch.allclose(got, model.embed(batch.wave, batch.lengths), atol=1e-3)


@pytest.mark.parametrize(
    "options, message",
    [({"alpha": -1.0}, "alpha"), ({"partners": "all"}, "unknown partners"), ({"at": "logits"}, "place to mix")],
)
def test_odd_mixtures_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Mixup(build("bands"), SETTINGS, **options)


# The adversary


def test_reversal_is_nothing_forward_and_turns_the_gradient():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    y = reverse_gradient(x, 0.25)
    assert torch.equal(y, x)
    (y * torch.tensor([3.0, 4.0])).sum().backward()
    assert x.grad.tolist() == [-0.75, -1.0]
    assert rising(0.0) == 0.0 and 0.99 < rising(1.0) < 1.0


def test_the_detector_gets_the_reversed_gradient_and_the_guesser_its_own(batch, splits):
    def gradients(weight, progress=1.0):
        torch.manual_seed(0)
        objective = Adversarial(build("bands"), SETTINGS, weight=weight)
        objective.check(splits[0])
        objective(batch, progress=progress).backward()
        return objective.model.embedding.weight.grad.clone(), objective.guesser[0].weight.grad.clone(), objective

    plain, guesser, objective = gradients(0.0)
    torch.manual_seed(0)
    alone = build("bands")
    Detection(alone, SETTINGS)(batch).backward()
    assert torch.allclose(plain, alone.embedding.weight.grad, atol=1e-7)
    weighted, same, _ = gradients(0.5)
    assert torch.equal(same, guesser)
    objective.model.zero_grad()
    whole = objective.draw(batch, 0)
    embedding = objective.model.embed(batch.wave, batch.lengths)
    objective.guessing_loss(embedding, batch.utts, whole).backward()
    want = plain - 0.5 * rising(1.0) * objective.model.embedding.weight.grad
    assert torch.allclose(weighted, want, atol=1e-6)
    assert torch.equal(gradients(0.5, progress=0.0)[0], plain)


def test_only_who_has_something_to_guess_takes_part(batch, splits):
    objective = Adversarial(build("bands"), SETTINGS, of="attack")
    objective.check(splits[0])
    embedding = torch.randn(6, 32)
    mix = objective.draw(batch, 0)
    known = [i for i, utt in enumerate(batch.utts) if utt in objective.domain_of]
    assert known == [3, 4, 5]  # the fakes
    wanted = torch.tensor([objective.domain_of[batch.utts[i]] for i in known])
    plain = nn.functional.cross_entropy(objective.guesser(embedding[known]), wanted)
    assert objective.guessing_loss(embedding, batch.utts, mix).item() == pytest.approx(plain.item(), abs=1e-6)
    nobody = objective.guessing_loss(embedding, ["?"] * 6, mix)
    assert nobody.item() == 0 and nobody.requires_grad
    mixed = Mix(torch.tensor([1, 2, 0, 4, 5, 3]), torch.full((6,), 0.75))
    turned = torch.tensor([objective.domain_of[batch.utts[i]] for i in (4, 5, 3)])
    other = nn.functional.cross_entropy(objective.guesser(embedding[known]), turned)
    found = objective.guessing_loss(embedding, batch.utts, mixed).item()
    assert found == pytest.approx((0.75 * plain + 0.25 * other).item(), abs=1e-6)


def test_what_would_forget_the_class_is_refused(splits):
    train = splits[0]
    model = build("bands")
    nested = dataclasses.replace(train, utterances=train.utterances.assign(speaker=train.utterances.label))
    with pytest.raises(ValueError, match="so the class would go too"):
        Adversarial(model, SETTINGS).check(nested)
    with pytest.raises(ValueError, match="column language has 1 values"):
        Adversarial(model, SETTINGS, of="language").check(train.subset(language="en"))
    with pytest.raises(ValueError, match="unknown column 'who'"):
        Adversarial(model, SETTINGS, of="who").check(train)
    with pytest.raises(ValueError, match="unknown class"):
        Adversarial(model, SETTINGS, only="fake")
    with pytest.raises(ValueError, match="weight is -1"):
        Adversarial(model, SETTINGS, weight=-1)
    real = Adversarial(model, SETTINGS, only="bonafide")
    real.check(train)
    assert set(real.domain_of) == set(train.subset(label="bonafide").utterances.utt)


# In the loop


@pytest.mark.parametrize("name, change", [("adversarial", {"sam": 0.05, "ema": 0.9}), ("mixup", {"ema": 0.5})])
@pytest.mark.parametrize("after", [1, 7])
def test_an_interrupted_run_equals_an_uninterrupted_one(few, tmp_path, name, change, after):
    splits = (few.subset(split="train"), few.subset(split="dev"))
    config = dataclasses.replace(QUICK, epochs=2, balance_by="attack", **change)
    objective = make_objective(name, alpha=0.4)
    whole = fit(small(), *splits, config, objective, out=tmp_path / "whole")
    with power_cut(loop, "_step", after, Stop):
        fit(small(), *splits, config, objective, out=tmp_path / "cut")
    again = fit(build("lcnn_lstm", dropout=0.5), *splits, config, objective, out=tmp_path / "cut")
    assert torch.equal(weights(again.model), weights(whole.model)) and again.history.equals(whole.history)
    with pytest.raises(ValueError, match="objective alpha"):
        fit(small(), *splits, config, make_objective(name, alpha=0.3), out=tmp_path / "cut")


def test_switched_off_they_train_to_the_same_bits(few, tmp_path):
    splits = (few.subset(split="train"), few.subset(split="dev"))
    config = dataclasses.replace(QUICK, epochs=1)
    plain = fit(small(), *splits, config, out=tmp_path / "plain")
    off = fit(small(), *splits, config, make_objective("mixup", alpha=0.0), out=tmp_path / "off")
    assert torch.allclose(weights(plain.model), weights(off.model), atol=1e-6)
