"""Scores from recordings, and what can be asked of scores in one line."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch

from tests.conftest import ROOT
from tests.use.shell import quick
from wedefense_nb.data.manifest import open_manifest, to_rttm
from wedefense_nb.localization.frame_files import read_frame_scores, read_truth, write_frame_scores
from wedefense_nb.localization.frames import manifest_labels
from wedefense_nb.localization.localizers import localize
from wedefense_nb.localization.metrics import boundary_rates, find_threshold, frame_rates, point_eer, range_eer
from wedefense_nb.metrics import eer
from wedefense_nb.models.detector import build, load_model, save_model
from wedefense_nb.scores.calibration import AffineCalibration, PAVCalibration, load_calibration, save_calibration
from wedefense_nb.scores.fusion import LinearFusion
from wedefense_nb.task import label_ids
from wedefense_nb.training.scoring import score

SCORES = ROOT / "data_samples/scores"


# Recordings to scores


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with an untrained model and a calibration that shows."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save_model(build("bands"), folder)
    save_calibration(AffineCalibration().fit([0.0, 1.0, 2.0, 3.0], [0, 1, 0, 1]), folder / "calibration.json")
    return folder


def test_a_split_of_a_manifest_is_scored_and_calibrated(model, tmp_path):
    out = tmp_path / "s.csv"
    done = quick("score", model, ROOT / "data_samples", "-o", out, "--split", "dev")
    assert done.returncode == 0 and done.stdout.strip().splitlines()[-1] == f"159 recordings scored: {out}"
    table = pd.read_csv(out)
    assert table.columns.tolist() == ["utt", "score", "llr", "label"]
    want = score(load_model(model), open_manifest(ROOT / "data_samples").subset(split="dev"))
    assert table.utt.tolist() == want.utt.tolist() and table.label.tolist() == want.label.tolist()
    assert np.allclose(table.score, want.score, atol=1e-5)
    calibration = load_calibration(model / "calibration.json")
    assert np.allclose(table.llr, calibration.transform(table.score), atol=1e-9)
    assert abs(table.llr - table.score).min() > 0.1
    wrong = quick("score", model, ROOT / "data_samples", "--split", "test")
    assert wrong.returncode == 1 and "no recordings in split 'test'" in wrong.stderr


def test_a_folder_or_a_single_sound_has_no_labels(model, tmp_path):
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    sf.write(sounds / "one.wav", 0.1 * np.random.default_rng(0).normal(size=22050), 22050)
    tables = []
    for name, data in (("folder", sounds), ("file", sounds / "one.wav")):
        done = quick("score", model, data, "-o", tmp_path / f"{name}.csv")
        assert done.returncode == 0, done.stderr
        tables.append(pd.read_csv(tmp_path / f"{name}.csv"))
        assert tables[-1].utt.tolist() == ["one"] and tables[-1].label.isna().all()
    assert tables[0].llr.equals(tables[1].llr)


def test_a_model_without_calibration_says_so(tmp_path):
    save_model(build("bands"), tmp_path / "model")
    sound = ROOT / "data_samples/audio/S0221.flac"
    done = quick("score", tmp_path / "model", sound, "-o", tmp_path / "one.csv")
    assert "1 recordings scored" in done.stdout and "(not calibrated: llr = score)" in done.stdout
    table = pd.read_csv(tmp_path / "one.csv")
    assert table.llr.equals(table.score)


# Evaluate


@pytest.fixture
def trials(tmp_path):
    """A protocol of ASVspoof 5, a score file of its layout, and the same as a table."""
    rng = np.random.default_rng(0)
    bona = np.arange(120) % 3 == 0
    attack = np.where(bona, "", np.where(np.arange(120) % 2 == 0, "A17", "A18"))
    utts = [f"E_{i:04d}" for i in range(120)]
    scores = rng.normal(size=120) + 3 * bona
    keys = []
    for i, utt in enumerate(utts):
        label = "bonafide" if bona[i] else "spoof"
        keys.append(f"S{i % 7} {utt} F C05 1 {utt} AC1 {attack[i] or label} {label} -")
    (tmp_path / "key.tsv").write_text("\n".join(keys) + "\n")
    lines = ["filename\tcm-score", *(f"{utt}\t{score}" for utt, score in zip(utts, scores, strict=True))]
    (tmp_path / "llr.txt").write_text("\n".join(lines) + "\n")
    return pd.DataFrame({"utt": utts, "score": scores, "label": bona.astype(int), "attack": attack})


def test_evaluate_reads_challenge_files_and_breaks_down(tmp_path, trials):  # pitfalls 11 and 12
    files = [tmp_path / "llr.txt", "--keys", tmp_path / "key.tsv", "--replicates", "30"]
    done = quick("evaluate", *files, "--by", "attack")
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("EER", "minDCF", "actDCF", "Cllr", "minCllr"))
    assert f"{eer(trials.score, trials.label):.1%} [" in done.stdout
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.split()}
    for attack in ("A17", "A18"):
        part = trials[(trials.attack == attack) | (trials.label == 1)]
        assert float(rows[attack][0]) == pytest.approx(eer(part.score, part.label), abs=1e-4)
        assert [float(n) for n in rows[attack][3:]] == [40, 40]
    assert float(rows["pooled"][0]) == pytest.approx(eer(trials.score, trials.label), abs=1e-4)


def test_evaluate_refuses_what_does_not_fit(tmp_path, trials):
    files = [tmp_path / "llr.txt", "--keys", tmp_path / "key.tsv", "--replicates", "30"]
    assert "no column ['transmission']" in quick("evaluate", *files, "--by", "transmission").stderr
    assert "no column ['llr']" in quick("evaluate", *files, "-c", "llr").stderr
    keys = (tmp_path / "key.tsv").read_text().splitlines()
    (tmp_path / "key.tsv").write_text("\n".join(keys[1:]) + "\n")
    assert "keys: 1 missing utterances (E_0000)" in quick("evaluate", *files).stderr
    assert quick("evaluate", *files, "--allow-extra").returncode == 0
    trials.drop(columns="label").to_csv(tmp_path / "s.csv", index=False)
    assert "has no labels; name a key file with --keys" in quick("evaluate", tmp_path / "s.csv").stderr
    pd.concat([trials, trials.head(1)]).to_csv(tmp_path / "s.csv", index=False)
    assert "1 utterances occur more than once (E_0000)" in quick("evaluate", tmp_path / "s.csv").stderr


def test_evaluate_reports_inverted_scores(tmp_path, trials):
    words = trials.label.map({0: "spoof", 1: "bonafide"})
    trials.assign(score=-trials.score, label=words, llr=trials.score).to_csv(tmp_path / "s.csv", index=False)
    done = quick("evaluate", tmp_path / "s.csv", "--replicates", "20")
    assert done.returncode == 0 and "warning, score: AUC is" in done.stderr and "check the sign" in done.stderr
    assert "warning, llr" not in done.stderr
    only = quick("evaluate", tmp_path / "s.csv", "--replicates", "20", "-c", "llr")
    assert only.stderr == "" and "\nllr " in only.stdout and "\nscore " not in only.stdout


def test_evaluate_cuts_durations_into_bins(tmp_path):
    manifest = ROOT / "data_samples/utterances.csv"
    arguments = [SCORES / "lcnn/eval.csv", "--keys", manifest, "--by", "duration", "--replicates", "30"]
    done = quick("evaluate", *arguments)
    assert done.returncode == 0 and done.stdout.count(" s ") == 4, done.stderr


# Frames


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Frame scores of the embedded corpus, dev and eval, in several files; the truth as RTTM."""
    folder = tmp_path_factory.mktemp("frames")
    rng = np.random.default_rng(0)
    truth = open_manifest(ROOT / "data_samples")
    found = {}
    for split in ("dev", "eval"):
        part = truth.subset(split=split)
        labels = manifest_labels(part, 0.02)
        found[split] = {utt: 3 * row + rng.normal(size=len(row)) for utt, row in labels.items()}
        write_frame_scores(found[split], folder / f"{split}.npz", 0.02)
        write_frame_scores(found[split], folder / f"{split}.csv", 0.02, found[split])
        to_rttm(part, folder / f"{split}.rttm")
        lines = [f"{utt}\t{i}\t{x}\t0.0\n" for utt, row in found[split].items() for i, x in enumerate(row)]
        (folder / f"{split}.txt").write_text("".join(lines))
    return folder, found


