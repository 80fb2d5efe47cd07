"""Copies of real speech: what every route promises, what a policy makes of a batch, what is on disk."""

import numpy as np
import pytest
import torch
from scipy.signal import lfilter

from wedefense_nb.augmentation import copies as module
from wedefense_nb.augmentation.copies import FAMILIES, FAST, Copies, add_copies, pairs_of, pitch_track
from wedefense_nb.augmentation.policies import POLICIES, make_policy
from wedefense_nb.augmentation.transforms import changing_loader, take_rows
from wedefense_nb.data.audio import load
from wedefense_nb.data.batches import AudioDataset, collate, epoch_batches
from wedefense_nb.data.crops import Crop, Item
from wedefense_nb.data.forge import VOCODERS, forge
from wedefense_nb.data.manifest import Manifest, utt_rng
from wedefense_nb.registry import UnknownName
from wedefense_nb.task import BONAFIDE, SPOOF, UNLABELLED

ROUTES = [*FAST, "codec_low"]


@pytest.fixture(scope="module")
def train(samples):
    return samples.subset(split="train", speaker="ked_diphone")


@pytest.fixture(scope="module")
def wave(train):
    return load(train.subset(label="bonafide").paths()[0])[0][:16001]


def alike(a, b):
    return np.corrcoef(a, b)[0, 1]


@pytest.mark.parametrize("name", ROUTES)
def test_a_route_keeps_length_and_level_and_repeats_itself(name, wave):
    before = wave.copy()
    drawn = [VOCODERS[name](wave, utt_rng(str(k))) for k in range(4)]
    for copy in drawn:
        assert copy.shape == wave.shape and copy.dtype == np.float32 and np.isfinite(copy).all()
        assert np.isclose(np.sqrt(np.mean(copy**2)), np.sqrt(np.mean(wave**2)), rtol=1e-3)
        assert np.abs(copy - wave).mean() > 0.02 * np.abs(wave).mean(), "not the recording itself"
    assert np.array_equal(wave, before)
    assert np.array_equal(drawn[0], VOCODERS[name](wave, utt_rng("0")))
    if name not in ("phase_zero", "phase_minimum", "codec_low"):  # these draw from a few settings
        assert len({copy.tobytes() for copy in drawn}) == 4


@pytest.mark.parametrize("name", ROUTES)
def test_short_and_odd_sounds(name, wave):
    rng = utt_rng("x")
    for short in (wave[8000:8160], wave[8000:9001], np.zeros(3000, np.float32), np.eye(1, 5000, 2500)[0]):
        copy = VOCODERS[name](short, rng)
        assert copy.shape == short.shape and np.isfinite(copy).all()
    for wrong in (wave[:159], wave[None, :800], np.zeros(0, np.float32)):
        with pytest.raises(ValueError, match=f"{name} needs one channel of 10 ms"):
            VOCODERS[name](wrong, rng)


@pytest.mark.parametrize("name", ROUTES)
def test_a_copy_says_the_same_at_the_same_time(name, wave):
    copy = VOCODERS[name](wave, utt_rng("t"))
    a, b = (np.log(np.convolve(x**2, np.ones(640) / 640, "same")[::80] + 1e-6) for x in (wave, copy))
    found = [alike(a[20:-20], np.roll(b, k)[20:-20]) for k in range(-12, 13)]
    assert max(found) > 0.8 and abs(int(np.argmax(found)) - 12) <= 3  # 15 ms


def test_nothing_changes_where_nothing_should(wave):
    rng = utt_rng("n")
    assert np.allclose(module.phase_noise(wave, rng, strength=0.0), wave, atol=1e-5)
    assert np.allclose(module.phase_smooth(wave, rng, width=1), wave, atol=1e-4)
    assert np.allclose(module.smooth_time(wave, rng, width=1), wave, atol=1e-4)
    assert np.allclose(module.checkerboard(wave, rng, strength=0.0), wave, atol=1e-6)
    assert alike(module.mdct_coarse(wave, rng, bits=10), wave) > 0.9999  # Princen and Bradley
    assert alike(module.smooth_cepstrum(wave, rng, keep=190), wave) > 0.98
    assert alike(module.psola(wave, rng, pitch=1.0), wave) > 0.99


def test_phases_fall_apart_by_degrees(wave):
    found = [alike(module.phase_noise(wave, utt_rng("g"), strength=s), wave) for s in (0.1, 0.3, 0.6, 1.0)]
    assert found == sorted(found, reverse=True) and found[0] > 0.95 and abs(found[-1]) < 0.2


