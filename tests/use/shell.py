"""Two ways to call the program: as a user does, in a process of its own, and quickly, in this one."""

import contextlib
import io
import os
import subprocess
import sys
from dataclasses import dataclass
from unittest import mock

from tests.conftest import ROOT
from wedefense_nb.use import cli

PROGRAM = os.path.join(os.path.dirname(sys.executable), "wedefense-nb")


def environment(progress: bool = False) -> dict[str, str]:
    """Of a process without colours, and with progress bars only if they are wanted."""
    env = os.environ | {"NO_COLOR": "1", "TERM": "dumb"}
    if progress:
        env.pop("TQDM_DISABLE")
    return env


def command(*args, cwd=ROOT, progress: bool = False) -> subprocess.CompletedProcess:
    """The installed command, as a user calls it."""
    words = [PROGRAM, *map(str, args)]
    return subprocess.run(words, cwd=cwd, env=environment(progress), capture_output=True, text=True)


@dataclass
class Done:
    """What a process would have left."""

    returncode: int
    stdout: str
    stderr: str


def quick(*args) -> Done:
    """The same, from `main` on, in this process."""
    out = io.StringIO()
    err = io.StringIO()
    code = 0
    words = ["wedefense-nb", *map(str, args)]
    with mock.patch.object(sys, "argv", words), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
    return Done(code, out.getvalue(), err.getvalue())
