"""Frames and segments, against programs that look at every sample."""

import time

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from wedefense_nb.augmentation.codecs import Codec
from wedefense_nb.augmentation.telephone import PacketLoss
from wedefense_nb.augmentation.warping import Speed
from wedefense_nb.data.batches import collate
from wedefense_nb.data.crops import Crop, Item
from wedefense_nb.data.manifest import Manifest, from_rttm, to_rttm
from wedefense_nb.data.parsers.partial import RESOLUTIONS, segment_labels
from wedefense_nb.localization.frames import (
    batch_labels,
    boundaries,
    boundary_targets,
    coarser,
    cover,
    cover_all,
    frame_count,
    frame_step,
    frames_to_segments,
    labelled,
    lay_out,
    manifest_labels,
    segments_to_frames,
    timeline,
    write_segment_labels,
)
from wedefense_nb.task import BONAFIDE, SPOOF, UNLABELLED

SR = 16000
HOPS = [0.01, 0.02, 0.04, 0.16, 1 / 75, 256 / 22050, 1 / 16000, 0.07]


def per_sample(fakes, samples):
    """One flag a sample: is it fake?"""
    flags = np.zeros(samples, bool)
    for start, end in fakes:
        flags[round(start * SR) : round(end * SR)] = True
    return flags


def cells(samples, hop):
    """Samples of each frame, found by adding exact steps up."""
    step = frame_step(hop)
    found = []
    i = 0
    while step * i < samples:
        found.append((int(step * i), min(int(step * (i + 1)), samples)))
        i += 1
    return found


def slow(fakes, samples, hop, rule):
    flags = per_sample(fakes, samples)
    rows = []
    for a, b in cells(samples, hop):
        fake = flags[a:b].sum()
        spoof = fake > 0 if rule == "any" else fake > (b - a) / 2
        rows.append(SPOOF if spoof else BONAFIDE)
    return rows


def manifest(*rows, segments=()):
    """Recordings (utt, label, seconds) and segments (utt, start, end, label)."""
    u = pd.DataFrame(rows, columns=["utt", "label", "duration"])
    u = u.assign(path=u.utt, split="", speaker="", attack="", codec="", sample_rate=SR)
    s = pd.DataFrame(list(segments), columns=["utt", "start", "end", "label"]).assign(attack="")
    return Manifest(u, s)


SPANS = st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 700)), max_size=6)


@given(SPANS, st.integers(1, 1600), st.sampled_from(HOPS), st.sampled_from(["any", "majority"]))
@example([(0, 1), (2, 1), (3, 4)], 7, 1 / 16000, "any")
def test_segments_to_frames_equals_a_look_at_every_sample(spans, samples, hop, rule):
    fakes = np.array([[a, a + n] for a, n in spans if a <= samples]).reshape(-1, 2) / SR
    got = segments_to_frames(fakes, samples, hop, rule)
    assert got.dtype == np.int64 and got.tolist() == slow(fakes, samples, hop, rule)


def test_the_example_on_paper():
    """L01_hand of the oracles: 0.2 s, spoof from 0.08 to 0.14 s."""
    word = [[0.08, 0.14]]
    assert segments_to_frames(word, 3200, 0.02).tolist() == [1, 1, 1, 1, 0, 0, 0, 1, 1, 1]
    assert segments_to_frames(word, 3200, 0.04).tolist() == [1, 1, 0, 0, 1]
    assert segments_to_frames(word, 3200, 0.04, "majority").tolist() == [1, 1, 0, 1, 1]
    assert segments_to_frames(word, 3200, 0.08).tolist() == [1, 0, 1]


def test_exactly_half_is_bona_fide_and_one_sample_more_is_spoof():
    assert segments_to_frames([[0, 160 / SR]], 320, 0.02, "majority").tolist() == [BONAFIDE]
    assert segments_to_frames([[0, 161 / SR]], 320, 0.02, "majority").tolist() == [SPOOF]
    last = segments_to_frames([[320 / SR, 331 / SR]], 341, 0.02, "majority")  # 11 of the 21 samples that are left
    assert last.tolist() == [BONAFIDE, SPOOF]


