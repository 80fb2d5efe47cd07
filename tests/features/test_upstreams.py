"""Self-supervised front ends: files, names, states, freezing, and what padding must not do."""

import importlib
import inspect
import json
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT, Handler, serving
from tests.features.ssl_files import HF_MODELS, SSL_FAMILIES, hf_folder, s3prl_file
from wedefense_nb.features import pretrained
from wedefense_nb.features.fast_encoder import FastEncoder, distance_buckets, linear
from wedefense_nb.features.pretrained import (
    TINY,
    UPSTREAMS,
    conv_layers,
    fetch_file,
    find_checkpoint,
    read_checkpoint,
)
from wedefense_nb.features.upstreams import (
    LayerMix,
    Upstream,
    encoder_frames,
    make_encoder,
    normalize_waves,
    tiny_checkpoint,
    weight_shapes,
)

pytestmark = [  # s3prl's own
    pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ssl")
    return {family: s3prl_file(family, folder / f"{family}.pt") for family in SSL_FAMILIES}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.pt")


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(3)
    wave = 0.1 * torch.randn(3, 9000, generator=g)
    lengths = torch.tensor([9000, 7000, 500])
    for row, n in zip(wave, lengths, strict=True):
        row[n:] = 0
    return wave, lengths


# Names and files


def test_names_are_those_of_s3prl():  # pitfall 37: a published recipe asks for a name that does not exist
    assert "wav2vec2_large" not in UPSTREAMS
    for name, known in UPSTREAMS.items():
        if known.url.startswith(pretrained.S3PRL):
            hub = importlib.import_module(f"s3prl.upstream.{known.family}.hubconf")
            assert known.url in inspect.getsource(getattr(hub, name)), name


def test_dimensions_of_names():
    """Base networks have 12 layers, large ones 24, XLS-R 1B and 2B and MMS 1B have 48 and other widths."""
    wide = {"xls_r_1b": 1280, "xls_r_2b": 1920, "mms_1b": 1280}
    for name, known in UPSTREAMS.items():
        base = known.dim == 768
        assert known.states == (49 if name in wide else 13 if base else 25)
        assert known.dim == wide.get(name, 768 if base else 1024)


class Server(Handler):
    body = b"weights" * 1000
    etag = None

    def do_HEAD(self, send=False):
        self.send_response(200)
        if self.etag:
            self.send_header("X-Linked-Etag", f'"{self.etag}"')
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(self.body)


@pytest.fixture
def server():
    with serving(Server) as address:
        yield address


def test_fetch_takes_the_servers_checksum_and_keeps_it(server, tmp_path, monkeypatch):
    import hashlib

    right = hashlib.sha256(Server.body).hexdigest()
    monkeypatch.setattr(Server, "etag", right)
    path = fetch_file(server + "a.pt", tmp_path / "a.pt")
    assert path.read_bytes() == Server.body and (tmp_path / "a.pt.sha256").read_text() == right
    monkeypatch.setattr(Server, "body", b"other")
    assert fetch_file(server + "a.pt", tmp_path / "a.pt").read_bytes() != b"other", "fetched once"
    with pytest.raises(ValueError, match="hash of downloaded file"):
        fetch_file(server + "b.pt", tmp_path / "b.pt")
    assert not (tmp_path / "b.pt").exists()
    with pytest.raises(ValueError, match="another checksum"):
        fetch_file(server + "a.pt", tmp_path / "a.pt", "0" * 64)


def test_fetch_without_checksum_or_network(server, tmp_path):
    assert (
        fetch_file(server + "c.pt", tmp_path / "c.pt").is_file()
        and len((tmp_path / "c.pt.sha256").read_text()) == 64
    )
    with pytest.raises(FileNotFoundError, match="put it at .*d.pt"):
        fetch_file("http://127.0.0.1:9/d.pt", tmp_path / "d.pt")


def test_find_checkpoint_downloads_names_once(server, tmp_path, monkeypatch, tiny):
    monkeypatch.setenv("WEDEFENSE_NB_CACHE", str(tmp_path))
    monkeypatch.setattr(Server, "body", tiny.read_bytes())
    monkeypatch.setitem(UPSTREAMS, "xlsr_53", replace(UPSTREAMS["xlsr_53"], url=server + "xlsr.pt"))
    monkeypatch.setitem(UPSTREAMS, "mms_300m", replace(UPSTREAMS["mms_300m"], url=server + "mms/"))
    assert Upstream("xlsr_53").dim == 32 and (tmp_path / "upstreams/xlsr_53.pt").is_file()
    assert {p.name for p in find_checkpoint("mms_300m").iterdir()} > {"config.json", "pytorch_model.bin"}
    with pytest.raises(ValueError, match="neither a file.*xls_r_300m"):
        find_checkpoint("wav2vec2_large")


def test_files_cannot_run_code(tmp_path):
    class Gift:
        def __reduce__(self):
            return print, ("executed",)

    torch.save({"model": Gift()}, tmp_path / "gift.pt")
    (tmp_path / "text.pt").write_text("no weights")
    for name in ("gift", "text"):
        with pytest.raises(ValueError, match="could run code"):
            read_checkpoint(tmp_path / f"{name}.pt")
    with pytest.raises(ValueError):
        conv_layers("__import__('os').getcwd()")
    torch.save({"net": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="no converted checkpoint"):
        read_checkpoint(tmp_path / "other.pt")


def test_tiny_file_is_what_it_says(tiny):
    found = read_checkpoint(tiny)
    assert found.config == TINY and {k: tuple(v.shape) for k, v in found.weights.items()} == weight_shapes(TINY)


# The same numbers as s3prl and transformers


@pytest.mark.parametrize("family", SSL_FAMILIES)
def test_fast_equals_s3prl(files, batch, family):  # pitfall 31: K = L + 1 states, the same ones
    theirs, ours = (Upstream(files[family], layers="all", backend=b).eval() for b in ("s3prl", "fast"))
    with torch.no_grad():
        (want, frames) = theirs(*batch)
        (got, same) = ours(*batch)
    assert got.shape == (3, 3, 27, 32) and torch.equal(frames, same)
    assert float((got - want).abs().max()) < 1e-4 * max(1.0, float(want.std()))


@pytest.mark.parametrize("kind", HF_MODELS)
def test_fast_equals_transformers(kind, tmp_path, batch):
    model = hf_folder(kind, tmp_path)
    wave = batch[0][:1]
    lengths = batch[1][:1]
    upstream = Upstream(tmp_path, layers="all").eval()
    with torch.no_grad():
        got = upstream(wave, lengths)[0][0]
        want = model(normalize_waves(wave, lengths), output_hidden_states=True)
    assert float((got[-1] - want.last_hidden_state[0]).abs().max()) < 1e-4
    assert all(float((got[i] - want.hidden_states[i][0]).abs().max()) < 1e-4 for i in range(2))


def test_old_and_new_names_of_weight_norm(tmp_path):  # pitfall 39
    from safetensors.torch import load_file, save_file

    hf_folder("Wav2Vec2", tmp_path)
    new = Upstream(tmp_path).encoder.state_dict()
    weights = load_file(tmp_path / "model.safetensors")
    old = {
        k.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): v
        for k, v in weights.items()
    }
    assert set(old) != set(weights)
    save_file(old, tmp_path / "model.safetensors")
    assert all(torch.equal(v, new[k]) for k, v in Upstream(tmp_path).encoder.state_dict().items())


def test_folders_that_cannot_be_read_say_so(tmp_path):
    hf_folder("Wav2Vec2", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"adapter_attn_dim": 16}))
    with pytest.raises(ValueError, match="adapter_attn_dim"):
        read_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="needs config.json"):
        read_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="use backend='fast'"):
        make_encoder(tmp_path, "s3prl")


