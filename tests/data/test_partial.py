"""Five ways to say where the fake is become the same segments, and contradictions are refused."""

import json
import pickle
import shutil

import numpy as np
import pytest

from tests.data.trees import SEGMENTS_PS, frames, lists, tree
from wedefense_nb.data.corpora import CorpusError, prepare, survey
from wedefense_nb.data.parsers.partial import RESOLUTIONS, segment_labels, segments_from_labels


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_partialspoof_at_every_published_resolution(resolution, tmp_path):
    root = tree("partialspoof", tmp_path)
    got = segment_labels(root, "train", resolution)
    assert {u: "".join(map(str, v)) for u, v in got.items()} == {
        u: "".join(frames(p, resolution)) for u, p in SEGMENTS_PS["train"].items()
    }
    m = prepare("partialspoof", root, resolution=resolution)
    s = m.segments[m.segments.utt == "CON_T_0000029"]
    assert s.label.tolist() == ["spoof", "bonafide"]
    assert s.end.iloc[0] == pytest.approx(np.ceil(0.513 / resolution - 1e-9) * resolution)
    assert s.end.iloc[-1] == m.utterances.duration[0]  # 1.6295625 s: no resolution divides it
    assert "CON_T_0000030" not in set(m.segments.utt)  # fake throughout


def test_partialspoof_without_rttm_uses_the_finest_labels(tmp_path):  # pitfall 29
    root = lists("partialspoof", tmp_path)
    shutil.rmtree(root / "database/train/con_data")
    m, problems = survey("partialspoof", root, files=False)
    assert m.segments[m.segments.utt == "CON_T_0000029"].end.iloc[0] == pytest.approx(0.52)  # 0.513 at 10 ms
    assert m.segments[m.segments.utt == "CON_D_0000000"].start.iloc[1] == pytest.approx(0.08) and problems.empty
    shutil.rmtree(root / "database/segment_labels")
    assert survey("partialspoof", root, files=False)[1].detail.tolist() == ["segments"]
    with pytest.raises(CorpusError, match="Expected here: segment_labels"):
        segment_labels(root, "train", 0.16)
    with pytest.raises(ValueError, match="resolution 0.05"):
        segment_labels(root, "train", 0.05)


def test_partialspoof_with_flipped_or_foreign_labels_is_refused(tmp_path):  # pitfall 2
    root = lists("partialspoof", tmp_path)
    shutil.rmtree(root / "database/train/con_data")
    path = root / "database/segment_labels/train_seglab_0.01.npy"
    good = np.load(path, allow_pickle=True).item()
    np.save(path, {u: np.where(v == "1", "0", "1") for u, v in good.items()}, allow_pickle=True)
    with pytest.raises(CorpusError, match="polarity"):
        prepare("partialspoof", root, files=False)
    np.save(path, good | {"CON_T_0000029": np.array(["0", "2"])}, allow_pickle=True)
    with pytest.raises(CorpusError, match=r"labels \['2'\]"):
        segment_labels(root, "train", 0.01)


def test_label_files_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    root = lists("partialspoof", tmp_path)
    path = root / "database/segment_labels/train_seglab_0.16.npy"
    for protocol in (2, 4):
        with open(path, "wb") as f:
            np.lib.format.write_array_header_1_0(f, {"descr": "|O", "fortran_order": False, "shape": ()})
            pickle.dump(np.array({"a": Evil()}, dtype=object), f, protocol=protocol)
        with pytest.raises(CorpusError, match=r"refused: the pickle asks for (builtins|__builtin__).print"):
            segment_labels(root, "train", 0.16)
        with open(path, "wb") as f:
            np.lib.format.write_array_header_1_0(f, {"descr": "|O", "fortran_order": False, "shape": ()})
            pickle.dump(np.array({"a": np.array(["0", "1"])}, dtype=object), f, protocol=protocol)
        assert segment_labels(root, "train", 0.16)["a"].tolist() == [0, 1]


def test_runs_and_frames_are_inverse():
    rng = np.random.default_rng(0)
    labels = {f"u{i}": rng.integers(0, 2, rng.integers(1, 40)).astype(np.int8) for i in range(50)}
    s = segments_from_labels(labels, 0.02)
    for utt, x in s.groupby("utt", sort=False):
        back = np.concatenate(
            [
                np.full(round((b - a) / 0.02), y == "bonafide")
                for a, b, y in zip(x.start, x.end, x.label, strict=True)
            ]
        )
        assert np.array_equal(back.astype(np.int8), labels[utt]) and (x.label != x.label.shift()).all()


def test_segments_far_outside_their_recording_are_set_aside(tmp_path):
    root = tree("had", tmp_path)
    file = root / "HAD_train/HAD_train_label.txt"
    file.write_text(file.read_text().replace("1.00-1.63-T 0", "1.00-2.63-T 0"))
    m, problems = survey("had", root)
    assert problems.problem.tolist() == ["segments"] and "2.630 s, recording of 1.630 s" in problems.detail[0]
    assert "HAD_train_fake_00000001" not in set(m.utterances.utt) | set(m.segments.utt)


