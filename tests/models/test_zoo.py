"""Chapters 53 and 54: what the cards say is what was published or counted by hand, and every detector can be drawn."""

import math

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from torch import nn

from tools.property_table import PROMISES, markdown, read
from wedefense_nb.models import zoo
from wedefense_nb.features.pretrained import TINY
from wedefense_nb.features.sinc import receptive_field
from wedefense_nb.features.spectra import Fbank
from wedefense_nb.features.upstreams import Upstream
from wedefense_nb.models.detector import DETECTORS, Detector, bands
from wedefense_nb.models.layers import Identity, MeanPool
from wedefense_nb.models.shapes import noise, plot_shape, plot_shapes, shapes, stages
from wedefense_nb.models.zoo import (
    ENCODER_SIZES,
    card,
    cost,
    features,
    field,
    flops,
    hears,
    needs_upstream,
    parameters,
    plot_costs,
    specimen,
    steps_seen,
    zoo_table,
)

from tests.models import test_promises

ZOO = list(DETECTORS)
SEEN = {"bands": "features", "aasist": "wave", "ssl_mhfa": "states"}


# Parameters: published numbers, of the whole detector


@pytest.mark.parametrize(
    "name, published",
    [
        ("aasist", 297_866),
        ("aasist_l", 85_306),
        ("rawnet2", 17_621_410),
        ("rawnet2_2019", 25_433_602),
        ("ssl_linear", 2_050),
    ],
)
def test_published_parameters(name, published):
    assert parameters(specimen(name)) == (published, published)


@pytest.mark.parametrize(
    "name, before_the_head",
    [
        ("lcnn_lstm", 275_840),
        ("resnet18", 4_105_440),
        ("resnet34", 6_634_336),
        ("xvector", 4_610_524),
        ("res2net34", 4_689_024),
    ],
)
def test_published_parameters_before_the_head(name, before_the_head):
    model = specimen(name)
    assert parameters(model)[0] - parameters(model.head)[0] == before_the_head


def test_frozen_parameters_do_not_learn():
    model = specimen("ssl_linear", upstream=vars(TINY))
    every, learning = parameters(model)
    assert (
        learning == 2 * 32 + 2
        and every - learning == parameters(model.front)[0] > 20_000
        and hears(model) == "states"
    )


@pytest.mark.parametrize("size, millions", [("base", 94.4), ("large", 315.4)])
def test_sizes_of_upstreams(size, millions):
    with torch.device("meta"):
        assert parameters(Upstream(vars(ENCODER_SIZES[size])))[0] == pytest.approx(millions * 1e6, rel=1e-3)


# Receptive fields


class Stack(nn.Module):
    """Unpadded convolutions (kernel, stride, dilation), with what hides gradients between them."""

    def __init__(self, *layers, between=nn.ReLU):
        super().__init__()
        self.dim = 6
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Conv1d(6, 6, k, s, dilation=d), between()) for k, s, d in layers)
        )

    def forward(self, x, frames):
        return self.layers(x.transpose(1, 2)).transpose(1, 2), frames


@pytest.mark.parametrize(
    "layers",
    [
        [(3, 1, 1)],
        [(3, 1, 1), (3, 2, 1), (5, 1, 1)],
        [(3, 1, 1), (3, 1, 2), (3, 1, 3)],
        [(1, 1, 1)],
        [(7, 3, 1), (2, 2, 1)],
    ],
)
def test_field_of_convolutions_is_the_arithmetic_one(layers):
    first, last = steps_seen(Stack(*layers), (1, 120, 6))
    assert last - first + 1 == receptive_field([(1 + d * (k - 1), s) for k, s, d in layers])[0]


def test_field_looks_through_a_maximum():
    class Top(nn.Module):
        def forward(self, x, frames):
            return nn.functional.max_pool1d(x.transpose(1, 2), 3).transpose(1, 2), frames // 3

    first, last = steps_seen(Top(), (1, 60, 16))
    assert last - first + 1 == 3 and first % 3 == 0


def test_field_of_front_ends_and_recurrent_layers():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(4, 4, batch_first=True, bidirectional=True)

        def forward(self, x, frames):
            return self.gru(x)[0], frames

    assert steps_seen(Reader(), (1, 50, 4)) == (0, 49)
    first, last = steps_seen(Fbank(80), (1, 4000), tries=1)
    assert last - first + 1 == 400