def test_wrong_weights_are_refused(tmp_path, tiny):  # pitfall 45
    state = torch.load(tiny, weights_only=True)
    del state["model"]["encoder.layers.1.fc1.bias"]
    torch.save(state, tmp_path / "less.pt")
    with pytest.raises(ValueError, match="does not fit.*fc1.bias"):
        Upstream(tmp_path / "less.pt")


def test_last_state_of_pre_norm_networks_is_normalised(tiny, batch):
    upstream = Upstream(tiny).eval()
    with torch.no_grad():
        last = upstream(*batch)[0][0] - upstream.encoder.norm.bias
    assert last.mean(-1).abs().max() < 1e-4 and (last.var(-1, correction=0) - 1).abs().max() < 1e-2


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


def test_published_number_of_weights_of_the_two_stage_recipe():
    """Seed 001: the top two layers of wav2vec 2.0 base have 2 × 7,087,872 weights."""
    conv = ((512, 10, 5),) + ((512, 3, 2),) * 4 + ((512, 2, 2),) * 2
    base = replace(
        TINY,
        dim=768,
        layers=12,
        heads=12,
        hidden=3072,
        conv=conv,
        pos_kernel=128,
        pos_groups=16,
        conv_bias=False,
        conv_norm="group",
        norm_first=False,
    )
    with torch.device("meta"):
        encoder = FastEncoder(base)
    assert sum(p.numel() for p in encoder.layers[-2:].parameters()) == 14_175_744
    # models.md counts 95,044,608 with what pre-training needs; s3prl's encoder part is the rest, and the 128 lengths
    # of weight norm are multiplied into its directions here
    spare = 768 + (320 * 2 * 128 + 512 * 640 + 640) + (256 * 256 + 256) + (768 * 256 + 256)
    assert sum(p.numel() for p in encoder.parameters()) == 95_044_608 - spare - 128


