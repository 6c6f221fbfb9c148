"""Files: positioned reads that turn bad sectors into ranges, and writes that a crash cannot tear.

Every call to the operating system goes through :class:`Disk`, so that tests can put a faulty one in its place.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bitward_agent.errors import BusyError, NotRegularFileError, UnreadableError, WriteError

SECTOR_BYTES = 4096
"""What is given up around an unreadable byte."""

Range = tuple[int, int]


class Disk:
    """The operating system's calls, one method each. Replace it to inject faults."""

    def open(self, path: str | os.PathLike[str], flags: int, mode: int = 0o666, *, dir_fd: int | None = None) -> int:
        return os.open(path, flags | os.O_CLOEXEC, mode, dir_fd=dir_fd)

    def close(self, fd: int) -> None:
        os.close(fd)

    def stat(self, fd: int) -> os.stat_result:
        return os.fstat(fd)

    def read_into(self, fd: int, view: memoryview, offset: int) -> int:
        return os.preadv(fd, [view], offset)

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def sync(self, fd: int) -> None:
        os.fsync(fd)

    def truncate(self, fd: int, length: int) -> None:
        os.ftruncate(fd, length)

    def set_mtime(self, fd: int, atime_ns: int, mtime_ns: int) -> None:
        os.utime(fd, ns=(atime_ns, mtime_ns))

    def replace(self, source: str, target: str) -> None:
        os.replace(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)


DISK = Disk()


@dataclass(frozen=True, slots=True)
class FileState:
    """What tells whether a file was touched: size in bytes, modification time in ns, and which file it is."""

    size: int
    mtime_ns: int
    device: int
    inode: int


def _state(result: os.stat_result) -> FileState:
    return FileState(result.st_size, result.st_mtime_ns, result.st_dev, result.st_ino)


class OpenFile:
    """A regular file, open by descriptor. Never follows a symbolic link at the last component, never blocks on a FIFO."""

    def __init__(self, path: str, *, write: bool = False, disk: Disk = DISK) -> None:
        self.path = path
        self.disk = disk
        flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            self.fd = disk.open(path, flags)
        except OSError as error:
            kind = WriteError if write and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM) else UnreadableError
            raise kind(f"{path}: cannot open: {error.strerror}") from error
        self._stat = disk.stat(self.fd)
        if not stat.S_ISREG(self._stat.st_mode):
            self.close()
            raise NotRegularFileError(f"{path}: not a regular file")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self.fd >= 0:
            self.disk.close(self.fd)
            self.fd = -1

    def state(self) -> FileState:
        """The file's state now."""
        return _state(self.disk.stat(self.fd))

    def read_into(self, view: memoryview, offset: int) -> list[Range]:
        """Fill ``view`` from ``offset``; what cannot be read is zero. Returns the unreadable ranges of the file, end of file included."""
        done = 0
        try:
            while done < len(view):
                count = self.disk.read_into(self.fd, view[done:], offset + done)
                if count == 0:
                    view[done:] = bytes(len(view) - done)
                    return [(offset + done, offset + len(view))]
                done += count
        except OSError as error:
            if error.errno != errno.EIO:
                raise UnreadableError(f"{self.path}: cannot read at byte {offset + done}: {error.strerror}") from error
            return self._read_sectors(view, offset)
        return []

    def _read_sectors(self, view: memoryview, offset: int) -> list[Range]:
        """Read around bad sectors, one aligned sector at a time."""
        lost: list[Range] = []
        at, end = offset, offset + len(view)
        while at < end:
            stop = min(end, (at // SECTOR_BYTES + 1) * SECTOR_BYTES)
            part = view[at - offset : stop - offset]
            try:
                count = self.disk.read_into(self.fd, part, at)
            except OSError:
                count = 0
            if count < len(part):
                part[count:] = bytes(len(part) - count)
                lost.append((at + count, stop))
            at = stop
        return merge_ranges(lost)

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes: fewer where the file ends, zeros where a sector cannot be read."""
        length = max(0, min(length, self.disk.stat(self.fd).st_size - offset))
        data = bytearray(length)
        self.read_into(memoryview(data), offset)
        return bytes(data)

    def write_all(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of ``data`` or raise."""
        view = memoryview(data)
        try:
            while view:
                count = self.disk.write(self.fd, view, offset)
                view, offset = view[count:], offset + count
        except OSError as error:
            raise WriteError(f"{self.path}: cannot write at byte {offset}: {error.strerror}") from error


def merge_ranges(ranges: list[Range]) -> list[Range]:
    """Sorted, touching ranges joined."""
    merged: list[Range] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


def drop_cache(fd: int, offset: int, length: int) -> None:
    """Ask the kernel to forget clean pages of a range, so that the next read comes from the disk."""
    with contextlib.suppress(OSError, AttributeError):
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)


def sync_folder(path: str, disk: Disk = DISK) -> None:
    """Make a rename or a new name in a folder durable. Some file systems refuse; the rename is in order all the same."""
    with contextlib.suppress(OSError):
        fd = disk.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            disk.sync(fd)
        finally:
            disk.close(fd)


@contextlib.contextmanager
def atomic_file(path: str, disk: Disk = DISK) -> Iterator[OpenFile]:
    """A file that appears under ``path`` whole or not at all: temporary file, sync, rename, sync of the folder.

    The temporary file is locked, so that two writers do not mix, and one that a crash left behind is taken over.

    Raises:
        BusyError: another process is writing the same file.
        WriteError: no space, no permission; the old file, if any, is unharmed and the temporary one removed.
    """
    import fcntl

    temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.new")
    file = OpenFile.__new__(OpenFile)
    file.path, file.disk = temporary, disk
    try:
        file.fd = disk.open(temporary, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise WriteError(f"{path}: cannot write beside it: {error.strerror}; use --sidecar-dir to put it elsewhere") from error
    try:
        try:
            fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(f"{path}: another Bitward is writing it") from error
        try:
            disk.truncate(file.fd, 0)
            yield file
            disk.sync(file.fd)
            disk.replace(temporary, path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                disk.unlink(temporary)
            if isinstance(error, OSError):
                raise WriteError(f"{path}: cannot write: {error.strerror}; nothing was changed") from error
            raise
        sync_folder(path, disk)
    finally:
        file.close()


def resolve(path: str) -> str:
    """The real path of what the user named; from there on no link is followed."""
    return os.path.realpath(path)


def sidecar_path(path: str, sidecar_dir: str | None = None) -> str:
    """Where the sidecar of a file is."""
    return os.path.join(sidecar_dir, os.path.basename(path) + ".ward") if sidecar_dir else path + ".ward"


def journal_path(sidecar: str) -> str:
    return str(Path(sidecar)) + "-journal"
