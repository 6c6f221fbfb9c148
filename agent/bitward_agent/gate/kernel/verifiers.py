"""The processes that verify for the kernel gate: tasks go to whichever is free, in order; one that dies is replaced."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections import deque
from contextlib import suppress

from bitward_agent.gate.kernel.facts import Key
from bitward_agent.gate.kernel.verifier import LINE_LIMIT, Finding, Task, read_finding
from bitward_formats.frozen import dataclass

VERIFIERS_LIMIT = 8


@dataclass(slots=True)
class _Verifier:
    process: subprocess.Popen[bytes]
    channel: socket.socket
    task: Task | None = None
    received: bytes = b""


class Verifiers:
    """A few processes, each with one task at most."""

    def __init__(self, count: int) -> None:
        self._waiting: deque[Task] = deque()
        self._was_first: Task | None = None
        self._all: list[_Verifier] = []
        for _ in range(count):
            self._start()

    def _start(self) -> _Verifier:
        ours, theirs = socket.socketpair()
        with theirs:
            line = [sys.executable, "-P", "-m", "bitward_agent.gate.kernel.verifier", str(theirs.fileno())]
            process = subprocess.Popen(line, pass_fds=(theirs.fileno(),), cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        ours.setblocking(False)
        one = _Verifier(process, ours)
        self._all.append(one)
        return one

    @property
    def fds(self) -> list[int]:
        """What to wait for."""
        return [one.channel.fileno() for one in self._all]

    @property
    def processes(self) -> list[int]:
        """Whose opens are our own."""
        return [one.process.pid for one in self._all]

    def submit(self, task: Task) -> None:
        """Have a file verified; its finding comes out of ``collect``."""
        self._waiting.append(task)
        self._give_out()

    def grow(self) -> None:
        """Start one more if tasks have been waiting since this was last called: the others may hang in a disk that does not answer."""
        if self._waiting and self._waiting[0] is self._was_first and len(self._all) < VERIFIERS_LIMIT:
            self._start()
            self._give_out()
        self._was_first = self._waiting[0] if self._waiting else None

    def _give_out(self) -> None:
        for one in self._all:
            if one.task is None and self._waiting:
                one.task = self._waiting.popleft()
                with suppress(OSError):  # it died: ``collect`` will see that
                    one.channel.send(one.task.line())

    def collect(self, fd: int) -> tuple[list[Finding], list[Key]]:
        """Read from the verifier with this descriptor: (findings, files whose verifier died over them)."""
        one = next((one for one in self._all if one.channel.fileno() == fd), None)
        if one is None:
            return [], []
        try:
            data = one.channel.recv(LINE_LIMIT)
        except BlockingIOError:
            return [], []
        except OSError:
            data = b""
        if not data:
            return [], self._bury(one)
        *lines, one.received = (one.received + data).split(b"\n")
        found: list[Finding] = []
        try:
            found = [read_finding(line) for line in lines]
        except (json.JSONDecodeError, KeyError, TypeError, ValueError):
            return [], self._bury(one)
        if found:
            one.task = None
        self._give_out()
        return found, []

    def _bury(self, one: _Verifier) -> list[Key]:
        """Replace one that died, and say what it was at."""
        self._all.remove(one)
        one.channel.close()
        one.process.kill()
        with suppress(subprocess.TimeoutExpired):
            one.process.wait(0.2)
        self._start()
        self._give_out()
        return [one.task.key] if one.task else []

    def stop(self) -> None:
        """End them; one in the middle of a repair finishes it, as its journal would."""
        for one in self._all:
            one.channel.close()
        self._all = []
