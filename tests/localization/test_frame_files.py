"""Files of frame scores and of the truth: what is written comes back, and what does not fit is named."""

import json
import pickle
import zipfile

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import GOLDEN_DIR, ROOT
from wedefense_nb.data.manifest import ManifestError, open_manifest, to_rttm
from wedefense_nb.localization.frame_files import (
    FrameFileError,
    read_durations,
    read_frame_scores,
    read_truth,
    write_frame_scores,
)
from wedefense_nb.localization.frames import manifest_labels
from wedefense_nb.localization.metrics import point_eer, range_eer, utterance_eer

ORACLE = json.loads((GOLDEN_DIR / "localization.json").read_text())["vectors"]
FOLDER = GOLDEN_DIR / "localization"


def wedefense(path, rows):
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    return path


def refused(path, words, **options):
    with pytest.raises(FrameFileError, match=words) as error:
        read_frame_scores(path, **options)
    assert "\n" not in str(error.value) and path.name in str(error.value)


# Oracles


def rttm_of(name, folder, bonafide=True):
    """RTTM and durations of an oracle vector; its times have four decimals or fewer."""
    lines, durations = [], []
    for line in (FOLDER / f"{name}.labels.txt").read_text().splitlines():
        utt, seconds, _, *pieces = line.split()
        durations.append(f"{utt} {seconds}\n")
        for piece in pieces:
            start, end, label = piece.split("-")
            if bonafide or label == "spoof":
                length = float(end) - float(start)
                lines.append(f"SPEAKER {utt} 1 {float(start):.4f} {length:.4f} <NA> <NA> {label} <NA> <NA>\n")
    (folder / "a.rttm").write_text("".join(lines))
    (folder / "reco2dur").write_text("".join(durations))
    return folder / "a.rttm", folder / "reco2dur"


@pytest.mark.parametrize("name", ["L01_hand", "L02_on_grid", "L04_with_full_utts", "L11_tiny_segments"])
def test_oracle_from_its_files(name, tmp_path):  # pitfalls 20 and 29
    hop = ORACLE[name]["unit_seconds"]
    scores, its_hop = read_frame_scores(FOLDER / f"{name}.scores.txt", hop)
    assert its_hop == hop and sum(map(len, scores.values())) == ORACLE[name]["n_frames"]
    want = ORACLE[name]["want"]
    both, durations = rttm_of(name, tmp_path)
    truths = [read_truth(both, durations), read_truth(both)]
    truths.append(read_truth(rttm_of(name, tmp_path, bonafide=False)[0], durations))
    for truth in truths:
        assert range_eer(scores, truth, hop) == pytest.approx(want["range"]["eer_interp"], abs=1e-9)
        point = want["point"][f"{1000 * hop:g}ms"]["any"]["eer_interp"]
        assert point_eer(scores, truth, hop) == pytest.approx(point, abs=1e-9)
        if "raises" not in want["utterance"]:
            assert utterance_eer(scores, truth, hop) == pytest.approx(want["utterance"]["eer_interp"], abs=1e-9)


# Formats


def test_two_logits_become_their_difference(tmp_path):  # pitfall 20
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40, 2))
    shift = rng.normal(scale=10, size=40)
    rows = [(f"u{i // 10}", i % 10, *(logits[i] + shift[i])) for i in range(40)]
    want = logits[:, 0] - logits[:, 1]
    text = wedefense(tmp_path / "logits_frame_20ms.txt", rows)
    scores, _ = read_frame_scores(text, 0.02)
    assert np.allclose(np.concatenate([*scores.values()]), want, atol=1e-9)
    for label in (0, 1):  # the class by numbers that depend on the list of the training: nothing hangs on it
        with_class = wedefense(tmp_path / "five.txt", [(*row, label) for row in rows])
        again, _ = read_frame_scores(with_class, 0.02)
        assert all((again[utt] == scores[utt]).all() for utt in scores)
    table = pd.DataFrame(rows, columns=["utt", "frame", "bonafide", "spoof"])
    for columns in (list(table), ["spoof", "utt", "bonafide", "frame"]):
        table[columns].to_csv(tmp_path / "t.csv", index=False)
        again, _ = read_frame_scores(tmp_path / "t.csv", 0.02)
        assert all((again[utt] == scores[utt]).all() for utt in scores)


