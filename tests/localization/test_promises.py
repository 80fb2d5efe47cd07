"""What every registered localizer must keep: a new one is tested here as soon as it is registered.

`SMALL` gives options that make one quick; those that read all layers of a network get a tiny one.
"""

import functools
from typing import Any

import pytest
import torch

from tests.features.ssl_files import STILL
from tests.models.test_promises import Largest
from wedefense_nb.localization.frames import frame_count
from wedefense_nb.localization.localizers import front_hop
from wedefense_nb.models.detector import LOCALIZERS, build, load_model, options_of, save_model
from wedefense_nb.task import BONAFIDE

MELS = {"front_options": {"n_mels": 40}}
SMALL: dict[str, Any] = {
    "frame_linear": MELS,
    "frame_res1d": MELS | {"out_dim": 16},
    "frame_nes2net": {"groups": 4, "inner": 5},
    "frame_nes2net_x": {"groups": 4, "inner": 5},
    "frame_lcnn_lstm": {"dropout": 0.1},
    "frame_resnet18": {"front_options": {"n_mels": 24, "mean_norm": True}},
    "frame_gmlp": MELS | {"blocks": 1},
    "multi_gmlp": {"front": "fbank", "front_options": {"n_mels": 64}, "blocks": 1, "scales": [0, 1, 3]},
    "sliding_window": {"detector": "bands", "detector_options": {"n_mels": 24}},
    "trace": MELS | {"width": 3},
    "trace/ssl": {"layers": 1, "standard": True},
    "frame_nes2net/ssl": {"groups": 4, "inner": 4},
    "frame_nes2net_x/ssl": {"groups": 4, "inner": 4},
    "frame_lcnn_lstm/ssl": {"dropout": 0.1},
    "frame_gmlp/ssl": {"blocks": 1},
    "multi_gmlp/ssl": {"blocks": 1, "scales": [0, 1, 2]},
    "cfprf": {"width": 32, "channels": [8, 32], "steps": 50},
    "cfprf/ssl": {"width": 32, "channels": [8, 32], "steps": 50},
}


def options(case):
    """The options of a case: a name, or a name and "/ssl" for a tiny upstream under it."""
    name, _, on = case.partition("/")
    given = dict(SMALL.get(case, {}))
    alone = options_of(name)
    if on or ("upstream" in alone and alone.get("front") is None):
        given |= STILL
    return given


def cases():
    for name in LOCALIZERS:
        yield name
        alone = options_of(name)
        if "upstream" in alone and alone.get("front") is not None:
            yield f"{name}/ssl"


CASES = list(cases())
each_case = pytest.mark.parametrize("case", CASES)

# torch.export of what follows the front end, and why it does not work where it does not.
PACKED = "pack_padded_sequence sorts by lengths and needs their values"
NO_GRAPH = {"frame_lcnn_lstm": PACKED}

# A sound that comes later, in silence of the same length, moves the output and nothing else; but for gates that
# count how many frames lie on either side.
NO_SHIFT = {"frame_gmlp", "frame_gmlp/ssl", "multi_gmlp", "multi_gmlp/ssl", "cfprf", "cfprf/ssl"}
REMEMBERS = {"frame_lcnn_lstm": 0.1, "frame_lcnn_lstm/ssl": 0.2}  # how long the silence before was


# Nothing in these learns, so no gradient flows.
TRAINING_FREE = {"trace", "trace/ssl"}


def fresh(case):
    torch.manual_seed(0)
    return build(case.partition("/")[0], **options(case))


@functools.cache
def model(case):
    return fresh(case).eval()


def noise(*shape, seed=0):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_labels(net, lengths, seed=0):
    frames = net.frames(lengths)
    drawn = torch.randint(0, 2, (len(lengths), int(frames.max())), generator=torch.Generator().manual_seed(seed))
    drawn[:, 0] = torch.arange(len(lengths)) % 2  # both classes, whatever was drawn
    return drawn


def still(net):
    """Without dropout."""
    for part in net.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
        if isinstance(part, torch.nn.MultiheadAttention):
            part.dropout = 0.0
    return net


