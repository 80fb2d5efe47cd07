"""Heads: values by hand, gradients, labels that must not matter, priors, margins, detectors that carry them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import normalize, softplus

from wedefense_nb.models.detector import build, load_model, save_model, set_progress
from wedefense_nb.models.losses import (
    HEADS,
    AAMHead,
    ASoftmaxHead,
    FocalHead,
    MarginHead,
    OCSoftmaxHead,
    P2SGradHead,
    SoftmaxHead,
    balanced_weights,
    make_head,
    ramp,
    weighted_mean,
)
from wedefense_nb.task import BONAFIDE, SPOOF, prior_log_odds
from wedefense_nb.training.loop import FitConfig, fit

OPTIONS = {"oc_softmax": {"centres": 3}, "aam": {"margin": 0.4}}
LABELS = torch.tensor([SPOOF, BONAFIDE, BONAFIDE, SPOOF, SPOOF])
each_head = pytest.mark.parametrize("name", HEADS)


def head_and_embedding(name, n=5, dim=6, seed=0):
    torch.manual_seed(seed)
    return make_head(name, dim, **OPTIONS.get(name, {})).double(), 3 * torch.randn(n, dim, dtype=torch.double)


# All heads


@each_head
@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("weights", [None, (1.0, 4.0)])
def test_gradient_is_right(name, progress, weights):
    head, e = head_and_embedding(name)
    head.progress = progress
    weights = None if weights is None else torch.tensor(weights).double()
    inputs = (e.requires_grad_(), *head.parameters())
    assert torch.autograd.gradcheck(lambda e, *_: head.loss(e, LABELS, weights), inputs)


@each_head
def test_gradient_reaches_every_parameter(name):
    head, e = head_and_embedding(name)
    head.loss(e, LABELS).backward()
    assert all(p.grad.abs().sum() > 0 for p in head.parameters())


@each_head
def test_logits_know_no_label_and_no_margin(name):  # pitfall 44
    head, e = head_and_embedding(name)
    if name == "norm":  # in training mode its norm looks at the batch, not at labels
        head.eval()
    train = head(e)
    assert train.shape == (5, 2) and torch.equal(train, head.logits(e))
    assert torch.equal(head.eval()(e), train)
    head.progress = 0.0
    assert torch.equal(head(e), train)
    with pytest.raises(TypeError):
        head.logits(e, LABELS)


@pytest.mark.parametrize("name", ["am", "aam", "a_softmax"])
def test_the_margin_is_in_the_training_loss_only(name):  # pitfall 44
    head, e = head_and_embedding(name)
    plain = torch.nn.functional.cross_entropy(head(e), LABELS)
    assert head.loss(e, LABELS) > plain + 0.1
    assert torch.allclose(head.eval().loss(e, LABELS), plain)


@each_head
def test_learns_which_way_is_up(name):
    torch.manual_seed(0)
    x = torch.randn(200, 6)
    y = torch.arange(200) % 2
    x[:, 0] += 6 * y.float() - 3
    head = make_head(name, 6, **OPTIONS.get(name, {}))
    steps = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(150):
        steps.zero_grad()
        head.loss(x, y).backward()
        steps.step()
    z = head.eval()(x)
    score = z[:, BONAFIDE] - z[:, SPOOF]
    assert score[y == BONAFIDE].median() > score[y == SPOOF].quantile(0.95)


@each_head
@pytest.mark.parametrize("value", [0.0, 1e-12, 1e4])
def test_extreme_embeddings_give_finite_loss_and_gradient(name, value):
    head, e = head_and_embedding(name)
    e = torch.full_like(e, value).requires_grad_()
    head.loss(e, LABELS).backward()
    assert torch.isfinite(e.grad).all() and all(torch.isfinite(p.grad).all() for p in head.parameters())


@pytest.mark.parametrize("name", ["am", "aam", "a_softmax", "p2sgrad"])
def test_an_embedding_on_its_class_vector_has_a_finite_gradient(name):
    head = make_head(name, 4)
    e = (2 * head.vectors[[BONAFIDE, SPOOF, SPOOF]]).detach().requires_grad_()
    head.loss(e, torch.tensor([BONAFIDE, SPOOF, BONAFIDE])).backward()
    assert torch.isfinite(e.grad).all() and torch.isfinite(head.vectors.grad).all()


@each_head
def test_class_weights_count_like_copies(name):
    head, e = head_and_embedding(name)
    head.eval()  # a norm would count the copies, too
    copies = torch.cat([torch.arange(5), torch.tensor([1, 1, 2, 2])])  # bona fide three times
    weighted = head.loss(e, LABELS, torch.tensor([1.0, 3.0]).double())
    assert torch.allclose(weighted, head.loss(e[copies], LABELS[copies]))
    assert torch.allclose(head.loss(e, LABELS, torch.ones(2).double()), head.loss(e, LABELS))


# The prior


def quantiles(n, mean):
    return mean + torch.special.ndtri((torch.arange(n).double() + 0.5) / n)[:, None]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.1, 0.9), (1.0, 4.0), balanced_weights(3600, 400)])
def test_the_mean_offset_of_the_score_is_zero_after_the_correction(weights):  # pitfalls 4 and 49
    model = build("bands", head="softmax")
    n = {SPOOF: 3600, BONAFIDE: 400}
    model.head = head = SoftmaxHead(1).double()
    x = torch.cat([quantiles(n[SPOOF], -1.0), quantiles(n[BONAFIDE], 1.0)])
    y = torch.tensor([SPOOF] * n[SPOOF] + [BONAFIDE] * n[BONAFIDE])
    steps = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        steps.zero_grad()
        loss = head.loss(x, y, torch.tensor(weights))
        loss.backward()
        return loss

    steps.step(closure)
    model.log_prior_odds.fill_(prior_log_odds(weights[BONAFIDE] * n[BONAFIDE], weights[SPOOF] * n[SPOOF]))
    offset = model.score(head(x).detach()) - 2 * x[:, 0]  # the LLR of N(1, 1) against N(-1, 1) is 2x
    assert abs(offset.mean()) < 0.03
    wrong = math.log(weights[BONAFIDE] / weights[SPOOF])  # what stays if weights are forgotten
    assert abs((offset + float(model.log_prior_odds) - prior_log_odds(400, 3600)).mean() - wrong) < 0.03
    theirs = LogisticRegression(C=1e9, class_weight=dict(enumerate(weights)), tol=1e-8).fit(x.numpy(), y.numpy())
    z = head(x).detach()
    assert torch.allclose(z[:, 1] - z[:, 0], torch.from_numpy(theirs.decision_function(x.numpy())), atol=0.02)


@each_head
def test_the_prior_is_subtracted_from_log_odds_only(name):
    model = build("bands", head=name)
    z = torch.tensor([[0.0, 2.0]])
    model.log_prior_odds.fill_(0.5)
    assert model.score(z).item() == (1.5 if model.head.log_odds else 2.0)
    assert model.head.log_odds == (name in ("softmax", "linear", "norm"))


def best_scores(head, llrs, prior):
    """The score that minimises a head's own expected training loss, among embeddings of the plane, by LLR."""
    head = head.double()
    rows = torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).double()
    angle = torch.linspace(0, math.pi, 1801).double()
    places = torch.stack([angle.cos(), angle.sin()], 1)
    if isinstance(head, (P2SGradHead, OCSoftmaxHead)):
        head.vectors.data = torch.eye(2).double()[: len(head.vectors)]
    elif hasattr(head, "vectors"):
        head.vectors.data = rows
    else:
        head.out.weight.data = 8 * torch.eye(2).flip(0).double()
        head.out.bias.data.zero_()
        steps = torch.linspace(0, 3, 4001).double()[:, None] * torch.eye(2).double()[:, None]
        places = steps.flatten(0, 1)
        head.eval() if hasattr(head, "norm") else None  # a norm in training mode would look at all places
    if isinstance(head, ASoftmaxHead):
        places = (torch.linspace(0, 8, 81).double()[:, None, None] * places[::4]).flatten(0, 1)
    z = head(places).detach()
    spoof, bona = (head.losses(places, torch.full((len(places),), y)).detach() for y in (SPOOF, BONAFIDE))
    share = torch.sigmoid(llrs + prior)
    best = [int((p * bona + (1 - p) * spoof).argmin()) for p in share]
    return (z[:, BONAFIDE] - z[:, SPOOF])[best] - prior


