import dataclasses
import os
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from wedefense_nb.training import loop
from wedefense_nb.data.shards import write_shards
from wedefense_nb.features.stored import Stored, extract
from wedefense_nb.features.upstreams import Upstream, tiny_checkpoint
from wedefense_nb.models.detector import Detector, build
from wedefense_nb.models.layers import Identity, StatsPool
from wedefense_nb.metrics import eer
from wedefense_nb.task import label_ids, prior_log_odds
from wedefense_nb.training.loop import FitConfig, fit, lr_at
from wedefense_nb.training.scoring import score
from wedefense_nb.training.selection import average_weights, chosen_epochs, should_stop

from tests.conftest import ROOT, power_cut

QUICK = FitConfig(epochs=3, batch_size=4, crop=0.4, lr=2e-3, balance=True, average=2, seed=3, save_every=2)


def small():
    torch.manual_seed(1)
    return build("lcnn_lstm", dropout=0.5)


@pytest.fixture(scope="module")
def splits(few):
    return few.subset(split="train"), few.subset(split="dev")


@pytest.fixture(scope="module")
def whole(splits, tmp_path_factory):
    return fit(small(), *splits, QUICK, out=tmp_path_factory.mktemp("whole"))


def weights(model):
    return torch.cat([v.flatten().double() for v in model.state_dict().values()])


# The learning rate


@given(st.integers(2, 500), st.floats(0, 0.9), st.floats(0, 1))
def test_schedule_reaches_its_peak_and_its_end(total, warmup, final):  # pitfall 48
    c = FitConfig(lr=0.01, warmup=warmup, final_lr=final)
    rates = np.array([lr_at(s, total, c) for s in range(total)])
    rise = max(1, round(warmup * total))
    assert np.isclose(rates.max(), 0.01, rtol=0.02 if total - rise > 30 else 1) and (rates > 0).all() or final == 0
    assert np.isclose(rates[rise - 1], 0.01) and (np.diff(rates[rise - 1 :]) <= 1e-12).all()
    assert (np.diff(rates[:rise]) > 0).all() and lr_at(total, total, c) == pytest.approx(final * 0.01)


def test_the_optimizer_holds_the_rate_that_was_planned(whole, splits):
    steps = len(loop.epoch_batches(splits[0], 4))
    want = [lr_at((e + 1) * steps - 1, 3 * steps, QUICK) for e in range(3)]
    assert np.allclose(whole.history.lr, want)


# Choosing and averaging


def test_early_stopping_on_a_scripted_sequence():  # pitfall 14
    eers = [0.3, 0.2, 0.25, 0.24, 0.19, 0.2, 0.2, 0.2]
    assert [should_stop(eers[:n], 3) for n in range(1, 9)] == [False] * 7 + [True]
    assert [should_stop(eers[:n], 2) for n in range(1, 5)] == [False, False, False, True]
    assert not any(should_stop(eers[:n], None) for n in range(1, 9))
    for bad in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            should_stop(eers, bad)


def test_chosen_epochs():
    eers = [0.5, 0.1, 0.3, 0.1, 0.2]
    assert (
        chosen_epochs(eers, 1) == [1]
        and chosen_epochs(eers, 3) == [1, 3, 4]
        and chosen_epochs(eers, 99) == [0, 1, 2, 3, 4]
    )
    assert chosen_epochs(eers, 2, "last") == [3, 4]
    with pytest.raises(ValueError, match="'best' or 'last'"):
        chosen_epochs(eers, 2, "lucky")


def test_average_is_the_mean_and_counters_come_from_the_last(tmp_path):
    for i, x in enumerate([1.0, 2.0, 6.0]):
        save_file({"w": torch.full((2,), x), "n": torch.tensor(10 * i)}, tmp_path / f"{i}.safetensors")
    mean = average_weights(sorted(tmp_path.iterdir()))
    assert mean["w"].tolist() == [3, 3] and mean["w"].dtype == torch.float32 and mean["n"] == 20


