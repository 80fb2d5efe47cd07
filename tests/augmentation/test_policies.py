"""Augmentation in training: named, checked before the first step, for training recordings only."""

import dataclasses

import pytest
import torch

from tests.conftest import power_cut
from wedefense_nb.augmentation.policies import POLICIES, make_policy, noise_sources
from wedefense_nb.augmentation.transforms import Transform, changing_loader
from wedefense_nb.data.batches import AudioDataset, epoch_batches, loader
from wedefense_nb.data.crops import Crop
from wedefense_nb.features.stored import extract
from wedefense_nb.features.upstreams import Upstream, tiny_checkpoint
from wedefense_nb.models.detector import build
from wedefense_nb.training import loop as training
from wedefense_nb.training.loop import FitConfig, fit
from wedefense_nb.training.objectives import Detection
from wedefense_nb.training.scoring import score

CONFIG = FitConfig(
    epochs=2, batch_size=4, crop=0.4, lr=2e-3, average=1, seed=3, augment="rawboost+musan_rir+specaugment"
)


@pytest.fixture(scope="module")
def splits(few):
    return few.subset(split="train"), few.subset(split="dev")


def small():
    torch.manual_seed(1)
    return build("bands")


def weights(model):
    return torch.cat([v.flatten().double() for v in model.state_dict().values()])


@pytest.mark.parametrize("name", [*POLICIES, "speed+codec", "none"])
def test_every_policy_changes_training_batches(samples, name):
    train = samples.subset(split="train")
    policy = make_policy(name, train, seed=1)
    assert (policy.masks is not None) == ("specaugment" in name)
    assert (policy.change is None) == (name in ("none", "specaugment"))
    if policy.change:
        data = AudioDataset(train, Crop(0.5, seed=1))
        plan = epoch_batches(train, 8, seed=1)[:2]
        plain = list(changing_loader(data, plan, 0, None, 1))
        changed = list(changing_loader(data, plan, 0, policy.change, 1))
        again = list(changing_loader(data, plan, 1, make_policy(name, train, seed=1).change, 1))
        for a, b, c in zip(plain, changed, again, strict=True):
            assert a.utts == b.utts[: len(a.utts)] and torch.isfinite(b.wave).all()
            assert torch.equal(a.labels, b.labels) != name.startswith(("cop", "splices")), "only these make fakes"
            assert not (a.wave.shape == b.wave.shape and torch.equal(a.wave, b.wave))
            assert torch.allclose(b.wave, c.wave, atol=1e-5), "the same in a worker"


def test_mistakes_are_found_before_training(samples, splits, tmp_path):
    train = samples.subset(split="train")
    for text in ("rawbost", "rawboost9", "none+speed", "", "specaugment2", "speed+none"):
        with pytest.raises(ValueError, match="unknown augmentation"):
            make_policy(text, train)
    with pytest.raises(FileNotFoundError, match="set noise to one"):
        make_policy("reverb", train, noise=str(tmp_path / "nowhere.csv"))
    with pytest.raises(ValueError, match="unknown augmentation"):
        fit(small(), *splits, dataclasses.replace(CONFIG, augment="loud"), out=tmp_path / "run")


def test_a_policy_is_what_its_name_says(samples):
    train = samples.subset(split="train")
    for algo in range(1, 9):
        (member,) = make_policy(f"rawboost{algo}", train).change.members
        assert (member.algo, member.p) == (algo, 0.6)
    assert make_policy("rawboost", train).change.members[0].algo == 5
    for name, p, lines in (("codec", 0.5, set()), ("lossy", 0.25, {"mulaw", "amr_nb"})):
        (member,) = make_policy(name, train).change.members
        assert member.p == p and set(member.choices) == {"mp3", "aac", "opus", "g722", "alaw"} | lines
    loss, call = make_policy("telephone", train).change.members[0].members
    assert (type(call).__name__, call.p, type(loss).__name__, loss.p) == ("Telephone", 1.0, "PacketLoss", 0.5)


def test_parts_keep_their_order_and_follow_the_seed(samples):
    train = samples.subset(split="train")
    chains = {seed: make_policy("speed + codec+band", train, seed=seed).change for seed in (1, 2)}
    assert [type(member).__name__ for member in chains[1].members] == ["Speed", "Codec", "OneOf"]
    assert chains[1].seed == 1 and {m.seed for m in chains[1].members}.isdisjoint(
        m.seed for m in chains[2].members
    )


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
    seen = set()
    call = Transform.__call__

    def watch(self, batch, epoch=0):
        seen.update(batch.utts)
        return call(self, batch, epoch)

    monkeypatch.setattr(Transform, "__call__", watch)
    result = fit(small(), *splits, CONFIG, out=tmp_path)
    assert seen == set(splits[0].utterances.utt) and not seen & set(splits[1].utterances.utt)
    first, second = (score(result.model.train(), splits[1]).score for _ in range(2))
    assert first.equals(second), "no strips over features while scoring"


def test_augmented_runs_differ_repeat_and_resume(splits, tmp_path):
    plain = fit(small(), *splits, dataclasses.replace(CONFIG, augment="none"), out=tmp_path / "plain")
    runs = [fit(small(), *splits, CONFIG, out=tmp_path / name) for name in ("one", "two")]
    assert torch.equal(weights(runs[0].model), weights(runs[1].model))
    assert not torch.equal(weights(runs[0].model), weights(plain.model))
    with power_cut(training, "_step", 3):
        fit(small(), *splits, CONFIG, out=tmp_path / "cut")
    assert torch.equal(weights(fit(small(), *splits, CONFIG, out=tmp_path / "cut").model), weights(runs[0].model))
    with pytest.raises(ValueError, match="augment"):
        fit(small(), *splits, dataclasses.replace(CONFIG, augment="speed"), out=tmp_path / "cut")


def test_strips_cover_features_in_training_only(splits):
    objective = Detection(build("bands"), CONFIG, make_policy("specaugment", splits[0]))
    batch = next(iter(loader(AudioDataset(splits[0], Crop(0.5)), epoch_batches(splits[0], 8)[:1])))
    with torch.no_grad():
        plain = objective.model.loss(batch.wave, batch.lengths, batch.labels)
        covered = [objective(batch, epoch).item() for epoch in (0, 0, 1)]
        assert covered[0] == covered[1] != covered[2] and plain.item() not in covered
        assert torch.equal(objective.eval()(batch, 0), plain)
