"""Starts processes that load models with the real libraries, and talks to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cli.command_line import environment

SCRIPT = Path(__file__).with_name("loading_child.py")


@dataclass(frozen=True)
class Answer:
    """``loaded`` is a digest of the tensors, or empty; ``verified`` counts bytes; ``told`` are the gate's warnings."""

    loaded: str = ""
    verified: int = 0
    error: str = ""
    message: str = ""
    told: tuple[str, ...] = ()


class Loader:
    """A process that loads on request."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def load(self, loader: str, path: Path | str = "", policy: str | None = None) -> Answer:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"loader": loader, "path": os.fspath(path), "policy": policy}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the process ended"
        found = json.loads(line)
        return Answer(**{**found, "told": tuple(found["told"])})


@contextmanager
def loader_process(words: Sequence[str] = (), **more: str) -> Iterator[Loader]:
    """A process that loads; ``words`` stand before its script, ``more`` are environment variables."""
    env = environment(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", **more)
    command = [sys.executable, *words, str(SCRIPT)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    try:
        yield Loader(process)
    finally:
        process.kill()
        process.communicate()


def flip(path: Path, offset: int, *, keep_time: bool = True) -> None:
    """Flip a bit of a file in place; as rot does, without a trace in its times, or not."""
    times = path.stat()
    with path.open("r+b") as file:
        byte = os.pread(file.fileno(), 1, offset)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 0x40]), offset)
    if keep_time:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
