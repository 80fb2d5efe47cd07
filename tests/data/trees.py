"""Miniature corpora with the owners' layouts, names and lines; the sounds are from data_samples/."""

# ruff: noqa: E501 (lines as the owners write them)

import json
import shutil
from pathlib import Path

import av
import numpy as np

from tests.conftest import ROOT
from wedefense_nb.data.audio import load, save
from wedefense_nb.data.corpora import survey

SAMPLE = ROOT / "data_samples/audio/S0001.flac"  # 1.63 s
SHORT = ROOT / "data_samples/audio/S0002.flac"  # 1.41 s


def sound(path: Path, sample: Path = SAMPLE) -> Path:
    """A recording at the path, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".flac":
        shutil.copy(sample, path)
    elif path.suffix == ".wav":
        save(path, load(sample)[0])
    else:  # mp4, dat: AAC in MP4, with PyAV
        wave = load(sample)[0]
        with av.open(str(path), "w", format="mp4") as out:
            stream = out.add_stream("aac", rate=16000, layout="mono")
            frame = av.AudioFrame.from_ndarray(
                wave[None, : len(wave) // 1024 * 1024], format="fltp", layout="mono"
            )
            frame.sample_rate = 16000
            out.mux([*stream.encode(frame), *stream.encode(None)])
    return path


LA = "ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm."
PS = "database/protocols/PartialSpoof_LA_cm_protocols/PartialSpoof.LA.cm."
V5 = "ASVspoof5_protocols/ASVspoof5."
LISTS = {
    "asvspoof2019_la": {
        f"LA/{LA}train.trn.txt": "LA_0079 LA_T_1138215 - - bonafide\nLA_0079 LA_T_1004644 - A01 spoof\n",
        f"LA/{LA}dev.trl.txt": "LA_0069 LA_D_1047731 - - bonafide\nLA_0070 LA_D_1000003 - A06 spoof\n",
        f"LA/{LA}eval.trl.txt": "LA_0039 LA_E_2834763 - A11 spoof\nLA_0040 LA_E_2000001 - - bonafide\n",
    },
    "asvspoof2021_la": {
        "keys/LA/CM/trial_metadata.txt": "LA_0009 LA_E_9332881 alaw ita_tx A07 spoof notrim eval\n"
        "LA_0009 LA_E_8589971 alaw loc_tx A07 spoof notrim progress\n"
        "LA_0020 LA_E_7294490 g722 loc_tx bonafide bonafide notrim eval\n"
        "LA_0031 LA_E_5678901 none - A09 spoof trim hidden\n",
    },
    "asvspoof2021_df": {
        "keys/DF/CM/trial_metadata.txt": "LA_0023 DF_E_2000011 nocodec asvspoof A14 spoof notrim progress "
        "traditional_vocoder - - - -\n"
        "TEF2 DF_E_2000013 low_m4a vcc2020 Task1-team20 spoof notrim eval neural_vocoder_nonautoregressive Task1 team20 FF E\n"
        "TGF1 DF_E_2000024 mp3m4a vcc2020 - bonafide notrim eval - - - - -\n"
        "LA_0041 DF_E_2000099 high_ogg asvspoof bonafide bonafide trim hidden - - - - -\n",
    },
    "asvspoof5": {
        f"{V5}train.tsv": "T_4850 T_0000000000 F - - - AC3 A05 spoof -\nT_4851 T_0000000001 M - - - - bonafide bonafide -\n",
        f"{V5}dev.track_1.tsv": "D_4461 D_0000000169 F - - - AC1 A14 spoof -\nD_0461 D_0000000190 M - - - - bonafide bonafide -\n",
        f"{V5}eval.track_1.tsv": "E_1607 E_0009538969 M C05 2 E_0009486171 AC1 A26 spoof -\n"
        "E_1608 E_0000000001 F - 0 - - bonafide bonafide -\n",
        f"{V5}dev.track_2.trial.tsv": "D_0461 D_0000000190 M bonafide target\nD_0461 D_0000000169 F A14 spoof\n"
        "D_4461 D_0000000190 M bonafide nontarget\n",
        f"{V5}dev.track_2.enroll.tsv": "D_0461 D_0000000777,D_0000000190\n",
    },
    "partialspoof": {
        f"{PS}train.trl.txt": "LA_0079 CON_T_0000029 - CON spoof\nLA_0098 LA_T_9497115 - - bonafide\nLA_0079 CON_T_0000030 - CON spoof\n",
        f"{PS}dev.trl.txt": "LA_0069 CON_D_0000000 - CON spoof\n",
        f"{PS}eval.trl.txt": "LA_0039 LA_E_2834763 - - bonafide\n",
    },
    "wavefake": {},
    "in_the_wild": {
        "release_in_the_wild/meta.csv": "file,speaker,label\n0.wav,Alec Guinness,spoof\n1.wav,Alec Guinness,spoof\n"
        "2.wav,Barack Obama,bona-fide\n",
    },
    "had": {
        "HAD_train/HAD_train_label.txt": "HAD_train_fake_00000001 0.00-0.40-T/0.40-1.00-F/1.00-1.63-T 0\n"
        "HAD_train_real_00000002 0.00-1.63-T 1\n",
        "HAD_dev/HAD_dev_label.txt": "HAD_dev_fake_00000001 0.00-0.40-F/0.40-1.63-T 0\n",
        "HAD_test/HAD_test_label.txt": "HAD_test_00000003 0.00-0.43-T/0.43-1.02-F/1.02-1.64-T 0\n",
    },
    "llamapartialspoof": {
        "label_R01TTS.0.a.txt": "dev01-cosyvoice-full_1462_170145_000020_000002 1.6296 spoof 0.0000-1.6296-spoof\n"
        "dev-clean_1462_170145_000020_000002 1.6296 bonafide 0.0000-1.6296-bonafide\n",
        "label_R01TTS.0.b.txt": "dev01-cosyvoice-partial-cp_1272_128104_000005_000014 1.6296 spoof "
        "0.0000-0.3800-bonafide 0.3800-0.8100-spoof 0.8100-1.6296-bonafide\n",
    },
    "mlaad": {
        "fake/en/tts_models_en_vits/meta.csv": "path|original_file|language|is_original_language|duration|training_data|model_name|"
        "architecture|transcript\n"
        "./fake/en/tts_models_en_vits/a_01.wav|en_UK/by_book/female/elizabeth_klett/jane_eyre/wavs/jane_eyre_01.wav|en|True|1.63|"
        'ljspeech|vits|VITS|he said "what\n'
        "./fake/en/tts_models_en_vits/a_02.wav|en_UK/by_book/female/elizabeth_klett/jane_eyre/wavs/jane_eyre_02.wav|en|True|1.63|"
        "ljspeech|vits|VITS|and left\n",
        "fake/zh-cn/my tts/meta.csv": "path|original_file|language|is_original_language|duration|training_data|model_name|"
        "architecture|transcript|reference_speaker\n"
        "./fake/zh-cn/my tts/b.wav|de/by_book/male/karlsson/x/wavs/x_1.wav|zh-cn|False|1.63|-|my tts|X|t|r\n",
    },
    "cfad": {},
    "voices": {},
    "voices_noise": {},
    "spoofceleb": {
        "spoofceleb/metadata/train.csv": "file,speaker,attack\na00/id10318/YYsxcZ5saac-00002-006.flac,id10318,a00\n"
        "a05/id10318/YYsxcZ5saac-00002-006.flac,id10318,a05\n",
        "spoofceleb/metadata/development.csv": "file,speaker,attack\na00/id10326/NKOA_Q89wDM-00066-003.flac,id10326,a00\n",
        "spoofceleb/metadata/evaluation.csv": "file,speaker,attack\na23/id10999/x-00001-001.flac,id10999,a23\n",
    },
    "deepfake_eval_2024": {
        "audio-metadata-publish.csv": "Filename,Ground Truth,Finetuning Set,Language\nmy clip.wav,Fake,train,English\n"
        "b.dat,Real,test,English\nc.wav,unknown,test,German\nd.mp4,fake,Test,English\n",
    },
    "lav_df": {
        "metadata.min.json": json.dumps(
            [
                {
                    "file": "train/000001.mp4",
                    "n_fakes": 1,
                    "fake_periods": [[0.5, 0.9]],
                    "duration": 1.6,
                    "original": "train/000002.mp4",
                    "modify_video": False,
                    "modify_audio": True,
                    "split": "train",
                },
                {
                    "file": "dev/000003.mp4",
                    "n_fakes": 1,
                    "fake_periods": [[0.5, 0.9]],
                    "duration": 1.6,
                    "original": "train/000002.mp4",
                    "modify_video": True,
                    "modify_audio": False,
                    "split": "dev",
                },
                {
                    "file": "test/000004.mp4",
                    "n_fakes": 0,
                    "fake_periods": [],
                    "duration": 1.6,
                    "original": None,
                    "modify_video": False,
                    "modify_audio": False,
                    "split": "test",
                },
            ]
        ),
    },
    "add2023_track2": {
        "ADD2023_Track2_train/label.txt": "ADD2023_T2_T_00000001 0.00-1.63-T 1\nADD2023_T2_T_00000002 0.00-1.00-T/1.00-1.63-F 0\n",
        "ADD2023_Track2_dev/label.txt": "ADD2023_T2_D_00000001 0.00-0.25-T/0.25-0.80-F/0.80-1.63-T 0\n",
    },
    "codecfake": {
        "label/train.txt": "SSB13650058.wav real 0\nF01_SSB13650058.wav fake 1\n",
        "label/dev.txt": "SSB13650059.wav real 0\n",
        "label/C1.txt": "p225_001.wav real 0\nF01_p225_001.wav fake 1\n",
        "label/C2.txt": "p225_001.wav real 0\nF02_p225_001.wav fake 2\n",
    },
    "antideepfake": {
        "train.csv": "ID,Label,Duration,SampleRate,Path,Attack,Speaker,Proportion,AudioChannel,AudioEncoding,AudioBitSample,Language\n"
        "ASV19LAdemo-LA_E_7583177,fake,2.22,16000,$ROOT//toy_example/eval/LA_E_7583177.wav,A10,LA_0045,test,1,PCM_S,16,EN\n"
        "ASV19LAdemo-LA_D_1803008,real,2.86,16000,$ROOT//toy_example/train_dev/LA_D_1803008.wav,-,LA_0074,valid,1,PCM_S,16,EN\n",
    },
    "musan": {},
    "rirs_noises": {"RIRS_NOISES/real_rirs_isotropic_noises/rir_list": "--rir-id x"},
    "generic": {"utterances.csv": "path,label,attack\nmy clips/a b.wav,Fake,tts 1\nc.flac,bona-fide,\n"},
}
EXTRA_SOUNDS = {
    "voices": [
        "asterisk-prompt-it-menardi-wav/usr/share/asterisk/sounds/it_IT_f_Menardi/vm-ciao.wav",
        "asterisk-prompt-it-menardi-wav/usr/share/asterisk/sounds/it_IT_f_Menardi/beep.wav",
    ],
    "voices_noise": ["fillets-ng-data/usr/share/games/fillets-ng/music/rybky01.wav"],
    "asvspoof5": ["flac_D/D_0000000777.flac"],  # enrolment of Track 2
    "wavefake": [
        "generated_audio/ljspeech_melgan/LJ001-0001_gen.wav",
        "generated_audio/ljspeech_hifiGAN/LJ001-0001_gen.wav",
        "generated_audio/jsut_parallel_wavegan/BASIC5000_0001_gen.wav",
        "LJSpeech-1.1/wavs/LJ001-0001.wav",
    ],
    "cfad": [
        "CFAD/clean_version/train_clean/real_clean/aishell3/SSB09660003.wav",
        "CFAD/clean_version/test_unseen_clean/fake_clean/world/SSB09660004_world.wav",
        "CFAD/noisy_version/dev_noise/fake_noise/gl/SSB09660005_gl.wav",
        "CFAD/codec_version/test_seen_codec/fake_codec/lpcnet/SSB09660003_lpcnet_m4a.wav",
    ],
    "add2023_track2": ["ADD2023_Track2_test/wav/ADD2023_T2_E_00000001.wav"],
    "musan": [
        "musan/music/fma/music-fma-0000.wav",
        "musan/noise/free-sound/noise-free-sound-0000.wav",
        "musan/speech/us-gov/speech-us-gov-0001.wav",
    ],
    "rirs_noises": [
        f"RIRS_NOISES/{p}"
        for p in (
            "simulated_rirs/smallroom/Room001/Room001-00001.wav",
            "simulated_rirs/largeroom/Room001/Room001-00001.wav",
            "real_rirs_isotropic_noises/RVB2014_type1_rir_largeroom1_1.wav",
            "real_rirs_isotropic_noises/air_type1_air_office_0_1.wav",
            "real_rirs_isotropic_noises/RVB2014_type1_noise_largeroom1_1.wav",
            "pointsource_noises/noise-free-sound-0000.wav",
        )
    ],
}
SEGMENTS_PS = {  # exact: utt to (start, end, label); CON_T_0000029 begins with the fake, 30 is fake throughout
    "train": {
        "CON_T_0000029": [(0.0, 0.513, "spoof"), (0.513, 1.63, "bonafide")],
        "CON_T_0000030": [(0.0, 1.63, "spoof")],
        "LA_T_9497115": [(0.0, 1.63, "bonafide")],
    },
    "dev": {
        "CON_D_0000000": [
            (0.0, 0.08, "bonafide"),
            (0.08, 0.08001, "spoof"),
            (0.08, 0.4, "spoof"),
            (0.4, 1.63, "bonafide"),
        ]
    },
    "eval": {"LA_E_2834763": [(0.0, 1.63, "bonafide")]},
}


def frames(pieces, step: float, duration: float = 26073 / 16000) -> np.ndarray:
    """Published form of labels: strings, "0" as soon as any sample of the frame is fake."""
    starts = np.arange(int(np.ceil(duration / step))) * step
    fake = np.zeros(len(starts), bool)
    for a, b, label in pieces:
        if label == "spoof" and b - a > 1e-3:
            fake |= (starts < b - 1e-9) & (starts + step > a + 1e-9)
    return np.where(fake, "0", "1")


def partialspoof_labels(root: Path, rttm: bool = True) -> None:
    for split, utts in SEGMENTS_PS.items():
        folder = root / "database/segment_labels"
        folder.mkdir(parents=True, exist_ok=True)
        for step in (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64):
            np.save(
                folder / f"{split}_seglab_{step}.npy",
                {utt: frames(p, step) for utt, p in utts.items()},
                allow_pickle=True,
            )
        if rttm:
            form = "SPEAKER {} 1 {:7.3f} {:7.5f} <NA> <NA> {} <NA> <NA>"
            lines = [form.format(utt, a, b - a, label) for utt, p in utts.items() for a, b, label in p]
            (root / f"database/{split}/con_data").mkdir(parents=True, exist_ok=True)
            (root / f"database/{split}/con_data/rttm_2cls_0sil").write_text("\n".join(lines) + "\n")


def lists(name: str, root: Path) -> Path:
    """The lists alone."""
    root.mkdir(parents=True, exist_ok=True)
    for path, text in LISTS[name].items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    if name == "partialspoof":
        partialspoof_labels(root)
    return root


def tree(name: str, root: Path) -> Path:
    """Lists and recordings; which recordings is known from the lists (read without looking at files) and `EXTRA_SOUNDS`."""
    lists(name, root)
    for path in EXTRA_SOUNDS.get(name, []):
        sound(root / path)
    manifest, _ = survey(name, root, files=False)
    for path in manifest.paths():
        if not path.exists():
            sound(path)
    if name == "deepfake_eval_2024":
        sound(root / "audio-data/c.wav")  # the unknown one
    return root


def read(name: str, root: Path, **options):
    """The utterances of `survey`, so that small problems do not warn."""
    return survey(name, root, **options)[0].utterances.set_index("utt")
