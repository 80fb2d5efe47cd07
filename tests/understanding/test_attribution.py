"""Planted evidence is found by every method, sums are complete, padding and the model stay untouched."""

from dataclasses import asdict

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

from wedefense_nb.features.pretrained import TINY
from wedefense_nb.features.spectra import Fbank
from wedefense_nb.localization.localizers import AsDetector
from wedefense_nb.models.detector import Detector, build
from wedefense_nb.models.layers import MeanPool
from wedefense_nb.understanding.attribution import (
    ATTRIBUTIONS,
    Attribution,
    Tiles,
    attribute,
    layers,
    plot_attribution,
    spoof_evidence,
)

FOUR = ["gradcam", "integrated_gradients", "occlusion", "saliency"]


@pytest.fixture(scope="module")
def beep():
    """A second of noise with a tone of 6 kHz from 0.6 to 0.8 s."""
    rng = np.random.default_rng(0)
    wave = 0.01 * rng.normal(size=16000)
    at = np.arange(9600, 12800)
    wave[at] += 0.3 * np.sin(2 * np.pi * 6000 / 16000 * at)
    return wave.astype(np.float32)


class Above(nn.Module):
    """What exceeds a threshold, of a few bands."""

    dim = 1

    def __init__(self, threshold: float):
        super().__init__()
        self.threshold = threshold

    def forward(self, feats, frames):
        return torch.relu(feats[..., 33:37] - self.threshold).sum(2, keepdim=True), frames


@pytest.fixture(scope="module")
def hears_beeps(beep):
    """A detector that calls loud upper bands fake: known evidence."""
    front = Fbank(40)
    noise = float(front(torch.from_numpy(beep[:8000])[None], torch.tensor([8000]))[0][..., 33:37].mean())
    model = Detector(front, Above(noise + 2), MeanPool(), embed_dim=1)
    with torch.no_grad():
        for weights in [*model.embedding.parameters(), *model.head.parameters()]:
            weights.zero_()
        model.embedding.weight += 1.0
        model.head.out.weight[0] += 1.0
    return model.eval()


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    upstream = {"upstream": asdict(TINY), "layers": "all"}
    return {
        "lcnn": build("lcnn_lstm", feature="fbank", feature_options={"n_mels": 24}),
        "resnet": build("resnet18", n_mels=16, embed_dim=8),
        "aasist": build("aasist_l"),
        "mhfa": build("ssl_mhfa", heads=4, compress=8, embed_dim=16, **upstream),
        "sls": build("ssl_sls", **upstream),
        "windows": build("statistics"),
        "frames": build("frame_linear", front_options={"n_mels": 20}),
    }


@pytest.mark.parametrize("method", FOUR)
def test_planted_evidence_is_found_in_time(method, beep, hears_beeps):
    found = attribute(hears_beeps, beep, method).on_grid(0.1)
    assert set(np.argsort(found)[-2:]) == {6, 7}


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion", "saliency"])
def test_planted_evidence_is_found_in_frequency(method, beep, hears_beeps):
    found = attribute(hears_beeps, beep, method, tile=0.2, bands=8)
    assert found.values.shape == (5, 8) and found.hz[6] == 6000
    assert np.unravel_index(found.values.argmax(), (5, 8))[0] == 3
    assert found.values.argmax() % 8 in (5, 6)  # the tone lies on their common edge


@pytest.mark.parametrize(("tile", "bands", "shape"), [(None, 4, (1, 4)), (0.1, 1, (10, 1)), (0.3, 2, (3, 2))])
def test_occlusion_is_the_difference_that_a_tile_makes(tile, bands, shape, beep, hears_beeps):
    found = attribute(hears_beeps, beep, "occlusion", tile=tile, bands=bands, at_once=3)
    wave = torch.from_numpy(beep)
    tiles = Tiles(wave, found.edges, found.hz)
    length = torch.tensor([len(beep)])
    assert found.values.shape == shape
    for i, j in np.ndindex(shape):
        volume = torch.ones(1, *shape)
        volume[0, i, j] = 0
        with torch.no_grad():
            without = float(spoof_evidence(hears_beeps, tiles.waves(volume), length))
        assert found.values[i, j] == pytest.approx(found.evidence - without, abs=1e-4)


def test_occlusion_of_segments_cuts_where_it_is_told(beep, hears_beeps):
    found = attribute(hears_beeps, beep, "occlusion", segments=[0.6, 0.8])
    assert found.edges.tolist() == [0.0, 0.6, 0.8, 1.0] and found.values[:, 0].argmax() == 1


@pytest.mark.parametrize("name", ["lcnn", "resnet", "mhfa", "windows", "frames"])
def test_integrated_gradients_are_complete(name, models, beep):
    found = attribute(models[name], beep, "integrated_gradients", tile=0.1, bands=2, steps=32)
    span = found.evidence - found.silence
    assert found.values.sum() == pytest.approx(span, abs=0.02 + 0.05 * abs(span))
    assert found.evidence != pytest.approx(found.silence, abs=1e-7) or name == "resnet"  # its norm hides loudness


