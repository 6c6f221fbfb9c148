"""Disks that fail: real files underneath, and a fault of the operating system's calls at a place that the test chooses.

The fault model. A process dies before a call, or in the middle of a write (:class:`DyingDisk`). The power fails: what was not synced is
kept or lost page by page, and the last changes of a folder are lost (:class:`PowerLossDisk`). A sector cannot be read until it is
written (:class:`BadSectorDisk`). A call is refused (:class:`RefusingDisk`).
"""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

from bitward_agent.io import SECTOR_BYTES, Disk

PAGE_BYTES = 4096


class Death(BaseException):
    """The process is gone: nothing may catch this and go on."""


class DyingDisk(Disk):
    """Dies at the ``dies_at``-th call that changes something, counted from 0; from then on every call dies, so that no clean-up runs.

    ``torn``: if that call is a write, half of its bytes are written first. ``calls`` names the calls that were made.
    """

    def __init__(self, dies_at: int | None = None, *, torn: bool = False) -> None:
        self.dies_at, self.torn = dies_at, torn
        self.calls: list[str] = []
        self.dead = False

    def _alive(self) -> None:
        if self.dead:
            raise Death

    def _step(self, name: str, last_deed: Callable[[], object] | None = None) -> None:
        self._alive()
        if len(self.calls) == self.dies_at:
            if self.torn and last_deed:
                last_deed()
            self.dead = True
            raise Death
        self.calls.append(name)

    def open(self, path: str | os.PathLike[str], flags: int, mode: int = 0o666, *, dir_fd: int | None = None) -> int:
        self._alive()
        if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            self._step("open")
        return super().open(path, flags, mode, dir_fd=dir_fd)

    def stat(self, fd: int) -> os.stat_result:
        self._alive()
        return super().stat(fd)

    def read_into(self, fd: int, view: memoryview, offset: int) -> int:
        self._alive()
        return super().read_into(fd, view, offset)

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        self._step("write", lambda: os.pwrite(fd, data[: len(data) // 2], offset))
        return super().write(fd, data, offset)

    def sync(self, fd: int) -> None:
        self._step("sync")
        super().sync(fd)

    def truncate(self, fd: int, length: int) -> None:
        self._step("truncate")
        super().truncate(fd, length)

    def set_mtime(self, fd: int, atime_ns: int, mtime_ns: int) -> None:
        self._step("set_mtime")
        super().set_mtime(fd, atime_ns, mtime_ns)

    def replace(self, source: str, target: str, *, dir_fd: int | None = None) -> None:
        self._step("replace")
        super().replace(source, target, dir_fd=dir_fd)

    def unlink(self, path: str, *, dir_fd: int | None = None) -> None:
        self._step("unlink")
        super().unlink(path, dir_fd=dir_fd)


class PowerLossDisk(DyingDisk):
    """Like :class:`DyingDisk`, and :meth:`lose_power` then takes back what no sync had made durable.

    Of a file's unsynced writes each page is kept or lost by itself; of a folder's unsynced renames and removals the last ones are lost.
    ``attic`` is a folder of the same file system in which removed names are kept alive.
    """

    def __init__(self, dies_at: int | None, attic: Path) -> None:
        super().__init__(dies_at)
        self._attic = attic
        self._data: dict[int, list[Callable[[random.Random], None]]] = {}
        self._names: list[Callable[[], None]] = []
        self._fds: list[int] = []

    def _own(self, fd: int) -> int:
        own = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        self._fds.append(own)
        return own

    def _saved(self, path: str, dir_fd: int | None) -> str | None:
        kept = str(self._attic / f"kept-{len(self._names)}-{len(self.calls)}")
        try:
            os.link(path, kept, src_dir_fd=dir_fd)
        except FileNotFoundError:
            return None
        return kept

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        inode, own = os.fstat(fd).st_ino, self._own(fd)
        size, before = os.fstat(fd).st_size, os.pread(fd, len(data), offset)

        def take_back(seeded: random.Random) -> None:
            for at in range(offset // PAGE_BYTES * PAGE_BYTES, offset + len(data), PAGE_BYTES):
                if seeded.getrandbits(1):
                    low, high = max(at, offset), min(at + PAGE_BYTES, offset + len(data))
                    os.pwrite(own, before[low - offset : high - offset].ljust(high - low, b"\0"), low)
            if os.fstat(own).st_size > size and seeded.getrandbits(1):
                os.ftruncate(own, max(size, offset))

        count = super().write(fd, data, offset)
        self._data.setdefault(inode, []).append(take_back)
        return count

    def truncate(self, fd: int, length: int) -> None:
        inode, own = os.fstat(fd).st_ino, self._own(fd)
        size = os.fstat(fd).st_size
        tail = os.pread(fd, max(0, size - length), length)

        def take_back(seeded: random.Random) -> None:
            if seeded.getrandbits(1):
                os.ftruncate(own, size)
                os.pwrite(own, tail, length)

        super().truncate(fd, length)
        self._data.setdefault(inode, []).append(take_back)

    def sync(self, fd: int) -> None:
        super().sync(fd)
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            self._names.clear()
        self._data.pop(found.st_ino, None)

    def replace(self, source: str, target: str, *, dir_fd: int | None = None) -> None:
        kept = self._saved(target, dir_fd)
        folder = os.readlink(f"/proc/self/fd/{dir_fd}")

        def take_back() -> None:
            os.rename(f"{folder}/{target}", f"{folder}/{source}")
            if kept:
                os.rename(kept, f"{folder}/{target}")

        super().replace(source, target, dir_fd=dir_fd)
        self._names.append(take_back)

    def unlink(self, path: str, *, dir_fd: int | None = None) -> None:
        kept = self._saved(path, dir_fd)
        folder = os.readlink(f"/proc/self/fd/{dir_fd}")

        def take_back() -> None:
            assert kept
            os.rename(kept, f"{folder}/{path}")

        super().unlink(path, dir_fd=dir_fd)
        self._names.append(take_back)

    def lose_power(self, seeded: random.Random) -> None:
        """Take back what was not synced; call it once, after the death."""
        for take_back in reversed(self._names[seeded.randrange(len(self._names) + 1) :]):
            take_back()
        for entry in self._attic.iterdir():
            entry.unlink()
        for undone in self._data.values():
            for one in reversed(undone):
                one(seeded)
        for fd in self._fds:
            os.close(fd)


class BadSectorDisk(Disk):
    """Sectors that give EIO until they are written whole or in part: ``bad`` maps a path to the numbers of its bad sectors."""

    def __init__(self, bad: dict[Path, set[int]]) -> None:
        self._bad = {(os.stat(path).st_dev, os.stat(path).st_ino): set(sectors) for path, sectors in bad.items()}

    def _sectors(self, fd: int) -> set[int]:
        found = os.fstat(fd)
        return self._bad.get((found.st_dev, found.st_ino), set())

    def read_into(self, fd: int, view: memoryview, offset: int) -> int:
        for sector in range(offset // SECTOR_BYTES, -(-(offset + len(view)) // SECTOR_BYTES)):
            if sector in self._sectors(fd):
                if sector * SECTOR_BYTES > offset:  # as the kernel does: what comes before is given
                    return super().read_into(fd, view[: sector * SECTOR_BYTES - offset], offset)
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read_into(fd, view, offset)

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        count = super().write(fd, data, offset)
        self._sectors(fd).difference_update(range(offset // SECTOR_BYTES, -(-(offset + count) // SECTOR_BYTES)))
        return count


class RefusingDisk(DyingDisk):
    """Lives, but refuses its ``dies_at``-th changing call with an error number; a disk that is ``stubborn`` also all after it."""

    def __init__(self, dies_at: int | None, error: int, *, stubborn: bool = False) -> None:
        super().__init__(dies_at)
        self.error, self.stubborn, self.refused = error, stubborn, 0

    def _step(self, name: str, last_deed: Callable[[], object] | None = None) -> None:
        self.calls.append(name)
        number = len(self.calls) - 1
        if number == self.dies_at or (self.stubborn and self.dies_at is not None and number > self.dies_at):
            self.refused += 1
            raise OSError(self.error, os.strerror(self.error))