def numbers(text):
    """Of each row: its name and place, and its value as it is printed."""
    rows = {}
    for row in text.splitlines():
        words = re.split(r"\s{2,}", row.strip())
        if len(words) >= 2 and "[" in words[-1]:
            rows[tuple(words[:-1])] = words[-1].split()[0]
    return rows


def test_evaluate_judges_frames(frames):
    folder, found = frames
    truth = open_manifest(ROOT / "data_samples").subset(split="eval")
    options = ["--resolution", "0.02", "--resolution", "0.16", "--replicates", "20"]
    options += ["--dev", folder / "dev.npz"]
    done = quick("evaluate", folder / "eval.npz", "--truth", ROOT / "data_samples", *options)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    rows = numbers(done.stdout)
    for at in (0.02, 0.16):
        want = point_eer(found["eval"], truth, 0.02, at)
        assert rows["point EER", f"{1000 * at:g} ms, any"] == f"{want:.1%}"
    assert rows["range EER",] == f"{range_eer(found['eval'], truth, 0.02):.1%}"
    threshold = find_threshold(found["dev"], open_manifest(ROOT / "data_samples").subset(split="dev"), 0.02)
    want = frame_rates(found["eval"], truth, 0.02, threshold)
    assert rows["f1 (spoof)", "20 ms, any"] == f"{want['f1']:.1%}"
    want = boundary_rates(found["eval"], truth, 0.02, threshold)
    assert rows["boundary error (ms)",] == f"{1000 * want['error']:.1f}"
    assert f"229 recordings, {sum(map(len, found['eval'].values()))} frames of 20 ms" in done.stdout
    by_rttm = quick(
        "evaluate", folder / "eval.txt", "--truth", folder / "eval.rttm", "--hop", "0.02", *options[:6]
    )
    assert by_rttm.returncode == 0, by_rttm.stderr
    same = numbers(by_rttm.stdout)
    assert same and all(rows[key] == value for key, value in same.items()) and "precision" not in by_rttm.stdout
    both = [*options, "--dev-truth", folder / "dev.rttm", "--truth", folder / "eval.rttm"]
    assert numbers(quick("evaluate", folder / "eval.csv", *both).stdout) == rows


