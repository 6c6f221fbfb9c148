"""What fetching may cost: time, connections, bytes. And what it did cost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from bitward_agent.errors import SourceBusyError, SourceError
from bitward_formats.frozen import dataclass

DEFAULT_FETCH_BYTES = 1 << 30
"""Bytes that one command fetches unless told otherwise: 16,384 blocks, far more than rot takes, far less than a model by accident."""


@dataclass(frozen=True, slots=True)
class Limits:
    """All bounds on fetching from elsewhere. Seconds are wall time; ``max_fetch_bytes`` holds for all sources of a command together."""

    max_fetch_bytes: int = DEFAULT_FETCH_BYTES
    allow_full_download: bool = False
    connect_seconds: float = 10.0
    silence_seconds: float = 30.0
    slowest_bytes_per_second: int = 1024  # a server that trickles is as good as silent
    attempts: int = 4  # in a row that bring no byte
    resumptions: int = 16  # of one request, even if each brings some bytes
    first_pause_seconds: float = 0.25
    longest_pause_seconds: float = 8.0
    parallel: int = 4
    gap_bytes: int = 8192  # a request and its answer's headers cost about as much
    request_bytes: int = 4 << 20  # of one request for many blocks


class Budget:
    """The bytes that may still be fetched."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = self._left = limit_bytes
        self._lock = threading.Lock()

    def reserve(self, count: int) -> None:
        """Set bytes aside before they are asked for.

        Raises:
            SourceError: fewer are left.
        """
        with self._lock:
            if count > self._left:
                raise SourceError(f"{count} bytes more would exceed --max-fetch ({self._limit} bytes, {self._left} left)")
            self._left -= count

    def give_back(self, count: int) -> None:
        """Bytes that were set aside and did not come."""
        with self._lock:
            self._left += count


class Meter:
    """Bytes and requests of one source for one file."""

    def __init__(self, budget: Budget | None = None) -> None:
        """Without a ``budget`` reading is free."""
        self.budget = budget
        self.fetched_bytes = 0
        self.requests = 0
        self._lock = threading.Lock()

    def count_request(self) -> None:
        with self._lock:
            self.requests += 1

    def count_bytes(self, count: int) -> None:
        with self._lock:
            self.fetched_bytes += count

    def reserve(self, count: int) -> None:
        """See :meth:`Budget.reserve`."""
        if self.budget:
            self.budget.reserve(count)

    def give_back(self, count: int) -> None:
        """See :meth:`Budget.give_back`."""
        if self.budget and count > 0:
            self.budget.give_back(count)


class TransientError(Exception):
    """Worth another try: a connection that broke, a server that is busy. ``wait_seconds``: what the server asked for."""

    def __init__(self, message: str, wait_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds


class Patience:
    """How often one request is tried again, and after which pause."""

    def __init__(self, limits: Limits, sleep: Callable[[float], object] = time.sleep) -> None:
        self._limits, self._sleep = limits, sleep
        self._idle = self._total = 0

    def failed(self, error: TransientError, *, progressed: bool) -> None:
        """Wait before the next attempt.

        Raises:
            SourceBusyError: there will be none.
        """
        self._total += 1
        self._idle = 0 if progressed else self._idle + 1
        if self._idle >= self._limits.attempts or self._total > self._limits.resumptions:
            raise SourceBusyError(f"{error} (gave up after {self._total} attempts)") from None
        pause = self._limits.first_pause_seconds * 2 ** max(0, self._idle - 1)
        self._sleep(min(self._limits.longest_pause_seconds, max(pause, error.wait_seconds)))