def test_minimum_phase_is_that_of_a_causal_decay():
    """The frame of a decaying impulse response has its own phase already, shifted to the middle of the frame."""
    decay = np.zeros(8000, np.float32)
    decay[4000:] = 0.9 ** np.arange(4000)
    copy = module.phase_minimum(decay, utt_rng("m"))
    loud = np.abs(copy) > 0.3 * np.abs(copy).max()
    assert abs(int(np.flatnonzero(loud).mean()) - 4000) < 600


@pytest.mark.parametrize("hertz", [70, 125, 200, 280])
def test_the_pitch_of_a_buzz(hertz):
    buzz = np.sign(np.sin(2 * np.pi * hertz * np.arange(16000) / 16000))
    assert np.allclose(pitch_track(buzz)[10:-10], hertz, rtol=0.02)
    noise = np.random.default_rng(0).normal(size=16000)
    assert (pitch_track(noise) == 0).mean() > 0.9 and len(pitch_track(noise)) == 201
    pulses = np.zeros(16000)
    pulses[:: round(16000 / hertz)] = 1
    speech = lfilter([1.0], [1, -1.2, 0.8], pulses)
    for copy, want in (
        (module.psola(speech, utt_rng("p"), pitch=1.1), 1.1 * hertz),
        (module.psola(speech, utt_rng("p"), pitch=0.9), 0.9 * hertz),
        (module.harmonic_noise(speech, utt_rng("p")), hertz),
    ):
        assert abs(np.median(pitch_track(copy)[20:-20]) / want - 1) < 0.04


