"""What every transform of recordings promises: one line in `TRANSFORMS` puts it under all tests."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tests.conftest import ROOT
from wedefense_nb.augmentation.codecs import Codec
from wedefense_nb.augmentation.rawboost import ALGORITHMS, RawBoost
from wedefense_nb.augmentation.spectrum import LowPass, Resample
from wedefense_nb.augmentation.surroundings import AddNoise, Reverb, read_sources, speech_sources
from wedefense_nb.augmentation.telephone import PacketLoss, Telephone
from wedefense_nb.augmentation.transforms import Chain, Gain, OneOf, fit_length, take_rows
from wedefense_nb.augmentation.warping import Pitch, Speed, Tempo, Trim
from wedefense_nb.data.batches import Batch, collate
from wedefense_nb.data.crops import Item
from wedefense_nb.data.manifest import Manifest

SAMPLES = ROOT / "data_samples"
VOICES = speech_sources(Manifest.read(SAMPLES).subset(split="train"))
SOURCES = pd.concat([read_sources(SAMPLES / "noise_rir.csv"), VOICES], ignore_index=True)

# A line here is all that a new transform needs.
TRANSFORMS = {
    "gain": lambda **k: Gain(-12, 6, **k),
    "noise": lambda **k: AddNoise(SOURCES, ["noise"], {"noise": (20, 30)}, **k),
    "babble": lambda **k: AddNoise(SOURCES, ["speech"], **k),
    "reverb": lambda **k: Reverb(SOURCES, **k),
    "speed": lambda **k: Speed((0.9, 1.1), **k),
    "tempo": lambda **k: Tempo(0.8, 1.25, **k),
    "pitch": lambda **k: Pitch(-3, 3, **k),
    "trim": lambda **k: Trim(20.0, (0.0, 0.03), 0.05, **k),
    "lowpass": lambda **k: LowPass(**k),
    "resample": lambda **k: Resample(**k),
    "codec": lambda **k: Codec(["mp3", "aac", "vorbis", "opus", "g722", "alaw"], **k),
    "telephone": lambda **k: Telephone(**k),
    "packetloss": lambda **k: PacketLoss(conceal=False, **k),
    "concealed": lambda **k: PacketLoss((0.1, 0.4), **k),
    **{f"rawboost{algo}": lambda algo=algo, **k: RawBoost(algo, **k) for algo in ALGORITHMS},
    "chain": lambda **k: Chain(
        Speed(p=0.5), Tempo(p=0.5), AddNoise(SOURCES, p=0.5), RawBoost(5, p=0.5), Gain(), **k
    ),
    "oneof": lambda **k: OneOf(AddNoise(SOURCES), Reverb(SOURCES), Pitch(), Trim(), LowPass(), **k),
}
each = pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS)
IN_PLACE = [name for name in TRANSFORMS if name != "concealed"]  # which plays a word's last packet once more


def sound(n: int, seed: int) -> np.ndarray:
    """Something like speech: a voice with syllables, a little noise, and silence at both ends."""
    rng = np.random.default_rng(seed)
    t = np.arange(n) / 16000
    voice = sum(np.sin(2 * np.pi * (110 + 20 * seed) * k * t) / k for k in range(1, 30))
    syllables = np.maximum(0, np.sin(2 * np.pi * 3 * t)) * ((t > 0.03) & (t < n / 16000 - 0.03))
    return (0.1 * voice * syllables + 0.002 * rng.normal(size=n)).astype(np.float32)


def several(lengths=(9000, 1600, 12345, 5000, 8000, 700)) -> Batch:
    """Recordings of many lengths (700 samples are 44 ms), some fake in part; recording i is called "u<i>"."""
    words = np.array([[0.1, 0.2], [0.3, 0.4]])
    none = np.zeros((0, 2))
    items = []
    for i, n in enumerate(lengths):
        fakes = words if i in (0, 2) else none
        items.append(Item(f"u{i}", sound(n, i), 0 if i in (0, 2, 3) else 1, fakes))
    return collate(items)


def recordings(batch: Batch) -> dict:
    """What a batch says of each recording, its padding left out."""
    own = zip(batch.wave, batch.lengths.tolist(), batch.labels.tolist(), batch.fakes, strict=True)
    return dict(zip(batch.utts, ((x[:n], label, f) for x, n, label, f in own), strict=True))


def assert_same(a: Batch, b: Batch, atol: float = 2e-5):
    """Equal recordings, in any order and company; FFTs of other lengths round differently."""
    a = recordings(a)
    b = recordings(b)
    for utt in set(a) & set(b):
        x, label, fakes = a[utt]
        y, other_label, other_fakes = b[utt]
        assert len(x) == len(y), utt
        assert torch.allclose(x, y, atol=atol), f"{utt}: {(x - y).abs().max()}"
        assert label == other_label and np.array_equal(fakes, other_fakes), utt


@each
def test_form(make):
    batch = several()
    out = make(seed=3)(batch, epoch=2)
    assert out.wave.dtype == torch.float32 and torch.isfinite(out.wave).all() and out.wave.abs().max() <= 1
    assert out.lengths.dtype == torch.int64 and out.utts == batch.utts
    assert out.wave.shape == (6, int(out.lengths.max()))
    assert (out.lengths > 0.45 * batch.lengths).all() and (out.lengths < 1.4 * batch.lengths).all()
    for x, n, fakes in zip(out.wave, out.lengths.tolist(), out.fakes, strict=True):
        assert x[n:].abs().sum() == 0 and x[:n].abs().sum() > 0
        assert fakes.shape[1:] == (2,) and (fakes >= 0).all() and (fakes <= n / 16000 + 1e-9).all()
        assert (fakes[:, 0] < fakes[:, 1]).all()


@each
def test_labels_are_kept(make):
    batch = several()
    assert torch.equal(make(seed=3)(batch).labels, batch.labels)


@each
def test_silence_and_a_tenth_of_a_second(make):
    silent = collate([Item("a", np.zeros(1600, np.float32), 1), Item("b", np.zeros(9000, np.float32), 0)])
    out = make(seed=1)(silent)
    quiet = 3e-4 if make is TRANSFORMS["codec"] else 1e-6  # codecs have no exact zero: a few steps of 16 bits
    assert torch.isfinite(out.wave).all() and out.wave.abs().max() < quiet
    short = collate([Item("a", sound(1600, 0), 1)])
    out = make(seed=1)(short)
    assert torch.isfinite(out.wave).all() and 700 < int(out.lengths[0]) < 2400


@each
def test_draws_belong_to_seed_epoch_and_utterance(make):  # pitfall 51
    batch = several()
    transform = make(seed=3)
    out = transform(batch, epoch=2)
    assert_same(out, transform(batch, epoch=2), atol=0)
    transform(batch, epoch=1)  # what was called before does not matter
    assert_same(out, transform(take_rows(batch, [4, 0, 2]), epoch=2))
    assert_same(out, transform(take_rows(batch, [5]), epoch=2))
    others = [transform(batch, epoch=3), make(seed=4)(batch, epoch=2)]
    named = replace(batch, utts=[f"other {utt}" for utt in batch.utts])
    others.append(replace(transform(named, epoch=2), utts=batch.utts))
    for other in others:
        with pytest.raises(AssertionError):
            assert_same(out, other)


class Transformed(Dataset):
    def __init__(self, transform):
        self.transform = transform

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> Batch:
        return self.transform(take_rows(several(), [i % 3, 4]), epoch=i // 3)


@each
def test_workers_change_nothing_and_epochs_differ(make):  # pitfalls 50 and 51: two workers, two epochs
    alone, helped = ([*DataLoader(Transformed(make(seed=5)), batch_size=None, num_workers=w)] for w in (0, 2))
    for a, b in zip(alone, helped, strict=True):
        assert_same(a, b)
    first, second = ({x.numpy().tobytes() for b in alone[i : i + 3] for x in b.wave} for i in (0, 3))
    assert not first & second or len(second - first) >= 2


@each
def test_padding_has_no_effect_and_gets_none(make):  # pitfall 57
    batch = several()
    transform = make(seed=3)
    wide = replace(batch, wave=fit_length(batch.wave, 20000))
    assert_same(transform(batch), transform(wide))
    dirty = wide.wave.clone()
    for x, n in zip(dirty, batch.lengths.tolist(), strict=True):
        x[n:] = 0.5
    out = transform(replace(wide, wave=dirty))
    assert_same(transform(batch), out)
    assert all(x[n:].abs().sum() == 0 for x, n in zip(out.wave, out.lengths.tolist(), strict=True))


@each
def test_input_is_left_alone(make):
    batch = several()
    before = several()
    make(seed=3)(batch)
    assert torch.equal(batch.wave, before.wave) and torch.equal(batch.lengths, before.lengths)
    assert torch.equal(batch.labels, before.labels) and batch.utts == before.utts
    assert all(np.array_equal(a, b) for a, b in zip(batch.fakes, before.fakes, strict=True))


@each
def test_probability(make):  # pitfall 50: never with probability 1 by accident
    batch = several()
    assert_same(make(p=0.0, seed=3)(batch), batch, atol=0)
    many = collate([Item(f"u{i}", sound(1600, 0), 1) for i in range(60)])
    some = make(p=0.5, seed=3)(many)
    all_ = make(p=1.0, seed=3)(many)
    pairs = zip(recordings(some).values(), recordings(all_).values(), recordings(many).values(), strict=True)
    changed = [len(a) != len(b) or not torch.equal(a, b) for (a, *_), _, (b, *_) in pairs]
    assert 10 <= sum(changed) <= 50
    with pytest.raises(ValueError, match="probability"):
        make(p=1.5)


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("seed", range(4))
def test_a_burst_stays_in_its_segment(name, seed):
    """50 ms of noise are the fake segment; what is loud afterwards lies in the moved segment, to a millisecond."""
    rng = np.random.default_rng(seed)
    at = int(rng.integers(4000, 10000))
    n = 800
    wave = 1e-4 * rng.normal(size=16000)
    wave[at : at + n] = 0.5 * rng.choice([-1, 1], n)
    batch = collate([Item(f"burst {seed}", wave.astype(np.float32), 0, np.array([[at, at + n]]) / 16000)])
    out = TRANSFORMS[name](seed=seed)(batch)
    x = out.wave[0].abs().numpy()
    start, end = out.fakes[0][0] * 16000
    loud = np.flatnonzero(x > 0.6 * x.max())
    assert len(out.fakes[0]) == 1 and int(out.labels[0]) == 0
    assert start - 16 <= loud[0] and loud[-1] < end + 16, (start, end, loud[0], loud[-1])
    assert end - start < 1.6 * n  # the segment did not grow around it
