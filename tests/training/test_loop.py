"""The loop does what its settings say, keeps the right epochs, and repeats itself to the last bit."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT, power_cut
from tests.training.ranks import corpus_for_ranks
from tests.training.runs import QUICK, Scripted, Stop, small, weights
from wedefense_nb.augmentation.policies import POLICIES, Ingredient
from wedefense_nb.augmentation.transforms import Transform
from wedefense_nb.data.shards import write_shards
from wedefense_nb.features.stored import Stored, extract
from wedefense_nb.features.upstreams import Upstream, tiny_checkpoint
from wedefense_nb.metrics import eer
from wedefense_nb.models.detector import Detector, build
from wedefense_nb.models.layers import Identity, StatsPool
from wedefense_nb.task import label_ids, prior_log_odds
from wedefense_nb.training import loop
from wedefense_nb.training.loop import FitConfig, fit, lr_at
from wedefense_nb.training.objectives import Detection, Objective
from wedefense_nb.training.scoring import score
from wedefense_nb.training.selection import chosen_epochs


@pytest.fixture(scope="module")
def splits(few):
    return few.subset(split="train"), few.subset(split="dev")


@pytest.fixture(scope="module")
def whole(splits, tmp_path_factory):
    """A run that nobody interrupted."""
    return fit(small(), *splits, QUICK, out=tmp_path_factory.mktemp("whole"))


def steps_of(train, config) -> int:
    """Of an epoch, by the number of recordings."""
    return len(loop.epoch_batches(train, config.batch_size))


# Settings


@pytest.mark.parametrize(
    "change, message",
    [
        ({"crop_policy": "middle"}, "policy is one of random, start and one of tile, zero"),
        ({"crop_policy": "tile+zero"}, "one of"),
        ({"crop_label": "guess"}, "label of a crop is 'segments' or 'keep'"),
        ({"batch_seconds": 9.0}, "crop is 0.4: unset one"),
        ({"batch_seconds": 0.1, "crop": None}, "raise batch_seconds"),
        ({"crop": 0.0}, "positive length"),
        ({"epochs": 0}, "epochs is 0: it must be at least 1"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"lr": float("nan")}, "lr is nan: it must be positive"),
        ({"warmup": 1.5}, "warmup is 1.5: it is a share"),
        ({"class_weights": (0.0, 1.0)}, "both must be positive"),
        ({"patience": 0}, "at least 1"),
        ({"average_by": "luck"}, "'best' or 'last'"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(splits, tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as error:
        fit(build("bands"), *splits, dataclasses.replace(QUICK, **change), out=tmp_path)
    assert "\n" not in str(error.value)


def test_a_split_without_recordings_is_refused(splits, tmp_path):
    train, dev = splits
    with pytest.raises(ValueError, match="the dev split has no recordings"):
        fit(build("bands"), train, dev.subset(split="train"), QUICK, out=tmp_path)
    with pytest.raises(ValueError, match="the dev set has no bonafide recordings"):
        fit(build("bands"), train, dev.subset(label="spoof"), QUICK, out=tmp_path)
    assert not (tmp_path / "checkpoints").exists()


# The learning rate


@given(st.integers(2, 500), st.floats(0, 0.9), st.floats(0, 1))
def test_schedule_reaches_its_peak_and_its_end(total, warmup, final):  # pitfall 48
    config = FitConfig(lr=0.01, warmup=warmup, final_lr=final)
    rates = np.array([lr_at(step, total, config) for step in range(total + 1)])
    rise = max(1, round(warmup * total))
    straight = 0.01 * np.arange(1, rise + 1) / rise
    angle = np.pi * np.arange(total + 1 - rise) / max(1, total - rise)
    cosine = 0.01 * (final + (1 - final) * (1 + np.cos(angle)) / 2)
    assert np.allclose(rates, np.r_[straight, cosine], rtol=1e-9, atol=0)
    assert rates.max() == pytest.approx(0.01) and rates[-1] == pytest.approx(0.01 * final)


def test_the_optimizer_holds_the_rate_that_was_planned(whole, splits):
    steps = steps_of(splits[0], QUICK)
    want = [lr_at((epoch + 1) * steps - 1, 3 * steps, QUICK) for epoch in range(3)]
    assert np.allclose(whole.history.lr, want)


class Nothing(Objective):
    """A loss that is zero everywhere."""

    def forward(self, batch, epoch=0, progress=1.0):
        return 0 * sum(p.sum() for p in self.model.parameters())


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_where_there_is_nothing_to_learn_weights_shrink_by_rate_times_decay(splits, tmp_path, decay):
    """AdamW takes `lr * weight_decay` of each weight in each step, and here it has nothing else to do."""
    config = dataclasses.replace(QUICK, epochs=2, lr=0.1, weight_decay=decay, average=1)
    model = small()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    validate = Scripted(0.5, 0.4, 0.4)  # the second epoch is kept
    fit(model, *splits, config, lambda m, config, policy: Nothing(m), validate, tmp_path)
    steps = 2 * steps_of(splits[0], config)
    left = np.prod([1 - lr_at(step, steps, config) * decay for step in range(steps)])
    assert (left == 1) if decay == 0 else (0.2 < left < 0.9)
    for name, p in model.named_parameters():
        assert torch.allclose(p, before[name] * left, rtol=1e-4, atol=1e-7), name


class Fixed(Detection):
    """A loss whose gradient is the same in each step."""

    def forward(self, batch, epoch=0, progress=1.0):
        return self.model.head.out.weight.sum()


def test_each_step_has_a_gradient_of_its_own(splits, tmp_path, monkeypatch):
    seen = []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        seen.append(max(float(g.abs().max()) for g in gradients))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    config = dataclasses.replace(QUICK, epochs=1, clip=1e9)
    fit(small(), *splits, config, Fixed, out=tmp_path)
    assert seen == pytest.approx([1.0] * steps_of(splits[0], QUICK))


def test_gradients_are_clipped(splits, tmp_path, monkeypatch):  # pitfall 56
    norms = []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        gradients = [p.grad.norm() for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack(gradients).norm()))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    fit(small(), *splits, dataclasses.replace(QUICK, epochs=1, clip=1e-3), out=tmp_path)
    assert len(norms) == steps_of(splits[0], QUICK)
    assert max(norms) <= 1.01e-3


# What an objective and an augmentation are told


class Told(Detection):
    """Notes what the loop says in each step."""

    def __init__(self, model, config, policy):
        super().__init__(model, config, policy)
        self.said = []

    def forward(self, batch, epoch=0, progress=1.0):
        if self.training:
            self.said.append((epoch, progress))
        return super().forward(batch, epoch, progress)


def test_an_objective_is_told_epoch_and_progress(splits, tmp_path):
    made = []

    def objective(*given):
        made.append(Told(*given))
        return made[0]

    fit(build("bands"), *splits, QUICK, objective, out=tmp_path)
    steps = steps_of(splits[0], QUICK)
    epochs, progress = zip(*made[0].said, strict=True)
    assert list(epochs) == [0] * steps + [1] * steps + [2] * steps
    assert np.allclose(progress, np.arange(3 * steps) / (3 * steps))


class Heard(Transform):
    """Changes nothing, and notes the epochs."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def apply(self, batch, rngs, epoch=0):
        self.epochs.append(epoch)
        return batch