def test_frame_llrs_are_judged_as_llrs(frames):
    folder, _ = frames
    options = ["--truth", ROOT / "data_samples", "--replicates", "0", "--threshold", "0"]
    done = quick("evaluate", folder / "eval.csv", *options, "-c", "score", "-c", "llr")
    assert done.returncode == 0 and done.stdout.count("Cllr") == 1 and "threshold 0, given" in done.stdout
    assert done.stdout.index("score: 229") < done.stdout.index("llr: 229") < done.stdout.index("Cllr")


def test_rule_and_rest_reach_the_measures(frames, tmp_path):
    folder, found = frames
    truth = open_manifest(ROOT / "data_samples").subset(split="eval")
    short = {utt: row[:-1] for utt, row in found["eval"].items()}
    path = write_frame_scores(short, tmp_path / "short.npz", 0.02)
    options = ["--truth", ROOT / "data_samples", "--replicates", "0", "--resolution", "0.08", "--rule", "majority"]
    refused = quick("evaluate", path, *options)
    assert refused.returncode == 1 and "--rest repeat would stretch the last one to the end" in refused.stderr
    done = quick("evaluate", path, *options, "--rest", "repeat")
    want = point_eer(short, truth, 0.02, 0.08, "majority", rest="repeat")
    assert numbers(done.stdout)["point EER", "80 ms, majority"] == f"{want:.1%}"
    assert "unknown rule for the rest" in quick("evaluate", path, *options, "--rest", "stretch").stderr


def test_inverted_frames_are_reported(frames, tmp_path):  # pitfall 1
    inverted = {utt: -row for utt, row in frames[1]["eval"].items()}
    path = write_frame_scores(inverted, tmp_path / "i.npz", 0.02)
    done = quick("evaluate", path, "--truth", ROOT / "data_samples", "--replicates", "0")
    assert done.returncode == 0 and "warning, score: AUC is 0.0" in done.stderr and "check the sign" in done.stderr


