"""Lists against files, headers that are remembered, and numbers beside the published ones."""

import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from tests.data.trees import lists, sound, tree
from wedefense_nb.data import corpora
from wedefense_nb.data.corpora import (
    CORPORA,
    CorpusError,
    CorpusWarning,
    Listing,
    counts,
    parser,
    prepare,
    read_headers,
    scan,
    survey,
    verdict,
)
from wedefense_nb.data.manifest import Manifest

B, S = "bonafide", "spoof"


def test_importing_corpora_imports_no_parser():
    code = "import sys, wedefense_nb.data.corpora; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "wedefense_nb.data.corpora" in done.stdout and "wedefense_nb.data.parsers" not in done.stdout


def test_a_corpus_of_ones_own_is_one_function(tmp_path, lent):
    lent(CORPORA)

    @parser("mine", title="Mine", task="detection", licence="mine", url="", good_for="me")
    def mine(root):
        u = {
            "utt": ["a"],
            "path": ["a.flac"],
            "label": "spoof",
            "split": "",
            "speaker": "",
            "attack": "x",
            "codec": "",
        }
        return Listing(pd.DataFrame(u), root)

    sound(tmp_path / "a.flac")
    assert len(prepare("mine", tmp_path, strict=True)) == 1 and "mine" in CORPORA


@pytest.mark.parametrize(("n", "said"), [(5, False), (4, True), (3, True), (2, False), (6, True)])
def test_a_list_that_is_nearly_whole_does_not_pass_for_one(tmp_path, lent, n, said):
    """Of five published trials: fewer than half are a sample, and meant to be one."""
    lent(CORPORA)
    utts = [f"u{i}" for i in range(n)]

    @parser("mine", title="", task="detection", licence="", url="", good_for="", published={("eval", B): 5})
    def mine(root):
        empty = dict.fromkeys(("speaker", "attack", "codec"), "")
        paths = [f"{utt}.flac" for utt in utts]
        return Listing(pd.DataFrame({"utt": utts, "path": paths, "label": B, "split": "eval", **empty}), root)

    _, problems = survey("mine", tmp_path, files=False)
    assert list(problems.problem) == ["counts"] * said
    if said:
        assert problems.detail[0] == f"eval bonafide: published 5, found {n}"
        with pytest.raises(CorpusError, match="counts"):
            prepare("mine", tmp_path, strict=True, files=False)


def damaged(tmp_path):
    root = tree("asvspoof2019_la", tmp_path) / "LA"
    flac = root / "ASVspoof2019_LA_train/flac"
    (flac / "LA_T_1138215.flac").unlink()
    (root / "ASVspoof2019_LA_dev/flac/LA_D_1047731.flac").write_bytes(b"no sound")
    (root / "ASVspoof2019_LA_dev/flac/LA_D_1000003.flac").write_bytes(b"")
    sound(flac / "LA_T_1004644.wav")
    sound(flac / "LA_T_7777777.flac")
    (flac / "._LA_T_1.flac").write_bytes(b"macOS")
    return root


def test_one_report_of_everything(tmp_path):  # pitfalls 18 and 53: nothing is dropped in silence
    m, problems = survey("asvspoof2019_la", damaged(tmp_path))
    assert sorted(problems.problem) == ["double", "extra", "missing", "unreadable", "unreadable"]
    # count in = count out
    assert len(m) == 3 and len(m) + (problems.problem.isin(["missing", "unreadable"])).sum() == 6
    with pytest.warns(CorpusWarning, match="1 double .* 1 extra .* 1 missing .* 2 unreadable"):
        assert len(prepare("asvspoof2019_la", tmp_path)) == 3
    with pytest.raises(CorpusError, match="1 missing"):
        prepare("asvspoof2019_la", tmp_path, strict=True)


def test_converted_and_moved_recordings_are_found(tmp_path):
    root = tree("asvspoof2019_la", tmp_path) / "LA"
    flac = root / "ASVspoof2019_LA_train/flac"
    (flac / "LA_T_1138215.flac").unlink()
    sound(flac / "LA_T_1138215.wav")
    shutil.move(root / "ASVspoof2019_LA_eval/flac", root / "ASVspoof2019_LA_eval/more")
    m = prepare("asvspoof2019_la", tmp_path, strict=True)
    assert m.utterances.path[0].endswith("LA_T_1138215.wav")
    assert m.utterances.path[4] == "ASVspoof2019_LA_eval/more/LA_E_2834763.flac"


