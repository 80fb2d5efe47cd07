"""Localizers learn frames on their own grid, are believed by dev, and are never told that a cut is a fake."""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from wedefense_nb.augmentation.policies import make_policy
from wedefense_nb.augmentation.transforms import Chain, changing_loader
from wedefense_nb.data.batches import AudioDataset, Batch, collate, epoch_batches
from wedefense_nb.data.crops import Crop, Item
from wedefense_nb.data.forge import VOCODERS
from wedefense_nb.data.manifest import Manifest
from wedefense_nb.localization import learning
from wedefense_nb.localization.frames import manifest_labels
from wedefense_nb.localization.learning import (
    VALIDATIONS,
    Localization,
    Splices,
    draw_cut,
    in_samples,
    makes_fakes,
    recording_scores,
)
from wedefense_nb.localization.localizers import AsDetector, localize
from wedefense_nb.localization.metrics import point_eer
from wedefense_nb.metrics import eer
from wedefense_nb.models.detector import build
from wedefense_nb.task import BONAFIDE, SPOOF, label_ids
from wedefense_nb.training.loop import FitConfig, fit
from wedefense_nb.training.scoring import score

NONE = np.zeros((0, 2))
SMALL = {
    "frame_linear": {"front_options": {"n_mels": 20}},
    "frame_res1d": {"front_options": {"n_mels": 20}},
    "frame_lcnn_lstm": {},
    "multi_gmlp": {"scales": [1, 4], "blocks": 1},
    "bam": {"embed_dim": 16, "width": 4},
    "bam_legacy": {"embed_dim": 80, "width": 4, "legacy": True},
    "tdl": {"width": 16},
    "cfprf": {"width": 8, "channels": [4, 8]},
    "sliding_window": {"detector": "bands", "hop": 0.2, "seconds": 0.4},
}


def small(name="frame_linear", **options):
    torch.manual_seed(1)
    return build(name.removesuffix("_legacy"), **SMALL[name] | options)


def sounds(*items):
    """A batch of noise: (seconds, label, fakes) of each."""
    rng = np.random.default_rng(5)
    made = []
    for i, (seconds, label, fakes) in enumerate(items):
        wave = rng.normal(size=round(seconds * 16000)).astype(np.float32) / 9
        made.append(Item(f"u{i}", wave, label, np.array(fakes, dtype=float).reshape(-1, 2)))
    return collate(made)


@pytest.fixture
def batch():
    return sounds((1.0, SPOOF, [[0.3, 0.7]]), (0.6, BONAFIDE, []), (0.8, SPOOF, []))


@pytest.fixture(scope="module")
def parts(samples):
    """A few recordings of train and of dev, all kinds among them."""
    chosen = []
    for split in ("train", "dev"):
        some = samples.subset(split=split)
        u = some.utterances
        utts = u.groupby(["kind", "label"]).head(4).utt
        chosen.append(some.subset(utt=utts))
    return chosen


# Labels and loss


@pytest.mark.parametrize("name", SMALL)
def test_labels_stand_on_the_models_own_grid(name, batch):  # pitfall 16
    model = small(name)
    labels = Localization(model, FitConfig()).labels(batch)
    logits, frames = model.eval()(batch.wave, batch.lengths)
    assert labels.shape == (3, int(frames.max()))
    for row in range(3):
        for i in range(labels.shape[1]):
            start, end = i * model.hop, min((i + 1) * model.hop, int(batch.lengths[row]) / 16000)
            wanted = -1
            if i < frames[row] and end - start > 1e-9:
                fake = (start < 0.7 - 1e-9 and end > 0.3 + 1e-9) if row == 0 else row == 2
                wanted = SPOOF if fake else BONAFIDE
            assert labels[row, i] == wanted, (row, i)


@pytest.mark.parametrize("name", SMALL)
def test_every_localizer_learns_by_its_own_loss(name, batch):
    model = small(name).train()
    objective = Localization(model, FitConfig(class_weights=(1.0, 3.0)))
    torch.manual_seed(0)
    loss = objective(batch)
    torch.manual_seed(0)
    again = model.loss(batch.wave, batch.lengths, objective.labels(batch), torch.tensor([1.0, 3.0]))
    assert torch.equal(loss, again)
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_padding_is_never_learned(name, batch):  # pitfall 17
    objective = Localization(small(name), FitConfig()).eval()
    wider = replace(batch, wave=torch.nn.functional.pad(batch.wave, (0, 5000)))
    assert torch.equal(objective.labels(wider), objective.labels(batch))
    assert torch.equal(objective.seen(wider), objective.seen(batch))
    assert torch.allclose(objective(wider), objective(batch), rtol=1e-5)


