"""What other threads want of the work loop."""

from __future__ import annotations

from collections import deque
from threading import Lock

from bitward_agent.daemon.watch import PathQueue

REQUESTS_LIMIT = 1000


class Requests:
    """What others want of the loop: scrubs now, and to look up from waiting."""

    def __init__(self, queue: PathQueue) -> None:
        self._queue = queue
        self._lock = Lock()
        self._scrubs: deque[str] = deque()

    def scrub(self, paths: list[str]) -> int:
        """Scrub these now; returns how many were taken."""
        with self._lock:
            taken = [path for path in paths if path not in self._scrubs][: REQUESTS_LIMIT - len(self._scrubs)]
            self._scrubs.extend(taken)
        self.wake()
        return len(taken)

    def scrubs(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(self._scrubs)

    def done(self, path: str) -> None:
        with self._lock:
            if path in self._scrubs:
                self._scrubs.remove(path)

    def wake(self) -> None:
        """End a wait. An empty path stands for nothing."""
        self._queue.put("")
