"""Parts learn or stand still as they are asked to, each at its own rate, and stages repeat themselves exactly."""

import dataclasses
import math
import re
from dataclasses import asdict, replace

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.conftest import ROOT, power_cut
from tests.training.runs import Scripted, Stop, weights
from wedefense_nb.features.pretrained import BASE, LARGE, TINY
from wedefense_nb.models.detector import build
from wedefense_nb.training import loop
from wedefense_nb.training.loop import FitConfig, fit, lr_at, plateau_share
from wedefense_nb.training.objectives import OBJECTIVES, Detection, make_objective
from wedefense_nb.training.scoring import score
from wedefense_nb.training.stages import (
    fit_stages,
    hold_still,
    make_stages,
    part_names,
    rate_shares,
    thaw,
)

SMALL = FitConfig(batch_size=12, crop=0.4, windows=0.4, balance=True, average=1, seed=3, save_every=2, lr=2e-3)
TWO = [
    {"learn": ["head"], "epochs": 1, "lr": "1e-2"},
    {"learn": ["top 1", "head"], "steps": 8, "schedule": "linear", "rates": {"head": 3}, "layer_decay": 0.5},
]


def tiny(seed=0, **options):
    """A linear head on an upstream of random weights that are always the same; the head's differ by seed."""
    torch.manual_seed(0)
    model = build("ssl_linear", upstream=asdict(TINY), pool="stats", **options)
    torch.manual_seed(seed)
    model.head.out.reset_parameters()
    return model


@pytest.fixture(scope="module")
def few(splits):
    parts = []
    for part, n in zip(splits, (30, 6), strict=True):
        utts = [u for label in ("bonafide", "spoof") for u in part.subset(label=label).utterances.utt[:n]]
        parts.append(part.subset(utt=utts))
    return parts


# Who learns


@pytest.fixture(scope="module")
def sizes():
    """The published sizes, without values."""
    with torch.device("meta"):
        return {
            name: build("ssl_linear", upstream=asdict(size)) for name, size in (("base", BASE), ("large", LARGE))
        }


def learning(model, *learn) -> int:
    thaw(model, learn)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_two_stages_learn_the_published_numbers_of_weights(sizes):
    base = sizes["base"]
    assert learning(base, "head") == 1_538
    assert learning(base, "top 2", "norm", "head") == 14_178_818
    assert learning(base, "top 2", "head") == 2 * 7_087_872 + 1_538  # no norm follows the layers of a base network
    assert learning(base, "all") == sum(p.numel() for p in base.parameters())
    file = yaml.safe_load((ROOT / "params/asvspoof2019_la/two_stage_wav2vec2.yaml").read_text())
    config = FitConfig(**{name: file[name] for name in ("batch_size", "crop", "windows", "average")})
    first, second = make_stages(file["stages"], config)
    assert [learning(base, *stage.learn) for stage in (first, second)] == [1_538, 14_178_818]
    assert (first.config.lr, second.config.lr, second.config.steps) == (1e-3, 1e-5, 5_320)
    assert second.config.precision == "fp16" and second.config.windows == second.config.crop == 4.0


def test_the_norm_of_a_large_network_comes_with_its_top(sizes):
    large = sizes["large"]
    assert set(part_names(large, "norm")) < set(part_names(large, "top 2"))
    assert (
        len(part_names(large, "top 24")) == 24 * len(part_names(large, "top 2")) // 2 - 22
    )  # two of them the norm


