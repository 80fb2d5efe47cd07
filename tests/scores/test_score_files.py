"""Everybody's score and key files: read, refused, joined, handed over."""

import numpy as np
import pandas as pd
import pytest

from wedefense_nb.scores.score_files import ScoreFileError, read_keys, read_scores, with_keys, write_scores

LAYOUTS = {
    "utt2lab": "E_1 bonafide\nE_2 spoof\n",
    "2019.trl.txt": "LA_0079 E_1 - - bonafide\nLA_0079 E_2 - A01 spoof\n",
    "5_challenge.tsv": "D_1 E_1 F - bonafide bonafide\nD_2 E_2 M - A09 spoof\n",
    "2021_la.txt": (
        "LA_9 E_1 alaw ita_tx bonafide bonafide notrim eval\n"
        "LA_9 E_2 alaw ita_tx A07 spoof notrim eval\n"
        "LA_9 E_8 alaw loc_tx A07 spoof notrim progress\n"
    ),
    "5.tsv": "D_1 E_1 F - - - - bonafide bonafide -\nD_2 E_2 M C05 2 E_9 AC1 A26 spoof -\n",
    "2021_df.txt": (
        "TEF2 E_1 low_m4a vcc2020 - bonafide notrim eval - - - - -\n"
        "TEF2 E_2 low_m4a vcc2020 A07 spoof notrim eval traditional_vocoder Task1 team20 FF E\n"
    ),
    "official.key.tsv": "filename\tcm-label\nE_1\tbonafide\nE_2\tspoof\n",
    "own.csv": "utt,path,label,split,speaker,attack\nE_1,a b.flac,bonafide,eval,x,\nE_2,c.flac,spoof,eval,x,A07\n",
}


def write(path, text, newline="\n", bom=False):
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + text.replace("\n", newline).encode())
    return path


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("newline, bom", [("\n", False), ("\r\n", True)])
def test_every_key_layout(tmp_path, name, newline, bom):
    keys = read_keys(write(tmp_path / name, LAYOUTS[name], newline, bom))
    assert keys.utt.tolist() == ["E_1", "E_2"] and keys.label.tolist() == ["bonafide", "spoof"]
    if "attack" in keys:
        assert keys.attack[0] == "" and keys.attack[1].startswith("A")


@pytest.mark.parametrize(
    "name, second",
    [
        ("2019.trl.txt", {"speaker": "LA_0079", "attack": "A01"}),
        ("5_challenge.tsv", {"speaker": "D_2", "attack": "A09"}),
        (
            "5.tsv",
            {"speaker": "D_2", "codec": "C05", "codec_q": "2", "codec_seed": "E_9", "attack": "A26"},
        ),
        (
            "2021_la.txt",
            {
                "speaker": "LA_9",
                "codec": "alaw",
                "transmission": "ita_tx",
                "attack": "A07",
                "trim": "notrim",
                "subset": "eval",
            },
        ),
        (
            "2021_df.txt",
            {
                "speaker": "TEF2",
                "codec": "low_m4a",
                "source": "vcc2020",
                "attack": "A07",
                "trim": "notrim",
                "subset": "eval",
                "vocoder": "traditional_vocoder",
            },
        ),
    ],
)
def test_columns_are_not_mixed_up(tmp_path, name, second):
    keys = read_keys(write(tmp_path / name, LAYOUTS[name]))
    assert keys.loc[1].to_dict() == {"utt": "E_2", "label": "spoof", **second}


def test_a_manifest_is_a_key_too(tmp_path):
    text = "utt,label,split,attack\nE_1,bonafide,dev,\nE_2,spoof,eval,A07\n"
    path = write(tmp_path / "utterances.csv", text)
    assert read_keys(path).utt.tolist() == ["E_2"] and read_keys(path, "dev").utt.tolist() == ["E_1"]
    assert len(read_keys(path, "")) == 2
    with pytest.raises(ScoreFileError, match="no trial of split 'train'; there are .'dev', 'eval'"):
        read_keys(path, "train")


def test_subsets_of_2021(tmp_path):
    path = write(tmp_path / "la.txt", LAYOUTS["2021_la.txt"])
    assert len(read_keys(path, subset="")) == 3 and read_keys(path, subset="progress").utt.tolist() == ["E_8"]
    with pytest.raises(ScoreFileError, match="no trial of subset 'hidden'; there are .'eval', 'progress'"):
        read_keys(path, subset="hidden")


