"""Statistics of features over short windows, against plain loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wedefense_nb.features.spectra import make_front
from wedefense_nb.models.detector import build, load_model, save_model
from wedefense_nb.models.layers import Identity, StatsPool
from wedefense_nb.models.statistics import EARS, MotionPool, WindowedDetector, statistics
from wedefense_nb.registry import UnknownName


def noise(*shape, seed=0):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(**options):
    torch.manual_seed(0)
    model = build("statistics", **options).eval()
    norm = model.embedding[0]
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    torch.nn.init.normal_(model.head.out.weight)  # verdicts that differ from window to window
    return model


def test_motion_pool_against_a_loop():
    x = noise(3, 7, 4)
    frames = torch.tensor([7, 3, 1])
    pooled = MotionPool()(x, frames)
    for row, n in enumerate(frames.tolist()):
        own = x[row, :n]
        change = torch.zeros(4)
        for i in range(1, n):
            change += (own[i] - own[i - 1]).abs() / (n - 1)
        expected = torch.cat([own.mean(0), (own.var(0, correction=0) + 1e-7).sqrt(), change])
        assert torch.allclose(pooled[row], expected, atol=1e-6)
    assert MotionPool().out_dim(4) == pooled.shape[1]


def test_only_the_change_sees_the_order():
    x = noise(1, 50, 3)
    shuffled = x[:, torch.randperm(50, generator=torch.Generator().manual_seed(0))]
    first, second = (MotionPool()(part, torch.tensor([50]))[0] for part in (x, shuffled))
    assert torch.allclose(first[:6], second[:6], atol=1e-6)
    assert (first[6:] - second[6:]).abs().min() > 1e-3


def plain(window, hop):
    return WindowedDetector(make_front("fbank"), Identity(80), StatsPool(), 4, window, hop, 0.3)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12), st.integers(0, 20))
def test_windows_cover_every_frame_and_no_padding(n, window, hop, padding):
    hop = min(hop, window)
    x = torch.arange(1.0, n + padding + 1)[None, :, None].repeat(1, 1, 2)
    x[:, n:] = -1.0
    parts, sizes = plain(window, hop).windows(x, torch.tensor([n]))
    expected = []
    start = 0
    while True:
        expected.append(list(range(start + 1, min(start + window, n) + 1)))
        if start + window >= n:
            break
        start += hop
    heard = [parts[0, i, :size, 0].int().tolist() for i, size in enumerate(sizes[0].tolist()) if size]
    assert heard == expected
    assert set(sum(heard, [])) == set(range(1, n + 1))


def literal(model, wave):
    """The log-odds of one recording (T,), window by window."""
    x, frames = model.front(wave[None], torch.tensor([len(wave)]))
    x = x[0, : int(frames[0])]
    embeddings = []
    start = 0
    while True:
        part = x[start : start + model.window]
        embeddings.append(model.embedding(model.pool(part[None], torch.tensor([len(part)])))[0])
        if start + model.window >= len(x):
            break
        start += model.hop
    logits = [model.head(e[None])[0] for e in embeddings]
    log_odds = [float(z[1] - z[0]) for z in logits]
    weights = [torch.exp(torch.tensor(-model.sharpness * (s - min(log_odds)))) for s in log_odds]
    mean = sum(w * e for w, e in zip(weights, embeddings, strict=True)) / sum(weights)
    return model.head(mean[None])[0], log_odds


@pytest.mark.parametrize("sharpness", [0.0, 0.3, 3.0])
@torch.no_grad()
def test_the_detector_is_the_loop(sharpness):
    model = seeded(sharpness=sharpness)
    wave = noise(2, 30000)
    lengths = torch.tensor([30000, 13333])
    together = model(wave, lengths)
    for row, n in enumerate(lengths.tolist()):
        assert torch.allclose(together[row], literal(model, wave[row, :n])[0], atol=1e-4)


@torch.no_grad()
def test_sharpness_goes_from_the_mean_to_the_worst_window():
    wave = noise(1, 40000)
    wave[:, 20000:26000] *= torch.linspace(1, 30, 6000)
    verdicts = {}
    for sharpness in (0.0, 0.5, 1000.0):
        model = seeded(sharpness=sharpness, head="softmax")  # a linear one
        logits = model(wave, torch.tensor([40000]))[0]
        verdicts[sharpness] = float(logits[1] - logits[0])
    _, log_odds = literal(model, wave[0])
    assert verdicts[0.0] == pytest.approx(sum(log_odds) / len(log_odds), abs=1e-3)
    assert verdicts[1000.0] == pytest.approx(min(log_odds), abs=1e-3)
    assert min(log_odds) < verdicts[0.5] < verdicts[0.0]


def test_windows_that_only_pad_do_not_reach_the_norm():
    model = build("statistics", dropout=0.0).train()
    wave = noise(2, 30000)
    lengths = torch.tensor([30000, 9000])
    model(wave, lengths)
    rows = []
    for row, n in enumerate(lengths.tolist()):
        x, frames = model.front(wave[row : row + 1, :n], lengths[row : row + 1])
        parts, sizes = model.windows(x, frames)
        rows += [
            model.pool(part[None, :size], size[None])[0]
            for part, size in zip(parts[0], sizes[0], strict=True)
            if size
        ]
    assert torch.allclose(model.embedding[0].running_mean, 0.1 * torch.stack(rows).mean(0), atol=1e-4)


def test_blame_goes_to_the_worst_windows():
    """In a fake, the gradient of the loss is largest at the windows that look most fake."""
    model = seeded(sharpness=2.0)
    wave = noise(1, 40000)
    kept = {}
    model.embedding.register_forward_hook(lambda _, __, out: kept.update(e=out) or out.retain_grad())
    model.loss(wave, torch.tensor([40000]), torch.tensor([0])).backward()
    logits = model.head(kept["e"])
    log_odds = logits[:, 1] - logits[:, 0]
    real = model.windows(*model.front(wave, torch.tensor([40000])))[1][0] > 0
    pull = kept["e"].grad.norm(dim=1)
    assert (pull[~real] == 0).all()
    assert pull[real].argmax() == log_odds[real].argmin()


def test_options_and_refusals(tmp_path):
    assert [ear["name"] for ear in EARS] == [
        "lfcc",
        "pulse_coherence",
        "group_delay",
        "instantaneous_frequency",
        "relative_phase",
    ]
    one = build("statistics", front="pulse_coherence", window=0.3, hop=0.05, width=16)
    assert (one.window, one.hop, one.pool.out_dim(one.front.dim)) == (30, 5, 87)
    half = build("statistics", front="group_delay", window=0.3, hop=0.1)
    assert half.front.hop == 80 and (half.window, half.hop) == (60, 20)
    with pytest.raises(ValueError, match="no gaps between them"):
        statistics(window=0.1, hop=0.2)
    with pytest.raises(ValueError, match="need frames"):
        statistics(window=0.0, hop=0.0)
    with pytest.raises(ValueError, match="sharpness is nan"):
        statistics(sharpness=float("nan"))
    with pytest.raises(UnknownName, match="front end"):
        statistics(front="ear")
    model = seeded()
    back = load_model(save_model(model, tmp_path)).eval()
    wave = noise(1, 16000)
    assert torch.equal(back(wave, torch.tensor([16000])), model(wave, torch.tensor([16000])))
    assert (back.window, back.hop, back.sharpness) == (50, 10, 0.3)
