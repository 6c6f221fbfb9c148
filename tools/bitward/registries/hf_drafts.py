"""A blob in the making: a temporary file in the form of the hub's own unfinished downloads, put into place only when its digest fits.

Whatever happens before, the blob that was there stays as it was. A crash leaves a file that ends in ``.incomplete``, which the hub's tools
know and remove.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from bitward.registries.blob_reading import read_blob
from bitward.registries.hf_server import FilePlace
from bitward_agent.durable import check_room, make_folder, sync_folder
from bitward_agent.errors import BusyError, SourceError, WriteError
from bitward_agent.io import DISK, OpenFile, Range, open_folder, reason
from bitward_agent.sources.limits import Meter
from bitward_formats.checksums import Part

PIECE_BYTES = 4 << 20
"""Of one request; what is in flight at once is a few of these."""
LEFTOVER_BYTES = 1 << 20
"""Shortest unfinished download that is kept."""
BATCH_PIECES = 1024
"""Ranges that are asked for together: a list of all of a large file's would grow with it."""


@contextlib.contextmanager
def draft_of(target: str, size: int) -> Iterator[OpenFile]:
    """A new, empty temporary file beside ``target``, gone at the end unless it was put into place.

    Raises:
        WriteError: it cannot be made, or there is no room for ``size`` bytes.
    """
    folder, name = os.path.split(target)
    temporary = f"{name}.{secrets.token_hex(4)}.incomplete"
    make_folder(folder)
    check_room(folder, size, target)
    try:
        folder_fd = open_folder(folder)
    except OSError as error:
        raise WriteError(f"{target}: cannot write: {reason(error)}") from error
    try:
        try:
            fd = DISK.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder_fd)
        except OSError as error:
            raise WriteError(f"{target}: cannot write beside it: {reason(error)}") from error
        with OpenFile.adopt(os.path.join(folder, temporary), fd, DISK) as file:
            try:
                yield file
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=folder_fd)
    finally:
        DISK.close(folder_fd)


def keep_leftover(draft: OpenFile, target: str, older: str) -> None:
    """Keep a draft as an unfinished download under another name, if it is worth it, in the place of an ``older`` one that went into it."""
    if draft.state().size >= LEFTOVER_BYTES:
        with contextlib.suppress(OSError):
            os.rename(draft.path, f"{target}.{secrets.token_hex(4)}.incomplete")
            if older:
                os.unlink(older)


def leftover_of(target: str) -> str:
    """The longest unfinished download of a file, whoever made it; empty if there is none. Its bytes are worth what their digest says."""
    folder, name = os.path.split(target)
    longest = (0, "")
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(f"{name}.") and entry.name.endswith(".incomplete") and entry.is_file(follow_symlinks=False):
                longest = max(longest, (entry.stat(follow_symlinks=False).st_size, entry.path))
    return longest[1]


def fetch_into(
    draft: OpenFile, place: FilePlace, ranges: Sequence[Range], size: int, meter: Meter, told: Callable[[int], object] | None = None
) -> None:
    """Fetch ranges of a file that should have ``size`` bytes; ``told`` is called with the bytes that came.

    Raises:
        SourceError: it is not there, has another size, or not all of it comes.
        WriteError: no room.
    """
    if not size or not ranges:
        return
    remote = place.open("", meter)
    if remote is None:
        raise SourceError(f"{place.name}: not there")
    if remote.size not in (None, size):
        raise SourceError(f"{place.name}: has {remote.size:,} bytes, and {size:,} by the hub's listing: nothing was taken")
    pieces = ((at, min(high, at + PIECE_BYTES)) for low, high in ranges for at in range(low, high, PIECE_BYTES))
    while batch := list(islice(pieces, BATCH_PIECES)):
        left = set(batch)
        for piece, data in remote.read(batch):
            if piece in left and len(data) == piece[1] - piece[0]:
                left.discard(piece)
                draft.write_all(data, piece[0])
                if told:
                    told(len(data))
        if left:
            raise SourceError(f"{place.name}: {len(left)} of {len(batch)} ranges did not come")


def put_if_right(draft: OpenFile, target: str, part: Part, size: int) -> bool:
    """Give a draft its name if it has the digest: synced, with the mode of what was there. Whether it had.

    Raises:
        BusyError, UnreadableError, WriteError.
    """
    reading = read_blob(draft.path, part)
    if not reading.is_right or reading.size != size:
        return False
    folder, name = os.path.split(target)
    try:
        mode = os.lstat(target).st_mode & 0o777
    except OSError:
        mask = os.umask(0)
        os.umask(mask)
        mode = 0o666 & ~mask  # as the hub's library gives to what it downloads
    try:
        DISK.set_mode(draft.fd, mode)
        DISK.sync(draft.fd)
        folder_fd = open_folder(folder)
        try:
            DISK.replace(os.path.basename(draft.path), name, dir_fd=folder_fd)
            sync_folder(folder_fd)
        finally:
            DISK.close(folder_fd)
    except OSError as error:
        raise WriteError(f"{target}: cannot write: {reason(error)}") from error
    return True


@contextlib.contextmanager
def hub_lock(root: str, repo_folder: str, etag: str) -> Iterator[None]:
    """The lock that ``huggingface_hub`` takes while it downloads a blob (``.locks/REPO/ETAG.lock``, flock).

    Raises:
        BusyError: somebody has it.
        WriteError: it cannot be made.
    """
    folder = os.path.join(root, ".locks", repo_folder)
    path = os.path.join(folder, f"{etag}.lock")
    make_folder(folder)
    try:
        folder_fd = open_folder(folder)
        try:
            fd = DISK.open(f"{etag}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o664, dir_fd=folder_fd)
        finally:
            DISK.close(folder_fd)
    except OSError as error:
        raise WriteError(f"{path}: cannot lock: {reason(error)}") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"{path}: somebody is downloading this blob: wait for it to end") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        DISK.close(fd)