NO_MARGIN = {"am": {"margin": 0.0}, "aam": {"margin": 0.0}, "a_softmax": {"multiplier": 1}}


@pytest.mark.parametrize("name, options", [*((name, {}) for name in HEADS), *NO_MARGIN.items()])
def test_log_odds_is_said_of_a_head_exactly_if_the_minimum_of_its_loss_is_one(name, options):  # pitfall 4
    head = make_head(name, 2, **options)
    llrs = torch.linspace(-4, 5, 37).double()  # with nine fakes to one real, even odds are at 2.2
    error = (best_scores(head, llrs, prior_log_odds(100, 900)) - llrs).abs().max()
    assert head.log_odds == bool(error < 0.07), error


def test_margins_make_the_score_jump():
    """What was wrong with log-odds of AM: the minimum of the loss jumps between -s m and s m (6.4)."""
    llrs = torch.tensor([0.0, 2.0, 3.0]).double()
    got = best_scores(MarginHead(2, margin=0.2, scale=32.0), llrs, prior_log_odds(100, 900))
    assert got.tolist() == pytest.approx([-6.3, -2.7, 8.8], abs=0.1)
    odds = (llrs + prior_log_odds(100, 900)).exp()[:2]  # below even odds sigmoid(sm + d) is odds, nearly
    assert (got[:2] + prior_log_odds(100, 900) + 6.4).tolist() == pytest.approx(
        (odds / (1 - odds)).log().tolist(), abs=0.1
    )
    assert not MarginHead(2, margin=0.0, initial_margin=0.1).log_odds


