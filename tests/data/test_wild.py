"""Tables with a header, folders without a list, and what people bring themselves."""

import shutil

import numpy as np
import pandas as pd
import pytest

from tests.data.trees import lists, read, sound, tree
from wedefense_nb.data.audio import save
from wedefense_nb.data.corpora import CorpusError, prepare, survey
from wedefense_nb.data.manifest import ManifestError
from wedefense_nb.task import label_ids

B, S = "bonafide", "spoof"


def test_noises_and_rooms_are_not_speech(tmp_path):
    u = read("rirs_noises", tree("rirs_noises", tmp_path))
    assert u.kind.value_counts().to_dict() == {"rir": 4, "noise": 2}
    assert u.room["simulated_rirs/smallroom/Room001/Room001-00001"] == "small"
    assert u.room["real_rirs_isotropic_noises/air_type1_air_office_0_1"] == "real"
    assert read("musan", tree("musan", tmp_path / "m")).kind.tolist() == ["music", "noise", "speech"]
    with pytest.raises(ValueError, match="unknown labels"):
        label_ids(u.label)  # nobody trains on them by accident


def test_generic_reads_folders_tables_and_manifests(tmp_path, few):
    for path in ("train/real/ann/x 1.wav", "eval/fake/tts/deep/er/y.wav", "eval/bona-fide/z.wav"):
        sound(tmp_path / "f" / path)
    u = read("generic", tmp_path / "f")
    assert u.label.to_dict() == {"eval/bona-fide/z": B, "eval/fake/tts/deep/er/y": S, "train/real/ann/x_1": B}
    assert u.split.tolist() == ["eval", "eval", "train"] and u.attack["eval/fake/tts/deep/er/y"] == "tts"
    sound(tmp_path / "plain/a.flac")
    assert read("generic", tmp_path / "plain").label.tolist() == [""]
    few.write(tmp_path / "manifest")
    shutil.copytree(few.root / "audio", tmp_path / "manifest/audio")
    back, problems = survey("generic", tmp_path / "manifest")
    pd.testing.assert_frame_equal(back.utterances[few.utterances.columns[:9]], few.utterances.iloc[:, :9])
    assert len(back.segments) == len(few.segments) and set(problems.problem) == {"extra"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="no sounds .* Found: nothing"):
        prepare("generic", tmp_path / "empty")


def test_tables_need_their_columns(tmp_path):
    root = lists("in_the_wild", tmp_path)
    (root / "release_in_the_wild/meta.csv").write_text("name,label\n0.wav,spoof\n")
    with pytest.raises(CorpusError, match=r"no column \['file', 'speaker'\]; found \['name', 'label'\]"):
        prepare("in_the_wild", root)
    (root / "release_in_the_wild/meta.csv").write_text("file,speaker,label\n0.wav,a,spoof,x\n1.wav\n")
    with pytest.raises((CorpusError, ManifestError)), pytest.warns(Warning):
        prepare("in_the_wild", root)


def test_known_durations_are_kept_when_headers_are_not_read(tmp_path):
    u = read("antideepfake", tree("antideepfake", tmp_path), durations=False)
    assert u.duration.tolist() == [2.22, 2.86] and set(u.sample_rate) == {16000}
    assert read("antideepfake", tmp_path).duration.max() < 2  # the header is the better witness
    other = read("antideepfake", tmp_path / "train.csv", data=tmp_path)
    assert len(other) == 2


def test_rates_come_from_headers(tmp_path):  # pitfall 59
    root = tree("wavefake", tmp_path)
    save(root / "LJSpeech-1.1/wavs/LJ001-0001.wav", np.linspace(-0.5, 0.5, 22050, dtype=np.float32), 22050)
    u = read("wavefake", root)
    assert (
        u.sample_rate["LJSpeech-1.1/wavs/LJ001-0001"] == 22050
        and u.duration["LJSpeech-1.1/wavs/LJ001-0001"] == 1.0
    )
    assert set(u.sample_rate.drop("LJSpeech-1.1/wavs/LJ001-0001")) == {16000}


def test_quotation_marks_in_transcripts_swallow_no_row(tmp_path):
    root = lists("mlaad", tmp_path)
    assert len(read("mlaad", root, files=False)) == 3


def test_codecfake_names_the_unknown_synthesizers_by_their_set(tmp_path):
    root = lists("codecfake", tmp_path)
    (root / "label/A1.txt").write_text("p225_001.wav real 0\nx_p225_001.wav fake 7\n")
    (root / "test/A1/A1").mkdir(parents=True)  # unpacked one folder deeper
    u = read("codecfake", root, files=False)
    assert u.attack["A1/x_p225_001"] == "A1" and u.attack["A1/p225_001"] == ""
    assert u.condition["A1/p225_001"] == "A1"
    assert u.path["A1/p225_001"] == "test/A1/A1/p225_001.wav" and u.path["C1/p225_001"] == "test/C1/p225_001.wav"
    assert u.split["A1/p225_001"] == "eval"


def test_wavefake_alone_says_what_is_missing(tmp_path):
    for folder in ("ljspeech_melgan", "jsut_parallel_wavegan"):
        sound(tmp_path / "generated_audio" / folder / "x_gen.wav")
    m, problems = survey("wavefake", tmp_path)
    assert m.utterances.speaker.tolist() == ["JSUT", "LJ"] and set(m.utterances.label) == {S}
    assert problems.detail.tolist() == ["bona fide speech; there is none without it"]
    sound(tmp_path / "jsut_ver1.1/basic5000/wav/x.wav")
    m, problems = survey("wavefake", tmp_path)
    assert m.utterances.speaker.tolist() == ["JSUT", "LJ", "JSUT"] and problems.empty


def test_a_table_of_ones_own_gives_durations_with_rates_or_not_at_all(tmp_path):
    (tmp_path / "x.csv").write_text("utt,path,duration,sample_rate\na,a.wav,2.5,8000\n")
    u = read("generic", tmp_path / "x.csv", files=False)
    assert (u.duration["a"], u.sample_rate["a"], u.label["a"]) == (2.5, 8000, "")
    (tmp_path / "x.csv").write_text("utt,path,duration\na,a.wav,2.5\n")
    u = read("generic", tmp_path / "x.csv", files=False)
    assert np.isnan(u.duration["a"]) and u.sample_rate["a"] == 0
    (tmp_path / "x.csv").write_text("path\n./b/my voice.wav\n")
    assert read("generic", tmp_path / "x.csv", files=False).index.tolist() == ["b/my_voice"]
