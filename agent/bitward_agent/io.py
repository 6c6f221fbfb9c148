"""Files: opened without following a link, read by position, with bad sectors turned into ranges.

Every call to the operating system goes through :class:`Disk`, so that tests can put a faulty one in its place.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from types import TracebackType
from typing import Self

from bitward_agent.errors import BusyError, InputError, NotRegularFileError, UnreadableError, WriteError
from bitward_formats.frozen import dataclass

SECTOR_BYTES = 4096
"""What is given up around an unreadable byte."""

LEASE_SECONDS = 5.0
"""How long a file that somebody has leased is waited for; the kernel takes leases away from those who do not give way after 45 s."""

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

    def replace(self, source: str, target: str, *, dir_fd: int | None = None) -> None:
        os.replace(source, target, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)

    def set_mode(self, fd: int, mode: int) -> None:
        os.fchmod(fd, mode)

    def unlink(self, path: str, *, dir_fd: int | None = None) -> None:
        os.unlink(path, dir_fd=dir_fd)

    def make_folder(self, path: str, *, dir_fd: int | None = None) -> None:
        os.mkdir(path, dir_fd=dir_fd)


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


def open_folder(path: str, disk: Disk = DISK, *, make: bool = False) -> int:
    """A descriptor (O_PATH) of a folder; with ``make``, missing ones on the way are made.

    No symbolic link is followed on the way, so nobody can lead it elsewhere.

    Raises:
        OSError: a component is missing, or a link.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
    fd = disk.open("/" if path.startswith("/") else ".", flags)
    for part in path.split("/"):
        if part in ("", "."):
            continue
        try:
            if make:
                with contextlib.suppress(FileExistsError):
                    disk.make_folder(part, dir_fd=fd)
            below = disk.open(part, flags, dir_fd=fd)
        except OSError as error:
            error.filename = path
            raise
        finally:
            disk.close(fd)
        fd = below
    return fd


def _open_beneath(path: str, flags: int, disk: Disk) -> int:
    folder, name = os.path.split(path)
    folder_fd = open_folder(folder, disk)
    try:
        return open_after_leases(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, disk, dir_fd=folder_fd)
    finally:
        disk.close(folder_fd)


def open_after_leases(name: str, flags: int, disk: Disk = DISK, *, dir_fd: int | None = None) -> int:
    """Open a file; if another process holds a lease on it, wait until that gives way.

    An open that must not block fails instead of waiting, and all the same tells the holder to give way (fcntl(2), "Leases").
    """
    until = time.monotonic() + LEASE_SECONDS
    while True:
        try:
            return disk.open(name, flags, dir_fd=dir_fd)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.005)


def reason(error: OSError) -> str:
    """What the operating system says, with what to do about it where that is known."""
    text = error.strerror or str(error)
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"{text}; make room and try again"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"{text}; run it as a user who may write there"
        case errno.ELOOP:
            return "a symbolic link is in its place, which is not followed"
    return text


class OpenFile:
    """A regular file, open by descriptor. Follows no symbolic link in any component, never blocks on a FIFO.

    So ``path`` must be what :func:`resolve` gave, or lie below it.
    """

    def __init__(self, path: str, *, write: bool = False, disk: Disk = DISK) -> None:
        self.path, self.disk, self.fd = path, disk, -1
        try:
            self.fd = _open_beneath(path, os.O_RDWR if write else os.O_RDONLY, disk)
            mode = disk.stat(self.fd).st_mode
        except OSError as error:
            self.close()
            if error.errno in (errno.ENXIO, errno.EISDIR):  # a socket, a device without a driver, a directory
                raise NotRegularFileError(f"{path}: not a regular file") from error
            if write and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
                raise WriteError(f"{path}: cannot open for writing: {reason(error)}") from error
            why = "a symbolic link is in its place, which is not followed" if error.errno == errno.ELOOP else error.strerror
            raise UnreadableError(f"{path}: cannot open: {why}") from error
        if not stat.S_ISREG(mode):
            self.close()
            raise NotRegularFileError(f"{path}: not a regular file")

    @classmethod
    def adopt(cls, path: str, fd: int, disk: Disk) -> Self:
        """Take over an open descriptor."""
        file = cls.__new__(cls)
        file.path, file.disk, file.fd = path, disk, fd
        return file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self.fd >= 0:
            self.disk.close(self.fd)
            self.fd = -1

    def access_mode(self) -> int:
        """Who may read and write it: what holds copies of its bytes must not be open to more."""
        return stat.S_IMODE(self.disk.stat(self.fd).st_mode) & 0o666

    def state(self) -> FileState:
        """The file's state now."""
        return _state(self.disk.stat(self.fd))

    def is_still_named(self) -> bool:
        """Whether the path still leads to this file."""
        try:
            fd = _open_beneath(self.path, os.O_PATH, self.disk)
        except OSError:
            return False
        try:
            there, here = self.disk.stat(fd), self.disk.stat(self.fd)
        finally:
            self.disk.close(fd)
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    def lock(self) -> None:
        """Keep other Bitwards from repairing this file until it is closed. Where the file system has no locks, nothing does.

        Raises:
            BusyError: another one is at it.
        """
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"{self.path}: another Bitward is at work on it: wait for it to end") from None
        except OSError:
            return

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
            raise WriteError(f"{self.path}: cannot write at byte {offset}: {reason(error)}") from error


def merge_ranges(ranges: list[Range]) -> list[Range]:
    """Sorted, touching ranges joined."""
    merged: list[Range] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


def read_regular(path: str, limit_bytes: int, what: str) -> bytes:
    """A whole small file. Pipes and devices, which may never end, are refused before anything is read.

    Raises:
        InputError: It has more than ``limit_bytes``.
        UnreadableError: It cannot be read, or is no regular file.
    """
    with OpenFile(resolve(path)) as file:
        size = file.state().size
        if size > limit_bytes:
            raise InputError(f"{path}: more than {limit_bytes >> 20} MiB; {what}")
        return file.read(0, size)


def drop_cache(fd: int, offset: int, length: int) -> None:
    """Ask the kernel to forget clean pages of a range, so that the next read comes from the disk."""
    with contextlib.suppress(OSError, AttributeError):
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)


def read_at_random(fd: int) -> None:
    """Turn readahead off for this descriptor: a read then brings in the pages that it asks for, and no others."""
    with contextlib.suppress(OSError, AttributeError):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)


def resolve(path: str) -> str:
    """The real path of what the user named; from there on no link is followed."""
    return os.path.realpath(path)


def sidecar_path(path: str, sidecar_dir: str | None = None) -> str:
    """Where the sidecar of a file is."""
    return os.path.join(sidecar_dir, os.path.basename(path) + ".ward") if sidecar_dir else path + ".ward"


def journal_path(sidecar: str) -> str:
    """Where the undo journal of a repair is, while one is under way."""
    return sidecar + "-journal"