BROKEN = {
    "empty": ("", "empty"),
    "columns": ("a b c\n", "3 columns without a header"),
    "short": ("E_1 1.0 x y\nE_2 2.0\n", "fewer than 4 fields, first: line 2"),
    "long": ("E_1 1.0\nE_2 2.0 3 4\n", "differ in their number of fields"),
    "text": ("filename\tcm-score\nE_1\tabc\n", "'abc' in row 1"),
    "nan": ("E_1 nan\n", "not numbers"),
    "double": ("E_1 1\nE_1 2\n", r"1 utterances occur more than once \(E_1\)"),
    "noscore": ("utt,label\nE_1,spoof\n", "no column score"),
    "missing": ("filename\tcm-score\nE_1\t-\n", "not numbers"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_score_files_are_refused_by_name(tmp_path, case):
    text, words = BROKEN[case]
    path = write(tmp_path / f"{case}.txt", text)
    with pytest.raises(ScoreFileError, match=words) as error:
        read_scores(path)
    assert path.name in str(error.value)


def test_broken_keys_are_refused(tmp_path):
    with pytest.raises(ScoreFileError, match="neither bonafide nor spoof.*'fake'"):
        read_keys(write(tmp_path / "k", "E_1 bonafide\nE_2 fake\n"))
    with pytest.raises(ScoreFileError, match="3 columns"):
        read_keys(write(tmp_path / "k", "E_1 bonafide x\n"))
    with pytest.raises(ScoreFileError, match="more than once"):
        read_keys(write(tmp_path / "k", "E_1 bonafide\nE_1 spoof\n"))
    with pytest.raises(ScoreFileError, match="no such file"):
        read_keys(tmp_path / "absent")


def test_an_llr_alone_is_the_score_too(tmp_path):
    table = read_scores(write(tmp_path / "s.csv", "utt,llr\nE_1,1.5\n"))
    assert table.loc[0].to_dict() == {"utt": "E_1", "score": 1.5, "llr": 1.5}
    both = read_scores(write(tmp_path / "s.csv", "llr,utt,score\n-,E_1,1.5\n"))
    assert both.columns.tolist() == ["utt", "score", "llr"] and np.isnan(both.llr[0])


def test_scores_of_2019_bring_attack_and_label(tmp_path):
    table = read_scores(write(tmp_path / "s.txt", "E_1 - bonafide 1.5\nE_2 A07 spoof -0.5\n"))
    assert table.loc[1].to_dict() == {"utt": "E_2", "score": -0.5, "attack": "A07", "label": "spoof"}


def test_infinite_scores_and_ids_with_zeros_survive(tmp_path):
    t = read_scores(write(tmp_path / "s.txt", "0007 inf\n0012 -inf\n"))
    assert t.utt.tolist() == ["0007", "0012"] and np.isinf(t.score).all()


def test_names_with_spaces_in_tabbed_files(tmp_path):
    assert read_scores(write(tmp_path / "s.tsv", "filename\tcm-score\nmy file 1\t0.5\n")).utt[0] == "my file 1"


def test_sasv_scores_keep_their_three_columns(tmp_path):
    t = read_scores(
        write(tmp_path / "s.tsv", "spk\tfilename\tcm-score\tasv-score\tsasv-score\nx\tE_1\t1.0\t-\t0.5\n")
    )
    assert t.loc[0, ["speaker", "score", "sasv_score"]].tolist() == ["x", 1.0, 0.5] and np.isnan(t.asv_score[0])


def test_scores_meet_keys_by_name_or_not_at_all(tmp_path):
    keys = read_keys(write(tmp_path / "k", LAYOUTS["5.tsv"]))
    scores = read_scores(write(tmp_path / "s", "E_2 -1.0\nE_1 1.0\n"))
    t = with_keys(scores, keys)
    assert t.utt.tolist() == ["E_1", "E_2"] and t.score.tolist() == [1, -1] and t.codec.tolist() == ["", "C05"]
    with pytest.raises(ValueError, match=r"scores: 1 missing utterances \(E_1\)"):
        with_keys(scores.iloc[:1], keys)
    more = pd.concat([scores, pd.DataFrame({"utt": ["E_8"], "score": [0.0]})])
    with pytest.raises(ValueError, match=r"keys: 1 missing utterances \(E_8\)"):
        with_keys(more, keys)
    assert len(with_keys(more, keys, allow_extra=True)) == 2
    with pytest.raises(ValueError, match="missing"):
        with_keys(scores.iloc[:1], keys, allow_extra=True)
    with pytest.raises(ValueError, match="contradict"):
        with_keys(scores.assign(label=["bonafide", "spoof"]), keys)
    assert with_keys(scores.assign(label=["spoof", "bonafide"]), keys).label.tolist() == ["bonafide", "spoof"]
    unknown = with_keys(scores.assign(label="", attack="?"), keys)  # the keys know better
    assert unknown.label.tolist() == ["bonafide", "spoof"] and unknown.attack.tolist() == ["", "A26"]
    assert unknown.columns.tolist()[:3] == ["utt", "score", "label"]


@pytest.mark.parametrize("layout", ["csv", "asvspoof5", "asvspoof2021", "asvspoof2019"])
def test_round_trip_to_the_last_bit(tmp_path, layout):
    rng = np.random.default_rng(0)
    t = pd.DataFrame(
        {
            "utt": [f"E_{i}" for i in range(50)],
            "score": rng.normal(size=50) * 1e3,
            "llr": rng.normal(size=50),
            "label": ["spoof"] * 50,
            "attack": ["A07"] * 50,
        }
    )
    back = read_scores(write_scores(t, tmp_path / "x" / layout, layout))
    assert np.array_equal(back.score, t.score) and back.utt.tolist() == t.utt.tolist()
    if layout != "csv":
        assert np.array_equal(read_scores(write_scores(t, tmp_path / layout, layout, column="llr")).score, t.llr)


def test_layouts_are_those_of_the_challenges(tmp_path):
    table = pd.DataFrame({"utt": ["E_1", "E_2"], "score": [1.5, -2.0], "llr": [0.25, -1.0]})
    table = table.assign(label=["bonafide", "spoof"], attack=["", "A07"])
    texts = {
        "csv": "utt,score,llr,label,attack\nE_1,1.5,0.25,bonafide,\nE_2,-2.0,-1.0,spoof,A07\n",
        "asvspoof5": "filename\tcm-score\nE_1\t0.25\nE_2\t-1.0\n",
        "asvspoof2021": "E_1 0.25\nE_2 -1.0\n",
        "asvspoof2019": "E_1 - bonafide 0.25\nE_2 A07 spoof -1.0\n",
    }
    for layout, text in texts.items():
        path = write_scores(table, tmp_path / "deep" / layout, layout, column="llr")
        assert path.read_text() == text
    with pytest.raises(ValueError, match="layout must be csv"):
        write_scores(table, tmp_path / "y", "json")
    assert not (tmp_path / "y").exists()
