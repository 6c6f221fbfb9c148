"""Hearing of changes: inotify, through watchdog, into a bounded queue of paths. Nothing is read in a callback.

What inotify cannot tell (rot, events lost in an overflow, folders beyond the limit of watches) is the business of ``reconcile`` and of the
scrub; ``Watcher.needs_walk`` says when the former is due early. See inotify(7).
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.api import ObservedWatch
from watchdog.observers.inotify import InotifyEmitter, InotifyObserver

from bitward_agent.daemon.config import WatchConfig
from bitward_agent.units import is_ours

QUEUE_PATHS = 4096
"""Paths that wait at most; beyond them a walk finds what is new."""
STOP_SECONDS = 1.0
"""How long the threads of watchdog may take to end; they hold nothing."""

_EVENTS: list[type[FileSystemEvent]] = [
    *(DirCreatedEvent, DirDeletedEvent, DirMovedEvent),
    *(FileClosedEvent, FileCreatedEvent, FileDeletedEvent, FileMovedEvent),
]
"""Not each write: that would be a flood, and nothing is to be done before the file is closed."""

_IN_DELETE_SELF = 0x400
_LIMITS = {errno.ENOSPC: "fs.inotify.max_user_watches", errno.EMFILE: "fs.inotify.max_user_instances"}


class PathQueue:
    """Paths that something happened to, each once, in the order of their first event. For any number of threads."""

    def __init__(self, capacity: int = QUEUE_PATHS) -> None:
        self._capacity = capacity
        self._paths: dict[str, None] = {}
        self._has_overflowed = False
        self._came = threading.Condition()

    def put(self, path: str) -> None:
        """Add a path; if there are too many it is dropped and the overflow noted."""
        with self._came:
            if path not in self._paths:
                if len(self._paths) >= self._capacity:
                    self._has_overflowed = True
                    return
                self._paths[path] = None
                self._came.notify()

    def take(self, timeout_seconds: float = 0.0) -> str | None:
        """The oldest path; ``None`` if none came in that time."""
        with self._came:
            if not self._paths and timeout_seconds > 0:
                self._came.wait(timeout_seconds)
            path = next(iter(self._paths), None)
            if path is not None:
                del self._paths[path]
            return path

    def take_overflow(self) -> bool:
        """Whether paths were dropped since this was last asked."""
        with self._came:
            overflowed, self._has_overflowed = self._has_overflowed, False
            return overflowed

    def __len__(self) -> int:
        with self._came:
            return len(self._paths)


class _Emitter(InotifyEmitter):
    """Tells of the kernel's overflows as well, where watchdog (7.1 and later) hears of them."""

    on_lost: Callable[[], None] = staticmethod(lambda: None)

    def on_thread_start(self) -> None:
        super().on_thread_start()
        group: Any = self._inotify
        rebuild = getattr(group, "on_queue_overflow", None)
        if rebuild is not None:

            def lost() -> None:
                rebuild()
                self.on_lost()

            group.on_queue_overflow = lost


class _Observer(InotifyObserver):
    def __init__(self, on_lost: Callable[[], None]) -> None:
        super().__init__()
        self._emitter_class = type("Emitter", (_Emitter,), {"on_lost": staticmethod(on_lost)})
        self.daemon = True

    def is_at_work(self, watch: ObservedWatch) -> bool:
        emitter = self._emitter_for_watch.get(watch)
        return emitter is not None and emitter.should_keep_running()


class _Handler(FileSystemEventHandler):
    def __init__(self, put: Callable[[str], None], only: str | None) -> None:
        self._put, self._only = put, only

    def on_any_event(self, event: FileSystemEvent) -> None:
        for path in (event.src_path, event.dest_path):
            if path:
                text = os.fsdecode(path)
                if self._is_told(text):
                    self._put(text)

    def _is_told(self, path: str) -> bool:
        """Of our own files only sidecars: somebody may make one by hand."""
        return (not is_ours(path) or path.endswith(".ward")) and (self._only is None or path in (self._only, f"{self._only}.ward"))