def test_frames_that_do_not_fit_are_refused_in_one_line(frames, tmp_path):
    folder, _ = frames
    truth = ["--truth", ROOT / "data_samples"]
    cases = [
        ([folder / "eval.npz"], "name what is fake when: --truth"),
        ([folder / "eval.csv", "--hop", "0.02"], "name what is fake when: --truth"),
        ([folder / "eval.npz", *truth, "--by", "attack"], "are for whole recordings: leave them out"),
        ([folder / "eval.txt", *truth], "does not say how long a frame is; give the hop"),
        ([folder / "eval.npz", *truth, "--hop", "0.01"], "its frames are 0.02 s long, not 0.01 s"),
        ([folder / "eval.npz", *truth, "--subset", "test"], "no recordings in split 'test'"),
        ([folder / "dev.npz", *truth], "229 of 229 recordings have no scores"),
        ([folder / "eval.npz", *truth, "--dev", folder / "dev.npz", "--threshold", "0"], "choose"),
        (
            [folder / "eval.npz", "--truth", folder / "eval.rttm", "--dev", folder / "dev.npz"],
            "name the truth of the dev scores with --dev-truth",
        ),
        (
            [folder / "eval.npz", *truth, "--dev", folder / "eval.npz", "--dev-truth", folder / "eval.rttm"],
            "results would flatter",
        ),
    ]
    for words, message in cases:
        done = quick("evaluate", *words, "--replicates", "0")
        assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1, done


def test_fake_stretches_alone_and_durations(frames, tmp_path):
    folder, found = frames
    fakes = [x for x in (folder / "eval.rttm").read_text().splitlines(keepends=True) if " spoof " in x]
    (tmp_path / "spoof.rttm").write_text("".join(fakes))
    truth = open_manifest(ROOT / "data_samples").subset(split="eval").utterances
    lines = [f"{utt} {seconds}\n" for utt, seconds in zip(truth.utt, truth.duration, strict=True)]
    (tmp_path / "reco2dur").write_text("".join(lines))
    options = ["--truth", tmp_path / "spoof.rttm", "--replicates", "0"]
    assert "give the durations" in quick("evaluate", folder / "eval.npz", *options).stderr
    done = quick("evaluate", folder / "eval.npz", *options, "--durations", tmp_path / "reco2dur")
    want = quick("evaluate", folder / "eval.npz", "--truth", ROOT / "data_samples", "--replicates", "0")
    assert numbers(done.stdout) == numbers(want.stdout) and len(numbers(done.stdout)) == 4


# Localize


@pytest.fixture(scope="module")
def localizer(tmp_path_factory):
    """A folder with an untrained localizer and a calibration that shows."""
    folder = tmp_path_factory.mktemp("localizer")
    torch.manual_seed(0)
    save_model(build("frame_linear", front_options={"n_mels": 40}), folder)
    save_calibration(AffineCalibration().fit([0.0, 1.0, 2.0, 3.0], [0, 1, 0, 1]), folder / "calibration.json")
    return folder


def test_localize_writes_scores_and_stretches(localizer, tmp_path):
    done = quick("localize", localizer, ROOT / "data_samples", "-o", tmp_path / "f.csv", "--split", "dev")
    assert done.returncode == 0 and f"159 recordings, frames of 10 ms: {tmp_path / 'f.csv'}\n" in done.stdout
    dev = open_manifest(ROOT / "data_samples").subset(split="dev")
    model = load_model(localizer)
    want = localize(model, dev, progress=False)
    scores, hop = read_frame_scores(tmp_path / "f.csv")
    llrs, _ = read_frame_scores(tmp_path / "f.csv", column="llr")
    assert hop == model.hop and list(scores) == list(want)
    calibration = load_calibration(localizer / "calibration.json")
    for utt, row in want.items():
        assert np.allclose(scores[utt], row, atol=1e-5)
        assert np.allclose(llrs[utt], calibration.transform(scores[utt]), atol=1e-5)
    found = manifest_labels(read_truth(tmp_path / "f.rttm"), hop)
    assert all(((llrs[utt] < 0) == (found[utt] == 0)).all() for utt in want)
    fakes = sum((row < 0).any() for row in llrs.values())
    assert f"{fakes} with fake stretches at the threshold 0" in done.stdout
    judged = quick(
        "evaluate", tmp_path / "f.csv", "--truth", ROOT / "data_samples", "--subset", "dev", "-c", "llr"
    )
    assert judged.returncode == 0 and "Cllr" in judged.stdout


