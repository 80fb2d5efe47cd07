"""The protocol's own pieces; what all transforms share is in test_transforms.py."""

import numpy as np
import pytest
import torch

from wedefense_nb.augmentation.transforms import (
    Gain,
    Transform,
    by_choice,
    fit_length,
    keep_level,
    limit,
    replace_rows,
    take_rows,
    zero_padding,
)
from wedefense_nb.data.batches import collate
from wedefense_nb.data.crops import Item


def batch(*lengths):
    rng = np.random.default_rng(0)
    return collate(
        [Item(f"u{i}", rng.normal(size=n).astype(np.float32) / 9, i % 2) for i, n in enumerate(lengths)]
    )


def test_rows_taken_out_and_put_back_change_nothing():
    b = batch(5, 9, 7)
    again = replace_rows(b, [2, 0], take_rows(b, [2, 0]))
    assert (
        torch.equal(again.wave, b.wave)
        and torch.equal(again.lengths, b.lengths)
        and torch.equal(again.labels, b.labels)
    )
    assert take_rows(b, [2, 0]).utts == ["u2", "u0"] and again.utts == b.utts


def test_a_part_may_come_back_longer_or_shorter():
    b = batch(5, 9, 7)
    part = batch(3)
    part.fakes[0] = np.array([[0.0, 1e-4]])
    part.labels[0] = 1
    shorter = replace_rows(b, [1], part)
    assert (
        shorter.lengths.tolist() == [5, 3, 7]
        and shorter.wave.shape == (3, 7)
        and shorter.labels.tolist() == [0, 1, 0]
    )
    assert torch.equal(shorter.wave[1, :3], part.wave[0]) and shorter.wave[1, 3:].abs().sum() == 0
    assert shorter.fakes[1] is part.fakes[0] and b.fakes[1] is not part.fakes[0]
    longer = replace_rows(b, [0], batch(12))
    assert longer.wave.shape == (3, 12) and torch.equal(longer.wave[1:, :9], b.wave[1:])


def test_fit_length_and_zero_padding():
    x = torch.ones(2, 4)
    assert fit_length(x, 6).tolist() == [[1, 1, 1, 1, 0, 0]] * 2 and fit_length(x, 3).shape == (2, 3)
    assert fit_length(x, 3, copy=True).data_ptr() != x.data_ptr()
    assert zero_padding(x, torch.tensor([4, 1])).tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]]


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


def test_by_choice_gives_each_group_its_value():
    def scale(part, value):
        part.wave.mul_(value)
        return part

    b = batch(*[4] * 5)
    out = by_choice(b, [2, 0, 2, 1, 0], scale)
    assert torch.allclose(out.wave, b.wave * torch.tensor([2.0, 0, 2, 1, 0])[:, None])


def test_gain_is_uniform_in_decibels():
    many = batch(*[50] * 2000)
    levels = 20 * (Gain(-12, -2)(many).wave.norm(dim=1) / many.wave.norm(dim=1)).log10()
    assert levels.min() >= -12.001 and levels.max() <= -1.999
    assert np.histogram(levels, 5, (-12, -2))[0] == pytest.approx(400, abs=80)
    with pytest.raises(ValueError, match="must not exceed"):
        Gain(3, -3)


def test_a_transform_without_apply_says_so():
    with pytest.raises(NotImplementedError):
        Transform()(batch(4))
