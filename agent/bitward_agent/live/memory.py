"""The memory of another process: its maps, which pages are copies of its own, its bytes, and writing a few of them.

Everything goes through one descriptor of ``/proc/PID``, which never leads to another process that got the same number later.

Sources: proc_pid_mem(5), proc_pid_map_files(5), ptrace(2) on access modes, and the kernel's ``admin-guide/mm/pagemap.rst``: one little
64-bit word for each page, bit 63 present, bit 62 swapped, bit 61 a page of a file or of shared memory. The frame numbers, which need
CAP_SYS_ADMIN, are not used.
"""

from __future__ import annotations

import contextlib
import errno
import os
from types import TracebackType
from typing import Self

from bitward_agent.errors import ProcessError
from bitward_agent.io import Range, merge_ranges
from bitward_agent.live.maps import MAPS_LIMIT_BYTES, Mapping, View, parse_maps

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
WORD_BYTES = 8
"""What is written at once: an aligned word of the machine, which a running process sees old or new, not half."""
_ENTRY_BYTES = 8
_ENTRIES_AT_ONCE = 1 << 17
_PRESENT_OR_SWAPPED = 0b11 << 62
_FILE_PAGE = 1 << 61
_YAMA = "/proc/sys/kernel/yama/ptrace_scope"


class ProcessMemory:
    """A process whose memory is read, and with ``write`` written. Opening it does not stop or change it."""

    def __init__(self, pid: int, *, write: bool = False) -> None:
        """Raises ProcessError: no such process, or no right to its memory."""
        self.pid, self._folder, self._mem, self._pagemap = pid, -1, -1, -1
        self._write = write
        try:
            self._folder = os.open(f"/proc/{pid:d}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._failed(error) from error
        self.process = self._comm()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        for fd in (self._folder, self._mem, self._pagemap):
            if fd >= 0:
                os.close(fd)
        self._folder = self._mem = self._pagemap = -1

    @property
    def root(self) -> str:
        """Its root directory, in its own mount namespace: a link that the kernel follows."""
        return f"/proc/self/fd/{self._folder}/root"

    def _open(self, name: str, flags: int = os.O_RDONLY) -> int:
        return os.open(name, flags | os.O_CLOEXEC, dir_fd=self._folder)

    def _comm(self) -> str:
        with contextlib.suppress(OSError):
            fd = self._open("comm")
            try:
                return os.fsdecode(os.read(fd, 64)).rstrip("\n")
            finally:
                os.close(fd)
        return ""

    def _failed(self, error: OSError) -> ProcessError:
        """Why the kernel refused, in words that say what helps."""
        if error.errno in (errno.ENOENT, errno.ESRCH):
            return ProcessError(f"process {self.pid}: there is none, or it ended")
        if error.errno not in (errno.EPERM, errno.EACCES):
            return ProcessError(f"process {self.pid}: {error.strerror}")
        told = f"process {self.pid}: no right to its memory: run as root, or as the user who runs it"
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{self.pid:d}").st_uid != os.geteuid():
                return ProcessError(f"{told} (it belongs to another user, or does not allow to be traced)")
        with contextlib.suppress(OSError), open(_YAMA, encoding="ascii") as scope:
            level = scope.read().strip()
            if level not in ("", "0"):
                return ProcessError(f"{told}; kernel.yama.ptrace_scope is {level}, which allows it to root only (CAP_SYS_PTRACE)")
        return ProcessError(told)

    def maps(self) -> tuple[Mapping, ...]:
        """What it maps now. Raises ProcessError."""
        parts, size = [], 0
        try:
            fd = self._open("maps")
            try:
                while part := os.read(fd, 1 << 20):
                    size += len(part)
                    if size > MAPS_LIMIT_BYTES:
                        raise ProcessError(f"process {self.pid}: its maps fill more than {MAPS_LIMIT_BYTES} bytes")
                    parts.append(part)
            finally:
                os.close(fd)
        except OSError as error:
            raise self._failed(error) from error
        return parse_maps(b"".join(parts))

    def mapped_fd(self, mapping: Mapping, flags: int = os.O_RDONLY) -> int:
        """A descriptor of the mapped file itself, whatever its name leads to by now; needs root. Raises OSError."""
        return self._open(f"map_files/{mapping.name}", flags | os.O_NONBLOCK | os.O_NOCTTY)

    def own_ranges(self, view: View) -> tuple[Range, ...] | None:
        """The file's ranges whose pages are copies of the process's own, not the page cache's; ``None`` where the kernel does not tell."""
        import numpy as np  # start-up of everything else does without

        if view.shared:
            return ()
        found: list[Range] = []
        try:
            if self._pagemap < 0:
                self._pagemap = self._open("pagemap")
            for mapping in view.mappings:
                first, end = mapping.start // PAGE_BYTES, mapping.end // PAGE_BYTES
                for low in range(first, end, _ENTRIES_AT_ONCE):
                    wanted = min(_ENTRIES_AT_ONCE, end - low)
                    data = os.pread(self._pagemap, wanted * _ENTRY_BYTES, low * _ENTRY_BYTES)
                    if len(data) != wanted * _ENTRY_BYTES:
                        return None
                    entries = np.frombuffer(data, "<u8")
                    own = ((entries & np.uint64(_PRESENT_OR_SWAPPED)) != 0) & ((entries & np.uint64(_FILE_PAGE)) == 0)
                    edges = np.diff(np.concatenate(([0], own.astype(np.int8), [0]))).nonzero()[0].reshape(-1, 2)
                    at = low * PAGE_BYTES - view.base
                    found += [(at + int(start) * PAGE_BYTES, at + int(stop) * PAGE_BYTES) for start, stop in edges]
        except OSError:
            return None
        return tuple(merge_ranges(found))

    def _memory(self) -> int:
        if self._mem < 0:
            try:
                self._mem = self._open("mem", os.O_RDWR if self._write else os.O_RDONLY)
            except OSError as error:
                raise self._failed(error) from error
        return self._mem

    def read_into(self, view: memoryview, address: int) -> list[Range]:
        """Fill ``view`` from an address; what is not there is zero. Returns the addresses that could not be read.

        Raises:
            ProcessError: no right, or the process ended.
        """
        fd, done = self._memory(), 0
        lost: list[Range] = []
        while done < len(view):
            try:
                count = os.preadv(fd, [view[done:]], address + done)
            except OSError as error:
                if error.errno not in (errno.EIO, errno.EFAULT):
                    raise self._failed(error) from error
                count = min(len(view) - done, PAGE_BYTES - (address + done) % PAGE_BYTES)
                view[done : done + count] = bytes(count)
                lost.append((address + done, address + done + count))
            if count == 0:  # its memory went with it
                raise ProcessError(f"process {self.pid}: it ended, or runs another program now")
            done += count
        return merge_ranges(lost)

    def write_word(self, address: int, data: bytes) -> None:
        """Write one aligned word. A page that the process shares with the page cache becomes a copy of its own, if the map is private.

        Raises:
            ProcessError: the kernel refuses: the map is shared and read-only, or ``proc_mem.force_override`` forbids it.
        """
        assert len(data) == WORD_BYTES
        assert address % WORD_BYTES == 0
        try:
            count = os.pwrite(self._memory(), data, address)
        except OSError as error:
            raise ProcessError(f"process {self.pid}: cannot write at {address:#x}: {error.strerror}") from error
        if count != WORD_BYTES:
            raise ProcessError(f"process {self.pid}: cannot write at {address:#x}")
