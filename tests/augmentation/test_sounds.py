"""Sounds that are no speech: always the same of a seed, never broken, and as the packaged file has them."""

import runpy

import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from wedefense_nb.augmentation.sounds import OTHER_SOUNDS, course, glide, other_sound, plucked, save_sounds
from wedefense_nb.augmentation.surroundings import AddNoise, read_sources
from wedefense_nb.data.audio import load
from wedefense_nb.data.batches import Batch
from wedefense_nb.models.detector import load_weights
from wedefense_nb.registry import UnknownName
from wedefense_nb.understanding.quality import SOUND, TEXTURE


@pytest.mark.parametrize("name", OTHER_SOUNDS)
def test_each_family_gives_a_finite_sound_of_the_length_that_was_asked_for(name):
    for seed, n in ((0, 16), (1, 100), (2, 2000), (3, 9001)):
        wave = OTHER_SOUNDS[name](np.random.default_rng(seed), n)
        assert wave.shape == (n,) and np.isfinite(wave).all()
        assert np.array_equal(wave, OTHER_SOUNDS[name](np.random.default_rng(seed), n))
    assert np.abs(wave).max() > 0
    assert not np.array_equal(wave, OTHER_SOUNDS[name](np.random.default_rng(4), n))


def test_courses_are_loudnesses_and_glides_stay_near_their_bounds():
    kinds = set()
    for seed in range(40):
        loud = course(np.random.default_rng(seed), 8000)
        assert loud.shape == (8000,) and loud.min() >= 0 and np.isfinite(loud).all() and loud.max() > 0
        hertz = glide(np.random.default_rng(seed), 8000, 100, 400)
        assert hertz.shape == (8000,) and 90 <= hertz.min() and hertz.max() <= 440
        kinds.add(min(len(np.unique(hertz)), 9))
    assert {1, 9} <= kinds and len(kinds) > 2


def test_a_sound_has_its_length_and_peak_and_is_its_seeds():
    for seed in range(25):
        wave = other_sound(np.random.default_rng(seed), 0.3)
        assert wave.shape == (4800,) and wave.dtype == np.float32
        assert np.isfinite(wave).all() and np.abs(wave).max() == pytest.approx(0.1, abs=1e-3)
    assert np.array_equal(wave, other_sound(np.random.default_rng(24), 0.3))


def test_families_can_be_chosen():
    clicks = other_sound(np.random.default_rng(5), 0.5, ["crackle"])
    hum = other_sound(np.random.default_rng(5), 0.5, ["engine"])
    assert not np.allclose(clicks, hum)
    with pytest.raises(UnknownName, match="did you mean 'engine'"):
        other_sound(np.random.default_rng(0), 0.1, ["engin"])
    with pytest.raises(ValueError, match="a millisecond or more"):
        other_sound(np.random.default_rng(0), 0.0)


def test_a_plucked_string_has_the_pitch_of_its_loop():
    """Its autocorrelation falls, and is back after a period of 60 to 900 Hz."""
    found = 0
    for seed in range(30):
        wave = plucked(np.random.default_rng(seed), 4000)
        own = np.correlate(wave, wave, "full")[len(wave) - 1 :]
        own /= own[0]
        fallen = int(np.argmax(own < 0.3))
        found += own[max(fallen, 17) : 270].max(initial=0.0) > 0.6
    assert found > 15, found


def test_saved_sounds_are_sources_of_noise(tmp_path):
    table = save_sounds(tmp_path / "a", 3, seconds=0.2, seed=1)
    sources = read_sources(table)
    assert sources.kind.tolist() == ["noise"] * 3 and sources.duration.tolist() == [0.2] * 3
    waves = [load(path)[0] for path in sources.path]
    assert np.allclose(waves[1], other_sound(np.random.default_rng([1, 1]), 0.2), atol=1e-4)
    again = [load(path)[0] for path in read_sources(save_sounds(tmp_path / "b", 3, 0.2, 1)).path]
    assert all(np.array_equal(x, y) for x, y in zip(waves, again, strict=True))
    batch = Batch(0.1 * torch.randn(1, 3000), torch.tensor([3000]), torch.tensor([1]), ["a"], [np.zeros((0, 2))])
    assert not torch.equal(AddNoise(sources)(batch).wave, batch.wave)
    with pytest.raises(ValueError, match="one sound or more"):
        save_sounds(tmp_path, 0)


def test_the_packaged_file_is_what_its_tool_makes():
    path = ROOT / "data_samples" / "sounds.safetensors"
    assert path.stat().st_size <= 600_000
    sounds = load_weights(path)["sounds"].float().numpy()
    assert sounds.shape == (2000, len(SOUND) + len(TEXTURE)) and np.isfinite(sounds).all()
    tool = runpy.run_path(str(ROOT / "tools" / "make_sounds.py"))
    for i in range(6):
        assert np.allclose(tool["row"](i), sounds[i], rtol=2e-3, atol=0.05), i
