"""What every registered detector must keep: a new one is tested here as soon as it is registered.

`SMALL` gives options that make a model quick or its training calm; all others are built with their defaults.
"""

import functools
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.features.ssl_files import SSL
from wedefense_nb.models.detector import DETECTORS, build, load_model, save_model

SMALL: dict[str, Any] = {
    "lcnn_lstm": {"dropout": 0.1},
    "resnet18": {"n_mels": 24},
    "resnet34": {"n_mels": 24},
    "res2net34": {"n_mels": 24},
    "ecapa": {"channels": 64, "context": True},
    "xvector": {"width": 64},
    "cam_plus_plus": {"n_mels": 24, "growth": 16},
    "wedefense_lcnn_lstm": {"dropout": 0.1},
    "rawnet2": {"hidden": 64},
    "rawnet2_2019": {"hidden": 64},
    "committee": {
        "members": [
            {"name": "bands", "n_mels": 24, "head": "focal"},
            {"name": "lcnn_lstm", "feature": "pulse_coherence", "dropout": 0.1},
        ]
    },
} | SSL
ZOO = list(DETECTORS)
each_model = pytest.mark.parametrize("name", ZOO)

# torch.export of what follows the front end, and why it does not work where it does not.
PACKED = "pack_padded_sequence sorts by lengths and needs their values"
NO_EXPORT = {name: PACKED for name in ("lcnn_lstm", "wedefense_lcnn_lstm", "rawnet2", "rawnet2_2019")}
NO_EXPORT["committee"] = "each member's front end checks lengths by their values"
MEETS_VALUES = {"committee"}  # torch stops there in its own words


# The same names for torch.compile in one graph; in several graphs they compile too.
NO_GRAPH = NO_EXPORT

# Largest tensor of 60 s in MB where it is more than 200: AASIST's maps, 32 channels of 24 bands at 5333 steps/s.
LARGEST_MB = {"aasist": 1000, "aasist_l": 1000}


def fresh(name):
    torch.manual_seed(0)
    return build(name, **SMALL.get(name, {}))


@functools.cache
def model(name):
    return fresh(name).eval()


def noise(*shape, seed=0):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def runs(name, n):
    """Does a recording of n samples pass? Only a ValueError counts as a refusal."""
    try:
        with torch.no_grad():
            model(name)(noise(1, n), torch.tensor([n]))
    except ValueError:
        return False
    return True


@functools.cache
def shortest(name):
    """Samples of the shortest recording that passes: one frame."""
    low, high = 0, 4000
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if runs(name, middle) else (middle, high)
    return high


@each_model
def test_padding_and_neighbours_never_change_a_score(name):
    lengths = torch.tensor([24000, 11111, shortest(name) + 1300, shortest(name)])
    wave = noise(4, 30000)  # beyond the lengths lies noise, not zeros
    with torch.no_grad():
        together = model(name)(wave, lengths)
        alone = [model(name)(wave[i : i + 1, :n], lengths[i : i + 1]) for i, n in enumerate(lengths.tolist())]
        turned = model(name)(wave.flip(0), lengths.flip(0)).flip(0)
    assert together.shape == (4, 2)
    assert torch.allclose(together, torch.cat(alone), atol=1e-4) and torch.allclose(together, turned, atol=1e-4)


@each_model
def test_padding_never_changes_training(name):
    """The same loss with more padding, dropout off: norms and pooling leave padding out in training too."""
    net = fresh(name).train()
    for part in net.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
        if isinstance(part, torch.nn.MultiheadAttention):
            part.dropout = 0.0
    n = shortest(name)
    wave = noise(3, 12000)
    lengths = torch.tensor([12000, 7000, n + 1500])
    labels = torch.tensor([0, 1, 0])
    padded = torch.nn.functional.pad(wave, (0, 4321), value=0.3)
    assert torch.allclose(net.loss(wave, lengths, labels), net.loss(padded, lengths, labels), atol=1e-4)


@each_model
def test_shapes(name):
    wave = noise(2, 9000)
    lengths = torch.tensor([9000, 7000])
    with torch.no_grad():
        embedding = model(name).embed(wave, lengths)
        logits = model(name)(wave, lengths)
    assert embedding.ndim == 2 and len(embedding) == 2
    assert torch.equal(model(name).head(embedding), logits) and model(name).score(logits).shape == (2,)
    loss = model(name).loss(wave, lengths, torch.tensor([0, 1]))
    assert loss.ndim == 0 and loss > 0


@each_model
def test_eval_is_deterministic_and_silence_is_finite(name):
    with torch.no_grad():
        assert torch.equal(*(model(name)(noise(1, 8000), torch.tensor([8000])) for _ in range(2)))
        silence = model(name)(torch.zeros(2, 8000), torch.tensor([8000, 5000]))
        loud = model(name)(torch.ones(1, 8000), torch.tensor([8000]))
    assert torch.isfinite(silence).all() and torch.isfinite(loud).all()