@each_case
def test_padding_and_neighbours_never_change_a_frame(case):  # pitfalls 17, 26, 32, 57
    net = model(case)
    lengths = torch.tensor([24000, 11111, 4000, 900])
    wave = noise(4, 30000)  # beyond the lengths lies noise, not zeros
    with torch.no_grad():
        together, frames = net(wave, lengths)
        turned, _ = net(wave.flip(0), lengths.flip(0))
        for i, n in enumerate(lengths.tolist()):
            alone, own = net(wave[i : i + 1, :n], lengths[i : i + 1])
            assert own[0] == frames[i] and alone.shape[1] == own[0]
            assert torch.allclose(together[i, : frames[i]], alone[0], atol=1e-4)
    assert together.shape == (4, int(frames.max()), 2)
    assert torch.allclose(together, turned.flip(0), atol=1e-4)
    padding = torch.arange(together.shape[1]) >= frames[:, None]
    assert (together[padding] == 0).all()


@each_case
def test_padding_never_changes_training(case):  # pitfall 17
    net = still(fresh(case)).train()
    wave = noise(3, 16000)
    lengths = torch.tensor([16000, 9000, 3000])
    labels = some_labels(net, lengths)
    filled = labels.clone()
    filled[torch.arange(labels.shape[1]) >= net.frames(lengths)[:, None]] = 1 - BONAFIDE  # nobody looks at these
    padded = torch.nn.functional.pad(wave, (0, 4321), value=0.3)
    with torch.no_grad():
        want = net.loss(wave, lengths, labels)
        assert torch.allclose(want, net.loss(padded, lengths, filled), atol=1e-4)


@each_case
def test_frames_are_counted_without_running(case):  # pitfall 16
    net = model(case)
    lengths = torch.tensor([900, 2560, 5119, 5120, 5121, 15999, 31000, 50000])
    with torch.no_grad():
        logits, frames = net(noise(8, 50000), lengths)
    assert torch.equal(frames, net.frames(lengths)) and logits.shape[1] == int(frames.max())
    assert torch.isfinite(logits).all()
    cover = torch.tensor(frame_count(lengths.numpy(), net.hop))
    assert ((frames - cover).abs() <= 3).all(), "about one frame a hop"


@each_case
def test_embeddings_scores_and_losses_fit_together(case):
    net = model(case)
    wave = noise(2, 9000)
    lengths = torch.tensor([9000, 7000])
    with torch.no_grad():
        vectors, frames = net.frame_embed(wave, lengths)
        logits, _ = net(wave, lengths)
        assert torch.allclose(net.logits(vectors, frames), logits)
        assert net.score(logits).shape == logits.shape[:2]
        assert net.utterance_score(logits, frames).shape == (2,)
        loss = net.loss(wave, lengths, some_labels(net, lengths))
    assert loss.ndim == 0 and loss > 0
    assert isinstance(net.hop, float) and net.step == round(net.hop * 16000)


@each_case
def test_evaluation_is_deterministic_and_silence_is_finite(case):
    with torch.no_grad():
        runs = [model(case)(noise(1, 8000), torch.tensor([8000]))[0] for _ in range(2)]
        silence, _ = model(case)(torch.zeros(2, 8000), torch.tensor([8000, 5000]))
        loud, _ = model(case)(torch.ones(1, 8000), torch.tensor([8000]))
    assert torch.equal(*runs) and torch.isfinite(silence).all() and torch.isfinite(loud).all()


@each_case
def test_one_frame_and_a_twentieth_of_a_second_are_finite(case):  # pitfall 43
    net = fresh(case)
    for n in (400, 800):  # a window of 25 ms, and 0.05 s
        lengths = torch.tensor([n])
        with torch.no_grad():
            logits, frames = net.eval()(noise(1, n), lengths)
        assert logits.shape[1] == int(frames[0]) >= 1 and torch.isfinite(logits).all()
        loss = net.train().loss(noise(1, n), lengths, some_labels(net, lengths))
        if case not in TRAINING_FREE:
            loss.backward()
        assert torch.isfinite(loss)


@each_case
def test_any_number_of_frames_passes(case):  # pitfall 42
    net = model(case)
    for frames in (1, 37, 150, 1000):
        n = 400 + (frames - 1) * front_hop(net.front) if hasattr(net, "front") else frames * net.step
        with torch.no_grad():
            logits, own = net(noise(1, n), torch.tensor([n]))
        assert int(own[0]) == int(net.frames(torch.tensor([n]))[0]) and torch.isfinite(logits).all()


