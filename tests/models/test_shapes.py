"""Every detector can be measured and drawn, and what the tables say was counted by hand."""

import matplotlib.pyplot as plt
import pytest
import torch

from wedefense_nb.features.spectra import Fbank
from wedefense_nb.models.detector import DETECTORS, Detector, build
from wedefense_nb.models.layers import Identity, MeanPool
from wedefense_nb.models.shapes import needs_upstream, noise, plot_shape, plot_shapes, shapes, specimen, stages


def size(module):
    return sum(p.numel() for p in module.parameters())


def test_specimens_read_what_they_need():
    assert not needs_upstream("aasist") and needs_upstream("ssl_res1d") and needs_upstream("ssl_mhfa")
    assert (specimen("ssl_res1d").front.dim, specimen("ssl_res1d").front.states) == (1024, 0)
    layered = specimen("ssl_mhfa", dim=768, states=13, heads=4)
    assert (layered.front.dim, layered.front.states, layered.config["heads"]) == (768, 13, 4)
    assert not layered.training and not specimen("bands").training
    own = {"stored": {"dim": 32, "states": 3}}
    assert specimen("ssl_mhfa", upstream=own).front.dim == 32


def test_noise_is_what_a_detector_hears():
    model = specimen("bands")
    wave, lengths = noise(model, 0.5, batch=2, seed=3)
    assert wave.shape == (2, 8000) and lengths.tolist() == [8000, 8000]
    assert 0.09 < wave.std() < 0.11 and not torch.equal(wave[0], wave[1])
    assert torch.equal(noise(model, 0.5, batch=2, seed=3)[0], wave)
    assert not torch.equal(noise(model, 0.5, batch=2, seed=4)[0], wave)
    feats, frames = noise(specimen("ssl_mhfa"), 0.5)
    assert feats.shape == (1, 25, 25, 1024) and frames.tolist() == [25]
    assert noise(specimen("ssl_res1d"), 2.0)[0].shape == (1, 100, 1024)


@pytest.mark.parametrize("name", list(DETECTORS))
def test_every_detector_is_drawn(name):
    model = specimen(name)
    seconds = 3.0 if needs_upstream(name) else 1.0
    table = shapes(model, seconds)
    assert table.index[0] == "input" and table.index[-1] == "head" and table.numbers.iloc[-1] == 2
    parts = [part for part, _ in model.named_children()]
    assert table.loc[parts, "parameters"].sum() == size(model)
    assert table.loc["backbone", "steps"] > 1 and (table.loc[["pool", "embedding", "head"], "steps"] == 1).all()
    ax = plot_shape(model, seconds)
    assert len(ax.patches) == len(stages(model, seconds)) >= 3
    assert len(ax.texts) == 2 * len(ax.patches) and ax.get_xlabel()
    plt.close(ax.figure)


def test_shapes_by_hand():
    table = shapes(specimen("lcnn_lstm"), 4.0)
    assert table.loc["input", ["steps", "numbers", "parameters"]].tolist() == [64000, 1, 0]
    block = table.loc["backbone.blocks.8"]
    assert block.tolist() == ["ConvMFM", "32 × 25 × 3", 25, 96, 2 * 32 * (32 * 9 + 1)]
    assert table.loc["backbone.lstm", "output"] == "25 × 96" and table.loc["pool", "steps"] == 1


def test_stages_by_hand():
    assert stages(specimen("bands"), 4.0) == [
        ("input", 64000, 1),
        ("front", 398, 80),
        ("pool", 1, 160),
        ("embedding", 1, 32),
        ("head", 1, 2),
    ]
    small = specimen("bands", embed_dim=2)  # the head is drawn although it keeps the shape
    assert stages(small, 1.0)[-3:] == [("pool", 1, 160), ("embedding", 1, 2), ("head", 1, 2)]
    names = [name for name, _, _ in stages(specimen("lcnn_lstm"), 1.0)]
    assert names[2:7] == ["blocks.0", "blocks.2", "blocks.4", "blocks.6", "blocks.8"]


def test_the_parts_add_up():
    model = build("lcnn_lstm").train()
    table = shapes(model, 3.0, layers=False)
    parts = table.parameters[["front", "backbone", "embedding", "head"]]
    assert table.parameters["total"] == size(model) == parts.sum()
    assert table.loc["front", "output"] == "301 × 60" and not any("." in name for name in table.index)


def test_measuring_leaves_the_model_alone():
    model = build("xvector", width=32).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shapes(model, 1.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and not any(part._forward_hooks for part in model.modules())


def test_boxes_are_logarithmic():
    ax = plot_shape(specimen("bands"), 1.0)
    front = ax.patches[1]
    assert front.get_width() == pytest.approx(0.2 + 1.991, abs=1e-3)  # log10 of 98 frames
    assert front.get_height() == pytest.approx(0.2 + 1.903, abs=1e-3)  # and of 80 bands
    assert ax.texts[2].get_text() == "98\n× 80" and ax.texts[3].get_text() == "front"
    plt.close(ax.figure)


def test_shapes_of_a_detector_of_ones_own():
    model = Detector(Fbank(24), Identity(24), MeanPool(), 8).eval()
    assert stages(model, 1.0)[-2:] == [("embedding", 1, 8), ("head", 1, 2)]
    figure = plot_shapes({"mine": model}, 1.0)
    assert [ax.get_title() for ax in figure.axes] == ["mine", "", ""]
    plt.close(figure)