def test_another_folder_is_believed_only_where_names_are_unique(tmp_path):
    """With x.wav in two folders, a third one could be either of them."""
    (tmp_path / "utterances.csv").write_text("path\na/x.wav\nb/x.wav\n")
    sound(tmp_path / "a/x.wav")
    sound(tmp_path / "c/x.wav")
    m, problems = survey("generic", tmp_path)
    assert m.utterances.path.tolist() == ["a/x.wav"]
    assert problems[["problem", "path"]].to_numpy().tolist() == [["missing", "b/x.wav"], ["extra", "c/x.wav"]]
    (tmp_path / "utterances.csv").write_text("path\na/x.wav\nb/y.wav\n")
    (tmp_path / "c/x.wav").rename(tmp_path / "c/y.wav")
    m, problems = survey("generic", tmp_path)
    assert m.utterances.path.tolist() == ["a/x.wav", "c/y.wav"] and problems.empty


def test_segments_beyond_several_recordings_are_all_named(tmp_path):
    for name in "ab":
        sound(tmp_path / f"{name}.wav")
    (tmp_path / "utterances.csv").write_text("path,label\na.wav,spoof\nb.wav,spoof\n")
    head = "utt,start,end,label,attack\n"
    lines = [f"{name},{t},spoof,x\n{name},{t2},bonafide,\n" for name in "ab" for t, t2 in [("0,1", "1,9")]]
    (tmp_path / "segments.csv").write_text(head + "".join(lines).replace("b,1,9", "b,1,1.629"))
    m, problems = survey("generic", tmp_path)
    assert problems.detail.tolist() == ["segment to 9.000 s, recording of 1.630 s"] and problems.path[0] == "a"
    assert m.utterances.utt.tolist() == ["b"] and m.segments.end.tolist() == [1.0, 1.629]


def test_without_any_recording_it_says_where_they_should_be(tmp_path):
    root = lists("asvspoof2019_la", tmp_path)
    with pytest.raises(CorpusError, match=r"none of the 6 listed recordings.*LA_T_1138215.flac \(files=False"):
        prepare("asvspoof2019_la", root)
    m = prepare("asvspoof2019_la", root, files=False)
    assert m.utterances.duration.isna().all() and set(m.utterances.sample_rate) == {0}
    back = Manifest.read(m.write(tmp_path / "out"), files=False)
    assert back.utterances.duration.isna().all() and len(back) == 6


def test_lists_without_rows_are_refused(tmp_path):
    (tmp_path / "ASVspoof2019_LA_cm_protocols").mkdir()
    with pytest.raises(CorpusError, match="are here, but empty"):
        prepare("asvspoof2019_la", tmp_path)


def test_headers_are_remembered_by_size_and_time(tmp_path, monkeypatch):
    root = tmp_path / "r"
    cache = tmp_path / "headers.parquet"
    for i in range(4):
        sound(root / f"{i}.flac")
    (root / "bad.flac").write_bytes(b"x")
    files = scan(root)
    opened = []

    true_info = corpora.info
    monkeypatch.setattr(corpora, "info", lambda p: (opened.append(p.name), true_info(p))[1])
    first = read_headers(root, files, cache)
    assert len(opened) == 5 and first.error.ne("").tolist() == [False] * 4 + [True]
    opened.clear()
    pd.testing.assert_frame_equal(read_headers(root, files, cache)[:4], first[:4])
    assert opened == ["bad.flac"]  # an error is not remembered
    sound(root / "2.flac", root / "0.flac").touch()
    opened.clear()
    read_headers(root, scan(root), cache)
    assert sorted(opened) == ["2.flac", "bad.flac"]


def test_interrupted_reading_is_remembered(tmp_path, monkeypatch):

    for i in range(3):
        sound(tmp_path / f"r/{i}.flac")
    true = corpora._headers
    seen = []

    def stop(root, paths):
        if seen:
            raise KeyboardInterrupt
        return seen.extend(paths) or true(root, paths)

    def one_by_one(root, paths, workers):
        yield from (stop(root, [p]) for p in paths)

    monkeypatch.setattr(corpora, "_read_new", one_by_one)
    with pytest.raises(KeyboardInterrupt):
        read_headers(tmp_path / "r", scan(tmp_path / "r"), tmp_path / "c")
    assert len(pd.read_parquet(tmp_path / "c")) == 1


