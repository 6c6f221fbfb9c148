"""Whole processes, measured: wall time and peak memory, contenders taking turns so that a noisy machine is unkind to all alike."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Contender:
    """A command. ``prepare`` runs before each round and ``check`` after it, neither of them measured; ``expect`` is the exit code."""

    name: str
    argv: Sequence[str]
    prepare: Callable[[], None] | None = None
    check: Callable[[], None] | None = None
    expect: int = 0


@dataclass(slots=True)
class Run:
    """What was measured of one contender: seconds of each round, and the largest peak of resident memory."""

    name: str
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def best(self) -> float:
        return min(self.seconds)


def run_once(contender: Contender) -> tuple[float, int]:
    """(seconds, peak bytes of resident memory) of one process and the children it waited for.

    The peak is the kernel's, by ``wait4``. A child starts with its parent's peak, so the process that measures has to be small: it
    loads no NumPy.
    """
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(contender.argv, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != contender.expect:
            output.seek(0)
            said = output.read()[-2000:].decode(errors="replace")
            raise RuntimeError(f"{contender.name} ended with {process.returncode}, not {contender.expect}: {contender.argv}\n{said}")
    return seconds, usage.ru_maxrss * 1024


def compete(contenders: Sequence[Contender], rounds: int) -> dict[str, Run]:
    """Run all contenders in turn, ``rounds`` times."""
    runs = {contender.name: Run(contender.name) for contender in contenders}
    for _ in range(rounds):
        for contender in contenders:
            if contender.prepare:
                contender.prepare()
            seconds, peak = run_once(contender)
            if contender.check:
                contender.check()
            run = runs[contender.name]
            run.seconds.append(seconds)
            run.peak_bytes = max(run.peak_bytes, peak)
    return runs


def warm(path: Path) -> None:
    """Read a file into the page cache."""
    buffer = bytearray(4 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
