"""The frame that all detectors share, and values of the convolutional ones."""

import pytest
import torch

from wedefense_nb.features.spectra import Fbank
from wedefense_nb.models.cnn import LCNN, ResNet, mfm
from wedefense_nb.models.detector import DETECTORS, Detector, build, load_model, register, save_model
from wedefense_nb.models.layers import MaskedBatchNorm, MeanPool, StatsPool
from wedefense_nb.models.shapes import shapes


def size(module):
    return sum(p.numel() for p in module.parameters())


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
    model = build("bands")
    z = torch.tensor([[1.0, 3.0], [0.0, -2.0]])
    model.log_prior_odds.fill_(0.5)
    assert model.score(z).tolist() == [1.5, -2.5]
    assert torch.allclose(model.score(z + 7.0), model.score(z))


def test_building_checks_names_and_options():
    with pytest.raises(ValueError, match="unknown detector 'nope'.*lcnn_lstm"):
        build("nope")
    with pytest.raises(ValueError, match="unknown option of lcnn_lstm 'dropuot': did you mean 'dropout'"):
        build("lcnn_lstm", dropuot=0.1)


def test_ones_own_detector_can_be_registered(lent):
    lent(DETECTORS)

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


def test_the_parts_add_up():
    model = build("lcnn_lstm").train()
    table = shapes(model, 3.0, layers=False)
    assert (
        table.parameters["total"]
        == size(model)
        == table.parameters[["front", "backbone", "embedding", "head"]].sum()
    )
    assert table.loc["front", "output"] == "301 × 60" and model.training


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
    ours = MaskedBatchNorm(3)
    plain = torch.nn.BatchNorm2d(3)
    real = torch.randn(2, 3, 5, 4, requires_grad=True)
    padded = torch.nn.functional.pad(real.detach(), (0, 0, 0, 7), value=9.0).requires_grad_()
    mask = (torch.arange(12) < 5)[None, None, :, None]
    a = ours(padded, mask)
    b = plain(real)
    assert torch.allclose(a[:, :, :5], b, atol=1e-5) and a[:, :, 5:].abs().sum() == 0
    assert torch.allclose(ours.running_mean, plain.running_mean) and torch.allclose(
        ours.running_var, plain.running_var
    )
    a.square().sum().backward(), b.square().sum().backward()
    assert torch.allclose(padded.grad[:, :, :5], real.grad, atol=1e-5) and padded.grad[:, :, 5:].abs().sum() == 0


@pytest.mark.parametrize("pool", [MeanPool(), StatsPool()])
def test_pooling_ignores_padding_and_is_finite_for_one_frame(pool):
    x = torch.randn(2, 6, 5)
    x[1, 1:] = float("nan")  # padding may hold anything
    out = pool(x, torch.tensor([6, 1]))
    assert torch.isfinite(out).all() and out.shape[1] == pool.out_dim(5)
    assert torch.allclose(out[1:, :5], x[1:, 0])
