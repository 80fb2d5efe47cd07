"""A piece of a recording takes its label and its fake stretches along."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wedefense_nb.data.audio import SAMPLE_RATE
from wedefense_nb.data.crops import Crop, Item, crop_label, crop_segments, tile_segments
from wedefense_nb.task import BONAFIDE, SPOOF


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
    second_half = np.array([[1.0, 2.0]])
    assert tile_segments(second_half, 2.0, 4.0).tolist() == [[1, 2], [3, 4]]
    assert tile_segments(second_half, 2.0, 7.5).tolist() == [[1, 2], [3, 4], [5, 6], [7, 7.5]]
    assert tile_segments(np.array([[0.0, 0.5], [1.0, 1.5]]), 2.0, 3.0).tolist() == [[0, 0.5], [1, 1.5], [2, 2.5]]


def test_what_only_touches_the_border_is_not_inside():
    fakes = np.array([[0.5, 1.0]])
    for start, end in ((0.0, 0.5), (1.0, 1.5)):
        assert crop_label(fakes, start, end, SPOOF) == BONAFIDE and len(crop_segments(fakes, start, end)) == 0
    sample = 1.01 / SAMPLE_RATE
    for start, end in ((0.0, 0.5 + sample), (1.0 - sample, 1.5)):
        assert crop_label(fakes, start, end, SPOOF) == SPOOF and len(crop_segments(fakes, start, end)) == 1


def test_label_of_a_crop_without_fake_follows_the_policy():  # pitfall 61
    item = Item("u", np.ones(16000, np.float32), 0, np.array([[0.9, 1.0]]))
    labels = [Crop(0.5, "start", label)(item).label for label in ("segments", "keep")]
    assert labels == [1, 0] and Crop(0.5, "start")(item._replace(fakes=np.zeros((0, 2)))).label == 0


def test_nonsense_is_refused():
    for bad in (0, -1.0):
        with pytest.raises(ValueError, match="positive"):
            Crop(bad)
    for bad in ("tile+zero", "random+start", "middle", ""):
        with pytest.raises(ValueError, match="policy is one of"):
            Crop(1.0, bad)
    with pytest.raises(ValueError, match="'segments' or 'keep'"):
        Crop(1.0, label="guess")


def test_every_place_is_reached_and_depends_on_seed_epoch_and_utterance():
    crop = Crop(0.5, rate=10)
    places = [crop.place("u", 7, epoch) for epoch in range(50)]
    assert set(places) == {(0, 5), (1, 6), (2, 7)} and places == [crop.place("u", 7, epoch) for epoch in range(50)]
    long = [crop.place("u", 10**6), crop.place("u", 10**6, 1), crop.place("v", 10**6)]
    long.append(Crop(0.5, seed=1, rate=10).place("u", 10**6))
    assert len(set(long)) == 4
    assert {Crop(0.5, "start", rate=10).place("u", 10**6, epoch) for epoch in range(3)} == {(0, 5)}


class Counted:
    """A recording that remembers what was read of it."""

    frames = 1000

    def __init__(self):
        self.spans = []

    def read(self, start=0, stop=None):
        self.spans.append((start, stop))
        return np.arange(1000, dtype=np.float32)[start:stop]


def test_of_a_recording_only_the_piece_is_read():
    item = Item("u", Counted(), SPOOF, np.array([[0.0, 0.01]]))
    crop = Crop(100 / SAMPLE_RATE)
    got = crop(item, 3)
    start, stop = crop.place("u", 1000, 3)
    assert item.wave.spans == [(start, stop)] and got.wave.tolist() == list(range(start, stop))


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


def test_longer_ones_keep_a_random_length():
    crop = Crop(2.0, seed=3, shortest=1.5)
    long = [crop.place("a", 10 * SAMPLE_RATE, epoch) for epoch in range(300)]
    lengths = np.array([stop - start for start, stop in long])
    assert 1.5 * SAMPLE_RATE <= lengths.min() < 1.52 * SAMPLE_RATE and 1.98 * SAMPLE_RATE < lengths.max()
    assert lengths.max() <= 2 * SAMPLE_RATE
    assert min(start for start, _ in long) < SAMPLE_RATE and max(stop for _, stop in long) > 9 * SAMPLE_RATE
    assert crop.place("a", 2 * SAMPLE_RATE) == (0, 2 * SAMPLE_RATE)  # what is not longer stays whole
    item = crop(Item("a", np.arange(10 * SAMPLE_RATE), SPOOF, np.array([[0.0, 10.0]])), 7)
    start, stop = long[7]
    assert (item.wave == np.arange(start, stop)).all() and item.fakes == pytest.approx(
        np.array([[0, len(item.wave) / 16000]])
    )
    assert Crop(2.0, "start", shortest=1.0).place("a", 10 * SAMPLE_RATE)[0] == 0
    for shortest in (0.0, 2.5, -1.0):
        with pytest.raises(ValueError, match="shortest crop has from 0 to 2.0 s"):
            Crop(2.0, shortest=shortest)