def test_balanced_weights_undo_the_counts():  # pitfall 49
    spoof, bonafide = balanced_weights(22800, 2580)
    assert spoof * 22800 == pytest.approx(bonafide * 2580) and spoof + bonafide == pytest.approx(2)
    with pytest.raises(ValueError, match="both classes"):
        balanced_weights(10, 0)


# Values of single heads


@given(st.floats(-30, 30), st.floats(0, 5))
def test_focal_is_the_published_formula(z, gamma):
    head = FocalHead(1, gamma).double()
    head.out.weight.data = torch.tensor([[0.0], [1.0]]).double()
    head.out.bias.data = torch.zeros(2).double()
    got = head.losses(torch.tensor([[z], [z]]).double(), torch.tensor([BONAFIDE, SPOOF])).tolist()
    for value, logit in zip(got, (z, -z), strict=True):
        p = 1 / (1 + math.exp(-logit))
        miss = 1 / (1 + math.exp(logit))
        assert value == pytest.approx(-(miss**gamma) * math.log(p), rel=1e-6, abs=1e-12)


def test_heads_on_linear_logits_differ_in_what_comes_before():
    e = torch.randn(4, 3)
    plain = make_head("softmax", 3)
    for name, change in (("linear", torch.tanh), ("norm", lambda x: torch.relu(x / (1 + 1e-5) ** 0.5))):
        head = make_head(name, 3).eval()
        head.out.load_state_dict(plain.out.state_dict())
        assert torch.allclose(head(e), plain.out(change(e)), atol=1e-5)


def test_dropout_is_for_training():
    head = SoftmaxHead(50, dropout=0.5)
    e = torch.ones(1, 50)
    assert not torch.equal(head(e), head(e)) and torch.equal(head.eval()(e), head.out(e))


def test_wedefenses_p2sgrad_by_hand():
    head = make_head("wedefense_p2sgrad", 2)
    head.vectors.data = torch.eye(2)
    z = head(torch.tensor([[0.6, 0.8], [0.0, 5.0]]))
    assert torch.allclose(z[0], torch.tensor([4.0, 9.0]).log()) and z[1, 0].abs() < 1e-6
    assert z[1, 1].item() == pytest.approx(math.log((1 - 1e-5) / 1e-5), rel=1e-3)  # the logit of 1 is cut
    assert head.loss(torch.tensor([[0.6, 0.8]]), torch.tensor([BONAFIDE])).item() == pytest.approx(0.2)


def test_focal_without_focus_is_cross_entropy():
    head, e = head_and_embedding("focal")
    head.gamma = 0.0
    assert torch.allclose(head.loss(e, LABELS), torch.nn.functional.cross_entropy(head(e), LABELS))
    with pytest.raises(ValueError, match="negative"):
        FocalHead(2, gamma=-1.0)


ANGLES = torch.linspace(0, math.pi, 2001).double()


