"""Hearing of changes: inotify, through watchdog, into a bounded queue of paths. Nothing is read in a callback.

What inotify cannot tell (rot, events lost in an overflow, folders beyond the limit of watches) is the business of ``reconcile`` and of the
scrub; ``Watcher.needs_walk`` says when the former is due early.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bitward_agent.daemon.config import WatchConfig

QUEUE_PATHS = 4096
"""Paths that wait at most; beyond them a walk finds what is new."""


class PathQueue:
    """Paths that something happened to, each once, in the order of their first event. For any number of threads."""

    def __init__(self, capacity: int = QUEUE_PATHS) -> None:
        raise NotImplementedError

    def put(self, path: str) -> None:
        """Add a path; if there are too many it is dropped and the overflow noted."""
        raise NotImplementedError

    def take(self, timeout_seconds: float = 0.0) -> str | None:
        """The oldest path; ``None`` if none came in that time."""
        raise NotImplementedError

    def take_overflow(self) -> bool:
        """Whether paths were dropped since this was last asked."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError


class Watcher:
    """Calls ``put`` with each path below the watches that was written and closed, created, moved or deleted (old and new path).

    ``put`` comes from other threads and must be quick. Paths of folders come too: all below them may have changed.
    """

    def __init__(self, watches: Sequence[WatchConfig], put: Callable[[str], None]) -> None:
        raise NotImplementedError

    def start(self) -> None:
        """Begin. Where a watch cannot be had, ``limits`` says so and nothing is raised."""
        raise NotImplementedError

    def tend(self) -> None:
        """Take up watches whose folder came (again) or became another one, and look for limits. To be called about once a minute."""
        raise NotImplementedError

    def needs_walk(self) -> bool:
        """Whether events were lost, or a watch was taken up, since this was last asked: then a walk tells what is new."""
        raise NotImplementedError

    @property
    def limits(self) -> tuple[str, ...]:
        """What is not watched and why, in words; such folders need walks more often."""
        raise NotImplementedError

    def stop(self) -> None:
        """End; may be called twice."""
        raise NotImplementedError
