"""The copy on which a drill works. The original is opened for reading only."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bitward.sample import write_sample
from bitward_agent.units import is_ours

COPY_CHUNK_BYTES = 4 << 20
_SPACE_FACTOR = 1.3
"""Room for the copy, its sidecar in the largest preset, and the journal of a repair."""

_SPARE_BYTES = 16 << 20


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder under TMPDIR that is gone afterwards, whenever the drill is interrupted.

    Its name is known before it is made: with ``tempfile`` an interrupt between making and remembering would leave it behind.
    """
    folder = Path(tempfile.gettempdir(), f"bitward-drill-{secrets.token_hex(8)}").resolve()
    is_ours = True
    try:
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            is_ours = False
            raise
        yield folder
    finally:
        if is_ours:
            shutil.rmtree(folder, ignore_errors=True)


def _regular(path: Path) -> bool:
    """Whether this is a file, or a link to one: model hubs keep a model as links into a store of blobs."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def files_of(original: Path) -> list[Path]:
    """The files to copy, relative to ``original``; of a plain file the empty path alone. Raises OSError."""
    if stat.S_ISREG(original.stat().st_mode):
        return [Path()]
    if not original.is_dir():
        raise OSError(errno.EINVAL, "neither a file nor a directory", str(original))
    found = []
    for folder, folders, names in os.walk(original, followlinks=False):
        folders.sort()
        paths = [Path(folder, name) for name in sorted(names) if not is_ours(name)]
        found += [path.relative_to(original) for path in paths if _regular(path)]
    if not found:
        raise OSError(errno.ENOENT, "no regular file in this directory", str(original))
    return found


def _check_space(needed: int, folder: Path) -> None:
    wanted = int(needed * _SPACE_FACTOR) + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < wanted:
        told = f"not enough room for a copy: {wanted >> 20:,} MiB needed, {free >> 20:,} MiB free; set TMPDIR to a larger place"
        raise OSError(errno.ENOSPC, told, str(tempfile.gettempdir()))


def copy_file(source: Path, target: Path, report: Callable[[int], None]) -> None:
    """Copy bytes and times. ``report`` gets the number of bytes copied so far, of this file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    done = 0
    with source.open("rb") as original, target.open("wb") as copy:
        while chunk := original.read(COPY_CHUNK_BYTES):
            copy.write(chunk)
            done += len(chunk)
            report(done)
        times = os.fstat(original.fileno())
    os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))


def make_copy(original: Path | None, folder: Path, seed: int, report: Callable[[str, int, int], None]) -> tuple[Path, Path]:
    """Copy ``original`` into the new ``folder``, or without it make a small checkpoint there.

    Returns the copy, and the file in it that is to be damaged: the largest. ``report`` gets path, bytes done and bytes
    in all. Raises OSError.
    """
    folder.mkdir()
    if original is None:
        target = folder / "sample.safetensors"
        write_sample(target, seed)
        return target, target
    files = files_of(original)
    sizes = {file: (original / file).stat().st_size for file in files}
    _check_space(sum(sizes.values()), folder)
    copy = folder / (original.name or "model")
    for file in files:
        size = sizes[file]
        copy_file(original / file, copy / file, lambda done, size=size: report(str(original), done, size))  # type: ignore[misc]
    return copy, copy / max(files, key=lambda file: sizes[file])