def test_threshold_rttm_and_archives_can_be_chosen(localizer, tmp_path):
    sound = ROOT / "data_samples/audio/S0221.flac"
    options = ["-o", tmp_path / "one.npz", "--rttm", tmp_path / "a/found.txt", "--threshold", "1e9"]
    done = quick("localize", localizer, sound, *options)
    assert done.returncode == 0 and "1 with fake stretches at the threshold 1e+09" in done.stdout, done.stderr
    assert read_truth(tmp_path / "a/found.txt", {"S0221": 1.92}).utterances.label.tolist() == ["spoof"]
    scores, hop = read_frame_scores(tmp_path / "one.npz")  # one number a frame: the calibrated one
    quick("localize", localizer, sound, "-o", tmp_path / "one.csv")
    llrs, _ = read_frame_scores(tmp_path / "one.csv", column="llr")
    assert np.allclose(scores["S0221"], llrs["S0221"], atol=1e-5)
    assert (tmp_path / "one.rttm").is_file()


def test_localize_refuses(localizer, model, tmp_path):
    sound = ROOT / "data_samples/audio/S0221.flac"
    for words, message in (
        ([model, sound], "it is no localizer; use `wedefense-nb score`"),
        ([localizer, sound, "-o", tmp_path / "f.txt"], "written as .csv or .npz"),
        ([localizer, sound, "-o", tmp_path / "f.csv", "--rttm", tmp_path / "f.csv"], "written as .csv or .npz"),
        ([localizer, ROOT / "data_samples", "--split", "test"], "no recordings in split 'test'"),
    ):
        done = quick("localize", *words)
        assert done.returncode == 1 and message in done.stderr, done
    done = quick("score", localizer, sound, "-o", tmp_path / "s.csv")
    assert done.returncode == 1 and "which scores frames; use `wedefense-nb localize`" in done.stderr
    assert list(tmp_path.iterdir()) == []
    bare = tmp_path / "bare"
    save_model(build("frame_linear", front_options={"n_mels": 40}), bare)
    done = quick("localize", bare, sound, "-o", tmp_path / "f.csv")
    assert "(not calibrated: llr = score)" in done.stdout


# Calibrate


def split_of(name, split):
    return pd.read_csv(SCORES / name / f"{split}.csv").set_index("utt")


def test_a_calibration_is_learned_on_dev_applied_and_kept(tmp_path):
    files = [SCORES / "lcnn/dev.csv", SCORES / "lcnn/eval.csv"]
    done = quick("calibrate", *files, "-o", tmp_path / "llr.csv", "--save", tmp_path / "c.json")
    assert done.returncode == 0 and "229 trials calibrated (affine)" in done.stdout, done.stderr
    ours = pd.read_csv(tmp_path / "llr.csv").set_index("utt")
    assert np.allclose(ours.llr, split_of("lcnn", "eval").llr.loc[ours.index], atol=1e-5)  # that of the recipe
    saved = json.loads((tmp_path / "c.json").read_text())
    assert saved["kind"] == "affine" and saved["parameters"] == {"p_spoof": 0.5}
    assert saved["notes"] == {"data": str(files[0])}


@pytest.mark.parametrize(
    "options, model", [(["--p-spoof", "0.2"], AffineCalibration(0.2)), (["--method", "pav"], PAVCalibration())]
)
def test_prior_and_method_reach_the_calibration(tmp_path, options, model):
    files = [SCORES / "resnet/dev.csv", SCORES / "resnet/eval.csv"]
    assert quick("calibrate", *files, "-o", tmp_path / "llr.csv", *options).returncode == 0
    dev = split_of("resnet", "dev")
    ours = pd.read_csv(tmp_path / "llr.csv").set_index("utt")
    assert np.allclose(ours.llr, model.fit(dev.score, label_ids(dev.label)).transform(ours.score), atol=1e-6)


