"""Rows on their way to the database: what is urgent at once, the rest in company; and when the disk is full or the file corrupt, later.

A row waits once, in its newest state. A database beyond use is replaced by a new one that gets everything. For one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from bitward_agent.daemon.database import Database, Key, Statement, Trouble

LAZY_SECONDS = 60.0
RETRY_SECONDS = 10.0
WAITING_LIMIT = 100_000
"""Rows that wait for a disk to have room again; beyond that the oldest events and repairs are given up, and that is told."""

EVENTS_KEPT = 5000
REPAIRS_KEPT = 100_000
INCIDENTS_KEPT = 10_000
TRIM_EVERY = 200

R = TypeVar("R")


class RowsWaiting:
    """The rows that are not written yet, and the writing.

    ``lost`` says in words why an older database was moved aside and all is to be learnt anew; empty if all is well. ``trouble`` says why
    rows wait to be written, if they do.
    """

    def __init__(self, database: Database, everything: Callable[[], dict[Key, Statement]], clock: Callable[[], float]) -> None:
        """``everything`` is asked for all rows when a new database takes over."""
        self.lost, self.trouble = database.lost, ""
        self._database, self._everything, self._clock = database, everything, clock
        self._waiting: dict[Key, Statement] = {}
        self._flush_at = 0.0
        self._writes = 0

    def write(self, key: Key, statement: Statement, *, lazily: bool = False) -> None:
        """Write a row now, with all that wait; or with ``lazily`` within ``LAZY_SECONDS``."""
        self.put(key, statement)
        if not lazily:
            self.flush()
        else:
            self.write_soon()

    def write_soon(self) -> None:
        """What waits is written within ``LAZY_SECONDS``."""
        self._flush_at = self._flush_at or self._clock() + LAZY_SECONDS

    def put(self, key: Key, statement: Statement) -> None:
        """Let a row wait. Its newest state takes the place of one that waits already."""
        self._waiting.pop(key, None)
        self._waiting[key] = statement
        if len(self._waiting) > WAITING_LIMIT:
            oldest = next((one for one in self._waiting if one[0] in ("event", "repair")), None)
            if oldest is not None:
                del self._waiting[oldest]

    def of_kind(self, kind: type[R]) -> list[R]:
        """The values of a kind that wait, oldest first."""
        return [statement.row for statement in self._waiting.values() if isinstance(statement.row, kind)]

    def read(self, reading: Callable[[Database], tuple[R, ...]]) -> tuple[R, ...]:
        """What is in the database; nothing where it cannot be read."""
        try:
            return reading(self._database)
        except Trouble as trouble:
            self.trouble = str(trouble)
            if trouble.corrupt:
                self._start_over(str(trouble))
            return ()

    def is_due(self) -> bool:
        """Whether what waits has waited long enough."""
        return bool(self._waiting) and self._clock() >= self._flush_at

    def flush(self, *, force: bool = False) -> bool:
        """Write what waits; True if nothing waits then. After a failure not more often than every ``RETRY_SECONDS``, unless forced."""
        if not self._waiting:
            return True
        if self.trouble and not force and self._clock() < self._flush_at:
            return False
        if not self._write_waiting() and not (self.lost and self._write_waiting()):
            return False
        self._writes += len(self._waiting)
        self._waiting.clear()
        self.trouble, self._flush_at = "", 0.0
        if self._writes >= TRIM_EVERY:
            self._writes = 0
            self.read(lambda base: base.trim(events=EVENTS_KEPT, repairs=REPAIRS_KEPT, incidents=INCIDENTS_KEPT))
        return True

    def _write_waiting(self) -> bool:
        try:
            self._database.write(list(self._waiting.values()))
        except Trouble as trouble:
            self.trouble = str(trouble)
            self._flush_at = self._clock() + RETRY_SECONDS
            if trouble.corrupt:
                self._start_over(str(trouble))
            return False
        return True

    def _start_over(self, why: str) -> None:
        """The database is beyond use: a new one takes over, and everything in memory is written to it."""
        self.lost = self._database.start_over(why)
        self._waiting = self._everything() | self._waiting
        self._flush_at = self._clock()