def test_layer_drop_skips_layers_only_in_training(tiny, batch):
    upstream = Upstream(tiny, frozen=False)
    for layer in upstream.encoder.layers:
        layer.config = replace(TINY, dropout=0.0, attention_dropout=0.0)
    upstream.encoder.config = replace(TINY, layerdrop=1.0, dropout=0.0)
    with torch.no_grad():
        trained = upstream.train()(*batch)[0]
        evaluated = upstream.eval()(*batch)[0]
        everything = Upstream(tiny).eval()(*batch)[0]
    assert torch.equal(evaluated, everything) and not torch.allclose(trained, everything)


def test_recomputing_layers_gives_the_same_gradients(tiny, batch):
    grads = []
    for again in (False, True):
        upstream = Upstream(tiny, frozen=False, checkpointing=again).train()
        upstream.encoder.config = replace(TINY, layerdrop=0.0)
        torch.manual_seed(0)
        upstream(*batch)[0].square().sum().backward()
        grads.append({n: p.grad for n, p in upstream.named_parameters()})
    assert all(torch.allclose(grads[0][n], grads[1][n], rtol=1e-4, atol=1e-4) for n in grads[0])
    with pytest.raises(ValueError, match="use backend='fast'"):
        Upstream(tiny, backend="s3prl", checkpointing=True)
    with pytest.raises(ValueError, match="s3prl scales waves"):
        Upstream(tiny, backend="s3prl", normalize=not TINY.normalize)


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
    import yaml

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


# Pieces


def test_linear_equals_linear():
    layer = torch.nn.Linear(7, 5)
    x = torch.randn(2, 3, 7, requires_grad=True)
    with torch.no_grad():
        assert torch.allclose(linear(x, layer), layer(x), atol=1e-6)
    got = linear(x, layer)
    want = layer(x)
    a, b = (torch.autograd.grad(y.square().sum(), [x, *layer.parameters()]) for y in (got, want))
    assert all(torch.allclose(p, q, atol=1e-5) for p, q in zip(a, b, strict=True))


def test_distance_buckets_are_symmetric_halves():
    table = distance_buckets(400, 320, 800).numpy()
    assert (np.diag(table) == 0).all() and table.max() < 320
    assert (table[0, 1:] == table[1:, 0] + 160).all() and (np.diff(table[0]) >= 0).all()


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