@pytest.mark.parametrize("margin", [0.0, 0.2, 0.5, 1.2])
def test_aam_adds_to_the_angle_falls_and_has_no_jump(margin):
    got = AAMHead(2).bend(ANGLES.cos(), margin)
    inside = ANGLES < math.pi - margin - 1e-3
    assert torch.allclose(got[inside], (ANGLES[inside] + margin).cos(), atol=4e-4)
    assert (got.diff() <= 1e-12).all() and got.diff().abs().max() < 3e-3


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_a_softmax_multiplies_the_angle_falls_and_has_no_jump(m):
    got = ASoftmaxHead(2, multiplier=m).bend(ANGLES.cos())
    inside = ANGLES <= math.pi / m
    assert torch.allclose(got[inside], (m * ANGLES[inside]).cos(), atol=1e-9)
    assert (got.diff() <= 1e-9).all() and got.diff().abs().max() < 2e-3 * m
    assert got[0] == pytest.approx(1) and got[-1] == pytest.approx(1 - 2 * m)


def test_am_by_hand():
    head = MarginHead(2, margin=0.2, scale=10.0)
    head.vectors.data = torch.eye(2)
    loss = head.loss(torch.tensor([[0.6, 0.8]]), torch.tensor([BONAFIDE]))  # cosines 0.6 and 0.8
    assert loss.item() == pytest.approx(math.log(1 + math.exp(10 * (0.6 - (0.8 - 0.2)))), rel=1e-4)


def test_length_does_not_matter_to_cosine_heads():
    for name in ("am", "aam", "oc_softmax", "p2sgrad"):
        head, e = head_and_embedding(name)
        assert torch.allclose(head(e), head(7 * e))
        assert torch.allclose(head.loss(e, LABELS), head.loss(7 * e, LABELS))


def test_p2sgrad_has_the_gradient_of_its_paper():
    head, e = head_and_embedding("p2sgrad", n=1)
    head.losses(e.requires_grad_(), torch.tensor([BONAFIDE])).sum().backward()
    unit = normalize(e.detach())[0]
    rows = normalize(head.vectors.detach())
    pull = sum((float(w @ unit) - j) * (w - (w @ unit) * unit) for j, w in enumerate(rows)) / e.detach().norm()
    assert torch.allclose(e.grad[0], pull)


def test_oc_softmax_by_hand_and_its_sign():
    head = OCSoftmaxHead(2)
    head.vectors.data = torch.tensor([[2.0, 0.0]])
    near = torch.tensor([[3.0, 0.0]])
    far = torch.tensor([[-1.0, 0.0]])
    z = head(torch.cat([near, far]))
    assert torch.allclose(z[:, BONAFIDE] - z[:, SPOOF], torch.tensor([1.0, -1.0]))  # higher = bona fide
    for e, s in ((near, 1.0), (far, -1.0)):
        for label, short in ((BONAFIDE, 0.9 - s), (SPOOF, s - 0.2)):
            want = softplus(torch.tensor(20 * short)).item()
            assert head.loss(e, torch.tensor([label])).item() == pytest.approx(want, rel=1e-4, abs=1e-9)


def test_a_softmax_by_hand():
    head = ASoftmaxHead(2, multiplier=4, floor=5.0)
    head.vectors.data = torch.eye(2)
    e = torch.tensor([[2.0, 0.0]])  # on the vector of spoof, at a right angle to that of bona fide
    bent = (-3 - 0) / 6  # cos(4 · 90°) - 2 · 2, a sixth of the way
    loss = head.loss(e, torch.tensor([BONAFIDE])).item()
    assert loss == pytest.approx(math.log(1 + math.exp(2 - 2 * bent)), rel=1e-4)


def test_several_centres_join_to_nearly_the_closest():
    head, e = head_and_embedding("oc_softmax", n=50)
    s = head.similarity(e)
    c = head.cosines(e)
    assert (s <= c.max(1).values + 1e-12).all() and (s >= c.mean(1) - 1e-12).all()
    head.vectors.data = torch.eye(3, 6).double()
    assert head.similarity(torch.eye(1, 6).double()).item() == pytest.approx(1, abs=1e-3)


# Schedules