def test_sinusoids_of_two_tones_are_two_tones():
    t = np.arange(16000) / 16000
    tones = (0.5 * np.sin(2 * np.pi * 437 * t) + 0.2 * np.sin(2 * np.pi * 2113 * t)).astype(np.float32)
    for k in range(4):
        power = (
            np.abs(np.fft.rfft(module.partials(tones, utt_rng(str(k)), most=4)[4000:12000] * np.hanning(8000)))
            ** 2
        )
        near = sum(power[hertz // 2 - 8 : hertz // 2 + 9].sum() for hertz in (437, 2113))
        assert near > 0.95 * power.sum()


def test_strides_leave_their_tones():
    """A recording of one value comes back with lines at multiples of the rate of strides, and nothing else."""
    flat = np.full(25600, 0.5, np.float32)
    copy = module.checkerboard(flat, utt_rng("c"), strength=0.3)[5120:-5120]  # 15360, a multiple of every stride
    power = np.abs(np.fft.rfft(copy - copy.mean())) ** 2
    line = power > 1e-3 * power.max()
    assert line.any() and (np.flatnonzero(line) % (15360 // 1280) == 0).all() and line.mean() < 0.1


def batch(labels, lengths=None, total=4000):
    rng = np.random.default_rng(0)
    lengths = lengths or [total] * len(labels)
    waves = [rng.normal(size=n).astype(np.float32) / 9 for n in lengths]
    return collate([Item(f"u{i}", w, label) for i, (w, label) in enumerate(zip(waves, labels, strict=True))])


def test_only_real_recordings_become_fakes():
    plain = batch([BONAFIDE, SPOOF, UNLABELLED, BONAFIDE, BONAFIDE], [4000, 4000, 4000, 100, 2500])
    made = Copies(p=1.0)(plain)
    assert made.labels.tolist() == [SPOOF, SPOOF, UNLABELLED, BONAFIDE, SPOOF] and made.utts == plain.utts
    assert plain.labels.tolist() == [BONAFIDE, SPOOF, UNLABELLED, BONAFIDE, BONAFIDE], (
        "the batch itself is left alone"
    )
    same = (made.wave == plain.wave).all(1).tolist()
    assert same == [False, True, True, True, False]
    assert (made.wave[4, 2500:] == 0).all() and torch.equal(made.lengths, plain.lengths)
    assert all(len(fakes) == 0 for fakes in made.fakes), "all of it is fake"
    assert torch.equal(Copies(p=0.0)(plain).wave, plain.wave)


def test_draws_follow_seed_epoch_and_utt_and_nothing_else():
    plain = batch([BONAFIDE] * 6)
    whole = Copies(p=0.5, seed=1)(plain, epoch=2)
    for row in range(6):  # alone as in company
        alone = Copies(p=0.5, seed=1)(take_rows(plain, [row]), epoch=2)
        assert torch.equal(alone.wave[0], whole.wave[row]) and alone.labels[0] == whole.labels[row]
    assert 0 < int((whole.labels == SPOOF).sum()) < 6
    for other in (Copies(p=0.5, seed=2)(plain, 2), Copies(p=0.5, seed=1)(plain, 3)):
        assert not torch.equal(other.wave, whole.wave)


def test_doubles_stand_beside_their_recordings():
    plain = batch([BONAFIDE, SPOOF, BONAFIDE], [4000, 3000, 2500])
    both = Copies(p=1.0, keep=True, seed=4)(plain)
    placed = Copies(p=1.0, seed=4)(plain)
    assert both.utts == ["u0", "u1", "u2", "u0~copy", "u2~copy"]
    assert both.labels.tolist() == [BONAFIDE, SPOOF, BONAFIDE, SPOOF, SPOOF]
    assert both.lengths.tolist() == [4000, 3000, 2500, 4000, 2500] and len(both.fakes) == 5
    assert torch.equal(both.wave[:3], plain.wave) and torch.equal(both.wave[3:], placed.wave[[0, 2]])
    assert pairs_of(both.utts) == [(0, 3), (2, 4)] and pairs_of(plain.utts) == []
    assert len(Copies(p=0.0, keep=True)(plain).utts) == 3


def test_mistakes_of_a_policy():
    for wrong in ({"routes": []}, {"p": 1.5}):
        with pytest.raises(ValueError):
            Copies(**wrong)
    with pytest.raises(UnknownName, match="unknown vocoder 'psolla': did you mean 'psola'"):
        Copies(routes=["psolla"])


def test_policies_by_name_and_what_they_do_to_the_counts(samples):
    assert sorted(name for routes in FAMILIES.values() for name in routes) == sorted(FAST)
    train = samples.subset(split="train")
    data = AudioDataset(train, Crop(0.3, seed=1))
    plan = epoch_batches(train, 16, seed=1)[:12]
    plain = torch.cat([b.labels for b in changing_loader(data, plan)])
    real = int((plain == BONAFIDE).sum())
    for name in ("copies", "copies_phase", "copy_pairs+rawboost"):
        labels = torch.cat([b.labels for b in changing_loader(data, plan, 0, make_policy(name, train).change)])
        made = len(labels) - len(plain) if "pairs" in name else real - int((labels == BONAFIDE).sum())
        assert 0.25 * real < made < 0.75 * real
        assert int((labels == SPOOF).sum()) == int((plain == SPOOF).sum()) + made
    assert {"copies", "copy_pairs", *(f"copies_{family}" for family in FAMILIES)} <= set(POLICIES)


def test_copies_on_disk_join_the_manifest(train, tmp_path):
    made = add_copies(train, tmp_path / "a", ["images", "psola", "phase_noise"], each=2, workers=1)
    real = train.subset(label="bonafide").utterances
    doubles = made.utterances[len(train) :]
    assert len(doubles) == 2 * len(real) and set(doubles.label) == {"spoof"} and set(doubles.split) == {"train"}
    assert sorted(set(doubles.pair)) == sorted(real.utt) and not doubles.duplicated(["pair", "attack"]).any()
    assert made.utterances.utt[: len(train)].tolist() == train.utterances.utt.tolist()
    read = Manifest.read(tmp_path / "a")
    assert len(read) == len(made) and len(read.segments) == len(train.segments)
    durations = dict(zip(real.utt, real.duration, strict=True))
    for row in doubles.head(6).itertuples():
        assert abs(len(load(tmp_path / "a" / row.path)[0]) / 16000 - durations[row.pair]) < 1e-3
    gone, kept = (tmp_path / "a" / path for path in doubles.path[:2])
    bytes_before, time_before = gone.read_bytes(), kept.stat().st_mtime_ns
    gone.unlink()
    add_copies(train, tmp_path / "a", ["images", "psola", "phase_noise"], each=2, workers=1)
    assert gone.read_bytes() == bytes_before and kept.stat().st_mtime_ns == time_before
    with pytest.raises(FileExistsError, match="other settings"):
        add_copies(train, tmp_path / "a", ["images", "psola", "phase_noise"], each=1, workers=1)


def test_mistakes_on_disk(train, tmp_path):
    for more, what in (
        ({"each": 3, "routes": ["psola", "images"]}, "each must be 1 to 2"),
        ({"split": "test"}, "no bona fide recordings with split 'test'"),
        ({"routes": ["melgan"]}, "unknown vocoder 'melgan'"),
    ):
        with pytest.raises(ValueError, match=what):
            add_copies(train, tmp_path / "b", **more)
    assert not (tmp_path / "b").exists()


def test_the_forge_takes_the_new_routes_by_name(train, tmp_path):
    two = train.subset(label="bonafide")
    two = two.subset(utt=two.utterances.utt[:2].tolist())
    made = forge(two, tmp_path / "f", vocoders=["psola", "smooth_mel"], spliced=0, workers=1)
    assert set(made.utterances.attack) == {"", "psola", "smooth_mel"}
