"""Format, style and types, as the tools see them; the settings are in pyproject.toml."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

BIN = f"{sys.prefix}/bin"
PLACES = ["wedefense_nb", "nbs", "tests", "tools", "benchmarks", "setup.py"]


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "--no-cache", *PLACES],
        ["ruff", "format", "--no-cache", "--check", "--exclude", "wedefense_nb", *PLACES],
        ["mypy", "--cache-dir", "/dev/null"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_tools_have_nothing_to_say(command):
    done = subprocess.run([f"{BIN}/{command[0]}", *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
