"""Self-supervised front ends: frames, scaling, layers, freezing, and what padding must not do."""

import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT
from tests.features.ssl_files import QUIET_S3PRL, SSL_FAMILIES, hf_folder
from wedefense_nb.features.pretrained import TINY
from wedefense_nb.features.upstreams import (
    LayerMix,
    Upstream,
    encoder_frames,
    make_encoder,
    normalize_waves,
    tiny_checkpoint,
)

pytestmark = QUIET_S3PRL


# Lengths, padding, scaling


@given(st.integers(400, 70000))
def test_frames_are_exact(n):
    assert int(encoder_frames(torch.tensor(n), TINY.conv)) == (n - 400) // 320 + 1


def test_frames_are_those_of_the_network(tiny):
    upstream = Upstream(tiny).eval()
    for n in (400, 719, 720, 1039, 1040, 5000):
        feats, frames = upstream(torch.randn(1, n), torch.tensor([n]))
        assert feats.shape[1] == int(frames) == (n - 400) // 320 + 1
    with pytest.raises(ValueError, match="shorter than one frame"):
        upstream(torch.randn(1, 399), torch.tensor([399]))


PAIRS = [(family, "fast") for family in SSL_FAMILIES] + [("wav2vec2_base", "s3prl"), ("wavlm_large", "s3prl")]


@pytest.mark.parametrize(("family", "backend"), PAIRS)
def test_company_and_padding_change_nothing(files, batch, family, backend):  # pitfall 32
    upstream = Upstream(files[family], layers="all", backend=backend).eval()
    wave, lengths = batch
    with torch.no_grad():
        together, frames = upstream(torch.nn.functional.pad(wave, (0, 3000)), lengths)
        for i, n in enumerate(lengths.tolist()):
            alone = upstream(wave[i : i + 1, :n], lengths[i : i + 1])[0][0]
            k = int(frames[i])
            assert float((together[i, :, :k] - alone).abs().max()) < 1e-4 * max(1.0, float(alone.std()))
            assert not together[i, :, k:].any()


def test_waves_are_scaled_as_the_file_says(files, batch):  # pitfall 30
    wave = batch[0][:1]
    lengths = batch[1][:1]
    for family, scaled in (("wav2vec2_large", True), ("data2vec", True)):
        upstream = Upstream(files[family]).eval()
        with torch.no_grad():
            plain = upstream(wave, lengths)[0]
            moved = upstream(10 * wave + 0.1, lengths)[0]
        assert upstream.config.normalize is scaled and float((plain - moved).abs().max()) < 0.05
    raw = make_encoder(asdict(replace(TINY, normalize=False))).eval()
    with torch.no_grad():
        a, b = (raw(x, lengths, [2])[0] for x in (wave, 10 * wave))
    assert float((a - b).abs().max()) > 0.2


def test_scaling_can_be_chosen(tiny, batch):  # pitfall 30
    wave, lengths = batch
    with torch.no_grad():
        plain = Upstream(tiny, normalize=False).eval()(normalize_waves(wave, lengths), lengths)[0]
        scaled = Upstream(tiny, normalize=True).eval()(wave, lengths)[0]
        raw = Upstream(tiny, normalize=False).eval()(wave, lengths)[0]
    assert torch.allclose(plain, scaled, atol=1e-5) and not torch.allclose(raw, scaled, atol=0.1)
    with pytest.raises(ValueError, match="s3prl scales waves"):
        Upstream(tiny, backend="s3prl", normalize=not TINY.normalize)


def test_normalize_waves_is_layer_norm_of_each_recording(batch):
    got = normalize_waves(*batch)
    for row, x, n in zip(got, *batch, strict=True):
        want = torch.nn.functional.layer_norm(x[:n], (int(n),))
        assert torch.allclose(row[:n], want, atol=1e-5) and not row[n:].any()


# Layers


def test_choices_of_layers(tiny, batch):
    with torch.no_grad():
        every, frames = Upstream(tiny, layers="all").eval()(*batch)
        for i in range(3):
            assert torch.equal(Upstream(tiny, layers=i).eval()(*batch)[0], every[:, i])
        assert torch.equal(Upstream(tiny).eval()(*batch)[0], every[:, 2])
        mixed = Upstream(tiny, layers="weighted").eval()(*batch)[0]
    assert torch.allclose(mixed, every.mean(1), atol=1e-6)
    for bad in (3, -1, "first", True, 1.0):
        with pytest.raises(ValueError, match="layers must be"):
            Upstream(tiny, layers=bad)


def test_layers_above_are_not_run(tiny, batch):
    upstream = Upstream(tiny, layers=1).eval()
    upstream.encoder.layers[1].fc1.weight.data.fill_(float("nan"))
    assert torch.isfinite(upstream(*batch)[0]).all()


def test_layer_mix_learns_and_stays_a_mean():
    mix = LayerMix(3)
    mix.weights.data = torch.tensor([5.0, -3.0, 0.5])
    out = mix([torch.full((1, 2, 4), v) for v in (0.0, 1.0, 2.0)])
    assert 0 < float(out.detach().min()) < 1
    out.sum().backward()
    assert mix.weights.grad.abs().sum() > 0


# Freezing


