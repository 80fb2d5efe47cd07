import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wedefense_nb.data.audio import SAMPLE_RATE, AudioError
from wedefense_nb.data.batches import (
    AudioDataset,
    bucketed,
    class_balanced,
    collate,
    epoch_batches,
    eval_batches,
    loader,
    share,
    token_batches,
)
from wedefense_nb.data.crops import Crop, Item, crop_label, crop_segments, tile_segments
from wedefense_nb.data.manifest import Manifest
from wedefense_nb.task import SPOOF


def test_collate_pads_and_remembers_lengths():
    b = collate([Item("a", np.ones(3, np.float32), 1), Item("b", np.ones(5, np.float32), 0)])
    assert b.wave.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]] and b.lengths.tolist() == [3, 5]
    assert b.labels.tolist() == [1, 0] and b.utts == ["a", "b"] and b.to("cpu").utts == b.utts
    with pytest.raises(ValueError, match="at least one"):
        collate([])
    with pytest.raises(ValueError, match="no samples in"):
        collate([Item("x", np.zeros(0, np.float32), 1)])


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=4),
    st.integers(0, 80),
    st.integers(1, 40),
)
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
        data = AudioDataset(samples, Crop(0.5, seed=seed))
        return [data[e, i].wave.tobytes() for e in epochs for i in range(6)]

    assert crops(0) == crops(0) and len(set(crops(0))) == 12 and not set(crops(0)) & set(crops(1))


def test_crop_keeps_short_recordings_whole_and_refuses_nonsense(samples):
    assert len(AudioDataset(samples, Crop(60.0))[0, 0].wave) == len(AudioDataset(samples)[0, 0].wave)
    for bad in (0, -1.0):
        with pytest.raises(ValueError, match="positive"):
            AudioDataset(samples, Crop(bad))
    for bad in ("tile+zero", "random+start", "middle", ""):
        with pytest.raises(ValueError, match="policy is one of"):
            AudioDataset(samples, Crop(1.0, bad))
    with pytest.raises(ValueError, match="'segments' or 'keep'"):
        AudioDataset(samples, Crop(1.0, label="guess"))


SPANS = st.lists(st.integers(0, 300), min_size=2, max_size=8, unique=True)


@given(
    SPANS,
    st.integers(1, 1200),
    st.sampled_from(["random", "start", "tile", "zero", "start+tile", "start+zero"]),
)
def test_crop_equals_brute_force_per_sample(marks, n, policy):  # pitfalls 22 and 61
    """The wave carries 1 where it is fake: after any crop the segments must say the same of every sample."""
    marks = sorted(marks)
    spans = np.array(marks[: len(marks) // 2 * 2]).reshape(-1, 2)
    fake = np.zeros(301, np.float32)
    for a, b in spans:
        fake[a:b] = 1
    item = Item("u", fake + 2, 0, spans / SAMPLE_RATE)
    for epoch in range(3):
        got = Crop(n / SAMPLE_RATE, policy)(item, epoch)
        filled = "tile" in policy or "zero" in policy
        assert len(got.wave) == (n if filled or n < 301 else 301)
        said = np.zeros(len(got.wave))
        for a, b in got.fakes * SAMPLE_RATE:
            said[round(a) : round(b)] = 1
        assert np.array_equal(said, got.wave == 3)
        assert got.label == (0 if (got.wave == 3).any() else 1)
        sound = got.wave[got.wave > 0]  # what was added to it is zero
        if "tile" in policy and n > 301:
            assert np.array_equal(got.wave, np.tile(item.wave, 5)[:n])
        elif n >= 301:
            assert np.array_equal(sound, item.wave)
        elif "start" in policy:
            assert np.array_equal(sound, item.wave[:n])


def test_tiled_segments_of_the_published_mistake():  # pitfall 22: A, B, A, A instead of A, B, A, B
    assert tile_segments(np.array([[1.0, 2.0]]), 2.0, 4.0).tolist() == [[1, 2], [3, 4]]


def test_label_of_a_crop_without_fake_follows_the_policy():  # pitfall 61
    item = Item("u", np.ones(16000, np.float32), 0, np.array([[0.9, 1.0]]))
    labels = [Crop(0.5, "start", label)(item).label for label in ("segments", "keep")]
    assert labels == [1, 0] and Crop(0.5, "start")(item._replace(fakes=np.zeros((0, 2)))).label == 0


@given(st.lists(st.floats(0.1, 20), min_size=1, max_size=60), st.floats(20, 90), st.integers(0, 3))
def test_token_batches_bound_the_padded_seconds(durations, budget, epoch):
    m = Manifest_of(len(durations), spoof=0)
    m.utterances["duration"] = durations
    plan = token_batches(m, budget, epoch)
    assert sorted(i for b in plan for _, i in b) == list(range(len(m))) and plan == token_batches(m, budget, epoch)
    assert all(len(b) * max(durations[i] for _, i in b) <= budget for b in plan)
    assert all(e == epoch for b in plan for e, _ in b)


def test_token_batches_waste_little_and_name_what_does_not_fit():
    m = Manifest_of(500)
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


@pytest.mark.parametrize("policy", ["random", "start", "tile", "start+tile", "zero"])
@pytest.mark.parametrize("seconds", [0.5, 1.0, 3.3])
def test_frames_are_cropped_like_samples(policy, seconds):
    """Features of 50 frames a second: time on the first axis, two values in a frame."""
    fakes = np.array([[0.2, 0.4], [0.9, 1.6]])
    wave = np.arange(1.0, 101.0, dtype=np.float32)
    item = Item("u", None, SPOOF, fakes)
    for epoch in range(3):
        one = Crop(seconds, policy, rate=50)(item._replace(wave=wave), epoch)
        two = Crop(seconds, policy, rate=50)(item._replace(wave=np.stack([wave, -wave], 1)), epoch)
        assert np.array_equal(two.wave, np.stack([one.wave, -one.wave], 1)) and two.wave.dtype == np.float32
        assert np.array_equal(one.fakes, two.fakes) and one.label == two.label
        said = np.zeros(len(one.wave), bool)
        for a, b in one.fakes * 50:
            said[round(a) : round(b)] = True
        frames = one.wave - 1
        assert np.array_equal(said, ((frames >= 10) & (frames < 20)) | ((frames >= 45) & (frames < 80)))


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


def test_loader_failures_end_with_the_file_name(samples, tmp_path):  # pitfall 53
    broken = samples.subset(utt=samples.utterances.utt[:4].tolist())
    broken.utterances.loc[2, "path"] = "audio/missing.flac"
    for workers in (0, 2):
        with pytest.raises(ValueError, match="missing.flac"):
            list(loader(AudioDataset(broken), eval_batches(broken, 2), workers))
    with pytest.raises(ValueError, match="positive batch size"):
        epoch_batches(samples, 0)
    assert len(epoch_batches(broken, 100)) == 1  # fewer utterances than a batch