def test_words_and_patterns_mean_parts():
    model = build("lcnn_lstm")
    parts = [part_names(model, word) for word in ("back", "head")]
    assert sorted(sum(parts, [])) == sorted(part_names(model, "all"))  # its front end has nothing that learns
    assert part_names(model, "head.out.*") == part_names(model, "head")
    of_upstream = tiny()
    assert {n.split(".")[0] for n in part_names(of_upstream, "front")} == {"front"}
    assert thaw(of_upstream, ["top 1"]) == [
        n
        for n in part_names(of_upstream, "all")
        if n.startswith(("front.encoder.layers.1.", "front.encoder.norm."))
    ]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("front", "means no parameter"),
        ("norm", "means no parameter"),
        ("top 1", "means no parameter"),
        ("heads", r"say all, front, back, head, adapter, norm, top N, or a pattern such as "),
    ],
)
def test_a_word_that_means_nothing_is_refused(word, message):
    with pytest.raises(ValueError, match=message):
        part_names(build("bands"), word)


@pytest.mark.parametrize("word", ["top 0", "top 3", "top x", "top -1"])
def test_layers_that_there_are_not_are_refused(word):
    with pytest.raises(ValueError, match="has 2 layers, so say top 1 to top 2"):
        part_names(tiny(), word)


def test_what_is_frozen_stands_still_altogether():
    model = build("lcnn_lstm", dropout=0.5)
    thaw(model, ["head"])
    model.train()
    hold_still(model)
    assert not model.backbone.training and model.head.training
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wave, lengths = torch.randn(3, 8000), torch.tensor([8000, 7000, 6000])
    one, two = model.embed(wave, lengths), model.embed(wave, lengths)
    assert torch.equal(one, two)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_layers_of_an_upstream_that_learn_are_in_training_mode_and_no_others():
    model = tiny()
    for learn, modes in ((["head"], [False, False]), (["top 1"], [False, True]), (["head"], [False, False])):
        thaw(model, learn)
        model.train()
        hold_still(model)
        assert [layer.training for layer in model.front.encoder.layers] == modes
    thaw(model, ["all"])
    model.train()
    assert model.front.encoder.training and model.front.learning == [model.front.encoder]
    assert not model.eval().front.encoder.layers[1].training


# How fast


def test_layer_decay_falls_from_the_top_to_the_bottom():
    model = tiny()
    shares = rate_shares(model, {"head": 4.0, "front.encoder.layers.0.fc1.*": 2.0}, layer_decay=0.5)
    wanted = {
        "head.out.weight": 4.0,
        "front.encoder.layers.1.fc1.bias": 0.5,
        "front.encoder.layers.0.fc2.bias": 0.25,
        "front.encoder.layers.0.fc1.bias": 0.5,
        "front.encoder.convs.0.conv.weight": 0.125,
        "front.encoder.position.convs.0.bias": 0.125,
    }
    assert {name: shares[name] for name in wanted} == wanted
    assert not set(part_names(model, "norm")) & set(shares)
    assert rate_shares(model, {"all": 2.0, "head": 1.0}).keys() == set(part_names(model, "front"))


@pytest.mark.parametrize(
    ("rates", "decay", "message"),
    [
        ({"head": 0.0}, 1.0, "must be positive; what shall not learn is frozen"),
        ({"head": math.inf}, 1.0, "must be positive"),
        ({"tail": 1.0}, 1.0, "means no parameter"),
        ({}, 0.0, "a share above 0 and at most 1"),
        ({}, 1.1, "a share above 0 and at most 1"),
    ],
)
def test_rates_that_cannot_be_are_refused(rates, decay, message):
    with pytest.raises(ValueError, match=message):
        rate_shares(tiny(), rates, decay)


def test_each_part_moves_by_its_share_of_the_rate(few, tmp_path):
    """Adam's first step is the rate itself, for every weight whose gradient is not tiny."""
    model = build("bands", n_mels=20, embed_dim=8)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    stage = {"rates": {"head": 0.1}, "steps": 1, "warmup": 0.0, "lr": 1e-3}
    fit_stages(model, *few, SMALL, make_stages([stage], replace(SMALL, weight_decay=0.0)), out=tmp_path)
    for name, p in model.named_parameters():
        moved = (p.detach() - before[name]).abs().max().item()
        assert moved == pytest.approx(1e-4 if "head" in name else 1e-3, rel=0.01), name