def test_an_augmentation_is_told_the_epoch(splits, tmp_path, lent):
    heard = Heard()
    lent(POLICIES).add("heard", Ingredient("notes epochs", lambda sources: heard))
    config = dataclasses.replace(QUICK, augment="heard")
    with power_cut(loop, "_step", 8, Stop):
        fit(build("bands"), *splits, config, out=tmp_path)
    fit(build("bands"), *splits, config, out=tmp_path)
    assert steps_of(splits[0], QUICK) == 6
    before = [0] * 6 + [1] * 3  # the third batch of the second epoch was loaded when the power went
    after = [1] * 4 + [2] * 6
    assert heard.epochs == before + after


# Choosing and averaging


def fit_scripted(splits, folder, validate, **change):
    config = dataclasses.replace(QUICK, epochs=4, balance=False, **change)
    return fit(small(), *splits, config, validate=validate, out=folder)


def same_weights(model, state) -> bool:
    """All but the prior, which is written when the training is over."""
    own = model.state_dict()
    return all(torch.equal(own[name], value) for name, value in state.items() if name != "log_prior_odds")


def mean_of(states) -> dict:
    """Means of weights; counters are those of the last."""
    mean = {}
    for name, last in states[-1].items():
        mean[name] = last
        if last.is_floating_point():
            mean[name] = (sum(state[name].double() for state in states) / len(states)).to(last.dtype)
    return mean


