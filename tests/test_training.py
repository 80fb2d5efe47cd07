import dataclasses
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from wedefense_nb import training
from wedefense_nb.detector import build
from wedefense_nb.selection import average_weights, chosen_epochs, should_stop
from wedefense_nb.task import label_ids, prior_log_odds
from wedefense_nb.training import FitConfig, fit, lr_at, score

from .conftest import ROOT

QUICK = FitConfig(epochs=3, batch_size=4, crop=0.4, lr=2e-3, balance=True, average=2, seed=3, save_every=2)


def small():
    torch.manual_seed(1)
    return build("lcnn_lstm", dropout=0.5)


@pytest.fixture(scope="module")
def splits(few):
    return few.subset(split="train"), few.subset(split="dev")


@pytest.fixture(scope="module")
def whole(splits, tmp_path_factory):
    return fit(small(), *splits, QUICK, tmp_path_factory.mktemp("whole"))


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
    steps = len(training.epoch_batches(splits[0], 4))
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
    assert chosen_epochs(eers, 1) == [1] and chosen_epochs(eers, 3) == [1, 3, 4] and chosen_epochs(eers, 99) == [0, 1, 2, 3, 4]
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
    result = fit(small(), *splits, dataclasses.replace(QUICK, epochs=1), tmp_path)
    assert result.epochs == [0] and (folder / "best_model.pt").exists()


def test_only_the_checkpoints_that_count_are_kept(whole):
    kept = {p.name for p in (whole.out / "checkpoints").glob("epoch_*")}
    best = chosen_epochs(whole.history.dev_eer.tolist(), 2)
    assert kept == {f"epoch_{e:03d}.safetensors" for e in best}


# Resuming


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3, 7, 15])
def test_interrupted_run_equals_an_uninterrupted_one(whole, splits, tmp_path, monkeypatch, after):
    calls, step = iter(range(after)), training._step

    def power_cut(*args):
        if next(calls, None) is None:
            raise Stop
        return step(*args)

    monkeypatch.setattr(training, "_step", power_cut)
    with pytest.raises(Stop):
        fit(small(), *splits, QUICK, tmp_path)
    monkeypatch.setattr(training, "_step", step)
    again = fit(build("lcnn_lstm", dropout=0.5), *splits, QUICK, tmp_path)  # other first weights
    assert torch.equal(weights(again.model), weights(whole.model)) and again.history.equals(whole.history)


def test_a_finished_run_is_not_trained_again(whole, splits, monkeypatch):
    monkeypatch.setattr(training, "_step", None)  # any step would fail
    again = fit(build("lcnn_lstm", dropout=0.5), *splits, QUICK, whole.out)
    assert torch.equal(weights(again.model), weights(whole.model)) and again.dev_eer == whole.dev_eer


@pytest.mark.parametrize("change", [{"lr": 1e-2}, {"epochs": 4}, {"balance": False}])
def test_another_run_in_the_folder_is_refused_with_the_difference(whole, splits, change):
    name = next(iter(change))
    with pytest.raises(ValueError, match=f"{name}: .* before, .* now"):
        fit(small(), *splits, dataclasses.replace(QUICK, **change), whole.out)
    with pytest.raises(ValueError, match="train: "):
        fit(small(), splits[1], splits[1], QUICK, whole.out)
    with pytest.raises(ValueError, match="model: "):
        fit(build("bands"), *splits, QUICK, whole.out)


def test_workers_may_change_on_the_way(whole, splits):
    fit(small(), *splits, dataclasses.replace(QUICK, workers=1), whole.out)


def test_seed_changes_the_result_and_nothing_else_does(whole, splits, tmp_path):
    same = fit(small(), *splits, dataclasses.replace(QUICK, workers=2), tmp_path / "a")
    other = fit(small(), *splits, dataclasses.replace(QUICK, seed=4), tmp_path / "b")
    assert torch.equal(weights(same.model), weights(whole.model))
    assert not torch.equal(weights(other.model), weights(whole.model))


# The loop's guards