def test_an_optimizer_has_one_group_where_all_shares_are_one():
    objective = Detection(build("bands"), SMALL)
    (group,) = objective.groups()
    assert group["share"] == 1 and [id(p) for p in group["params"]] == [id(p) for p in objective.parameters()]
    objective.shares = {"head.out.weight": 3.0, "head.out.bias": 0.5}
    assert [(g["share"], len(g["params"])) for g in objective.groups()] == [(3.0, 1), (1.0, 2), (0.5, 1)]


# Schedules


@given(
    st.integers(1, 300), st.floats(0, 1), st.floats(0.001, 1), st.sampled_from(["linear", "exponential", "cosine"])
)
@settings(max_examples=60, deadline=None)
def test_schedules_rise_to_the_peak_and_fall_to_the_share_that_is_left(total, warmup, final, kind):
    config = FitConfig(lr=2.0, warmup=warmup, final_lr=final, schedule=kind)
    rates = [lr_at(step, total, config) for step in range(total)]
    rise = max(1, round(warmup * total))
    assert rates[min(rise, total) - 1] == pytest.approx(2.0) == max(rates)
    assert all(a >= b - 1e-12 for a, b in zip(rates[rise:], rates[rise + 1 :], strict=False))
    assert lr_at(total, total, config) == pytest.approx(2 * final if rise < total else 2.0)


def test_schedules_are_those_of_pytorch():
    parameter = [nn.Parameter(torch.zeros(1))]
    for kind, made in (
        ("linear", lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.1, total_iters=20)),
        ("exponential", lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.1 ** (1 / 20))),
        ("cosine", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20, eta_min=0.3)),
    ):
        optimizer = torch.optim.SGD(parameter, lr=3.0)
        theirs = made(optimizer)
        config = FitConfig(lr=3.0, warmup=0.0, final_lr=0.1, schedule=kind)
        for step in range(20):  # a rise of one step, then the fall begins
            assert lr_at(step + 1, 21, config) == pytest.approx(optimizer.param_groups[0]["lr"])
            optimizer.step()
            theirs.step()
    assert {lr_at(s, 9, FitConfig(lr=1.0, warmup=0, schedule="constant")) for s in range(9)} == {1.0}


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), max_size=12), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_plateau_is_that_of_pytorch(errors, wait):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    options = {"factor": 0.5, "patience": wait - 1, "threshold": 0.0, "min_lr": 0.05}
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options)
    for error in errors:
        theirs.step(error)
    config = FitConfig(schedule="plateau", wait=wait, final_lr=0.05)
    assert plateau_share(errors, config) == pytest.approx(optimizer.param_groups[0]["lr"])
    assert plateau_share(errors, FitConfig()) == 1


def test_the_loop_holds_back_after_epochs_without_a_better_error(few, tmp_path):
    config = replace(SMALL, epochs=4, schedule="plateau", warmup=0.0, lr=1e-3)
    found = fit(build("bands"), *few, config, validate=Scripted(0.4, 0.5, 0.3, 0.3, 0.3, 0.3), out=tmp_path)
    assert found.history.lr.tolist() == [1e-3, 1e-3, 5e-4, 5e-4]


@pytest.mark.parametrize(("steps", "epochs"), [(1, 1), (5, 1), (6, 2), (12, 3)])
def test_a_training_of_so_many_steps_ends_within_an_epoch(few, tmp_path, monkeypatch, steps, epochs):
    rates = []
    step = loop._step
    monkeypatch.setattr(
        loop, "_step", lambda run, batch, lr, progress: rates.append(lr) or step(run, batch, lr, progress)
    )
    config = replace(SMALL, steps=steps, epochs=99)
    found = fit(build("bands"), *few, config, out=tmp_path)
    assert len(loop._read_state(tmp_path / "checkpoints/last.pt")["history"]) == len(found.history) == epochs
    assert rates == [lr_at(i, steps, config) for i in range(steps)]


