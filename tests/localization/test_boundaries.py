"""BAM: what boundaries block, in loops and in numbers; golden outputs, layouts, padding, gradients, long files."""

import json
import math
from dataclasses import asdict

import pytest
import torch
from torch import nn

from tests.conftest import GOLDEN_DIR
from tests.models.golden import agrees
from wedefense_nb.features.pretrained import TINY
from wedefense_nb.features.spectra import make_front
from wedefense_nb.features.stored import Stored
from wedefense_nb.features.upstreams import encoder_frames
from wedefense_nb.localization.boundaries import (
    BAM,
    BlockedAttention,
    BoundaryNet,
    FeatureResNet,
    PaddedFront,
    WindowPool,
    balanced_bce,
    boundary_mask,
)
from wedefense_nb.localization.frames import boundary_targets
from wedefense_nb.metrics import auc
from wedefense_nb.models.checkpoints import (
    LAYOUTS,
    formula_numbers,
    formula_weights,
    load_published,
    published_shapes,
    rename,
)
from wedefense_nb.models.detector import build, load_model, save_model
from wedefense_nb.task import BONAFIDE, SPOOF

FILE = {
    name: tuple(shape)
    for name, shape in json.loads((GOLDEN_DIR / "state_dicts" / "wedefense_bam.json").read_text()).items()
}
TWICE = "intra_layer.resnet.downsample.weight"
SMALL = {"embed_dim": 24, "width": 4}
SPECTRUM = {"front_options": {"n_mels": 20, "mean_norm": True}}
NETWORK = {"upstream": asdict(TINY)}
WAVES = 0.1 * torch.randn(3, 20000, generator=torch.Generator().manual_seed(1))
LENGTHS = torch.tensor([20000, 20000, 20000])


def small(**options):
    """A small BAM whose boundary branch says yes and no."""
    torch.manual_seed(0)
    under = NETWORK if options.get("legacy") == "wedefense" else SPECTRUM
    model = build("bam", **(SMALL | under | options)).eval()
    with torch.no_grad():
        _, steps, edges = model.backbone.both(*model.front(WAVES, LENGTHS))
        model.backbone.boundary.bias -= edges.median()
    return model


def in_loops(boundary):
    """(B, N) to (B, N, N), a pair at a time."""
    allowed = torch.zeros(*boundary.shape, boundary.shape[1], dtype=torch.bool)
    for b, row in enumerate(boundary):
        for j in range(len(row)):
            for k in range(len(row)):
                allowed[b, j, k] = j == k or not row[min(j, k) : max(j, k) + 1].any()
    return allowed


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 0.6, 1.0])
@pytest.mark.parametrize("n", [1, 2, 17])
def test_mask_like_loops(share, n):
    boundary = torch.rand(8, n) < share
    assert torch.equal(boundary_mask(boundary), in_loops(boundary))


def attention(legacy, dim=12):
    torch.manual_seed(0)
    attend = BlockedAttention(dim, legacy).double().eval()
    with torch.no_grad():
        attend.vector *= 3
    return attend


def moved(attend, boundary, step):
    """Which outputs move when one step does."""
    n = boundary.shape[1]
    x = torch.randn(1, n, 12, dtype=torch.float64)
    other = x.clone()
    other[0, step] += 1
    mask = torch.ones(1, n, dtype=torch.bool)
    with torch.no_grad():
        return (attend(x, mask, boundary) - attend(other, mask, boundary)).abs().amax(2)[0] > 1e-12


def test_nothing_leaks_across_a_boundary():  # pitfall 25
    boundary = torch.rand(6, 20) < 0.2
    allowed = in_loops(boundary)
    for b in range(6):
        for step in (0, 7, 19):
            got = moved(attention(False), boundary[b : b + 1], step)
            assert torch.equal(got, allowed[b, :, step])
            assert moved(attention(True), boundary[b : b + 1], step).all()  # as published, everybody hears it


def test_without_boundaries_all_hear_all():
    none = torch.zeros(1, 9, dtype=torch.bool)
    assert moved(attention(False), none, 4).all()
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    mask = torch.ones(2, 9, dtype=torch.bool)
    plain = attention(False)(x, mask)
    assert torch.equal(plain, attention(False)(x, mask, torch.zeros(2, 9, dtype=torch.bool)))
    assert torch.equal(plain, attention(True)(x, mask, torch.zeros(2, 9, dtype=torch.bool)))


