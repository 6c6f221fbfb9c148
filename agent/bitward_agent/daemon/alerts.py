"""The alert command: told of each incident once, by arguments of its own, fields in its environment and a document on its input.

It runs beside the work, one at a time, for a limited time. Too many incidents at once become one call that says how many there were.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, replace
from threading import Condition, Thread

from bitward_agent.daemon.facts import Incident

COMMAND_SECONDS = 30.0
BURST = 10
REFILL_SECONDS = 60.0
"""Ten calls at once, then one a minute."""

WAITING_LIMIT = 1000
ENVIRONMENT_CHARACTERS = 1000
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "USER", "LOGNAME", "TZ")


class Alerts:
    """Calls the command in a thread of its own, which is started with the first alert."""

    def __init__(
        self,
        command: tuple[str, ...],
        told: Callable[[Incident], None],
        failed: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        command_seconds: float = COMMAND_SECONDS,
    ) -> None:
        """``told`` is called with each incident that the command took (or that nobody wants to hear of, without a command), ``failed``
        in words when the command ends badly. Both may be called from another thread."""
        self.command = command
        self._told, self._failed = told, failed
        self._clock, self._command_seconds = clock, command_seconds
        self._waiting: deque[Incident] = deque()
        self._changed = Condition()
        self._thread: Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._tokens, self._at = float(BURST), clock()

    def send(self, incident: Incident) -> None:
        """Tell of an incident, soon. Returns at once."""
        if not self.command:
            self._told(incident)
            return
        with self._changed:
            if self._stopped or any(one.id == incident.id for one in self._waiting):
                return
            if len(self._waiting) < WAITING_LIMIT:
                self._waiting.append(incident)  # one that finds no room is told of after the next start
            if self._thread is None:
                self._thread = Thread(target=self._run, name="bitward-alerts", daemon=True)
                self._thread.start()
            self._changed.notify()

    def stop(self) -> None:
        """End; a command that runs is ended too, and what was not told will be at the next start."""
        with self._changed:
            self._stopped = True
            process = self._process
            self._changed.notify()
        if process is not None:
            process.kill()
        if self._thread is not None:
            self._thread.join(timeout=0.5)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._stopped and (not self._waiting or not self._may_call()):
                    self._changed.wait(timeout=1.0 if self._waiting else None)
                if self._stopped:
                    return
                self._tokens -= 1
                # The last call that is allowed for now speaks of all that wait.
                batch = [self._waiting.popleft() for _ in range(len(self._waiting) if self._tokens < 1 else 1)]
            message = self._call(batch[0] if len(batch) == 1 else _summary(batch))
            if self._is_stopped():
                return
            if message:
                self._failed(message)
            for incident in batch:
                self._told(incident)

    def _is_stopped(self) -> bool:
        return self._stopped

    def _may_call(self) -> bool:
        now = self._clock()
        self._tokens = min(float(BURST), self._tokens + (now - self._at) / REFILL_SECONDS)
        self._at = now
        return self._tokens >= 1

    def _call(self, incident: Incident) -> str:
        """Run the command once; in words what went wrong, if something did."""
        try:
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment_of(incident, os.environ.copy()),
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            return f"the alert command {self.command[0]} cannot be run: {error.strerror}"
        with self._changed:
            self._process = process
        try:
            process.communicate(document_of(incident), timeout=self._command_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return f"the alert command {self.command[0]} was ended after {self._command_seconds:g} s"
        finally:
            with self._changed:
                self._process = None
        return f"the alert command {self.command[0]} ended with {process.returncode}" if process.returncode else ""


def _summary(batch: list[Incident]) -> Incident:
    """One incident that stands for many."""
    kinds = sorted({one.kind.value for one in batch})
    told = f"{len(batch)} incidents ({', '.join(kinds)}), the first: {batch[0].path}: {batch[0].message}"
    return replace(batch[0], message=told, seen_count=len(batch))


def document_of(incident: Incident) -> bytes:
    """What the command reads: one JSON document."""
    return json.dumps({"schema": "bitward.incident/1", **asdict(incident)}).encode() + b"\n"


def environment_of(incident: Incident, inherited: dict[str, str]) -> dict[str, str]:
    """``BITWARD_…`` variables, and a few of the agent's own: the rest, which may hold secrets of sources, is not passed on."""
    fields = {
        "KIND": incident.kind.value,
        "PATH": incident.path,
        "MESSAGE": incident.message,
        "TENSOR": incident.tensor or "",
        "BLOCK": str(incident.block) if incident.block >= 0 else "",
        "OFFSET": str(incident.offset) if incident.offset >= 0 else "",
        "MEDIUM": incident.medium,
        "INCIDENT": str(incident.id),
    }
    own = {f"BITWARD_{name}": value.replace("\0", "?")[:ENVIRONMENT_CHARACTERS] for name, value in fields.items()}
    own = {
        name: value.encode("utf-8", "surrogateescape" if name == "BITWARD_PATH" else "replace").decode("utf-8", "surrogateescape")
        for name, value in own.items()
    }
    return {name: inherited[name] for name in _PASSED_ON if name in inherited} | own
