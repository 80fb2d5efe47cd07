"""Every corpus on a miniature tree with the owners' layout: what is there, and everything that can be wrong."""

import numpy as np
import pandas as pd
import pytest

from tests.data.trees import LISTS, lists, read, tree
from wedefense_nb.data.corpora import CORPORA, CorpusError, prepare, survey
from wedefense_nb.data.manifest import ManifestError

NAMES = (
    "asvspoof2019_la",
    "asvspoof2021_la",
    "asvspoof2021_df",
    "asvspoof5",
    "partialspoof",
    "wavefake",
    "in_the_wild",
    "had",
    "llamapartialspoof",
    "mlaad",
    "cfad",
    "spoofceleb",
    "deepfake_eval_2024",
    "lav_df",
    "add2023_track2",
    "codecfake",
    "antideepfake",
    "musan",
    "rirs_noises",
    "generic",
)
B, S, N = "bonafide", "spoof", ""
EXPECTED = {  # utt: (label, split, attack, speaker, codec)
    "asvspoof2019_la": {
        "LA_T_1138215": (B, "train", "", "LA_0079", ""),
        "LA_T_1004644": (S, "train", "A01", "LA_0079", ""),
        "LA_D_1047731": (B, "dev", "", "LA_0069", ""),
        "LA_D_1000003": (S, "dev", "A06", "LA_0070", ""),
        "LA_E_2834763": (S, "eval", "A11", "LA_0039", ""),
        "LA_E_2000001": (B, "eval", "", "LA_0040", ""),
    },
    "asvspoof2021_la": {
        "LA_E_9332881": (S, "eval", "A07", "LA_0009", "alaw"),
        "LA_E_8589971": (S, "", "A07", "LA_0009", "alaw"),
        "LA_E_7294490": (B, "eval", "", "LA_0020", "g722"),
        "LA_E_5678901": (S, "", "A09", "LA_0031", "none"),
    },
    "asvspoof2021_df": {
        "DF_E_2000011": (S, "", "A14", "LA_0023", "nocodec"),
        "DF_E_2000013": (S, "eval", "Task1-team20", "TEF2", "low_m4a"),
        "DF_E_2000024": (B, "eval", "", "TGF1", "mp3m4a"),
        "DF_E_2000099": (B, "", "", "LA_0041", "high_ogg"),
    },
    "asvspoof5": {
        "T_0000000000": (S, "train", "A05", "T_4850", ""),
        "T_0000000001": (B, "train", "", "T_4851", ""),
        "D_0000000169": (S, "dev", "A14", "D_4461", ""),
        "D_0000000190": (B, "dev", "", "D_0461", ""),
        "E_0009538969": (S, "eval", "A26", "E_1607", "C05"),
        "E_0000000001": (B, "eval", "", "E_1608", ""),
    },
    "partialspoof": {
        "CON_T_0000029": (S, "train", "CON", "LA_0079", ""),
        "LA_T_9497115": (B, "train", "", "LA_0098", ""),
        "CON_T_0000030": (S, "train", "CON", "LA_0079", ""),
        "CON_D_0000000": (S, "dev", "CON", "LA_0069", ""),
        "LA_E_2834763": (B, "eval", "", "LA_0039", ""),
    },
    "wavefake": {
        "ljspeech_melgan/LJ001-0001_gen": (S, "", "ljspeech_melgan", "LJ", ""),
        "ljspeech_hifiGAN/LJ001-0001_gen": (S, "", "ljspeech_hifiGAN", "LJ", ""),
        "jsut_parallel_wavegan/BASIC5000_0001_gen": (S, "", "jsut_parallel_wavegan", "JSUT", ""),
        "LJSpeech-1.1/wavs/LJ001-0001": (B, "", "", "LJ", ""),
    },
    "in_the_wild": {
        "0": (S, "eval", "", "Alec Guinness", ""),
        "1": (S, "eval", "", "Alec Guinness", ""),
        "2": (B, "eval", "", "Barack Obama", ""),
    },
    "had": {
        "HAD_train_fake_00000001": (S, "train", "", "", ""),
        "HAD_train_real_00000002": (B, "train", "", "", ""),
        "HAD_dev_fake_00000001": (S, "dev", "", "", ""),
        "HAD_test_00000003": (S, "eval", "", "", ""),
    },
    "llamapartialspoof": {
        "dev01-cosyvoice-full_1462_170145_000020_000002": (S, "eval", "cosyvoice", "1462", ""),
        "dev-clean_1462_170145_000020_000002": (B, "eval", "", "1462", ""),
        "dev01-cosyvoice-partial-cp_1272_128104_000005_000014": (S, "eval", "cosyvoice", "1272", ""),
    },
    "mlaad": {
        "fake/en/tts_models_en_vits/a_01": (S, "", "vits", "elizabeth_klett", ""),
        "fake/en/tts_models_en_vits/a_02": (S, "", "vits", "elizabeth_klett", ""),
        "fake/zh-cn/my_tts/b": (S, "", "my tts", "karlsson", ""),
    },
    "cfad": {
        "clean_version/train_clean/real_clean/aishell3/SSB09660003": (B, "train", "", "", ""),
        "clean_version/test_unseen_clean/fake_clean/world/SSB09660004_world": (S, "eval", "world", "", ""),
        "noisy_version/dev_noise/fake_noise/gl/SSB09660005_gl": (S, "dev", "gl", "", ""),
        "codec_version/test_seen_codec/fake_codec/lpcnet/SSB09660003_lpcnet_m4a": (S, "eval", "lpcnet", "", "m4a"),
    },
    "spoofceleb": {
        "a00/id10318/YYsxcZ5saac-00002-006": (B, "train", "", "id10318", ""),
        "a05/id10318/YYsxcZ5saac-00002-006": (S, "train", "a05", "id10318", ""),
        "a00/id10326/NKOA_Q89wDM-00066-003": (B, "dev", "", "id10326", ""),
        "a23/id10999/x-00001-001": (S, "eval", "a23", "id10999", ""),
    },
    "deepfake_eval_2024": {
        "my_clip.wav": (S, "train", "", "", ""),
        "b.dat": (B, "eval", "", "", ""),
        "d.mp4": (S, "eval", "", "", ""),
    },
    "lav_df": {
        "train/000001": (S, "train", "", "", ""),
        "dev/000003": (B, "dev", "", "", ""),
        "test/000004": (B, "eval", "", "", ""),
    },
    "add2023_track2": {
        "ADD2023_T2_T_00000001": (B, "train", "", "", ""),
        "ADD2023_T2_T_00000002": (S, "train", "", "", ""),
        "ADD2023_T2_D_00000001": (S, "dev", "", "", ""),
        "ADD2023_T2_E_00000001": (N, "eval", "", "", ""),
    },
    "codecfake": {
        "train/SSB13650058": (B, "train", "", "", ""),
        "train/F01_SSB13650058": (S, "train", "F01", "", ""),
        "dev/SSB13650059": (B, "dev", "", "", ""),
        "C1/p225_001": (B, "eval", "", "", ""),
        "C1/F01_p225_001": (S, "eval", "F01", "", ""),
        "C2/p225_001": (B, "eval", "", "", ""),
        "C2/F02_p225_001": (S, "eval", "F02", "", ""),
    },
    "antideepfake": {
        "ASV19LAdemo-LA_E_7583177": (S, "eval", "A10", "LA_0045", ""),
        "ASV19LAdemo-LA_D_1803008": (B, "dev", "", "LA_0074", ""),
    },
    "musan": {
        "music-fma-0000": (N, "", "", "", ""),
        "noise-free-sound-0000": (N, "", "", "", ""),
        "speech-us-gov-0001": (N, "", "", "", ""),
    },
    "rirs_noises": {
        x: (N, "", "", "", "")
        for x in (
            "simulated_rirs/smallroom/Room001/Room001-00001",
            "simulated_rirs/largeroom/Room001/Room001-00001",
            "real_rirs_isotropic_noises/RVB2014_type1_rir_largeroom1_1",
            "real_rirs_isotropic_noises/air_type1_air_office_0_1",
            "real_rirs_isotropic_noises/RVB2014_type1_noise_largeroom1_1",
            "pointsource_noises/noise-free-sound-0000",
        )
    },
    "generic": {"my_clips/a_b": (S, "", "tts 1", "", ""), "c": (B, "", "", "", "")},
}


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