def test_what_is_published_gives_a_blocked_step_four_percent():
    """Four steps, a boundary at step 1, a logit of 3 for oneself: each of three blocked steps has 4.3 %."""
    attend = BlockedAttention(4, legacy=True).double().eval()
    with torch.no_grad():
        for layer in (attend.pair, attend.mix, attend.keep):
            layer.weight.copy_(torch.eye(4))
            layer.bias.zero_()
        attend.keep.weight.zero_()
        attend.vector.fill_(0.0)
        attend.vector[0] = 3 / math.tanh(1.0)  # so that a pair (1, 1) has the logit 3
    x = torch.eye(4, dtype=torch.float64)[None].clone()
    x[0, 1:, 0] = 0.3  # logits of pairs with step 0 are not zero
    boundary = torch.tensor([[False, True, False, False]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    with torch.no_grad():
        y = attend(x, mask, boundary)[0, 0]
    heard = y / torch.nn.functional.selu(torch.ones(1, dtype=y.dtype)) * math.sqrt(1 + attend.norm.eps)
    assert heard[1:].tolist() == pytest.approx([0.0433] * 3, abs=1e-4)
    attend.legacy = False
    with torch.no_grad():
        assert attend(x, mask, boundary)[0, 0, 1:].abs().max() == 0


def test_padding_is_heard_by_nobody_and_is_no_number_problem():
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    mask = torch.tensor([[True] * 7, [True] * 3 + [False] * 4])
    boundary = torch.tensor([[False] * 7, [False, True, False, False, True, False, False]])
    for legacy in (False, True):
        attend = attention(legacy)
        for training in (False, True):
            y = attend.train(training)(x.requires_grad_(), mask, boundary)
            assert torch.isfinite(y).all() and (y[1, 3:] == 0).all()
            (grad,) = torch.autograd.grad(y.square().sum(), x)
            assert torch.isfinite(grad).all() and (grad[1, 3:] == 0).all()
        alone = attend.eval()(x[1:, :3], mask[1:, :3], boundary[1:, :3])
        assert torch.allclose(attend(x, mask, boundary)[1, :3], alone[0], atol=1e-12)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_windows_are_pooled_by_their_own_frames(size):
    pool = WindowPool(5, size).double()
    x = torch.randn(2, 20, 5, dtype=torch.float64)
    got, steps = pool(x, torch.tensor([20, 13]))
    assert steps.tolist() == [math.ceil(20 / size), math.ceil(13 / size)]
    for b, frames in enumerate((20, 13)):
        for i in range(steps[b]):
            part = x[b, i * size : min((i + 1) * size, frames)]
            shares = torch.tanh(part @ pool.weights).softmax(0)
            assert torch.allclose(got[b, i], (shares * part).sum(0), atol=1e-12)
    assert (got[1, steps[1] :] == 0).all()


@pytest.mark.parametrize("dim", [8, 20, 24, 33, 80, 256, 1024])
def test_features_are_read_at_any_width(dim):
    net = FeatureResNet(dim, width=4).eval()
    x = torch.randn(2, 3, dim)
    mask = torch.tensor([[True] * 3, [True, False, False]])
    y = net(x, mask)
    assert y.shape == x.shape and (y[1, 1:] == 0).all()
    net.at_once = 2
    assert torch.allclose(net(x, mask), y, atol=1e-6)
    net.train()(x[:1, :1], mask[:1, :1])  # a single step can be learned from


def test_norms_within_frames_do_not_see_padding():  # pitfall 57
    net = FeatureResNet(20, width=4).train()
    x = torch.randn(2, 5, 20)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    loud = torch.where(mask[..., None], x, 30.0)
    assert torch.allclose(net(x, mask), net(loud, mask), atol=1e-6)


@pytest.mark.parametrize("embed_dim", [None, 16, 24])
def test_any_embedding(embed_dim):
    """Where the published network crashes: the projection is there for any size."""
    model = build("bam", front_options={"n_mels": 24}, embed_dim=embed_dim, width=4).eval()
    logits, steps = model(WAVES, LENGTHS)
    assert logits.shape == (3, int(steps.max()), 2)
    assert isinstance(model.backbone.project, nn.Identity) == (embed_dim in (None, 24))


def test_golden_outputs():  # pitfall 25
    layout = LAYOUTS["wedefense/bam"]
    model = build(**layout.detector).double().eval()
    weights = formula_weights({name: shape for name, shape in FILE.items() if name != TWICE})
    model.load_state_dict(model.state_dict() | rename(weights, model, layout))
    x = (2 * formula_numbers(2 * 25 * 1024) - 1).reshape(2, 25, 1024)
    frames = torch.tensor([25, 25])
    with torch.no_grad():
        vectors, _, edges = model.backbone.both(x, frames)
        agrees(model.logits(vectors, frames), "wedefense_bam/logits", 1e-4)
        agrees(edges.sigmoid(), "wedefense_bam/boundary", 1e-4)


def test_layouts_are_the_published_ones():
    assert published_shapes("wedefense/bam") == {k: v for k, v in FILE.items() if k != TWICE}
    assert published_shapes("bam_paper") == {f"model.{k}": v for k, v in FILE.items() if k != TWICE}
    assert sum(
        math.prod(v) for k, v in published_shapes("bam_paper").items() if k.endswith(("weight", "weights", "bias"))
    ) == (50_348_323)


NAMES = [  # that equal lengths and shapes would let one mix up
    ("backbone.attend.1.pair.bias", "gap_layers.1.att_proj.bias"),
    ("backbone.attend.0.mix.weight", "gap_layers.0.proj_with_att.weight"),
    ("backbone.inter.keep.bias", "inter_layer.proj_without_att.bias"),
    ("backbone.inter.vector", "inter_layer.att_weight"),
    ("backbone.intra.layers.3.0.downsample.weight", "intra_layer.resnet.layer4.0.downsample.weight"),
    ("backbone.intra.layers.0.1.norm2.running_var", "intra_layer.resnet.layer1.1.bn2.running_var"),
    ("backbone.intra.norm1.weight", "intra_layer.resnet.bn1.weight"),
    ("backbone.intra.project.weight", "intra_layer.proj_layer.weight"),
    ("backbone.edge.bias", "boundary_proj.bias"),
    ("head.out.weight", "out_layer.weight"),
]


@pytest.mark.parametrize("ours, theirs", NAMES)
def test_names(ours, theirs):
    assert LAYOUTS["wedefense/bam"].published_name(ours) == theirs
    assert LAYOUTS["bam_paper"].published_name(ours) == f"model.{theirs}"


def test_whole_files(tmp_path):
    """As WeDefense writes it, classes turned; as BAM's authors do, with the upstream beside it."""
    options = {"upstream": {"stored": {"dim": 32, "states": 0}}, "width": 4}
    x = torch.randn(1, 20, 32)
    frames = torch.tensor([20])
    first = "model." + TWICE
    for kind, alias, more in (
        ("wedefense/bam", TWICE, {}),
        ("bam_paper", first, {"model.ssl_layer.x": torch.ones(1)}),
    ):
        layout = LAYOUTS[kind]
        own = build(**(layout.detector | options)).eval()
        file = {layout.published_name(k): v for k, v in own.state_dict().items() if k != "log_prior_odds"}
        torch.save({"state_dict": file | {alias: torch.zeros(1)} | more}, tmp_path / "model.pt")
        loaded = load_published(tmp_path / "model.pt", kind, **options)
        logits, _ = loaded(x, frames)
        want, _ = own(x, frames)
        assert torch.allclose(logits, want.flip(-1) if kind.startswith("wedefense") else want, atol=1e-6)


def test_forms(tmp_path):
    forms = {legacy: small(legacy=legacy) for legacy in (False, True, "wedefense")}
    assert [round(model.hop, 3) for model in forms.values()] == [0.08, 0.08, 0.02]
    assert [model.backbone.attend[0].legacy for model in forms.values()] == [False, True, True]
    assert not forms[True].backbone.inter.legacy and isinstance(forms[True].front, PaddedFront)
    with pytest.raises(ValueError, match="form of bam 'published'"):
        build("bam", legacy="published")
    with pytest.raises(ValueError, match="give it upstream"):
        build("bam", legacy="wedefense")
    for legacy, model in forms.items():
        logits, steps = model(WAVES, LENGTHS)
        assert torch.equal(steps, model.frames(LENGTHS)), legacy
        again, _ = load_model(save_model(model, tmp_path / str(legacy)))(WAVES, LENGTHS)
        assert torch.equal(again, logits)


def test_published_recordings_are_filled_up_to_whole_steps():  # pitfall 16
    front = PaddedFront(make_front("fbank"), step=2560)
    for samples in (1, 2559, 2560, 2561, 20000):
        wave = torch.randn(1, samples)
        feats, frames = front(wave, torch.tensor([samples]))
        assert front.frames(torch.tensor([samples])).equal(frames) and frames.item() == 16 * math.ceil(
            samples / 2560
        )
        assert feats.shape[1] == frames
    layers = [(512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2]
    filled = PaddedFront(make_front("fbank"), step=2560).filled(torch.tensor([20000, 20480]))
    assert encoder_frames(filled, layers).tolist() == [64, 64]  # eight frames of wav2vec 2.0 a step, none left
    feats, _ = front(torch.cat([torch.randn(1, 3000), 9 * torch.ones(1, 3000)], 1), torch.tensor([3000]))
    longer, _ = front(torch.randn(1, 3000), torch.tensor([3000]))
    assert feats.shape == longer.shape  # what lies behind a recording is silence
    disk = build("bam", upstream={"stored": {"dim": 32, "states": 0}}, width=4, legacy=True)
    assert isinstance(disk.front, Stored)


@pytest.mark.parametrize("legacy", [False, True, "wedefense"])
def test_padding_and_company_change_nothing(legacy):  # pitfall 26
    model = small(legacy=legacy)
    lengths = torch.tensor([20000, 9000, 15000])
    logits, steps = model(WAVES, lengths)
    loud = WAVES + 50 * (torch.arange(20000) >= lengths[:, None])  # what lies behind must not matter
    assert torch.allclose(model(loud, lengths)[0], logits, atol=1e-4)
    found, _ = model.boundaries(WAVES, lengths)
    for b, n in enumerate(lengths.tolist()):
        alone, count = model(WAVES[b : b + 1, :n], lengths[b : b + 1])
        assert count == steps[b]
        assert torch.allclose(logits[b, :count], alone[0], atol=1e-4)
        assert (logits[b, count:] == 0).all() and (found[b, count:] == 0).all()
    assert (found > 0.5).any() and (found[found > 0] < 0.5).any()


def test_time_shift_moves_the_output():  # pitfall 26
    """Whole steps of silence more at the front move the scores, where nothing is heard of the silence."""
    net = BoundaryNet(24, 24, pool=4, width=4).eval()
    net.boundary.weight.data.zero_()
    net.boundary.bias.data.fill_(1.0)  # edges everywhere: each step hears itself
    x = torch.randn(1, 40, 24)
    later = torch.cat([torch.randn(1, 8, 24), x], 1)
    with torch.no_grad():
        a = net(x, torch.tensor([40]))[0][..., :24]
        b = net(later, torch.tensor([48]))[0][..., :24]
    assert torch.allclose(a, b[:, 2:], atol=1e-6)


def test_thirty_seconds_are_scored_whole():  # pitfall 18
    model = small()
    wave = 0.1 * torch.randn(1, 30 * 16000)
    with torch.no_grad():
        logits, steps = model(wave, torch.tensor([30 * 16000]))
    assert steps.item() == math.ceil((30 * 100 - 2) / 8) == logits.shape[1]
    assert torch.isfinite(logits).all()


def plain_loss(logits, targets, known, ratio=5.0):
    """The balanced loss, one step at a time."""
    positive, negative = [], []
    for z, t, k in zip(
        logits.flatten().tolist(), targets.flatten().tolist(), known.flatten().tolist(), strict=True
    ):
        if k:
            p = 1 / (1 + math.exp(-z))
            (positive if t else negative).append(-math.log(p if t else 1 - p))
    hardest = sorted(negative, reverse=True)[: int(ratio * len(positive))]
    return sum(positive + hardest) / max(1, len(positive) + len(hardest))


@pytest.mark.parametrize("share", [0.05, 0.15, 0.9])
def test_balanced_loss_like_loops(share):
    for _ in range(10):
        logits = torch.randn(3, 30, dtype=torch.float64)
        targets = (torch.rand(3, 30) < share).long()
        known = torch.rand(3, 30) < 0.7
        want = plain_loss(logits, targets, known)
        assert balanced_bce(logits, targets, known).item() == pytest.approx(want, abs=1e-12)
        noise = torch.where(known, 0.0, 99.0)
        assert balanced_bce(logits + noise, targets, known).item() == pytest.approx(want, abs=1e-12)


def test_padding_lowers_only_the_published_loss():  # pitfall 17
    logits = torch.zeros(1, 4)
    targets = torch.tensor([[0, 1, 0, 0]])
    longer = nn.functional.pad(logits, (0, 36)), nn.functional.pad(targets, (0, 36), value=-1)
    known = torch.arange(40)[None] < 4
    assert balanced_bce(*longer, known) == balanced_bce(logits, targets, known[:, :4])
    assert balanced_bce(*longer, known, legacy=True).item() == pytest.approx(4 / 6 * math.log(2))
    assert balanced_bce(logits, 0 * targets, known[:, :4]) == 0
    assert math.isfinite(balanced_bce(1e4 * torch.ones(1, 4), targets, known[:, :4]))


def test_loss_is_that_of_steps_and_of_boundaries():
    model = small()
    lengths = torch.tensor([20000, 9000, 15000])
    steps = model.frames(lengths)
    labels = torch.full((3, int(steps.max())), BONAFIDE)
    labels[0, 3:7] = SPOOF
    labels[2, :2] = SPOOF
    labels[1] = -1
    got = model.loss(WAVES, lengths, labels)
    logits, _ = model(WAVES, lengths)
    known = (torch.arange(labels.shape[1]) < steps[:, None]) & (labels >= 0)
    of_steps = nn.functional.cross_entropy(logits[known], labels[known])
    _, _, edges = model.backbone.both(*model.front(WAVES, lengths))
    of_edges = plain_loss(edges.detach(), boundary_targets(labels.where(known, -1)) == 1, known)
    assert got.item() == pytest.approx(of_steps.item() + 0.5 * of_edges, abs=1e-5)
    assert torch.equal(model.loss(WAVES, lengths, labels.where(known, 0)), got) == bool((labels[1] < 0).sum() == 0)
    both = model.loss(WAVES, lengths, labels, utterance_labels=torch.tensor([SPOOF, -1, SPOOF]), share=1.0)
    scores = model.utterance_score(logits, steps)
    assert both.item() == pytest.approx(nn.functional.softplus(scores[[0, 2]]).mean().item(), abs=1e-5)
    with pytest.raises(ValueError, match="on the model's own grid"):
        model.loss(WAVES, lengths, labels[:, :-1])


def test_labels_of_padding_do_not_matter():  # pitfall 17
    model = small()
    lengths = torch.tensor([20000, 9000, 15000])
    steps = model.frames(lengths)
    labels = torch.randint(0, 2, (3, int(steps.max())))
    labels[1, steps[1] - 2 : steps[1]] = SPOOF  # what follows must not make the last a boundary
    real = torch.arange(labels.shape[1]) < steps[:, None]
    assert torch.equal(
        model.loss(WAVES, lengths, labels.where(real, BONAFIDE)),
        model.loss(WAVES, lengths, labels.where(real, SPOOF)),
    )


def test_every_parameter_learns():  # pitfall 40
    model = small().train()
    steps = model.frames(LENGTHS)
    labels = torch.arange(int(steps.max())).expand(3, -1) // 3 % 2
    model.loss(WAVES, LENGTHS, labels).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_steps_teach_the_blocked_branch_and_boundaries_the_other():
    """The switch passes no gradient, and the views are detached on their way to the output."""
    model = small().train()
    labels = torch.ones(3, int(model.frames(LENGTHS).max()), dtype=torch.long)  # no boundary: their loss is zero
    model.loss(WAVES, LENGTHS, labels).backward()
    branch = [*model.backbone.inter.parameters(), *model.backbone.boundary.parameters()]
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in branch)
    assert model.backbone.edge.weight.grad.abs().sum() > 0


def test_two_edges_can_be_learned():
    """Features jump at the edges of the fake stretch: after some steps the boundary branch finds them."""
    torch.manual_seed(0)
    labels = torch.ones(16, 12, dtype=torch.long)
    feats = torch.randn(16, 48, 24)
    for b in range(16):
        start = 1 + b % 5
        labels[b, start : start + 4] = SPOOF
        feats[b, 4 * start : 4 * start + 16] += 1.5
    frames = torch.full((16,), 48)
    model = BAM(Stored(24, 0), 24, pool=4, width=4)
    nn.init.zeros_(model.backbone.boundary.bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = model.loss(feats, frames, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    found, _ = model.boundaries(feats, frames)
    want = boundary_targets(labels) == 1
    assert auc(found.flatten().detach().numpy(), want.flatten().int().numpy()) > 0.9
    scores = model.score(model(feats, frames)[0]).detach()
    assert (scores[labels == BONAFIDE].mean() - scores[labels == SPOOF].mean()).item() > 2
    assert torch.isfinite(scores).all()
