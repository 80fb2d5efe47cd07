"""Padded tensors, and the order in which recordings meet."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wedefense_nb.data.audio import AudioError
from wedefense_nb.data.batches import (
    AudioDataset,
    at_once,
    balanced,
    bucketed,
    check_batch,
    class_balanced,
    class_numbers,
    collate,
    epoch_batches,
    eval_batches,
    frame_mask,
    loader,
    share,
    token_batches,
)
from wedefense_nb.data.crops import Crop, Item
from wedefense_nb.data.manifest import Manifest
from wedefense_nb.task import BONAFIDE, SPOOF, UNLABELLED


def test_collate_pads_and_remembers_lengths():
    b = collate([Item("a", np.ones(3, np.float32), 1), Item("b", np.ones(5, np.float32), 0)])
    assert b.wave.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]] and b.lengths.tolist() == [3, 5]
    assert b.labels.tolist() == [1, 0] and b.utts == ["a", "b"] and b.to("cpu").utts == b.utts
    with pytest.raises(ValueError, match="at least one"):
        collate([])
    with pytest.raises(ValueError, match="no samples in"):
        collate([Item("x", np.zeros(0, np.float32), 1)])


def test_masks_and_what_lies_beyond():
    assert frame_mask(torch.tensor([0, 2, 3]), 3).int().tolist() == [[0, 0, 0], [1, 1, 0], [1, 1, 1]]
    wave = torch.arange(1.0, 7.0).reshape(2, 3)
    assert check_batch(wave, torch.tensor([3, 1])).tolist() == [[1, 2, 3], [4, 0, 0]]
    assert check_batch(wave, torch.tensor([3, 3])) is wave
    for lengths in ([0, 3], [4, 3]):
        with pytest.raises(ValueError, match="lengths must be 1 to 3 samples here, got"):
            check_batch(wave, torch.tensor(lengths))
    with pytest.raises(ValueError, match="must be 2 to 3"):
        check_batch(wave, torch.tensor([3, 1]), shortest=2)
    for bad in (torch.ones(3), torch.ones(2, 3, 1)):
        with pytest.raises(ValueError, match="need wave"):
            check_batch(bad, torch.tensor([3, 1]))
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(3,\)"):
        check_batch(wave, torch.tensor([3, 1, 2]))
    assert at_once(wave) == 2


def test_a_batch_travels_between_processes_as_it_is():
    items = [Item("a", np.ones(3, np.float32), 1), Item("b", np.ones(5, np.float32), -1, np.array([[0.0, 0.1]]))]
    batch = collate(items)
    back = pickle.loads(pickle.dumps(batch))
    for name in ("wave", "lengths", "labels"):
        assert torch.equal(getattr(back, name), getattr(batch, name))
        assert getattr(back, name).dtype == getattr(batch, name).dtype
    assert back.utts == batch.utts and [f.tolist() for f in back.fakes] == [[], [[0.0, 0.1]]]


def test_the_dataset_crops_by_seed_and_epoch(samples):
    few = samples.subset(utt=samples.utterances.utt[:6].tolist())
    whole = AudioDataset(few)
    crop = Crop(0.5, seed=1)
    data = AudioDataset(few, crop)
    for epoch, i in ((0, 0), (1, 0), (1, 5)):
        assert np.array_equal(data[epoch, i].wave, crop(whole[0, i], epoch).wave)


def test_who_has_no_label_is_of_no_class(samples):
    u = samples.utterances.head(3).assign(
        label=["bonafide", "", "spoof"], split=["train", "eval", "train"], attack=""
    )
    m = Manifest(u, root=samples.root)
    assert class_numbers(m).tolist() == [BONAFIDE, UNLABELLED, SPOOF]
    assert [AudioDataset(m)[0, i].label for i in range(3)] == [BONAFIDE, UNLABELLED, SPOOF]
    assert set(class_balanced(class_numbers(m), np.random.default_rng(0))) == {0, 2}


@given(st.lists(st.floats(0.1, 20), min_size=1, max_size=60), st.floats(20, 90), st.integers(0, 3))
def test_token_batches_bound_the_padded_seconds(durations, budget, epoch):
    m = manifest_of(len(durations), spoof=0)
    m.utterances["duration"] = durations
    plan = token_batches(m, budget, epoch)
    assert sorted(i for b in plan for _, i in b) == list(range(len(m))) and plan == token_batches(m, budget, epoch)
    assert all(len(b) * max(durations[i] for _, i in b) <= budget for b in plan)
    assert all(e == epoch for b in plan for e, _ in b)


def test_token_batches_waste_little_and_name_what_does_not_fit():
    m = manifest_of(500)
    m.utterances["duration"] = np.random.default_rng(0).uniform(1, 20, 500)
    plans = [token_batches(m, 60.0, epoch) for epoch in (0, 1)]
    seconds = m.utterances.duration.to_numpy()
    padded = sum(len(b) * seconds[[i for _, i in b]].max() for b in plans[0])
    assert padded < 1.25 * seconds.sum() and plans[0] != plans[1] and len(plans[0]) < 1.4 * seconds.sum() / 60
    with pytest.raises(ValueError, match="raise batch_seconds"):
        token_batches(m, 10.0)
    m.utterances.loc[3, "duration"] = np.nan  # nobody has looked into the file
    with pytest.raises(ValueError, match=r"\['u3'\]; raise batch_seconds or crop"):
        token_batches(m, 60.0)
    m.utterances.loc[3, "duration"] = 2.0
    balanced = [i for b in token_batches(m, 60.0, balance=True) for _, i in b]
    assert len(balanced) == 500 and sum(i < 2 for i in balanced) == 250  # two are spoof


def test_a_recording_may_be_a_stretch_of_a_file(samples, tmp_path):
    few = samples.subset(utt=samples.utterances.utt[:3].tolist())
    parts = [p.read_bytes() for p in few.paths()]
    (tmp_path / "all.bin").write_bytes(b"head" + b"".join(parts))
    sizes = [len(x) for x in parts]
    u = few.utterances.assign(
        path=str(tmp_path / "all.bin"), offset=[4, 4 + sizes[0], 4 + sum(sizes[:2])], size=sizes
    )
    inside = AudioDataset(Manifest(u, few.segments))
    for i in range(3):
        assert np.array_equal(inside[0, i].wave, AudioDataset(few)[0, i].wave)
    (tmp_path / "all.bin").write_bytes(b"head" + b"".join(parts)[:-10])
    with pytest.raises(AudioError, match="all.bin: truncated"):
        inside[0, 2]


def test_partial_fakes_change_class_where_the_crop_is_real(samples):
    partial = samples.subset(kind="partial")
    data = AudioDataset(partial, Crop(0.2))
    labels = [data[e, i].label for e in range(3) for i in range(40)]
    assert 0.1 < np.mean(labels) < 0.7
    spliced = AudioDataset(samples.subset(kind="spliced"), Crop(0.2))
    assert all(spliced[e, i].label == 1 for e in range(3) for i in range(len(spliced)))


def test_workers_change_nothing_and_draw_differently(samples):  # pitfall 51
    few = samples.subset(utt=samples.utterances.utt[:12].tolist())
    data = AudioDataset(few, Crop(0.4, seed=1))
    plans = [epoch_batches(few, 3, epoch=e, seed=1) for e in (0, 1)]
    runs = [[b for plan in plans for b in loader(data, plan, workers=w)] for w in (0, 2)]
    for a, b in zip(*runs, strict=True):
        assert a.utts == b.utts and torch.equal(a.wave, b.wave)
        assert torch.equal(a.lengths, b.lengths) and torch.equal(a.labels, b.labels)
    assert len({x.numpy().tobytes() for b in runs[0] for x in b.wave}) == 24


@pytest.mark.parametrize("bucket", [False, True])
def test_every_recording_once_an_epoch(samples, bucket):
    for epoch in range(3):
        plan = epoch_batches(samples, 7, epoch, seed=5, bucket=bucket)
        assert sorted(i for b in plan for _, i in b) == list(range(len(samples)))
        assert all(e == epoch for b in plan for e, _ in b)


def test_shuffling_reaches_all_orders():  # pitfall 52: a published shuffle reaches 16 of 720
    u = manifest_of(4)
    seen = {tuple(i for b in epoch_batches(u, 1, epoch) for _, i in b) for epoch in range(400)}
    assert len(seen) == 24
    assert {tuple(i for b in epoch_batches(u, 1, seed=seed) for _, i in b) for seed in range(400)} == seen


def manifest_of(n, spoof=2):
    """A table without files; recordings last from 1 to 20 s."""

    label = ["spoof"] * spoof + ["bonafide"] * (n - spoof)
    return Manifest(
        pd.DataFrame(
            {
                "utt": [f"u{i}" for i in range(n)],
                "path": "x",
                "label": label,
                "split": "",
                "speaker": "",
                "attack": "",
                "codec": "",
                "duration": np.linspace(1, 20, n),
                "sample_rate": 16000,
            }
        )
    )


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
    durations = rng.uniform(1, 20, 500)
    order = rng.permutation(500)
    batches = bucketed(order, durations, 16, rng)
    assert sorted(np.concatenate(batches)) == list(range(500))

    def padded(batches):
        return sum(len(b) * durations[b].max() for b in batches) / durations.sum()

    assert padded(batches) < 1.15 < padded([order[i : i + 16] for i in range(0, 500, 16)])


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 5))
def test_shares_are_equal_and_cover_everything_once(n, size, world):
    plan = [list(range(n))[i : i + size] for i in range(0, n, size)]
    if n < world:
        with pytest.raises(ValueError, match="fewer processes"):
            share(plan, world - 1, world)
        return
    shares = [share(plan, r, world) for r in range(world)]
    assert len({len(x) for x in shares}) == 1
    taken = sorted(i for x in shares for batch in x for i in batch)
    if size > 1 and n >= 2 * world:  # batches can be cut until they fit
        assert taken == list(range(n))
    assert set(taken) == set(range(n)) and len(taken) < n + world
    assert all(len(batch) <= size for x in shares for batch in x)


def test_eval_batches_take_each_once_longest_first(samples):
    plan = eval_batches(samples, 9)
    order = [i for b in plan for _, i in b]
    assert sorted(order) == list(range(len(samples)))
    assert (np.diff(samples.utterances.duration.to_numpy()[order]) <= 0).all()


def test_eval_batches_are_bounded_twice():
    m = manifest_of(20, spoof=0)  # 1 to 20 s
    seconds = m.utterances.duration.to_numpy()
    plan = eval_batches(m, 6, batch_seconds=18.0)
    assert [len(b) for b in plan[:5]] == [1, 1, 1, 1, 1] and max(map(len, plan)) <= 6
    assert all(len(b) * max(seconds[i] for _, i in b) <= 18.0 for b in plan if len(b) > 1)
    assert sorted(i for b in plan for _, i in b) == list(range(20)) and len(plan) < 16
    m.utterances["duration"] = np.nan  # nobody knows: then only the number counts
    assert [len(b) for b in eval_batches(m, 6, batch_seconds=18.0)] == [6, 6, 6, 2]


def test_loader_failures_end_with_the_file_name(samples, tmp_path):  # pitfall 53
    broken = samples.subset(utt=samples.utterances.utt[:4].tolist())
    broken.utterances.loc[2, "path"] = "audio/missing.flac"
    for workers in (0, 2):
        with pytest.raises(ValueError, match="missing.flac"):
            list(loader(AudioDataset(broken), eval_batches(broken, 2), workers))
    with pytest.raises(ValueError, match="positive batch size"):
        epoch_batches(samples, 0)
    assert len(epoch_batches(broken, 100)) == 1  # fewer utterances than a batch


def test_classes_and_then_columns_are_drawn_evenly(samples):
    train = samples.subset(split="train", kind="full")
    u = train.utterances
    rows = balanced(train, ["attack", "speaker"], np.random.default_rng(1))
    drawn = u.iloc[rows]
    assert len(rows) == len(train) and (drawn.label == "spoof").sum() == len(train) // 2
    fakes = drawn[drawn.label == "spoof"]
    by_attack = fakes.attack.value_counts()
    assert set(by_attack.index) == set(u.attack) - {""} and by_attack.max() - by_attack.min() <= 1
    for _, group in drawn.groupby(["label", "attack"]):
        assert group.speaker.value_counts().max() - group.speaker.value_counts().min() <= 1
    for (attack, speaker), group in fakes.groupby(["attack", "speaker"]):
        there = ((u.attack == attack) & (u.speaker == speaker)).sum()
        assert group.utt.value_counts().max() <= -(-len(group) // there)  # none again before all were drawn
    again = balanced(train, ["attack", "speaker"], np.random.default_rng(1))
    assert (rows == again).all() and not (rows == np.sort(rows)).all()
    plain = balanced(train, [], np.random.default_rng(1))
    assert (plain == class_balanced(class_numbers(train), np.random.default_rng(1))).all()
    with pytest.raises(ValueError, match="unknown column 'atack'"):
        balanced(train, ["atack"], np.random.default_rng(1))
    with pytest.raises(ValueError, match="both classes"):
        balanced(train.subset(label="spoof"), ["attack"], np.random.default_rng(1))


def test_what_cannot_be_divided_falls_to_others_in_turn(samples):
    train = samples.subset(split="train", kind="full", attack=["", "lpc", "world", "gl_mel"])
    u = train.utterances
    most = set()
    for seed in range(20):
        rows = balanced(train, ["attack"], np.random.default_rng(seed))
        counts = u.attack.iloc[rows].value_counts().drop("")
        most |= set(counts.index[counts == counts.max()]) if counts.max() > counts.min() else set()
    n_spoof = len(train) // 2
    assert n_spoof % 3 == 0 or most == {"lpc", "world", "gl_mel"}


@pytest.mark.parametrize("plan, size", [(epoch_batches, 8), (token_batches, 20.0)])
def test_plans_are_balanced_by_columns(samples, plan, size):
    train = samples.subset(split="train", kind="full")
    rows = [row for batch in plan(train, size, balance=True, by=["attack"]) for _, row in batch]
    counts = train.utterances.attack.iloc[rows].value_counts()
    assert len(rows) == len(train) and counts.drop("").max() - counts.drop("").min() <= 1