def test_fields_of_detectors():
    """By hand: ResNet18 109 frames of 10 ms, AASIST 1 + 6 (1 + 3 + ... + 3^5) steps of 3 samples, x-vector 15 frames."""
    found = {
        name: field(specimen(name))
        for name in ("resnet18", "aasist_l", "xvector", "bands", "ssl_linear", "ssl_mhfa")
    }
    want = {
        "resnet18": 1.09,
        "aasist_l": 2185 * 3 / 16000,
        "xvector": 0.15,
        "bands": 0.01,
        "ssl_linear": 0.02,
        "ssl_mhfa": 0.02,
    }
    assert found == pytest.approx(want)
    # a LSTM, a gate
    assert all(math.isinf(field(specimen(name))) for name in ("wedefense_lcnn_lstm", "ssl_res1d"))


def test_measuring_leaves_the_model_alone():
    model = specimen("xvector", width=32)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    field(model), shapes(model, 1.0), cost(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and not any(m._forward_hooks for m in model.modules())


# Operations


def test_flops_by_hand():
    x = torch.randn(2, 30, 16)
    encoder = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    assert flops(nn.Linear(16, 10), x) == 2 * 2 * 30 * 16 * 10
    assert flops(nn.Conv1d(30, 8, 3, stride=2), x) == 2 * 2 * 8 * 30 * 3 * 7
    for layer, gates in ((nn.LSTM, 4), (nn.GRU, 3)):
        two = layer(16, 5, num_layers=2, bidirectional=True, batch_first=True)
        by_hand = 2 * 2 * 30 * gates * 5 * 2 * ((16 + 5) + (10 + 5))
        assert flops(two, x) == by_hand
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([30, 30]), batch_first=True)
        assert flops(two, packed) == by_hand
    assert flops(encoder, x) == 2 * 2 * 30 * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 2 * 2 * 30 * 30 * 16
    assert torch.backends.mha.get_fastpath_enabled()


def test_flops_of_an_encoder():
    """Nothing of a transformer is overlooked: its convolutions, four square matrices, two wide ones and the attention."""
    upstream = Upstream(vars(TINY)).eval()
    n = 12
    dim = TINY.dim
    hidden = TINY.hidden
    kernel = TINY.pos_kernel
    groups = TINY.pos_groups
    want, length, c_in = 0, 4000, 1
    for c_out, k, stride in TINY.conv:
        length = (length - k) // stride + 1
        want = want + 2 * length * c_out * c_in * k
        c_in = c_out
    assert length == n
    # an even kernel makes one frame too many
    want += 2 * n * c_in * dim + 2 * (n + 1) * dim * dim // groups * kernel
    want += TINY.layers * (2 * n * (4 * dim * dim + 2 * dim * hidden) + 2 * 2 * n * n * dim)
    assert flops(upstream, torch.randn(1, 4000), torch.tensor([4000])) == want


def test_cost_is_for_a_second():
    front, rest = cost(specimen("ssl_res1d"), 4.0)
    squeeze = 2 * (2 * 1024 * 128 + 128 * 2) / 4  # two small layers and the head, once a recording
    convolutions = 2 * 50 * (1024 * 1024 * 5 + 1024 * 128)
    assert front == 0 and rest == pytest.approx(convolutions + squeeze, rel=1e-6)


# Papers, cards, table


def test_every_detector_has_a_paper():
    papers = [DETECTORS.paper(name) for name in ZOO]  # an error where there is none
    assert all(p.link.startswith("https://") and p.source[-4:].isdigit() and p.title for p in papers)


def test_a_detector_without_a_paper_gets_no_card(lent):
    lent(DETECTORS).add("nameless", bands)
    with pytest.raises(ValueError, match="'nameless' has no paper: register it with paper="):
        card(specimen("nameless"))
    with pytest.raises(ValueError, match="unknown detector 'nobody'"):
        DETECTORS.paper("nobody")


