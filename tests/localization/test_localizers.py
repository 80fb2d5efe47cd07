"""Localizers by name, their grids, utterance scores, resolutions, windows, files and published weights.

What every localizer keeps is tested in `test_promises`.
"""

import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.features.ssl_files import STILL
from tests.localization.test_promises import MELS, SMALL, fresh, model, noise, some_labels
from tests.models.golden import agrees, manifest
from wedefense_nb.data.manifest import from_folder
from wedefense_nb.features.spectra import Fbank, LogSpectrogram, make_front
from wedefense_nb.features.stored import Stored, extract
from wedefense_nb.features.upstreams import Upstream
from wedefense_nb.localization.frames import batch_labels, coarser
from wedefense_nb.localization.localizers import (
    AsDetector,
    Localizer,
    MultiResolution,
    SlidingWindow,
    UtteranceScore,
    frame_linear,
    frame_loss,
    front_frames,
    front_hop,
    group_labels,
    halve,
    load_localizer,
    localize,
    pieces,
    soft_min,
)
from wedefense_nb.models.checkpoints import LAYOUTS, formula_numbers, formula_weights, published_shapes
from wedefense_nb.models.detector import (
    DETECTORS,
    LOCALIZERS,
    build,
    load_model,
    save_model,
    set_progress,
    with_head,
)
from wedefense_nb.models.layers import Identity
from wedefense_nb.models.losses import LinearHead, P2SGradHead, SoftmaxHead
from wedefense_nb.models.ssl_backends import Mixed, WedefenseFront
from wedefense_nb.registry import UnknownName
from wedefense_nb.task import BONAFIDE, SPOOF
from wedefense_nb.training.scoring import score

# Names


def test_names_papers_and_unknown_names():
    assert not set(LOCALIZERS) & set(DETECTORS)
    papers = [LOCALIZERS.paper(name) for name in LOCALIZERS]
    assert all(p.link.startswith("https://") and p.source[-4:].isdigit() and p.title for p in papers)
    with pytest.raises(UnknownName, match="unknown detector or localizer 'frame_mfha': did you mean 'frame_mhfa'"):
        build("frame_mfha")
    with pytest.raises(UnknownName, match="lcnn_lstm.*frame_linear"):
        build("nope")
    with pytest.raises(UnknownName, match="unknown option of frame_linear 'dropuot'"):
        build("frame_linear", dropuot=0.1)


def test_what_a_front_end_cannot_give_is_refused():
    with pytest.raises(ValueError, match="frame_mhfa reads all layers of a network: give it upstream="):
        build("frame_mhfa")
    with pytest.raises(ValueError, match="all layers"):
        build("frame_sls", front="fbank")
    with pytest.raises(ValueError, match="all layers"):
        build("frame_sls", **STILL, layers="last")
    with pytest.raises(ValueError, match="one vector a frame"):
        build("frame_res1d", **STILL, layers="all")
    with pytest.raises(ValueError, match="layers: only with upstream"):
        build("frame_res1d", layers="weighted")
    with pytest.raises(UnknownName, match="front end"):
        build("frame_res1d", front="fbnak")


def test_an_upstream_takes_the_place_of_the_front_end():
    net = build("frame_res1d", **STILL, layers="weighted")
    assert isinstance(net.front, Upstream) and net.front.mix is not None and net.hop == 0.02
    assert net.config["front"] is None and net.config["upstream"] == net.portable["upstream"]
    assert build("frame_linear", front="lfcc", front_options={"preset": "air"}).front.options.start == 0


def test_a_saved_configuration_comes_back_as_it_was(tmp_path):
    net = build("multi_gmlp", blocks=0)
    assert (
        net.config["scales"] == [0, 1, 2, 3, 4, 5] and load_model(save_model(net, tmp_path)).config == net.config
    )