def test_learning_from_what_is_reported_must_be_asked_for_in_words(tmp_path):  # pitfall 13
    files = [SCORES / "lcnn/eval.csv", SCORES / "lcnn/eval.csv"]
    refused = quick("calibrate", *files, "-o", tmp_path / "q.csv")
    assert (
        refused.returncode == 1 and "ask for it in words" in refused.stderr and not (tmp_path / "q.csv").exists()
    )
    words = ["--allow", "fit on the evaluation set"]
    assert quick("calibrate", *files, "-o", tmp_path / "q.csv", *words).returncode == 0
    wrong = quick("calibrate", *files, "--method", "afine")
    assert "unknown calibration 'afine': did you mean 'affine'" in wrong.stderr


# Fuse


def system(name, folder):
    return f"{name}={SCORES / folder / 'dev.csv'},{SCORES / folder / 'eval.csv'}"


@pytest.mark.parametrize(
    "options, model",
    [
        ([], LinearFusion()),
        (["--p-spoof", "0.2", "--ridge", "0.1"], LinearFusion(0.2, 0.1)),
        (["--nonnegative"], LinearFusion(nonnegative=True)),
    ],
)
def test_weights_are_learned_on_dev_and_applied_to_eval(tmp_path, options, model):
    done = quick("fuse", system("A", "lcnn"), system("B", "resnet"), "-o", tmp_path / "f.csv", *options)
    assert done.returncode == 0, done.stderr
    tables = {}
    for split in ("dev", "eval"):
        a = split_of("lcnn", split)
        tables[split] = pd.DataFrame({"A": a.score, "B": split_of("resnet", split).score, "label": a.label})
    model.fit(tables["dev"][["A", "B"]], label_ids(tables["dev"].label))
    fused = pd.read_csv(tmp_path / "f.csv").set_index("utt")
    want = pd.Series(model.transform(tables["eval"]), tables["eval"].index).loc[fused.index]
    assert np.allclose(fused.llr, want, atol=1e-6) and fused.score.equals(fused.llr)
    assert f"weights: A {model.weights_['A']:+.4f}, B {model.weights_['B']:+.4f}" in done.stdout
    assert {"label", "A", "B"} <= set(fused.columns) and "229 trials fused" in done.stdout


def test_the_order_of_systems_does_not_matter(tmp_path):  # pitfall 9
    pair = [system("A", "lcnn"), system("B", "resnet")]
    quick("fuse", *pair, "-o", tmp_path / "one.csv")
    quick("fuse", *pair[::-1], "-o", tmp_path / "two.csv")
    one, two = (pd.read_csv(tmp_path / f"{name}.csv").set_index("utt") for name in ("one", "two"))
    assert np.allclose(one.llr, two.llr.loc[one.index], atol=1e-9)


def test_systems_that_do_not_fit_are_refused(tmp_path):
    short = pd.read_csv(SCORES / "resnet/eval.csv").iloc[1:]
    short.to_csv(tmp_path / "short.csv", index=False)
    missing = f"B={SCORES / 'resnet/dev.csv'},{tmp_path / 'short.csv'}"
    assert "B: 1 missing utterances" in quick("fuse", system("A", "lcnn"), missing).stderr
    one = system("A", "lcnn")
    for systems in (
        [one],
        [one, one],
        [one, system("B", "resnet"), one],
        [one, "B=only.csv"],
        [one, "nameless.csv"],
    ):
        assert "two or more systems, each once" in quick("fuse", *systems).stderr


def test_evaluate_draws_speakers_where_the_keys_know_them():
    scores = ROOT / "data_samples/scores/resnet/eval.csv"
    keys = ["-k", ROOT / "data_samples/utterances.csv", "--replicates", "30"]
    by_speaker = quick("evaluate", scores, *keys).stdout.splitlines()
    assert by_speaker[-1] == (
        "intervals: groups drawn by speaker, 4 bona fide and 9 spoof; too narrow with fewer than 20 of a class"
    )
    singly = quick("evaluate", scores, *keys, "--groups", "").stdout.splitlines()
    assert singly[-1] == "intervals: trials drawn singly" and singly[1] != by_speaker[1]
    assert "no speakers are known" in quick("evaluate", scores, "--replicates", "30").stdout
    assert "no column 'source' to draw by" in quick("evaluate", scores, *keys, "--groups", "source").stderr
