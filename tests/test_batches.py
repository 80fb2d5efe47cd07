import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wedefense_nb.batches import (
    AudioDataset,
    Item,
    bucketed,
    class_balanced,
    collate,
    crop_label,
    crop_segments,
    epoch_batches,
    eval_batches,
    loader,
    share,
)
from wedefense_nb.manifest import Manifest


def test_collate_pads_and_remembers_lengths():
    b = collate([Item("a", np.ones(3, np.float32), 1), Item("b", np.ones(5, np.float32), 0)])
    assert b.wave.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]] and b.lengths.tolist() == [3, 5]
    assert b.labels.tolist() == [1, 0] and b.utts == ["a", "b"] and b.to("cpu").utts == b.utts
    with pytest.raises(ValueError, match="at least one"):
        collate([])
    with pytest.raises(ValueError, match="no samples in"):
        collate([Item("x", np.zeros(0, np.float32), 1)])


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=4), st.integers(0, 80), st.integers(1, 40))
def test_crop_label_equals_brute_force_per_sample(spans, start, length):  # pitfalls 22 and 61
    """Work in hundredths of a second, sample by sample."""
    fakes = np.array([[a / 100, (a + n) / 100] for a, n in spans]).reshape(-1, 2)
    fake = np.zeros(200, bool)
    for a, n in spans:
        fake[a : a + n] = True
    want = 0 if not spans or fake[start : start + length].any() else 1
    assert crop_label(fakes, start / 100, (start + length) / 100, 0) == want
    left = np.zeros(length, bool)
    for a, b in crop_segments(fakes, start / 100, (start + length) / 100):
        left[round(a * 100) : round(b * 100)] = True
    assert np.array_equal(left, fake[start : start + length])


def test_crops_are_functions_of_seed_epoch_and_utterance(samples):
    def crops(seed, epochs=(0, 1)):
        data = AudioDataset(samples, crop=0.5, seed=seed)
        return [data[e, i].wave.tobytes() for e in epochs for i in range(6)]

    assert crops(0) == crops(0) and len(set(crops(0))) == 12 and not set(crops(0)) & set(crops(1))


def test_crop_keeps_short_recordings_whole_and_refuses_nonsense(samples):
    assert len(AudioDataset(samples, crop=60.0)[0, 0].wave) == len(AudioDataset(samples)[0, 0].wave)
    for bad in (0, -1.0):
        with pytest.raises(ValueError, match="positive"):
            AudioDataset(samples, crop=bad)


def test_partial_fakes_change_class_where_the_crop_is_real(samples):
    partial = samples.subset(kind="partial")
    data = AudioDataset(partial, crop=0.2)
    labels = [data[e, i].label for e in range(3) for i in range(40)]
    assert 0.1 < np.mean(labels) < 0.7
    spliced = AudioDataset(samples.subset(kind="spliced"), crop=0.2)
    assert all(spliced[e, i].label == 1 for e in range(3) for i in range(len(spliced)))


def test_workers_change_nothing_and_draw_differently(samples):  # pitfall 51
    few = samples.subset(utt=samples.utterances.utt[:12].tolist())
    data, plans = AudioDataset(few, crop=0.4, seed=1), [epoch_batches(few, 3, epoch=e, seed=1) for e in (0, 1)]
    runs = [[b for plan in plans for b in loader(data, plan, workers=w)] for w in (0, 2)]
    for a, b in zip(*runs, strict=True):
        assert a.utts == b.utts and torch.equal(a.wave, b.wave)
    assert len({x.numpy().tobytes() for b in runs[0] for x in b.wave}) == 24


@pytest.mark.parametrize("bucket", [False, True])
def test_every_recording_once_an_epoch(samples, bucket):
    for epoch in range(3):
        plan = epoch_batches(samples, 7, epoch, seed=5, bucket=bucket)
        assert sorted(i for b in plan for _, i in b) == list(range(len(samples)))
        assert all(e == epoch for b in plan for e, _ in b)


def test_shuffling_reaches_all_orders():  # pitfall 52: a published shuffle reaches 16 of 720
    u = Manifest_of(4)
    seen = {tuple(i for b in epoch_batches(u, 1, epoch) for _, i in b) for epoch in range(400)}
    assert len(seen) == 24


def Manifest_of(n, spoof=2):
    import pandas as pd

    label = ["spoof"] * spoof + ["bonafide"] * (n - spoof)
    return Manifest(pd.DataFrame({
        "utt": [f"u{i}" for i in range(n)], "path": "x", "label": label, "split": "", "speaker": "", "attack": "",
        "codec": "", "duration": np.linspace(1, 20, n), "sample_rate": 16000,
    }))  # fmt: skip


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 5))
def test_class_balance(n_spoof, n_bona, seed):
    labels = np.r_[np.zeros(n_spoof, int), np.ones(n_bona, int)]
    drawn = class_balanced(labels, np.random.default_rng(seed))
    counts = np.bincount(drawn, minlength=len(labels))
    assert len(drawn) == len(labels) and abs(int(labels[drawn].sum()) * 2 - len(labels)) <= 1
    for c in (0, 1):
        assert np.ptp(counts[labels == c]) <= 1  # none a second time before all a first
    with pytest.raises(ValueError, match="both classes"):
        class_balanced(np.zeros(3, int), np.random.default_rng(0))


def test_bucketing_saves_padding_and_loses_nothing():
    rng = np.random.default_rng(0)
    durations, order = rng.uniform(1, 20, 500), rng.permutation(500)
    batches = bucketed(order, durations, 16, rng)
    assert sorted(np.concatenate(batches)) == list(range(500))

    def padded(batches):
        return sum(len(b) * durations[b].max() for b in batches) / durations.sum()

    assert padded(batches) < 1.15 < padded([order[i : i + 16] for i in range(0, 500, 16)])


@given(st.integers(1, 30), st.integers(1, 5))
def test_shares_are_equal_and_cover_everything(n, world):
    if n < world:
        with pytest.raises(ValueError, match="smaller batches"):
            share(list(range(n)), world - 1, world)
        return
    shares = [share(list(range(n)), r, world) for r in range(world)]
    assert len({len(x) for x in shares}) == 1 and set().union(*shares) == set(range(n))


def test_eval_batches_take_each_once_longest_first(samples):
    plan = eval_batches(samples, 9)
    order = [i for b in plan for _, i in b]
    assert sorted(order) == list(range(len(samples)))
    assert (np.diff(samples.utterances.duration.to_numpy()[order]) <= 0).all()


def test_loader_failures_end_with_the_file_name(samples, tmp_path):  # pitfall 53
    broken = samples.subset(utt=samples.utterances.utt[:4].tolist())
    broken.utterances.loc[2, "path"] = "audio/missing.flac"
    for workers in (0, 2):
        with pytest.raises(ValueError, match="missing.flac"):
            list(loader(AudioDataset(broken), eval_batches(broken, 2), workers))
    with pytest.raises(ValueError, match="positive batch size"):
        epoch_batches(samples, 0)
    assert len(epoch_batches(broken, 100)) == 1  # fewer utterances than a batch