@pytest.mark.parametrize("hop", [0.01, 0.02, 0.04, 0.16, 0.32, 1 / 75])
def test_labels_cover_every_length(hop):  # pitfall 16
    """Also each short length; the last sample is fake, and it is in the last frame, never beyond one."""
    lengths = np.r_[np.arange(1, 1300), np.arange(1300, 50001, 97)]
    ends = lengths / SR
    line = lay_out([str(n) for n in lengths], lengths, np.arange(len(lengths)), np.stack([ends - 1 / SR, ends], 1))
    counts = frame_count(lengths, hop)
    assert counts.tolist() == [
        -(-int(n) * frame_step(hop).denominator // frame_step(hop).numerator) for n in lengths
    ]
    starts, stops = line.frames(hop)
    assert (stops > starts).all() and (stops - starts).sum() == lengths.sum()
    labels = line.labels(hop)
    last = np.cumsum(counts) - 1
    assert (labels[last] == SPOOF).all() and (labels == SPOOF).sum() == len(lengths)
    for n in (1, 319, 320, 321, 400, 33600, 50000):
        alone = segments_to_frames([[(n - 1) / SR, n / SR]], n, hop)
        assert len(alone) == np.ceil(np.round(n / (hop * SR), 9)) and alone[-1] == SPOOF


def test_ten_minutes_are_exact_and_fast():
    samples = 600 * SR
    starts = np.arange(0, 600, 0.37)
    fakes = np.stack([starts, np.minimum(starts + 0.0531, 600)], axis=1)
    began = time.perf_counter()
    labels = segments_to_frames(fakes, samples, 0.02)
    assert time.perf_counter() - began < 0.25  # 2 ms here
    flags = per_sample(fakes, samples).reshape(-1, 320)
    assert np.array_equal(labels, np.where(flags.any(1), SPOOF, BONAFIDE))


def test_many_recordings_are_each_as_if_alone():
    """More frames than are worked on at a time, and recordings of all lengths side by side."""
    rng = np.random.default_rng(0)
    samples = rng.integers(1, 300_000, 900)
    owner = np.sort(rng.integers(0, 900, 2000))
    starts = rng.uniform(0, 1, 2000) * samples[owner] / SR
    fakes = np.stack([starts, starts + rng.uniform(0, 2, 2000)], axis=1)  # often beyond the end
    labels = lay_out([str(i) for i in range(900)], samples, owner, fakes).labels(0.02, "majority")
    assert len(labels) > 2**18
    cuts = np.cumsum(frame_count(samples, 0.02))[:-1]
    for i, row in enumerate(np.split(labels, cuts)):
        assert np.array_equal(row, segments_to_frames(fakes[owner == i], samples[i], 0.02, "majority"))


def test_a_models_own_frames_and_its_window():
    word = [[0.08, 0.14]]
    assert segments_to_frames(word, 3200, 0.02, frames=9).tolist() == [1, 1, 1, 1, 0, 0, 0, 1, 1]
    assert segments_to_frames(word, 3200, 0.02, frames=9, window=0.025).tolist() == [1, 1, 1, 0, 0, 0, 0, 1, 1]
    more = segments_to_frames(word, 3200, 0.02, frames=12)
    assert more.tolist() == [1, 1, 1, 1, 0, 0, 0, 1, 1, 1, UNLABELLED, UNLABELLED]
    assert segments_to_frames(word, 1400, 0.02, frames=5).tolist() == [1, 1, 1, 1, 0]
    at_the_end = segments_to_frames([[0.195, 0.2]], 3200, 0.02, window=0.05)
    assert at_the_end.tolist() == [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]


@given(SPANS, st.integers(1, 1600), st.integers(1, 900))
def test_windows_equal_a_look_at_every_sample(spans, samples, window):
    fakes = np.array([[a, a + n] for a, n in spans if a <= samples]).reshape(-1, 2) / SR
    flags = per_sample(fakes, samples)
    want = [SPOOF if flags[a : a + window].any() else BONAFIDE for a, _ in cells(samples, 0.01)]
    assert segments_to_frames(fakes, samples, 0.01, window=window / SR).tolist() == want


def test_what_is_refused():
    for fakes in ([[0.3, 0.2]], [[-0.1, 0.2]], [[0.0, np.nan]], [[0.3, np.inf]], [[0.21, 0.3]]):
        with pytest.raises(ValueError, match="fake stretch from .* does not lie in the recording of 0.2 s"):
            segments_to_frames(fakes, 3200, 0.02)
    assert segments_to_frames([[0.19, 0.5]], 3200, 0.02)[-1] == SPOOF  # an end beyond the end is cut
    with pytest.raises(ValueError, match="at least one sample"):
        segments_to_frames([], 0, 0.02)
    for hop in (0.0, -0.02, 1e-5, np.nan, np.inf):
        with pytest.raises(ValueError, match="a hop is a finite number of seconds"):
            segments_to_frames([], 3200, hop)
    with pytest.raises(ValueError, match="label rule 'most'"):
        segments_to_frames([], 3200, 0.02, "most")


@given(st.lists(st.integers(0, 1), min_size=1, max_size=60), st.integers(1, 213), st.sampled_from(HOPS))
def test_labels_to_segments_and_back(labels, more, hop):
    """A last frame of any length; a run at the end ends with the recording."""
    step = frame_step(hop)
    begin = int(step * (len(labels) - 1))
    samples = min(begin + more, int(step * len(labels)))
    segments = frames_to_segments(labels, hop, samples)
    assert segments_to_frames(segments, samples, hop).tolist() == labels
    if labels[-1] == SPOOF:
        assert segments[-1, 1] == samples / SR
    found = boundaries(segments, samples)
    changes = [i for i in range(1, len(labels)) if labels[i] != labels[i - 1]]
    assert found.times.tolist() == [int(step * i) / SR for i in changes]
    assert found.enters.tolist() == [labels[i] == SPOOF for i in changes]


def test_frames_to_segments_refuses():
    with pytest.raises(ValueError, match="9 frames of 0.02 s where 10 cover it"):
        frames_to_segments([1] * 9, 0.02, 3200)
    with pytest.raises(ValueError, match="must be 0"):
        frames_to_segments([1] * 9 + [-1], 0.02, 3200)


def test_boundaries_are_inside_and_of_a_kind():
    assert boundaries([[0, 0.2]], 3200).times.size == 0  # all of it is fake
    times, enters = boundaries([[0, 0.05], [0.1, 0.15], [0.15, 0.2]], 3200)
    assert times.tolist() == [0.05, 0.1] and enters.tolist() == [False, True]
    line = lay_out(["a", "b"], [320, 640], [0, 1, 1], [[0.01, 0.02], [0, 0.01], [0.02, 0.03]])
    positions, enters, owner = line.boundaries()
    assert positions.tolist() == [160, 480, 640, 800] and owner.tolist() == [0, 1, 1, 1]
    assert enters.tolist() == [True, False, True, False]


def test_boundary_targets_are_on_the_spoof_side():
    labels = np.array([[1, 0, 0, 1, 1, 0], [0, 1, 0, 1, -1, -1], [0, 0, 0, 0, -1, -1]])
    want = [[0, 1, 1, 0, 0, 1], [1, 0, 1, 0, -1, -1], [0, 0, 0, 0, -1, -1]]
    assert boundary_targets(labels).tolist() == want
    assert boundary_targets(torch.from_numpy(labels)).tolist() == want


@given(SPANS, st.integers(1, 3000), st.integers(1, 9))
def test_coarser_labels_are_those_of_the_coarser_hop(spans, samples, k):
    fakes = np.array([[a, a + n] for a, n in spans if a <= samples]).reshape(-1, 2) / SR
    fine = segments_to_frames(fakes, samples, 0.01)
    assert np.array_equal(coarser(fine, k), segments_to_frames(fakes, samples, 0.01 * k))


def test_coarser_scores_keep_the_shorter_last_group():
    assert coarser([0.9, 0.8, 0.2, 0.7, 0.1], 4).tolist() == [0.2, 0.1]
    assert coarser([3.0], 8).tolist() == [3.0]
    for values, k in (([], 2), ([1.0], 0), (np.ones((2, 2)), 2)):
        with pytest.raises(ValueError, match="groups of at least one"):
            coarser(values, k)


def test_the_length_contract_names_who_and_what_would_help():  # pitfall 16
    """105 labels and 103 outputs (PartialSpoof's tracker): never cut in silence."""
    samples = 33600
    with pytest.raises(ValueError, match="CON_1 has 103 frames of 0.02 s where 105 cover it.*rest='repeat'"):
        cover(np.ones(103), samples, 0.02, utt="CON_1")
    with pytest.raises(ValueError, match="CON_1 has 106 frames .* rest='cut'"):
        cover(np.ones(106), samples, 0.02, rest="repeat", utt="CON_1")
    with pytest.raises(ValueError, match="104 frames .* rest='repeat'"):
        cover(np.ones(104), samples, 0.02, rest="cut")
    with pytest.raises(ValueError, match="there is no score"):
        cover([], samples, 0.02, rest="fit")
    with pytest.raises(ValueError, match="rule for the rest 'stretch'"):
        cover(np.ones(105), samples, 0.02, rest="stretch")
    with pytest.raises(ValueError, match=r"need one value a frame \(F,\)"):
        cover(np.ones((105, 2)), samples, 0.02)
    scores = np.arange(107.0)
    assert np.array_equal(cover(scores[:105], samples, 0.02), scores[:105])
    assert cover(scores[:103], samples, 0.02, rest="repeat").tolist() == [*range(103), 102, 102]
    assert np.array_equal(cover(scores, samples, 0.02, rest="cut"), scores[:105])
    assert [len(cover(scores[:n], samples, 0.02, rest="fit")) for n in (1, 104, 105, 107)] == [105] * 4


def test_cover_all_is_cover_of_each():
    rows = [np.arange(4.0), np.arange(10.0, 12.0), np.arange(20.0, 23.0)]
    flat = cover_all(rows, ["a", "b", "c"], np.array([960, 960, 960]), 0.02, "fit")
    assert flat.tolist() == [0, 1, 2, 10, 11, 11, 20, 21, 22]
    with pytest.raises(ValueError, match="a has 4 frames .*, as have 1 more recordings"):
        cover_all(rows, ["a", "b", "c"], np.array([960, 960, 960]), 0.02)
    with pytest.raises(ValueError, match="b: need one value"):
        cover_all([rows[0], np.ones((3, 2))], ["a", "b"], np.array([1280, 960]), 0.02)


def test_manifest_labels_of_all_kinds_of_recordings():
    m = manifest(
        ("real", "bonafide", 0.05),
        ("parts", "spoof", 0.2),
        ("whole", "spoof", 0.06),
        segments=[
            ("parts", 0.08, 0.14, "spoof"),
            ("parts", 0, 0.08, "bonafide"),
            ("parts", 0.14, 0.2, "bonafide"),
        ],
    )
    got = manifest_labels(m, 0.02)
    assert list(got) == ["real", "parts", "whole"]
    assert [row.tolist() for row in got.values()] == [[1, 1, 1], [1, 1, 1, 1, 0, 0, 0, 1, 1, 1], [0, 0, 0]]
    assert manifest_labels(m, 0.04, "majority")["parts"].tolist() == [1, 1, 0, 1, 1]


def test_manifests_without_truth_are_refused():
    with pytest.raises(ValueError, match="1 recordings have no label, such as x"):
        timeline(manifest(("x", "", 0.2)))
    unread = manifest(("x", "spoof", 0.2)).utterances.assign(duration=np.nan, sample_rate=0)
    with pytest.raises(ValueError, match="1 recordings have no duration, such as x"):
        timeline(Manifest(unread))
    with pytest.raises(ValueError, match="without recordings"):
        manifest_labels(Manifest(unread[:0]), 0.02)


def test_manifest_labels_equal_a_look_at_every_sample(samples):
    for hop, rule in ((0.02, "any"), (0.16, "majority")):
        got = manifest_labels(samples, hop, rule)
        some = samples.utterances[samples.utterances.kind != "full"].utt[::9]
        assert len(got) == len(samples) and len(some) > 20
        for utt in some:
            s = samples.segments[(samples.segments.utt == utt) & (samples.segments.label == "spoof")]
            n = round(samples.utterances.set_index("utt").duration[utt] * SR)
            assert got[utt].tolist() == slow(s[["start", "end"]].to_numpy(), n, hop, rule)


def marked(fakes, n=16000, utt="u", label=SPOOF):
    """A wave that is 1 where it is fake and −1 elsewhere."""
    wave = np.where(per_sample(fakes, n), 1.0, -1.0).astype(np.float32)
    return Item(utt, wave, label, np.array(fakes).reshape(-1, 2))


THREE = [[0.1003, 0.25], [0.4, 0.41], [0.73, 0.9]]


def of_wave(wave, n, hop=0.02, rule="any", threshold=0.0):
    """Frame labels by looking at the samples of the wave."""
    fake = np.asarray(wave)[:n] > threshold
    return [SPOOF if fake[a:b].any() else BONAFIDE for a, b in cells(n, hop)]


@pytest.mark.parametrize("policy", ["random", "start", "random+tile", "tile"])
@pytest.mark.parametrize("seconds", [0.05, 0.33333, 0.7, 1.0, 3.7, 4.0])
def test_crops_and_tiles_carry_segments_to_the_frames(policy, seconds):  # pitfalls 22 and 61
    """The wave itself says what is fake: after every crop and repetition, frame labels say the same."""
    items = [marked(THREE), marked([[0.0, 0.4]], 6400, "w"), marked([[0.2, 0.3]], 9999, "v")]
    for epoch in range(4):
        batch = collate([Crop(seconds, policy)(item, epoch) for item in items])
        counts = torch.from_numpy(frame_count(batch.lengths.numpy(), 0.02))
        labels = batch_labels(batch, 0.02, counts)
        for row, wave, n in zip(labels, batch.wave, batch.lengths, strict=True):
            want = of_wave(wave, int(n))
            assert row.tolist() == want + [UNLABELLED] * (len(row) - len(want))


def test_tiling_repeats_the_pattern_on_frames():  # pitfall 22
    """Real, fake, real, fake; not real, fake, fake, fake."""
    item = Crop(4.0, "tile")(marked([[1.0, 2.0]], 32000))
    labels = batch_labels(collate([item]), 1.0, torch.tensor([4]))
    assert labels.tolist() == [[1, 0, 1, 0]]


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_speed_carries_segments_to_the_frames(factor):
    """A loud stretch in a quiet tone is where the frames say, up to a frame at its ends (the filter's reach)."""
    t = np.arange(16000) / SR
    fakes = [[0.2, 0.5], [0.8, 1.0]]
    loud = np.where(per_sample(fakes, 16000), 1.0, 0.01)
    wave = (loud * np.sin(2 * np.pi * 500 * t)).astype(np.float32)
    batch = Speed((factor,))(collate([Item("u", wave, SPOOF, np.array(fakes))]))
    n = int(batch.lengths[0])
    assert n == pytest.approx(16000 / factor, abs=2)
    got = batch_labels(batch, 0.02, torch.tensor([frame_count(n, 0.02)]))[0].numpy()
    want = np.array(of_wave(batch.wave[0].abs(), n, threshold=0.3))
    odd = np.flatnonzero(got != want)
    near = np.flatnonzero(np.diff(want)) + 0.5
    assert all(np.abs(near - i).min() <= 1 for i in odd) and len(odd) <= 3


@pytest.mark.parametrize("change", [Codec("mulaw"), PacketLoss((0.3, 0.3), seed=1), PacketLoss(conceal=False)])
def test_codecs_and_lost_packets_leave_the_frames_where_they_are(change):
    """Nothing moves: not the length, not the segments, not the labels."""
    rng = np.random.default_rng(0)
    items = [marked(THREE), marked([[0.2, 0.3]], 9999, "v")]
    items = [i._replace(wave=(i.wave * rng.uniform(0.1, 0.5, len(i.wave))).astype(np.float32)) for i in items]
    batch = collate(items)
    changed = change(batch)
    counts = torch.from_numpy(frame_count(batch.lengths.numpy(), 0.02))
    assert torch.equal(changed.lengths, batch.lengths) and not torch.equal(changed.wave, batch.wave)
    labels = batch_labels(changed, 0.02, counts)
    for row, item in zip(labels, items, strict=True):
        want = slow(item.fakes, len(item.wave), 0.02, "any")
        assert row.tolist()[: len(want)] == want


def test_batch_labels_of_all_kinds_of_items():  # pitfall 17
    """Whole fakes, real ones, unlabelled ones; padding is nobody's, and more padding changes nothing."""
    items = [
        marked(THREE),
        Item("whole", np.ones(640, np.float32), SPOOF),
        Item("real", np.ones(641, np.float32), BONAFIDE),
        Item("who", np.ones(960, np.float32), UNLABELLED),
    ]
    frames = torch.tensor([49, 3, 3, 3])  # one has a frame too many, one too few
    labels = batch_labels(collate(items), 0.02, frames)
    assert labels.shape == (4, 49) and labels.dtype == torch.int64
    assert labels[0].tolist() == slow(THREE, 16000, 0.02, "any")[:49]
    assert labels[1].tolist() == [0, 0] + [-1] * 47
    assert labels[2].tolist() == [1, 1, 1] + [-1] * 46
    assert labels[3].tolist() == [-1] * 49
    alone = batch_labels(collate(items[1:2]), 0.02, frames[1:2])
    assert alone.tolist() == [[0, 0, -1]]
    wide = batch_labels(collate(items), 0.02, frames, "majority", window=0.025)
    assert wide[0].tolist() != labels[0].tolist()
    assert np.array_equal(wide[0], segments_to_frames(THREE, 16000, 0.02, "majority", frames=49, window=0.025))


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_label_files_and_rttm_from_there_and_back(samples, tmp_path, resolution):  # pitfall 29
    """Segment label files of each resolution become segments and RTTM; read again, they give the same frames."""
    dev = samples.subset(split="dev")
    labels = manifest_labels(dev, resolution)
    path = write_segment_labels(labels, tmp_path / "database", "dev", resolution)
    assert path.name == f"dev_seglab_{resolution}.npy"
    read = segment_labels(tmp_path, "dev", resolution)
    assert list(read) == list(labels) and all(np.array_equal(read[utt], labels[utt]) for utt in labels)
    made = labelled(dev, read, resolution)
    again = from_rttm(dev, to_rttm(made, tmp_path / "dev.rttm"))
    for m in (made, again):
        found = manifest_labels(m, resolution)
        assert all(np.array_equal(found[utt], labels[utt]) for utt in labels)


def test_rttm_at_a_hop_that_is_no_whole_number_of_samples(tmp_path):
    m = manifest(("a", "", 1.0), ("b", "", 0.77))
    rng = np.random.default_rng(0)
    labels = {"a": rng.integers(0, 2, 75), "b": rng.integers(0, 2, 58)}
    made = labelled(m, labels, 1 / 75)
    again = manifest_labels(from_rttm(made, to_rttm(made, tmp_path / "x.rttm")), 1 / 75)
    assert all(np.array_equal(again[utt], labels[utt]) for utt in labels)


def test_write_segment_labels_refuses(tmp_path):
    with pytest.raises(ValueError, match="resolution 0.03"):
        write_segment_labels({"a": [1]}, tmp_path, "dev", 0.03)
    with pytest.raises(ValueError, match="b: frame labels must be"):
        write_segment_labels({"a": [1], "b": [1, 2]}, tmp_path, "dev", 0.02)
    assert not list(tmp_path.rglob("*.npy"))


def test_labelled_fills_labels_and_refuses_contradictions():
    m = manifest(("a", "", 0.05), ("b", "", 0.05), ("c", "", 0.05))
    rows = {"a": [1, 0, 1], "b": [1, 1, 1], "c": [0, 0, 0]}
    made = labelled(m, rows, 0.02)
    assert made.utterances.label.tolist() == ["spoof", "bonafide", "spoof"]
    assert made.segments.drop(columns="attack").to_numpy().tolist() == [
        ["a", 0.0, 0.02, "bonafide"],
        ["a", 0.02, 0.04, "spoof"],
        ["a", 0.04, 0.05, "bonafide"],
    ]
    with pytest.raises(ValueError, match="1 recordings have no frame labels, such as c"):
        labelled(m, {"a": [1, 0, 1], "b": [1, 1, 1]}, 0.02)
    with pytest.raises(ValueError, match="b has 2 frames"):
        labelled(m, rows | {"b": [1, 1]}, 0.02)
    assert labelled(m, rows | {"b": [1, 1]}, 0.02, rest="repeat").utterances.label[1] == "bonafide"
    with pytest.raises(ValueError, match="must be 0"):
        labelled(m, rows | {"b": [1, 1, 2]}, 0.02)
    with pytest.raises(ValueError, match="1 recordings contradict their frames: b is spoof"):
        labelled(manifest(("a", "spoof", 0.05), ("b", "spoof", 0.05), ("c", "spoof", 0.05)), rows, 0.02)