@pytest.mark.parametrize("after", [1, 5, 7])
def test_a_cut_training_of_steps_is_continued(few, tmp_path, after):
    config = replace(SMALL, steps=8)
    torch.manual_seed(0)
    whole = fit(build("bands"), *few, config, out=tmp_path / "whole")
    torch.manual_seed(0)
    with power_cut(loop, "_step", after, Stop):
        fit(build("bands"), *few, config, out=tmp_path / "cut")
    again = fit(build("bands"), *few, config, out=tmp_path / "cut")
    assert torch.equal(weights(again.model), weights(whole.model)) and again.history.equals(whole.history)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "at least 1, or null to count epochs"),
        ({"schedule": "exponential", "final_lr": 0.0}, "never reaches a final_lr of 0"),
        ({"wait": 0}, "wait is 0"),
    ],
)
def test_settings_of_schedules_are_refused_where_they_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        FitConfig(**change)


# Stages


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([{"epochs": 1}, {"epoch": 2}], "unknown setting of stage 2 'epoch': did you mean 'epochs'"),
        ([{"lr": -1}], "stage 1: .*must be positive"),
        ([{"lr": "fast"}], "stage 1: lr "),
        ([{"learn": 3}], "stage 1: learn"),
        ([{"schedule": "step"}], "stage 1: schedule"),
        ([{"objective": "detecion"}], "unknown objective 'detecion'"),
        ([{"objective": "mixup", "objective_options": {"alfa": 1}}], "unknown option of objective mixup 'alfa'"),
        ([{"config": {}}], "unknown setting of stage 1 'config'"),
    ],
)
def test_stages_that_cannot_be_are_refused_before_the_first(listed, message):
    with pytest.raises(ValueError, match=message):
        make_stages(listed, SMALL)


def test_a_stage_has_the_settings_of_the_run_and_its_own():
    first, second = make_stages(TWO, SMALL)
    assert first.config == replace(SMALL, epochs=1, lr=1e-2) and second.config.steps == 8
    assert second.rates == {"head": 3.0} and tuple(second.learn) == ("top 1", "head")


@pytest.fixture(scope="module")
def whole(few, tmp_path_factory):
    return fit_stages(tiny(), *few, SMALL, make_stages(TWO, SMALL), out=tmp_path_factory.mktemp("stages"))


def test_only_what_is_thawed_is_changed(whole):
    before, after = tiny().state_dict(), whole.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    still = {"log_prior_odds", *(n for n in changed if ".qkv.bias" in n)}
    wanted = set(part_names(tiny(), "top 1")) | set(part_names(tiny(), "head"))
    assert changed - still <= wanted and {"head.out.weight", "front.encoder.layers.1.fc1.weight"} <= changed


def test_a_history_counts_on(whole):
    assert whole.history.epoch.tolist() == list(range(len(whole.history))) and len(whole.history) == 3
    assert whole.history.stage.tolist() == [1, 2, 2] and set(whole.epochs) <= {1, 2}
    assert whole.history.lr.iloc[1] > whole.history.lr.iloc[2]  # the second is cut after 8 of 10 steps


@pytest.mark.parametrize("after", [2, 5, 6, 9, 12])
def test_interrupted_stages_equal_uninterrupted_ones(whole, few, tmp_path, after):
    """Within either stage, and straight after the first."""
    listed = make_stages(TWO, SMALL)
    with power_cut(loop, "_step", after, Stop):
        fit_stages(tiny(), *few, SMALL, listed, out=tmp_path)
    again = fit_stages(tiny(seed=9), *few, SMALL, listed, out=tmp_path)
    assert torch.equal(weights(again.model), weights(whole.model)) and again.history.equals(whole.history)
    assert again.epochs == whole.epochs and again.dev_error == whole.dev_error