def test_odd_files_in_the_folder_are_left_alone(splits, tmp_path):  # pitfall 54
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("best_model.pt", "epoch_x.safetensors", "epoch_1.safetensors", "avg.pt"):
        (folder / name).write_bytes(b"not a checkpoint")
    result = fit(small(), *splits, dataclasses.replace(QUICK, epochs=1), out=tmp_path)
    assert result.epochs == [0] and (folder / "best_model.pt").exists()


def test_only_the_checkpoints_that_count_are_kept(whole):
    kept = {p.name for p in (whole.out / "checkpoints").glob("epoch_*")}
    best = chosen_epochs(whole.history.dev_eer.tolist(), 2)
    assert kept == {f"epoch_{e:03d}.safetensors" for e in best}


# Resuming


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3, 7, 15])
def test_interrupted_run_equals_an_uninterrupted_one(whole, splits, tmp_path, after):
    with power_cut(loop, "_step", after, Stop):
        fit(small(), *splits, QUICK, out=tmp_path)
    again = fit(build("lcnn_lstm", dropout=0.5), *splits, QUICK, out=tmp_path)  # other first weights
    assert torch.equal(weights(again.model), weights(whole.model)) and again.history.equals(whole.history)


def test_a_finished_run_is_not_trained_again(whole, splits, monkeypatch):
    monkeypatch.setattr(loop, "_step", None)  # any step would fail
    again = fit(build("lcnn_lstm", dropout=0.5), *splits, QUICK, out=whole.out)
    assert torch.equal(weights(again.model), weights(whole.model)) and again.dev_error == whole.dev_error


@pytest.mark.parametrize("change", [{"lr": 1e-2}, {"epochs": 4}, {"balance": False}])
def test_another_run_in_the_folder_is_refused_with_the_difference(whole, splits, change):
    name = next(iter(change))
    with pytest.raises(ValueError, match=f"{name}: .* before, .* now"):
        fit(small(), *splits, dataclasses.replace(QUICK, **change), out=whole.out)
    with pytest.raises(ValueError, match="train: "):
        fit(small(), splits[1], splits[1], QUICK, out=whole.out)
    with pytest.raises(ValueError, match="model: "):
        fit(build("bands"), *splits, QUICK, out=whole.out)


def test_workers_may_change_on_the_way(whole, splits):
    fit(small(), *splits, dataclasses.replace(QUICK, workers=1), out=whole.out)


def test_seed_changes_the_result_and_nothing_else_does(whole, splits, tmp_path):
    same = fit(small(), *splits, dataclasses.replace(QUICK, workers=2), out=tmp_path / "a")
    other = fit(small(), *splits, dataclasses.replace(QUICK, seed=4), out=tmp_path / "b")
    assert torch.equal(weights(same.model), weights(whole.model))
    assert not torch.equal(weights(other.model), weights(whole.model))


# The loop's guards


def test_gradients_are_clipped(splits, tmp_path, monkeypatch):  # pitfall 56
    norms = []
    old = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        grads = [p.grad.norm() for g in self.param_groups for p in g["params"] if p.grad is not None]
        norms.append(float(torch.stack(grads).norm()))
        return old(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    fit(small(), *splits, dataclasses.replace(QUICK, epochs=1, clip=1e-3), out=tmp_path)
    assert norms and max(norms) <= 1.01e-3


def test_a_loss_that_is_not_finite_stops_with_names(splits, tmp_path):
    model = small()
    with torch.no_grad():
        model.head.out.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="step 0: S"):
        fit(model, *splits, QUICK, out=tmp_path)
    with pytest.raises(FloatingPointError, match="not finite: S"):
        score(model, splits[1])


def test_prior_is_what_the_loss_saw(splits, tmp_path):  # pitfalls 4 and 5
    config = dataclasses.replace(QUICK, epochs=1, balance=False, crop=None, class_weights=(0.1, 0.9))
    result = fit(build("bands"), *splits, config, out=tmp_path)
    n = splits[0].utterances.label.value_counts()
    want = prior_log_odds(0.9 * n["bonafide"], 0.1 * n["spoof"])
    assert float(result.model.log_prior_odds) == pytest.approx(want, abs=1e-6)


