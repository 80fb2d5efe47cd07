"""Text lists: what is harmless and what is not (pitfalls 2, 21)."""

import pandas as pd
import pytest

from wedefense_nb.data.corpora import CorpusError
from wedefense_nb.data.lists import agree, each_list, find_root, joined, read_fields, rows, to_labels


def test_quotation_marks_are_text_and_lengths_are_counted(tmp_path):
    (tmp_path / "x").write_text('a "b\nc d"\n')
    assert read_fields(tmp_path / "x", [2]).to_numpy().tolist() == [["a", '"b'], ["c", 'd"']]
    for text in ("", "\n\n"):
        (tmp_path / "x").write_text(text)
        with pytest.raises(CorpusError, match="need 2 or 5 fields"):
            read_fields(tmp_path / "x", [2, 5])
    (tmp_path / "x").write_text("a b c\n1 2 3\n")  # the list of another corpus
    with pytest.raises(
        CorpusError, match=r"need 2 or 5 fields in every line; 2 lines, first: line 1 \(3 fields\)"
    ):
        read_fields(tmp_path / "x", [2, 5])
    (tmp_path / "x").write_text("0007 1e5 nan -\n")
    assert read_fields(tmp_path / "x", [4]).iloc[0].tolist() == ["0007", "1e5", "nan", "-"]


def test_every_line_has_as_many_fields_as_the_first(tmp_path):
    """A list may have five fields a line or six, and not both."""
    (tmp_path / "x").write_text("a b c d e\n1 2 3 4 5 6\n")
    said = r"need 5 or 6 fields in every line; 1 lines, first: line 2 \(6 fields\)"
    with pytest.raises(CorpusError, match=said):
        read_fields(tmp_path / "x", [5, 6])
    (tmp_path / "x").write_text("\n1 2 3 4 5 6\n\n1 2 3 4 5 6\n")
    assert read_fields(tmp_path / "x", [5, 6]).shape == (2, 6)


def test_the_root_may_be_one_folder_higher(tmp_path):
    (tmp_path / "LA/lists").mkdir(parents=True)
    (tmp_path / "readme.txt").touch()
    assert find_root("x", tmp_path, ["none", "lists"], inside=["LA"]) == tmp_path / "LA"
    assert find_root("x", tmp_path / "LA", ["lists"], inside=["LA"]) == tmp_path / "LA"
    with pytest.raises(CorpusError, match="not the root of x. Expected here: lists. Found: LA/, readme.txt$"):
        find_root("x", tmp_path, ["lists"])
    for i in range(10):
        (tmp_path / f"{i}").touch()
    with pytest.raises(CorpusError, match="Found: 0, 1, .*, 9 and 2 more$"):
        find_root("x", tmp_path, ["lists"])


def test_words_and_contradictions_are_named_with_their_row():
    words = {"real": "bonafide", "fake": "spoof", "?": ""}
    column = pd.Series(["real", "fake", "?"], index=[7, 8, 9])
    assert to_labels(column, words, "x").to_dict() == {7: "bonafide", 8: "spoof", 9: ""}
    with pytest.raises(CorpusError, match="x: label 'Fake', 'spoof' .first in row 2. is none of real, fake"):
        to_labels(pd.Series(["real", "spoof", "Fake"]), words, "x")
    agree(pd.Series(["bonafide", "spoof"]), pd.Series([True, False]), "x", "y")
    with pytest.raises(CorpusError, match="x: labels contradict y in 1 rows, first row 2 .label spoof."):
        agree(pd.Series(["bonafide", "spoof"]), pd.Series([True, True]), "x", "y")


def test_lists_that_are_not_there_are_noted(tmp_path):
    (tmp_path / "a.txt").write_text("1 2\n")
    problems = []
    found = list(each_list(tmp_path, {"train": "a.txt", "dev": "b.txt"}, [2], problems))
    assert [(key, path.name, len(table)) for key, path, table in found] == [("train", "a.txt", 1)]
    assert problems == [("missing", "b.txt", "list of dev")]


def test_rows_are_those_of_a_manifest():
    table = rows(pd.Series(["a", "b"]), "flac", ".wav", label="spoof", attack=["x", "y"], codec_q="3")
    assert table.path.tolist() == ["flac/a.wav", "flac/b.wav"] and table.attack.tolist() == ["x", "y"]
    assert table.iloc[0, 2:].to_dict() == {
        "split": "",
        "speaker": "",
        "attack": "x",
        "codec": "",
        "label": "spoof",
        "codec_q": "3",
    }
    assert rows(pd.Series(["a"]), path=pd.Series(["x/a.mp3"]), label="").path.tolist() == ["x/a.mp3"]
    assert joined([table, table]).index.tolist() == [0, 1, 2, 3] and len(joined([])) == 0
