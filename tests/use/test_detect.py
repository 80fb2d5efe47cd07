"""The commands `detect` and `reference`: what is printed, and what a script can read from the exit code."""

import json
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile as sf
import torch

from tests.use.shell import quick
from wedefense_nb.models.detector import build, save_model
from wedefense_nb.scores.calibration import AffineCalibration, save_calibration
from wedefense_nb.use.commands.detect import exit_code
from wedefense_nb.use.predict import add_reference


@pytest.fixture(scope="module")
def folder(few, tmp_path_factory):
    torch.manual_seed(0)
    place = save_model(build("bands"), tmp_path_factory.mktemp("detect") / "model")
    save_calibration(AffineCalibration().fit([0.0, 1.0, 2.0, 3.0], [0, 1, 0, 1]), place / "calibration.json")
    return add_reference(place, few)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Pages are written into the folder where the command is called."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def chord(tmp_path):
    t = np.arange(32_000) / 16_000
    sf.write(tmp_path / "chord.wav", 0.1 * sum(np.sin(2 * np.pi * f * t) for f in (220, 277.2, 329.6)), 16_000)
    return tmp_path / "chord.wav"


@pytest.mark.parametrize(
    "decisions, code",
    [
        (["bonafide"], 0),
        (["bonafide", "cannot say"], 4),
        (["cannot say", "spoof"], 3),
        (["spoof", "error", "bonafide"], 1),
    ],
)
def test_the_worst_answer_is_the_exit_code(decisions, code):
    assert exit_code(decisions) == code


def test_one_recording_gets_five_lines_and_a_code(folder, samples):
    path = samples.paths()[2]
    real = quick("detect", path, "--model", folder, "--prior", "0.000001")
    assert real.returncode == 0 and "REAL VOICE" in real.stdout and len(real.stdout.strip().splitlines()) == 5
    fake = quick("detect", path, "--model", folder, "--prior", "0.999999")
    assert fake.returncode == 3 and "FAKE" in fake.stdout and "100% of such recordings were fake" in fake.stdout
    dear = quick("detect", path, "--model", folder, "--cost-fa", "1e9")
    assert dear.returncode == 3 and "an accepted fake 1e+09" in dear.stdout


def test_music_cannot_be_judged(folder, chord):
    done = quick("detect", chord, "--model", folder)
    assert done.returncode == 4 and "CANNOT BE JUDGED" in done.stdout and "does not sound like" in done.stdout


def test_a_folder_is_a_table_and_a_broken_file_does_not_stop_it(folder, chord, samples):
    place = chord.parent
    (place / "letter.wav").write_text("Dear Sir")
    (place / "sub").mkdir()
    (place / "sub" / "a.flac").write_bytes(samples.paths()[2].read_bytes())
    done = quick("detect", place, "--model", folder)
    assert done.returncode == 1 and "letter.wav" in done.stderr and "Traceback" not in done.stderr
    assert "chord.wav" in done.stdout and "a.flac" in done.stdout and "assumed: 50% of such" in done.stdout


def test_json_is_for_programs(folder, chord):
    done = quick("detect", chord, "--model", folder, "--json")
    (content,) = json.loads(done.stdout)
    assert content["decision"] == "cannot say" and content["reasons"] and done.returncode == 4


def test_without_a_model_it_says_which_there_are(samples):
    done = quick("detect", samples.paths()[2])
    assert done.returncode == 1 and done.stdout == ""
    for word in ("--model FOLDER", "run detection", "AASIST-L.pth", "demo"):
        assert word in done.stderr


def test_published_weights_need_a_kind(samples, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"x")
    done = quick("detect", samples.paths()[2], "--model", tmp_path / "w.pth")
    assert done.returncode == 1 and "--kind" in done.stderr
    done = quick("detect", samples.paths()[2], "--model", tmp_path / "w.pth", "--kind", "aasist-l")
    assert done.returncode == 1 and "w.pth is refused" in done.stderr
    done = quick("detect", tmp_path / "nowhere.wav", "--model", tmp_path)
    assert done.returncode == 1 and "model folder" in done.stderr


