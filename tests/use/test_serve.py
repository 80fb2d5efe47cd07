"""The command `serve`: what it needs, what it prints, and that Ctrl-C ends it and leaves nothing."""

import os
import signal
import subprocess
import tempfile
from functools import partial

import pytest
import requests

from tests.use.shell import PROGRAM, environment, quick
from wedefense_nb.models.detector import build, save_model
from wedefense_nb.use.commands.serve import reach


def test_without_a_model_it_says_which_there_are():
    done = quick("serve")
    assert done.returncode == 1 and done.stderr.startswith("error: serve needs a model") and not done.stdout
    assert "--model FOLDER" in done.stderr and "mislead" in done.stderr


@pytest.mark.parametrize(
    "words, said",
    [(["--max-mb", "0"], "megabytes must be"), (["--clients", "99"], "clients must lie"), ([], "model folder")],
)
def test_errors_are_one_line(tmp_path, words, said):
    done = quick("serve", "--model", tmp_path, *words)
    assert done.returncode == 1 and said in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_only_addresses_of_this_computer_need_no_warning():
    assert [bool(reach(host)) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.1", "")] == [
        False,
        False,
        False,
        True,
        True,
        True,
    ]


@pytest.fixture
def short_place():
    """A folder with a short name: a socket's address, which lies in it, has at most 107 letters."""
    with tempfile.TemporaryDirectory() as folder:
        yield folder


def test_it_serves_until_it_is_interrupted(tmp_path, short_place):
    folder = save_model(build("bands"), tmp_path / "model")
    words = [PROGRAM, "serve", "--model", str(folder), "--port", "0"]
    env = environment() | {"TMPDIR": short_place, "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a suite in the background ignores Ctrl-C
    with subprocess.Popen(words, env=env, preexec_fn=listen, **pipes) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("open http://127.0.0.1:"), process.stderr.read()
            assert "Is this voice real?" in requests.get(line.split()[1]).text
            os.kill(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0 and "no recording was kept" in out and err == ""
    assert not [name for name in os.listdir(short_place) if name.startswith("wedefense-nb")]
