"""Networks of others as files: names, downloads, checksums, configurations, and no code from a file."""

import hashlib
import importlib
import inspect
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import Handler, serving
from tests.features.ssl_files import QUIET_S3PRL, SSL_FAMILIES, hf_folder
from wedefense_nb.features import pretrained
from wedefense_nb.features.pretrained import (
    BASE,
    LARGE,
    TINY,
    UPSTREAMS,
    conv_layers,
    fetch_file,
    find_checkpoint,
    is_encoder,
    read_checkpoint,
    remote_sha256,
)
from wedefense_nb.features.upstreams import weight_shapes

pytestmark = QUIET_S3PRL


# Names


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
        if name in wide:
            assert (known.dim, known.states) == (wide[name], 49), name
        elif known.dim == BASE.dim:
            assert known.states == BASE.layers + 1 == 13, name
        else:
            assert (known.dim, known.states) == (LARGE.dim, LARGE.layers + 1) == (1024, 25), name


# Downloads


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


def test_a_checksum_is_only_what_looks_like_one(server, monkeypatch):
    for etag, want in ((None, None), ("d41d8cd9", None), ("ab" * 32, "ab" * 32)):
        monkeypatch.setattr(Server, "etag", etag)
        assert remote_sha256(server + "a.pt") == want


def test_fetch_without_checksum_or_network(server, tmp_path):
    assert fetch_file(server + "c.pt", tmp_path / "c.pt").read_bytes() == Server.body
    assert (tmp_path / "c.pt.sha256").read_text() == hashlib.sha256(Server.body).hexdigest()
    with pytest.raises(FileNotFoundError, match="put it at .*d.pt"):
        fetch_file("http://127.0.0.1:9/d.pt", tmp_path / "d.pt")


def test_a_file_that_was_put_there_is_checked_too(tmp_path):
    (tmp_path / "e.pt").write_bytes(b"mine")
    right = hashlib.sha256(b"mine").hexdigest()
    assert fetch_file("http://127.0.0.1:9/e.pt", tmp_path / "e.pt", right).read_bytes() == b"mine"
    with pytest.raises(ValueError, match="another checksum"):
        fetch_file("http://127.0.0.1:9/e.pt", tmp_path / "e.pt", "0" * 64)


def test_find_checkpoint_downloads_names_once(server, tmp_path, monkeypatch, tiny):
    monkeypatch.setenv("WEDEFENSE_NB_CACHE", str(tmp_path))
    monkeypatch.setattr(Server, "body", tiny.read_bytes())
    monkeypatch.setitem(UPSTREAMS, "xlsr_53", replace(UPSTREAMS["xlsr_53"], url=server + "xlsr.pt"))
    monkeypatch.setitem(UPSTREAMS, "mms_300m", replace(UPSTREAMS["mms_300m"], url=server + "mms/"))
    assert find_checkpoint("xlsr_53") == tmp_path / "upstreams/xlsr_53.pt"
    assert read_checkpoint(find_checkpoint("xlsr_53")).config == TINY
    parts = {"config.json", "preprocessor_config.json", "pytorch_model.bin"}
    assert {p.name for p in find_checkpoint("mms_300m").iterdir() if p.suffix != ".sha256"} == parts
    assert find_checkpoint(tiny) == tiny, "a path of one's own"
    with pytest.raises(ValueError, match="neither a file.*xls_r_300m"):
        find_checkpoint("wav2vec2_large")


# What is inside


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


def test_lists_of_convolutions_are_read_as_python_reads_them():
    seven = ((512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2)
    assert conv_layers("[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] * 2") == seven == BASE.conv
    assert conv_layers("2 * [[1, 2, 3]]") == ((1, 2, 3), (1, 2, 3))
    with pytest.raises(ValueError):
        conv_layers("__import__('os').getcwd()")


@pytest.mark.parametrize("family", SSL_FAMILIES)
def test_converted_files_are_recognised(files, family):  # pitfall 30: who wants scaled waves is in the file
    found = read_checkpoint(files[family])
    large = family.endswith("large") or family == "data2vec"
    assert found.kind == {"sat": "wavlm"}.get(family, family.split("_")[0]) and found.config.normalize is large
    assert found.config.conv_norm == ("layer" if large else "group")
    assert found.config.relative == ((32, 80) if "wavlm" in family else None)
    depth, kernel = (5, 19) if family == "data2vec" else (1, 16)
    assert (found.config.pos_depth, found.config.pos_kernel) == (depth, kernel)
    assert all(map(is_encoder, found.weights)) and len(found.weights) > 40


def test_tiny_file_is_what_it_says(tiny):
    found = read_checkpoint(tiny)
    assert found.config == TINY and {k: tuple(v.shape) for k, v in found.weights.items()} == weight_shapes(TINY)


def test_old_and_new_names_of_weight_norm(tmp_path):  # pitfall 39
    hf_folder("Wav2Vec2", tmp_path)
    new = read_checkpoint(tmp_path).weights
    weights = load_file(tmp_path / "model.safetensors")
    old = {}
    for name, value in weights.items():
        name = name.replace("parametrizations.weight.original0", "weight_g")
        old[name.replace("parametrizations.weight.original1", "weight_v")] = value
    assert set(old) != set(weights)
    save_file(old, tmp_path / "model.safetensors")
    again = read_checkpoint(tmp_path).weights
    assert again.keys() == new.keys() and all(torch.equal(again[name], new[name]) for name in new)


def test_folders_say_how_waves_must_come(tmp_path):  # pitfall 30
    for normalize in (False, True):
        hf_folder("Wav2Vec2", tmp_path, normalize)
        assert read_checkpoint(tmp_path).config.normalize is normalize
    (tmp_path / "preprocessor_config.json").unlink()
    assert read_checkpoint(tmp_path).config.normalize is True


def test_folders_that_cannot_be_read_say_so(tmp_path):
    hf_folder("Wav2Vec2", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, word in (({"adapter_attn_dim": 16}, "adapter_attn_dim"), ({"hidden_act": "relu"}, "relu")):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=word):
            read_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="needs config.json"):
        read_checkpoint(tmp_path)


def test_other_kinds_of_network_are_refused(tmp_path, tiny):
    state = torch.load(tiny, weights_only=True)
    for change in ({"layer_type": "conformer"}, {"activation_fn": "relu"}):
        torch.save(state | {"cfg": state["cfg"] | change}, tmp_path / "other.pt")
        with pytest.raises(ValueError, match="only GELU transformers"):
            read_checkpoint(tmp_path / "other.pt")