def test_the_average_is_of_the_epochs_with_the_lowest_errors(splits, tmp_path):
    validate = Scripted(0.4, 0.2, 0.3, 0.1, 0.1)  # the last one is asked for the average: as good as the best
    result = fit_scripted(splits, tmp_path, validate)
    assert result.epochs == [1, 3] and result.dev_error == 0.1
    assert result.history.scripted.tolist() == [0.4, 0.2, 0.3, 0.1]
    assert same_weights(result.model, mean_of([validate.asked[1], validate.asked[3]]))
    assert not same_weights(result.model, validate.asked[3])
    assert same_weights(result.model, validate.asked[4])  # what was measured is what is returned


def test_the_best_epoch_is_kept_where_the_average_is_worse(splits, tmp_path):
    validate = Scripted(0.4, 0.1, 0.3, 0.2, 0.15)
    result = fit_scripted(splits, tmp_path, validate)
    assert result.epochs == [1] and result.dev_error == 0.1
    assert same_weights(result.model, validate.asked[1])


def test_the_last_epochs_are_averaged_if_that_is_asked_for(splits, tmp_path):
    validate = Scripted(0.1, 0.2, 0.3, 0.4, 0.05)
    result = fit_scripted(splits, tmp_path, validate, average_by="last")
    assert result.epochs == [2, 3] and result.dev_error == 0.05
    assert same_weights(result.model, mean_of(validate.asked[2:4]))
    kept = {path.name for path in (tmp_path / "checkpoints").glob("epoch_*")}
    assert kept == {"epoch_000.safetensors", "epoch_002.safetensors", "epoch_003.safetensors"}  # and the best


def test_a_run_without_progress_stops(splits, tmp_path):
    result = fit_scripted(splits, tmp_path, Scripted(0.3, 0.2, 0.2, 0.2), patience=1)
    assert len(result.history) == 3 and result.epochs == [1, 2]


def test_odd_files_in_the_folder_are_left_alone(splits, tmp_path):  # pitfall 54
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    odd = ("best_model.pt", "epoch_x.safetensors", "epoch_1.safetensors", "avg.pt")
    for name in odd:
        (folder / name).write_bytes(b"not a checkpoint")
    result = fit(small(), *splits, dataclasses.replace(QUICK, epochs=1), out=tmp_path)
    assert result.epochs == [0]
    assert all((folder / name).read_bytes() == b"not a checkpoint" for name in odd)


def test_only_the_checkpoints_that_count_are_kept(whole):
    kept = {path.name for path in (whole.out / "checkpoints").glob("epoch_*")}
    best = chosen_epochs(whole.history.dev_eer.tolist(), 2)
    assert kept == {f"epoch_{epoch:03d}.safetensors" for epoch in best}


# Resuming


def same_result(again, whole) -> bool:
    return torch.equal(weights(again.model), weights(whole.model)) and again.history.equals(whole.history)


@pytest.mark.parametrize("after", [1, 3, 7, 15])
def test_interrupted_run_equals_an_uninterrupted_one(whole, splits, tmp_path, after):
    with power_cut(loop, "_step", after, Stop):
        fit(small(), *splits, QUICK, out=tmp_path)
    again = fit(build("lcnn_lstm", dropout=0.5), *splits, QUICK, out=tmp_path)  # other first weights
    assert same_result(again, whole)


KILLED = """
import os, signal, sys
from tests.training.runs import QUICK, small
from wedefense_nb.data.manifest import Manifest
from wedefense_nb.training import loop

done = []
step = loop._step

def cut(*given):
    if len(done) == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(step(*given))
    return done[-1]

loop._step = cut
corpus = Manifest.read(sys.argv[1])
loop.fit(small(), corpus.subset(split="train"), corpus.subset(split="dev"), QUICK, out=sys.argv[2])
"""


def test_a_killed_process_is_continued_to_the_same_bits(whole, few, splits, tmp_path):
    """A process of its own, without a chance to tidy up, in the middle of the second epoch."""
    utterances = few.utterances.assign(path=[str(path) for path in few.paths()])
    dataclasses.replace(few, utterances=utterances).write(tmp_path / "corpus")
    arguments = [sys.executable, "-c", KILLED, str(tmp_path / "corpus"), str(tmp_path / "run")]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.run(arguments, cwd=ROOT, env=env, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    state = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)
    assert state["step"] == 8 and len(state["history"]) == 1  # the ninth was done, and lost
    again = fit(build("lcnn_lstm", dropout=0.5), *splits, QUICK, out=tmp_path / "run")
    assert same_result(again, whole)


