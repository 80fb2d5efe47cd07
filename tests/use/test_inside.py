"""The command `intervene`: what it prints and writes, and what a script can read from the exit code."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from tests.use.shell import quick
from wedefense_nb.data.audio import save
from wedefense_nb.data.manifest import Manifest
from wedefense_nb.models.detector import build, save_model
from wedefense_nb.understanding.interventions import PLAN

RATE = 16_000


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A corpus whose fakes begin with silence and whose other differences are small, of six speakers."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("inside")
    rows = []
    for i in range(24):
        label = ("bonafide", "spoof")[i % 2]
        wave = 0.05 * rng.normal(size=6000) * (1 + rng.random())
        save(folder / f"u{i}.wav", np.r_[np.zeros(4800 * (i % 2)), wave].astype(np.float32))
        row = {"utt": f"u{i}", "path": f"u{i}.wav", "label": label, "split": "eval", "speaker": f"s{i // 4}"}
        rows.append(row | {"attack": "", "codec": "", "duration": 1.0, "sample_rate": RATE})
    Manifest(pd.DataFrame(rows), root=folder).write(folder)
    return folder


@pytest.fixture(scope="module")
def model(place):
    """A detector that hears how quiet a recording is on average, turned so that quiet means fake."""
    torch.manual_seed(0)
    network = build("bands").eval()
    with torch.no_grad():
        means = [network.embed(torch.from_numpy(x)[None], torch.tensor([len(x)]))[0] for x in _both()]
        network.head.out.weight.copy_(torch.stack([means[1] - means[0], means[0] - means[1]]))
        network.head.out.bias.zero_()
    return save_model(network, place / "model")


def _both():
    noise = (0.07 * np.random.default_rng(1).normal(size=6000)).astype(np.float32)
    return noise, np.r_[np.zeros(4800, np.float32), noise]


def test_what_a_detector_lives_on_is_named(place, model, tmp_path):
    done = quick("intervene", model, place, "-o", tmp_path / "out")
    assert done.returncode == 3 and "FOUND: lead 0 s" in done.stdout and "more than 25%" in done.stdout
    assert set(pd.read_csv(tmp_path / "out/interventions.csv").intervention) == set(PLAN)
    assert len(pd.read_csv(tmp_path / "out/recordings.csv")) == 24
    assert (tmp_path / "out/interventions.png").read_bytes().startswith(b"\x89PNG")


def test_fewer_recordings_of_both_classes_and_json(place, model):
    done = quick("intervene", model, place, "--most", 16, "--limit", 0.999, "--alpha", 1e-6, "--json")
    content = json.loads(done.stdout)
    assert done.returncode == 0 and content["found"] == [] and content["recordings"] == 16
    assert len(content["interventions"]) == len(PLAN)


def test_too_few_and_other_answers(place, model, tmp_path):
    few = Manifest.read(place).subset(speaker=["s0", "s1"])
    few.utterances["path"] = [str(path) for path in few.paths()]
    few.write(tmp_path / "few")
    done = quick("intervene", model, tmp_path / "few")
    assert done.returncode == 4 and "CANNOT SAY: 2 bona fide" in done.stdout
    done = quick("intervene", model, place, "--split", "dev")
    assert done.returncode == 1 and "no labelled recordings in split 'dev'" in done.stderr
    localizer = save_model(build("frame_lcnn_lstm"), tmp_path / "localizer")
    done = quick("intervene", localizer, place)
    assert done.returncode == 1 and "a localizer" in done.stderr
