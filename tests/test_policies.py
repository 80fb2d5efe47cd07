"""Augmentation in training: named, checked before the first step, for training recordings only."""

import dataclasses

import pytest
import torch

from wedefense_nb.training import loop as training
from wedefense_nb.augmentation.policies import make_policy, noise_sources, policy_names
from wedefense_nb.augmentation.transforms import Transform, changing_loader
from wedefense_nb.data.batches import AudioDataset, epoch_batches
from wedefense_nb.features.stored import extract
from wedefense_nb.features.upstreams import Upstream, tiny_checkpoint
from wedefense_nb.models.detector import build
from wedefense_nb.training.loop import FitConfig, fit

from .conftest import power_cut

CONFIG = FitConfig(epochs=2, batch_size=4, crop=0.4, lr=2e-3, average=1, seed=3, augment="rawboost+musan_rir+specaugment")


@pytest.fixture(scope="module")
def splits(few):
    return few.subset(split="train"), few.subset(split="dev")


def small():
    torch.manual_seed(1)
    return build("bands")


def weights(model):
    return torch.cat([v.flatten().double() for v in model.state_dict().values()])


@pytest.mark.parametrize("name", [*policy_names(), "rawboost4", "speed+codec", "none"])
def test_every_policy_changes_training_batches(samples, name):
    train = samples.subset(split="train")
    policy = make_policy(name, train, seed=1)
    assert (policy.masks is not None) == ("specaugment" in name) and (policy.change is None) == (name in ("none", "specaugment"))
    if policy.change:
        data, plan = AudioDataset(train, crop=0.5, seed=1), epoch_batches(train, 8, seed=1)[:2]
        plain, changed = (list(changing_loader(data, plan, 0, change, 1)) for change in (None, policy.change))
        again = list(changing_loader(data, plan, 1, make_policy(name, train, seed=1).change, 1))
        for a, b, c in zip(plain, changed, again, strict=True):
            assert a.utts == b.utts and torch.equal(a.labels, b.labels) and torch.isfinite(b.wave).all()
            assert not (a.wave.shape == b.wave.shape and torch.equal(a.wave, b.wave))
            assert torch.allclose(b.wave, c.wave, atol=1e-5), "the same in a worker"


def test_mistakes_are_found_before_training(samples, splits, tmp_path):
    train = samples.subset(split="train")
    for text in ("rawbost", "rawboost9", "none+speed", "", "specaugment2"):
        with pytest.raises(ValueError, match="unknown augmentation"):
            make_policy(text, train)
    with pytest.raises(FileNotFoundError, match="set noise to one"):
        make_policy("reverb", train, noise=str(tmp_path / "nowhere.csv"))
    with pytest.raises(ValueError, match="unknown augmentation"):
        fit(small(), *splits, dataclasses.replace(CONFIG, augment="loud"), tmp_path / "run")


def test_babble_is_made_of_training_voices_only(samples):
    train = samples.subset(split="train")
    speech = noise_sources(train).query("kind == 'speech'")
    assert len(speech) and set(speech.id) <= set(train.utterances.utt[train.utterances.label == "bonafide"])


def test_stored_features_take_strips_only(samples, tmp_path):
    few = samples.subset(utt=samples.utterances.utt[:4].tolist())
    stored = extract(Upstream(tiny_checkpoint(tmp_path / "tiny.pt")), few, tmp_path / "features")
    assert make_policy("specaugment", stored).masks
    with pytest.raises(ValueError, match="stored features"):
        make_policy("rawboost+specaugment", stored)


def test_dev_is_never_augmented(splits, tmp_path, monkeypatch):  # pitfall 50
    seen, call = set(), Transform.__call__

    def watch(self, batch, epoch=0):
        seen.update(batch.utts)
        return call(self, batch, epoch)

    monkeypatch.setattr(Transform, "__call__", watch)
    result = fit(small(), *splits, CONFIG, tmp_path)
    assert seen == set(splits[0].utterances.utt) and not seen & set(splits[1].utterances.utt)
    first, second = (training.score(result.model.train(), splits[1]).score for _ in range(2))
    assert first.equals(second), "no strips over features while scoring"


def test_augmented_runs_differ_repeat_and_resume(splits, tmp_path):
    plain = fit(small(), *splits, dataclasses.replace(CONFIG, augment="none"), tmp_path / "plain")
    runs = [fit(small(), *splits, CONFIG, tmp_path / name) for name in ("one", "two")]
    assert torch.equal(weights(runs[0].model), weights(runs[1].model))
    assert not torch.equal(weights(runs[0].model), weights(plain.model))
    with power_cut(training, "_step", 3):
        fit(small(), *splits, CONFIG, tmp_path / "cut")
    assert torch.equal(weights(fit(small(), *splits, CONFIG, tmp_path / "cut").model), weights(runs[0].model))
    with pytest.raises(ValueError, match="augment"):
        fit(small(), *splits, dataclasses.replace(CONFIG, augment="speed"), tmp_path / "cut")


def test_strips_cover_features_in_training_only(splits):
    model = small()
    model.masks = make_policy("specaugment", splits[0]).masks
    wave, lengths, draws = 0.1 * torch.randn(2, 8000), torch.tensor([8000, 6000]), torch.full((2, 32), 0.5)
    with torch.no_grad():
        plain = model.eval()(wave, lengths)
        assert torch.equal(model(wave, lengths, draws=draws), plain)
        assert not torch.equal(model.train()(wave, lengths, draws=draws), model(wave, lengths))


def test_stored_features_train_like_audio(samples, splits, tmp_path):
    """The recipe of a frozen front end: extract once, then fit on the files."""
    from wedefense_nb.features.stored import Stored
    from wedefense_nb.models.detector import Detector
    from wedefense_nb.models.layers import Identity, StatsPool

    front = Upstream(tiny_checkpoint(tmp_path / "tiny.pt"))
    train, dev = (extract(front, split, tmp_path / name) for name, split in zip(("train", "dev"), splits, strict=True))
    torch.manual_seed(0)
    stored = Detector(Stored.of(train.root), Identity(32), StatsPool(), 8)
    config = dataclasses.replace(CONFIG, augment="specaugment", crop=None)
    result = fit(stored, train, dev, config, tmp_path / "run")
    assert len(result.history) == 2 and 0 <= result.dev_eer <= 1
    live = Detector(front, Identity(32), StatsPool(), 8)
    live.load_state_dict(result.model.state_dict() | {k: v for k, v in live.state_dict().items() if k.startswith("front.")})
    a, b = training.score(result.model, dev).score, training.score(live, splits[1]).score
    assert (a - b).abs().max() < 0.01