def test_a_finished_run_is_not_trained_again(whole, splits, monkeypatch):
    monkeypatch.setattr(loop, "_step", None)  # any step would fail
    last = whole.out / "checkpoints/last.pt"
    before = last.read_bytes(), last.stat().st_mtime_ns
    again = fit(build("lcnn_lstm", dropout=0.5), *splits, QUICK, out=whole.out)
    assert same_result(again, whole) and again.dev_error == whole.dev_error
    assert (last.read_bytes(), last.stat().st_mtime_ns) == before


@pytest.mark.parametrize("change", [{"lr": 1e-2}, {"epochs": 4}, {"balance": False}, {"weight_decay": 0.0}])
def test_another_run_in_the_folder_is_refused_with_the_difference(whole, splits, change):
    name = next(iter(change))
    with pytest.raises(ValueError, match=f"{name}: .* before, .* now"):
        fit(small(), *splits, dataclasses.replace(QUICK, **change), out=whole.out)


def test_other_data_or_another_model_in_the_folder_are_refused(whole, splits):
    train, dev = splits
    with pytest.raises(ValueError, match=r"settings \(train: "):
        fit(small(), dev, dev, QUICK, out=whole.out)
    with pytest.raises(ValueError, match=r"settings \(dev: "):
        fit(small(), train, train, QUICK, out=whole.out)
    moved = dataclasses.replace(train, segments=train.segments.assign(end=0.999 * train.segments.end))
    with pytest.raises(ValueError, match=r"settings \(train: "):
        fit(small(), moved, dev, QUICK, out=whole.out)
    with pytest.raises(ValueError, match="model: "):
        fit(build("bands"), train, dev, QUICK, out=whole.out)


def test_what_changes_nothing_may_change_on_the_way(whole, splits):
    other = dataclasses.replace(QUICK, workers=1, save_every=100, score_seconds=5.0)
    assert same_result(fit(small(), *splits, other, out=whole.out), whole)


def test_seed_changes_the_result_and_nothing_else_does(whole, splits, tmp_path):
    same = fit(small(), *splits, dataclasses.replace(QUICK, workers=2), out=tmp_path / "a")
    other = fit(small(), *splits, dataclasses.replace(QUICK, seed=4), out=tmp_path / "b")
    assert same_result(same, whole)
    assert not torch.equal(weights(other.model), weights(whole.model))


class Draws(Detection):
    """Notes a random number, the recordings and the classes of each training step."""

    def __init__(self, model, config, policy):
        super().__init__(model, config, policy)
        self.numbers = []
        self.utts = []
        self.labels = []

    def forward(self, batch, epoch=0, progress=1.0):
        if self.training:
            self.numbers.append(float(torch.rand(1)))
            self.labels += batch.labels.tolist()
            self.utts.append(tuple(batch.utts))
        return super().forward(batch, epoch, progress)


def drawn(splits, out, **change):
    """What the steps of an epoch drew."""
    made = []
    config = dataclasses.replace(QUICK, epochs=1, **change)
    fit(small(), *splits, config, lambda *given: made.append(Draws(*given)) or made[0], out=out)
    return made[0]


def test_steps_draw_dropout_and_batches_from_the_seed(splits, tmp_path):
    one = drawn(splits, tmp_path / "one", seed=1)
    again = drawn(splits, tmp_path / "again", seed=1)
    other = drawn(splits, tmp_path / "other", seed=2)
    assert one.numbers == again.numbers and one.utts == again.utts
    assert len(set(one.numbers)) == len(one.numbers) > 3  # no step repeats another's dropout
    assert set(one.numbers).isdisjoint(other.numbers) and one.utts != other.utts


def test_both_classes_come_equally_often_if_that_is_asked_for(splits, tmp_path):
    train, dev = splits
    spoofs = train.utterances.utt[train.utterances.label == "spoof"].tolist()
    rare = train.subset(utt=train.utterances.utt[train.utterances.label == "bonafide"].tolist() + spoofs[:2])
    share = {}
    for balance in (True, False):
        made = drawn((rare, dev), tmp_path / str(balance), balance=balance, crop_label="keep")
        share[balance] = np.mean(made.labels)
    assert share[True] == pytest.approx(0.5, abs=0.1)
    assert share[False] == (rare.utterances.label == "bonafide").mean() > 0.7


