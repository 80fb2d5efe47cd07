"""Guesses and rewards come to the gradients of the prose, the anchor holds, a run keeps its reference."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from tests.conftest import power_cut
from tests.training.runs import QUICK, Stop, weights
from wedefense_nb.augmentation.policies import make_policy
from wedefense_nb.data.batches import AudioDataset, collate
from wedefense_nb.data.crops import Crop
from wedefense_nb.models.detector import build, with_head
from wedefense_nb.task import BONAFIDE, SPOOF
from wedefense_nb.training import loop
from wedefense_nb.training.loop import FitConfig, fit, lr_at
from wedefense_nb.training.objectives import make_objective
from wedefense_nb.training.reinforcement import (
    Reinforcement,
    advantages,
    draw_labels,
    reinforced_losses,
)

SETTINGS = SimpleNamespace(class_weights=(0.5, 2.0), seed=7)


def net(**options):
    """Statistics of bands, always with the same first weights: nothing in it is drawn in training."""
    torch.manual_seed(1)
    return build("bands", n_mels=20, embed_dim=8, **options)


@pytest.fixture(scope="module")
def batch(splits):
    data = AudioDataset(splits[0], Crop(0.5))
    rows = [*np.flatnonzero(data.labels == 1)[:3], *np.flatnonzero(data.labels == 0)[:3]]
    return collate([data[0, row] for row in rows])


def slope(margin, right, **options):
    """Gradient of what is gained by the logit of the right label, (B,)."""
    z = torch.as_tensor(margin, dtype=torch.float64).requires_grad_()
    reference = torch.as_tensor(options.pop("reference", z.detach()), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(-reinforced_losses(z, reference, right, **options).sum(), z)
    return gradient


# Guesses


def test_labels_are_drawn_by_seed_epoch_and_name():
    believed = torch.tensor([0.3, 0.7, 0.3])
    drawn = draw_labels(["a", "b", "c"], believed, 500, seed=3, epoch=2)
    assert torch.equal(drawn[[1, 0]], draw_labels(["b", "a"], believed[[1, 0]], 500, seed=3, epoch=2))
    for seed, epoch, utt in ((4, 2, "a"), (3, 1, "a"), (3, 2, "x")):
        assert not torch.equal(drawn[:1], draw_labels([utt], believed[:1], 500, seed, epoch))
    assert ((drawn == BONAFIDE).float().mean(1) - believed).abs().max() < 0.08
    sure = draw_labels(["a", "b"], torch.tensor([0.0, 1.0]), 50)
    assert torch.equal(sure, torch.tensor([SPOOF, BONAFIDE])[:, None].expand(2, 50))


def literal(margin, reference, rewards, old, over, beta, clip):
    """The objective in loops, guess by guess, as the paper writes it: to be made large."""
    rewards = np.asarray(rewards, dtype=float)
    total = []
    for z, z_ref, z_old, own in zip(margin, reference, old or [None] * len(margin), rewards, strict=True):
        group = own if over == "group" else rewards
        terms = []
        for reward in own:
            sign = 1 if reward else -1
            log_p = torch.nn.functional.logsigmoid(sign * z)
            a = (reward - group.mean()) / (group.std() + 1e-5)
            if old is None:
                gain = (log_p - log_p.detach()).exp() * a
            else:
                ratio = log_p.exp() / torch.sigmoid(sign * z_old)
                gain = min(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a)
            delta = torch.nn.functional.logsigmoid(sign * z_ref) - log_p
            terms.append(gain - beta * (delta.exp() - delta - 1))
        total.append(sum(terms) / len(terms))
    return torch.stack(total)


@given(st.integers(0, 10**6), st.sampled_from(["group", "batch"]), st.booleans(), st.floats(0, 2))
@settings(max_examples=40, deadline=None)
def test_losses_are_the_sums_over_guesses(seed, over, clipped, beta):
    rng = np.random.default_rng(seed)
    z, z_ref, z_old = (torch.from_numpy(rng.normal(size=4)) for _ in range(3))
    z.requires_grad_()
    rewards = rng.random((4, 6)) < 0.6
    old = z_old if clipped else None
    wanted = literal(z, z_ref, rewards, list(z_old) if clipped else None, over, beta, 0.2)
    right = torch.from_numpy(rewards.mean(1))
    found = reinforced_losses(z, z_ref, right, old, over, beta, 0.2)
    assert torch.allclose(-found, wanted, atol=1e-9)
    gradients = [torch.autograd.grad(x.sum(), z)[0] for x in (-found, wanted)]
    assert torch.allclose(*gradients, atol=1e-9)


def test_advantages_have_mean_zero_and_deviation_one():
    right = torch.tensor([0.25, 0.75, 0.5], dtype=torch.float64)
    good, bad = advantages(right, "group", floor=0.0)
    assert torch.allclose(right * good + (1 - right) * bad, torch.zeros(3, dtype=torch.float64))
    assert torch.allclose(right * good**2 + (1 - right) * bad**2, torch.ones(3, dtype=torch.float64))
    good, bad = advantages(right, "batch", floor=0.0)
    assert len(set(good.tolist())) == 1 and torch.allclose((right * good + (1 - right) * bad).mean(), bad[0] * 0)
    assert (right * good**2 + (1 - right) * bad**2).mean().item() == pytest.approx(1)
    for sure in (0.0, 1.0):  # all guesses alike: nothing to tell them apart by
        good, bad = advantages(torch.tensor([sure]))
        assert abs(float(sure * good + (1 - sure) * bad)) == 0 and math.isfinite(float(good + bad))


# The closed form


@given(st.integers(0, 64), st.floats(-4, 4))
@settings(max_examples=50, deadline=None)
def test_the_gradient_by_group_is_the_deviation_of_the_rewards(k, z):
    share = torch.tensor([k / 64], dtype=torch.float64)
    wanted = math.sqrt(k / 64 * (1 - k / 64))
    assert slope([z], share).item() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.9, 0.99])
def test_expectations_are_those_of_the_sampled_form(p):
    z = math.log(p / (1 - p))
    exact = slope([z], torch.tensor([p], dtype=torch.float64)).item()
    assert exact == pytest.approx(math.sqrt(p * (1 - p)), abs=2e-5)  # and not the 1 - p of cross-entropy
    right = torch.tensor([k / 2000 for k in range(2001)], dtype=torch.float64)
    by_count = slope([z] * 2001, right)
    mean = float((torch.from_numpy(binom.pmf(range(2001), 2000, p)) * by_count).sum())
    assert mean == pytest.approx(exact, rel=0.01)
    utts = [f"recording {i}" for i in range(400)]
    drawn = (draw_labels(utts, torch.full((400,), p), 64) == BONAFIDE).double().mean(1)
    with_64 = sum(binom.pmf(k, 64, p) * math.sqrt(k / 64 * (1 - k / 64)) for k in range(65))
    assert slope([z] * 400, drawn).mean().item() == pytest.approx(with_64, rel=0.06)
    assert with_64 < exact


def test_the_batch_form_climbs_the_accuracy():
    p = torch.tensor([0.1, 0.5, 0.8, 0.95], dtype=torch.float64)
    mean = p.mean()
    wanted = p * (1 - p) / (mean * (1 - mean)).sqrt()
    by_batch, by_group = (slope(p.logit(), p, over=over) for over in ("batch", "group"))
    assert torch.allclose(by_batch, wanted, atol=1e-4)
    assert not torch.allclose(by_batch, by_group, atol=0.02)


# The anchor


def test_the_penalty_pulls_back_to_the_reference():
    before, now = torch.tensor([1.0, -2.0]), torch.tensor([2.5, -3.0])
    found = slope(now, now.double().sigmoid(), reference=before, beta=1.0)
    free = slope(now, now.double().sigmoid(), reference=before, beta=0.0)
    pull = found - free
    assert torch.allclose(pull, (before.sigmoid() - now.sigmoid()).double(), atol=1e-6)
    assert pull[0] < 0 < pull[1]  # the function first published had the other sign
    same = reinforced_losses(now, now, now.sigmoid(), beta=9.0)
    assert same.abs().max() < 1e-5
    leaving = -reinforced_losses(now, before, torch.ones(2), beta=1.0)
    assert (leaving <= 0).all()  # a guess of one kind alone has no advantage, only the penalty


def test_it_decides_and_says_no_log_odds():
    """With a share of real ones among recordings that sound alike: where both pulls are equal."""

    def pull(z, share):
        z = torch.tensor([z, -z], dtype=torch.float64)
        both = slope(z, z.sigmoid(), reference=torch.zeros(2))
        return float(share * both[0] - (1 - share) * both[1])

    def settles(share):
        low, high = -30.0, 30.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if pull(middle, share) > 0 else (low, middle)
        return low

    assert settles(0.5) == pytest.approx(0, abs=1e-6)
    for share in (0.6, 0.75, 0.9):
        found = settles(share)
        assert found > 2 * math.log(share / (1 - share)) and found == pytest.approx(-settles(1 - share), abs=1e-3)
        p = 1 / (1 + math.exp(-found))
        wanted = 0.04 * (p - 0.5)
        assert (2 * share - 1) * math.sqrt(p * (1 - p)) == pytest.approx(wanted, rel=0.05)


def test_extreme_margins_stay_finite():
    z = torch.tensor([-200.0, 200.0, -90.0], requires_grad=True)
    for right in (torch.zeros(3), torch.ones(3), z.detach().sigmoid()):
        for old in (None, torch.tensor([200.0, -200.0, 90.0])):
            loss = reinforced_losses(z, -z.detach(), right, old).sum()
            (gradient,) = torch.autograd.grad(loss, z)
            assert torch.isfinite(loss) and torch.isfinite(gradient).all()


# The clipped form


def test_a_guess_that_moved_far_is_paid_no_more():
    p = torch.tensor([0.6, 0.6, 0.6], dtype=torch.float64)
    old = torch.tensor([0.6, 0.45, 0.8], dtype=torch.float64).logit()
    found = slope(p.logit(), p, old=old)
    a_right, a_wrong = math.sqrt(0.4 / 0.6), -math.sqrt(0.6 / 0.4)
    third = 0.6 * 0.75 * a_right * 0.4 + 0.4 * 2 * a_wrong * -0.6  # ratios .6/.8 and .4/.2
    assert torch.allclose(found, torch.tensor([math.sqrt(0.24), 0.0, third], dtype=torch.float64), atol=1e-4)


def gradient_of(objective, batch, **keywords):
    objective.zero_grad()
    objective(batch, **keywords).backward()
    return torch.cat([p.grad.flatten() for p in objective.model.parameters()])


def test_straight_after_a_refresh_the_clipped_form_is_the_simple_one(batch):
    made = [Reinforcement(net(), SETTINGS, form=form, draws=0, beta=0.0) for form in ("simple", "clipped")]
    assert torch.allclose(*(gradient_of(one, batch) for one in made), atol=1e-6)


@pytest.mark.parametrize("refresh", [1, 3])
def test_the_old_weights_are_refreshed_every_so_many_batches(batch, refresh):
    objective = Reinforcement(net(), SETTINGS, form="clipped", refresh=refresh)
    for step in range(7):
        with torch.no_grad():
            objective.model.head.out.bias.fill_(step)
        objective(batch)
        assert objective.old["head.out.bias"].tolist() == [step - step % refresh] * 2
        assert objective.reference["head.out.bias"].tolist() == [0, 0]  # that of the first batch
    objective.eval()
    before = objective.batches
    objective(batch)
    assert objective.batches == before  # only training counts


# The objective


def test_it_is_the_loss_of_its_own_guesses(batch):
    objective = Reinforcement(net(), SETTINGS, advantage="batch", beta=0.3)
    first = objective(batch, epoch=4)
    with torch.no_grad():
        objective.model.head.out.weight.mul_(3.0)
        logits = objective.model(batch.wave, batch.lengths)
        reference = net()(batch.wave, batch.lengths)
    z, z_ref = (x[:, BONAFIDE] - x[:, SPOOF] for x in (logits, reference))
    sign = torch.where(batch.labels == BONAFIDE, 1, -1)
    drawn = draw_labels(batch.utts, z.sigmoid(), 64, seed=7, epoch=4)
    right = (drawn == batch.labels[:, None]).float().mean(1)
    losses = reinforced_losses(sign * z, sign * z_ref, right, None, "batch", 0.3)
    of_each = torch.tensor([0.5, 2.0])[batch.labels]
    assert objective(batch, epoch=4).item() == pytest.approx(
        float((of_each * losses).sum() / of_each.sum()), abs=1e-6
    )
    assert first.item() != objective(batch, epoch=4).item() != objective(batch, epoch=5).item()


def test_the_reference_hears_without_dropout_and_the_mode_is_given_back(batch):
    torch.manual_seed(1)
    objective = Reinforcement(build("lcnn_lstm", dropout=0.5), SETTINGS, draws=0)
    objective.train()
    objective._remember()
    state = {name: value.clone() for name, value in objective.model.state_dict().items()}
    one, two = (objective._margin_of(objective.reference, batch, None) for _ in range(2))
    assert torch.equal(one, two) and objective.model.training
    assert all(torch.equal(state[name], value) for name, value in objective.model.state_dict().items())


def test_only_what_learns_is_copied(batch):
    model = net()
    model.embedding.requires_grad_(False)
    objective = Reinforcement(model, SETTINGS, form="clipped")
    objective(batch)
    assert set(objective.reference) == set(objective.old) == {"head.out.weight", "head.out.bias", "log_prior_odds"}


def test_covered_strips_are_the_same_for_all_detectors(batch, samples):
    policy = make_policy("specaugment", samples.subset(split="train", kind="full"))
    objective = Reinforcement(net(), SETTINGS, policy, draws=0, beta=1.0)
    assert abs(objective(batch).item()) < 1e-4  # the reference's margins are the detector's: no penalty


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "soft"}, "unknown form 'soft'"),
        ({"advantage": "epoch"}, "unknown advantage 'epoch'"),
        ({"draws": 1}, "take two or more, or 0"),
        ({"draws": -2}, "take two or more, or 0"),
        ({"beta": -0.1}, "must not be negative"),
        ({"clip": 1.0}, "between 0 and 1"),
        ({"refresh": 0}, "at least 1"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_objective("reinforcement", **options)(net(), SETTINGS)


def test_a_head_without_log_odds_and_a_missing_class_are_refused(splits):
    with pytest.raises(ValueError, match="P2SGradHead: its logits say not how likely"):
        Reinforcement(with_head(net(), "p2sgrad"), SETTINGS).check(splits[0])
    with pytest.raises(ValueError, match="no bonafide recordings"):
        Reinforcement(net(), SETTINGS).check(splits[0].subset(label="spoof"))
    with pytest.raises(ValueError, match="unknown advantage"):
        advantages(torch.ones(1), "epoch")


# Runs

SHORT = dataclasses.replace(QUICK, epochs=2, lr=5e-3, batch_size=12)
MADE = make_objective("reinforcement", form="clipped", refresh=4, beta=0.5)


@pytest.fixture(scope="module")
def few(splits):
    return [
        s.subset(utt=[u for label in ("bonafide", "spoof") for u in s.subset(label=label).utterances.utt[:n]])
        for s, n in zip(splits, (30, 6), strict=True)
    ]


@pytest.fixture(scope="module")
def whole(few, tmp_path_factory):
    return fit(net(), *few, SHORT, MADE, out=tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("after", [1, 3, 5, 7])
def test_an_interrupted_run_goes_on_with_its_own_reference(whole, few, tmp_path, after):
    with power_cut(loop, "_step", after, Stop):
        fit(net(), *few, SHORT, MADE, out=tmp_path)
    torch.manual_seed(99)
    other = build("bands", n_mels=20, embed_dim=8)  # its own weights are of no account
    again = fit(other, *few, SHORT, MADE, out=tmp_path)
    assert torch.equal(weights(again.model), weights(whole.model)) and again.history.equals(whole.history)


def test_another_form_in_the_folder_is_refused(whole, few):
    with pytest.raises(ValueError, match="objective advantage: 'group' before, 'batch' now"):
        fit(
            net(),
            *few,
            SHORT,
            make_objective("reinforcement", form="clipped", refresh=4, beta=0.5, advantage="batch"),
            out=whole.out,
        )


def test_no_prior_is_taken_out_that_was_not_before(few, tmp_path):
    model = net()
    model.log_prior_odds.fill_(1.5)
    config = dataclasses.replace(SHORT, epochs=1, balance=False)
    assert fit(model, *few, config, MADE, out=tmp_path).model.log_prior_odds.item() == 1.5


def test_the_peak_of_the_rate_lies_inside_of_the_training():
    """The paper's files warm up for longer than they train: 80,000 steps of 50,000."""
    rates = [lr_at(step, 50_000, FitConfig(lr=1e-6, warmup=0.1)) for step in range(0, 50_000, 100)]
    assert max(rates) == pytest.approx(1e-6) and 1e-6 * 50_000 / 80_000 == pytest.approx(6.25e-7)
    with pytest.raises(ValueError, match="warmup"):
        FitConfig(lr=1e-6, warmup=1.6)