def test_heads_are_replaced_at_all_resolutions(tmp_path):
    net = build(
        "multi_gmlp", front="fbank", **MELS, blocks=1, scales=[0, 1], head="am", head_options={"margin": 0.1}
    )
    assert net.head.margin == 0.1 and net.branches["1"].head.margin == 0.1
    assert net.head.dim == 20 and net.branches["1"].head.dim == 10
    set_progress(net, 0.25)
    assert net.head.progress == net.branches["1"].head.progress == 0.25
    back = load_model(save_model(net, tmp_path))
    assert back.branches["1"].head.margin == 0.1
    assert isinstance(with_head(build("frame_linear"), "p2sgrad").head, P2SGradHead)
    window = build("sliding_window", detector="bands", head="p2sgrad")
    assert isinstance(window.head, P2SGradHead) and isinstance(window.detector.head, P2SGradHead)


# Grids


def test_hops_of_front_ends():
    ssl = Upstream(STILL["upstream"])
    hops = [front_hop(f) for f in (Fbank(), LogSpectrogram(hop=80), make_front("lfcc"), make_front("mfcc"), ssl)]
    assert hops == [160, 80, 160, 160, 320]
    assert front_hop(WedefenseFront(ssl)) == front_hop(Mixed(Stored(8, 3))) == front_hop(Stored(8)) == 320
    assert front_hop(make_front("sinc")) == make_front("sinc").hop
    with pytest.raises(ValueError, match="Linear has no frames of a known hop"):
        front_hop(torch.nn.Linear(2, 2))


def test_frames_of_wrapped_and_stored_front_ends():
    ssl = Upstream(STILL["upstream"])
    lengths = torch.tensor([400, 16000, 16001])
    assert front_frames(WedefenseFront(ssl), lengths).tolist() == [2, 50, 51]
    assert torch.equal(
        front_frames(WedefenseFront(ssl), lengths), WedefenseFront(ssl)(noise(3, 16001), lengths)[1]
    )
    assert front_frames(ssl, lengths).tolist() == [1, 49, 49]
    for stored in (Stored(8), Mixed(Stored(8, 3)), WedefenseFront(Stored(8))):
        assert front_frames(stored, torch.tensor([7])).tolist() == [7]


@pytest.mark.parametrize(
    ("name", "hop"),
    [("frame_linear", 0.01), ("frame_lcnn_lstm", 0.16), ("frame_resnet18", 0.08), ("sliding_window", 0.1)],
)
def test_hops(name, hop):
    assert model(name).hop == pytest.approx(hop)
    assert build("frame_gmlp", **MELS, scale=1, blocks=1).hop == 0.02


# The utterance


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=9), st.floats(0.01, 50))
@settings(max_examples=60, deadline=None)
def test_soft_minimum(values, temperature):
    x = torch.tensor(values, dtype=torch.float64)
    padded = torch.cat([x, torch.tensor([-999.0])])[None]
    n = torch.tensor([len(values)])
    got = soft_min(padded, n, temperature).item()
    plain = -temperature * np.log(np.mean(np.exp(-(x.numpy() - x.min().item()) / temperature))) + x.min().item()
    assert got == pytest.approx(plain, abs=1e-6)
    assert x.min().item() - 1e-6 <= got <= x.mean().item() + 1e-6
    assert UtteranceScore("min")(padded, n).item() == x.min().item()
    assert UtteranceScore("mean")(padded, n).item() == pytest.approx(x.mean().item(), abs=1e-9)
    assert UtteranceScore("soft_min", temperature)(padded, n).item() == pytest.approx(got)


def test_utterance_scores_are_checked():
    with pytest.raises(UnknownName, match="unknown utterance score 'max'"):
        UtteranceScore("max")
    with pytest.raises(ValueError, match="positive"):
        UtteranceScore("soft_min", 0.0)


def test_a_learned_utterance_score_starts_soft_and_learns(tmp_path):
    net = build("frame_linear", **MELS, utterance="learned", temperature=2.0)
    wave = noise(4, 8000)
    lengths = torch.tensor([8000, 8000, 6000, 5000])
    logits, frames = net(wave, lengths)
    assert torch.allclose(net.utterance_score(logits, frames), soft_min(net.score(logits), frames, 2.0), atol=1e-6)
    labels = some_labels(net, lengths)
    net.loss(wave, lengths, labels, utterance_labels=torch.tensor([0, 1, 0, 1])).backward()
    assert all(p.grad is not None and p.grad.abs() > 0 for p in net.utterance.parameters())
    with torch.no_grad():
        net.utterance.offset.fill_(3.0)
        net.utterance.scale.fill_(2.0)
        changed = net.utterance_score(logits, frames)
    assert torch.allclose(changed, 2 * soft_min(net.score(logits), frames, 2.0) + 3, atol=1e-5)
    assert load_model(save_model(net, tmp_path)).utterance.offset == 3.0


