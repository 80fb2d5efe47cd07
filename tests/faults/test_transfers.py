"""Servers that never end, end too soon, drip, or send something else."""

import io
import tarfile
import time

import pytest

from tests.conftest import Handler, serving
from wedefense_nb.data import downloads
from wedefense_nb.data.downloads import Archive, Continue, fetch
from wedefense_nb.data.manifest import ManifestError
from wedefense_nb.data.shards import ShardStream, fetch_shards, shard_list
from wedefense_nb.features.pretrained import fetch_file
from wedefense_nb.untrusted import BrokenLine, SourceError, open_source, open_url

CHUNK = b"x" * 65536


class Unruly(Handler):
    """By the first part of the path: how the answer goes wrong. `sent` counts bytes."""

    sent = 0
    protocol_version = "HTTP/1.0"

    def head(self, length=None, status=200, **headers):
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def give(self, data):
        self.wfile.write(data)
        Unruly.sent += len(data)

    def do_HEAD(self):
        self.head(0)

    def do_GET(self):
        kind = self.path.strip("/").split("/")[0]
        try:
            getattr(self, kind)()
        except (BrokenPipeError, ConnectionResetError):
            pass

    def endless(self):  # announces nothing and never stops
        self.head()
        while True:
            self.give(CHUNK)

    def generous(self):  # announces 1,000 bytes and never stops
        self.head(1000)
        while True:
            self.give(CHUNK)

    def drip(self):  # a byte now and then
        self.head(100_000)
        while True:
            self.give(b"x")
            time.sleep(0.05)

    def silent(self):
        self.head(100_000)
        self.give(b"x" * 10)
        time.sleep(5)

    def short(self):  # without a length, half of it
        self.head()
        self.give(b"x" * 500)

    def cut(self):  # with a length
        self.head(1000)
        self.give(b"x" * 500)

    def chunked(self):
        self.protocol_version = "HTTP/1.1"
        self.head(Transfer_Encoding="chunked")
        while True:
            self.give(b"10000\r\n" + CHUNK + b"\r\n")

    def packed(self):
        self.head(1000, Content_Encoding="gzip")
        self.give(b"x" * 1000)

    def page(self):
        self.head(20)
        self.give(b"<html>not here</html"[:20])

    def elsewhere(self):
        self.head(status=302, Location="file:///etc/passwd")

    def loop(self):
        self.head(status=302, Location="/loop")

    def whole(self):
        self.head(1000)
        self.give(b"x" * 1000)


@pytest.fixture
def site():
    Unruly.sent = 0
    with serving(Unruly) as address:
        yield address


BAD = ["endless", "drip", "silent", "short", "cut", "chunked", "packed", "elsewhere", "loop"]


@pytest.mark.parametrize("kind", BAD)
def test_what_is_not_whole_is_not_taken(site, kind, tmp_path):
    started = time.monotonic()
    with pytest.raises((OSError, SourceError)) as error, open_url(f"{site}{kind}/a.tar", silence=0.4) as body:
        body.read()
    assert f"{kind}" in str(error.value) or kind in ("elsewhere", "loop")
    assert time.monotonic() - started < 4 and Unruly.sent < 20_000_000


@pytest.mark.parametrize("kind", BAD)
def test_downloads_of_all_kinds_end_in_a_message(site, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "SILENCE", 0.3)
    monkeypatch.setattr(Continue.__init__, "__defaults__", (2, None, 0.3))
    with pytest.raises((OSError, ValueError), match="127.0.0.1|a.tar"):
        fetch(Archive("a.tar", f"{site}{kind}/a.tar"), tmp_path / "c", tries=2)
    with pytest.raises(FileNotFoundError, match="cannot fetch"):
        fetch_file(f"{site}{kind}/a.tar", tmp_path / "w/a.tar")
    assert not (tmp_path / "c/a.tar").exists() and not (tmp_path / "w/a.tar").exists()
    assert Unruly.sent < 40_000_000


@pytest.mark.parametrize(
    "kind", ["endless", "short", "cut", "chunked", "packed", "elsewhere", "generous", "whole"]
)
def test_shards_from_such_servers(site, kind, tmp_path):
    source = [f"{site}{kind}/a.tar"]
    for read in (lambda: list(ShardStream(source, 2).batches()), lambda: fetch_shards(source, tmp_path / "here")):
        with pytest.raises(ManifestError, match="a.tar"):
            read()
    with pytest.raises(ManifestError):
        shard_list(f"{site}{kind}/list.txt") and list(ShardStream(f"{site}{kind}/list.txt", 2).batches())
    assert Unruly.sent < 40_000_000 and not list(tmp_path.rglob("*.tar"))


def test_only_what_was_announced_is_taken(site, tmp_path):
    with open_url(f"{site}generous/a") as body:
        assert len(body.read()) == 1000
    part = Continue(tmp_path / "a.part")
    part(f"{site}generous/a", tmp_path / "a", None)
    assert (tmp_path / "a").stat().st_size == 1000


def test_a_known_size_stands_in_for_an_announced_one(site, tmp_path):
    with open_url(f"{site}endless/a", size=2000) as body:
        assert len(body.read()) == 2000
    with (
        pytest.raises(BrokenLine, match="after 500 of 2,000 bytes"),
        open_url(f"{site}short/a", size=2000) as body,
    ):
        body.read()
    with (
        pytest.raises(OSError, match="1,000 bytes, but the right file has 2,000"),
        open_url(f"{site}whole/a", size=2000),
    ):
        pass
    archive = Archive("a.bin", f"{site}endless/a.bin", size=3000)
    assert fetch(archive, tmp_path).stat().st_size == 3000


def test_a_slow_reader_is_not_a_slow_server(site):
    with open_url(f"{site}whole/a", silence=0.2) as body:
        first = body.read(10)
        time.sleep(0.5)
        assert first + body.read() == b"x" * 1000


def test_a_wrong_file_of_the_right_name_is_told(site, tmp_path, capsys):
    for name in ("a.tar", "a.tar.gz", "a.tgz", "a.zip"):
        with pytest.raises(ValueError, match=f"{name}: not a (tar|zip) file .*begins with b'<html>"):
            fetch(Archive(name, f"{site}page/{name}"), tmp_path)
    made = io.BytesIO()
    tarfile.open(fileobj=made, mode="w").close()
    (tmp_path / "b.tar").write_bytes(made.getvalue())  # there already, and nobody knows what it is
    fetch(Archive("b.tar", f"{site}whole/b.tar"), tmp_path)
    assert "b.tar: no checksum is published" in capsys.readouterr().err
    fetch_file(f"{site}whole/w.pt", tmp_path / "w.pt")
    assert "w.pt: its server states no checksum" in capsys.readouterr().err


def test_devices_and_folders_are_no_files(tmp_path):
    for name in ("/dev/zero", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file"), open_source(name):
            pass