@each_case
def test_gradient_reaches_every_parameter(case):  # pitfall 40
    net = fresh(case).train()
    if case in TRAINING_FREE:
        assert not any(p.requires_grad for p in net.parameters())
        return
    lengths = torch.tensor([16000, 16000, 12000, 9000])
    net.loss(noise(4, 16000), lengths, some_labels(net, lengths)).backward()
    dead = [
        n for n, p in net.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
    assert not dead


@each_case
def test_less_than_a_frame_is_refused(case):
    for n in (0, 399) if hasattr(model(case), "front") and not case.startswith("frame_lcnn") else (0,):
        with pytest.raises(ValueError, match="samples"):
            model(case)(noise(1, 5000), torch.tensor([n]))


@each_case
def test_a_minute_runs_in_bounded_memory(case):  # pitfalls 42, 46
    sizes = []
    for seconds in (15, 60):
        n = 16000 * seconds
        with torch.no_grad(), Largest() as seen:
            assert torch.isfinite(model(case)(noise(1, n), torch.tensor([n]))[0]).all()
        sizes.append(seen.megabytes)
    assert sizes[1] <= 200 and sizes[1] <= 4.4 * sizes[0]


@each_case
def test_save_and_load_keep_scores_and_prior(case, tmp_path):
    net = fresh(case).eval()
    net.log_prior_odds.fill_(-1.5)
    back = load_model(save_model(net, tmp_path))
    wave = noise(2, 9000)
    lengths = torch.tensor([9000, 5000])
    with torch.no_grad():
        assert torch.equal(back.score(back(wave, lengths)[0]), net.score(net(wave, lengths)[0]))
    assert back.config == net.config and not back.training and back.log_prior_odds == -1.5


@each_case
def test_a_later_sound_moves_the_output_by_whole_frames(case):  # pitfall 26
    net = model(case)
    total = 48000
    sound = noise(8000, seed=3)
    shift = net.step * round(8000 / net.step)
    wave = torch.zeros(2, total)
    wave[0, 16000:24000] = sound
    wave[1, 16000 + shift : 24000 + shift] = sound
    with torch.no_grad():
        vectors, _ = net.frame_embed(wave, torch.tensor([total, total]))
    first = 16000 // net.step
    last = -(-24000 // net.step)
    moved = vectors[1, first + shift // net.step : last + shift // net.step]
    spread = vectors[0, first:last].std()
    if case in NO_SHIFT:
        stayed = vectors[1, first:last]
        assert (moved - vectors[0, first:last]).abs().mean() < 0.5 * (stayed - vectors[0, first:last]).abs().mean()
    else:
        assert (moved - vectors[0, first:last]).abs().max() < REMEMBERS.get(case, 0.01) * spread


class AfterFront(torch.nn.Module):
    """Features to logits: what is exported (front ends check lengths by value, which no graph can hold)."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, feats, frames):
        return self.net.logits(*self.net.vectors(feats, frames))


# After the front end the network is the same; windows are cut by the values of the lengths, before any network.
each_network = pytest.mark.parametrize("case", [x for x in CASES if "/" not in x and x != "sliding_window"])


def after_front(case):
    lengths = torch.tensor([9000, 7000])
    with torch.no_grad():
        inputs = model(case).front(noise(2, 9000), lengths)
    return AfterFront(model(case)), inputs


@each_network
@pytest.mark.filterwarnings("ignore")  # torch's own, while it traces
def test_export(case):
    part, inputs = after_front(case)
    with torch.no_grad():
        if case in NO_GRAPH:
            with pytest.raises(TypeError, match="FakeTensor"):  # when it passes one day, take it off the list
                torch.export.export(part, inputs)
            return
        program = torch.export.export(part, inputs).module()
        assert torch.allclose(program(*inputs), part(*inputs), atol=1e-5)


@each_network
@pytest.mark.filterwarnings("ignore")
def test_compile(case):
    """Captured by torch.compile as one graph, and the graph (run by the eager backend) gives the same."""
    torch._dynamo.reset()
    part, inputs = after_front(case)
    with torch.no_grad():
        compiled = torch.compile(part, backend="eager", fullgraph=case not in NO_GRAPH)
        assert torch.allclose(compiled(*inputs), part(*inputs), atol=1e-5)
