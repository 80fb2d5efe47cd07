"""The command `export`: a model folder to a file."""

import pytest
import torch

from tests.use.shell import quick
from wedefense_nb.models.detector import build, save_model
from wedefense_nb.scores.calibration import AffineCalibration, save_calibration
from wedefense_nb.use.export import Deployed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    return save_model(build("bands", n_mels=24), tmp_path_factory.mktemp("model"))


def test_a_folder_becomes_a_file(folder, tmp_path):
    done = quick("export", folder, "-o", tmp_path / "bands.pt")
    assert done.returncode == 1 and "not calibrated" in done.stderr
    done = quick("export", folder, "-o", tmp_path / "bands.pt", "--raw")
    assert done.returncode == 0 and "uncalibrated scores" in done.stdout
    save_calibration(AffineCalibration().fit([0.0, 1.0, 2.0, 3.0], [0, 1, 0, 1]), folder / "calibration.json")
    done = quick("export", folder, "-o", tmp_path / "bands.bin", "--to", "torchscript")
    assert done.returncode == 0 and "LLRs" in done.stdout and "outputs llr, score" in done.stdout
    (tmp_path / "bands.bin").rename(tmp_path / "renamed.ts")
    assert Deployed(tmp_path / "renamed.ts").about["calibrated"] == "yes"


def test_other_formats_and_eight_bits_elsewhere_are_refused(folder, tmp_path):
    done = quick("export", folder, "-o", tmp_path / "bands.tflite", "--raw")
    assert done.returncode == 1 and "tflite" in done.stderr and "onnx" in done.stderr
    done = quick("export", folder, "-o", tmp_path / "bands.pt", "--int8", "--raw")
    assert done.returncode == 1 and "--int8 is for ONNX" in done.stderr