def test_gradcam_is_captums_where_both_can(models, beep):
    model = models["resnet"].eval()
    found = attribute(model, beep, "gradcam", layer="backbone.blocks.2.conv2", relu=False)
    lengths = torch.tensor([len(beep)])
    other = LayerGradCam(lambda wave: spoof_evidence(model, wave, lengths), model.backbone.blocks[2].conv2)
    want = other.attribute(torch.from_numpy(beep)[None])[0, 0].detach().numpy()
    assert found.values == pytest.approx(want.T, rel=1e-4, abs=1e-7)
    kept = attribute(model, beep, "gradcam", layer="backbone.blocks.2.conv2")
    assert kept.values == pytest.approx(np.maximum(found.values, 0), abs=1e-7)


def test_gradcam_of_features_is_mean_slope_times_feature(models, beep):
    model = models["mhfa"]
    found = attribute(model, beep, "gradcam", layer="front", relu=False)
    wave, lengths = torch.from_numpy(beep)[None], torch.tensor([len(beep)])
    feats, frames = model.front(wave, lengths)
    feats = feats.detach().requires_grad_()
    score = -model.score(model.head(model.embedding(model.pool(feats, frames))))
    slope = torch.autograd.grad(score.sum(), feats)[0]
    want = (feats * slope.mean(2, keepdim=True)).sum((1, 3))[0].detach().numpy()
    assert feats.shape[1:] == (3, 49, 32) and found.values == pytest.approx(want, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "layer"), [("lcnn", "backbone.blocks.2"), ("aasist", "backbone"), ("mhfa", "front")]
)
def test_heat_maps_are_as_long_as_the_layer_has_frames(name, layer, models, beep):  # pitfall 67
    model = models[name].eval()
    kept = []
    hook = dict(model.named_modules())[layer].register_forward_hook(lambda *args: kept.append(args[2]))
    with torch.no_grad():
        model(torch.from_numpy(beep)[None], torch.tensor([len(beep)]))
    hook.remove()
    found = attribute(model, beep, "gradcam", layer=layer)
    assert len(found.values) == int(kept[0][1][0]) and found.edges[-1] == 1.0


@pytest.mark.parametrize(
    ("name", "layer", "says"),
    [
        ("lcnn", "backbon", "did you mean 'backbone'"),
        ("lcnn", "pool", "no single axis of time"),
        ("lcnn", "backbone.dropout", None),
        ("mhfa", "head", "no single axis of time"),
    ],
)
def test_layers_without_time_are_refused(name, layer, says, models, beep):
    if says is None:
        assert attribute(models[name], beep, "gradcam", layer=layer).values.ndim == 2
        return
    with pytest.raises(ValueError, match=says):
        attribute(models[name], beep, "gradcam", layer=layer)
    assert "backbone" in layers(models[name])


@pytest.mark.parametrize("name", ["mhfa", "sls", "aasist", "windows"])
def test_attention_adds_up_to_one(name, models, beep):
    found = attribute(models[name], beep, "attention")
    assert found.values.min() >= 0 and found.values.sum() == pytest.approx(1, abs=1e-5)
    assert found.values.ndim == (2 if name == "aasist" else 1)


def test_attention_of_mhfa_is_the_mean_over_heads(models, beep):
    model = models["mhfa"].eval()
    with torch.no_grad():
        feats, frames = model.front(torch.from_numpy(beep)[None], torch.tensor([len(beep)]))
        shares = model.pool.attend(feats, frames)[0][0]
    assert attribute(model, beep, "attention").values == pytest.approx(shares.mean(1).numpy(), abs=1e-6)


def test_attention_of_windows_is_that_of_the_embedding(models, beep):
    model = models["windows"].eval()
    found = attribute(model, beep, "attention").values
    with torch.no_grad():
        embeddings, sizes = model.embed_windows(torch.from_numpy(beep)[None], torch.tensor([len(beep)]))
        log_odds = -spoof_evidence_of(model, embeddings[0])
    shares = (-model.sharpness * log_odds)[sizes[0] > 0].softmax(0)
    want = np.zeros(len(found))
    for k, (share, size) in enumerate(zip(shares.tolist(), sizes[0].tolist(), strict=False)):
        want[k * model.hop : k * model.hop + size] += share / size
    assert found == pytest.approx(want, abs=1e-6)


def spoof_evidence_of(model, embeddings):
    logits = model.head(embeddings)
    return logits[:, 0] - logits[:, 1]


@pytest.mark.parametrize("pool", ["attentive", "self_weighted"])
def test_attention_of_attentive_pools(pool, beep):
    model = build("lcnn_lstm", feature="fbank", feature_options={"n_mels": 24}, pool=pool)
    assert attribute(model, beep, "attention").values.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["lcnn", "frames"])
