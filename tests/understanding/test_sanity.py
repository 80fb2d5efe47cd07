"""Models forget from the output down, curves follow the map, and what never asks a model fails."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from wedefense_nb.features.spectra import Fbank
from wedefense_nb.metrics import mean_interval
from wedefense_nb.models.cnn import ResNet
from wedefense_nb.models.detector import Detector
from wedefense_nb.models.layers import MeanPool
from wedefense_nb.understanding.attribution import Attribution, Tiles, attribute
from wedefense_nb.understanding.sanity import (
    curve_gap,
    evidence_curves,
    randomisation_test,
    randomised,
    rank_correlation,
    sanity_report,
    stability,
)


class Louder(nn.Module):
    """Evidence for a fake: the level of the samples from 0.2 to 0.3 s, in dB, once the weight says so."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, wave, lengths):
        level = 10 * (wave[:, 3200:4800].square().mean(1) + 1e-10).log10()
        return torch.stack([self.weight * level, torch.zeros_like(level)], 1)

    def score(self, logits):
        return logits[:, 1] - logits[:, 0]


@pytest.fixture(scope="module")
def wave():
    return (0.1 * np.random.default_rng(0).normal(size=8000)).astype(np.float32)


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return Detector(Fbank(16, mean_norm=True), ResNet(16, (1, 1, 1, 1)), MeanPool(), embed_dim=8).eval()


@pytest.mark.parametrize("seed", range(5))
def test_rank_correlation_is_scipys_with_ties_and_any_shape(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 6, size=(2, 5, 8))
    want = spearmanr(first.ravel(), second.ravel()).statistic
    assert rank_correlation(first.ravel(), second.ravel()) == pytest.approx(want)
    assert rank_correlation(first, second) == pytest.approx(want)


def test_flat_maps_rank_nothing_and_shapes_must_agree():
    assert rank_correlation(np.ones(4), np.arange(4)) == 0 == rank_correlation(np.arange(4), np.ones(4))
    with pytest.raises(ValueError, match=r"\(4,\) and \(5,\)"):
        rank_correlation(np.ones(4), np.ones(5))