def test_the_rule_is_that_of_the_labels(batch):
    one = sounds((0.16, SPOOF, [[0.0, 0.03]]))
    model = small("tdl")
    assert Localization(model, FitConfig(), rule="any").labels(one).tolist() == [[0, 1]]
    assert Localization(model, FitConfig(), rule="majority").labels(one).tolist() == [[1, 1]]
    with pytest.raises(ValueError, match="unknown label rule 'al'"):
        Localization(model, FitConfig(), rule="al")


def test_stored_features_have_lengths_in_frames():
    features = Batch(
        torch.zeros(2, 5, 8),
        torch.tensor([5, 2]),
        torch.tensor([0, 0]),
        ["a", "b"],
        [np.array([[0.02, 0.06]]), NONE],
    )
    model = build("frame_linear", upstream={"stored": {"dim": 8, "states": 0}})
    labels = Localization(model, FitConfig()).labels(features)
    assert labels.tolist() == [[1, 0, 0, 1, 1], [0, 0, -1, -1, -1]]
    late = Batch(features.wave, features.lengths, features.labels, features.utts, [np.array([[0.5, 0.6]]), NONE])
    assert in_samples(late, 320).fakes[0].tolist() == [[0.1, 0.1]]
    assert Localization(model, FitConfig()).labels(late)[0].tolist() == [1] * 5
    waves = sounds((0.1, SPOOF, []))
    assert in_samples(waves, 320) is waves


def test_recordings_join_with_their_share(batch):
    model = small(utterance="learned").eval()
    alone = Localization(model, FitConfig())(batch)
    jointly = Localization(model, FitConfig(), share=0.25)(batch)
    scores = model.utterance_score(*model(batch.wave, batch.lengths))
    whole = torch.nn.functional.softplus(torch.where(batch.labels == BONAFIDE, -scores, scores)).mean()
    assert torch.isclose(jointly, 0.75 * alone + 0.25 * whole)
    jointly.backward()
    assert model.utterance.log_temperature.grad != 0
    for odd in (-0.1, 1.0):
        with pytest.raises(ValueError, match="share is"):
            Localization(model, FitConfig(), share=odd)


def test_strips_are_covered_in_training_only(batch, parts):
    policy = make_policy("specaugment", parts[0], seed=0)
    policy.masks.p = 1.0
    objective = Localization(small(), FitConfig(), policy).train()
    losses = [objective(batch, epoch).item() for epoch in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]
    objective.eval()
    assert objective(batch, 0) == objective(batch, 1)


# Prior and balance


def test_the_prior_is_that_of_frames_as_the_loss_saw_them(batch):
    objective = Localization(small(), FitConfig(class_weights=(1.0, 2.0)))
    seen = objective.seen(batch)
    labels = objective.labels(batch)
    assert seen.tolist() == [int((labels == 0).sum()), int((labels == 1).sum())] and labels.min() == -1
    objective.finish(torch.tensor([300, 100]))
    assert float(objective.model.log_prior_odds) == pytest.approx(math.log(200 / 300))


def test_balance_weighs_frames_not_recordings(parts):
    train = parts[0]
    objective = Localization(small(), FitConfig(class_weights=(1.0, 3.0)), balance=True)
    objective.check(train)
    labels = np.concatenate(list(manifest_labels(train, 0.01).values()))
    n = np.bincount(labels)
    assert objective.weights.tolist() == pytest.approx([len(labels) / 2 / n[0], 3 * len(labels) / 2 / n[1]])
    with pytest.raises(ValueError, match="balance needs frames of both classes"):
        objective._balance(np.zeros(4, dtype=int))


# Refusals


def test_what_cannot_be_learned_from_is_refused(parts):
    train = parts[0]
    objective = Localization(small(), FitConfig())
    objective.check(train)
    with pytest.raises(ValueError, match="no partial fakes.*splices"):
        objective.check(train.subset(kind="full"))
    unlabelled = Manifest(train.utterances.assign(label="", attack=""), root=train.root)
    with pytest.raises(ValueError, match="have no label"):
        objective.check(unlabelled)
    with pytest.raises(ValueError, match="no bonafide recordings"):
        objective.check(train.subset(label="spoof"))
    with pytest.raises(ValueError, match="no bonafide recordings"):
        objective.check_dev(parts[1].subset(label="spoof"))
    kept = Localization(small(), FitConfig(crop_label="keep"))
    with pytest.raises(ValueError, match="crop_label='keep' is not for localizers"):
        kept.check(train)
    Localization(small(), FitConfig(crop=None, crop_label="keep")).check(train)  # nothing is cropped


