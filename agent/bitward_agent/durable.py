"""Changes to folders that a crash cannot tear: files that appear whole or not at all, and removals that last."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from bitward_agent.errors import InputError, WriteError
from bitward_agent.io import DISK, Disk, OpenFile, open_folder, reason, resolve


def sync_folder(folder_fd: int, disk: Disk = DISK) -> None:
    """Make a rename or a new name in a folder durable. Some file systems refuse; the rename is in order all the same."""
    with contextlib.suppress(OSError):
        fd = disk.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder_fd)
        try:
            disk.sync(fd)
        finally:
            disk.close(fd)


def make_folder(path: str, disk: Disk = DISK) -> None:
    """Make a folder and those above it, if they are missing.

    Raises:
        WriteError: that is not possible.
    """
    try:
        disk.close(open_folder(path, disk, make=not os.path.isdir(path)))
    except OSError as error:
        raise WriteError(f"{path}: cannot make this folder: {reason(error)}") from error


def check_room(folder: str, size: int, what: str) -> None:
    """See that ``size`` bytes may be written below a folder, as far as its file system tells.

    Raises:
        WriteError: fewer are free; ``what`` names the thing that wants them.
    """
    try:
        room = os.statvfs(folder)
    except OSError as error:
        raise WriteError(f"{folder}: cannot write here: {reason(error)}") from error
    free = room.f_bavail * room.f_frsize
    if room.f_blocks and free < size:  # a file system without a number of blocks does not tell
        raise WriteError(f"{what}: {size:,} bytes are wanted, and {free:,} are free in {folder}: make room and try again")


def make_empty(path: str, disk: Disk = DISK, *, mode: int = 0o644) -> None:
    """Make an empty file of that ``mode``, and the folders above it if they are missing.

    Raises:
        WriteError: something is there already, or it cannot be made.
    """
    folder, name = os.path.split(path)
    make_folder(folder, disk)
    try:
        folder_fd = open_folder(folder, disk)
        try:
            disk.close(disk.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode, dir_fd=folder_fd))
        finally:
            disk.close(folder_fd)
    except OSError as error:
        raise WriteError(f"{path}: cannot make this file: {reason(error)}") from error


def remove(path: str, disk: Disk = DISK) -> None:
    """Remove a file, durably.

    Raises:
        WriteError: it cannot be removed.
    """
    folder, name = os.path.split(path)
    try:
        folder_fd = open_folder(folder, disk)
        try:
            disk.unlink(name, dir_fd=folder_fd)
            sync_folder(folder_fd, disk)
        finally:
            disk.close(folder_fd)
    except OSError as error:
        raise WriteError(f"{path}: cannot remove: {reason(error)}") from error


@contextlib.contextmanager
def atomic_file(path: str, disk: Disk = DISK, *, mode: int = 0o644) -> Iterator[OpenFile]:
    """A file that appears under ``path`` whole or not at all: temporary file, sync, rename, sync of the folder.

    The temporary file is locked, so that two writers do not mix, and one that a crash left behind is taken over. Parity and journals hold
    bytes of the file they are about: give its ``mode``, so that they are not open to more people than it is.

    Raises:
        BusyError: another process is writing the same file.
        WriteError: no space, no permission; the old file, if any, is unharmed and the temporary one removed.
    """
    folder, name = os.path.split(path)
    temporary = f".{name}.new"
    try:
        folder_fd = open_folder(folder, disk)
    except OSError as error:
        raise WriteError(f"{path}: cannot write: {error.strerror}: {folder or '.'}") from error
    try:
        with _temporary_file(path, temporary, folder_fd, disk) as file:
            try:
                disk.truncate(file.fd, 0)
                with contextlib.suppress(OSError):  # some file systems know no modes; the file was made for its owner alone
                    disk.set_mode(file.fd, mode)
                yield file
                disk.sync(file.fd)
                disk.replace(temporary, name, dir_fd=folder_fd)
            except BaseException as error:
                with contextlib.suppress(OSError):
                    disk.unlink(temporary, dir_fd=folder_fd)
                if isinstance(error, OSError):
                    raise WriteError(f"{path}: cannot write: {reason(error)}") from error
                raise
            sync_folder(folder_fd, disk)
    finally:
        disk.close(folder_fd)


def refuse_other_file(path: str, beginning: bytes) -> None:
    """Refuse an output that would take the place of something else, such as a model's weights or a device.

    Raises:
        InputError: What lies there is not empty and does not begin, in either case of letters, with ``beginning``.
        UnreadableError: It is no regular file (``NotRegularFileError``), is a link, or cannot be read.
    """
    if not os.path.lexists(path):
        return
    with OpenFile(os.path.join(resolve(os.path.dirname(path) or "."), os.path.basename(path))) as file:
        found = file.read(0, len(beginning))
    if found and found.lower() != beginning.lower():
        raise InputError(f"{path}: is there already and holds something else; it is not overwritten")


def _temporary_file(path: str, temporary: str, folder_fd: int, disk: Disk) -> OpenFile:
    """The temporary file, open and locked."""
    beside = os.path.join(os.path.dirname(path), temporary)
    while True:
        try:
            fd = disk.open(temporary, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600, dir_fd=folder_fd)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                raise WriteError(f"{beside}: is in the way and not Bitward's own: remove it") from error
            hint = "; or put sidecars elsewhere with --sidecar-dir" if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else ""
            raise WriteError(f"{path}: cannot write beside it: {reason(error)}{hint}") from error
        file = OpenFile.adopt(beside, fd, disk)
        try:
            file.lock()
            found = disk.stat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                raise WriteError(f"{beside}: is in the way and not Bitward's own: remove it")
            if file.is_still_named():  # else its last writer renamed or removed it between our opening and locking it
                return file
        except BaseException:
            file.close()
            raise
        file.close()
