"""Whether a file's writer is done: size and time quiet for a while, nobody has it open for writing, no rewrite announced.

Only then is a change judged: a file that is half written is neither damaged nor to be protected.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence

from bitward_agent.daemon.facts import Expectation
from bitward_formats.frozen import dataclass

QUIET_SECONDS = 2.0
PATIENCE_SECONDS = 600.0
"""How long a writer who has a quiet file open is waited for: some programs keep what they map open for writing for ever."""
REMEMBERED_PATHS = 65_536
LOOK_NS = 1_000_000_000

FileKey = tuple[int, int]
"""Device and inode."""


@dataclass(frozen=True, slots=True)
class Stillness:
    """``is_quiet``: go ahead. Else ``again_ns`` says when to ask next and ``reason`` why. ``is_gone``: no such file."""

    is_quiet: bool
    is_gone: bool = False
    again_ns: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Seen:
    state: tuple[int, int, int, int]
    since_ns: int


class QuietFiles:
    """Remembers of each waiting path what it looked like. Bounded: the oldest are forgotten, and then wait anew."""

    def __init__(self, *, quiet_seconds: float = QUIET_SECONDS, patience_seconds: float = PATIENCE_SECONDS, proc: str = "/proc") -> None:
        self._quiet_ns, self._patience_ns = int(quiet_seconds * 1e9), int(patience_seconds * 1e9)
        self._proc = proc
        self._seen: dict[str, _Seen] = {}
        self._writers: dict[FileKey, tuple[int, ...]] = {}
        self._looked_ns = -LOOK_NS

    def look(self, path: str, now_ns: int, expectations: Sequence[Expectation] = ()) -> Stillness:
        """Look at a file now. ``now_ns`` is the time since 1970; nobody sleeps here."""
        try:
            found = os.lstat(path)
        except OSError:
            self.forget(path)
            return Stillness(False, is_gone=True, reason="gone")
        announced = expected(path, now_ns, expectations)
        if announced is not None:
            return Stillness(False, again_ns=announced.until_ns, reason="a rewrite is announced")
        state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        seen = self._seen.get(path)
        if seen is None or seen.state != state or seen.since_ns > now_ns:
            self.forget(path)
            while len(self._seen) >= REMEMBERED_PATHS:
                self.forget(next(iter(self._seen)))
            self._seen[path] = seen = _Seen(state, now_ns)
        quiet_ns = now_ns - seen.since_ns
        if quiet_ns < self._quiet_ns:
            return Stillness(False, again_ns=seen.since_ns + self._quiet_ns, reason="it was written just now")
        if quiet_ns < self._patience_ns:
            writers = self._writers_at(now_ns).get((found.st_dev, found.st_ino), ())
            if writers:
                again_ns = min(now_ns + max(self._quiet_ns, quiet_ns // 2), seen.since_ns + self._patience_ns)
                return Stillness(False, again_ns=again_ns, reason=f"process {writers[0]} has it open for writing")
        self.forget(path)
        return Stillness(True)

    def _writers_at(self, now_ns: int) -> dict[FileKey, tuple[int, ...]]:
        """Who writes to what; one look at all processes serves all files that are asked about within a second."""
        if not 0 <= now_ns - self._looked_ns < LOOK_NS:
            self._writers, self._looked_ns = all_writers(self._proc), now_ns
        return self._writers

    def forget(self, path: str) -> None:
        """No longer wait for it."""
        self._seen.pop(path, None)

    def __len__(self) -> int:
        return len(self._seen)


def expected(path: str, now_ns: int, expectations: Sequence[Expectation]) -> Expectation | None:
    """The announced rewrite that a path falls under; of several, that which lasts longest."""
    of_it = [one for one in expectations if now_ns < one.until_ns and (path == one.path or path.startswith(one.path.rstrip("/") + "/"))]
    return max(of_it, key=lambda one: one.until_ns, default=None)


def open_writers(device: int, inode: int, *, proc: str = "/proc") -> tuple[int, ...]:
    """Processes that have a file open, or mapped shared, for writing, as far as this one may see; itself left out. See proc(5)."""
    return all_writers(proc).get((device, inode), ())


def all_writers(proc: str = "/proc") -> dict[FileKey, tuple[int, ...]]:
    """(device, inode) of every file that some process writes to, with the processes; as ``open_writers``."""
    found: dict[FileKey, tuple[int, ...]] = {}
    numbers = sorted(int(name) for name in _names(proc) if name.isdecimal())
    for number in numbers:
        if number != os.getpid():
            for key in {*_open_for_writing(f"{proc}/{number}"), *_mapped_for_writing(f"{proc}/{number}/maps")}:
                found[key] = (*found.get(key, ()), number)
    return found


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:  # the process is gone, or another user's
        return []


def _open_for_writing(process: str) -> Iterator[FileKey]:
    for name in _names(f"{process}/fd"):
        try:
            found = os.stat(f"{process}/fd/{name}")
            if stat.S_ISREG(found.st_mode) and _is_open_for_writing(f"{process}/fdinfo/{name}"):
                yield found.st_dev, found.st_ino
        except OSError:
            continue


def _is_open_for_writing(fdinfo: str) -> bool:
    with open(fdinfo, "rb") as file:
        for line in file:
            if line.startswith(b"flags:"):
                return int(line.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY
    return False


def _mapped_for_writing(maps: str) -> Iterator[FileKey]:
    """The files of shared writable maps: these stay when the descriptor is closed. Lines as in /proc/PID/maps."""
    try:
        with open(maps, "rb") as file:
            for line in file:
                fields = line.split(maxsplit=5)
                if len(fields) >= 5 and fields[1][1:2] == b"w" and fields[1][3:4] == b"s":
                    major, _, minor = fields[3].partition(b":")
                    yield os.makedev(int(major, 16), int(minor, 16)), int(fields[4])
    except (OSError, ValueError):
        return
