"""The alert command: told of each incident once, by arguments of its own, fields in its environment and a document on its input.

It runs beside the work, one at a time, for a limited time. Too many incidents at once become one call that says how many there were. A
call that fails is made again a few times, later and later; one that succeeded never is.
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
from bitward_formats.frozen import dataclass

COMMAND_SECONDS = 30.0
BURST = 10
REFILL_SECONDS = 60.0
"""Ten calls at once, then one a minute."""

RETRY_SECONDS = (30.0, 120.0, 600.0)
"""How long after a call that failed the next one is made. After the last, somebody who reads the log may still see it."""

WAITING_LIMIT = 1000
ENVIRONMENT_CHARACTERS = 1000
DELIVERED_LIMIT = 10_000
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "USER", "LOGNAME", "TZ")


@dataclass(frozen=True, slots=True)
class _Call:
    """Incidents that are told in one call; ``failures`` of it so far, and before which moment of the clock it is not made again."""

    incidents: tuple[Incident, ...]
    failures: int = 0
    not_before: float = 0.0


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
        retry_seconds: tuple[float, ...] = RETRY_SECONDS,
    ) -> None:
        """``told`` is called with each incident that the command took (or that nobody wants to hear of, without a command), ``failed``
        in words when the command ends badly. Both may be called from another thread. An incident that was given up may be sent again."""
        self.command = command
        self._told, self._failed = told, failed
        self._clock, self._command_seconds = clock, command_seconds
        self._retry_seconds = retry_seconds
        self._waiting: deque[Incident] = deque()
        self._again: list[_Call] = []
        self._taken: dict[int, None] = {}
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
            if self._stopped or incident.id in self._taken:
                return
            if len(self._waiting) < WAITING_LIMIT:
                self._take(incident)  # one that finds no room is told of after the next start
            if self._thread is None:
                self._thread = Thread(target=self._run, name="bitward-alerts", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _take(self, incident: Incident) -> None:
        """Put an incident in line. Its number is kept when it was told, since whoever sees it again may not know of that yet."""
        self._waiting.append(incident)
        self._taken[incident.id] = None
        if len(self._taken) > WAITING_LIMIT + DELIVERED_LIMIT:
            del self._taken[next(iter(self._taken))]

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
                while not self._stopped and (call := self._next()) is None:
                    self._changed.wait(timeout=1.0 if self._waiting or self._again else None)
                if self._stopped or call is None:
                    return
            message = self._call(call.incidents[0] if len(call.incidents) == 1 else _summary(call.incidents))
            if self._is_stopped():
                return
            if message:
                self._put_off(call, message)
                continue
            for incident in call.incidents:
                self._told(incident)

    def _next(self) -> _Call | None:
        """The call to be made now: one that failed and whose time has come, or one for what waits. None if none is, or none allowed."""
        now = self._clock()
        due = next((one for one in self._again if one.not_before <= now), None)
        if (due is None and not self._waiting) or not self._may_call():
            return None
        self._tokens -= 1
        if due is not None:
            self._again.remove(due)
            return due
        # The last call that is allowed for now speaks of all that wait.
        return _Call(tuple(self._waiting.popleft() for _ in range(len(self._waiting) if self._tokens < 1 else 1)))

    def _put_off(self, call: _Call, message: str) -> None:
        """A call failed: it is made again later, or given up. Both are told."""
        if call.failures < len(self._retry_seconds):
            wait = self._retry_seconds[call.failures]
            with self._changed:
                self._again.append(_Call(call.incidents, call.failures + 1, self._clock() + wait))
            self._failed(f"{message}; it is called again in {wait:g} s")
            return
        with self._changed:
            for incident in call.incidents:
                self._taken.pop(incident.id, None)
        self._failed(f"{message}; given up after {call.failures + 1} calls, until the incident is seen again or the agent starts anew")

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


def _summary(batch: tuple[Incident, ...]) -> Incident:
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
