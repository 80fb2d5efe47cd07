"""What is hidden, what is asked of it, and that nothing else reaches the loss."""

import json
import math
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.conftest import power_cut
from tests.training.runs import Stop, weights
from wedefense_nb.augmentation.policies import Policy, make_policy
from wedefense_nb.data.batches import AudioDataset, Batch, collate
from wedefense_nb.data.crops import Crop
from wedefense_nb.features.pretrained import BASE, LARGE, TINY
from wedefense_nb.features.upstreams import Upstream, encoder_frames, normalize_waves
from wedefense_nb.models.detector import build, load_model, save_model
from wedefense_nb.training import loop
from wedefense_nb.training import selfsupervision as ssl
from wedefense_nb.training.loop import FitConfig, fit
from wedefense_nb.training.selfsupervision import (
    ClusterPrediction,
    Clusters,
    Contrast,
    Quantizer,
    SelfSupervision,
    Spans,
    dev_masked_loss,
    draw_others,
    encoder_config,
    fit_clusters,
    info_nce,
    make_pretext,
    make_view,
    new_encoder,
    save_upstream,
    unused,
)

CALM = replace(TINY, dropout=0.0, attention_dropout=0.0, layerdrop=0.0)
QUICK = FitConfig(epochs=2, batch_size=4, crop=0.5, lr=2e-3, average=1, seed=3, save_every=2)
WHOLE = SimpleNamespace(batch_size=3, score_seconds=5.0, workers=0, seed=3)


@pytest.fixture(scope="module")
def train(few):
    return few.subset(split="train", kind="full")


@pytest.fixture(scope="module")
def dev(few):
    return few.subset(split="dev", kind="full")


@pytest.fixture(scope="module")
def batch(train):
    """Three recordings of different lengths, padded."""
    data = AudioDataset(train)
    items = [data[0, row] for row in range(3)]
    items[1] = items[1]._replace(wave=items[1].wave[:9000])
    return collate(items)


@pytest.fixture(scope="module")
def clusters(train):
    return fit_clusters(make_view("mfcc"), train, 8, most=800)


@pytest.fixture
def models(clusters):
    """One model of each kind, without dropout, always the same."""
    torch.manual_seed(0)
    return [ClusterPrediction(new_encoder(CALM), clusters).eval(), Contrast(new_encoder(CALM)).eval()]


def stretches(hidden) -> list[int]:
    """Lengths of the runs of hidden frames."""
    text = "".join("x" if h else " " for h in hidden)
    return [len(run) for run in text.split()]


# What is hidden


@given(st.integers(0, 60), st.floats(0.01, 1), st.integers(1, 15), st.integers(0, 10**6))
def test_stretches_are_whole_and_something_is_left_to_hear(frames, start, length, seed):
    hidden = Spans(start, length).draw(frames, np.random.default_rng(seed))
    assert hidden.shape == (frames,) and hidden.dtype == bool
    whole = min(length, frames // 2)
    assert all(run >= whole for run in stretches(hidden))
    assert hidden.any() == (frames > 1)


@pytest.mark.parametrize(("start", "length"), [(0.065, 10), (0.08, 10), (0.1, 5), (0.5, 1)])
def test_the_hidden_share_is_that_of_stretches_that_begin_at_random(start, length):
    rng = np.random.default_rng(0)
    drawn = np.array([Spans(start, length).draw(400, rng) for _ in range(400)])
    inner = drawn[:, length : 400 - length]  # at the ends fewer stretches could cover a frame
    p = start * 400 / (401 - length)
    assert inner.mean() == pytest.approx(1 - (1 - p) ** length, abs=0.02)
    assert np.ptp(inner.mean(0)) < 0.3  # no place is preferred


def test_the_number_of_stretches_is_right_on_the_average():
    rng = np.random.default_rng(0)
    begun = [Spans(0.13, 1).draw(20, rng).sum() for _ in range(3000)]
    assert set(begun) == {2, 3} and np.mean(begun) == pytest.approx(2.6, abs=0.05)


def test_hidden_frames_are_a_function_of_seed_epoch_and_name():  # pitfall 57
    frames = torch.tensor([40, 25])
    spans = Spans()
    both = spans.cover(["a", "b"], frames, 1, 2)
    assert both.shape == (2, 40) and not both[1, 25:].any()
    alone = spans.cover(["b"], frames[1:], 1, 2)
    assert torch.equal(both[1, :25], alone[0])
    for other in (spans.cover(["a", "b"], frames, 2, 2), spans.cover(["a", "b"], frames, 1, 3)):
        assert not torch.equal(both, other)
    assert not torch.equal(spans.cover(["a", "b"], torch.tensor([40, 40]))[0], spans.cover(["b"], frames[:1])[0])


@pytest.mark.parametrize("wrong", [{"start": 0.0}, {"start": 1.2}, {"length": 0}])
def test_spans_that_hide_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="a share in"):
        Spans(**wrong)