def test_crops_that_lost_their_fake_count_as_bona_fide(splits, tmp_path):
    config = dataclasses.replace(QUICK, epochs=1, balance=False, crop=0.2)
    partial = splits[0].subset(kind=["partial", "full"])
    result = fit(build("bands"), partial, splits[1], config, out=tmp_path)
    n = partial.utterances.label.value_counts()
    assert float(result.model.log_prior_odds) > prior_log_odds(n["bonafide"], n["spoof"]) + 0.1


# What is seen of a recording, and how much at once


def seen_batches(data, dev, folder, monkeypatch, **change):
    """(lengths, labels, padded length) of every training batch."""
    found = []
    step = loop._step

    def spy(run, batch, *args):
        found.append((batch.lengths.tolist(), batch.labels.tolist(), batch.wave.shape[1]))
        return step(run, batch, *args)

    monkeypatch.setattr(loop, "_step", spy)
    result = fit(build("bands"), data, dev, dataclasses.replace(QUICK, balance=False, **change), out=folder)
    monkeypatch.setattr(loop, "_step", step)
    return found, result


def test_policies_of_crops_reach_the_training(splits, tmp_path, monkeypatch):  # pitfalls 22 and 61
    train, dev = splits
    shards = write_shards(train, tmp_path / "tar", size=5)
    longest = train.utterances.duration.max()
    for name, change in {
        "tile": {"crop": longest + 0.1},
        "start+zero": {"crop": 0.5},
        "random": {"crop": 0.5},
    }.items():
        ways = [
            seen_batches(
                m, dev, tmp_path / f"{name}{i}", monkeypatch, epochs=1, crop_policy=name, workers=i, **change
            )
            for i, m in enumerate((train, shards))
        ]
        lengths = {n for found, _ in ways for ns, _, _ in found for n in ns}
        assert (lengths == {round(change["crop"] * 16000)}) or name == "random"
    partial = train.subset(kind=["partial", "full"])
    share = {}
    for label in ("segments", "keep"):
        found, _ = seen_batches(partial, dev, tmp_path / label, monkeypatch, epochs=1, crop=0.2, crop_label=label)
        share[label] = np.mean([y for _, ys, _ in found for y in ys])
    assert share["keep"] == (partial.utterances.label == "bonafide").mean() < share["segments"]


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
def test_wrong_policies_are_one_line(splits, tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as error:
        fit(build("bands"), *splits, dataclasses.replace(QUICK, **change), out=tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["files", "shards", "features"])
def test_whole_recordings_by_seconds(splits, tmp_path, monkeypatch, kind):
    train, dev = splits
    config = {"epochs": 3, "crop": None, "batch_seconds": 5.0, "balance": kind == "files"}
    if kind == "shards":
        train, dev = (write_shards(m, tmp_path / f"tar-{m.utterances.split[0]}", size=5) for m in splits)
    if kind == "features":
        front = Upstream(tiny_checkpoint(tmp_path / "tiny.pt"))
        train, dev = (extract(front, m, tmp_path / m.utterances.split[0]) for m in splits)
    found = []
    step = loop._step
    monkeypatch.setattr(loop, "_step", lambda *a: found.append(a[1]) or step(*a))
    model = Detector(Stored.of(train.root), Identity(32), StatsPool(), 8) if kind == "features" else build("bands")
    result = fit(model, train, dev, dataclasses.replace(QUICK, **config), out=tmp_path / "run")
    rate = 50 if kind == "features" else 16000
    assert max(batch.wave.shape[1] * len(batch.utts) / rate for batch in found) <= 5.0
    sizes = {len(batch.utts) for batch in found}
    assert len(sizes) > 1
    if kind != "files":  # nothing is drawn twice
        assert sorted(u for b in found for u in b.utts) == sorted(3 * train.utterances.utt.tolist())
    rates = result.history.lr
    assert (np.diff(rates) < 0).all() and rates.iloc[-1] < 0.2 * QUICK.lr


def test_interrupted_run_by_seconds_equals_an_uninterrupted_one(splits, tmp_path):
    """Epochs have different numbers of batches here."""
    config = dataclasses.replace(QUICK, crop=None, batch_seconds=4.0, epochs=4, workers=1)
    model = build("bands")
    first = {k: v.clone() for k, v in model.state_dict().items()}
    whole = fit(model, *splits, config, out=tmp_path / "whole")
    plans = [len(loop.token_batches(splits[0], 4.0, e, QUICK.seed, True)) for e in range(4)]
    assert len(set(plans)) > 1
    for after in (plans[0], plans[0] + 3):
        with power_cut(loop, "_step", after, Stop):
            model = build("bands")
            model.load_state_dict(first)
            fit(model, *splits, config, out=tmp_path / str(after))
        again = fit(build("bands"), *splits, config, out=tmp_path / str(after))
        assert torch.equal(weights(again.model), weights(whole.model)) and again.history.equals(whole.history)


def test_weighted_training_gives_unbiased_llrs():  # pitfall 4: a Gaussian toy with class weights
    rng = np.random.default_rng(0)
    y = (rng.random(20000) < 0.1).astype(int)
    x = torch.tensor(np.where(y == 1, rng.normal(2, 2, 20000), rng.normal(-2, 2, 20000)), dtype=torch.float32)
    w = torch.tensor([0.1, 0.9])
    net = torch.nn.Linear(1, 2)
    opt = torch.optim.LBFGS(net.parameters(), max_iter=100)

    def closure():
        opt.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x[:, None]), torch.tensor(y), weight=w)
        loss.backward()
        return loss

    opt.step(closure)
    z = net(x[:, None]).detach()
    llr = z[:, 1] - z[:, 0] - prior_log_odds(0.9 * y.sum(), 0.1 * (1 - y).sum())
    assert abs(float((llr - x).mean())) < 0.1  # x is the true LLR