def test_real_speech_is_enough_where_fakes_are_made(parts):
    real = parts[0].subset(label="bonafide")
    policy = make_policy("splices+specaugment", real)
    assert (
        makes_fakes(policy.change) and not makes_fakes(make_policy("speed", real).change) and not makes_fakes(None)
    )
    assert makes_fakes(Chain(Chain(Splices())))
    Localization(small(), FitConfig(), policy).check(real)
    with pytest.raises(ValueError):
        Localization(small(), FitConfig(), make_policy("speed", real)).check(real)


# What is believed


def test_validations_are_those_of_the_whole_dev_set(parts, monkeypatch):
    dev = parts[1]
    model = small(utterance="soft_min").train()
    config = FitConfig(batch_size=3)
    found = {name: VALIDATIONS[name](model, dev, config) for name in VALIDATIONS}
    assert model.training
    scores = localize(model, dev, progress=False)
    assert found["frame_eer"] == point_eer(scores, dev, model.hop)
    truth = manifest_labels(dev, model.hop)
    flat = np.concatenate([scores[utt] for utt in truth])
    labels = np.concatenate(list(truth.values()))
    best = 0
    for value in np.unique(flat):
        called = flat <= value
        best = max(best, 2 * (called & (labels == 0)).sum() / (called.sum() + (labels == 0).sum()))
    assert found["frame_f1"] == pytest.approx(1 - best, abs=1e-9)
    table = score(AsDetector(model), dev, progress=False)
    assert found["recording_eer"] == pytest.approx(eer(table.score, label_ids(table.label)), abs=0.02)
    assert found["both_eer"] == pytest.approx((found["frame_eer"] + found["recording_eer"]) / 2)


def test_recordings_are_scored_by_the_models_rule():
    rows = {"a": np.array([1.0, -2.0], np.float32), "b": np.array([3.0], np.float32)}
    assert recording_scores(small(utterance="min"), rows) == {"a": -2.0, "b": 3.0}
    assert recording_scores(small(utterance="mean"), rows) == {"a": -0.5, "b": 3.0}


def test_a_training_is_chosen_by_dev_and_repeats_itself(parts, tmp_path):
    config = FitConfig(epochs=2, batch_size=4, crop=0.5, lr=0.01, average=1, augment="splices")
    learner = partial(Localization, share=0.3, balance=True)
    model = small("tdl", utterance="learned")
    first = fit(model, *parts, config, learner, learning.dev_both_eer, tmp_path / "a")
    assert list(first.history.columns) == ["epoch", "train_loss", "dev_both_eer", "lr"]
    assert first.dev_error == first.history.dev_both_eer.min() and float(model.log_prior_odds) != 0
    again = fit(small("tdl", utterance="learned"), *parts, config, learner, learning.dev_both_eer, tmp_path / "b")
    pd.testing.assert_frame_equal(first.history, again.history)
    with pytest.raises(ValueError, match="objective share: 0.3 before, 0.0 now"):
        fit(small("tdl", utterance="learned"), *parts, config, Localization, learning.dev_both_eer, tmp_path / "a")


# Fakes on the fly


def spliced(batch, epoch=0, **options):
    return Splices(**{"p": 1.0, "vocoders": ("lpc",)} | options)(batch, epoch)


def test_splices_are_a_function_of_seed_epoch_and_utt(parts):
    real = parts[0].subset(label="bonafide")
    data = AudioDataset(real, Crop(0.5))
    change = make_policy("splices", real, seed=3).change

    def waves(size, epoch, workers=0):
        plan = [[(epoch, i) for _, i in keys] for keys in epoch_batches(real, size)]
        found = {}
        for batch in changing_loader(data, plan, workers, change, epoch):
            for i, utt in enumerate(batch.utts):
                found[utt] = (
                    int(batch.labels[i]),
                    batch.fakes[i].tolist(),
                    batch.wave[i, : batch.lengths[i]].tolist(),
                )
        return found

    assert waves(2, 5) == waves(7, 5) == waves(3, 5, workers=1)
    assert waves(2, 5) != waves(2, 6)