def test_models_forget_one_part_after_another_from_the_output(resnet):
    before = {name: value.clone() for name, value in resnet.state_dict().items()}
    forgotten = []
    for name, stage in randomised(resnet):
        forgotten.append(name)
        for weight, value in stage.state_dict().items():
            if weight not in dict(resnet.named_parameters()):
                continue
            lost = weight.rpartition(".")[0] in forgotten and bool(before[weight].any())
            assert torch.equal(value, before[weight]) != lost, (name, weight)
            if lost and value.numel() > 100:
                assert float(value.square().mean()) == pytest.approx(
                    float(before[weight].square().mean()), rel=0.5
                )
    assert forgotten[:2] == ["head.out", "embedding"] and forgotten[-1].startswith("backbone")
    assert forgotten.index("backbone.blocks.3.conv2") < forgotten.index("backbone.blocks.0.conv1")
    assert all(torch.equal(before[name], value) for name, value in resnet.state_dict().items())
    first, again, other = (next(iter(randomised(resnet, seed)))[1].head.out.weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_what_never_asks_the_model_fails_and_what_asks_it_changes(resnet, wave):
    waves = {"a": wave, "b": wave[::-1].copy()}
    energy = randomisation_test(resnet, waves, "energy", n=20)
    assert (energy.correlation == 1).all() and (energy.low == 1).all()
    found = randomisation_test(resnet, waves, "gradcam", n=20)
    assert found.layer.tolist() == energy.layer.tolist() and found.correlation.iloc[-1] < 0.7
    with pytest.raises(ValueError, match="no recordings"):
        randomisation_test(resnet, {}, "energy")


def test_curves_are_the_evidence_of_what_is_left(wave):
    model = Louder()
    values = np.array([1.0, 0.0, 5.0, -1.0, 2.0])
    found = Attribution(values, np.linspace(0, 0.5, 6))
    curves = evidence_curves(model, wave, found, steps=5, at_once=2)
    tiles = Tiles(torch.from_numpy(wave), found.edges)
    order = [2, 4, 0, 1, 3]
    for k, row in curves.iterrows():
        kept = torch.zeros(1, 5, 1)
        kept[0, order[:k]] = 1
        for name, volume in (("insertion", kept), ("deletion", 1 - kept)):
            with torch.no_grad():
                want = -model.score(model(tiles.waves(volume), None))
            assert row[name] == pytest.approx(float(want), abs=1e-3)
        assert row.share == pytest.approx(k / 5)
    assert curves.insertion[1] == pytest.approx(curves.insertion[5], abs=1)  # the third tile is all it hears
    assert curves.deletion[1] < curves.deletion[0] - 15
    assert curve_gap(curves) > 15 and curve_gap(evidence_curves(model, wave, _turned(found))) < -15


def _turned(found):
    return Attribution(-found.values, found.edges, found.hz)


def test_curves_of_bands_and_of_maps_without_hz(wave, resnet):
    both = attribute(resnet, wave, "saliency", tile=0.25, bands=2)
    curves = evidence_curves(resnet, wave, both, steps=4)
    assert curves.deletion[0] == pytest.approx(curves.insertion[4]) == pytest.approx(both.evidence, abs=1e-4)
    assert curves.deletion[4] == pytest.approx(both.silence, abs=1e-4)
    inside = attribute(resnet, wave, "gradcam", layer="backbone.blocks.3")
    summed = Attribution(inside.time, inside.edges)
    pd.testing.assert_frame_equal(evidence_curves(resnet, wave, inside), evidence_curves(resnet, wave, summed))
    with pytest.raises(ValueError, match="at least one step"):
        evidence_curves(resnet, wave, both, steps=0)


def test_the_model_keeps_its_mode(wave):
    model = Louder().train()
    evidence_curves(model, wave, Attribution(np.ones(2), np.array([0, 0.25, 0.5])))
    assert model.training


def test_noise_that_is_loud_changes_more_than_noise_that_is_not(wave, resnet):
    soft = stability(resnet, wave, "saliency", {"tile": 0.1}, snr_db=80)
    loud = stability(resnet, wave, "saliency", {"tile": 0.1}, snr_db=-10)
    assert soft > 0.95 > loud
    assert stability(resnet, wave, "energy", snr_db=90, draws=1) > 0.99
    assert stability(resnet, wave, "random") < 0.6
    with pytest.raises(ValueError, match="at least one draw"):
        stability(resnet, wave, "energy", draws=0)


def test_the_level_of_the_noise_is_as_told(wave):
    heard = []

    class Ear(Louder):
        def forward(self, x, lengths):
            heard.append(x[0].detach().numpy())
            return super().forward(x, lengths)

    stability(Ear(), wave, "occlusion", {"tile": None}, snr_db=20, draws=1)
    noise = next(x for x in heard if x.std() > 0.05 and np.abs(x - wave).max() > 0.01) - wave
    assert 20 * np.log10(wave.std() / noise.std()) == pytest.approx(20, abs=0.3)


def test_the_report_puts_the_three_tests_together(wave, resnet):
    waves = {"a": wave, "b": wave[::-1].copy()}
    report = sanity_report(resnet, waves, {"occlusion": {"tile": 0.1}, "energy": {}}, n=20)
    value = report.set_index(["method", "test"]).value
    assert value["energy", "forgotten"] == 1 and value["energy", "stable"] > 0.99
    *_, (_, forgetful) = randomised(resnet)
    maps = [[attribute(m, x, "occlusion", tile=0.1) for m in (resnet, forgetful)] for x in waves.values()]
    alike = [rank_correlation(own.values, other.values) for own, other in maps]
    assert value["occlusion", "forgotten"] == pytest.approx(mean_interval(alike, n=20).value)
    gaps = [curve_gap(evidence_curves(resnet, x, own)) for x, (own, _) in zip(waves.values(), maps, strict=True)]
    assert value["occlusion", "gap"] == pytest.approx(np.mean(gaps), abs=1e-6) and np.mean(gaps) > 0
    assert report.test.tolist() == 2 * ["forgotten", "gap", "stable"]
    with pytest.raises(ValueError, match="no recordings"):
        sanity_report(resnet, {}, {"energy": {}})
