"""Whole or not there, found wherever one is."""

import os

import pytest

from tests.conftest import ROOT
from wedefense_nb.files import atomic, cache_dir, locate


class Stop(Exception):
    pass


def test_half_a_file_never_has_its_name(tmp_path):
    file = tmp_path / "last.pt"
    for _ in range(2):
        with pytest.raises(Stop), atomic(file) as partial:
            partial.write_text("ha")
            raise Stop
        assert not file.exists() or file.read_text() == "whole"
        assert not list(tmp_path.glob("partial-*"))
        with atomic(file) as partial:
            partial.write_text("whole")
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_the_other_name_lies_beside_with_the_same_suffix_and_is_ones_own(tmp_path):
    with atomic(tmp_path / "deep/sound.flac") as partial:
        assert (
            partial.parent == tmp_path / "deep" and partial.suffix == ".flac" and str(os.getpid()) in partial.name
        )
        partial.write_bytes(b"x")
    assert (tmp_path / "deep/sound.flac").read_bytes() == b"x"


def test_a_block_that_writes_nothing_leaves_the_old_file(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "a"):
        pass
    assert (tmp_path / "a").read_text() == "old"


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("WEDEFENSE_NB_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("WEDEFENSE_NB_CACHE")
    assert cache_dir().name == "wedefense_nb"


def test_locate_looks_here_then_above_then_at_what_the_package_brings(tmp_path, monkeypatch):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "data_samples").mkdir()
    monkeypatch.chdir(tmp_path / "a/b")
    assert locate("data_samples") == tmp_path / "data_samples"  # one's own comes first
    (tmp_path / "data_samples").rmdir()
    assert locate("data_samples") == ROOT / "data_samples"
    with pytest.raises(FileNotFoundError, match="no-such-thing: not found in"):
        locate("no-such-thing")
    with pytest.raises(FileNotFoundError, match="data_samples"):  # a start that is given is all there is
        locate("data_samples", tmp_path)
    assert locate("b", tmp_path / "a") == tmp_path / "a/b"
    assert locate(tmp_path / "a") == tmp_path / "a"
