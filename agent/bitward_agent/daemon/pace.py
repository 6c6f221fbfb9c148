"""How fast the agent reads: a token bucket of bytes, and a disk that asks it, and whether to stop, before each read.

The agent's own limit is needed because the kernel's is not heeded everywhere: mq-deadline ignores I/O priorities. All clocks are
injected, so that tests need no waiting.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from bitward_agent.io import Disk

BURST_SECONDS = 0.1
"""What may be caught up after a delay: enough for late wake-ups, too little to be felt, and less than 5 % of any two seconds."""
SLICE_SECONDS = 0.1
"""Longest sleep between two looks at ``stop``."""

LEAST_SLEEP_SECONDS = 0.0005
"""So that a rounding error of a debt is not slept for many times."""


class Stopped(Exception):
    """Work was asked to end before it was done. Not a BitwardError, so that nobody takes it for a verdict."""


def never() -> bool:
    """The ``stop`` of work that nobody ends."""
    return False


class TokenBucket:
    """Lets bytes through at a rate, in bytes per second (0: no limit). For one thread at a time.

    What is taken may exceed what is there: the debt is waited for before the next is given. So the rate holds whatever the size of a read.
    """

    def __init__(
        self, bytes_per_second: float, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._balance_bytes = 0.0
        self._at = clock()
        self.taken_bytes = 0
        self.bytes_per_second = bytes_per_second

    def set_rate(self, bytes_per_second: float) -> None:
        """Another rate from now on; debts stay."""
        self._refill()
        self.bytes_per_second = bytes_per_second

    def _refill(self) -> None:
        now = self._clock()
        gained = max(0.0, now - self._at) * self.bytes_per_second
        self._balance_bytes = min(self._balance_bytes + gained, self.bytes_per_second * BURST_SECONDS)
        self._at = now

    def take(self, byte_count: int, stop: Callable[[], bool] = never) -> None:
        """Wait until earlier takes are paid for, then take ``byte_count`` bytes. Asks ``stop`` at least every ``SLICE_SECONDS``.

        Raises:
            Stopped: ``stop`` said so; nothing was taken.
        """
        while True:
            if stop():
                raise Stopped
            if self.bytes_per_second <= 0:
                break
            self._refill()
            if self._balance_bytes >= 0:
                self._balance_bytes -= byte_count
                break
            self._sleep(min(max(-self._balance_bytes / self.bytes_per_second, LEAST_SLEEP_SECONDS), SLICE_SECONDS))
        self.taken_bytes += byte_count


UNPACED = TokenBucket(0)
"""No limit."""


class PacedDisk(Disk):
    """A disk whose reads are paid for from a bucket and end with ``Stopped`` when asked to.

    Once something was written no read raises any more: what changes files must come to its own end, and does so within one batch.
    """

    def __init__(self, pace: TokenBucket, stop: Callable[[], bool] = never, *, below: Disk | None = None) -> None:
        self._pace, self._stop, self._below = pace, stop, below or Disk()
        self._has_written = False
        for name in ("open", "close", "stat", "sync", "truncate", "set_mtime", "replace", "set_mode", "unlink", "make_folder"):
            setattr(self, name, getattr(self._below, name))

    def read_into(self, fd: int, view: memoryview, offset: int) -> int:
        """As ``Disk.read_into``.

        Raises:
            Stopped: asked to end.
        """
        self._pace.take(len(view), never if self._has_written else self._stop)
        return self._below.read_into(fd, view, offset)

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        """As ``Disk.write``."""
        self._has_written = True
        return self._below.write(fd, data, offset)
