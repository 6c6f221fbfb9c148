"""What the agent answers on its control socket: each command with its checks, and the documents."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict

from bitward_agent.daemon.accounts import Accounts
from bitward_agent.daemon.config_values import DURATION_LIMIT_SECONDS, TEXT_LIMIT
from bitward_agent.daemon.control import Document
from bitward_agent.daemon.facts import EventKind, Expectation, UnitRecord
from bitward_agent.daemon.metrics import Snapshot
from bitward_agent.daemon.schedule import due_ns
from bitward_agent.daemon.state import Store
from bitward_agent.daemon.work import Work
from bitward_agent.errors import InputError

FOREVER_NS = 1 << 62
LOG_LIMIT = 5000
_SECOND_NS = 1_000_000_000


class Answers:
    """Called by the control server's thread."""

    def __init__(self, store: Store, work: Work, accounts: Accounts, started_ns: int, version: str, status: Callable[[], str]) -> None:
        self._store, self._work, self._accounts = store, work, accounts
        self._started_ns, self._version, self._status = started_ns, version, status

    def answer(self, request: Document) -> Document:
        """The answer to one request.

        Raises:
            InputError: it makes no sense.
        """
        commands: dict[str, Callable[[Document], Document]] = {
            "status": self._tell_status,
            "log": self._log,
            "pause": self._pause,
            "resume": self._resume,
            "scrub": self._scrub,
            "expect": self._expect,
        }
        command = commands.get(request["command"])
        if command is None:
            raise InputError(f"no such command; there are {', '.join(commands)}")
        return command(request)

    def snapshot(self) -> Snapshot:
        """What the metrics tell."""
        return Snapshot(
            self._version,
            self._started_ns,
            self._store.units(),
            self._store.incidents(open_only=True),
            self._store.totals(),
            self._work.pause_reasons,
            self._work.config.scrub.bytes_per_second,
        )

    def _tell_status(self, request: Document) -> Document:  # noqa: ARG002 - every command gets its request
        now = time.time_ns()
        snapshot = self.snapshot()
        open_ones = {incident.path for incident in snapshot.incidents}
        totals = snapshot.totals
        return {
            "schema": "bitward.agent-status/1",
            "state": "degraded" if snapshot.incidents else "ok",
            "status": self._status(),
            "version": self._version,
            "pid": os.getpid(),
            "now_ns": now,
            "started_ns": self._started_ns,
            "paused": list(snapshot.pause_reasons),
            "trouble": self._store.trouble,
            "units": [self._unit(unit, now, open_ones) for unit in snapshot.units],
            "incidents": [asdict(incident) for incident in snapshot.incidents],
            "expectations": [asdict(one) for one in self._store.expectations(now)],
            "totals": {**asdict(totals), "corrected_bits": dict(totals.corrected_bits)},
        }

    def _unit(self, unit: UnitRecord, now_ns: int, open_ones: set[str]) -> Document:
        verified = unit.last_full_verify_ns
        return {
            "path": unit.path,
            "watch": unit.watch,
            "verdict": unit.verdict.value if unit.verdict is not None else None,
            "origin": unit.origin,
            "root": unit.root,
            "bytes": unit.bytes,
            "sidecar": unit.sidecar,
            "last_full_verify_ns": verified,
            "age_seconds": max(0, now_ns - verified) // _SECOND_NS if verified else None,
            "next_scrub_ns": due_ns(unit, self._work.config) if unit.root else None,
            "scrub_position_bytes": unit.scrub_position_bytes,
            "damaged_blocks": unit.damaged_blocks,
            "incident": unit.path in open_ones,
            "message": unit.message,
        }

    def _log(self, request: Document) -> Document:
        limit = _integer(request, "limit", 100, 1, LOG_LIMIT)
        events = [{**asdict(event), "fields": dict(event.fields)} for event in self._store.events(limit)]
        return {"schema": "bitward.agent-log/1", "events": events}

    def _pause(self, request: Document) -> Document:
        seconds = _integer(request, "seconds", 0, 0, DURATION_LIMIT_SECONDS)
        until = time.time_ns() + seconds * _SECOND_NS if seconds else FOREVER_NS
        self._store.pause(until)
        self._accounts.event(EventKind.PAUSED, "", f"scrubbing was paused {f'for {seconds} s' if seconds else 'until resumed'}")
        return {"schema": "bitward.agent-pause/1", "paused_until_ns": until}

    def _resume(self, request: Document) -> Document:  # noqa: ARG002 - every command gets its request
        self._store.pause(0)
        self._accounts.event(EventKind.RESUMED, "", "scrubbing was resumed")
        self._work.requests.wake()
        return {"schema": "bitward.agent-pause/1", "paused_until_ns": 0, "paused": list(self._work.pause_reasons)}

    def _scrub(self, request: Document) -> Document:
        path = _path(request)
        below = path.rstrip("/") + "/"
        units = [unit.path for unit in self._store.units() if unit.path == path or unit.path.startswith(below)]
        if not units:
            raise InputError(f"{path}: no file that the agent knows")
        taken = self._work.requests.scrub(units)
        return {"schema": "bitward.agent-scrub/1", "files": len(units), "taken": taken}

    def _expect(self, request: Document) -> Document:
        path = _path(request)
        seconds = _integer(request, "seconds", 600, 0, DURATION_LIMIT_SECONDS)
        if self._work.config.watch_of(path) is None and not any(one.path.startswith(path) for one in self._work.config.watches):
            raise InputError(f"{path}: is in no watch")
        until = time.time_ns() + seconds * _SECOND_NS
        if not self._store.expect(Expectation(path, until)):
            raise InputError("too many rewrites are announced already")
        self._accounts.event(EventKind.EXPECTING, path, f"a rewrite was announced for {seconds} s")
        return {"schema": "bitward.agent-expect/1", "path": path, "until_ns": until}


def _path(request: Document) -> str:
    path = request.get("path")
    if not isinstance(path, str) or not 0 < len(path) <= TEXT_LIMIT or "\0" in path or not os.path.isabs(path):
        raise InputError('"path" must be an absolute path')
    return os.path.normpath(path)


def _integer(request: Document, name: str, default: int, least: int, most: int) -> int:
    value = request.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InputError(f'"{name}" must be a number from {least} to {most}')
    return value
