"""The protocol's own pieces: rows, levels, ratios, chains, the filter; the promises are in test_promises.py."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wedefense_nb.augmentation.rawboost import RawBoost
from wedefense_nb.augmentation.transforms import (
    Chain,
    Gain,
    OneOf,
    Transform,
    by_choice,
    changing_loader,
    filter_powers,
    fit_length,
    keep_level,
    limit,
    mix,
    replace_rows,
    take_rows,
    zero_padding,
)
from wedefense_nb.data.batches import AudioDataset, collate, epoch_batches
from wedefense_nb.data.crops import Crop, Item
from wedefense_nb.data.manifest import utt_rng


def batch(*lengths, level=0.1):
    rng = np.random.default_rng(0)
    waves = [(level * rng.normal(size=n)).astype(np.float32) for n in lengths]
    return collate([Item(f"u{i}", wave, i % 2) for i, wave in enumerate(waves)])


# Rows


def test_rows_taken_out_and_put_back_change_nothing():
    b = batch(5, 9, 7)
    part = take_rows(b, [2, 0])
    again = replace_rows(b, [2, 0], part)
    assert torch.equal(again.wave, b.wave) and torch.equal(again.lengths, b.lengths)
    assert torch.equal(again.labels, b.labels) and again.utts == b.utts
    assert part.utts == ["u2", "u0"] and part.lengths.tolist() == [7, 5] and part.wave.shape == (2, 9)


def test_a_part_may_come_back_longer_or_shorter():
    b = batch(5, 9, 7)
    part = batch(3)
    part.fakes[0] = np.array([[0.0, 1e-4]])
    part.labels[0] = 0
    shorter = replace_rows(b, [1], part)
    assert shorter.lengths.tolist() == [5, 3, 7] and shorter.labels.tolist() == [0, 0, 0] != b.labels.tolist()
    assert shorter.wave.shape == (3, 7)
    assert torch.equal(shorter.wave[1, :3], part.wave[0]) and not shorter.wave[1, 3:].any()
    assert shorter.fakes[1] is part.fakes[0] and b.fakes[1] is not part.fakes[0]
    longer = replace_rows(b, [0], batch(12))
    assert longer.wave.shape == (3, 12) and torch.equal(longer.wave[1:, :9], b.wave[1:])


def test_fit_length_and_zero_padding():
    x = torch.ones(2, 4)
    assert fit_length(x, 6).tolist() == [[1, 1, 1, 1, 0, 0]] * 2 and fit_length(x, 3).shape == (2, 3)
    assert fit_length(x, 3, copy=True).data_ptr() != x.data_ptr()
    assert zero_padding(x, torch.tensor([4, 1])).tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]]


def test_by_choice_gives_each_group_its_value():
    def scale(part, value):
        part.wave.mul_(value)
        return part

    b = batch(*[4] * 5)
    out = by_choice(b, [2, 0, 2, 1, 0], scale)
    assert torch.allclose(out.wave, b.wave * torch.tensor([2.0, 0, 2, 1, 0])[:, None])


def test_a_transform_of_one_recording_leaves_its_neighbours():
    class Silence(Transform):
        def apply(self, batch, rngs, epoch=0):
            batch.wave.zero_()
            return batch

    b = batch(*[4] * 300)
    silent = ~Silence(p=0.3, seed=1)(b).wave.any(1)
    assert 60 < silent.sum() < 120 and b.wave.any(1).all()
    for i in (0, 1, 2):
        alone = Silence(p=0.3, seed=1)(take_rows(b, [i]))
        assert bool(alone.wave.any()) is not bool(silent[i])
    with pytest.raises(NotImplementedError):
        Transform()(b)


# Levels and ratios


def test_limit_only_lowers_and_never_raises():  # pitfall 50: peak-normalised augmented files
    x = torch.tensor([[0.5, -0.2], [2.0, -4.0], [-3.0, 1.0]])
    assert torch.allclose(limit(x.clone()), torch.tensor([[0.5, -0.2], [0.5, -1.0], [-1.0, 1 / 3]]))
    assert torch.equal(limit(x[:1].clone()), x[:1])


def test_keep_level():
    before = torch.tensor([[0.3, -0.4, 0.0], [0.0, 0.0, 0.0]])
    after = torch.tensor([[0.0, 0.0, 0.1], [0.0, 0.0, 0.0]])
    assert torch.allclose(keep_level(after, before), torch.tensor([[0.0, 0.0, 0.5], [0.0, 0.0, 0.0]]))
    spiky = torch.tensor([[5.0, 0.0, 0.0, 0.0]])  # the RMS of 0.6 everywhere would need a peak of 1.2
    assert keep_level(spiky, torch.full((1, 4), 0.6)).max() == 1


def test_gain_is_uniform_in_decibels():
    many = batch(*[50] * 2000)
    levels = 20 * (Gain(-12, -2)(many).wave.norm(dim=1) / many.wave.norm(dim=1)).log10()
    assert levels.min() >= -12.001 and levels.max() <= -1.999
    assert np.histogram(levels, 5, (-12, -2))[0] == pytest.approx(400, abs=80)
    with pytest.raises(ValueError, match="must not exceed"):
        Gain(3, -3)


def test_a_seed_is_the_same_everywhere():
    """Frozen numbers: another order of drawing would change published runs."""
    b = batch(1600)
    level = Gain(-12, 6, seed=3)(b, epoch=2).wave.norm() / b.wave.norm()
    rng = utt_rng("Gain of u0", 3, 2)
    rng.random()
    assert 20 * float(level.log10()) == pytest.approx(rng.uniform(-12, 6), abs=1e-4)


@given(st.floats(-10, 40), st.sampled_from([1.0, 1e-2, 1e-4]))
def test_mix_has_the_ratio_whatever_the_level(snr, level):
    """Published code with its floor of 1e-4 misses by many dB at a level of 1e-4."""
    b = batch(4000, 1600, level=level)
    noise = batch(4000, 1600, level=0.3).wave.flip(0)[:, :4000] * (b.wave != 0)
    added = mix(b.wave, noise, torch.tensor([snr, snr])) - b.wave
    got = 20 * torch.log10(b.wave.norm(dim=1) / added.norm(dim=1))
    assert got.tolist() == pytest.approx([snr, snr], abs=0.1)


def test_mix_leaves_silence_and_takes_silent_noise():
    x = batch(1600).wave
    quiet = torch.zeros(1, 1600)
    snr = torch.tensor([5.0])
    assert torch.equal(mix(quiet, x, snr), quiet) and torch.equal(mix(x, quiet, snr), x)


# Chains


def seeds(member):
    """Of all simple transforms in a chain, in their order."""
    if not isinstance(member, Chain):
        return [member.seed]
    return [seed for part in member.members for seed in seeds(part)]


def test_a_chain_gives_its_members_seeds_of_their_own():
    chain = Chain(Gain(), Gain(), OneOf(Gain(), Gain()), seed=1)
    first = seeds(chain)
    chain.reseed(2)
    assert len(set(first)) == 4 and not set(first) & set(seeds(chain))
    chain.reseed(1)
    assert seeds(chain) == first


def test_a_chain_runs_its_members_in_their_order_and_epoch():
    b = batch(50, 80)
    loud = Chain(Gain(40, 40), Gain(-6, -6))(b).wave.abs().amax(1)
    assert loud.tolist() == pytest.approx([10 ** (-6 / 20)] * 2, abs=1e-3)  # limited first, then lowered
    chain = Chain(Gain())
    one, two = chain(b, epoch=1).wave, chain(b, epoch=2).wave
    assert not torch.equal(one, two) and torch.equal(one, chain(b, epoch=1).wave)


def test_a_chain_belongs_on_the_cpu_if_a_member_does():
    class Files(Gain):
        on_cpu = True

    assert Chain(Gain(), OneOf(Gain(), Files())).on_cpu and not Chain(Gain(), RawBoost()).on_cpu


def test_oneof_follows_its_weights():
    choice = OneOf(Gain(-20, -20), Gain(-6, -6), Gain(0, 0), weights=(3, 1, 0), p=0.8, seed=1)
    many = batch(*[400] * 1000)
    levels = 20 * (choice(many).wave.norm(dim=1) / many.wave.norm(dim=1)).log10()
    shares = [float(((levels - level).abs() < 0.01).float().mean()) for level in (-20, -6, 0)]
    assert shares == pytest.approx([0.6, 0.2, 0.2], abs=0.04)
    for bad in ((1,), (1, -1), (0, 0)):
        with pytest.raises(ValueError, match="weight"):
            OneOf(Gain(), Gain(), weights=bad)
    with pytest.raises(ValueError, match="at least one"):
        Chain()


# In the processes that load


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_changes_what_it_reads(samples, workers):
    data = AudioDataset(samples.subset(split="train"), Crop(0.5, seed=1))
    plan = epoch_batches(samples.subset(split="train"), 8, seed=1)[:2]
    change = Gain(seed=2)
    plain = list(changing_loader(data, plan))
    changed = list(changing_loader(data, plan, workers, change, epoch=3))
    assert len(plain) == len(changed) == 2
    for a, b in zip(plain, changed, strict=True):
        assert a.utts == b.utts and torch.equal(b.wave, change(a, epoch=3).wave)


# The filter


@given(st.integers(1, 9000), st.integers(1, 40), st.integers(0, 99))
def test_powers_are_filtered_without_delay(length, half, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3, length))
    sides = rng.normal(size=(3, 2, half))
    sides[..., -1] = 0  # time -half has no counterpart
    responses = np.concatenate([sides[..., :half], np.zeros((3, 2, 1)), sides[..., :0:-1]], -1)
    got = filter_powers(torch.from_numpy(x), torch.from_numpy(responses), size=128)
    for row, wave, (one, two) in zip(got.numpy(), x, sides, strict=True):
        want = 0
        for power, side in ((wave, one), (wave**2, two)):
            taps = np.concatenate([side[:0:-1], side])
            want = want + np.convolve(power, taps)[half - 1 : half - 1 + length]
        assert np.abs(row - want).max() < 1e-9
