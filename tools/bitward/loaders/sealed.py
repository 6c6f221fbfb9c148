"""Sealed copies: for loaders that open a path themselves, memory with a path whose bytes were hashed and that nobody can change any more.

The kernel's ``memfd_create`` gives a file that lives in memory and has no name; ``F_ADD_SEALS`` takes from everybody, its maker included,
the right to write, grow or shrink it (memfd_create(2), fcntl(2) on file sealing). A loader gets it by ``/proc/self/fd/N``. It may map
it: then the copy is all the memory that the model takes, and it lasts as long as the map does.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import shutil
import tempfile
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from bitward.loaders.gated import GatedFile
from bitward_agent.errors import WriteError
from bitward_agent.io import reason

PART_BYTES = 64 << 20
"""So much of the copy is mapped for writing at a time."""
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def sealed_copy(gated: GatedFile) -> int:
    """A descriptor of a sealed copy of the whole file, verified block by block where the copy has it. Close it.

    Raises:
        LoadRefusedError: a block is not right, and the policy does not let it through.
        WriteError: there is not enough memory.
    """
    fd = os.memfd_create("bitward-verified", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        size = gated.size
        if size:
            os.posix_fallocate(fd, 0, size)  # memory that is missing is told here, not by a signal when it is written to
        low = 0
        while low < size:
            high = gated.checked.covering(low, min(low + PART_BYTES, size))[1]
            _fill(fd, gated, low, high)
            low = high
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        os.close(fd)
        raise WriteError(f"{gated.path}: no memory for a verified copy of {gated.size:,} bytes: {reason(error)}") from error
    except BaseException:
        os.close(fd)
        raise
    return fd


def _fill(fd: int, gated: GatedFile, low: int, high: int) -> None:
    """One part of the copy. After an error the map goes when the error does: its traceback holds parts of it."""
    base = low // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    part = mmap.mmap(fd, high - base, offset=base)
    view = memoryview(part)
    wanted = view[low - base :]
    gated.read_to(wanted, low)
    wanted.release()
    view.release()
    part.close()


class SealedFolder:
    """A private folder in which sealed copies have the names of the files that they are copies of. A context manager.

    For loaders that look at a file's name, or for others beside it. The links lead through ``/proc`` to this process's descriptors: who
    may change them may trace the process.
    """

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(prefix="bitward-")
        self._fds: list[int] = []

    def add(self, name: str, fd: int) -> str:
        """Give a copy a name; the descriptor is closed with the folder. Returns the path."""
        self._fds.append(fd)
        path = os.path.join(self.path, os.path.basename(name))
        os.symlink(f"/proc/{os.getpid()}/fd/{fd}", path)
        return path

    def link(self, original: str) -> str:
        """Have a file that may be loaded as it is beside the copies. Returns the path."""
        path = os.path.join(self.path, os.path.basename(original))
        os.symlink(os.path.abspath(original), path)
        return path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        for fd in self._fds:
            with contextlib.suppress(OSError):
                os.close(fd)


def copy_into(folder: SealedFolder, gated_files: Sequence[tuple[str, GatedFile]]) -> list[str]:
    """Sealed copies of some files under their names; their paths. The files are closed."""
    paths = []
    for name, gated in gated_files:
        try:
            paths.append(folder.add(name, sealed_copy(gated)))
        finally:
            gated.close()
    return paths