def test_a_model_in_evaluation_mode_is_trained_like_any(whole, splits, tmp_path):
    assert same_result(fit(small().eval(), *splits, QUICK, out=tmp_path), whole)


def test_interrupted_run_by_seconds_equals_an_uninterrupted_one(splits, tmp_path):
    """Epochs have different numbers of batches here, and augmentation draws for each."""
    change = {"crop": None, "batch_seconds": 4.0, "epochs": 4, "workers": 1, "augment": "band+specaugment"}
    config = dataclasses.replace(QUICK, **change)

    def started():
        torch.manual_seed(1)
        return build("bands")

    uncut = fit(started(), *splits, config, out=tmp_path / "whole")
    plans = [len(loop.token_batches(splits[0], 4.0, epoch, QUICK.seed, True)) for epoch in range(4)]
    assert len(set(plans)) > 1
    for after in (plans[0], plans[0] + 3):
        with power_cut(loop, "_step", after, Stop):
            fit(started(), *splits, config, out=tmp_path / str(after))
        assert same_result(fit(build("bands"), *splits, config, out=tmp_path / str(after)), uncut)


# The loop's guards


def test_a_loss_that_is_not_finite_stops_with_names(splits, tmp_path):  # pitfall 38
    model = small()
    with torch.no_grad():
        model.head.out.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="step 0: S"):
        fit(model, *splits, QUICK, out=tmp_path)


def test_prior_is_what_the_loss_saw(splits, tmp_path):  # pitfalls 4 and 5
    config = dataclasses.replace(QUICK, epochs=1, balance=False, crop=None, class_weights=(0.1, 0.9))
    result = fit(build("bands"), *splits, config, out=tmp_path)
    n = splits[0].utterances.label.value_counts()
    want = prior_log_odds(0.9 * n["bonafide"], 0.1 * n["spoof"])
    assert float(result.model.log_prior_odds) == pytest.approx(want, abs=1e-6)


def test_crops_that_lost_their_fake_count_as_bona_fide(splits, tmp_path):  # pitfall 61
    config = dataclasses.replace(QUICK, epochs=1, balance=False, crop=0.2)
    partial = splits[0].subset(kind=["partial", "full"])
    result = fit(build("bands"), partial, splits[1], config, out=tmp_path)
    n = partial.utterances.label.value_counts()
    assert float(result.model.log_prior_odds) > prior_log_odds(n["bonafide"], n["spoof"]) + 0.1


# What is seen of a recording, and how much at once


def seen_batches(data, dev, folder, monkeypatch, **change):
    """All training batches of a run, and its result."""
    found = []
    step = loop._step

    def spy(run, batch, *args):
        found.append(batch)
        return step(run, batch, *args)

    monkeypatch.setattr(loop, "_step", spy)
    model = change.pop("model", None) or build("bands")
    result = fit(model, data, dev, dataclasses.replace(QUICK, **change), out=folder)
    monkeypatch.setattr(loop, "_step", step)
    return found, result


@pytest.mark.parametrize("policy", ["tile", "start+zero", "random"])
@pytest.mark.parametrize("kind", ["files", "shards"])
def test_policies_of_crops_reach_the_training(splits, tmp_path, monkeypatch, policy, kind):  # pitfall 22
    train, dev = splits
    seconds = train.utterances.duration.max() + 0.1 if policy == "tile" else 0.5
    if kind == "shards":
        train = write_shards(train, tmp_path / "tar", size=5)
    change = {
        "epochs": 1,
        "balance": False,
        "crop": seconds,
        "crop_policy": policy,
        "workers": int(kind == "shards"),
    }
    found, _ = seen_batches(train, dev, tmp_path / "run", monkeypatch, **change)
    lengths = {length for batch in found for length in batch.lengths.tolist()}
    assert lengths == {round(seconds * 16000)}


def test_the_class_of_a_crop_is_that_of_its_segments_or_kept(splits, tmp_path, monkeypatch):  # pitfall 61
    partial = splits[0].subset(kind=["partial", "full"])
    share = {}
    for label in ("segments", "keep"):
        change = {"epochs": 1, "balance": False, "crop": 0.2, "crop_label": label}
        found, _ = seen_batches(partial, splits[1], tmp_path / label, monkeypatch, **change)
        share[label] = np.mean([y for batch in found for y in batch.labels.tolist()])
    assert share["keep"] == (partial.utterances.label == "bonafide").mean()
    assert share["segments"] > share["keep"]