def test_card_and_table():
    table = zoo_table(["bands", specimen("xvector"), "ssl_mhfa"])
    assert list(table.index) == ["bands", "xvector", "ssl_mhfa"]
    x = table.loc["xvector"]
    assert (x.paper, x.features, x.output, x.frames, x.hears) == (
        "Snyder 2018",
        "398 × 80",
        "398 × 1500",
        398,
        "features",
    )
    assert table.loc["ssl_mhfa", "features"] == "25 × 200 × 1024" and table.loc["ssl_mhfa", "frames"] == 200
    figure = plot_costs(table).figure
    assert {t.get_text() for t in figure.axes[0].texts} == set(table.index)
    plt.close(figure)


@pytest.mark.parametrize("name", SEEN)
def test_what_it_hears(name):
    model = specimen(name)
    assert hears(model) == SEEN[name] and needs_upstream(name) == (SEEN[name] == "states") and not model.training
    wave, lengths = noise(model, 0.5, batch=2)
    assert len(wave) == 2 and lengths.tolist() == [25 if needs_upstream(name) else 8000] * 2
    assert features(model, 0.5)[0].shape[-1] == model.front.dim


# Shapes


@pytest.mark.parametrize("name", ZOO)
def test_every_detector_is_drawn(name):
    model = specimen(name)
    seconds = 3.0 if needs_upstream(name) else 1.0
    table = shapes(model, seconds)
    assert table.index[0] == "input" and table.index[-1] == "head" and table.numbers.iloc[-1] == 2
    parts = [part for part, _ in model.named_children()]
    assert table.loc[parts, "parameters"].sum() == parameters(model)[0]
    assert table.loc["backbone", "steps"] > 1 and (table.loc[["pool", "embedding", "head"], "steps"] == 1).all()
    ax = plot_shape(model, seconds)
    assert (
        len(ax.patches) == len(stages(model, seconds)) >= 3
        and len(ax.texts) == 2 * len(ax.patches)
        and ax.get_xlabel()
    )
    plt.close(ax.figure)


def test_shapes_by_hand():
    table = shapes(specimen("lcnn_lstm"), 4.0)
    assert table.loc["input", ["steps", "numbers"]].tolist() == [64000, 1]
    assert (
        table.loc["backbone.blocks.8", "output"] == "32 × 25 × 3"
        and table.loc["backbone.lstm", "output"] == "25 × 96"
    )
    assert [s for s in stages(specimen("bands"), 4.0)] == [
        ("input", 64000, 1),
        ("front", 398, 80),
        ("pool", 1, 160),
        ("embedding", 1, 32),
        ("head", 1, 2),
    ]


def test_shapes_of_a_detector_of_ones_own():
    model = Detector(Fbank(24), Identity(24), MeanPool(), 8).eval()
    assert stages(model, 1.0)[-2:] == [("embedding", 1, 8), ("head", 1, 2)]
    figure = plot_shapes({"mine": model}, 1.0)
    assert [ax.get_title() for ax in figure.axes] == ["mine", "", ""]
    plt.close(figure)


# The table of promises


def test_property_table_knows_every_test_of_the_zoo():
    marked = [n for n, f in vars(test_promises).items() if n.startswith("test_") and hasattr(f, "pytestmark")]
    assert sorted(marked) == sorted(PROMISES)


def test_property_table(tmp_path):
    report = tmp_path / "report.xml"
    cases = ['<testcase name="test_shapes[a]"/>', '<testcase name="test_shapes[b]"><failure/></testcase>']
    cases += [
        '<testcase name="test_export[a]"/>',
        '<testcase name="test_export[b]"/>',
        '<testcase name="test_other"/>',
    ]
    report.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    lines = markdown(read(report), {"test_export": {"b": "lengths are needed"}}).splitlines()
    cells = {
        line.split(" | ")[0].strip("| "): [x.strip() for x in line.strip("|").split("|")][1:]
        for line in lines[2:4]
    }
    columns = [*PROMISES]
    at = columns.index("test_shapes"), columns.index("test_export")
    assert [cells["a"][i] for i in at] == ["✓", "✓"] and [cells["b"][i] for i in at] == ["✗", "1"]
    assert lines[-1] == "1: not supported, lengths are needed"
    with pytest.raises(SystemExit, match="test_new"):
        markdown({("test_new", "a"): True}, {})


def test_zoo_exports_what_the_benchmark_uses():
    assert {"specimen", "ENCODER_SIZES", "needs_upstream"} <= set(zoo.__all__)
    assert isinstance(zoo_table(["bands"]), pd.DataFrame)
