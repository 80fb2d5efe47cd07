"""Scores from recordings, and what can be asked of scores in one line."""

import json

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch

from tests.conftest import ROOT
from tests.use.shell import quick
from wedefense_nb.data.manifest import open_manifest
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