@pytest.mark.parametrize("classes", [["spoof", "bonafide"], ["bonafide", "spoof"]])
def test_arrays_of_two_columns_need_the_names_of_their_classes(tmp_path, classes):  # pitfalls 2 and 20
    rows = np.array([[1.0, 3.0], [5.0, 4.0]])
    np.savez(tmp_path / "two.npz", a=rows, hop=0.02)
    refused(tmp_path / "two.npz", "a: two values a frame, and nothing says which is bona fide; add an array")
    np.savez(tmp_path / "two.npz", a=rows, hop=0.02, classes=np.array(classes))
    scores, hop = read_frame_scores(tmp_path / "two.npz")
    sign = 1 if classes[1] == "bonafide" else -1
    assert hop == 0.02 and scores["a"].tolist() == [sign * 2.0, sign * -1.0]
    np.savez(tmp_path / "two.npz", a=rows, hop=0.02, classes=np.array(["fake", "real"]))
    refused(tmp_path / "two.npz", "'classes' must name bonafide and spoof")


def test_one_nameless_number_is_refused(tmp_path):  # pitfall 20
    refused(wedefense(tmp_path / "one.txt", [("a", 0, 0.5)]), "3 fields in the first line and no header", hop=0.02)


def pickled(path, parts):
    path.write_bytes(pickle.dumps(parts, protocol=4))
    return path


def test_pickles_of_partialspoof(tmp_path):
    rows = [["a", "-0.5", "0.75", "1.0"], ["a", "0.5", "-0.25", "0.0"]]
    path = pickled(tmp_path / "dev_score_ali_2_1.pkl", [np.array(rows), np.array([["b", "0.0", "0.5", "1.0"]])])
    scores, hop = read_frame_scores(path, 0.02)
    assert {utt: row.tolist() for utt, row in scores.items()} == {"a": [1.25, -0.75], "b": [0.5]} and hop == 0.02
    refused(path, "does not say how long a frame is; give the hop")
    again = [np.array(rows), np.array(rows)]
    for parts, words in (
        (again, "array 1: a a second time"),
        ([np.array([*rows, ["b", "0", "1", "1"]])], "array 0: a a second time, or with other recordings"),
        ([np.array(rows)[:, :3]], r"not text of four columns \(F, 4\)"),
        ([np.zeros((2, 4))], "float64"),
        ([np.array([["a", "x", "1", "1"]])], "could not convert"),
        ([np.array([["a", "nan", "1", "1"]])], "a: frame 0 is nan"),
        ([], "no recordings"),
        (3, "not PartialSpoof's list of arrays"),
    ):
        refused(pickled(path, parts), words, hop=0.02)


def test_pickles_and_archives_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    refused(pickled(tmp_path / "x_score_ali_2.pkl", [Evil()]), "asks for builtins.print", hop=0.02)
    np.savez(tmp_path / "evil.npz", a=np.array([Evil()], dtype=object), hop=0.02)
    refused(tmp_path / "evil.npz", "no NPZ file of plain arrays .Object arrays cannot be loaded")


# There and back


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["C"], exclude_characters="/\\\u2028\u2029\u0085"), min_size=1),
        st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5),
        min_size=1,
        max_size=4,
    ).filter(lambda d: not {"hop", "classes"} & set(d) and all(name == name.strip() for name in d)),
    st.sampled_from([0.01, 0.02, 1 / 75, 0.16, 257 / 16000]),
)
def test_what_is_written_comes_back_to_the_last_bit(tmp_path_factory, scores, hop):
    folder = tmp_path_factory.mktemp("there")
    for suffix in (".csv", ".npz"):
        path = write_frame_scores(scores, folder / f"f{suffix}", hop)
        longest = max(map(len, scores.values()))
        again, its_hop = read_frame_scores(path, hop if longest == 1 else None)
        assert its_hop == pytest.approx(hop, abs=1e-12)
        assert list(again) == list(scores) and all(again[utt].tolist() == scores[utt] for utt in scores)


def test_llrs_are_a_column_of_their_own(tmp_path):
    scores = {"a": np.float32([0.1, 0.2]), "b": np.float32([0.3])}
    llrs = {"b": [3.0], "a": [1.0, 2.0]}
    path = write_frame_scores(scores, tmp_path / "f.csv", 0.02, llrs)
    assert path.read_text().splitlines()[0] == "utt,start,end,score,llr"
    found, _ = read_frame_scores(path, column="llr")
    assert found["a"].tolist() == [1.0, 2.0] and found["b"].tolist() == [3.0]
    found, _ = read_frame_scores(path)
    assert (found["a"].astype(np.float32) == scores["a"]).all()
    refused(path, "need columns utt, frame or start, and other", column="other")
    with pytest.raises(ValueError, match="not those of the same frames"):
        write_frame_scores(scores, path, 0.02, {"a": [1.0, 2.0]})
    with pytest.raises(ValueError, match="an NPZ holds one number a frame"):
        write_frame_scores(scores, tmp_path / "f.npz", 0.02, llrs)
    write_frame_scores(scores, tmp_path / "f.npz", 0.02)
    refused(tmp_path / "f.npz", "no column 'llr'", column="llr")


