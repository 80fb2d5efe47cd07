"""Every corpus on a miniature tree with the owners' layout: rows, labels, segments, and everything that can be wrong."""

import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from wedefense_nb.data.audio import save
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
from wedefense_nb.data.lists import read_fields
from wedefense_nb.data.manifest import Manifest, ManifestError
from wedefense_nb.data.parsers.asvspoof import enrolment, track2
from wedefense_nb.data.parsers.partial import RESOLUTIONS, segment_labels, segments_from_labels

from tests.data.trees import LISTS, SEGMENTS_PS, frames, lists, sound, tree

NAMES = ("asvspoof2019_la", "asvspoof2021_la", "asvspoof2021_df", "asvspoof5", "partialspoof", "wavefake", "in_the_wild", "had",
         "llamapartialspoof", "mlaad", "cfad", "spoofceleb", "deepfake_eval_2024", "lav_df", "add2023_track2", "codecfake",
         "antideepfake", "musan", "rirs_noises", "generic")  # fmt: skip
B, S, N = "bonafide", "spoof", ""
EXPECTED = {  # utt: (label, split, attack, speaker, codec)
    "asvspoof2019_la": {"LA_T_1138215": (B, "train", "", "LA_0079", ""), "LA_T_1004644": (S, "train", "A01", "LA_0079", ""),
                        "LA_D_1047731": (B, "dev", "", "LA_0069", ""), "LA_D_1000003": (S, "dev", "A06", "LA_0070", ""),
                        "LA_E_2834763": (S, "eval", "A11", "LA_0039", ""), "LA_E_2000001": (B, "eval", "", "LA_0040", "")},
    "asvspoof2021_la": {"LA_E_9332881": (S, "eval", "A07", "LA_0009", "alaw"), "LA_E_8589971": (S, "", "A07", "LA_0009", "alaw"),
                        "LA_E_7294490": (B, "eval", "", "LA_0020", "g722"), "LA_E_5678901": (S, "", "A09", "LA_0031", "none")},
    "asvspoof2021_df": {"DF_E_2000011": (S, "", "A14", "LA_0023", "nocodec"),
                        "DF_E_2000013": (S, "eval", "Task1-team20", "TEF2", "low_m4a"),
                        "DF_E_2000024": (B, "eval", "", "TGF1", "mp3m4a"), "DF_E_2000099": (B, "", "", "LA_0041", "high_ogg")},
    "asvspoof5": {"T_0000000000": (S, "train", "A05", "T_4850", ""), "T_0000000001": (B, "train", "", "T_4851", ""),
                  "D_0000000169": (S, "dev", "A14", "D_4461", ""), "D_0000000190": (B, "dev", "", "D_0461", ""),
                  "E_0009538969": (S, "eval", "A26", "E_1607", "C05"), "E_0000000001": (B, "eval", "", "E_1608", "")},
    "partialspoof": {"CON_T_0000029": (S, "train", "CON", "LA_0079", ""), "LA_T_9497115": (B, "train", "", "LA_0098", ""),
                     "CON_T_0000030": (S, "train", "CON", "LA_0079", ""), "CON_D_0000000": (S, "dev", "CON", "LA_0069", ""),
                     "LA_E_2834763": (B, "eval", "", "LA_0039", "")},
    "wavefake": {"ljspeech_melgan/LJ001-0001_gen": (S, "", "ljspeech_melgan", "LJ", ""),
                 "ljspeech_hifiGAN/LJ001-0001_gen": (S, "", "ljspeech_hifiGAN", "LJ", ""),
                 "jsut_parallel_wavegan/BASIC5000_0001_gen": (S, "", "jsut_parallel_wavegan", "JSUT", ""),
                 "LJSpeech-1.1/wavs/LJ001-0001": (B, "", "", "LJ", "")},
    "in_the_wild": {"0": (S, "eval", "", "Alec Guinness", ""), "1": (S, "eval", "", "Alec Guinness", ""),
                    "2": (B, "eval", "", "Barack Obama", "")},
    "had": {"HAD_train_fake_00000001": (S, "train", "", "", ""), "HAD_train_real_00000002": (B, "train", "", "", ""),
            "HAD_dev_fake_00000001": (S, "dev", "", "", ""), "HAD_test_00000003": (S, "eval", "", "", "")},
    "llamapartialspoof": {"dev01-cosyvoice-full_1462_170145_000020_000002": (S, "eval", "cosyvoice", "1462", ""),
                          "dev-clean_1462_170145_000020_000002": (B, "eval", "", "1462", ""),
                          "dev01-cosyvoice-partial-cp_1272_128104_000005_000014": (S, "eval", "cosyvoice", "1272", "")},
    "mlaad": {"fake/en/tts_models_en_vits/a_01": (S, "", "vits", "elizabeth_klett", ""),
              "fake/en/tts_models_en_vits/a_02": (S, "", "vits", "elizabeth_klett", ""),
              "fake/zh-cn/my_tts/b": (S, "", "my tts", "karlsson", "")},
    "cfad": {"clean_version/train_clean/real_clean/aishell3/SSB09660003": (B, "train", "", "", ""),
             "clean_version/test_unseen_clean/fake_clean/world/SSB09660004_world": (S, "eval", "world", "", ""),
             "noisy_version/dev_noise/fake_noise/gl/SSB09660005_gl": (S, "dev", "gl", "", ""),
             "codec_version/test_seen_codec/fake_codec/lpcnet/SSB09660003_lpcnet_m4a": (S, "eval", "lpcnet", "", "m4a")},
    "spoofceleb": {"a00/id10318/YYsxcZ5saac-00002-006": (B, "train", "", "id10318", ""),
                   "a05/id10318/YYsxcZ5saac-00002-006": (S, "train", "a05", "id10318", ""),
                   "a00/id10326/NKOA_Q89wDM-00066-003": (B, "dev", "", "id10326", ""),
                   "a23/id10999/x-00001-001": (S, "eval", "a23", "id10999", "")},
    "deepfake_eval_2024": {"my_clip.wav": (S, "train", "", "", ""), "b.dat": (B, "eval", "", "", ""),
                           "d.mp4": (S, "eval", "", "", "")},
    "lav_df": {"train/000001": (S, "train", "", "", ""), "dev/000003": (B, "dev", "", "", ""),
               "test/000004": (B, "eval", "", "", "")},
    "add2023_track2": {"ADD2023_T2_T_00000001": (B, "train", "", "", ""), "ADD2023_T2_T_00000002": (S, "train", "", "", ""),
                       "ADD2023_T2_D_00000001": (S, "dev", "", "", ""), "ADD2023_T2_E_00000001": (N, "eval", "", "", "")},
    "codecfake": {"train/SSB13650058": (B, "train", "", "", ""), "train/F01_SSB13650058": (S, "train", "F01", "", ""),
                  "dev/SSB13650059": (B, "dev", "", "", ""), "C1/p225_001": (B, "eval", "", "", ""),
                  "C1/F01_p225_001": (S, "eval", "F01", "", ""), "C2/p225_001": (B, "eval", "", "", ""),
                  "C2/F02_p225_001": (S, "eval", "F02", "", "")},
    "antideepfake": {"ASV19LAdemo-LA_E_7583177": (S, "eval", "A10", "LA_0045", ""),
                     "ASV19LAdemo-LA_D_1803008": (B, "dev", "", "LA_0074", "")},
    "musan": {"music-fma-0000": (N, "", "", "", ""), "noise-free-sound-0000": (N, "", "", "", ""),
              "speech-us-gov-0001": (N, "", "", "", "")},
    "rirs_noises": {x: (N, "", "", "", "") for x in (
        "simulated_rirs/smallroom/Room001/Room001-00001", "simulated_rirs/largeroom/Room001/Room001-00001",
        "real_rirs_isotropic_noises/RVB2014_type1_rir_largeroom1_1", "real_rirs_isotropic_noises/air_type1_air_office_0_1",
        "real_rirs_isotropic_noises/RVB2014_type1_noise_largeroom1_1", "pointsource_noises/noise-free-sound-0000")},
    "generic": {"my_clips/a_b": (S, "", "tts 1", "", ""), "c": (B, "", "", "", "")},
}  # fmt: skip
PARTIAL = {  # what is fake, in seconds
    "partialspoof": {"CON_T_0000029": [(0, 0.513)], "CON_D_0000000": [(0.08, 0.4)]},
    "had": {
        "HAD_train_fake_00000001": [(0.4, 1.0)],
        "HAD_dev_fake_00000001": [(0, 0.4)],
        "HAD_test_00000003": [(0.43, 1.02)],
    },
    "add2023_track2": {
        "ADD2023_T2_T_00000002": [(1.0, 26073 / 16000)],
        "ADD2023_T2_D_00000001": [(0.25, 0.8)],
    },
    "llamapartialspoof": {"dev01-cosyvoice-partial-cp_1272_128104_000005_000014": [(0.38, 0.81)]},
    "lav_df": {"train/000001": [(0.5, 0.9)]},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WEDEFENSE_NB_CACHE", str(tmp_path / "cache"))


def read(name, root, **options):
    """survey, so that small problems do not warn."""
    return survey(name, root, **options)[0].utterances.set_index("utt")


# What is there


def test_all_names_are_there_with_a_card():
    assert sorted(CORPORA) == sorted(NAMES) and len(CORPORA) == 20
    table = CORPORA.table()
    assert table.index.tolist() == sorted(NAMES) and (table.good_for != "").all() and (table.licence != "").all()
    assert table.drop(index="generic").url.str.startswith("http").all()
    assert set(table.task) == {"detection", "localization", "augmentation"}
    assert (
        table.trials["asvspoof5"] == 1_004_081
        and table.hours["in_the_wild"] == 38.0
        and pd.isna(table.trials["mlaad"])
    )
    with pytest.raises(KeyError):
        CORPORA["asvspoof2015"]
    with pytest.raises(
        ValueError, match=r"unknown corpus 'asvspoof2015': did you mean 'asvspoof5'\? There are .*asvspoof5"
    ):
        prepare("asvspoof2015", ".")


def test_importing_corpora_imports_no_parser():
    code = "import sys, wedefense_nb.data.corpora; print([m for m in sys.modules if m.startswith('wedefense_nb.data.parsers')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("name", NAMES)
def test_miniature_tree(name, tmp_path):  # pitfall 58: mp4 and dat are read through PyAV
    root = tree(name, tmp_path / "a b")
    m, problems = survey(name, root)
    allowed = {"deepfake_eval_2024": {"unlabelled"}, "codecfake": set()}.get(name, set())
    assert set(problems.problem) == allowed, problems
    u = m.utterances.set_index("utt")
    got = {utt: (r.label, r.split, r.attack, r.speaker, r.codec) for utt, r in u.iterrows()}
    assert got == EXPECTED[name]
    assert all(p.is_file() for p in m.paths()) and set(m.utterances.corpus) <= {name, "ASV19LAdemo"}
    assert u.duration.between(1.5, 1.8).all() and set(u.sample_rate) == {16000}
    fakes = {
        utt: [(a, b) for a, b, label in zip(s.start, s.end, s.label, strict=True) if label == "spoof"]
        for utt, s in m.segments.groupby("utt")
    }
    wanted = PARTIAL.get(name, {})
    assert set(fakes) == set(wanted)
    for utt, spans in wanted.items():
        assert np.allclose(fakes[utt], spans, atol=1e-6), utt
        s = m.segments[m.segments.utt == utt]
        assert s.start.iloc[0] == 0 and np.allclose(s.start[1:], s.end[:-1])  # tiled
        assert s.end.iloc[-1] <= u.duration[utt] + 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_wrong_root_says_what_was_expected_and_found(name, tmp_path):
    (tmp_path / "holiday pictures").mkdir()
    with pytest.raises(CorpusError, match="holiday pictures|need AntiDeepfake"):
        prepare(name, tmp_path)
    with pytest.raises(CorpusError, match="no such folder|no CSV here"):
        prepare(name, tmp_path / "nowhere")


# Lists: what is harmless and what is not (pitfalls 2, 21)

TEXT = {n: next(iter(LISTS[n])) for n in NAMES if LISTS[n] and n != "rirs_noises"}
FIELDS = [n for n, p in TEXT.items() if p.endswith((".txt", ".tsv"))]


@pytest.mark.parametrize("name", sorted(TEXT))
def test_bom_crlf_and_blanks_change_nothing(name, tmp_path):
    root = lists(name, tmp_path)
    before = read(name, root, files=False)
    for path in LISTS[name]:
        text = (root / path).read_text()
        if name in FIELDS:
            text = text.replace("\n", "  \n\n")
        (root / path).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    pd.testing.assert_frame_equal(read(name, root, files=False), before)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize(
    "damage", ["one field less", "one field more", "cut last line", "not UTF-8", "unknown label", "twice"]
)
def test_broken_lines_are_named(name, damage, tmp_path):
    root = lists(name, tmp_path)
    file = root / TEXT[name]
    first, *rest = file.read_text().splitlines()
    change = {
        "one field less": [first, " ".join(rest[0].split()[1:])],
        "one field more": [first, rest[0] + " x"],
        "cut last line": [first, *rest, rest[-1].split()[0]],
        "twice": [first, first, *rest],
        "unknown label": [first, rest[0].replace("spoof", "fake").replace("bonafide", "fake")],
    }
    if damage == "unknown label" and name in ("had", "add2023_track2", "codecfake"):
        change[damage] = [
            first,
            rest[0][:-1] + "7" if name != "codecfake" else rest[0].replace("fake", "spoof"),
        ]
    if damage == "not UTF-8":
        file.write_bytes(first.encode() + b"\n\xff\xfe" + rest[0].encode())
    else:
        file.write_text("\n".join(change[damage]))
    with pytest.raises(
        (CorpusError, ManifestError), match="listed twice" if damage == "twice" else file.name
    ) as error:
        prepare(name, root, files=False)
    if damage in ("one field less", "one field more") and name != "llamapartialspoof":
        assert "line 2 (" in str(error.value)


def test_quotation_marks_are_text_and_lengths_are_counted(tmp_path):
    (tmp_path / "x").write_text('a "b\nc d"\n')
    assert read_fields(tmp_path / "x", [2]).to_numpy().tolist() == [["a", '"b'], ["c", 'd"']]
    for text in ("", "\n\n"):
        (tmp_path / "x").write_text(text)
        with pytest.raises(CorpusError, match="need 2 or 5 fields"):
            read_fields(tmp_path / "x", [2, 5])
    # an unbalanced quote swallows no row
    assert len(read("mlaad", lists("mlaad", tmp_path / "m"), files=False)) == 3
    (tmp_path / "x").write_text("0007 1e5 nan -\n")
    assert read_fields(tmp_path / "x", [4]).iloc[0].tolist() == ["0007", "1e5", "nan", "-"]


POLARITY = {  # a flipped file, and what is said
    "asvspoof2019_la": ("A01 spoof", "A01 bonafide", "contradict the attack column"),
    "asvspoof2021_la": ("bonafide bonafide", "bonafide spoof", "contradict the attack column"),
    "asvspoof2021_df": ("Task1-team20 spoof", "Task1-team20 bonafide", "contradict the attack column"),
    "asvspoof5": ("bonafide bonafide", "bonafide spoof", "contradict the attack column"),
    "partialspoof": ("CON spoof", "CON bonafide", "contradict the column CON"),
    "in_the_wild": ("bona-fide", "bonafide", "is none of bona-fide, spoof"),
    "had": ("1.00-1.63-T 0", "1.00-1.63-T 1", "contradict the segments"),
    "add2023_track2": ("0.00-1.63-T 1", "0.00-1.63-T 0", "contradict the segments"),
    "llamapartialspoof": ("1.6296 bonafide", "1.6296 spoof", "polarity: segments contradict"),
    "spoofceleb": (
        "YYsxcZ5saac-00002-006.flac,id10318,a05",
        "YYsxcZ5saac-00002-006.flac,id10318,a00",
        "contradict the folder",
    ),
    "codecfake": ("SSB13650058.wav real 0", "SSB13650058.wav fake 0", "contradict the codec number"),
    "lav_df": ('"fake_periods": [[0.5, 0.9]]', '"fake_periods": []', "contradict fake_periods"),
    "deepfake_eval_2024": ("Real", "Genuine", "is none of real, fake, unknown"),
    "antideepfake": ("-LA_E_7583177,fake", "-LA_E_7583177,bogus", "is none of real, fake"),
    "generic": ("bona-fide", "true", "is none of bonafide"),
}


@pytest.mark.parametrize("name", POLARITY)
def test_polarity_is_asserted(name, tmp_path):  # pitfall 2
    root = lists(name, tmp_path)
    old, new, message = POLARITY[name]
    path = next(root / p for p, text in LISTS[name].items() if old in text)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(CorpusError, match=message):
        prepare(name, root, files=False)


# ASVspoof


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
    assert m.utterances.codec_seed.iloc[-2] == "E_0009486171"


def test_asvspoof5_track_2(tmp_path):
    root = lists("asvspoof5", tmp_path)
    t = track2(root, "dev")
    assert t.kind.tolist() == ["target", "spoof", "nontarget"] and t.attack.tolist() == ["", "A14", ""]
    assert enrolment(root, "dev") == {"D_0461": ["D_0000000777", "D_0000000190"]}
    file = root / "ASVspoof5_protocols/ASVspoof5.dev.track_2.trial.tsv"
    file.write_text(file.read_text().replace("A14 spoof", "A14 target"))
    with pytest.raises(CorpusError, match="contradict the attack column"):
        track2(root, "dev")


def write_full_2019(root, skip=0):
    """Lists of full size: made-up ids, published numbers."""
    folder = root / "ASVspoof2019_LA_cm_protocols"
    folder.mkdir(parents=True)
    for split, kind, bona, attacks, each in (
        ("train", "trn", 2580, range(1, 7), 3800),
        ("dev", "trl", 2548, range(1, 7), 3716),
        ("eval", "trl", 7355, range(7, 20), 4914),
    ):
        kinds = ["- bonafide"] * bona + [f"A{a:02d} spoof" for a in attacks for _ in range(each)]
        text = "".join(f"LA_0001 LA_{split[0].upper()}_{i:07d} - {k}\n" for i, k in enumerate(kinds[skip:]))
        (folder / f"ASVspoof2019.LA.cm.{split}.{kind}.txt").write_text(text)


def test_counts_agree_with_the_published_ones(tmp_path):
    write_full_2019(tmp_path / "full")
    table = counts(prepare("asvspoof2019_la", tmp_path / "full", files=False), "asvspoof2019_la")
    assert len(table) == 6 + 6 + 6 + 13 and (table.difference == 0).all()
    assert table.trials.sum() == 121_461 + 108_978  # each spoof counts for its label and its attack
    write_full_2019(tmp_path / "short", skip=3)
    table = counts(prepare("asvspoof2019_la", tmp_path / "short", files=False), "asvspoof2019_la")
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


PUBLISHED = {  # split: bona fide and spoof, or both together
    "asvspoof2019_la": {"train": (2580, 22800), "dev": (2548, 22296), "eval": (7355, 63882)},
    "partialspoof": {"train": (2580, 22800), "dev": (2548, 22296), "eval": (7355, 63882)},
    "asvspoof2021_la": {"eval": (14816, 133360)}, "asvspoof2021_df": {"eval": (14869, 519059)},
    "asvspoof5": {"train": (18797, 163560), "dev": (31334, 109616), "eval": (138688, 542086)},
    "in_the_wild": {"eval": (19963, 11816)}, "add2023_track2": {"train": 53093, "dev": 17823, "eval": 50000},
    "lav_df": {"train": 78703, "dev": 31501, "eval": 26100}, "llamapartialspoof": {"eval": 76228 + 64388},
    "codecfake": {"train": 740747, "dev": 92596}, "wavefake": {"": (None, 117985)},
}  # fmt: skip
SUMS = {"asvspoof2019_la": 25380 + 24844 + 71237, "partialspoof": 25380 + 24844 + 71237, "asvspoof2021_la": 148176,
        "asvspoof2021_df": 533928, "asvspoof5": 182357 + 140950 + 680774, "in_the_wild": 31779, "add2023_track2": 120916,
        "lav_df": 136304, "llamapartialspoof": 140616}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_published_totals(name):
    card = CORPORA[name]
    want = {}
    for split, n in PUBLISHED.get(name, {}).items():
        want |= {(split, "all"): n} if isinstance(n, int) else {(split, B): n[0], (split, S): n[1]}
    totals = {key: n for key, n in card.published.items() if key[1] in (B, S, "all")}
    assert totals == {key: n for key, n in want.items() if n is not None}
    if name in SUMS:
        assert sum(totals.values()) == SUMS[name]
        assert SUMS[name] == (card.trials or card.bonafide + card.spoof)
    for split in {split for split, _ in card.published}:
        attacks = [n for (s, of), n in card.published.items() if s == split and of not in (B, S, "all")]
        assert not attacks or sum(attacks) == card.published[split, S]


# Segments


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


# Others


def test_noises_and_rooms_are_not_speech(tmp_path):
    u = read("rirs_noises", tree("rirs_noises", tmp_path))
    assert u.kind.value_counts().to_dict() == {"rir": 4, "noise": 2}
    assert u.room["simulated_rirs/smallroom/Room001/Room001-00001"] == "small"
    assert u.room["real_rirs_isotropic_noises/air_type1_air_office_0_1"] == "real"
    assert read("musan", tree("musan", tmp_path / "m")).kind.tolist() == ["music", "noise", "speech"]
    from wedefense_nb.task import label_ids

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


# Lists against files


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


def test_headers_are_remembered_by_size_and_time(tmp_path, monkeypatch):
    root = tmp_path / "r"
    cache = tmp_path / "headers.parquet"
    for i in range(4):
        sound(root / f"{i}.flac")
    (root / "bad.flac").write_bytes(b"x")
    files = scan(root)
    opened = []
    from wedefense_nb.data import corpora

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
    from wedefense_nb.data import corpora

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
