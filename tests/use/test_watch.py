"""The command `drift`: what it prints, and what a script can read from the exit code."""

import json
import shutil

import numpy as np
import pytest
import soundfile as sf
import torch
from scipy.signal import butter, sosfilt

from tests.use.shell import quick
from wedefense_nb.models.detector import build, save_model
from wedefense_nb.use.commands.watch import meaning
from wedefense_nb.use.predict import add_reference


def voices(place, seed: int, cut: float = 0.0, speakers: int = 7):
    """A folder of noises in folders by speaker, two of each, above which frequencies may be cut."""
    rng = np.random.default_rng(seed)
    for who in range(speakers):
        (place / f"{seed}-{who}").mkdir(parents=True)
        for i in range(2):
            wave = 0.1 * rng.normal(size=6000) * (0.2 + rng.random())
            if cut:
                wave = sosfilt(butter(8, cut, fs=16_000, output="sos"), wave)
            sf.write(place / f"{seed}-{who}" / f"{i}.wav", wave, 16_000)
    return place


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    return save_model(build("bands"), tmp_path_factory.mktemp("watch") / "model")


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return voices(tmp_path_factory.mktemp("known"), 1)


def test_nothing_new_is_no_drift(model, known, tmp_path):
    done = quick("drift", known, voices(tmp_path / "in", 2), "--model", model)
    assert done.returncode == 0 and "No drift found" in done.stdout and "by chance" in done.stdout
    assert "7 independent" in done.stdout and "nothing proves them either" in done.stdout and not done.stderr


def test_a_line_is_drift_and_the_bandwidth_says_so(model, known, tmp_path):
    came = voices(tmp_path / "in", 2, cut=3000)
    done = quick("drift", known, came, "--model", model)
    assert done.returncode == 3 and "DRIFT" in done.stdout and "drifted" in done.stdout
    assert "bandwidth (median" in done.stdout and "no reference statistics" in done.stdout
    content = json.loads(quick("drift", known, came, "--model", model, "--json").stdout)
    assert content["drift"] is True and content["refused"] is None and "DRIFT" in content["verdict"]
    assert "bandwidth" in {row["fact"] for row in content["facts"] if row["drifted"]}


def test_too_few_are_an_answer_of_their_own(model, known, tmp_path):
    came = voices(tmp_path / "in", 2, speakers=2)
    done = quick("drift", known, came, "--model", model)
    assert done.returncode == 4 and done.stdout.startswith("CANNOT SAY: too few")
    done = quick("drift", known, came, "--model", model, "--json")
    assert done.returncode == 4 and json.loads(done.stdout)["drift"] is None


def test_a_flat_folder_has_no_speakers_and_alone_forgets_them(model, known, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted(voices(tmp_path / "in", 2, speakers=6).rglob("*.wav"))):
        shutil.copy(path, flat / f"{i}.wav")
    assert "12 independent" in quick("drift", known, flat, "--model", model).stdout
    assert "14 of the reference (14)" in quick("drift", known, flat, "--model", model, "--alone").stdout


def test_splits_of_a_manifest_and_what_the_model_refuses(few, tmp_path):
    torch.manual_seed(0)
    folder = add_reference(save_model(build("bands"), tmp_path / "model"), few)
    few.utterances["path"] = [str(path) for path in few.paths()]
    few.write(tmp_path / "corpus")
    splits = ["--reference-split", "dev", "--incoming-split", "eval", "--alone", "--most", "14"]
    done = quick("drift", tmp_path / "corpus", tmp_path / "corpus", "--model", folder, *splits, "--json")
    content = json.loads(done.stdout)
    assert content["recordings"] == [14, 14] and 0 <= content["refused"][0] <= 1 and done.returncode in (0, 3)
    done = quick("drift", tmp_path / "corpus", tmp_path / "corpus", "--model", folder, "--incoming-split", "x")
    assert done.returncode == 1 and "no recordings in split 'x'" in done.stderr


def test_errors_are_one_line(model, known, tmp_path):
    (tmp_path / "in").mkdir()
    for wrong in (tmp_path / "nowhere", tmp_path / "in"):
        done = quick("drift", known, wrong, "--model", model)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and "no sound files" in done.stderr
    (tmp_path / "in/letter.wav").write_text("Dear Sir or Madam")
    done = quick("drift", known, tmp_path / "in", "--model", model)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "letter.wav" in done.stderr
    done = quick("drift", known, known, "--model", tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1


def test_what_follows_is_said_in_words():
    words = meaning(["embedding", "level"], (0.01, 0.4))
    assert "refuses 40% of them" in words and "(1% of the reference)" in words and "are fake than before" in words
    assert "are fake than before" not in meaning(["level"], None)