def test_joint_loss_is_the_weighted_sum():
    net = build("frame_linear", **MELS, utterance="soft_min").eval()
    wave = noise(3, 8000)
    lengths = torch.tensor([8000, 6000, 5000])
    labels = some_labels(net, lengths)
    whole = torch.tensor([SPOOF, BONAFIDE, -1])
    with torch.no_grad():
        logits, frames = net(wave, lengths)
        s = net.utterance_score(logits, frames)[:2]
        of_utterances = torch.nn.functional.binary_cross_entropy_with_logits(s, torch.tensor([0.0, 1.0]))
        of_frames = net.loss(wave, lengths, labels)
        joint = net.loss(wave, lengths, labels, utterance_labels=whole, share=0.25)
        assert joint.item() == pytest.approx(0.75 * of_frames.item() + 0.25 * of_utterances.item(), rel=1e-5)
        none = net.loss(wave, lengths, labels, utterance_labels=torch.full((3,), -1), share=0.25)
        assert none.item() == pytest.approx(0.75 * of_frames.item(), rel=1e-5)


def test_a_localizer_detects(samples):
    net = build("frame_linear", **MELS).eval()
    few = samples.subset(split="dev", kind="partial")
    table = score(AsDetector(net), few, progress=False)
    frames = localize(net, few, progress=False)
    want = [frames[utt].min() for utt in few.utterances.utt]
    assert np.allclose(table.score, want, atol=1e-4)


# Scores and losses


def test_score_is_the_difference_without_the_training_prior():  # pitfalls 3, 4, 20, 23
    net = build("frame_linear", **MELS)
    z = torch.tensor([[[1.0, 3.0], [0.0, -2.0]]])
    net.log_prior_odds.fill_(0.5)
    assert net.score(z).tolist() == [[1.5, -2.5]]
    assert torch.equal(net.score(z + 7.0), net.score(z))
    assert net.score(z.bfloat16()).dtype == torch.float32
    with_head(net, "p2sgrad")
    assert net.score(z).tolist() == [[2.0, -2.0]]


def test_the_loss_is_the_mean_over_known_frames():
    head = SoftmaxHead(4)
    vectors = torch.randn(2, 3, 4)
    labels = torch.tensor([[0, 1, -1], [1, 0, 0]])
    weights = torch.tensor([0.3, 1.7])
    got = frame_loss(head, vectors, torch.tensor([3, 1]), labels, weights)
    rows = torch.stack([vectors[0, 0], vectors[0, 1], vectors[1, 0]])
    want = torch.nn.functional.cross_entropy(head.out(rows), torch.tensor([0, 1, 1]), weights)
    assert got.item() == pytest.approx(want.item(), rel=1e-5)
    nothing = frame_loss(head, vectors.requires_grad_(), torch.tensor([3, 3]), torch.full((2, 3), -1))
    nothing.backward()
    assert nothing == 0 and vectors.grad.abs().sum() == 0


def test_labels_of_another_grid_are_refused():  # pitfall 16
    net = build("frame_linear", **MELS)
    with pytest.raises(ValueError, match=r"labels are \(1, 50\), the model has frames .*\(1, 48\).*own grid"):
        net.loss(noise(1, 8000), torch.tensor([8000]), torch.zeros(1, 50, dtype=torch.long))


def test_training_mode_keeps_norms_from_padding():  # pitfall 57
    net = build("frame_mhfa", **STILL)
    wave = noise(2, 16000)
    lengths = torch.tensor([16000, 4000])
    with torch.no_grad():
        vectors, frames = net.frame_embed(wave, lengths)
        logits = net.train().logits(vectors, frames)
    real = torch.cat([vectors[0, : frames[0]], vectors[1, : frames[1]]])
    assert torch.allclose(net.head.norm.running_mean, 0.1 * real.mean(0), atol=1e-6)
    assert (logits[1, frames[1] :] == 0).all() and (logits[1, : frames[1]] != 0).all()