@pytest.mark.parametrize("backend", ["fast", "s3prl"])
def test_frozen_is_frozen(files, batch, backend):  # pitfall 33
    upstream = Upstream(files["wavlm_base"], layers="weighted", backend=backend).train()
    first = upstream(*batch)[0]
    second = upstream(*batch)[0]
    assert torch.equal(first, second), "no dropout"
    before = {k: v.clone() for k, v in upstream.encoder.state_dict().items()}
    optimizer = torch.optim.SGD(upstream.parameters(), lr=1.0)
    first.square().sum().backward()
    optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in upstream.encoder.state_dict().items())
    assert upstream.mix.weights.grad is not None


@pytest.mark.parametrize("backend", ["fast", "s3prl"])
def test_all_of_it_learns_when_not_frozen(files, batch, backend):
    """Also the convolutions, which s3prl switches off by default."""
    upstream = Upstream(files["wav2vec2_base"], frozen=False, backend=backend).train()
    assert not torch.equal(upstream(*batch)[0], upstream(*batch)[0]), "dropout works"
    upstream(*batch)[0].square().sum().backward()
    idle = [n for n, p in upstream.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    spare = ("mask_emb", "quantizer", "project_q", "final_proj", "label_embs")
    assert not [n for n in idle if not any(s in n for s in spare)], idle
    if backend == "fast":
        assert not [n for n in idle if "qkv.bias" not in n]


@pytest.mark.parametrize("backend", ["fast", "s3prl"])
@pytest.mark.parametrize("family", ["wav2vec2_base", "wav2vec2_large"])
def test_top_layers_learn(files, batch, backend, family):
    upstream = Upstream(files[family], top=1, backend=backend).train()
    learns = {n for n, p in upstream.named_parameters() if p.requires_grad}
    assert learns and all(
        "layers.1." in n or n in ("encoder.norm.weight", "encoder.norm.bias") or ".encoder.layer_norm." in n
        for n in learns
    )
    assert any("norm." in n and "layers" not in n for n in learns) == family.endswith("large")
    if family.endswith("base"):
        assert not torch.equal(upstream(*batch)[0], upstream(*batch)[0]), "dropout in the layer that learns"
    upstream(*batch)[0].square().sum().backward()
    assert all(p.grad is not None for p in upstream.parameters() if p.requires_grad)
    with pytest.raises(ValueError, match="top needs frozen"):
        Upstream(files[family], frozen=False, top=1)


# Files and configurations


def test_tiny_checkpoints_differ_by_seed_only(tmp_path):
    states = [
        torch.load(tiny_checkpoint(tmp_path / f"{i}.pt", seed=seed), weights_only=True)
        for i, seed in enumerate((0, 0, 1))
    ]
    first, same, other = (state["model"]["encoder.layers.0.fc1.weight"] for state in states)
    assert torch.equal(first, same) and not torch.equal(first, other) and states[0]["cfg"] == states[2]["cfg"]
    assert first.std().item() == pytest.approx(TINY.dim**-0.5, rel=0.1)


def test_bfloat16_is_close_and_comes_out_as_float32(tiny, batch):
    with torch.no_grad():
        exact = Upstream(tiny).eval()(*batch)[0]
        rough = Upstream(tiny, bf16=True).eval()(*batch)[0]
    assert rough.dtype == torch.float32 and 0 < float((exact - rough).abs().mean()) < 0.05


def test_gradient_reaches_the_wave(tiny, batch):
    wave = batch[0].clone().requires_grad_()
    Upstream(tiny).eval()(wave, batch[1])[0].square().sum().backward()
    assert all(row[:n].abs().sum() > 0 for row, n in zip(wave.grad, batch[1], strict=True))


def test_a_configuration_is_enough_to_load_saved_weights(tiny, batch, tmp_path):
    """What a model folder stores: no checkpoint is needed to load it again."""
    saved = Upstream(tiny).eval()
    text = yaml.safe_dump(json.loads(json.dumps(asdict(saved.config))))
    again = Upstream(yaml.safe_load(text)).eval()
    again.load_state_dict(saved.state_dict())
    with torch.no_grad():
        assert again.config == saved.config and torch.equal(again(*batch)[0], saved(*batch)[0])
    with pytest.raises(ValueError, match="files only"):
        make_encoder(asdict(TINY), "s3prl")
    with pytest.raises(ValueError, match="unknown encoder 'fairseq'; there are fast, s3prl"):
        make_encoder(tiny, "fairseq")


def test_s3prl_reads_no_folders(tmp_path):
    hf_folder("Wav2Vec2", tmp_path)
    with pytest.raises(ValueError, match="use backend='fast'"):
        make_encoder(tmp_path, "s3prl")


def test_core_works_without_s3prl(tiny):  # pitfall 36: s3prl does not import with every torchaudio
    code = f"""
import sys
sys.modules["s3prl"] = None
import torch
from wedefense_nb.features.upstreams import Upstream, make_encoder
print(Upstream({str(tiny)!r}).eval()(torch.zeros(1, 800), torch.tensor([800]))[0].shape[1])
try:
    make_encoder({str(tiny)!r}, "s3prl")
except ImportError as e:
    print(e)
"""
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.stdout.startswith("2\n") and "wedefense_nb[ssl]" in out.stdout, out.stderr
