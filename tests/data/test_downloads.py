"""Fetching from a server that drops the line, lies about ranges, or has another file."""

import hashlib
import io
import tarfile
import zipfile

import pytest

from tests.conftest import Handler, serving
from wedefense_nb.data import downloads
from wedefense_nb.data.corpora import CORPORA, CorpusError
from wedefense_nb.data.downloads import ARCHIVES, Archive, download, fetch

DATA = hashlib.shake_128(b"archive").digest(100_000)


@pytest.fixture
def server():
    """A server of `files`: `limit` bytes an answer, `ranges` honoured or not; `asked` are paths and positions."""

    class Answers(Handler):
        files = {"a.bin": DATA}
        limit = 1 << 30
        ranges = True
        asked = []

        def do_GET(self):
            data = self.files.get(self.path.strip("/"))
            asked = self.headers.get("Range")
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
            self.asked.append((self.path, start))
            if data is None:
                return self.send_error(404)
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            self.wfile.write(data[start : start + self.limit])

    with serving(Answers) as Answers.mirror:
        yield Answers


A = Archive("a.bin", "https://example.org/a.bin", hashlib.md5(DATA).hexdigest())


def test_whole_file_and_again(server, tmp_path):
    assert fetch(A, tmp_path, server.mirror).read_bytes() == DATA
    fetch(A, tmp_path, server.mirror)
    assert len(server.asked) == 1 and [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_broken_line_is_taken_up_where_it_stopped(server, tmp_path):
    server.limit = 40_000
    assert fetch(A, tmp_path, server.mirror).read_bytes() == DATA
    starts = [at for _, at in server.asked]
    assert len(starts) == 3 and all(b - a > 30_000 for a, b in zip(starts[:-1], starts[1:], strict=True))


def test_an_interrupted_download_continues_with_the_next_call(server, tmp_path):
    server.limit = 40_000
    with pytest.raises(OSError, match=r"broke 1 times, \d+ bytes are here; run the same command again"):
        fetch(A, tmp_path, server.mirror, tries=1)
    have = (tmp_path / "a.bin.part").stat().st_size
    server.limit = 1 << 30
    assert 30_000 < have <= 40_000 and fetch(A, tmp_path, server.mirror).read_bytes() == DATA
    assert server.asked[-1][1] == have


def test_a_server_without_ranges_starts_again(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(b"x" * 1000)
    server.ranges = False
    assert fetch(A, tmp_path, server.mirror).read_bytes() == DATA


def test_a_complete_part_is_taken_as_it_is(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(DATA)
    assert fetch(A, tmp_path, server.mirror).read_bytes() == DATA and server.asked[-1][1] == len(DATA)


def test_wrong_content_and_missing_files_leave_nothing(server, tmp_path):
    with pytest.raises(ValueError, match="hash of downloaded file"):
        fetch(A._replace(md5="0" * 32), tmp_path, server.mirror)
    with pytest.raises(OSError, match="answers 404"):
        fetch(A._replace(name="b.bin"), tmp_path, server.mirror)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="the line broke 2 times, 0 bytes"):
        fetch(A, tmp_path, "http://127.0.0.1:9", tries=2)


def test_corpus_is_unpacked_once_and_safely(server, tmp_path, monkeypatch, capsys):
    tar = io.BytesIO()
    zipped = io.BytesIO()
    bad = io.BytesIO()
    for buffer, name in ((tar, "x/list.txt"), (bad, "../outside.txt")):
        with tarfile.open(fileobj=buffer, mode="w:gz") as t:
            entry = tarfile.TarInfo(name)
            entry.size = 3
            t.addfile(entry, io.BytesIO(b"abc"))
    with zipfile.ZipFile(zipped, "w") as z:
        z.writestr("y/list.txt", "abc")
    server.files = {
        "t.tar.gz": tar.getvalue(),
        "z.zip": zipped.getvalue(),
        "l.txt": b"text",
        "bad.tar.gz": bad.getvalue(),
    }
    names = ("t.tar.gz", "z.zip", "l.txt")
    monkeypatch.setitem(ARCHIVES, "x", [Archive(n, "http://127.0.0.1:9/" + n) for n in names])
    table = download("x", tmp_path / "c", server.mirror)
    assert capsys.readouterr().err.count("no checksum is published") == 3
    assert table.unpacked.tolist() == [True, True, False] and set(table.checksum) == {"not published"}
    assert (tmp_path / "c/x/list.txt").is_file() and (tmp_path / "c/y/list.txt").is_file()
    assert not download("x", tmp_path / "c", server.mirror).unpacked.any() and len(server.asked) == 3
    monkeypatch.setitem(ARCHIVES, "x", [Archive("bad.tar.gz", "")])
    with pytest.raises(tarfile.OutsideDestinationError):
        download("x", tmp_path / "c", server.mirror)
    assert not (tmp_path / "outside.txt").exists()
    assert download("x", tmp_path / "d", server.mirror, extract=False).bytes.tolist() == [len(bad.getvalue())]


def test_what_may_not_be_fetched_says_where_to_ask(tmp_path):
    with pytest.raises(CorpusError, match="spoofceleb: cannot be fetched.*huggingface.*gated"):
        download("spoofceleb", tmp_path)
    with pytest.raises(CorpusError, match="no archive contains 'flac_X'; there are .*flac_T_aa.tar"):
        download("asvspoof5", tmp_path, only="flac_X")
    assert set(ARCHIVES) < set(CORPORA)


def test_checksums_are_md5_or_none():
    every = [a for archives in ARCHIVES.values() for a in archives]
    assert all(a.md5 is None or (len(a.md5) == 32 and int(a.md5, 16)) for a in every)
    assert sum(a.md5 is not None for a in every) == 9 and all(a.url.startswith("https://") for a in every)
    assert len(downloads.ARCHIVES["asvspoof5"]) == 5 + 3 + 10 + 1