def test_models_without_attention_are_refused(name, models, beep):
    with pytest.raises(ValueError, match=r"weighing|no pooling"):
        attribute(models[name], beep, "attention")


def test_a_localizer_is_explained_by_its_utterance_score(models, beep):
    model = models["frames"]
    found = attribute(model, beep, "occlusion", tile=0.5)
    assert found.evidence == pytest.approx(attribute(AsDetector(model), beep, "occlusion", tile=0.5).evidence)


def test_the_model_stays_as_it_was(models, beep):
    model = models["lcnn"].train()
    model.backbone.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for method in FOUR:
        attribute(model, beep, method)
    assert model.training and not model.backbone.training and model.pool.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not model.backbone._forward_hooks


@pytest.mark.parametrize("depth", [20.0, 60.0])
def test_tiles_give_the_recording_back_and_turn_down_what_they_are_told(depth, beep):
    wave = torch.from_numpy(beep)
    tiles = Tiles(wave, [0.0, 0.6, 0.8, 1.0], [0.0, 4000.0, 8000.0], depth)
    assert tiles.waves(torch.ones(1, 3, 2))[0] == pytest.approx(wave, abs=1e-5)
    assert tiles.waves(torch.zeros(1, 3, 2))[0] == pytest.approx(wave * 10 ** (-depth / 20), abs=1e-5)
    volume = torch.ones(1, 3, 2)
    volume[0, 1, 1] = 0
    quiet = tiles.waves(volume)[0]
    assert quiet[:8000] == pytest.approx(wave[:8000], abs=1e-5)
    assert float(quiet[10500:12000].std()) < 0.12 * float(wave[10500:12000].std())


@pytest.mark.parametrize(
    ("edges", "hz", "says"),
    [
        ([0.0], [0.0, 8000.0], "times rise"),
        ([0.0, 1.0, 1.0], [0.0, 8000.0], "times"),
        ([0.0, 1.0], [8000.0, 0.0], "bands"),
    ],
)
def test_odd_tiles_are_refused(edges, hz, says, beep):
    with pytest.raises(ValueError, match=says):
        Tiles(torch.from_numpy(beep), edges, hz)


def test_calls_that_cannot_be_meant_are_refused(hears_beeps, beep):
    with pytest.raises(ValueError, match="did you mean 'gradcam'"):
        attribute(hears_beeps, beep, "grad_cam")
    with pytest.raises(ValueError, match="unknown option of saliency 'stepps'"):
        attribute(hears_beeps, beep, "saliency", stepps=3)
    with pytest.raises(ValueError, match="one recording"):
        attribute(hears_beeps, beep[None], "saliency")
    with pytest.raises(ValueError, match="too short"):
        attribute(hears_beeps, beep[:256], "saliency")
    for options in ({"bands": 0}, {"tile": 0.0}):
        with pytest.raises(ValueError, match="positive"):
            attribute(hears_beeps, beep, "occlusion", **options)
    assert set(FOUR) | {"attention"} <= set(ATTRIBUTIONS)


def test_models_that_pass_no_gradients_say_so(beep):
    class Deaf(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, wave, lengths):
            level = wave.square().mean(1).log() * self.scale
            return torch.stack([level * float("nan"), level], 1)

        def score(self, logits):
            return logits[:, 1] - logits[:, 0]

    with pytest.raises(ValueError, match="not finite"):
        attribute(Deaf(), beep, "saliency")


def test_attributions_are_averaged_on_other_grids_by_time():
    found = Attribution(np.array([2.0, 4.0, 0.0]), np.array([0.0, 0.03, 0.04, 0.07]))
    assert found.on_grid(0.02) == pytest.approx([2.0, 3.0, 0.0, 0.0])
    assert found.on_grid(0.07) == pytest.approx([(0.06 + 0.04) / 0.07])
    assert found.on_grid(1.0) == pytest.approx([0.1 / 0.07])
    with pytest.raises(ValueError, match="4 edges"):
        Attribution(np.ones(3), np.arange(3.0))


def test_the_figure_shows_signs_in_the_colours_of_the_book(beep):
    found = Attribution(
        np.array([[1.0, 0.0], [-0.5, 0.0]]), np.array([0.0, 0.5, 1.0]), np.array([0, 4000, 8000.0])
    )
    ax = plot_attribution(beep, found, fakes=[(0.2, 0.4)])
    cells = np.asarray(ax.collections[-1].get_array()).reshape(2, 2, 4)
    assert cells[0, 0] == pytest.approx([1.0, 127 / 255, 14 / 255, 0.8], abs=0.01)
    assert cells[0, 1] == pytest.approx([31 / 255, 119 / 255, 180 / 255, 0.4], abs=0.01)
    assert (cells[1, :, 3] == 0).all() and ax.lines[-1].get_xdata().tolist() == [0.2, 0.4]
    plt.close("all")