@pytest.mark.parametrize("kind", ["files", "shards", "features"])
def test_whole_recordings_by_seconds(splits, tmp_path, monkeypatch, kind):
    train, dev = splits
    change = {"epochs": 3, "crop": None, "batch_seconds": 5.0, "balance": kind == "files"}
    if kind == "shards":
        train, dev = (write_shards(m, tmp_path / f"tar-{m.utterances.split[0]}", size=5) for m in splits)
    if kind == "features":
        front = Upstream(tiny_checkpoint(tmp_path / "tiny.pt"))
        train, dev = (extract(front, m, tmp_path / m.utterances.split[0]) for m in splits)
        change["model"] = Detector(Stored.of(train.root), Identity(32), StatsPool(), 8)
    found, result = seen_batches(train, dev, tmp_path / "run", monkeypatch, **change)
    rate = 50 if kind == "features" else 16000
    assert max(batch.wave.shape[1] * len(batch.utts) / rate for batch in found) <= 5.0
    assert len({len(batch.utts) for batch in found}) > 1
    if kind != "files":  # nothing is drawn twice
        assert sorted(utt for batch in found for utt in batch.utts) == sorted(3 * train.utterances.utt.tolist())
    rates = result.history.lr
    assert (np.diff(rates) < 0).all() and rates.iloc[-1] < 0.2 * QUICK.lr