def test_lav_df_by_sound_not_by_picture(tmp_path):
    m = prepare("lav_df", tree("lav_df", tmp_path))
    u = m.utterances.set_index("utt")
    assert u.label["dev/000003"] == "bonafide" and u.modify_video["dev/000003"]
    data = json.loads((tmp_path / "metadata.min.json").read_text())
    (tmp_path / "metadata.min.json").write_text(
        json.dumps([{k: v for k, v in d.items() if k != "modify_audio"} for d in data])
    )
    with pytest.raises(CorpusError, match="no \\['modify_audio'\\] in it"):
        prepare("lav_df", tmp_path)


def test_had_and_add_say_where_and_what(tmp_path):
    root = lists("add2023_track2", tmp_path)
    for path in ("ADD2023_Track2_train", "ADD2023_Track2_dev"):
        shutil.rmtree(root / path)
    (root / "ADD2023_Track2_test/wav").mkdir(parents=True)
    (root / "ADD2023_Track2_test/wav/x.wav").touch()
    m, problems = survey("add2023_track2", root, files=False)  # the test set alone
    assert m.utterances[["utt", "label", "split"]].to_numpy().tolist() == [["x", "", "eval"]]
    assert m.segments.empty and problems.problem.tolist() == ["missing", "missing"]
    had = lists("had", tmp_path / "had")
    file = had / "HAD_dev/HAD_dev_label.txt"
    file.write_text("HAD_dev_fake_00000001 0.00-0.40-F/0.40-1.63 0\n")
    with pytest.raises(CorpusError, match="'0.40-1.63' is not start-end-T or start-end-F"):
        prepare("had", had, files=False)


@pytest.mark.parametrize(
    "line",
    [
        "x 2.0 spoof 0.0-0.9-bonafide 1.0-2.0-spoof",
        "x 2.0 spoof 0.0-1.0-bonafide 1.0-1.9-spoof",
        "x 2.0 spoof 0.1-1.0-bonafide 1.0-2.0-spoof",
        "x 2.0 spoof 0.0-1.0-real 1.0-2.0-spoof",
        "x 2.0 fake 0.0-2.0-spoof",
        "x 2.0 spoof",
        "x 2.0",
        "x 2.0 spoof 0.0-2.0",
    ],
)
def test_llama_lines_tile_their_recording(line, tmp_path):
    (tmp_path / "label_R01TTS.0.a.txt").write_text(f"y 1.0 bonafide 0.0-1.0-bonafide\n\n{line}\n")
    said = "line 3 is not UTT SECONDS LABEL start-end-label … without gaps: 'x 2.0"
    with pytest.raises(CorpusError, match=said):
        survey("llamapartialspoof", tmp_path, files=False)


def test_segments_beyond_their_recordings_are_named_in_every_split(tmp_path):
    root = tree("partialspoof", tmp_path)
    for split, utt in (("train", "CON_T_0000029"), ("dev", "CON_D_0000000")):
        file = root / f"database/{split}/con_data/rttm_2cls_0sil"
        text = file.read_text()
        file.write_text(text + f"SPEAKER {utt} 1   1.630   3.000 <NA> <NA> spoof <NA> <NA>\n")
    m, problems = survey("partialspoof", root)
    assert problems.path.tolist() == ["CON_T_0000029", "CON_D_0000000"] and set(problems.problem) == {"segments"}
    assert "segment to 4.630 s, recording of 1.630 s" in problems.detail[1]
    assert set(m.utterances.utt) == {"LA_T_9497115", "CON_T_0000030", "LA_E_2834763"} and m.segments.empty


def test_segments_with_a_hole_or_without_an_end_are_set_aside(tmp_path):
    root = tree("partialspoof", tmp_path)
    file = root / "database/train/con_data/rttm_2cls_0sil"
    lines = [line.split() for line in file.read_text().splitlines()]
    of_one = [line for line in lines if line[1] == "CON_T_0000029"]
    assert [line[7] for line in of_one] == ["spoof", "bonafide"]
    late = [*of_one[0][:3], "0.200", "0.313", *of_one[0][5:]]
    shorter, cut = ([*line[:4], "0.300", *line[5:]] for line in of_one)
    for kept in ([late, of_one[1]], [shorter, of_one[1]], [of_one[0], cut]):  # holes
        others = [line for line in lines if line[1] != "CON_T_0000029"]
        file.write_text("".join(" ".join(line) + "\n" for line in [*kept, *others]))
        m, problems = survey("partialspoof", root)
        assert problems.path.tolist() == ["CON_T_0000029"] and "do not cover it" in problems.detail[0]
        assert "CON_T_0000029" not in set(m.utterances.utt) | set(m.segments.utt) and len(m) == 4
    with pytest.raises(CorpusError, match="do not cover it"):
        prepare("partialspoof", root, strict=True)


def test_fake_periods_are_cut_at_the_end_and_may_touch(tmp_path):
    clip = {"file": "train/1.mp4", "duration": 2.0, "modify_video": False, "modify_audio": True, "split": "train"}
    clips = [clip | {"fake_periods": [[1.5, 2.5], [0.0, 0.5], [0.5, 0.7]]}]
    (tmp_path / "metadata.min.json").write_text(json.dumps(clips))
    s = prepare("lav_df", tmp_path, files=False).segments
    assert s[["start", "end"]].to_numpy().tolist() == [[0.0, 0.5], [0.5, 0.7], [0.7, 1.5], [1.5, 2.0]]
    assert s.label.tolist() == ["spoof", "spoof", "bonafide", "spoof"]