def test_an_old_folder_gets_a_reference(few, samples, tmp_path):
    folder = save_model(build("bands"), tmp_path / "old")
    part = few.subset(utt=list(few.utterances.groupby(["split", "label"]).head(4).utt))
    part.utterances["path"] = [str(path) for path in part.paths()]
    part.write(tmp_path / "corpus")
    done = quick("reference", folder, tmp_path / "corpus")
    assert done.returncode == 0 and "windows of" in done.stdout and (folder / "evidence.json").is_file()
    assert quick("detect", samples.paths()[2], "--model", folder).returncode in (0, 3, 4)


# Pages


def test_a_page_goes_where_it_is_said_to_and_nowhere_else(folder, samples, tmp_path):
    path = samples.paths()[2]
    here = tmp_path / "here"
    done = quick("detect", path, "--model", folder)
    (page,) = (p for p in here.rglob("*") if p.is_file())
    assert done.stderr.strip() == f"page: {page.relative_to(here)}" and page.parent == here / "reports"
    assert page.name.startswith("S0002.flac-") and "data:audio/flac" in page.read_text(encoding="utf-8")
    page.unlink()
    for words in (["--no-html"], ["--json"]):
        done = quick("detect", path, "--model", folder, *words)
        assert done.stderr == "" and not any(p.is_file() for p in here.rglob("*"))
    done = quick("detect", path, "--model", folder, "--json", "--html", "deep/a.HTML")
    assert json.loads(done.stdout)[0]["llr"] and (here / "deep" / "a.HTML").is_file()
    assert quick("detect", path, "--model", folder, "--html", "out").stderr.startswith("page: out/S0002")
    assert quick("detect", "--help").stdout.count("reports/") == 2


def test_a_folder_becomes_a_folder_of_pages(folder, chord, samples, tmp_path):
    place = tmp_path / "inbox"
    (place / "sub").mkdir(parents=True)
    (place / "chord.wav").write_bytes(chord.read_bytes())
    (place / "letter.wav").write_text("Dear Sir")
    (place / "sub" / "a & b.flac").write_bytes(samples.paths()[2].read_bytes())
    done = quick("detect", place, "--model", folder)
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == "pages: reports/inbox/index.html"
    pages = tmp_path / "here" / "reports" / "inbox"
    table = (pages / "index.html").read_text(encoding="utf-8")
    links = re.findall(r'<a href="([^"]+)">([^<]+)<', table)
    assert [name for _, name in links] == ["chord.wav", "sub/a &amp; b.flac"] and str(tmp_path) not in table
    for link, _ in links:
        assert 'href="index.html"' in (pages / unquote(link)).read_text(encoding="utf-8")
    assert "letter.wav: not an audio file" in table and "CANNOT BE JUDGED" in (pages / links[0][0]).read_text()
    done = quick("detect", place / "chord.wav", samples.paths()[2], "--model", folder, "--html", "x.html")
    assert done.returncode == 1 and "name a folder" in done.stderr and done.stdout == ""
    quick("detect", place / "chord.wav", samples.paths()[2], "--model", folder, "--html", "x")
    assert (tmp_path / "here" / "x" / "index.html").is_file()


def test_a_page_that_cannot_be_written_is_a_warning_unless_it_was_asked_for(folder, samples, tmp_path):
    path = samples.paths()[2]
    (tmp_path / "here" / "reports").write_text("a file")
    done = quick("detect", path, "--model", folder, "--prior", "0.000001")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 5 and "no page was written" in done.stderr
    done = quick("detect", path, "--model", folder, "--html", "reports/a.html")
    assert done.returncode == 1 and done.stdout == ""


def test_a_localizer_shows_where(folder, samples, few):
    torch.manual_seed(0)
    place = save_model(build("frame_lcnn_lstm"), folder.parent / "localizer")
    path = samples.paths()[2]
    quick("detect", path, "--model", folder, "--localizer", place, "--html", "a.html")
    assert "Score (not calibrated) of each frame of a\nlocalizer" in Path("a.html").read_text(encoding="utf-8")
    done = quick("detect", path, "--model", folder, "--localizer", folder)
    assert done.returncode == 1 and "folder of a localizer" in done.stderr
