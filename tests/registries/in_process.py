"""The command line in this process: as the entry point runs it, without the start of a process for each of many small steps."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr, redirect_stdout

from bitward.cli import main
from cli.command_line import Ended


def bitward(*arguments: str | os.PathLike[str]) -> Ended:
    """Run ``bitward`` with these arguments."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([os.fspath(argument) for argument in arguments])
    return Ended(code, out.getvalue(), err.getvalue())
