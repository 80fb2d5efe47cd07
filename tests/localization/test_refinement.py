"""TDL and CFPRF: every published mistake beside its repair; layouts, padding, company, time shift, length."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import nn

from wedefense_nb.features.pretrained import TINY
from wedefense_nb.localization.frames import boundary_targets
from wedefense_nb.localization.refinement import (
    CoarseNet,
    GroupMean,
    ProposalRefiner,
    ResemblingConv,
    ResemblingNet,
    SquareHead,
    TimeBlock,
    TinyAttention,
    TwoSided,
    attend,
    decode_shift,
    encode_shift,
    neighbour_cosines,
    refine,
    resemblance_loss,
    sinusoids,
)
from wedefense_nb.models.checkpoints import LAYOUTS, load_published, published_shapes
from wedefense_nb.models.detector import build, load_model, save_model
from wedefense_nb.task import BONAFIDE, SPOOF

SPECTRUM = {"front_options": {"n_mels": 20, "mean_norm": True}}
SMALL = {
    "tdl": SPECTRUM | {"width": 16, "embed_dim": 8, "dropout": 0.0},
    "cfprf": SPECTRUM | {"width": 16, "channels": [8, 16], "steps": 30},
}
WAVES = 0.1 * torch.randn(3, 20000, generator=torch.Generator().manual_seed(1))
LENGTHS = torch.tensor([20000, 9000, 15000])
each = pytest.mark.parametrize("name", SMALL)


def small(name, **options):
    torch.manual_seed(0)
    longer = {"steps": 130} if name == "cfprf" and options.get("legacy") else {}  # frames of the waves below
    return build(name, **(SMALL[name] | longer | options)).eval()


def test_cosines_by_hand():
    x = torch.tensor([[[2.0, 0.0], [1.0, 1.0], [0.0, 3.0]]])
    half = math.sqrt(0.5)
    want = torch.tensor([[[0.0, 1.0, half], [half, 1.0, half], [half, 1.0, 0.0]]])
    assert torch.allclose(neighbour_cosines(x), want)


def plain_conv(x, cosines, weight):
    """Three scaled taps, one number at a time."""
    total, dim = x.shape
    y = np.zeros((total, weight.shape[0]))
    for t in range(total):
        for k in range(3):
            if 0 <= t + k - 1 < total:
                for o in range(weight.shape[0]):
                    for c in range(dim):
                        y[t, o] += weight[o, c, k] * cosines[t, k] * x[t + k - 1, c]
    return y


def test_taps_are_scaled_by_their_own_cosine():  # pitfall 26
    conv = ResemblingConv(4, 5).double()
    x = torch.randn(2, 6, 4, dtype=torch.float64)
    cosines = torch.rand(2, 6, 3, dtype=torch.float64)
    for b in range(2):
        want = plain_conv(x[b].numpy(), cosines[b].numpy(), conv.weight.detach().numpy())
        assert np.allclose(conv(x, cosines)[b].detach(), want)
    ones = torch.ones_like(cosines)
    plain = nn.functional.conv1d(x.transpose(1, 2), conv.weight, padding=1).transpose(1, 2)
    for legacy in (False, True):
        conv.legacy = legacy
        assert torch.allclose(conv(x, ones), plain)


def test_published_taps_are_scaled_by_another():
    """Channels in thirds: the first by the left cosine, whatever the tap."""
    conv = ResemblingConv(3, 1, legacy=True).double()
    x = torch.randn(1, 5, 3, dtype=torch.float64)
    cosines = torch.rand(1, 5, 3, dtype=torch.float64)
    with torch.no_grad():
        for c in range(3):
            for k in range(3):
                conv.weight.zero_()
                conv.weight[0, c, k] = 1.0
                shifted = nn.functional.pad(x[0, :, c], (1, 1))[k : k + 5]
                third = (3 * c + k) // 3
                assert torch.allclose(conv(x, cosines)[0, :, 0], shifted * cosines[0, :, third])


@pytest.mark.parametrize("legacy", [False, True])
def test_resemblance_like_loops(legacy):
    for _ in range(10):
        x = torch.randn(4, 9, 5, dtype=torch.float64)
        y = torch.randint(-1, 2, (4, 9))
        y[0] = torch.where(y[0] >= 0, 1, y[0])
        y[1] = -1
        unit = nn.functional.normalize(x, dim=-1)
        total = 0.0
        for b in range(4):
            real, fake = ([i for i in range(9) if y[b, i] == label] for label in (BONAFIDE, SPOOF))
            if legacy and not (real and fake):
                continue
            for group in (real, fake):
                hinges = [max(0.0, 0.9 - min(float(unit[b, i] @ unit[b, j]) for j in group)) for i in group]
                total += sum(hinges) / max(1, len(hinges))
            for one, two in ((real, fake), (fake, real)) if real and fake else ():
                hinges = [max(0.0, max(float(unit[b, i] @ unit[b, j]) for j in two) - 0.1) for i in one]
                total += sum(hinges) / len(hinges)
        assert resemblance_loss(x, y, legacy=legacy).item() == pytest.approx(total / 4, abs=1e-9)
    same = torch.randn(1, 6, 5)
    assert (resemblance_loss(same, torch.ones(1, 6), legacy=legacy) > 0) == (not legacy)


def test_groups_have_the_mean_of_their_own_frames():
    x = torch.randn(2, 11, 3)
    got, steps = GroupMean(4)(x, torch.tensor([11, 6]))
    assert steps.tolist() == [3, 2]
    for b, n in enumerate((11, 6)):
        for i in range(steps[b]):
            assert torch.allclose(got[b, i], x[b, 4 * i : min(4 * i + 4, n)].mean(0), atol=1e-6)
    assert (got[1, 2:] == 0).all()


def test_attention_across_the_batch_is_the_published_one():  # pitfall 26
    torch.manual_seed(0)
    tiny = TinyAttention(6, 4, inner=5).double()
    x = torch.randn(3, 7, 6, dtype=torch.float64)
    frames = torch.tensor([7, 4, 7])
    q, k, v = tiny.qkv(x).chunk(3, -1)
    for b, n in enumerate(frames.tolist()):
        shares = (q[b, :n] @ k[b, :n].T / math.sqrt(5)).softmax(1)
        assert torch.allclose(tiny(x, frames)[b, :n], tiny.proj(shares @ v[b, :n]))
        assert torch.allclose(tiny(x[b : b + 1, :n], frames[b : b + 1]), tiny(x, frames)[b : b + 1, :n])
    tiny.legacy = True
    scores = torch.einsum("bfc,dfc->fbd", q, k) / math.sqrt(5)  # recordings b and d at time f
    mixed = torch.einsum("fbd,dfc->bfc", scores.softmax(0), v)
    assert torch.allclose(tiny(x, frames), tiny.proj(mixed))
    assert not torch.allclose(tiny(x[:1], frames[:1]), tiny(x, frames)[:1])


def test_attend_leaves_padding_out():
    x = torch.randn(2, 5, 4)
    frames = torch.tensor([5, 3])
    loud = x.clone()
    loud[1, 3:] = 99
    assert torch.allclose(attend(x, x, x, frames)[1, :3], attend(loud, loud, loud, frames)[1, :3])


@pytest.mark.parametrize("first", [True, False])
def test_blocks_do_not_hear_padding_and_move_with_time(first):
    block = TimeBlock(3, 5, first=first).double()
    x = torch.randn(2, 3, 12, 6, dtype=torch.float64)
    frames = torch.tensor([12, 7])
    x[1, :, 7:] = 0
    for training in (False, True):
        block.train(training)
        y = block(x, frames)
        assert (y[1, :, 7:] == 0).all()
        if not training:
            assert torch.allclose(block(x[1:, :, :7], frames[1:])[0], y[1, :, :7])
            later = nn.functional.pad(x[:1], (0, 0, 2, 0))
            inner = slice(1, None) if first else slice(3, -1)
            assert torch.allclose(block(later, frames[:1] + 2)[:, :, 2:][:, :, inner], y[:1][:, :, inner])
    if not first:
        grads = torch.autograd.grad(block(x, frames).square().sum(), block.norm1.weight)
        assert grads[0].abs().sum() > 0
        assert not TimeBlock(3, 5, legacy=True).norm1.weight.requires_grad


def test_blocks_are_the_published_ones():
    block = TimeBlock(3, 5, first=True).double().eval()
    block.norm2.running_mean += 0.3
    block.norm2.bias.data += 0.7
    x = torch.randn(1, 3, 9, 6, dtype=torch.float64)
    y = block.conv1(x)
    y = nn.functional.batch_norm(
        y, block.norm2.running_mean, block.norm2.running_var, block.norm2.weight, block.norm2.bias
    )
    want = block.conv2(torch.selu(y)) + block.shortcut(x)
    assert torch.allclose(block(x, torch.tensor([9])), want)


def test_pieces_give_what_the_whole_gives():  # pitfall 46
    torch.manual_seed(0)
    net = CoarseNet(6, 16, (8, 16, 16), steps=40).double().eval()
    x = torch.randn(2, 57, 6, dtype=torch.float64)
    frames = torch.tensor([57, 31])
    whole = net(x, frames)[0]
    for at_once in (7, 20, 31):
        net.at_once = at_once
        got = net(x, frames)[0]
        assert torch.allclose(got[0], whole[0]) and torch.allclose(got[1, :31], whole[1, :31]), at_once


@each
def test_company_and_padding_change_nothing(name):  # pitfall 26
    model = small(name)
    logits, frames = model(WAVES, LENGTHS)
    assert torch.equal(frames, model.frames(LENGTHS)) and logits.shape == (3, int(frames.max()), 2)
    loud = WAVES + 50 * (torch.arange(20000) >= LENGTHS[:, None])
    assert torch.allclose(model(loud, LENGTHS)[0], logits, atol=1e-4)
    for b, n in enumerate(LENGTHS.tolist()):
        alone, count = model(WAVES[b : b + 1, :n], LENGTHS[b : b + 1])
        assert torch.allclose(logits[b, : count[0]], alone[0], atol=1e-4)
        assert (logits[b, count[0] :] == 0).all()


def test_published_scores_depend_on_company():  # pitfall 26
    model = small("cfprf", legacy=True)
    logits, _ = model(WAVES, torch.tensor([20000] * 3))
    alone, _ = model(WAVES[:1], torch.tensor([20000]))
    assert not torch.allclose(logits[:1], alone, atol=1e-4)


def test_time_shift_moves_tdl():  # pitfall 26
    """Ours has one head for all times; the published one has another for each."""
    for legacy in (False, True):
        torch.manual_seed(0)
        net = ResemblingNet(6, 8, 4, legacy=legacy).eval()
        x = torch.randn(1, 80, 6)
        later = torch.cat([torch.randn(1, 16, 6), x], 1)
        with torch.no_grad():
            a, _ = net(x, torch.tensor([80]))
            b, _ = net(later, torch.tensor([96]))
        assert torch.allclose(a[:, 2:], b[:, 4:], atol=1e-5) == (not legacy)


def test_positions_count_only_in_the_published_form():
    """Constant features: nothing but the distance to the ends can tell two frames apart."""
    for legacy in (False, True):
        torch.manual_seed(0)
        net = CoarseNet(6, 16, (8, 16), steps=40, legacy=legacy).eval()
        for block in (net.edge_block, net.block):
            block.gate.weight.data.zero_()
        x = torch.ones(1, 40, 6)
        with torch.no_grad():
            y = net(x, torch.tensor([40]))[0][0]
        assert torch.allclose(y[10], y[25], atol=1e-5) == (not legacy)


def test_sinusoids():
    table = sinusoids(50, 6)
    for position in (0, 7, 49):
        for i in range(3):
            angle = position / 10000 ** (2 * i / 6)
            assert table[position, 2 * i : 2 * i + 2].tolist() == pytest.approx(
                [math.sin(angle), math.cos(angle)], abs=1e-4
            )


@each
def test_thirty_seconds_are_scored_whole(name):  # pitfalls 18, 42
    model = small(name)
    wave = 0.1 * torch.randn(1, 30 * 16000)
    with torch.no_grad():
        logits, frames = model(wave, torch.tensor([30 * 16000]))
    assert logits.shape[1] == frames.item() == math.ceil(2998 / model.stride) and torch.isfinite(logits).all()
    with pytest.raises(ValueError, match="at most"), torch.no_grad():
        small(name, legacy=True)(wave, torch.tensor([30 * 16000]))


@each
@pytest.mark.parametrize("seconds", [0.03, 0.2])
def test_short_ones_are_scored(name, seconds):  # pitfall 43
    n = round(16000 * seconds)
    logits, frames = small(name)(0.1 * torch.randn(1, n), torch.tensor([n]))
    assert torch.isfinite(logits).all() and frames.item() >= 1


@each
@pytest.mark.parametrize("legacy", [False, True])
def test_saved_and_loaded(name, legacy, tmp_path):
    model = small(name, legacy=legacy)
    again = load_model(save_model(model, tmp_path))
    assert torch.equal(again(WAVES, LENGTHS)[0], model(WAVES, LENGTHS)[0])


PARAMETERS = {"tdl": 8_718_709 - 525_313, "cfprf": 3_059_946 - 256}  # without what is never called


@each
def test_layouts(name):
    shapes = published_shapes(name)
    norms = ("running_mean", "running_var", "num_batches_tracked")
    assert sum(math.prod(v) for k, v in shapes.items() if not k.endswith(norms)) == PARAMETERS[name]
    want = {
        "tdl": {
            "embedding_module.conv_2.weight": (32, 512, 3),
            "base_module.conv_1.weight": (1024, 1024, 3),
            "base_module.conv_2.weight": (1024, 1024, 3),
            "classifier_module.conv.weight": (2, 1024, 1),
            "classifier_module.fc.bias": (132,),
        },
        "cfprf": {
            "LL.weight": (128, 1024),
            "first_bn.weight": (1,),
            "encoder.1.0.bn1.running_mean": (32,),
            "encoder.2.0.conv_downsample.weight": (64, 32, 1, 3),
            "encoder.5.0.conv2.weight": (128, 128, 2, 3),
            "attention.0.weight": (64, 128, 1, 1),
            "attention.2.weight": (64,),
            "attention.3.bias": (128,),
            "b_amlp.layers.0.sgu.weight": (1070, 1070),
            "b_amlp.layers.0.sgu.norm.weight": (32,),
            "b_amlp.layers.0.sgu.tn.qkv.weight": (192, 64),
            "seg_amlp.layers.0.sgu.tn.proj.weight": (32, 64),
            "seg_amlp.layers.0.proj1.weight": (64, 128),
            "seg_amlp.layers.0.proj2.weight": (128, 32),
            "seg_amlp.layers.0.norm.bias": (128,),
            "ca.value.weight": (128, 128),
            "FFN.w_2.bias": (128,),
            "norm.weight": (128,),
            "b_fc.bias": (2,),
            "seg_fc.weight": (2, 128),
        },
    }[name]
    assert {k: shapes.get(k) for k in want} == want
    assert not any(k.startswith(("backbone", "head")) for k in shapes)


@each
def test_whole_files(name, tmp_path):
    options = {"upstream": {"stored": {"dim": 20, "states": 0}}} | {
        k: v for k, v in SMALL[name].items() if k != "front_options"
    }
    layout = LAYOUTS[name]
    own = build(**(layout.detector | options)).eval()
    file = {layout.published_name(k): v for k, v in own.state_dict().items() if k != "log_prior_odds"}
    unused = {prefix + "x": torch.zeros(2) for prefix in layout.ignore}
    torch.save(file | unused, tmp_path / "model.pth")
    x = torch.randn(2, 25, 20)
    frames = torch.tensor([25, 25])
    loaded = load_published(tmp_path / "model.pth", name, **options)
    assert torch.equal(loaded(x, frames)[0], own(x, frames)[0])


def test_upstreams_carry_them():
    for name in SMALL:
        options = {k: v for k, v in SMALL[name].items() if k != "front_options"}
        model = build(name, upstream=asdict(TINY), **options).eval()
        assert round(model.hop, 2) == {"tdl": 0.16, "cfprf": 0.02}[name]
        assert torch.isfinite(model(WAVES, LENGTHS)[0]).all()


def labels_for(model):
    frames = model.frames(LENGTHS)
    labels = torch.full((3, int(frames.max())), BONAFIDE)
    labels[0, 3:6] = SPOOF
    labels[2, :4] = SPOOF
    real = torch.arange(labels.shape[1]) < frames[:, None]
    return labels, real


@each
def test_labels_of_padding_do_not_matter(name):  # pitfall 17
    model = small(name)
    labels, real = labels_for(model)
    losses = [model.loss(WAVES, LENGTHS, labels.where(real, value)) for value in (-1, 0, 1)]
    assert losses[0] == losses[1] == losses[2]
    with pytest.raises(ValueError, match="on the model's own grid"):
        model.loss(WAVES, LENGTHS, labels[:, :-1])


def test_published_tdl_learns_from_padding():  # pitfall 17
    model = small("tdl", legacy=True)
    labels, real = labels_for(model)
    vectors, _, _ = model.backbone.both(*model.front(WAVES, LENGTHS))
    padded = torch.full((3, 132), BONAFIDE)
    padded[:, : labels.shape[1]] = labels.where(real, BONAFIDE)
    want = nn.functional.binary_cross_entropy_with_logits(vectors[..., 0], padded.float())
    model.embedding_weight = 0.0
    assert model.loss(WAVES, LENGTHS, labels).item() == pytest.approx(want.item(), abs=1e-5)


def test_loss_of_tdl_is_that_of_its_parts():
    model = small("tdl")
    labels, real = labels_for(model)
    logits, _ = model(WAVES, LENGTHS)
    feats, frames = model.front(WAVES, LENGTHS)
    _, _, embedding = model.backbone.both(feats, frames)
    of_frames = labels.where(real, -1).repeat_interleave(8, 1)[:, : feats.shape[1]]
    of_frames = of_frames.where(torch.arange(feats.shape[1]) < frames[:, None], -1)
    want = nn.functional.cross_entropy(logits[real], labels[real]) + 0.1 * resemblance_loss(embedding, of_frames)
    assert model.loss(WAVES, LENGTHS, labels).item() == pytest.approx(want.item(), abs=1e-5)


def test_loss_of_cfprf_is_that_of_its_parts():
    model = small("cfprf")
    labels, real = labels_for(model)
    logits, frames = model(WAVES, LENGTHS)
    feats, frames = model.front(WAVES, LENGTHS)
    _, embedding, edges = model.backbone.all(feats, frames)
    known = labels.where(real, -1)
    one_hot = nn.functional.one_hot
    want = (logits[real] - one_hot(labels[real], 2)).square().mean()
    want = want + 0.1 * (edges[real] - one_hot(boundary_targets(known)[real], 2)).square().mean()
    want = want + 0.25 * resemblance_loss(embedding, known)
    assert model.loss(WAVES, LENGTHS, labels).item() == pytest.approx(want.item(), abs=1e-5)


@each
def test_every_parameter_learns(name):  # pitfall 40
    for legacy in (False, True):
        model = small(name, legacy=legacy).train()
        if name == "cfprf" and legacy:
            model.backbone.drop.p = 0.0
        labels, real = labels_for(model)
        model.loss(WAVES, LENGTHS, labels.where(real, -1)).backward()
        silent = [
            k
            for k, p in model.named_parameters()
            if p.requires_grad and (p.grad is None or not (p.grad != 0).any())
        ]
        assert silent == [] or legacy and all("conv1" not in k for k in silent), silent


def test_heads():
    head = TwoSided(1)
    z = torch.tensor([[2.0], [-1.0]])
    assert head(z).tolist() == [[0.0, 2.0], [0.0, -1.0]]
    want = nn.functional.binary_cross_entropy_with_logits(z[:, 0], torch.tensor([1.0, 0.0]), reduction="none")
    assert torch.allclose(head.losses(z, torch.tensor([BONAFIDE, SPOOF])), want)
    square = SquareHead(3)
    assert not square.log_odds
    square.out.bias.data = torch.tensor([0.0, 1.0])
    square.out.weight.data.zero_()
    assert square.losses(torch.ones(2, 3), torch.tensor([1, 0])).tolist() == [0.0, 1.0]


def test_corrections_go_there_and_back():
    start = torch.rand(20, dtype=torch.float64) * 50
    found = torch.stack([start, start + 2 + torch.rand(20, dtype=torch.float64) * 9], 1)
    truth = found + torch.randn(20, 2, dtype=torch.float64) * 0.5
    assert torch.allclose(decode_shift(found, encode_shift(found, truth)), truth)
    by_hand = encode_shift(torch.tensor([[10.0, 20.0]]), torch.tensor([[12.0, 17.0]]))
    assert by_hand[0].tolist() == pytest.approx([20.0, 100 * math.log(0.5)], abs=1e-4)


def test_a_find_has_numbers_that_do_not_grow_with_its_length():
    """The same vectors twice as long: ours stays, the published sum doubles."""
    torch.manual_seed(0)
    x = torch.randn(1, 32).repeat(20, 1)
    ratios = []
    for legacy in (False, True):
        torch.manual_seed(0)
        refiner = ProposalRefiner(legacy=legacy).eval()
        with torch.no_grad():
            once, twice = refiner._numbers(x), refiner._numbers(x.repeat(2, 1))
        ratios.append((twice / once).mean().item())
    assert ratios[0] == pytest.approx(1.0, abs=0.05) and ratios[1] == pytest.approx(2.0, abs=0.1)


def test_loss_of_the_refiner():
    torch.manual_seed(0)
    refiner = ProposalRefiner(hidden=8).eval()
    regions = [torch.randn(n, 20) for n in (8, 1, 5)]
    found = torch.tensor([[10.0, 18.0], [30.0, 31.0], [40.0, 45.0]])
    truth = torch.tensor([[11.0, 19.0], [30.0, 31.5], [44.0, 60.0]])
    logits, code = refiner(regions)
    fake = torch.tensor([1.0, 1.0, 0.0])  # an IoU of 7/9 and of 2/3; the third is below one half
    want = nn.functional.binary_cross_entropy_with_logits(logits, fake)
    shift = encode_shift(found[:1], truth[:1])
    huber = nn.functional.smooth_l1_loss(code[:1], shift, reduction="sum")  # the second is too short
    assert refiner.loss(regions, found, truth).item() == pytest.approx((want + 0.2 * huber).item(), abs=1e-4)
    nothing = refiner.loss(regions, found, torch.zeros(0, 2))
    want = nn.functional.binary_cross_entropy_with_logits(logits, torch.zeros(3))
    assert nothing.item() == pytest.approx(want.item(), abs=1e-6)
    exact = refiner.loss(regions[:1], torch.tensor([[0.0, 4.0]]), torch.tensor([[0.0, 2.0]]), weight=0.0)
    want = nn.functional.binary_cross_entropy_with_logits(refiner(regions[:1])[0], torch.ones(1))
    assert exact.item() == pytest.approx(want.item(), abs=1e-6)  # an IoU of one half is enough here


def test_refined_proposals():
    torch.manual_seed(0)
    model = small("cfprf")
    refiner = ProposalRefiner(hidden=8).eval()
    wave = WAVES[0]
    runs = [(5, 20), (40, 41), (100, 123)]
    assert refine(model, refiner, wave, []) == []
    vectors, _ = model.frame_embed(wave[None], LENGTHS[:1])
    with torch.no_grad():
        logits, code = refiner([vectors[0, a:b] for a, b in runs])
    got = refine(model, refiner, wave, runs)
    assert [p[0] for p in got] == pytest.approx(logits.sigmoid().tolist(), abs=1e-5)
    moved = decode_shift(torch.tensor(runs).float(), code) * 0.01
    assert got[0][1:] == pytest.approx(moved[0].tolist(), abs=1e-4)
    assert got[1][1:] == pytest.approx((0.40, 0.41), abs=1e-6)  # one frame is not moved
    refiner.regress.bias.data += torch.tensor([0.0, 200.0])  # seven times as long: cut at the end
    assert max(end for _, _, end in refine(model, refiner, wave, runs)) == pytest.approx(1.25)
