"""Rules that choose, average and stop, on lists of numbers; and which weights are kept at all."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from wedefense_nb.training.selection import (
    average_weights,
    chosen_epochs,
    frozen_names,
    frozen_print,
    learned_state,
    load_learned,
    save_learned,
    should_stop,
)


def test_chosen_epochs():
    errors = [0.5, 0.1, 0.3, 0.1, 0.2]
    assert chosen_epochs(errors, 1) == [1]
    assert chosen_epochs(errors, 3) == [1, 3, 4]
    assert chosen_epochs(errors, 99) == [0, 1, 2, 3, 4]
    assert chosen_epochs(errors, 2, "last") == [3, 4]
    with pytest.raises(ValueError, match="'best' or 'last'"):
        chosen_epochs(errors, 2, "lucky")


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=1, max_size=12), st.integers(1, 12))
def test_no_epoch_left_out_is_better_or_as_good_and_earlier(errors, n):
    chosen = chosen_epochs(errors, n)
    assert chosen == sorted(set(chosen)) and len(chosen) == min(n, len(errors))
    for left in set(range(len(errors))) - set(chosen):
        assert all((errors[left], left) > (errors[kept], kept) for kept in chosen)


def test_early_stopping_on_a_scripted_sequence():  # pitfall 14
    errors = [0.3, 0.2, 0.25, 0.24, 0.19, 0.2, 0.2, 0.2]
    assert [should_stop(errors[:n], 3) for n in range(9)] == [False] * 8 + [True]
    assert [should_stop(errors[:n], 2) for n in range(5)] == [False, False, False, False, True]
    assert not any(should_stop(errors[:n], None) for n in range(9))
    assert should_stop([0.2, 0.2], 1)  # as good is not better
    for bad in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            should_stop(errors, bad)


def test_average_is_the_mean_and_counters_come_from_the_last(tmp_path):
    files = []
    for i, value in enumerate([1.0, 2.0, 6.0]):
        files.append(tmp_path / f"{i}.safetensors")
        tensors = {"w": torch.full((2,), value), "half": torch.tensor(value).half(), "n": torch.tensor(10 * i)}
        save_file(tensors, files[-1])
    mean = average_weights(files)
    assert mean["w"].tolist() == [3, 3] and mean["w"].dtype == torch.float32
    assert mean["half"] == 3 and mean["half"].dtype == torch.float16
    assert mean["n"] == 20
    assert average_weights(files[::-1])["n"] == 0
    save_file({"w": torch.zeros(2)}, files[0])
    with pytest.raises(ValueError, match="different tensors: .*0.safetensors"):
        average_weights(files)


# What is kept


class Partly(nn.Module):
    """A frozen part with running statistics, one that learns, and a frozen parameter beside a learning one."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).requires_grad_(False)
        self.norm = nn.BatchNorm1d(4)
        self.out = nn.Linear(4, 2)
        self.out.bias.requires_grad_(False)
        self.register_buffer("prior", torch.zeros(()))


def test_frozen_parts_are_left_out_and_statistics_of_learning_ones_are_not():
    model = Partly()
    assert set(learned_state(model)) == {
        "prior",
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
        "out.weight",
    }
    assert frozen_names(model) == set(model.state_dict()) - set(learned_state(model))
    assert frozen_names(nn.Linear(2, 2)) == set()
    assert frozen_names(nn.Linear(2, 2).requires_grad_(False), "x.") == {"x.weight", "x.bias"}


def test_what_learned_comes_back_and_the_rest_stays(tmp_path):
    model = Partly()
    save_learned(model, tmp_path / "deep/epoch.safetensors")
    other = Partly()
    frozen = {name: other.state_dict()[name].clone() for name in frozen_names(other)}
    load_learned(other, load_file(tmp_path / "deep/epoch.safetensors"))
    for name, value in other.state_dict().items():
        assert torch.equal(value, frozen[name] if name in frozen else model.state_dict()[name])
    state = learned_state(model)
    state.pop("out.weight")
    with pytest.raises(ValueError, match="1 tensors differ, such as .'out.weight'"):
        load_learned(other, state)
    with pytest.raises(ValueError, match="tensors differ"):
        load_learned(other, model.state_dict())


def test_the_fingerprint_sees_every_frozen_number_and_nothing_else():
    model = Partly()
    first = frozen_print(model)
    assert len(first) == 16 and first == frozen_print(model) and frozen_print(nn.Linear(2, 2)) == ""
    with torch.no_grad():
        model.out.weight.zero_()
        model.norm.running_mean += 1
    assert frozen_print(model) == first
    with torch.no_grad():
        model.frozen[1].running_mean[0] += 1e-6
    assert frozen_print(model) != first
