"""What the cards say is what was published or counted by hand."""

import math

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from matplotlib.text import Text
from torch import nn

from tests.models import test_promises
from tools.property_table import PROMISES, markdown, read
from wedefense_nb.features.pretrained import TINY
from wedefense_nb.features.sinc import receptive_field
from wedefense_nb.features.spectra import Fbank
from wedefense_nb.features.upstreams import Upstream
from wedefense_nb.models import zoo
from wedefense_nb.models.detector import DETECTORS, bands
from wedefense_nb.models.shapes import noise, specimen
from wedefense_nb.models.zoo import (
    ENCODER_SIZES,
    card,
    cost,
    features,
    field,
    flops,
    hears,
    hears_whole,
    parameters,
    plot_costs,
    published_errors,
    steps_seen,
    zoo_table,
)

# Parameters


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
    first, last = steps_seen(Top(), (1, 60, 1), tries=1)  # one feature, one winner
    assert first == last
    first, last = steps_seen(Top(), (1, 60, 1), tries=20)
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
    want = {  # frames of 10 ms; 1 + 6 (1 + 3 + ... + 3^5) steps of 3 samples; frames of 20 ms
        "resnet18": 1.09,
        "aasist_l": 2185 * 3 / 16000,
        "xvector": 0.15,
        "bands": 0.01,
        "ssl_linear": 0.02,
        "ssl_mhfa": 0.02,
    }
    assert {name: field(specimen(name)) for name in want} == pytest.approx(want)
    # a LSTM, a gate
    assert all(math.isinf(field(specimen(name))) for name in ("wedefense_lcnn_lstm", "ssl_res1d"))


def test_measuring_leaves_the_model_alone():
    model = specimen("xvector", width=32)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    field(model)
    cost(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


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
    """Nothing is overlooked: convolutions, four square matrices, two wide ones and the attention."""
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


def test_costs_of_front_end_and_rest_are_told_apart():
    front, rest = cost(specimen("aasist_l"))
    assert front == pytest.approx(2 * 70 * 129 * 16000, rel=0.01)  # seventy filters of 129 taps at every sample
    assert rest > 5 * front and cost(specimen("bands"))[1] == pytest.approx((2 * 160 * 32 + 2 * 32 * 2) / 2)


# Cards and table


def test_a_detector_without_a_paper_gets_no_card(lent):
    lent(DETECTORS).add("nameless", bands)
    with pytest.raises(ValueError, match="'nameless' has no paper: register it with paper="):
        card(specimen("nameless"))


def test_card_and_table():
    table = zoo_table(["bands", specimen("xvector"), "ssl_mhfa"])
    assert list(table.index) == ["bands", "xvector", "ssl_mhfa"]
    x = table.loc["xvector"]
    assert [x.paper, x.hears, x.features, x.output] == ["Snyder 2018", "features", "398 × 80", "398 × 1500"]
    assert (x.frames, x.parameters, x.learning) == (398, 4_611_550, 4_611_550)
    front, rest = cost(specimen("xvector"))
    assert (x.front_flops, x.flops) == (front, rest) and x.field == pytest.approx(0.15)
    assert table.loc["ssl_mhfa", "features"] == "25 × 200 × 1024" and table.loc["ssl_mhfa", "frames"] == 200
    figure = plot_costs(table).figure
    assert {t.get_text() for t in figure.axes[0].texts} == set(table.index)
    heights = [height for marks in figure.axes[0].collections for _, height in marks.get_offsets()]
    assert sorted(heights) == pytest.approx(sorted((table.flops + table.front_flops) / 1e9))
    plt.close(figure)
    figure = plot_costs(table, upstream=35e9).figure  # what a back end stands on is paid for as well
    heights = [height for marks in figure.axes[0].collections for _, height in marks.get_offsets()]
    costs = (table.flops + table.front_flops) / 1e9 + [0, 0, 35]
    assert sorted(heights) == pytest.approx(sorted(costs))
    plt.close(figure)


def test_what_was_published_stands_on_the_card():
    for name in {row[0] for row in zoo._RESULTS}:
        rows = published_errors(name)
        assert name in DETECTORS and len(rows) and rows.eer.between(0, 0.6).all() and rows.source.str.len().all()
        assert (rows["mean"].isna() | (rows["mean"] >= rows.eer)).all()  # the best is not worse than the mean
    found = card(specimen("aasist"))
    assert found.at_home == 0.0083 and found.elsewhere == 0.3824
    assert card(specimen("ssl_mhfa")).at_home == 0.0080 and card(specimen("ssl_mhfa")).elsewhere == 0.3451
    nothing = card(specimen("bands"))
    assert math.isnan(nothing.at_home) and math.isnan(nothing.elsewhere) and published_errors("bands").empty


def test_a_front_end_may_have_heard_everything_before_a_short_field_begins():
    """A mean over the recording and a transformer do; a window does not. It says so on the card."""
    local = {"bands": False, "aasist": False, "lcnn_lstm": False}
    everything = {"xvector": True, "resnet18": True, "ssl_mhfa": True}
    assert {name: hears_whole(specimen(name)) for name in local | everything} == local | everything
    assert hears_whole(specimen("ssl_linear", upstream=vars(TINY)))
    assert card(specimen("xvector")).whole and not card(specimen("bands")).whole


def made_up():
    """A mark to the right of another with a long name, as high; and two marks nearly in one place."""
    sizes = [1e6, 1.6e6, 1e8, 1e8]
    flops = [1e9, 1e9, 1e6, 1.1e6]
    rows = {"parameters": sizes, "flops": flops, "front_flops": 0.0, "hears": "features"}
    return pd.DataFrame(rows, index=["a_detector_with_a_long_name", "b", "c", "d"])


@pytest.mark.parametrize("rows", [lambda: zoo_table(["xvector", "ssl_res1d", "ecapa"]), made_up])
def test_labels_cover_neither_each_other_nor_the_marks(rows):
    table = rows()
    figure = plot_costs(table).figure
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    ax = figure.axes[0]
    boxes = [Text.get_window_extent(label, renderer) for label in ax.texts]  # without the line to its mark
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    for name in table.index:
        mark = (table.parameters[name], (table.flops + table.front_flops)[name] / 1e9)
        assert not any(box.contains(*ax.transData.transform(mark)) for box in boxes)
    plt.close(figure)


@pytest.mark.parametrize(("name", "what"), [("bands", "features"), ("aasist", "wave"), ("ssl_mhfa", "states")])
def test_what_it_hears(name, what):
    model = specimen(name)
    feats, frames = features(model, 0.5)
    assert hears(model) == what and feats.shape[-1] == model.front.dim and len(frames) == 1
    assert torch.equal(feats, model.front(*noise(model, 0.5))[0])


def test_an_upstream_that_runs_gives_states_too():
    assert hears(specimen("ssl_linear", upstream=vars(TINY))) == "states"


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