def test_archives_are_the_same_whenever_they_are_written(tmp_path):
    one = write_frame_scores({"file": [1.0], "b": [2.0]}, tmp_path / "one.npz", 0.02).read_bytes()
    assert write_frame_scores({"file": [1.0], "b": [2.0]}, tmp_path / "two.npz", 0.02).read_bytes() == one
    with zipfile.ZipFile(tmp_path / "one.npz") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_what_cannot_be_written(tmp_path):
    for scores, name, words in (
        ({}, "f.csv", "at least one recording"),
        ({"": [1.0]}, "f.csv", "needs a name"),
        ({"a": [1.0]}, "f.txt", "written as .csv or .npz"),
        ({"a": [1.0, np.nan]}, "f.csv", "a: frame 1 is nan"),
        ({"a": [[1.0, 2.0]]}, "f.npz", "two values a frame"),
        ({"a": []}, "f.npz", r"shape \(0,\)"),
        ({"a": ["x"]}, "f.npz", "not of numbers"),
        ({"hop": [1.0]}, "f.npz", "cannot be called 'hop'"),
    ):
        with pytest.raises(ValueError, match=words):
            write_frame_scores(scores, tmp_path / name, 0.02)
    with pytest.raises(ValueError, match="a hop is a finite number"):
        write_frame_scores({"a": [1.0]}, tmp_path / "f.csv", 0.0)
    assert list(tmp_path.iterdir()) == []


# Order, doubles, gaps


