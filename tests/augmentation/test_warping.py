"""Speed, tempo, pitch, trimming: frequencies and lengths as asked, segments in step."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wedefense_nb.augmentation.warping import (
    Pitch,
    Speed,
    Tempo,
    Trim,
    change_rate,
    follow,
    loud_span,
    speed,
    stretch,
)
from wedefense_nb.data.audio import resample
from wedefense_nb.data.batches import collate
from wedefense_nb.data.crops import Item


def tones(*hertz, n=16000, fakes=()):
    t = np.arange(n) / 16000
    waves = [(0.5 * np.sin(2 * np.pi * f * t)).astype(np.float32) for f in hertz]
    return collate([Item(f"u{i}", x, 0, np.array(fakes).reshape(-1, 2)) for i, x in enumerate(waves)])


def pitch_of(x) -> float:
    x = np.asarray(x)[1000:-1000]
    return float(np.abs(np.fft.rfft(x * np.hanning(len(x)), 2**18)).argmax() * 16000 / 2**18)


def test_change_rate_is_that_of_the_audio_chapter():
    x = np.random.default_rng(0).normal(size=(2, 1000)).astype(np.float32)
    assert np.allclose(change_rate(torch.from_numpy(x), 16000, 11025), resample(x, 16000, 11025), atol=1e-6)


@given(st.floats(0.5, 2.0))
def test_speed_scales_length_pitch_and_segments(factor):
    out = speed(tones(700, fakes=[[0.2, 0.5]]), factor)
    assert int(out.lengths[0]) == pytest.approx(16000 / factor, rel=0.01, abs=2)
    assert pitch_of(out.wave[0]) == pytest.approx(700 * factor, rel=0.01)
    assert out.fakes[0][0] == pytest.approx([0.2 / factor, 0.5 / factor], rel=0.01) and int(out.labels[0]) == 0


def test_speeds_are_drawn_equally_and_labels_are_two():  # pitfall 50: the label + 2 trick
    many = collate([Item(f"u{i}", np.ones(1100, np.float32) / 9, i % 2) for i in range(300)])
    out = Speed()(many)
    lengths, counts = np.unique(out.lengths, return_counts=True)
    assert lengths.tolist() == [1000, 1100, 1223] and counts == pytest.approx(100, abs=30)
    assert torch.equal(out.labels, many.labels) and set(out.labels.tolist()) == {0, 1}
    assert torch.equal(out.wave[out.lengths == 1100, :1100], many.wave[out.lengths == 1100])


@pytest.mark.parametrize("tempo", [0.7, 0.9, 1.0, 1.2, 1.5])
def test_tempo_keeps_the_pitch(tempo):
    b = tones(110, 700, 2500)
    out, lengths, source = stretch(b.wave, b.lengths, torch.full((3,), tempo))
    assert lengths.tolist() == [round(16000 / tempo)] * 3 and out.shape == source.shape
    assert [pitch_of(x) for x in out] == pytest.approx([110, 700, 2500], rel=0.003)
    inner = out[:, 1000 : lengths[0] - 1000]
    assert inner.square().mean(1) == pytest.approx(0.125, rel=0.1)  # smooth: nothing cancels where pieces meet
    ahead = source[0].double() - torch.arange(int(lengths[0])) * tempo
    assert ahead.abs().max() < 160 + 256 * abs(1 - tempo) + 2  # never further than the search reaches


@pytest.mark.parametrize("tempo", [0.8, 1.25])
def test_pieces_that_do_not_fit_are_faded_into_each_other(tempo):
    x = tones(110, 273, 702).wave.mean(0, keepdim=True)  # no shift fits all three
    out, _, _ = stretch(x, torch.tensor([16000]), torch.tensor([tempo]))
    assert out.diff().abs().max() < 1.1 * x.diff().abs().max()  # no clicks


def test_tempo_one_changes_nothing():
    b = tones(110, 700)
    rough = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 16000)).astype(np.float32)) / 9
    for wave in (b.wave, rough):
        out, lengths, source = stretch(wave, b.lengths, torch.ones(2))
        assert torch.allclose(out, wave, atol=1e-6) and torch.equal(source[0], torch.arange(16000))


def test_tempos_are_uniform_and_follow_the_segments():
    b = tones(*[300] * 40, n=8000, fakes=[[0.1, 0.3]])
    out = Tempo(0.8, 1.25)(b)
    tempos = 8000 / out.lengths.double()
    assert 0.8 <= tempos.min() < 0.87 and 1.18 < tempos.max() <= 1.251
    for tempo, fakes in zip(tempos.tolist(), out.fakes, strict=True):
        assert fakes[0] == pytest.approx([0.1 / tempo, 0.3 / tempo], abs=0.016)  # to the pieces that were moved


def test_follow_maps_sample_by_sample():
    source = np.array([0, 1, 2, 2, 3, 4, 8, 9])
    assert np.array_equal(follow(np.array([[2, 4]]) / 16000, source), [[2 / 16000, 5 / 16000]])
    assert follow(np.array([[5, 8]]) / 16000, source).shape == (0, 2)  # left out


def test_a_fake_that_was_skipped_is_no_fake_any_more():  # pitfall 61
    b = tones(300, fakes=[[0.5, 0.5 + 2 / 16000]])
    outs = [Tempo(1.9, 2.0, seed=s)(b) for s in range(30)]
    assert all(int(o.labels[0]) == (1 if len(o.fakes[0]) == 0 else 0) for o in outs)
    assert {len(o.fakes[0]) for o in outs} == {0, 1}


@pytest.mark.parametrize("semitones", [-7, -2, 0, 3, 12])
def test_pitch_shifts_frequency_and_keeps_time(semitones):
    b = tones(600, fakes=[[0.25, 0.5]])
    out = Pitch(semitones, semitones)(b)
    assert int(out.lengths[0]) == 16000
    assert pitch_of(out.wave[0]) == pytest.approx(600 * 2 ** (semitones / 12), rel=0.004)
    assert out.fakes[0][0] == pytest.approx([0.25, 0.5], abs=0.02)


def noisy_ends(before, after, n=8000, fakes=()):
    wave = 1e-4 * np.random.default_rng(0).normal(size=before + n + after)
    wave[before : before + n] += 0.3 * np.cos(np.arange(n) / 5)
    return collate([Item("u", wave.astype(np.float32), 0, np.array(fakes).reshape(-1, 2))])


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_trim_finds_the_ends_to_a_frame(before, after):
    b = noisy_ends(before, after, fakes=[[before / 16000 + 0.1, before / 16000 + 0.2]])
    ((start, end),) = loud_span(b.wave, b.lengths)
    assert before - 160 <= start <= before and before + 8000 <= end <= before + 8160
    out = Trim(rest=(0.0, 0.0))(b)
    assert int(out.lengths[0]) == end - start and torch.equal(out.wave[0], b.wave[0, start:end])
    assert out.fakes[0][0] == pytest.approx(np.array([before + 1600, before + 3200]) / 16000 - start / 16000)
    assert int(out.labels[0]) == 0


def test_trim_leaves_a_random_rest_and_never_too_little():
    b = noisy_ends(4000, 4000)
    lengths = [int(Trim(rest=(0.0, 0.2), seed=s)(b).lengths[0]) for s in range(50)]
    assert 8000 <= min(lengths) < 9500 and 12500 < max(lengths) <= 8320 + 6400
    rests = []
    for seed in range(20):
        start, end = Trim(rest=(0.0, 0.2))._with_rest((4000, 12000), 16000, np.random.default_rng(seed))
        rests.append((4000 - start, end - 12000))
    assert max(abs(before - after) for before, after in rests) > 1600  # each end has its own
    click = collate([Item("u", np.eye(1, 16000, 40, dtype=np.float32)[0], 1)])
    assert int(Trim(shortest=0.5, rest=(0.0, 0.0))(click).lengths[0]) == 8000
    silent = collate([Item("u", np.zeros(1600, np.float32), 1)])
    assert int(Trim()(silent).lengths[0]) == 1600


def test_trim_that_cuts_the_only_fake_part_changes_the_label():  # pitfall 61
    b = noisy_ends(8000, 0, fakes=[[0.1, 0.3]])
    out = Trim(rest=(0.0, 0.0))(b)
    assert int(b.labels[0]) == 0 and int(out.labels[0]) == 1 and out.fakes[0].shape == (0, 2)
    whole = replace(b, fakes=[np.zeros((0, 2))])  # all of it is fake
    assert int(Trim(rest=(0.0, 0.0))(whole).labels[0]) == 0


def test_bad_settings_are_refused():
    for make in (
        lambda: Speed((0.1,)),
        lambda: Speed(()),
        lambda: Tempo(1.2, 0.9),
        lambda: Tempo(0.1, 0.2),
        lambda: Pitch(-20, 0),
        lambda: Trim(below=-3),
        lambda: Trim(rest=(0.2, 0.1)),
    ):
        with pytest.raises(ValueError):
            make()