def test_ramp_values():
    assert [ramp(p, 0.2, 0.6) for p in (0.0, 0.2, 0.3, 0.5, 0.6, 1.0)] == pytest.approx([0, 0, 0.25, 0.75, 1, 1])
    assert [ramp(p, 0.2, 0.6, "exp") for p in (0.2, 0.3, 0.4, 0.6)] == pytest.approx(
        [0, 1 - 10**-0.75, 1 - 10**-1.5, 1]
    )
    assert ramp(0.0, 0.0, 0.0) == 1.0 and ramp(0.5, 1.0, 1.0) == 0.0 and ramp(1.0, 1.0, 1.0) == 1.0
    for wrong in ((0.6, 0.2, "exp"), (-0.1, 0.5, "exp"), (0.0, 1.1, "exp"), (0.0, 1.0, "cosine")):
        with pytest.raises(ValueError, match="start <= end"):
            ramp(0.5, *wrong)
        with pytest.raises(ValueError, match="start <= end"):
            make_head("am", 4, ramp_start=wrong[0], ramp_end=wrong[1], ramp_shape=wrong[2])


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(["linear", "exp"]))
def test_margins_only_grow(a, b, shape):
    head = AAMHead(2, margin=0.3, initial_margin=0.1, ramp_start=0.25, ramp_end=0.75, ramp_shape=shape)
    low, high = sorted((a, b))
    assert 0.1 <= head.margin_at(low) <= head.margin_at(high) + 1e-12 <= 0.3 + 1e-9
    assert ASoftmaxHead(2).margin_at(low) <= ASoftmaxHead(2).margin_at(high)


def test_margin_values():
    assert [MarginHead(2, 0.3).margin_at(p) for p in (0.0, 1.0)] == [0.3, 0.3]
    slow = ASoftmaxHead(2, steps=1000)
    assert slow.margin_at(0.0) == pytest.approx(1 / 1001)
    assert slow.margin_at(0.5) == pytest.approx(1 / (1 + 1000 / 61))
    assert ASoftmaxHead(2).margin_at(0.5) == pytest.approx(1 / 6)


def test_progress_reaches_the_loss():
    model = build("bands", head="am", head_options={"margin": 0.4, "ramp_end": 1.0, "ramp_shape": "linear"})
    e = torch.randn(5, 32)
    losses = []
    for p in (0.0, 0.5, 1.0):
        set_progress(model, p)
        losses.append(model.head.loss(e, LABELS).item())
    assert losses == sorted(losses) and losses[2] > losses[0] + 1


# By name, in a detector


def test_names_and_options_are_checked():
    with pytest.raises(ValueError, match="unknown head 'nope'.*aam"):
        make_head("nope", 4)
    with pytest.raises(ValueError, match="unknown option of head aam 'margins': did you mean 'margin'"):
        make_head("aam", 4, margins=0.3)


@each_head
def test_a_detector_with_it_trains_saves_and_loads(name, tmp_path):
    options = OPTIONS.get(name, {})
    model = build("bands", n_mels=24, embed_dim=6, head=name, head_options=options)
    wave = 0.1 * torch.randn(5, 4000)
    lengths = torch.full((5,), 4000)
    assert model.config["head"] == name and model.config["head_options"] == options and model.training
    model.loss(wave, lengths, LABELS, torch.tensor([0.1, 0.9])).backward()
    assert all(p.grad is not None for p in model.parameters())
    back = load_model(save_model(model.eval(), tmp_path))
    assert type(back.head) is HEADS[name] and back.config == model.config
    assert torch.equal(back(wave, lengths), model(wave, lengths))


def test_weighted_mean_by_hand():
    values = torch.tensor([1.0, 1.0, 1.0, 1.0, 6.0])
    labels = torch.tensor([0, 0, 0, 0, 1])
    assert weighted_mean(values, labels).item() == 2
    assert weighted_mean(values, labels, torch.tensor([1.0, 4.0])).item() == 3.5


def test_p2sgrad_of_a_perfect_embedding_is_zero():
    head = P2SGradHead(2)
    head.vectors.data = torch.eye(2)
    assert head.loss(5 * torch.eye(2), torch.tensor([SPOOF, BONAFIDE])).item() == pytest.approx(0, abs=1e-12)


def test_training_moves_the_margin_and_knows_the_prior(few, tmp_path):  # pitfall 4
    ramps = {"ramp_end": 1.0, "ramp_shape": "linear", "initial_margin": 0.1}
    model = build("bands", n_mels=20, embed_dim=4, head="aam", head_options=ramps)
    margins = []
    bend = model.head.bend
    model.head.bend = lambda cosine, margin: margins.append(margin) or bend(cosine, margin)
    result = fit(model, few, few, FitConfig(epochs=2, crop=None, class_weights=(0.1, 0.9)), out=tmp_path)
    assert margins[0] == 0.1 and margins == sorted(set(margins)) and 0.1 < margins[-1] < 0.2
    n = few.utterances.label.value_counts()
    want = math.log(0.9 * n["bonafide"] / (0.1 * n["spoof"]))
    assert result.model.log_prior_odds.item() == pytest.approx(want, abs=1e-5)
