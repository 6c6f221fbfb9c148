"""Runs the command line in a process of its own, as users do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_SECONDS = 120
ROOTS = [str(Path(__file__).parents[2] / name) for name in ("formats", "agent", "tools")]
COMMAND = [sys.executable, "-m", "bitward"]


def environment(**more: str) -> dict[str, str]:
    """The tests' environment, so that the command imports what the tests import."""
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "BITWARD_DEBUG", "FORCE_COLOR", "TTY_COMPATIBLE")}
    return kept | {"PYTHONPATH": os.pathsep.join([*ROOTS, *filter(None, sys.path)])} | more


def _refuse(literal: str) -> None:
    raise AssertionError(f"{literal} is not JSON")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output as the one JSON document that it must be."""
        return json.loads(self.out, parse_constant=_refuse)


def bitward(*arguments: str | os.PathLike[str], stdout: int | None = None, **more: str) -> Ended:
    """Run ``bitward`` with these arguments; ``more`` are environment variables."""
    done = subprocess.run(
        [*COMMAND, *map(os.fspath, arguments)],
        stdout=subprocess.PIPE if stdout is None else stdout,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        timeout=TIMEOUT_SECONDS,
        env=environment(**more),
        check=False,
    )
    return Ended(done.returncode, done.stdout or "", done.stderr)