def test_samples_outside_the_stretches_are_untouched_and_labels_follow():
    fakes = controls = 0
    for epoch in range(40):
        batch = sounds((0.7, BONAFIDE, []), (0.5, SPOOF, [[0.1, 0.2]]))
        changed = spliced(batch, epoch)
        assert torch.equal(changed.wave[1], batch.wave[1]) and changed.fakes[1].tolist() == [[0.1, 0.2]]
        assert torch.equal(changed.lengths, batch.lengths)
        same = (changed.wave[0] == batch.wave[0]).numpy()
        assert not same.all()
        if changed.labels[0] == SPOOF:
            fakes += 1
            inside = np.zeros(len(same), dtype=bool)
            for start, end in np.round(changed.fakes[0] * 16000).astype(int):
                inside[start:end] = True
            assert same[~inside].all() and same[inside].mean() < 0.05
        else:
            controls += 1
            assert len(changed.fakes[0]) == 0
    assert fakes + controls == 40 and 10 <= fakes <= 30  # as many as fair coins give


def test_a_cut_lies_inside_and_apart():
    for seed in range(300):
        total = 3000 + 37 * seed
        cut = draw_cut(total, np.random.default_rng(seed), most=3)
        flat = [x for span in cut.spans for x in span]
        assert flat == sorted(flat) and 0 <= flat[0] and flat[-1] <= total and 1 <= len(cut.spans) <= 3
        for start, end in cut.spans:
            assert end - start >= 0.08 * 16000 or cut.spans == [(total // 3, 2 * total // 3)]
        assert cut.fade in (0, 80, 160) and 0 <= cut.shift <= max(total, 320)
    with pytest.raises(ValueError, match="a vocoder at least"):
        Splices(vocoders=())
    with pytest.raises(ValueError, match="unknown vocoder"):
        for epoch in range(20):
            spliced(sounds((0.5, BONAFIDE, [])), epoch, vocoders=("lcp",))


def probe(positive, negative):
    """Cross-validated AUC of a linear probe, in distance from chance."""
    x = np.concatenate([positive, negative])
    y = np.repeat([1, 0], [len(positive), len(negative)])
    scores = cross_val_predict(LogisticRegression(), x, y, cv=10, method="predict_proba")[:, 1]
    return 0.5 + abs(0.5 - (1 - eer(scores, y)))


def artefacts(wave, at):
    """What a cut leaves behind in the waveform: steps, bends and a change of level."""
    near = wave[at - 160 : at + 160]
    steps = np.abs(np.diff(near)) + 1e-5
    bends = np.abs(np.diff(near, n=2)) + 1e-5
    before, behind = np.square(near[:160]).mean() + 1e-8, np.square(near[160:]).mean() + 1e-8
    return [
        np.log(steps[159] / steps.mean()),
        np.log(bends[158:160].max() / bends.mean()),
        np.log(bends.max() / bends.mean()),
        np.log(before / behind),
        abs(np.log(before / behind)),
    ]


def test_a_splice_alone_gives_nothing_away(samples, monkeypatch):
    """With a vocoder that changes nothing, all that is left of a fake is its cuts: those of controls."""
    real = samples.subset(split="train", label="bonafide", kind="full")
    drawn = []
    monkeypatch.setattr(learning, "draw_cut", lambda *a, **k: drawn.append(draw_cut(*a, **k)) or drawn[-1])
    monkeypatch.setitem(VOCODERS._found, "nothing", lambda wave, rng: wave)
    found = {SPOOF: [], BONAFIDE: [], "untouched": []}
    data = AudioDataset(real)
    change = Splices(1.0, ("nothing",))
    for i in range(len(real)):
        batch = collate([data[0, i]])
        for epoch in range(4):
            changed = change(batch, epoch)
            wave = changed.wave[0].numpy()
            for at in (x for span in drawn[-1].spans for x in span):
                if 160 <= at < len(wave) - 160:
                    found[int(changed.labels[0])].append(artefacts(wave, at))
                    found["untouched"].append(artefacts(batch.wave[0].numpy(), at))
    assert min(len(found[SPOOF]), len(found[BONAFIDE])) > 300
    assert probe(found[SPOOF], found[BONAFIDE]) < 0.56
    assert probe(found[SPOOF], found["untouched"]) > 0.62  # without controls, cuts would give it away


def test_objectives_need_little_of_the_settings():
    settings = SimpleNamespace(class_weights=(1.0, 1.0), seed=0, crop=None, crop_label="segments")
    assert Localization(small(), settings).options == {"rule": "any", "balance": False, "share": 0.0}
