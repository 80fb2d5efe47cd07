"""Every recording once, whole, by its name, whatever the batches; labels are not needed."""

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
import torch

from tests.training.runs import small
from wedefense_nb.data.batches import eval_batches
from wedefense_nb.data.manifest import Manifest, from_folder
from wedefense_nb.training import scoring
from wedefense_nb.training.scoring import bar_options, score


@pytest.fixture(scope="module")
def dev(few):
    return few.subset(split="dev")


@pytest.fixture(scope="module")
def table(dev):
    return score(small(), dev)


def test_scores_come_in_manifest_order_whatever_the_batches(dev, table):  # pitfalls 32 and 57
    assert table.utt.tolist() == dev.utterances.utt.tolist()
    assert table.label.tolist() == dev.utterances.label.tolist()
    for bounds in ({"batch_size": 1}, {"batch_size": 5, "workers": 2}, {"batch_size": 64, "batch_seconds": 3.0}):
        again = score(small(), dev, **bounds)
        assert again.utt.tolist() == table.utt.tolist()
        assert np.allclose(again.score, table.score, atol=1e-4)


def test_bounds_reach_the_batches(dev, monkeypatch):
    made = []
    loader = scoring.loader
    monkeypatch.setattr(
        scoring, "loader", lambda data, plan, workers: made.append(plan) or loader(data, plan, workers)
    )
    score(small(), dev, batch_size=5, batch_seconds=4.0)
    assert made[0] == eval_batches(dev, 5, 4.0)


def test_a_score_is_the_difference_of_the_logits_without_the_training_prior(dev, table):  # pitfall 3
    model = small()
    model.log_prior_odds.fill_(-1.5)
    assert np.allclose(score(model, dev).score, table.score + 1.5, atol=1e-5)
    with torch.no_grad():
        model.head.out.bias += torch.tensor([0.0, 2.0])  # towards bona fide
    assert np.allclose(score(model, dev).score, table.score + 3.5, atol=1e-4)


def test_the_end_of_a_long_recording_is_heard(tmp_path):  # pitfall 69
    wave = 0.1 * np.random.default_rng(0).normal(size=20 * 16000)
    sf.write(tmp_path / "long.wav", wave, 16000)
    heard = []
    model = small()
    model.register_forward_pre_hook(lambda module, args: heard.append(args))
    score(model, from_folder(tmp_path))
    ((given, lengths),) = heard
    assert lengths.tolist() == [len(wave)] and np.allclose(given[0, -16000:], wave[-16000:], atol=1e-4)


def test_recordings_without_labels_are_scored_as_any(dev, table):
    strangers = Manifest(dev.utterances.assign(label="", attack=""), root=dev.root)
    again = score(small(), strangers)
    assert again.label.tolist() == [""] * len(dev) and np.allclose(again.score, table.score, atol=1e-6)


def test_dropout_is_off_and_the_mode_comes_back(dev, table):
    model = small()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    again = score(model, dev)
    assert model.training and np.allclose(again.score, table.score, atol=1e-6)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.eval()
    score(model, dev)
    assert not model.training


def test_scores_that_are_not_finite_are_refused_with_names(dev):
    for bad in ("nan", "inf"):
        model = small()
        with torch.no_grad():
            model.head.out.bias[1] = float(bad)
        with pytest.raises(
            FloatingPointError, match=f"{len(dev)} scores are not finite: {dev.utterances.utt[0]}, S"
        ):
            score(model, dev)
    with pytest.raises(ValueError, match="no recordings"):
        score(small(), dev.subset(split="train"))


class Rank(SimpleNamespace):
    """One of two processes, as `accelerate.Accelerator` presents itself."""

    num_processes = 2
    is_main_process = False
    device = torch.device("cpu")
    autocast = scoring.contextlib.nullcontext

    def unwrap_model(self, model):
        return model


def test_processes_share_the_work_and_all_get_the_whole_table(dev, table, monkeypatch):
    parts = {}
    for rank in (0, 1):
        monkeypatch.setattr(scoring, "_gathered", lambda rows, accelerator: rows)
        monkeypatch.setattr(scoring, "_table", lambda rows, manifest: rows)
        parts[rank] = score(small(), dev, batch_size=4, accelerator=Rank(process_index=rank))
        monkeypatch.undo()
    utts = [utt for rows in parts.values() for utt, _, _ in rows]
    assert sorted(utts) == sorted(dev.utterances.utt) and parts[0] and parts[1]
    whole = scoring._table(parts[1] + parts[0], dev)
    assert whole.utt.tolist() == table.utt.tolist() and np.allclose(whole.score, table.score, atol=1e-4)


def test_a_bar_is_shown_or_not():
    assert bar_options(True) == {"mininterval": 1.0} and bar_options(False) == {"disable": True}


# Windows


@pytest.mark.parametrize("length, size", [(5, 2), (9, 3), (10, 3), (7, 7), (4, 9), (100, 33), (1, 1)])
def test_windows_cover_a_recording_evenly_and_no_more_than_needed(length, size):
    wave = torch.arange(length, dtype=torch.float32)[None]
    windows, sizes, owners = scoring.cut_windows(wave, torch.tensor([length]), size)
    n = -(-length // size)
    starts = windows[:, 0].tolist()
    assert len(windows) == n and owners.tolist() == [0] * n and sizes.tolist() == [min(size, length)] * n
    assert starts[0] == 0 and windows[-1, -1] == length - 1
    assert set(windows.flatten().tolist()) == set(range(length))
    gaps = np.diff(starts)
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


def test_scores_by_windows_are_the_mean_of_what_each_would_get(dev):
    model = small()
    table = score(model, dev, windows=0.4, batch_size=3)
    data = scoring.open_dataset(dev)
    size = 6400
    for row in (0, 3, 7):
        wave = torch.from_numpy(data[0, row].wave)
        n = max(1, -(-len(wave) // size))
        starts = [i * (len(wave) - size) // max(1, n - 1) for i in range(n)]
        alone = []
        with torch.no_grad():
            for start in starts:
                piece = wave[start : start + size][None]
                alone.append(model.eval().score(model(piece, torch.tensor([piece.shape[1]]))).item())
        assert n > 1 and table.score[row] == pytest.approx(np.mean(alone), abs=1e-4)
    one_by_one = score(model, dev, windows=0.4, batch_size=1)
    assert np.allclose(one_by_one.score, table.score, atol=1e-4)


def test_a_window_longer_than_every_recording_is_whole_scoring(dev, table):
    assert score(small(), dev, windows=60.0).equals(table)
    for windows in (0.0, -1.0, float("inf")):
        with pytest.raises(ValueError, match="they need a length"):
            score(small(), dev, windows=windows)


def test_windows_of_stored_features_are_as_long_as_those_of_sounds(monkeypatch, dev):
    monkeypatch.setattr(scoring, "holds_features", lambda manifest: True)
    monkeypatch.setattr(scoring, "read_note", lambda folder: {"hop": 320})
    assert scoring._window_size(dev, 0.4) == 20