def test_all_names_are_there_with_a_card():  # pitfall 68
    every = sorted([*NAMES, "voices", "voices_noise"])  # those two: test_voices.py
    assert sorted(CORPORA) == every and len(CORPORA) == 22
    table = CORPORA.table()
    assert table.index.tolist() == every and (table.good_for != "").all() and (table.licence != "").all()
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


PUBLISHED = {  # split: bona fide and spoof, or both together
    "asvspoof2019_la": {"train": (2580, 22800), "dev": (2548, 22296), "eval": (7355, 63882)},
    "partialspoof": {"train": (2580, 22800), "dev": (2548, 22296), "eval": (7355, 63882)},
    "asvspoof2021_la": {"eval": (14816, 133360)},
    "asvspoof2021_df": {"eval": (14869, 519059)},
    "asvspoof5": {"train": (18797, 163560), "dev": (31334, 109616), "eval": (138688, 542086)},
    "in_the_wild": {"eval": (19963, 11816)},
    "add2023_track2": {"train": 53093, "dev": 17823, "eval": 50000},
    "lav_df": {"train": 78703, "dev": 31501, "eval": 26100},
    "llamapartialspoof": {"eval": 76228 + 64388},
    "codecfake": {"train": 740747, "dev": 92596},
    "wavefake": {"": (None, 117985)},
}


SUMS = {
    "asvspoof2019_la": 25380 + 24844 + 71237,
    "partialspoof": 25380 + 24844 + 71237,
    "asvspoof2021_la": 148176,
    "asvspoof2021_df": 533928,
    "asvspoof5": 182357 + 140950 + 680774,
    "in_the_wild": 31779,
    "add2023_track2": 120916,
    "lav_df": 136304,
    "llamapartialspoof": 140616,
}


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
