"""Format, style and types, as the tools see them; the settings are in pyproject.toml."""

import subprocess
import sys
import tomllib
import warnings

import pytest

from tests.conftest import ROOT

BIN = f"{sys.prefix}/bin"
WRITTEN = ["nbs", "tests", "tools", "benchmarks", "setup.py"]


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "--no-cache", "wedefense_nb", *WRITTEN],
        ["ruff", "format", "--no-cache", "--check", *WRITTEN],
        ["mypy", "--cache-dir", "/dev/null"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_tools_have_nothing_to_say(command):
    done = subprocess.run([f"{BIN}/{command[0]}", *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def test_warnings_are_errors_in_the_suite():  # pitfall 62
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert settings["filterwarnings"][0] == "error"
    with pytest.raises(DeprecationWarning):
        warnings.warn("an old name", DeprecationWarning, stacklevel=1)