def test_lines_may_come_in_any_order(tmp_path):
    rng = np.random.default_rng(0)
    rows = [(f"u{i % 3}", i // 3, float(i), 0.0) for i in range(30)]
    shuffled = [rows[i] for i in rng.permutation(30)]
    scores, _ = read_frame_scores(wedefense(tmp_path / "s.txt", shuffled), 0.02)
    assert {utt: row.tolist() for utt, row in scores.items()} == {
        f"u{k}": [float(i) for i in range(k, 30, 3)] for k in (0, 1, 2)
    }


GOOD = "a 0 1 0\na 1 2 0\n\nb 0 3 0\nb 1 4 0\n"


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("b 1", "b 0", r"line 5: frame 0 of b a second time \(line 4\)"),
        ("a 1", "a 2", "line 2: frame 2 of a, but frame 1 is missing"),
        ("b 0 3 0\n", "", "line 4: frame 1 of b, but frame 0 is missing"),
        ("b 1 4", "b 1 nan", "line 5: bonafide is 'nan', not a number"),
        ("b 1 4", "b 1 -inf", r"line 5: a score that is NaN or infinite \(1 of 4 lines\)"),
        ("b 1 4", "b 1 four", "line 5: bonafide is 'four', not a number"),
        ("b 1 4", "b 1.5 4", "line 5: frame is '1.5', not a whole number"),
        ("b 1 4", "b -1 4", "line (4|5): frame"),
        ("b 1 4 0", "b 1 4", "line 5: 3 fields where there must be 4"),
        ("a 1 2 0", "a 1 2 0 7", "line 2: 5 fields where there must be 4"),
        ("b 1 4 0\n", "b 1 4 ", "line 5: 3 fields where there must be 4"),  # the disk was full
        ("b 1 4", "b 99999999999999999999 4", "line 5: frame"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, old, new, words):  # pitfall 21
    assert GOOD.count(old) == 1
    (tmp_path / "t.txt").write_text(GOOD.replace(old, new))
    refused(tmp_path / "t.txt", words, hop=0.02)


def test_tables_with_a_header(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("frame,utt,score,note\n1,a,2.0,x\n0,a,1.0,\n0,001,3.0,NA\n", encoding="utf-8-sig")
    scores, hop = read_frame_scores(path, 0.04)
    assert {utt: row.tolist() for utt, row in scores.items()} == {"a": [1.0, 2.0], "001": [3.0]} and hop == 0.04
    refused(path, "does not say how long a frame is; give the hop")
    for text, words in (
        ("utt,frame,score\n", "no frames below the header"),
        ("utt,frame,score\n,0,1.0\n", "line 2: no name"),
        ("utt,frame,score\na,0,1.0\na,1\n", "line 3: 2 fields where there must be 3"),
        ("utt,frame,score\na,0,1.0\na,1,1,1\n", "line 3: 4 fields where there must be 3"),
        ("utt,frame,score\na,0,1.0,9\n", "line 2: 4 fields where there must be 3"),
        ("utt,frame,logit\na,0,1.0\n", "need columns utt, frame or start, and score"),
        ("utt,score\na,1.0\n", "need columns utt, frame or start, and score"),
        ("utt,frame,score,score\na,0,1.0,1.0\n", "each once"),
        ("", "empty"),
    ):
        path.write_text(text)
        refused(path, words, hop=0.02)
    path.write_bytes("utt,frame,score\nä,0,1.0\n".encode("latin-1"))
    refused(path, "not text in UTF-8", hop=0.02)
    refused(tmp_path / "none.csv", "no such file")


def test_times_tell_the_hop_and_must_lie_on_the_grid(tmp_path):
    path = tmp_path / "t.csv"
    good = "utt,start,end,score\na,0.000,0.020,1\na,0.020,0.040,2\na,0.040,0.055,3\n"
    path.write_text(good)
    scores, hop = read_frame_scores(path)
    assert hop == 0.02 and scores["a"].tolist() == [1, 2, 3]
    assert read_frame_scores(path, 0.02)[1] == 0.02
    for old, new, words in (
        ("0.020,0.040,2", "0.030,0.040,2", "line 3: 0.03 to 0.04 s is no frame of 0.02 s"),
        ("0.020,0.040,2", "0.020,0.035,2", "line 3: 0.02 to 0.035 s is no frame"),
        ("0.040,0.055", "0.040,0.085", "line 4: 0.04 to 0.085 s is no frame"),
        ("0.040,0.055", "0.040,0.040", "line 4: 0.04 to 0.04 s is no frame"),
        ("0.040,0.055", "inf,0.055", "line 4: inf to 0.055 s is no frame"),
        ("0.020,0.040", "-0.020,0.040", "line 3"),
    ):
        path.write_text(good.replace(old, new))
        refused(path, words, hop=0.02)
    path.write_text("utt,start,score\na,0.0,1\nb,0.0,2\n")
    refused(path, "the times do not say how long a frame is; give the hop")
    path.write_text("utt,start,score\na,0.000,1\na,0.013,2\na,0.027,3\n")  # 1/75 s, in three decimals
    assert read_frame_scores(path, 1 / 75)[0]["a"].tolist() == [1, 2, 3]


def test_archives_that_do_not_fit(tmp_path):
    path = tmp_path / "f.npz"
    for arrays, words, options in (
        ({"a": np.ones(3)}, "does not say how long a frame is", {}),
        ({"a": np.ones(3), "hop": 0.02}, "its frames are 0.02 s long, not 0.01 s", {"hop": 0.01}),
        ({"a": np.ones(3), "hop": np.ones(2)}, "'hop' must be one number", {}),
        ({"hop": 0.02}, "no arrays of recordings", {}),
        ({"a": np.array([1, np.inf, 2]), "hop": 0.02}, r"a: frame 1 is inf \(1 of 3 frames\)", {}),
        ({"a": np.ones((2, 3)), "hop": 0.02}, r"shape \(2, 3\)", {}),
        ({"a": np.array(["x"]), "hop": 0.02}, "not of numbers", {}),
    ):
        np.savez(path, **arrays)
        refused(path, words, **options)
    path.write_bytes(b"PK no archive")
    refused(path, "no NPZ file of plain arrays")
    np.savez(path, a=np.ones(3))
    with pytest.raises(ValueError, match="a hop is a finite number"):
        read_frame_scores(path, 0.0)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a.npy", archive.read("a.npy"))
    refused(path, "a occurs more than once", hop=0.02)


# Truth


def test_a_manifest_folder_and_its_rttm_are_one_truth(tmp_path):
    samples = ROOT / "data_samples"
    truth = read_truth(samples)
    again = read_truth(to_rttm(truth, tmp_path / "t.rttm"))
    want = manifest_labels(open_manifest(samples), 0.02)
    for found in (truth, again):
        labels = manifest_labels(found, 0.02)
        assert labels.keys() == want.keys() and all((labels[utt] == want[utt]).all() for utt in want)


def line(utt, start, length, label):
    return f"SPEAKER {utt} 1 {start:7.3f} {length:7.3f} <NA> <NA> {label} <NA> <NA>\n"


def test_fake_stretches_alone_need_durations(tmp_path):  # pitfall 29
    path = tmp_path / "spoof.rttm"
    path.write_text(line("a", 0.08, 0.06, "spoof") + line("c", 0, 0.5, "spoof"))
    with pytest.raises(FrameFileError, match="lists fake stretches only; give the durations"):
        read_truth(path)
    truth = read_truth(path, {"a": 0.2, "b": 0.12, "c": 0.4995})  # the end was rounded
    assert truth.utterances.label.tolist() == ["spoof", "bonafide", "spoof"]
    assert manifest_labels(truth, 0.04)["a"].tolist() == [1, 1, 0, 0, 1]
    assert (manifest_labels(truth, 0.04)["c"] == 0).all()
    with pytest.raises(FrameFileError, match="1 recordings have no duration, such as c"):
        read_truth(path, {"a": 0.2})
    with pytest.raises(ManifestError, match="out of range"):
        read_truth(path, {"a": 0.2, "c": 0.4})
    (tmp_path / "reco2dur").write_text("a 0.2\nc 0.5\n")
    assert read_truth(path, tmp_path / "reco2dur").utterances.duration.tolist() == [0.2, 0.5]


def test_a_list_of_both_classes_must_be_whole(tmp_path):  # pitfall 18
    path = tmp_path / "both.rttm"
    whole = line("a", 0, 0.08, "bonafide") + line("a", 0.08, 0.06, "spoof") + line("b", 0, 0.12, "bonafide")
    path.write_text(whole)
    truth = read_truth(path)
    assert truth.utterances.set_index("utt").duration.round(9).to_dict() == {"a": 0.14, "b": 0.12}
    assert truth.utterances.label.tolist() == ["spoof", "bonafide"]
    (tmp_path / "real.rttm").write_text(line("a", 0, 0.08, "bonafide"))
    assert read_truth(tmp_path / "real.rttm").utterances.label.tolist() == ["bonafide"]
    with pytest.raises(FrameFileError, match="none of 1 recordings, such as c"):
        read_truth(path, {"a": 0.14, "b": 0.12, "c": 1.0})
    path.write_text(whole.replace("0.080   0.060", "0.100   0.060"))
    with pytest.raises(FrameFileError, match="says nothing of a before 0.1 s"):
        read_truth(path)
    path.write_text(whole + line("a", 0.1, 0.02, "bonafide"))
    with pytest.raises(ManifestError, match="overlapping"):
        read_truth(path)


def test_the_order_of_an_rttm_does_not_matter(tmp_path):  # pitfall 2
    lines = [line("a", 0, 0.08, "spoof"), line("a", 0.08, 0.06, "bonafide"), line("b", 0, 0.12, "bonafide")]
    labels = []
    for order in ((0, 1, 2), (2, 1, 0)):
        (tmp_path / "t.rttm").write_text("".join(lines[i] for i in order))
        labels.append({u: x.tolist() for u, x in manifest_labels(read_truth(tmp_path / "t.rttm"), 0.02).items()})
    assert labels[0] == labels[1] and labels[0]["a"] == [0, 0, 0, 0, 1, 1, 1]


def test_truths_that_are_none(tmp_path):
    with pytest.raises(FrameFileError, match="no such file or folder"):
        read_truth(tmp_path / "none.rttm")
    with pytest.raises(ManifestError, match="no utterances.csv"):
        read_truth(tmp_path)
    (tmp_path / "t.rttm").write_text(line("a", 0, 0.00001, "spoof"))
    with pytest.raises(FrameFileError, match="no segments"):
        read_truth(tmp_path / "t.rttm")
    (tmp_path / "t.rttm").write_text(line("a", 0, 1, "fake"))
    with pytest.raises(ValueError, match="fake"):
        read_truth(tmp_path / "t.rttm")


@pytest.mark.parametrize("bad", ["a 0.2 1", "a", "a -1", "a 0", "a nan", "b 1.0"])
def test_durations_that_are_none(tmp_path, bad):
    (tmp_path / "d").write_text(f"b 1e-1\n\n{bad}\n")
    with pytest.raises(FrameFileError, match="d, line 3: "):
        read_durations(tmp_path / "d")


def test_many_frames_in_seconds(tmp_path):
    rng = np.random.default_rng(0)
    scores = {f"CON_E_{i:07d}": rng.normal(size=200) for i in range(1000)}
    for name in ("f.csv", "f.npz"):
        again, _ = read_frame_scores(write_frame_scores(scores, tmp_path / name, 0.02))
        assert all((again[utt] == scores[utt]).all() for utt in scores)