class Watcher:
    """Calls ``put`` with each path below the watches that was written and closed, created, moved or deleted (old and new path).

    ``put`` comes from other threads and must be quick. Paths of folders come too: all below them may have changed; and of sidecars.
    """

    def __init__(self, watches: Sequence[WatchConfig], put: Callable[[str], None]) -> None:
        self._watches, self._put = tuple(watches), put
        self._observer: _Observer | None = None
        self._scheduled: dict[str, tuple[ObservedWatch, tuple[int, int]]] = {}
        self._limits: dict[str, str] = {}
        self._needs_walk = threading.Event()

    def start(self) -> None:
        """Begin. Where a watch cannot be had, ``limits`` says so and nothing is raised."""
        self.tend()

    def tend(self) -> None:
        """Take up watches whose folder came (again) or became another one, and look for limits. To be called about once a minute."""
        self._limits = {}
        try:
            if self._observer is None:
                observer = _Observer(self._needs_walk.set)
                observer.start()
                self._observer = observer
        except OSError as error:
            self._limits["inotify"] = f"nothing is watched: {_reason(error)}; walks find what is new"
            return
        for watch in self._watches:
            try:
                self._tend_one(self._observer, watch)
            except OSError as error:
                self._limits[watch.path] = f"{watch.path}: not watched: {_reason(error)}; walks find what is new"
        if self._scheduled and (told := limit_reached()):
            self._limits["inotify"] = f"some folders are not watched: {told}; walks find what is new"

    def _tend_one(self, observer: _Observer, watch: WatchConfig) -> None:
        if os.path.realpath(watch.path) != watch.path:
            self._drop(observer, watch.path)
            raise OSError(errno.ELOOP, "a symbolic link is in its place, which is not followed")
        try:
            os.stat(watch.path)
            folder = watch.path if os.path.isdir(watch.path) else os.path.dirname(watch.path)
            state = os.stat(folder)
        except OSError:
            self._drop(observer, watch.path)
            raise
        known = self._scheduled.get(watch.path)
        identity = (state.st_dev, state.st_ino)
        if known is not None and known[1] == identity and observer.is_at_work(known[0]):
            return
        self._drop(observer, watch.path)
        handler = _Handler(self._put, None if folder == watch.path else watch.path)
        made = observer.schedule(handler, folder, recursive=folder == watch.path, event_filter=_EVENTS)
        self._scheduled[watch.path] = (made, identity)
        self._needs_walk.set()

    def _drop(self, observer: _Observer, path: str) -> None:
        known = self._scheduled.pop(path, None)
        if known is not None:
            observer.unschedule(known[0])
            self._needs_walk.set()

    def needs_walk(self) -> bool:
        """Whether events were lost, or a watch was taken up, since this was last asked: then a walk tells what is new."""
        needed = self._needs_walk.is_set()
        self._needs_walk.clear()
        return needed

    @property
    def limits(self) -> tuple[str, ...]:
        """What is not watched and why, in words; such folders need walks more often."""
        return tuple(self._limits.values())

    def stop(self) -> None:
        """End; may be called twice."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join(STOP_SECONDS)
            self._observer, self._scheduled = None, {}


def _reason(error: OSError) -> str:
    limit = _LIMITS.get(error.errno or 0)
    return f"{limit} is reached, raise it" if limit else error.strerror or str(error)


def limit_reached() -> str:
    """In words, which limit of inotify is reached; else empty. watchdog leaves folders out without a word where that is so.

    Asked by taking one more watch, and letting go of it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_CLOEXEC)
    if fd < 0:
        return _reason(OSError(ctypes.get_errno(), ""))
    try:
        if libc.inotify_add_watch(fd, b"/", ctypes.c_uint32(_IN_DELETE_SELF)) < 0:
            number = ctypes.get_errno()
            return _reason(OSError(number, os.strerror(number)))
    finally:
        os.close(fd)
    return ""