def test_tensorboard_gets_loss_rate_and_eer(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = next((whole.out / "logs").rglob("events*")).parent
    events = EventAccumulator(str(folder)).Reload()
    rates = [event.value for event in events.Scalars("train/lr")]
    errors = [event.value for event in events.Scalars("dev/dev_eer")]
    assert len(rates) == len(events.Scalars("train/loss")) == 18
    assert max(rates) == pytest.approx(QUICK.lr) and np.allclose(errors, whole.history.dev_eer)


# Several processes


def test_tensorboard_gets_all_settings_once(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    folder = next((whole.out / "logs").rglob("events*")).parent
    data = EventAccumulator(str(folder)).Reload().SummaryMetadata
    found = data(metadata.SESSION_START_INFO_TAG).plugin_data.content
    settings = metadata.parse_session_start_info_plugin_data(found).hparams
    assert set(settings) == {field.name for field in dataclasses.fields(FitConfig)} | {"model", "objective"}
    assert settings["lr"].number_value == QUICK.lr and settings["balance"].number_value == 1
    assert settings["patience"].string_value == "None" and "lcnn_lstm" in settings["model"].string_value
    (metric,) = metadata.parse_experiment_plugin_data(
        data(metadata.EXPERIMENT_TAG).plugin_data.content
    ).metric_infos
    assert metric.name.tag == "dev/dev_eer"


def test_the_scale_of_half_precision_survives(splits, tmp_path, monkeypatch):  # pitfall 56
    """A GPU's scaler, put in place of the one that a CPU does not have."""

    def run():
        accelerator = loop.Accelerator(cpu=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        monkeypatch.setattr(accelerator, "scaler", scaler)
        learner = Detection(small(), QUICK, loop.make_policy("none", splits[0]))
        return loop.Run(learner, *splits, QUICK, tmp_path, accelerator), scaler

    first, scaler = run()
    scaler.scale(torch.ones(()))  # begins with the first use
    scaler.update(2.0)
    first.save()
    assert run()[1].state_dict()["scale"] == 2.0


def test_two_processes_agree_and_stop_together(samples, tmp_path):  # pitfalls 24 and 55
    write_shards(corpus_for_ranks().subset(split="train"), tmp_path / "tar", size=5)
    code = "import sys; from accelerate import debug_launcher; from tests.training.ranks import two_ranks\n"
    code += "if __name__ == '__main__': debug_launcher(two_ranks, args=(sys.argv[1],), num_processes=2)"
    script = tmp_path / "launch.py"
    script.write_text(code)
    command = [sys.executable, str(script), str(tmp_path)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (np.load(tmp_path / f"rank{rank}.npz") for rank in (0, 1))
    for name in ("weights", "scores", "errors"):
        assert np.array_equal(first[name], second[name]) and np.isfinite(first[name]).all()
    assert len(set(first["utts"])) == len(first["utts"])
    trained = sorted([*first["trained"], *second["trained"]])  # together everything once in each of two epochs
    assert trained == sorted([*first["train"]] * 2)
    assert max(first["largest"], second["largest"]) <= 6.0


# And does it learn?


def test_learning_happens(samples, tmp_path):
    """A few epochs on one easy attack must beat chance clearly, on voices that were not trained on."""
    easy = samples.subset(attack=["", "lpc"], kind="full")
    config = FitConfig(epochs=6, batch_size=16, crop=0.7, lr=2e-3, balance=True, seed=0)
    torch.manual_seed(0)
    model = build("lcnn_lstm", feature="house", dropout=0.3)
    result = fit(model, easy.subset(split="train"), easy.subset(split="dev"), config, out=tmp_path)
    table = score(result.model, easy.subset(split="eval"))
    assert eer(table.score, label_ids(table.label)) < 0.3
    assert result.history.train_loss.iloc[-1] < 0.6


@pytest.mark.parametrize(
    "threads, waiting, computing, said",
    [
        (2, 0.0, 1.9, []),
        (0, 5.0, 0.1, []),  # on a GPU
        (2, 0.0, 1.0, ["50% of the time .* OMP_NUM_THREADS=1 helps"]),
        (1, 0.0, 0.5, ["50% of the time .* it takes longer so"]),
        (2, 3.0, 2.0, ["74% of its time waiting for data: more `workers`"]),
        (2, 3.0, 1.0, ["50% of the time", "74% of its time"]),
    ],
)
def test_a_starved_run_is_told_what_helps(monkeypatch, threads, waiting, computing, said):
    """Clocks that tell of 20 steps of a second each; before each so much waiting, in each so much computing."""
    walls = []
    processors = []
    for k in range(20):
        walls += [k * (1 + waiting), k * (1 + waiting) + 1]
        processors += [k * computing, (k + 1) * computing]
    monkeypatch.setattr(loop.time, "perf_counter", iter(walls).__next__)
    monkeypatch.setattr(loop.time, "process_time", iter(processors).__next__)
    pace = loop.Pace(threads)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for _ in range(20):
            with pace.step():
                pass
    messages = [str(warning.message) for warning in heard]
    assert len(messages) == len(said)
    for message, pattern in zip(messages, said, strict=True):
        assert re.search(pattern, message)


# Sharpness, running means, balance


class Bowl(Objective):
    """Half the square of what a line predicts, times a curvature: gradients are known."""

    def forward(self, batch, epoch=0, progress=1.0):
        return 0.5 * self.model.weight.square().sum()


def test_uphill_is_a_step_of_a_given_length_along_the_gradient():
    model = torch.nn.Linear(2, 1, bias=False)
    model.register_buffer("mean", torch.zeros(1))
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 4.0]]))
    Bowl(model)(None).backward()
    with loop.uphill(model, 0.5):
        assert model.weight.tolist() == [[pytest.approx(3.3), pytest.approx(4.4)]]
        model.mean.add_(1)
    assert model.weight.tolist() == [[3.0, 4.0]] and model.mean.item() == 0
    with pytest.raises(Stop), loop.uphill(model, 0.5):
        raise Stop
    assert model.weight.tolist() == [[3.0, 4.0]]
    model.weight.grad.zero_()
    with loop.uphill(model, 0.5):
        assert model.weight.tolist() == [[3.0, 4.0]]
    model.weight.grad.fill_(float("inf"))
    with loop.uphill(model, 0.5):
        assert model.weight.tolist() == [[3.0, 4.0]]


def test_a_sharp_step_takes_the_gradient_uphill_and_starts_from_where_it_was(splits, tmp_path, monkeypatch):
    seen = []
    clip = loop.Accelerator.clip_grad_norm_

    def looking(self, parameters, norm):
        parameters = list(parameters)
        seen.append((parameters[0].detach().clone(), parameters[0].grad.clone()))
        return clip(self, parameters, norm)

    monkeypatch.setattr(loop.Accelerator, "clip_grad_norm_", looking)

    class Square(Detection):
        def forward(self, batch, epoch=0, progress=1.0):
            weight = next(self.model.parameters())
            return 0.5 * weight.square().sum() + 0 * super().forward(batch, epoch, progress)

    config = dataclasses.replace(QUICK, epochs=1, sam=0.5)
    fit(build("bands"), *splits, config, Square, out=tmp_path)
    weight, gradient = seen[0]
    want = weight + 0.5 * weight / weight.norm()
    assert torch.allclose(gradient, want, atol=1e-5)