def test_what_training_does_to_features_reaches_the_frames():
    net = build("multi_gmlp", **SMALL["multi_gmlp"]).eval()
    lengths = torch.tensor([8000])
    labels = some_labels(net, lengths)
    with torch.no_grad():
        plain = net.loss(noise(1, 8000), lengths, labels)
        covered = net.loss(noise(1, 8000), lengths, labels, change=lambda feats, frames: feats * 0)
        other = model("frame_linear").frame_embed(noise(1, 8000), lengths, lambda feats, frames: feats * 0)[0]
    assert plain != covered and (other == 0).all()


# Frames that do not shrink


@pytest.mark.parametrize("name", ["frame_mhfa", "frame_sls", "frame_linear", "frame_res1d", "frame_nes2net"])
def test_the_same_frame_in_longer_company(name):  # pitfall 19
    upstream = {"stored": {"dim": 32, "states": 3 if name in ("frame_mhfa", "frame_sls") else 0}}
    extra = {"groups": 4, "inner": 4} if "nes2net" in name else {}
    net = build(name, upstream=upstream, **extra).eval()
    shape = (1, 75, 3, 32) if name in ("frame_mhfa", "frame_sls") else (1, 75, 32)
    feats = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    long = feats.repeat(1, 8, *[1] * (len(shape) - 2))
    with torch.no_grad():
        short, _ = net.frame_embed(feats, torch.tensor([75]))
        many, _ = net.frame_embed(long, torch.tensor([600]))
        assert torch.allclose(many[0, 75 + 20 : 75 + 40], short[0, 20:40], rtol=1e-3, atol=1e-5)
    if name == "frame_mhfa":
        published = build(name, upstream=upstream, legacy=True).eval()
        with torch.no_grad():
            short, _ = published.frame_embed(feats, torch.tensor([75]))
            many, _ = published.frame_embed(long, torch.tensor([600]))
        assert torch.allclose(8 * many[0, 20:40], short[0, 20:40], rtol=1e-3, atol=1e-6)


# Several resolutions


@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=20), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_labels_of_groups(labels, size):
    want = []
    for at in range(0, len(labels), size):
        known = [x for x in labels[at : at + size] if x >= 0]
        want.append(min(known) if known else -1)
    got = group_labels(torch.tensor([labels]), size)[0]
    assert got.tolist() == want
    if min(labels) >= 0:
        assert np.array_equal(got, coarser(labels, size))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=3))