def test_gradients_are_clipped(splits, tmp_path, monkeypatch):  # pitfall 56
    norms, old = [], torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        grads = [p.grad.norm() for g in self.param_groups for p in g["params"] if p.grad is not None]
        norms.append(float(torch.stack(grads).norm()))
        return old(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    fit(small(), *splits, dataclasses.replace(QUICK, epochs=1, clip=1e-3), tmp_path)
    assert norms and max(norms) <= 1.01e-3


def test_a_loss_that_is_not_finite_stops_with_names(splits, tmp_path):
    model = small()
    with torch.no_grad():
        model.head.out.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="step 0: S"):
        fit(model, *splits, QUICK, tmp_path)
    with pytest.raises(FloatingPointError, match="not finite: S"):
        score(model, splits[1])


def test_prior_is_what_the_loss_saw(splits, tmp_path):  # pitfalls 4 and 5
    config = dataclasses.replace(QUICK, epochs=1, balance=False, crop=None, class_weights=(0.1, 0.9))
    result = fit(build("bands"), *splits, config, tmp_path)
    n = splits[0].utterances.label.value_counts()
    want = prior_log_odds(0.9 * n["bonafide"], 0.1 * n["spoof"])
    assert float(result.model.log_prior_odds) == pytest.approx(want, abs=1e-6)
    assert result.model.class_weights.tolist() == pytest.approx([0.1, 0.9])


def test_crops_that_lost_their_fake_count_as_bona_fide(splits, tmp_path):
    config = dataclasses.replace(QUICK, epochs=1, balance=False, crop=0.2)
    partial = splits[0].subset(kind=["partial", "full"])
    result = fit(build("bands"), partial, splits[1], config, tmp_path)
    n = partial.utterances.label.value_counts()
    assert float(result.model.log_prior_odds) > prior_log_odds(n["bonafide"], n["spoof"]) + 0.1


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
    assert {"train/loss", "train/lr", "dev/eer"} <= tags
    assert max(e.value for e in events.Scalars("train/lr")) <= QUICK.lr * 1.001


# Several processes


def two_ranks(folder):
    import torch.distributed as dist

    from tests.test_training import QUICK, small
    from wedefense_nb.manifest import Manifest, locate

    torch.set_num_threads(1)
    corpus = Manifest.read(locate("data_samples"))
    u = corpus.utterances
    keep = [t for _, g in u[u.kind == "full"].groupby(["split", "label"]) for t in g.utt.head(6)]
    corpus = corpus.subset(utt=keep)
    config = dataclasses.replace(QUICK, epochs=4, patience=1)
    result = fit(small(), corpus.subset(split="train"), corpus.subset(split="dev"), config, folder)
    table = score(result.model, corpus.subset(split="eval"))
    np.savez(f"{folder}/rank{dist.get_rank()}.npz", w=weights(result.model).numpy(), s=table.score,
             e=result.history.dev_eer, utts=table.utt.to_numpy().astype(str))  # fmt: skip


def test_two_processes_agree_and_stop_together(tmp_path):  # pitfalls 24 and 55
    code = "import sys; from accelerate import debug_launcher; from tests.test_training import two_ranks\n"
    code += "if __name__ == '__main__': debug_launcher(two_ranks, args=(sys.argv[1],), num_processes=2)"
    script = tmp_path / "launch.py"
    script.write_text(code)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    a, b = (np.load(tmp_path / f"rank{r}.npz") for r in (0, 1))
    assert np.array_equal(a["w"], b["w"]) and np.array_equal(a["s"], b["s"]) and np.array_equal(a["e"], b["e"])
    assert len(set(a["utts"])) == len(a["utts"]) and np.isfinite(a["s"]).all()


def test_learning_happens(samples, tmp_path):
    """A few epochs on one easy attack must beat chance clearly, on voices that were not trained on."""
    easy = samples.subset(attack=["", "lpc"], kind="full")
    config = FitConfig(epochs=6, batch_size=16, crop=0.7, lr=2e-3, balance=True, seed=0)
    torch.manual_seed(0)
    model = build("lcnn_lstm", feature="house", dropout=0.3)
    result = fit(model, easy.subset(split="train"), easy.subset(split="dev"), config, tmp_path)
    table = score(result.model, easy.subset(split="eval"))
    rate = training.equal_error(*training.operating_points(table.score, label_ids(table.label))[1:])
    assert rate < 0.3 and result.history.train_loss.iloc[-1] < 0.6 and isinstance(table, pd.DataFrame)