def test_a_radius_of_nothing_is_a_plain_step(splits, tmp_path):
    config = dataclasses.replace(QUICK, epochs=1)
    plain = fit(small(), *splits, config, out=tmp_path / "plain")
    tiny = fit(small(), *splits, dataclasses.replace(config, sam=1e-12), out=tmp_path / "tiny")
    assert torch.allclose(weights(plain.model), weights(tiny.model), atol=1e-5)
    wide = fit(small(), *splits, dataclasses.replace(config, sam=0.5), out=tmp_path / "wide")
    assert not torch.allclose(weights(plain.model), weights(wide.model), atol=1e-3)
    counters = {n: v for n, v in wide.model.state_dict().items() if n.endswith("num_batches_tracked")}
    assert counters and all(torch.equal(v, plain.model.state_dict()[n]) for n, v in counters.items())


def test_a_running_mean_has_its_closed_form():
    rng = np.random.default_rng(0)
    values = rng.normal(size=30)
    mean = {}
    want = None
    for step, value in enumerate(values, start=1):
        loop.follow_mean(mean, {"w": torch.tensor(value), "n": torch.tensor(step)}, step, decay=0.9)
        if step <= 10:
            want = values[:step].mean()
        assert step > 10 or mean["w"].item() == pytest.approx(want)
    closed = 0.9**20 * values[:10].mean() + 0.1 * sum(0.9 ** (29 - i) * values[i] for i in range(10, 30))
    assert mean["w"].item() == pytest.approx(closed) and mean["n"].item() == 30


def test_the_mean_is_judged_and_kept_and_training_goes_on_without_it(splits, tmp_path, monkeypatch):
    config = dataclasses.replace(QUICK, epochs=2, average=1, average_by="last", ema=0.8)
    plain_config = dataclasses.replace(config, ema=0.0)
    passed = []
    follow = loop.follow_mean

    def noting(mean, state, step, decay):
        passed.append({name: value.clone() for name, value in state.items()})
        follow(mean, state, step, decay)

    monkeypatch.setattr(loop, "follow_mean", noting)
    judge = Scripted(0.4, 0.3, 0.3)
    result = fit(small(), *splits, config, validate=judge, out=tmp_path / "mean")
    wanted = {}
    for step, state in enumerate(passed, start=1):
        follow(wanted, state, step, 0.8)
    wanted.pop("log_prior_odds")  # `finish` writes it
    state = result.model.state_dict()
    assert all(torch.allclose(state[name], value) for name, value in wanted.items())
    assert all(torch.allclose(judge.asked[1][name], value) for name, value in wanted.items())
    plain = fit(small(), *splits, plain_config, validate=Scripted(0.4, 0.3, 0.3), out=tmp_path / "plain")
    last = {name: plain.model.state_dict()[name] for name in wanted}
    assert all(torch.equal(last[name], passed[-1][name]) for name in last)  # its steps are the plain ones


def test_attacks_come_equally_often_if_that_is_asked_for(samples, tmp_path, monkeypatch):
    train = samples.subset(split="train", kind="full")
    heard = []

    class Noting(Detection):
        def forward(self, batch, epoch=0, progress=1.0):
            heard.extend(batch.utts)
            return super().forward(batch, epoch, progress)

    config = dataclasses.replace(QUICK, epochs=1, batch_size=16, balance_by="attack")
    fit(build("bands"), train, samples.subset(split="dev", kind="full"), config, Noting, out=tmp_path)
    counts = train.utterances.set_index("utt").loc[heard].attack.value_counts()
    fakes = counts.drop("")
    assert len(heard) == len(train) and fakes.max() - fakes.min() <= 1
    assert counts[""] - fakes.sum() in (0, 1)
    other = train.utterances.assign(attack=train.utterances.attack.replace({"lpc": "world"}))
    with pytest.raises(ValueError, match="train: "):
        changed = dataclasses.replace(train, utterances=other)
        fit(build("bands"), changed, samples.subset(split="dev", kind="full"), config, Noting, out=tmp_path)
    with pytest.raises(ValueError, match="unknown column 'accent'"):
        odd = dataclasses.replace(config, balance_by="accent")
        fit(build("bands"), train, samples.subset(split="dev"), odd, out=tmp_path / "odd")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sam": -0.1}, "a radius is not negative"),
        ({"ema": 1.0}, "a decay is at least 0 and below 1"),
        ({"windows": 0.0}, "windows is 0.0"),
        ({"balance": False, "balance_by": "attack"}, "balance is off"),
    ],
)
def test_settings_of_generality_are_refused_where_they_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(QUICK, **change)