@settings(max_examples=30, deadline=None)
def test_halving(frames):
    x = torch.randn(len(frames), max(frames), 6)
    got, n = halve(x, torch.tensor(frames))
    for row, own in enumerate(frames):
        assert n[row] == -(-own // 2)
        for t in range(int(n[row])):
            for d in range(3):
                assert got[row, t, d] == x[row, 2 * t : min(2 * t + 2, own), 2 * d : 2 * d + 2].max()
        assert (got[row, n[row] :] == 0).all()


def test_published_and_repaired_resolutions():
    front = {"stored": {"dim": 1024, "states": 0}}
    feats = torch.randn(1, 150, 1024)
    lengths = torch.tensor([150])
    for legacy, want in ((True, [150, 75, 37, 18, 9, 5]), (False, [150, 75, 38, 19, 10, 5])):
        for scale in (0, 3, 5):
            net = build("frame_gmlp", upstream=front, scale=scale, blocks=0, legacy=legacy)
            logits, frames = net(feats, lengths)
            assert logits.shape[1] == int(frames[0]) == want[scale] == int(net.frames(lengths)[0])
            assert net.head.dim == 512 // 2**scale
    odd = build("frame_gmlp", upstream=front, scale=5, blocks=0, legacy=True)
    assert [int(odd.frames(torch.tensor([n]))[0]) for n in (1, 31, 32, 95)] == [1, 1, 2, 3]
    assert [int(odd(feats[:, :n], torch.tensor([n]))[1][0]) for n in (1, 31, 32, 95)] == [1, 1, 2, 3]


def test_only_the_active_resolutions_are_built():
    front = Fbank(64)
    net = MultiResolution(front, scales=(3, 1), blocks=1)
    assert net.scales == (1, 3) and list(net.branches) == ["1", "3"] and len(net.backbone.scales) == 3
    assert net.branches["1"].head is None and net.hop == 0.02
    one = MultiResolution(Fbank(64), scales=(1,), blocks=1)
    assert len(one.backbone.scales) == 1
    with pytest.raises(ValueError, match="choose other scales"):
        MultiResolution(front, scales=(5,))
    with pytest.raises(ValueError, match="choose other scales"):
        MultiResolution(front, scales=())
    with pytest.raises(ValueError, match="choose other scales"):
        MultiResolution(front, scales=(-1, 0))


def test_all_resolutions_together():
    net = build("multi_gmlp", **SMALL["multi_gmlp"]).eval()
    wave = noise(2, 20000)
    lengths = torch.tensor([20000, 7000])
    labels = some_labels(net, lengths)
    weights = torch.tensor([0.5, 1.5])
    with torch.no_grad():
        found = net.all(wave, lengths)
        finest, frames = net(wave, lengths)
        assert torch.equal(found[0.01][0], finest) and torch.equal(found[0.01][1], frames)
        assert [round(1000 * hop) for hop in found] == [10, 20, 80]
        assert [z.shape[1] for z, _ in found.values()] == [123, 62, 16]
        total = 0.0
        known = labels.masked_fill(torch.arange(123) >= frames[:, None], -1)
        made = net.backbone(*net.front(wave, lengths))
        for scale in net.scales:
            branch = net.branches[str(scale)]
            x, n = made[scale]
            head = branch.head or net.head
            total += frame_loss(head, branch(x, n), n, group_labels(known, 2**scale), weights).item()
        assert net.loss(wave, lengths, labels, weights).item() == pytest.approx(total, rel=1e-5)


def test_the_published_grid_trains_with_labels_of_the_finest():
    net = build(
        "multi_gmlp", upstream={"stored": {"dim": 256, "states": 0}}, scales=[0, 2, 5], blocks=1, legacy=True
    )
    for n in (31, 64, 150, 161):
        loss = net.loss(torch.randn(1, n, 256), torch.tensor([n]), torch.ones(1, n, dtype=torch.long))
        assert torch.isfinite(loss)


def test_the_published_gates_know_forty_seconds():  # pitfall 42
    net = build("frame_gmlp", upstream={"stored": {"dim": 16, "states": 0}}, blocks=1, legacy=True)
    with pytest.raises(ValueError, match="2001 steps at most"):
        net(torch.randn(1, 2002, 16), torch.tensor([2002]))


# Windows


def test_windows_are_those_cut_by_hand():
    net = SlidingWindow(build("bands", n_mels=24), seconds=0.3, hop=0.11, batch=3).eval()
    lengths = torch.tensor([16000, 2000, 4801, 9999])
    wave = noise(4, 16000)
    with torch.no_grad():
        logits, frames = net(wave, lengths)
        for row, n in enumerate(lengths.tolist()):
            assert frames[row] == -(-n // 1760)
            for t in range(int(frames[row])):
                size = min(4800, n)
                start = min(max(1760 * t + 880 - size // 2, 0), n - size)
                alone = net.detector(wave[row : row + 1, start : start + size], torch.tensor([size]))
                assert torch.allclose(logits[row, t], alone[0], atol=1e-4)


def test_windows_reach_both_ends_and_none_is_heard_twice():
    net = SlidingWindow(build("bands"), seconds=0.5, hop=0.02)
    for n in (1, 7999, 8000, 8001, 20011):
        windows, of_frame = net.windows(torch.tensor([n]))
        assert windows[0, 1] == 0 and windows[-1, 2] == n and len(windows.unique(dim=0)) == len(windows)
        assert len(of_frame) == int(net.frames(torch.tensor([n]))[0]) and of_frame.max() == len(windows) - 1
    windows, of_frame = net.windows(torch.tensor([20011, 500]))
    assert windows[of_frame[-1]].tolist() == [1, 0, 500]


def test_windows_go_through_the_detector_in_batches():
    net = SlidingWindow(build("bands", n_mels=24), seconds=0.3, hop=0.05, batch=4).eval()
    sizes = []
    net.detector.front.register_forward_hook(lambda module, inputs, out: sizes.append(len(inputs[0])))
    with torch.no_grad():
        net(noise(1, 32000), torch.tensor([32000]))
    windows, heard = net.cost(2.0)
    assert max(sizes) == 4 and sum(sizes) == windows and heard == pytest.approx(windows * 0.3)


def test_a_window_over_a_trained_detector_is_saved_with_it(tmp_path):
    torch.manual_seed(0)
    detector = build("lcnn_lstm", feature="fbank", embed_dim=8)
    detector.log_prior_odds.fill_(0.7)
    net = SlidingWindow(detector, seconds=0.3, hop=0.1).eval()
    wave = noise(1, 9000)
    lengths = torch.tensor([9000])
    back = load_model(save_model(net, tmp_path))
    with torch.no_grad():
        assert torch.equal(back.score(back(wave, lengths)[0]), net.score(net(wave, lengths)[0]))
    assert back.log_prior_odds == 0.7 and back.head is back.detector.head
    assert net.utterance.kind == "min" and build("sliding_window", detector="bands", utterance="mean").utterance


def test_a_window_over_a_graph():
    net = build("sliding_window", detector="aasist_l", hop=0.25, seconds=0.5).eval()
    with torch.no_grad():
        logits, frames = net(noise(1, 12000), torch.tensor([12000]))
    assert logits.shape == (1, 3, 2) and frames.tolist() == [3]


def test_windows_refuse():
    for bad in ({"hop": 0.0}, {"hop": 0.6}, {"batch": 0}):
        with pytest.raises(ValueError, match="need 0 < hop <= seconds"):
            SlidingWindow(build("bands"), **bad)
    net = build("sliding_window", detector="bands")
    with pytest.raises(ValueError, match="cannot be covered"):
        net.loss(noise(1, 8000), torch.tensor([8000]), torch.ones(1, 5, dtype=torch.long), change=lambda x, n: x)


# Every second of every file


@pytest.fixture()
def files(tmp_path):
    """Six recordings of all lengths, as a manifest."""
    rng = np.random.default_rng(0)
    for i, n in enumerate([16000, 401, 52011, 24000, 3333, 40000]):
        sf.write(tmp_path / f"u{i}.wav", (0.1 * rng.standard_normal(n)).astype(np.float32), 16000, subtype="FLOAT")
    return from_folder(tmp_path)


def alone(net, m):
    """Every recording through the network by itself, the last score repeated to the end."""
    found = {}
    for utt, path in zip(m.utterances.utt, m.paths(), strict=True):
        x = torch.from_numpy(sf.read(path, dtype="float32")[0])[None]
        with torch.no_grad():
            logits, frames = net(x, torch.tensor([x.shape[1]]))
        scores = net.score(logits)[0, : frames[0]].numpy()
        covering = -(-x.shape[1] // net.step)
        found[utt] = np.append(scores, np.repeat(scores[-1:], max(0, covering - len(scores))))[:covering]
    return found


@pytest.mark.parametrize("name", ["frame_res1d", "frame_lcnn_lstm", "sliding_window"])
def test_localize_scores_every_second_of_every_file(name, files):  # pitfalls 16, 18, 21
    net = fresh(name).train()
    found = localize(net, files, batch_size=4, batch_seconds=6.0, progress=False)
    assert list(found) == files.utterances.utt.tolist() and net.training
    want = alone(net.eval(), files)
    for utt in want:
        assert found[utt].shape == want[utt].shape and found[utt].dtype == np.float32
        assert np.allclose(found[utt], want[utt], atol=1e-4)


def test_long_recordings_in_pieces_are_exact_where_the_network_is_local(files):  # pitfall 18
    linear = build("frame_linear", front="lfcc").eval()
    single = build("frame_linear", **MELS).eval()
    cnn = build("frame_resnet18", front_options={"n_mels": 24}).eval()
    for net, options in (
        (linear, {"longest": 1.0, "context": 0.1}),
        (single, {"longest": 0.07, "context": 0.0}),
        (cnn, {"longest": 3.0, "context": 1.2}),
        (build("sliding_window", **SMALL["sliding_window"]).eval(), {"longest": 1.5, "context": 0.3}),
    ):
        found = localize(net, files, progress=False, **options)
        for utt, want in alone(net, files).items():
            assert found[utt].shape == want.shape and np.allclose(found[utt], want, atol=2e-3)


def test_pieces_hear_no_more_than_they_may(files):
    net = build("frame_linear", **MELS).eval()
    heard = []
    net.front.register_forward_hook(lambda module, inputs, out: heard.append(inputs[0].shape[1]))
    localize(net, files, longest=1.0, context=0.2, batch_size=1, progress=False)
    assert max(heard) <= 16000 + 4 * 160 and len(heard) > len(files)


@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 10))
@settings(max_examples=100, deadline=None)
def test_pieces_keep_every_frame_once(frames, longest, context):
    if 2 * context >= longest:
        return
    kept = []
    for start, end, first, last in pieces(frames, longest, context):
        assert 0 <= start <= first < last <= end <= frames and end - start <= longest
        assert first == 0 or first - start >= context
        assert last == frames or end - last >= context
        kept += range(first, last)
    assert kept == list(range(frames))


def test_localize_reads_stored_features(files, tmp_path):
    long_enough = files.subset(utt=[u for u in files.utterances.utt if u != "u1"])
    front = Upstream(STILL["upstream"]).eval()
    made = extract(front, long_enough, tmp_path / "features")
    net = frame_linear(Stored(32)).eval()
    found = localize(net, made, progress=False)
    pieced = localize(net, made, longest=1.0, context=0.1, progress=False)
    live = Localizer(front, Identity(32), net.head).eval()
    for utt, want in localize(live, long_enough, progress=False).items():
        assert found[utt].shape == want.shape and np.allclose(found[utt], want, atol=1e-2)
        assert np.allclose(pieced[utt], found[utt], atol=1e-5)


class OneOfTwo:
    """What `localize` asks of an accelerator."""

    num_processes = 2
    device = torch.device("cpu")
    is_main_process = False
    autocast = staticmethod(torch.no_grad)

    def __init__(self, process_index):
        self.process_index = process_index

    def unwrap_model(self, net):
        return net


def test_processes_share_the_recordings(files, monkeypatch):
    net = build("frame_linear", **MELS).eval()
    shares = []

    def gather(items):
        shares.append(items)
        return [item for share in shares for item in share]

    monkeypatch.setattr("accelerate.utils.gather_object", gather)
    with pytest.raises(KeyError):  # the first finds what it has done alone
        localize(net, files, batch_size=2, accelerator=OneOfTwo(0))
    found = localize(net, files, batch_size=2, accelerator=OneOfTwo(1))
    assert min(len(share) for share in shares) > 0 and sum(len(share) for share in shares) == len(files)
    for utt, scores in localize(net, files, progress=False).items():
        assert np.allclose(found[utt], scores, atol=1e-5)


def test_localize_refuses(files):
    net = build("frame_linear", **MELS)
    with pytest.raises(ValueError, match="no recordings"):
        localize(net, files.subset(utt=[]), progress=False)
    with pytest.raises(ValueError, match="keep nothing"):
        localize(net, files, longest=10.0, context=5.0, progress=False)
    with torch.no_grad():
        net.head.out.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="6 recordings are not finite: u0"):
        localize(net, files, progress=False)


# Published files


FRAMES = {
    "wedefense/mhfa_frames": ("wedefense_mhfa_large", ("projection", "cmp_linear", "att_head")),
    "wedefense/sls_frames": ("wedefense_sls", ("projection",)),
    "wedefense/res1d_frames": ("wedefense_res1d", ()),
    "wedefense/nes2net_frames": ("wedefense_nes2net", ("projection",)),
} | {f"wedefense/gmlp_{20 * 2**i}ms": ("wedefense_gmlp", ("projection",)) for i in range(6)}


@pytest.mark.parametrize("kind", FRAMES)
def test_layouts_name_what_is_in_the_published_file(kind):  # pitfall 45
    file, other_sizes = FRAMES[kind]
    layout = LAYOUTS[kind]
    theirs = {k: v for k, v in manifest(file).items() if not k.startswith(layout.ignore)}
    ours = published_shapes(kind)
    head = ("projection",) if "gmlp" in kind else ()
    assert {k for k in ours if not k.startswith(head)} == {k for k in theirs if not k.startswith(head)}
    for name, shape in ours.items():
        if not name.startswith((*other_sizes, *head)):
            assert theirs[name] == shape
    assert ours.get("projection.weight", (2,))[0] == 2


@pytest.mark.parametrize(
    ("kind", "more"), [("wedefense/mhfa_frames", {"compress": 128}), ("wedefense/sls_frames", {})]
)
def test_golden_frames(kind, more):  # pitfalls 19, 34
    file = FRAMES[kind][0]
    net = build(**(LAYOUTS[kind].detector | more)).double().eval()
    given_weights = formula_weights(manifest(file))
    state = net.state_dict()
    for name in state:
        theirs = LAYOUTS[kind].published_name(name)
        if theirs in given_weights and not theirs.startswith("projection"):
            state[name] = given_weights[theirs]
    net.load_state_dict(state)
    x = (2 * formula_numbers(2 * 1024 * 150 * 25) - 1).reshape(2, 1024, 150, 25).permute(0, 3, 2, 1)
    with torch.no_grad():
        agrees(net.vectors(x, torch.tensor([150, 150]))[0], f"{file}/frame", 1e-4)


@pytest.mark.parametrize("kind", ["wedefense/sls_frames", "wedefense/res1d_frames", "wedefense/gmlp_640ms"])
def test_classes_of_a_file_are_read_not_guessed(kind, tmp_path):  # pitfall 2
    torch.save(formula_weights(published_shapes(kind)), tmp_path / "file.pt")
    nets = [load_localizer(tmp_path / "file.pt", kind, bonafide=i) for i in (0, 1)]
    rows = [net.head.vectors if hasattr(net.head, "vectors") else net.head.out.weight for net in nets]
    file = formula_weights(published_shapes(kind))
    theirs = file["projection.trans.2.weight" if "sls" in kind else "projection.weight"].float()
    assert torch.equal(rows[0][BONAFIDE], theirs[0]) and torch.equal(rows[1][BONAFIDE], theirs[1])
    assert torch.equal(rows[0].flip(0), rows[1]) and not nets[0].training
    with pytest.raises(ValueError, match="label2id"):
        load_localizer(tmp_path / "file.pt", kind, bonafide=2)


def test_published_weights_make_a_localizer(tmp_path):
    kind = "wedefense/res1d_frames"
    torch.save(formula_weights(published_shapes(kind)), tmp_path / "file.pt")
    net = load_localizer(tmp_path / "file.pt", kind, bonafide=1)
    with torch.no_grad():
        logits, frames = net(torch.randn(2, 60, 1024), torch.tensor([60, 21]))
        alone, _ = net(torch.randn(1, 60, 1024)[:, :21], torch.tensor([21]))
    assert logits.shape == (2, 60, 2) and frames.tolist() == [60, 21] and alone.shape == (1, 21, 2)


# Learning


def test_a_localizer_learns_where_the_noise_is():
    """White noise from somewhere on in a tone: the frames learn it, and are timed right."""
    torch.manual_seed(0)
    t = torch.arange(16000) / 16000
    tone = 0.1 * torch.sin(2 * torch.pi * 440 * t)
    starts = [4000, 8000, 12000, 6000]
    wave = torch.stack([torch.where(torch.arange(16000) < s, tone, noise(16000, seed=s)) for s in starts])
    lengths = torch.full((4,), 16000)

    class Four:
        utts = ["a", "b", "c", "d"]
        labels = torch.zeros(4, dtype=torch.long)
        fakes = [np.array([[s / 16000, 1.0]]) for s in starts]

    Four.lengths = lengths
    net = build("frame_linear", front_options={"n_mels": 20, "mean_norm": True})
    with_head(net, "linear")
    labels = batch_labels(Four, net.hop, net.frames(lengths))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        net.loss(wave, lengths, labels).backward()
        optimizer.step()
    with torch.no_grad():
        found = net.eval().score(net(wave, lengths)[0]) > 0
    wrong = (found != (labels == BONAFIDE)).sum(1)
    assert (wrong <= 3).all() and isinstance(net.head, LinearHead)