# Targets


@pytest.mark.parametrize("name", ["mfcc", "lfcc"])
def test_a_view_frame_lies_in_what_the_encoder_frame_hears(name):
    """An impulse in the middle of encoder frame t changes frame t of the view most."""
    view = make_view(name)
    t = 17
    wave = 1e-4 * torch.randn(1, 16000)
    quiet, frames = view(wave, torch.tensor([16000]))
    wave[0, 320 * t + 180] += 1.0
    loud, _ = view(wave, torch.tensor([16000]))
    energy = (loud - quiet)[0, :, 0].abs()  # the slopes of MFCCs reach further
    assert int(frames) == 49 == loud.shape[1] and int(energy.argmax()) == t
    start = 0 if name == "mfcc" else 160
    fine, _ = view.front(wave, torch.tensor([16000]))
    assert torch.equal(loud[0, t], fine[0, (320 * t + start) // 160])


@pytest.mark.parametrize("length", [400, 719, 720, 1040, 16000, 16159, 16160, 16319])
@pytest.mark.parametrize("name", ["mfcc", "lfcc"])
def test_views_have_the_frames_of_the_encoder(name, length):
    wave = torch.randn(1, max(length, 520))
    want = encoder_frames(torch.tensor([length]), TINY.conv)
    feats, frames = make_view(name)(wave, torch.tensor([length]))
    assert frames.tolist() == want.tolist() and feats.shape[1] >= int(want)


def test_targets_are_nearest_centres_and_nothing_behind_the_end(clusters, batch):
    numbers = clusters(batch.wave, batch.lengths)
    feats, frames = clusters.view(batch.wave, batch.lengths)
    for row, n in enumerate(frames.tolist()):
        for t in range(0, n, 7):
            distances = [float((feats[row, t] - c).square().sum()) for c in clusters.centres]
            assert int(numbers[row, t]) == int(np.argmin(distances))
        assert (numbers[row, n:] == -1).all() and (numbers[row, :n] >= 0).all()


def test_targets_are_the_same_in_half_precision(clusters, batch):
    want = clusters(batch.wave, batch.lengths)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(clusters(batch.wave, batch.lengths), want)


def test_targets_do_not_depend_on_what_is_padded(clusters, batch):
    numbers = clusters(batch.wave, batch.lengths)
    longer = F.pad(batch.wave, (0, 4000))
    assert torch.equal(clusters(longer, batch.lengths)[:, : numbers.shape[1]], numbers)
    one = clusters(batch.wave[1:2, :9000], batch.lengths[1:2])
    assert torch.equal(numbers[1, : one.shape[1]], one[0])


def test_clusters_are_those_of_the_waves_that_the_encoder_hears(train):
    loud = fit_clusters(make_view("mfcc"), train, 4, normalize=False, most=400)
    plain = fit_clusters(make_view("mfcc"), train, 4, most=400)
    again = fit_clusters(make_view("mfcc"), train, 4, most=400)
    assert torch.equal(plain.centres, again.centres) and not torch.equal(plain.centres, loud.centres)
    assert not torch.equal(plain.centres, fit_clusters(make_view("mfcc"), train, 4, most=400, seed=1).centres)
    first = [AudioDataset(train)[0, i].wave for i in range(len(train))]
    found = []
    for wave in first:
        x = torch.from_numpy(np.asarray(wave))[None]
        n = torch.tensor([x.shape[1]])
        found.append(make_view("mfcc")(normalize_waves(x, n), n)[0][0])
    frames = torch.cat(found)
    everything = fit_clusters(make_view("mfcc"), train, 1)
    assert ((everything.centres[0] - frames.mean(0)).abs() < 0.05 * frames.std(0)).all()


def test_too_few_frames_for_so_many_clusters(train):
    with pytest.raises(ValueError, match="take fewer, or more recordings"):
        fit_clusters(make_view("mfcc"), train, 2000, most=100)


def test_a_second_round_has_the_states_of_the_first_as_targets(train, tmp_path):
    folder = save_upstream(new_encoder(CALM), tmp_path)
    second = make_pretext("hubert", new_encoder(CALM), train, view=str(folder), layer=1, clusters=5, most=300)
    assert second.clusters.centres.shape == (5, 32)
    assert not any(p.requires_grad for p in second.clusters.parameters())
    with pytest.raises(ValueError, match="neither a file"):
        make_view("mfcccc")


# The loss


def test_guesses_begin_at_chance(models, batch):
    losses, extra = models[0].judge(batch)
    assert torch.allclose(losses, torch.full_like(losses, math.log(8))) and float(extra) == 0
    losses, _ = models[1].judge(batch)
    assert losses.mean().item() == pytest.approx(math.log(21), abs=0.5)


def test_losses_are_those_of_hidden_frames_one_by_one(models, clusters, batch):
    model = models[0]
    torch.nn.init.normal_(model.guesser.weight)
    losses, _ = model.judge(batch, seed=5, epoch=2)
    covered = model.cover(batch, 5, 2)
    wave = normalize_waves(batch.wave, batch.lengths)
    numbers = clusters(wave, batch.lengths)
    _, context = model.guess(wave, batch.lengths, covered)
    want = []
    for row in range(3):
        for t in range(covered.shape[1]):
            if covered[row, t]:
                logits = model.guesser(context[row, t])
                want.append(-(logits[numbers[row, t]] - logits.exp().sum().log()))
    assert torch.allclose(losses, torch.stack(want), atol=1e-4)


def test_only_hidden_frames_teach(models, batch):
    """The gradient of the loss at the encoder's last states is zero wherever a frame is heard, or is none."""
    for model in models:
        caught = []

        def keep(*inputs, model=model, caught=caught):
            sound, context = type(model).guess(model, *inputs)
            context.retain_grad()
            caught.append((context, inputs[2]))
            return sound, context

        model.guess = keep
        if isinstance(model, ClusterPrediction):
            torch.nn.init.normal_(model.guesser.weight)
        model.judge(batch)[0].sum().backward()
        context, covered = caught[0]
        learns = context.grad.abs().sum(-1) > 0
        assert torch.equal(learns, covered) and 0 < covered.float().mean() < 1


@pytest.mark.parametrize("which", [0, 1])
def test_what_only_hidden_frames_hear_does_not_come_out(models, batch, which):
    model = models[which]
    wave = batch.wave[:1, :16000].clone()
    n = torch.tensor([16000])
    covered = torch.zeros(1, 49, dtype=torch.bool)
    covered[0, 20:30] = True
    _, before = model.guess(wave, n, covered)
    wave[0, 19 * 320 + 400 : 30 * 320] = torch.randn(30 * 320 - 19 * 320 - 400)
    _, after = model.guess(wave, n, covered)
    assert torch.equal(before, after)
    wave[0, 30 * 320 : 31 * 320] += 0.3
    assert not torch.equal(before, model.guess(wave, n, covered)[1])


def test_hidden_frames_have_the_learned_vector(models, batch):
    model = models[0]
    wave = model.waves(batch)
    covered = model.cover(batch, 0, 0)
    _, before = model.guess(wave, batch.lengths, covered)
    with torch.no_grad():
        model.mask += 1
    assert not torch.allclose(before, model.guess(wave, batch.lengths, covered)[1])
    nothing = torch.zeros_like(covered)
    _, plain = model.guess(wave, batch.lengths, nothing)
    real = model.encoder.describe(wave, batch.lengths)[1]
    (states,) = model.encoder(wave, batch.lengths, [2])
    assert torch.allclose(plain * real, states * real, atol=1e-6)


@pytest.mark.parametrize("which", [0, 1])
def test_a_recording_is_judged_alike_alone_and_in_company(models, batch, which):  # pitfall 57
    model = models[which]
    if which == 0:
        torch.nn.init.normal_(model.guesser.weight)
    together, _ = model.judge(batch, 1, 1)
    alone = []
    for row, n in enumerate(batch.lengths.tolist()):
        one = Batch(
            batch.wave[row : row + 1, :n], batch.lengths[row : row + 1], batch.labels, [batch.utts[row]], []
        )
        alone.append(model.judge(one, 1, 1)[0])
    assert torch.allclose(together, torch.cat(alone), atol=2e-4)


def test_waves_are_scaled_as_the_encoder_says(clusters, batch):
    scaled = ClusterPrediction(new_encoder(CALM), clusters)
    plain = ClusterPrediction(new_encoder(replace(CALM, normalize=False)), clusters)
    assert torch.equal(scaled.waves(batch), normalize_waves(batch.wave, batch.lengths))
    assert torch.equal(plain.waves(batch), batch.wave)


def test_the_contrastive_loss_is_that_of_a_literal_loop():
    rng = torch.Generator().manual_seed(1)
    guesses = torch.randn(7, 5, generator=rng)
    truths = torch.randn(7, 5, generator=rng)
    truths[3] = truths[0]  # of the same sound: no distractor for each other
    others = torch.tensor([[(i + 1) % 7, (i + 3) % 7, (i + 4) % 7] for i in range(7)])
    got = info_nce(guesses, truths, others, 0.2)
    for i in range(7):
        true = math.exp(F.cosine_similarity(guesses[i], truths[i], dim=0).item() / 0.2)
        total = true
        for j in others[i].tolist():
            if not torch.equal(truths[j], truths[i]):
                total += math.exp(F.cosine_similarity(guesses[i], truths[j], dim=0).item() / 0.2)
        assert got[i].item() == pytest.approx(-math.log(true / total), rel=1e-4)


def test_a_frame_without_distractors_costs_nothing():
    one = torch.ones(2, 3)
    assert info_nce(one, one, torch.tensor([[0, 0], [0, 1]])).tolist() == [0, 0]


def test_distractors_are_other_hidden_frames_of_the_same_recording():
    owners = np.repeat([0, 1, 2], [4, 1, 30])
    utts = ["a", "b", "c"]
    others = draw_others(utts, owners, 8, 1, 2).numpy()
    for i, row in enumerate(others):
        assert (owners[row] == owners[i]).all()
        assert i == 4 or i not in row
    assert (others[4] == 4).all()
    assert {tuple(sorted(set(row))) for row in others[:1]} <= {(1, 2, 3), (1, 2), (2, 3), (1, 3)}
    assert np.array_equal(others, draw_others(utts, owners, 8, 1, 2))
    assert np.array_equal(others[5:] - 5, draw_others(["c"], np.zeros(30, int), 8, 1, 2))
    assert not np.array_equal(others, draw_others(utts, owners, 8, 1, 3))
    assert not np.array_equal(others, draw_others(utts, owners, 8, 2, 2))
    every = draw_others(["c"], np.zeros(30, int), 3000)[0]
    assert np.bincount(every, minlength=30)[1:].min() > 50  # all of them, about equally often


def test_the_quantizer_chooses_one_entry_of_each_book():
    torch.manual_seed(0)
    quantizer = Quantizer(6, groups=2, entries=5, dim=4).eval()
    x = torch.randn(9, 6)
    vectors, shares = quantizer(x)
    logits = quantizer.choose(x)
    for i in range(9):
        for g in range(2):
            best = int(logits[i, 5 * g : 5 * g + 5].argmax())
            assert torch.allclose(vectors[i, 2 * g : 2 * g + 2], quantizer.entries[g, best])
    for g in range(2):
        assert torch.allclose(shares[g], logits[:, 5 * g : 5 * g + 5].softmax(-1).mean(0))
    assert torch.equal(quantizer(x)[0], vectors)
    quantizer.train()
    drawn = torch.stack([quantizer(x, 2.0)[0] for _ in range(20)])
    assert len(drawn.unique(dim=0)) > 1  # in training chance has a say
    books = quantizer.entries.detach()
    for vector in drawn[0].detach():
        assert all((vector[2 * g : 2 * g + 2] - books[g]).abs().sum(-1).min() < 1e-5 for g in range(2))
    quantizer(x, 2.0)[0].sum().backward()
    assert quantizer.choose.weight.grad.abs().sum() > 0  # the choice learns although it is hard
    with pytest.raises(ValueError, match="cannot be divided"):
        Quantizer(6, groups=3, dim=32)


@pytest.mark.parametrize(("shares", "want"), [([1.0, 0, 0, 0], 0.75), ([0.25] * 4, 0.0)])
def test_unused_entries(shares, want):
    assert unused(torch.tensor([shares, shares])).item() == pytest.approx(want, abs=1e-4)


def test_contrast_adds_what_is_not_used_and_cools_down(models, batch):
    model = models[1]
    heats = []
    forward = model.quantizer.forward
    model.quantizer.forward = lambda x, heat: heats.append(heat) or forward(x, heat)
    _, extra = model.judge(batch)
    sound, _ = model.guess(model.waves(batch), batch.lengths, model.cover(batch, 0, 0))
    _, shares = forward(sound[model.cover(batch, 0, 0)])
    assert extra.item() == pytest.approx(0.1 * unused(shares).item(), rel=1e-4)
    for progress in (0.0, 0.5, 1.0):
        model.judge(batch, progress=progress)
    assert heats[1:] == pytest.approx([2.0, 1.0, 0.5])


# Training


FEW = {"hubert": {"clusters": 6, "most": 300}, "wav2vec2": {"others": 5, "entries": 8}}


@pytest.mark.parametrize("name", FEW)
def test_tasks_are_a_function_of_encoder_set_and_seed(name, train):
    def make(seed, **options):
        before = torch.get_rng_state()
        model = make_pretext(name, new_encoder(CALM, 7), train, seed, **options, **FEW[name])
        assert torch.equal(before, torch.get_rng_state())
        return model

    assert torch.equal(weights(make(1)), weights(make(1))) and not torch.equal(weights(make(1)), weights(make(2)))
    assert make(1, start=0.2, length=3).spans == Spans(0.2, 3)
    usual = {"hubert": Spans(0.08, 10), "wav2vec2": Spans(0.065, 10)}[name]
    assert make(1).spans == usual and make(1, length=4).spans == replace(usual, length=4)


def test_options_of_a_task_reach_it(train):
    options = {"groups": 4, "entries": 3, "dim": 8, "others": 7, "temperature": 0.3, "diversity": 0.4}
    config = make_pretext("wav2vec2", new_encoder(CALM), train, **options).config
    assert {name: config[name] for name in options} == options
    with pytest.raises(ValueError, match="unknown pretext task 'hubart'"):
        make_pretext("hubart", new_encoder(CALM), train)
    with pytest.raises(ValueError, match="unknown option of pretext task wav2vec2 'clusters'"):
        make_pretext("wav2vec2", new_encoder(CALM), train, clusters=3)


def test_convolutions_keep_the_size_of_what_flows_through():
    wave = torch.randn(2, 16000)
    n = torch.tensor([16000, 16000])
    encoder = new_encoder(replace(CALM, conv_norm="group", conv_bias=False))
    x = wave[..., None]
    for i, layer in enumerate(encoder.convs):
        x = layer(x, encoder_frames(n, CALM.conv[: i + 1])).detach()
    assert 0.05 < float(x.std()) < 20
    assert torch.equal(weights(new_encoder()), weights(new_encoder()))


def test_the_objective_is_the_mean_loss_and_what_is_added(models, batch):
    config = FitConfig(seed=4, crop=None)
    for model in models:
        losses, extra = model.judge(batch, 4, 2, 0.3)
        assert SelfSupervision(model, config)(batch, 2, 0.3).item() == pytest.approx(
            (losses.mean() + extra).item(), rel=1e-5
        )


def test_labels_are_not_read(models, batch):
    hidden = Batch(batch.wave, batch.lengths, torch.full_like(batch.labels, -1), batch.utts, batch.fakes)
    for model in models:
        assert torch.equal(model.judge(batch)[0], model.judge(hidden)[0])


def test_what_is_too_short_or_covered_already_is_refused(train, models):
    config = FitConfig(crop=None)
    with pytest.raises(ValueError, match="leave it out"):
        SelfSupervision(models[0], config, make_policy("specaugment", train))
    with pytest.raises(ValueError, match="could be copied"):
        SelfSupervision(models[0], FitConfig(crop_policy="random+tile"))
    SelfSupervision(models[0], config, Policy())
    table = train.utterances.copy()
    table.loc[table.index[0], "duration"] = 719 / 16000
    short = type(train)(table, train.segments, train.root)
    with pytest.raises(ValueError, match=rf"1 recordings are shorter.*{table.utt.iloc[0]}"):
        SelfSupervision(models[0], config).check(short)
    with pytest.raises(ValueError, match="shorter than two frames"):
        SelfSupervision(models[0], QUICK).check_dev(short)
    SelfSupervision(models[0], QUICK).check(short)  # crops fill it up
    with pytest.raises(ValueError, match=r"crops of 0\.04 s"):
        SelfSupervision(models[0], FitConfig(crop=0.04)).check(train)


def test_dev_is_judged_whole_frame_by_frame_and_always_alike(models, dev):
    model = models[0]
    torch.nn.init.normal_(model.guesser.weight)
    model.train()
    got = dev_masked_loss(model, dev, WHOLE)
    assert model.training and got == dev_masked_loss(model, dev, WHOLE)
    model.eval()
    data = AudioDataset(dev)
    found = [model.judge(collate([data[0, i]]), WHOLE.seed)[0] for i in range(len(dev))]
    assert got == pytest.approx(torch.cat(found).mean().item(), rel=1e-4)
    assert got != pytest.approx(np.mean([x.mean().item() for x in found]), rel=1e-6)


def made(name, train, **options):
    return make_pretext(name, new_encoder(TINY), train, **options, **FEW[name])


@pytest.mark.parametrize("name", ["hubert", "wav2vec2"])
def test_an_interrupted_run_gives_the_same_bits(name, train, dev, tmp_path):
    whole = fit(made(name, train), train, dev, QUICK, SelfSupervision, dev_masked_loss, tmp_path / "whole")
    with power_cut(loop, "_step", 5, Stop):
        fit(made(name, train), train, dev, QUICK, SelfSupervision, dev_masked_loss, tmp_path / "cut")
    again = fit(made(name, train), train, dev, QUICK, SelfSupervision, dev_masked_loss, tmp_path / "cut")
    assert torch.equal(weights(whole.model), weights(again.model))
    assert whole.history.equals(again.history) and "dev_masked_loss" in whole.history
    other = made(name, train, length=4)
    with pytest.raises(ValueError, match="other settings"):
        fit(other, train, dev, QUICK, SelfSupervision, dev_masked_loss, tmp_path / "cut")


def test_training_finds_what_can_be_found(train, clusters):
    """One recording, always the same frames hidden: the loss falls far below chance."""
    data = AudioDataset(train, Crop(1.0))
    one = collate([data[0, 0]])
    model = ClusterPrediction(new_encoder(CALM), clusters)
    objective = SelfSupervision(model, FitConfig(crop=1.0))
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = objective(one)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * math.log(8)
    assert all(p.grad is not None for p in model.encoder.parameters()) and model.mask.grad is not None


# What comes out


@pytest.mark.parametrize(
    "config",
    [CALM, replace(CALM, norm_first=False, conv_norm="group", conv_bias=False, normalize=False)],
    ids=["large", "base"],
)
def test_a_folder_loads_like_any_upstream(config, tmp_path):
    encoder = new_encoder(config).eval()
    folder = save_upstream(encoder, tmp_path / "upstream")
    wave = torch.randn(2, 8000)
    lengths = torch.tensor([8000, 6000])
    loaded = Upstream(folder, layers="all").eval()
    assert loaded.config == config
    states, frames = loaded(wave, lengths)
    heard = normalize_waves(wave, lengths) if config.normalize else wave
    own = encoder(heard, lengths, [0, 1, 2])
    for row, n in enumerate(frames.tolist()):
        for state, want in zip(states[row], own, strict=True):
            assert torch.allclose(state[:n], want[row, :n], atol=2e-5)


@pytest.mark.parametrize(
    "config",
    [CALM, replace(CALM, norm_first=False, conv_norm="group", conv_bias=False, normalize=False)],
    ids=["large", "base"],
)
def test_transformers_reads_the_folder_too(config, tmp_path, clusters):
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    model = ClusterPrediction(new_encoder(config), clusters).eval()
    folder = save_upstream(model, tmp_path)
    theirs, info = transformers.HubertModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    wave = torch.randn(1, 8000)
    wave = normalize_waves(wave, torch.tensor([8000]))
    with torch.no_grad():
        want = theirs.eval()(wave).last_hidden_state
        (got,) = model.encoder(wave, torch.tensor([8000]), [2])
    assert torch.allclose(got, want, atol=5e-5) and torch.equal(theirs.masked_spec_embed, model.mask)
    extractor = json.loads((folder / "preprocessor_config.json").read_text())
    assert extractor["do_normalize"] == config.normalize and extractor["sampling_rate"] == 16000


def test_a_detector_stands_on_the_folder_and_goes_without_it_afterwards(tmp_path, batch):
    torch.manual_seed(0)
    folder = save_upstream(new_encoder(CALM), tmp_path / "upstream")
    model = build("ssl_linear", upstream=str(folder), layers="weighted", frozen=False).eval()
    kept = save_model(model, tmp_path / "model")
    for file in folder.iterdir():
        file.unlink()
    assert torch.equal(load_model(kept).eval()(batch.wave, batch.lengths), model(batch.wave, batch.lengths))


def test_sizes_by_name():
    assert encoder_config("large") == LARGE and encoder_config("base", layers=2) == replace(BASE, layers=2)
    assert encoder_config("tiny", conv=[[8, 10, 5], [8, 3, 2]]).conv == ((8, 10, 5), (8, 3, 2))
    with pytest.raises(ValueError, match="unknown size of encoder 'huge'"):
        encoder_config("huge")
    with pytest.raises(ValueError, match="unknown option of encoder 'width'"):
        encoder_config(width=3)


def test_encoders_of_another_form_are_refused(clusters, tmp_path):
    coarse = tuple((c, k, 2 * s if i == 0 else s) for i, (c, k, s) in enumerate(CALM.conv))
    for change in ({"relative": (32, 80)}, {"pos_depth": 2}, {"dim": 16}, {"conv": coarse}):
        encoder = new_encoder(replace(CALM, **change))
        with pytest.raises(ValueError, match=r"in the form of wav2vec 2\.0 and HuBERT"):
            ClusterPrediction(encoder, clusters)
        with pytest.raises(ValueError, match=r"in the form of wav2vec 2\.0 and HuBERT"):
            save_upstream(encoder, tmp_path)
    for config in (BASE, LARGE):
        ssl._check_kind(config)


def test_all_that_decides_stands_in_the_config(clusters, train):
    model = ClusterPrediction(new_encoder(CALM), clusters, Spans(0.2, 3))
    assert model.config["spans"] == {"start": 0.2, "length": 3} and model.config["encoder"] == asdict(CALM)
    moved = Clusters(clusters.view, clusters.centres + 1)
    assert ClusterPrediction(new_encoder(CALM), moved, Spans(0.2, 3)).config != model.config
    assert Contrast(new_encoder(CALM), others=3).config != Contrast(new_encoder(CALM)).config