@each_model
def test_short_recordings_are_finite_in_training_too(name):  # pitfall 43
    net = fresh(name).train()
    for n in (shortest(name), shortest(name) + 400, 5000):
        assert torch.isfinite(net.loss(noise(2, n), torch.tensor([n, n]), torch.tensor([0, 1])))


@each_model
def test_a_batch_of_one_recording_trains(name):  # the last batch of an epoch may be that small
    net = fresh(name).train()
    for n in (8000, shortest(name)):
        loss = net.loss(noise(1, n), torch.tensor([n]), torch.tensor([1]))
        loss.backward()
        assert torch.isfinite(loss)


@each_model
def test_gradient_reaches_every_parameter(name):  # pitfall 40
    net = fresh(name).train()
    lengths = torch.tensor([16000, 16000, 12000, 9000])
    net.loss(noise(4, 16000), lengths, torch.tensor([0, 1, 0, 1])).backward()
    dead = [
        n for n, p in net.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
    assert not dead


@each_model
def test_less_than_a_frame_is_refused(name):
    for n in (0, shortest(name) - 1):
        with pytest.raises(ValueError, match="samples"):
            model(name)(noise(1, 5000), torch.tensor([n]))
    assert shortest(name) <= 1100


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.megabytes = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [x.untyped_storage().nbytes() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.megabytes = max([self.megabytes, *(size / 1e6 for size in sizes)])
        return out


def largest_tensor(net, seconds):
    n = 16000 * seconds
    with torch.no_grad(), Largest() as seen:
        assert torch.isfinite(net(noise(1, n), torch.tensor([n]))).all()
    return seen.megabytes


@each_model
def test_a_minute_runs_in_bounded_memory(name):  # pitfalls 42, 46
    """No tensor beyond a stated size, and none that grows faster than the recording (a square: 16 times)."""
    short = largest_tensor(model(name), 15)
    long = largest_tensor(model(name), 60)
    assert long <= LARGEST_MB.get(name, 200) and long <= 4.4 * short


def test_a_tensor_that_grows_with_the_square_is_seen():
    class Pairs(torch.nn.Module):
        def forward(self, wave, lengths):
            x = wave[:, ::400]
            return (x[:, None] * x[:, :, None]).sum((1, 2))

    assert largest_tensor(Pairs(), 60) > 4.4 * largest_tensor(Pairs(), 15)


@each_model
def test_save_and_load_keep_scores_and_prior(name, tmp_path):
    net = fresh(name).eval()
    net.log_prior_odds.fill_(-1.5)
    back = load_model(save_model(net, tmp_path))
    wave = noise(2, 9000)
    lengths = torch.tensor([9000, 5000])
    with torch.no_grad():
        assert torch.equal(back.score(back(wave, lengths)), net.score(net(wave, lengths)))
    assert back.config == net.config and not back.training


class AfterFront(torch.nn.Module):
    """Features to logits: what is exported (front ends check lengths by value, which no graph can hold)."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, feats, frames):
        return self.net.head(self.net.embedding(self.net.pool(*self.net.backbone(feats, frames))))


@each_model
@pytest.mark.filterwarnings("ignore")  # torch's own, while it traces
def test_export(name):
    part = AfterFront(model(name))
    lengths = torch.tensor([9000, 7000])
    with torch.no_grad():
        inputs = model(name).front(noise(2, 9000), lengths)
        if name in NO_EXPORT:
            kind, why = (RuntimeError, "data-dependent") if name in MEETS_VALUES else (TypeError, "FakeTensor")
            with pytest.raises(kind, match=why):  # when it passes one day, take the name off the list
                torch.export.export(part, inputs)
            return
        program = torch.export.export(part, inputs).module()
        assert torch.allclose(program(*inputs), part(*inputs), atol=1e-5)


@each_model
@pytest.mark.filterwarnings("ignore")
def test_compile(name):
    """Captured by torch.compile as one graph, and the graph (run by the eager backend) gives the same."""
    torch._dynamo.reset()
    part = AfterFront(model(name))
    with torch.no_grad():
        inputs = model(name).front(noise(2, 9000), torch.tensor([9000, 7000]))
        if name in NO_GRAPH:
            exc = torch._dynamo.exc
            with pytest.raises(exc.UserError if name in MEETS_VALUES else exc.Unsupported):
                torch.compile(part, backend="eager", fullgraph=True)(*inputs)
        compiled = torch.compile(part, backend="eager", fullgraph=name not in NO_GRAPH)
        assert torch.allclose(compiled(*inputs), part(*inputs), atol=1e-5)
