"""Starts processes that map checkpoints, and talks to them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import bitward
import checkpoints
from cli.command_line import environment

SCRIPT = Path(__file__).with_name("mapping_child.py")


class Child:
    """One of them. ``pid`` is its own number, whatever it was started through."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert self._line() == "ready"
        self.pid = process.pid

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def ask(self, *words: object) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        return self._line()

    def sum(self) -> str:
        return self.ask("sum")

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def child(how: str, path: Path, through: Sequence[str] = ()) -> Iterator[Child]:
    """A child; ``through`` are words of a command that replaces itself with it."""
    words = [*through, sys.executable, str(SCRIPT), how, str(path)]
    one = Child(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()))
    try:
        yield one
    finally:
        one.end()


def checkpoint(folder: Path, *, seed: int = 7) -> Path:
    """A protected safetensors file of 1.5 MB; tensors ``a`` (400, 500), ``b`` (300, 500) and ``small`` (9)."""
    path = write_checkpoint(folder / "model.safetensors", seed)
    bitward.protect(path)
    return path


def write_checkpoint(path: Path, seed: int) -> Path:
    drawn = np.random.default_rng(seed)
    tensors: dict[str, checkpoints.Tensor] = {}
    for name, shape in (("a", (400, 500)), ("b", (300, 500)), ("small", (9,))):
        tensors[name] = ("F32", shape, np.asarray(drawn.standard_normal(shape) * 0.05, np.float32).tobytes())
    return checkpoints.write_safetensors(path, tensors)


def data_start(path: Path) -> int:
    """Where the tensors' bytes begin in a safetensors file."""
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def flip_in_file(path: Path, offset: int, bit: int) -> None:
    """Flip a bit in place, with the file's times kept: rot, not a rewrite."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def flip_in_memory(pid: int, path: Path, offset: int, bit: int) -> None:
    """Flip a bit of a process's private image of a file, as a bad memory cell would."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if str(path) in line and line.split()[1].endswith("p"):
            low, high = (int(part, 16) for part in line.split()[0].split("-"))
            start = int(line.split()[2], 16)
            if start <= offset < start + high - low:
                with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
                    memory.seek(low + offset - start)
                    byte = memory.read(1)[0]
                    memory.seek(low + offset - start)
                    memory.write(bytes([byte ^ 1 << bit]))
                return
    raise AssertionError(f"{path} is not mapped privately at {offset}")