def test_headers_in_threads_equal_one_thread(tmp_path):
    sound(tmp_path / "r/0.flac")
    for i in range(1, 1300):
        (tmp_path / f"r/{i}.flac").hardlink_to(tmp_path / "r/0.flac")
    files = scan(tmp_path / "r")
    one, many = (read_headers(tmp_path / "r", files, tmp_path / f"c{w}", workers=w) for w in (1, 4))
    pd.testing.assert_frame_equal(one, many)
    assert len(one) == 1300 and (one.duration == 26073 / 16000).all()


def test_a_header_without_sound_is_unreadable(tmp_path):
    sf.write(tmp_path / "0.wav", np.zeros((0, 1)), 16000)
    table = read_headers(tmp_path, scan(tmp_path), tmp_path / "c")
    assert table.error.tolist() == ["no samples"] and not (tmp_path / "c").exists()


def write_full_2019(root):
    """Lists of full size: made-up ids, published numbers."""
    folder = root / "ASVspoof2019_LA_cm_protocols"
    folder.mkdir(parents=True)
    for split, kind, bona, attacks, each in (
        ("train", "trn", 2580, range(1, 7), 3800),
        ("dev", "trl", 2548, range(1, 7), 3716),
        ("eval", "trl", 7355, range(7, 20), 4914),
    ):
        kinds = ["- bonafide"] * bona + [f"A{a:02d} spoof" for a in attacks for _ in range(each)]
        text = "".join(f"LA_0001 LA_{split[0].upper()}_{i:07d} - {k}\n" for i, k in enumerate(kinds))
        (folder / f"ASVspoof2019.LA.cm.{split}.{kind}.txt").write_text(text)


def test_counts_agree_with_the_published_ones(tmp_path):
    write_full_2019(tmp_path / "full")
    m = prepare("asvspoof2019_la", tmp_path / "full", files=False)
    table = counts(m, "asvspoof2019_la")
    assert len(table) == 6 + 6 + 6 + 13 and (table.difference == 0).all()
    assert table.trials.sum() == 121_461 + 108_978  # each spoof counts for its label and its attack
    table = counts(Manifest(m.utterances.iloc[3:]), "asvspoof2019_la")
    assert table.difference["train", "bonafide"] == -3 and table.difference["eval", "A19"] == 0
    assert verdict(table)[2] == "train bonafide: published 2,580, found 2,577"
    m = prepare("in_the_wild", lists("in_the_wild", tmp_path / "w"), files=False)
    assert counts(m, "in_the_wild").difference["eval", "spoof"] == 2 - 11816


def made(rows: dict[tuple[str, str], int], attack: str = "") -> Manifest:
    """A manifest with so many rows of each (split, label)."""
    keys = [key for key, n in rows.items() for _ in range(n)]
    split, label = ([key[i] for key in keys] for i in (0, 1))
    u = pd.DataFrame({"utt": [f"u{i}" for i in range(len(keys))], "label": label, "split": split})
    attacks = [attack if x == S else "" for x in label]
    return Manifest(u.assign(path="x", speaker="", attack=attacks, codec="", duration=np.nan, sample_rate=0))


def test_verdict_on_made_rows():
    rows = {("eval", B): 19_963, ("eval", S): 11_816}
    assert verdict(counts(made(rows), "in_the_wild")) == ["eval: as published"]
    assert verdict(counts(made(rows | {("eval", S): 11_817}), "in_the_wild")) == [
        "eval spoof: published 11,816, found 11,817"
    ]
    short = rows | {("eval", S): 11_815}
    assert verdict(counts(made(short), "in_the_wild")) == ["eval spoof: published 11,816, found 11,815"]
    only = counts(made({("eval", B): 5}), "in_the_wild")  # a class that is not there at all
    assert verdict(only) == ["eval bonafide: published 19,963, found 5; spoof: published 11,816, found 0"]
    # classes not counted apart; eval is not prepared
    split = {("dev", B): 10_000, ("dev", S): 7_823, ("train", S): 1}
    table = counts(made(split), "add2023_track2")
    assert verdict(table) == ["dev: as published", "train all: published 53,093, found 1"] and len(table) == 5
    assert verdict(counts(made({("", S): 117_985, ("", B): 7}, "ljspeech_melgan"), "wavefake")) == [
        "all: as published"
    ]
    assert verdict(counts(made(rows), "mlaad")) == [] and counts(made(rows), "mlaad").published.isna().all()