def test_finished_stages_are_read_and_not_trained(whole, few, monkeypatch):
    monkeypatch.setattr(loop, "_step", None)
    again = fit_stages(tiny(seed=5), *few, SMALL, make_stages(TWO, SMALL), out=whole.out)
    assert torch.equal(weights(again.model), weights(whole.model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rates": {"head": 2}}, "objective rates"),
        ({"layer_decay": 0.7}, "objective layer_decay"),
        ({"steps": 9}, "steps: 8 before, 9 now"),
        ({"learn": ["head"]}, "frozen weights"),
    ],
)
def test_another_stage_in_the_folder_is_refused(whole, few, change, message):
    listed = make_stages([TWO[0], TWO[1] | change], SMALL)
    with pytest.raises(ValueError, match=message):
        fit_stages(tiny(), *few, SMALL, listed, out=whole.out)


def test_without_stages_it_is_fit(few, tmp_path):
    config = replace(SMALL, epochs=1)
    found = []
    for name, train in (("plain", fit), ("stages", fit_stages)):
        torch.manual_seed(0)
        found.append(train(build("bands"), *few, config, out=tmp_path / name))
    torch.manual_seed(0)
    alone = fit_stages(build("bands"), *few, config, make_stages([{}], config), out=tmp_path / "one")
    found.append(alone)
    assert torch.equal(weights(found[0].model), weights(found[1].model))
    assert torch.equal(weights(found[0].model), weights(found[2].model))
    assert (tmp_path / "stages/checkpoints").is_dir() and (tmp_path / "one/stage_1/checkpoints").is_dir()


def test_parts_that_there_are_not_are_found_before_the_first_step(few, tmp_path):
    listed = make_stages([TWO[0], {"learn": ["top 7"]}], SMALL)
    with pytest.raises(ValueError, match="has 2 layers"):
        fit_stages(tiny(), *few, SMALL, listed, out=tmp_path)
    assert not (tmp_path / "stage_1").exists()


def test_a_stage_may_have_its_own_objective_and_precision(few, tmp_path):
    """Detection first, then reinforcement in half precision, whose reference is what the first learned."""
    listed = [
        {"learn": ["head"], "epochs": 1, "lr": 1e-2},
        {"learn": ["top 1", "head"], "epochs": 1, "precision": "bf16", "objective": "reinforcement"},
    ]
    found = fit_stages(tiny(), *few, SMALL, make_stages(listed, SMALL), out=tmp_path)
    first = loop.load_weights(sorted((tmp_path / "stage_1/checkpoints").glob("epoch_*"))[-1])
    kept = loop._read_state(tmp_path / "stage_2/checkpoints/last.pt") | torch.load(
        tmp_path / "stage_2/checkpoints/last.pt", weights_only=True
    )
    reference = kept["own"]["_extra_state"]["reference"]
    assert torch.equal(reference["head.out.weight"], first["head.out.weight"])
    assert kept["identity"]["objective"] == "Reinforcement" and kept["identity"]["precision"] == "bf16"
    assert len(found.history) == 2


def test_the_published_recipe_runs_with_a_tiny_upstream(few, tmp_path):
    file = yaml.safe_load((ROOT / "params/asvspoof2019_la/two_stage_wav2vec2.yaml").read_text())
    own = {f.name for f in dataclasses.fields(FitConfig)} & set(file)
    config = replace(
        FitConfig(**{name: file[name] for name in own}), crop=0.5, windows=0.5, batch_size=12, workers=0
    )
    small = {"epochs": 1, "precision": "no"}
    listed = [{k: v for k, v in (stage | small).items() if k != "steps"} for stage in file["stages"]]
    found = fit_stages(tiny(), *few, config, make_stages(listed, config), out=tmp_path)
    table = score(found.model, few[1], progress=False, windows=config.windows)
    assert len(table) == len(few[1]) and found.history.stage.tolist() == [1, 2]
    assert re.search("wav2vec2_base", file["model_options"]["upstream"])


def test_objectives_by_name_are_those_of_the_registry():
    assert {"detection", "reinforcement"} <= set(OBJECTIVES)
    assert make_objective("reinforcement", draws=0).keywords == {"draws": 0}