def test_scores_come_in_manifest_order_whatever_the_batch_size(whole, splits):
    tables = [score(whole.model, splits[1], batch_size=b) for b in (1, 5, 64)]
    assert tables[0].utt.tolist() == splits[1].utterances.utt.tolist()
    assert tables[0].label.tolist() == splits[1].utterances.label.tolist()
    for t in tables[1:]:
        assert np.allclose(t.score, tables[0].score, atol=1e-3)


def test_scoring_leaves_the_training_mode_alone(whole, splits):
    whole.model.train()
    score(whole.model, splits[1])
    assert whole.model.training
    whole.model.eval()


def test_tensorboard_gets_loss_rate_and_eer(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = next((whole.out / "logs").rglob("events*")).parent
    events = EventAccumulator(str(folder)).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/lr", "dev/dev_eer"} <= tags
    assert max(e.value for e in events.Scalars("train/lr")) <= QUICK.lr * 1.001


# Several processes


def for_ranks(corpus):
    u = corpus.utterances
    return corpus.subset(
        utt=[t for _, g in u[u.kind == "full"].groupby(["split", "label"]) for t in g.utt.head(6)]
    )


def two_ranks(folder):
    import torch.distributed as dist

    from tests.training.test_loop import QUICK, for_ranks, small
    from wedefense_nb.data.manifest import Manifest
    from wedefense_nb.files import locate

    torch.set_num_threads(1)
    corpus = Manifest.read(locate("data_samples"))
    corpus = for_ranks(corpus)
    config = dataclasses.replace(QUICK, epochs=4, patience=1)
    train = corpus.subset(split="train")
    dev = corpus.subset(split="dev")
    result = fit(small(), train, dev, config, out=folder)
    table = score(result.model, corpus.subset(split="eval"))
    found = []
    step = loop._step
    loop._step = lambda *a: found.append(a[1]) or step(*a)
    config = dataclasses.replace(QUICK, epochs=2, balance=False, crop=None, batch_seconds=6.0)
    seconds = fit(build("bands"), train, dev, config, out=f"{folder}/seconds")
    utts = [u for batch in found for u in batch.utts]
    largest = max(batch.wave.numel() for batch in found) / 16000
    tiled = dataclasses.replace(QUICK, epochs=1, crop=2.0, crop_policy="start+tile", workers=1)
    tiled = fit(build("bands"), Manifest.read(f"{folder}/tar"), dev, tiled, out=f"{folder}/tiled")
    w = torch.cat([weights(r.model) for r in (result, seconds, tiled)])
    np.savez(
        f"{folder}/rank{dist.get_rank()}.npz",
        w=w.numpy(),
        s=table.score,
        e=result.history.dev_eer,
        largest=largest,
        utts=table.utt.to_numpy().astype(str),
        trained=utts,
        train=train.utterances.utt.to_numpy().astype(str),
    )


def test_two_processes_agree_and_stop_together(samples, tmp_path):  # pitfalls 24 and 55
    write_shards(for_ranks(samples).subset(split="train"), tmp_path / "tar", size=5)
    code = "import sys; from accelerate import debug_launcher; from tests.training.test_loop import two_ranks\n"
    code += "if __name__ == '__main__': debug_launcher(two_ranks, args=(sys.argv[1],), num_processes=2)"
    script = tmp_path / "launch.py"
    script.write_text(code)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    a, b = (np.load(tmp_path / f"rank{r}.npz") for r in (0, 1))
    assert np.array_equal(a["w"], b["w"]) and np.array_equal(a["s"], b["s"]) and np.array_equal(a["e"], b["e"])
    assert len(set(a["utts"])) == len(a["utts"]) and np.isfinite(a["s"]).all()
    trained = sorted([*a["trained"], *b["trained"]])  # together everything once in each of two epochs
    assert trained == sorted([*a["train"]] * 2) and max(a["largest"], b["largest"]) <= 6.0


def test_learning_happens(samples, tmp_path):
    """A few epochs on one easy attack must beat chance clearly, on voices that were not trained on."""
    easy = samples.subset(attack=["", "lpc"], kind="full")
    config = FitConfig(epochs=6, batch_size=16, crop=0.7, lr=2e-3, balance=True, seed=0)
    torch.manual_seed(0)
    model = build("lcnn_lstm", feature="house", dropout=0.3)
    result = fit(model, easy.subset(split="train"), easy.subset(split="dev"), config, out=tmp_path)
    table = score(result.model, easy.subset(split="eval"))
    rate = eer(table.score, label_ids(table.label))
    assert rate < 0.3 and result.history.train_loss.iloc[-1] < 0.6 and isinstance(table, pd.DataFrame)


def test_a_starved_run_is_told_what_helps(monkeypatch):
    """Clocks that tell of 20 steps of a second each, with so much waiting before each and so much computing in each."""

    def complaints(threads, waiting, computing):
        walls, processors = [], []
        for k in range(20):
            walls += [k * (1 + waiting), k * (1 + waiting) + 1]
            processors += [k * computing, (k + 1) * computing]
        monkeypatch.setattr(loop.time, "perf_counter", iter(walls).__next__)
        monkeypatch.setattr(loop.time, "process_time", iter(processors).__next__)
        pace = loop.Pace(threads)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for _ in range(20):
                with pace.step():
                    pass
        return [str(w.message) for w in said]

    assert complaints(2, 0.0, 1.9) == [] and complaints(0, 5.0, 0.1) == []  # well fed; on a GPU
    (text,) = complaints(2, 0.0, 1.0)
    assert "50% of the time" in text and "OMP_NUM_THREADS=1" in text
    (text,) = complaints(1, 0.0, 0.5)
    assert "50% of the time" in text and "OMP_NUM_THREADS" not in text
    (text,) = complaints(2, 3.0, 2.0)
    assert "waiting for data: more `workers`" in text
