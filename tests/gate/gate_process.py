"""A kernel gate in processes of its own, and processes that open files below it. Everything is bounded and stops by itself."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from bitward_agent.errors import BitwardError
from bitward_agent.gate.kernel.fanotify import Group
from cli.command_line import COMMAND, environment

READY_SECONDS = 30
WAIT_SECONDS = 20
OPEN_AND_READ = "import os,sys\nfd=os.open(sys.argv[1],os.O_RDONLY)\nn=0\nwhile d:=os.read(fd,1<<20): n+=len(d)\nprint(n)\n"
MAP_AND_READ = (
    "import mmap,os,sys,time\n"
    "until=time.monotonic()+float(sys.argv[2])\nok=no=0\n"
    "while time.monotonic()<until:\n"
    " try:\n"
    "  fd=os.open(sys.argv[1],os.O_RDONLY)\n"
    " except PermissionError:\n"
    "  no+=1; time.sleep(0.002); continue\n"
    " m=mmap.mmap(fd,0,prot=mmap.PROT_READ); sum(m[::4096]); m.close(); os.close(fd); ok+=1\n"
    "print(ok,no)\n"
)


def why_no_gate() -> str:
    """Why there can be no kernel gate here, or ""."""
    try:
        Group.make().close()
    except BitwardError as error:
        return str(error)
    return ""


needs_fanotify = pytest.mark.skipif(bool(why_no_gate()), reason=f"no kernel gate here: {why_no_gate()}")


def children(process: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        with suppress(OSError):
            found += [int(word) for word in (task / "children").read_text().split()]
    return found


class GateProcess:
    """``bitward gate --watch`` at work; ``events`` are its JSON lines."""

    def __init__(self, folder: Path, cache: Path, *arguments: str, leases: bool = True) -> None:
        given = environment(BITWARD_CACHE_DIR=str(cache))
        if not leases:  # as on a file system that has none
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            (cache / "sitecustomize.py").write_text(
                "from bitward_agent.gate.kernel import waiting\nwaiting.take_lease = lambda fd, broken: waiting.Taken.REFUSED\n"
            )
            given["PYTHONPATH"] = f"{cache}:{given['PYTHONPATH']}"
        line = [*COMMAND, "gate", "--watch", str(folder), "--json", *arguments]
        self._process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=given)
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        self.events: list[dict[str, Any]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(json.loads(line))

    @property
    def holder(self) -> int:
        return self._process.pid

    @property
    def keeper(self) -> int:
        (keeper,) = children(self.holder)
        return keeper

    def wait_for(self, event: str) -> dict[str, Any]:
        """The next event of this kind."""
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until:
            with suppress(queue.Empty):
                found = self._lines.get(timeout=0.2)
                self.events.append(found)
                if found["event"] == event:
                    return found
            if self._process.poll() is not None and self._lines.empty():
                break
        assert self._process.stderr is not None
        raise AssertionError(f"no {event!r}: {self.events} {self._process.stderr.read() if self._process.poll() is not None else ''}")

    def told(self) -> list[dict[str, Any]]:
        """All events so far."""
        time.sleep(0.2)
        with suppress(queue.Empty):
            while True:
                self.events.append(self._lines.get_nowait())
        return self.events

    def stop(self) -> int:
        """End it and all that belongs to it."""
        tree = [self.holder, *children(self.holder)] if self._process.poll() is None else []
        self._process.terminate()
        try:
            return self._process.wait(10)
        finally:
            for process in tree:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            self._process.wait(10)
            for stream in (self._process.stdout, self._process.stderr):
                assert stream is not None
                stream.close()


@contextmanager
def gate(folder: Path, *arguments: str, cache: Path | None = None, leases: bool = True) -> Iterator[GateProcess]:
    """A gate before a folder, ready."""
    one = GateProcess(folder, cache or folder.parent / "cache", *arguments, leases=leases)
    try:
        one.wait_for("ready")
        yield one
    finally:
        one.stop()


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A small Python process."""
    line = [sys.executable, "-S", "-c", script, *map(str, arguments)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its exit code and what it wrote. It must end by itself."""
    try:
        out, err = process.communicate(timeout=WAIT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise AssertionError("an opener hangs") from None
    return process.returncode, out.strip(), err


def reads(path: Path) -> int:
    """How many bytes another process reads from a file; -1 if it may not open it."""
    code, out, err = ended(start(OPEN_AND_READ, path))
    if code == 0:
        return int(out)
    assert "PermissionError" in err, err
    return -1
