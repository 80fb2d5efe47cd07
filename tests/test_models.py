"""Properties that every registered detector must have, and values of single ones."""

import pytest
import torch

from wedefense_nb.detector import (
    Detector,
    MaskedBatchNorm,
    MeanPool,
    StatsPool,
    build,
    load_model,
    names,
    register,
    save_model,
    summary,
)
from wedefense_nb.features import Fbank
from wedefense_nb.models.cnn import LCNN, ResNet, mfm

from .ssl_files import SSL

SMALL = {"lcnn_lstm": {"dropout": 0.1}, "resnet18": {"n_mels": 24}, "bands": {}} | SSL
MODELS = {name: build(name, **SMALL.get(name, {})).eval() for name in names()}


def noise(*shape, seed=0):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def size(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_padding_and_neighbours_never_change_a_score(name):
    model, lengths = MODELS[name], torch.tensor([24000, 11111, 2000, 700])
    wave = noise(4, 30000)  # beyond the lengths lies noise, not zeros
    with torch.no_grad():
        together = model(wave, lengths)
        alone = torch.cat([model(wave[i : i + 1, :n], lengths[i : i + 1]) for i, n in enumerate(lengths.tolist())])
    assert together.shape == (4, 2) and torch.allclose(together, alone, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_eval_is_deterministic_and_silence_is_finite(name):
    with torch.no_grad():
        assert torch.equal(*(MODELS[name](noise(1, 8000), torch.tensor([8000])) for _ in range(2)))
        assert torch.isfinite(MODELS[name](torch.zeros(1, 8000), torch.tensor([8000]))).all()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("n", [400, 800, 1600, 5000])
def test_short_recordings_are_finite_in_training_too(name, n):  # pitfall 43
    model = MODELS[name].train()
    loss = model(noise(2, n), torch.tensor([n, n]), torch.tensor([0, 1]))
    model.eval()
    assert torch.isfinite(loss)


@pytest.mark.parametrize("name", MODELS)
def test_gradient_reaches_every_parameter(name):  # pitfall 40
    model = build(name, **SMALL.get(name, {})).train()
    model(noise(4, 16000), torch.tensor([16000, 16000, 12000, 9000]), torch.tensor([0, 1, 0, 1])).backward()
    dead = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)]
    assert not dead


@pytest.mark.parametrize("name", MODELS)
def test_less_than_a_frame_is_refused(name):
    with pytest.raises(ValueError):
        MODELS[name](noise(1, 1000), torch.tensor([0]))


@pytest.mark.parametrize("name", MODELS)
def test_a_minute_runs(name):
    with torch.no_grad():
        assert torch.isfinite(MODELS[name](noise(1, 16000 * 60), torch.tensor([16000 * 60]))).all()


@pytest.mark.parametrize("name", MODELS)
def test_save_and_load_keep_scores_and_prior(name, tmp_path):
    model = build(name, **SMALL.get(name, {})).eval()
    model.log_prior_odds.fill_(-1.5)
    back = load_model(save_model(model, tmp_path))
    wave, lengths = noise(2, 9000), torch.tensor([9000, 5000])
    with torch.no_grad():
        assert torch.equal(back.score(back(wave, lengths)), model.score(model(wave, lengths)))
    assert back.config == model.config and not back.training


def test_wrong_weights_do_not_load_silently(tmp_path):  # pitfall 45
    save_model(build("bands", n_mels=40), tmp_path)
    (tmp_path / "config.yaml").write_text("name: bands\nn_mels: 80\nembed_dim: 32\n")
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="is this a model folder"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match="not made by build"):
        save_model(Detector(Fbank(), build("bands").backbone, StatsPool(), 4), tmp_path)


def test_score_is_the_difference_without_the_prior():  # pitfall 3
    model, z = build("bands"), torch.tensor([[1.0, 3.0], [0.0, -2.0]])
    model.log_prior_odds.fill_(0.5)
    assert model.score(z).tolist() == [1.5, -2.5]
    assert torch.allclose(model.score(z + 7.0), model.score(z))


def test_building_checks_names_and_options():
    with pytest.raises(ValueError, match="unknown detector 'nope'.*lcnn_lstm"):
        build("nope")
    with pytest.raises(ValueError, match="no option.*dropuot.*dropout"):
        build("lcnn_lstm", dropuot=0.1)


def test_ones_own_detector_can_be_registered():
    @register("test_only")
    def mine(n_mels: int = 20) -> Detector:
        return Detector(Fbank(n_mels), build("bands", n_mels=n_mels).backbone, MeanPool(), 4)

    assert build("test_only", n_mels=24).config == {"name": "test_only", "n_mels": 24}


def test_published_parameter_counts():
    def before_head(model):
        return size(model) - size(model.head)

    assert before_head(build("lcnn_lstm")) == 275_840
    assert before_head(build("lcnn_lstm", feature="fbank", pool="stats", embed_dim=256)) == 549_440
    assert before_head(build("resnet18")) == 4_105_440
    assert before_head(Detector(Fbank(), ResNet(80, (3, 4, 6, 3)), StatsPool(), 256)) == 6_634_336


def test_summary_adds_up():
    table = summary(build("lcnn_lstm"))
    assert table.parameters["total"] == size(build("lcnn_lstm")) and table.loc["front", "output"] == "301 × 60"


def test_output_steps():
    frames = torch.tensor([301, 15, 16, 47])
    x, n = LCNN(60).eval()(torch.randn(4, 301, 60), frames)
    assert n.tolist() == [18, 1, 1, 2] and x.shape == (4, 18, 96)
    x, n = ResNet(80).eval()(torch.randn(4, 301, 80), frames)
    assert n.tolist() == [38, 2, 2, 6] and x.shape == (4, 38, 2560)
    assert mfm(torch.tensor([1.0, 5.0, 3.0, 2.0]).view(1, 4, 1, 1)).flatten().tolist() == [3, 5]
    with pytest.raises(ValueError, match="at least 16"):
        LCNN(12)


def test_masked_batch_norm_trains_as_if_there_were_no_padding():  # pitfall 57
    ours, plain = MaskedBatchNorm(3), torch.nn.BatchNorm2d(3)
    real = torch.randn(2, 3, 5, 4, requires_grad=True)
    padded = torch.nn.functional.pad(real.detach(), (0, 0, 0, 7), value=9.0).requires_grad_()
    mask = (torch.arange(12) < 5)[None, None, :, None]
    a, b = ours(padded, mask), plain(real)
    assert torch.allclose(a[:, :, :5], b, atol=1e-5) and a[:, :, 5:].abs().sum() == 0
    assert torch.allclose(ours.running_mean, plain.running_mean) and torch.allclose(ours.running_var, plain.running_var)
    a.square().sum().backward(), b.square().sum().backward()
    assert torch.allclose(padded.grad[:, :, :5], real.grad, atol=1e-5) and padded.grad[:, :, 5:].abs().sum() == 0


@pytest.mark.parametrize("pool", [MeanPool(), StatsPool()])
def test_pooling_ignores_padding_and_is_finite_for_one_frame(pool):
    x = torch.randn(2, 6, 5)
    x[1, 1:] = float("nan")  # padding may hold anything
    out = pool(x, torch.tensor([6, 1]))
    assert torch.isfinite(out).all() and out.shape[1] == pool.out_dim(5)
    assert torch.allclose(out[1:, :5], x[1:, 0])
