"""The challenges: subsets, keys, versions of lists, Track 2."""

import shutil

import pytest

from tests.data.trees import lists, tree
from wedefense_nb.data.corpora import CorpusError, prepare, survey
from wedefense_nb.data.parsers.asvspoof import enrolment, track2


def test_2021_is_scored_on_the_subset_eval_only(tmp_path):
    m = prepare("asvspoof2021_la", lists("asvspoof2021_la", tmp_path), files=False)
    assert m.subset(split="eval").utterances.utt.tolist() == ["LA_E_9332881", "LA_E_7294490"]
    assert m.utterances.subset.tolist() == ["eval", "progress", "eval", "hidden"]
    assert m.utterances.transmission.tolist() == ["ita_tx", "loc_tx", "loc_tx", "-"]
    df = prepare("asvspoof2021_df", lists("asvspoof2021_df", tmp_path), files=False).utterances
    assert df.vocoder[1] == "neural_vocoder_nonautoregressive" and df.language.tolist() == [
        "-",
        "E",
        "-",
        "-",
    ]


def test_2021_without_keys_has_no_labels(tmp_path):
    folder = tmp_path / "ASVspoof2021_LA_eval"
    folder.mkdir()
    (folder / "ASVspoof2021.LA.cm.eval.trl.txt").write_text("LA_E_9332881\nLA_E_7294490\n")
    m, problems = survey("asvspoof2021_la", tmp_path, files=False)
    assert set(m.utterances.label) == {""} and problems.problem.tolist() == ["unlabelled"]
    assert "LA-keys-full.tar.gz" in problems.detail[0]


def test_asvspoof5_of_the_challenge_phase_and_in_another_folder(tmp_path):
    root = tree("asvspoof5", tmp_path)
    six = "T_4850 T_0000000000 F AC3 A05 spoof\nT_4851 T_0000000001 M - bonafide bonafide\n"
    (root / "ASVspoof5_protocols/ASVspoof5.train.tsv").write_text(six)
    (root / "ASVspoof5_eval").mkdir()
    shutil.move(root / "flac_E_eval", root / "ASVspoof5_eval/flac_E_eval")
    m = prepare("asvspoof5", root, strict=True)
    assert m.utterances.attack[0] == "A05" and m.utterances.path.str.startswith("ASVspoof5_eval/").sum() == 2
    e = m.utterances.iloc[-2]
    assert [e.gender, e.codec, e.codec_q, e.codec_seed, e.attack_tag] == ["M", "C05", "2", "E_0009486171", "AC1"]


def test_asvspoof5_track_2(tmp_path):
    root = lists("asvspoof5", tmp_path)
    t = track2(root, "dev")
    assert t.kind.tolist() == ["target", "spoof", "nontarget"] and t.attack.tolist() == ["", "A14", ""]
    assert enrolment(root, "dev") == {"D_0461": ["D_0000000777", "D_0000000190"]}
    file = root / "ASVspoof5_protocols/ASVspoof5.dev.track_2.trial.tsv"
    file.write_text(file.read_text().replace("A14 spoof", "A14 target"))
    with pytest.raises(CorpusError, match="contradict the attack column"):
        track2(root, "dev")


def test_2021_finds_its_keys_wherever_they_were_unpacked(tmp_path):
    root = lists("asvspoof2021_la", tmp_path)
    for place in ("LA-keys-full/keys/LA", "ASVspoof2021_LA_eval/keys/LA"):
        (root / "ASVspoof2021_LA_eval").mkdir(exist_ok=True)
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(next(root.rglob("CM")).parent, root / place)
        m = prepare("asvspoof2021_la", root, files=False)
        assert len(m) == 4 and m.utterances.path[0] == "ASVspoof2021_LA_eval/flac/LA_E_9332881.flac"
