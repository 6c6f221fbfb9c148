"""Blobs on their way from a registry into a folder: begun, broken off, and taken up again by the next pull.

Nothing that lies here is believed: whoever takes a blob holds it against its digest. The names are those of temporary files of ours, so
that no other command takes a begun blob for a file of the model.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

from bitward.registries.blob_reading import CHUNK_BYTES, Wanted
from bitward.registries.oci_client import Repository
from bitward_agent.durable import check_room, make_empty, make_folder
from bitward_agent.errors import BusyError, WriteError
from bitward_agent.findings import Progress, ProgressSink
from bitward_agent.io import OpenFile, reason
from bitward_formats.oci import Descriptor

WORK_FOLDER = ".bitward-pull"
"""Below the folder that is pulled into, while a pull is at work, and afterwards if it was broken off."""


def part_path(work: str, layer: Descriptor) -> str:
    """Where a layer's bytes are until they have its digest."""
    return os.path.join(work, f"sha256-{layer.hex}.ward.new")


def begun_bytes(work: str, layer: Descriptor) -> int:
    """How much of a layer an earlier pull has left; 0 where there is nothing that can be used."""
    with suppress(OSError):
        return min(os.lstat(part_path(work, layer)).st_size, layer.size)
    return 0


@contextmanager
def pull_folder(top: str, layers: Collection[Descriptor]) -> Iterator[str]:
    """A folder for what is on its way, on the disk where it will stay; gone afterwards, unless a begun blob is left in it.

    Of what an earlier pull left, begun blobs of ``layers`` are kept, and all else is removed.

    Raises:
        BusyError: another pull is at work in the same place.
        WriteError: it cannot be made.
    """
    path = os.path.join(top, WORK_FOLDER)
    make_folder(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise WriteError(f"{path}: cannot use this folder: {reason(error)}") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"{top}: another pull is at work here: wait for it to end") from None
        _clear(fd, {os.path.basename(part_path(path, one)) for one in layers})
        try:
            yield path
        finally:
            with suppress(OSError):
                os.rmdir(path)
    finally:
        os.close(fd)


def _clear(fd: int, kept: set[str]) -> None:
    with os.scandir(fd) as entries:
        found = [(one.name, one.is_dir(follow_symlinks=False), one.is_file(follow_symlinks=False)) for one in entries]
    for name, is_folder, is_file in found:
        with suppress(OSError):
            if is_folder:
                shutil.rmtree(name, ignore_errors=True, dir_fd=fd)
            elif name not in kept or not is_file or os.stat(name, dir_fd=fd, follow_symlinks=False).st_nlink > 1:
                os.unlink(name, dir_fd=fd)


def told_of_parts(work: str) -> list[str]:
    """What to say of begun blobs that are left."""
    parts = [entry.stat(follow_symlinks=False).st_size for entry in os.scandir(work) if entry.is_file(follow_symlinks=False)]
    return [f"{sum(parts):,} bytes of what was begun are kept in {work}: the next pull takes them up"] if parts else []


def save_blob(
    repository: Repository, descriptor: Descriptor, path: str, progress: ProgressSink | None = None, task: str = "pull"
) -> Wanted:
    """A blob's bytes into a new file, as they come. What they are: their digest and number.

    Raises:
        SourceError: the registry does not have it, cannot give it, or sends more than its descriptor says.
        WriteError: there is no room for it, and then nothing was asked for; or it cannot be written.
    """
    check_room(os.path.dirname(path), descriptor.size, descriptor.name)
    make_empty(path, mode=0o666)
    with OpenFile(path, write=True) as file:
        return _append(repository, descriptor, file, hashlib.sha256(), 0, progress, task)


def take_up(repository: Repository, layer: Descriptor, path: str, progress: ProgressSink | None = None) -> tuple[Wanted, int]:
    """As :func:`save_blob`, from where an earlier pull was broken off; also how many bytes it had.

    What came is kept if this one is broken off as well: by the user, or by a registry that does not answer.
    """
    if not os.path.lexists(path):
        make_empty(path, mode=0o666)
    with OpenFile(path, write=True) as file:
        digest, had = _known(file, layer.size)
        check_room(os.path.dirname(path), layer.size - had, layer.name)
        return _append(repository, layer, file, digest, had, progress, "pull"), had


def _known(file: OpenFile, limit_bytes: int) -> tuple[hashlib._Hash, int]:
    """The hash of what a begun file has, and its size; of one that is too long or cannot be read nothing is taken."""
    digest, size = hashlib.sha256(), file.state().size
    buffer = memoryview(bytearray(CHUNK_BYTES))
    for offset in range(0, size, CHUNK_BYTES) if size <= limit_bytes else ():
        view = buffer[: min(CHUNK_BYTES, size - offset)]
        if file.read_into(view, offset):
            break
        digest.update(view)
    else:
        if size <= limit_bytes:
            return digest, size
    file.disk.truncate(file.fd, 0)
    return hashlib.sha256(), 0


def _append(
    repository: Repository, blob: Descriptor, file: OpenFile, digest: hashlib._Hash, done: int, progress: ProgressSink | None, task: str
) -> Wanted:
    for chunk in repository.blob(blob, done):
        file.write_all(chunk, done)
        digest.update(chunk)
        done += len(chunk)
        if progress:
            progress(Progress(task, blob.title or blob.digest, done, blob.size))
    file.disk.sync(file.fd)
    return Wanted(digest.hexdigest(), done)
