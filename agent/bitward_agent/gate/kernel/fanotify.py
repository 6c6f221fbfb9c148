"""fanotify by ctypes: a group that is asked before files are opened, marks, events and answers.

Constants and layouts are those of ``linux/fanotify.h``; what they do is in fanotify(7), fanotify_init(2) and fanotify_mark(2). The event's
descriptor does not raise events itself (FMODE_NONOTIFY), so its file can be looked at without asking ourselves. Everything is by
inode: a mark on a folder is asked about the files directly in it, under whatever mount; one on a file under whatever name.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from contextlib import suppress
from typing import Any

from bitward_agent.errors import InputError, UnreadableError
from bitward_formats.frozen import dataclass

_CLOEXEC, _NONBLOCK, _CLASS_CONTENT, _UNLIMITED_QUEUE, _UNLIMITED_MARKS, _REPORT_TID = 0x1, 0x2, 0x4, 0x10, 0x20, 0x100
_ADD, _REMOVE, _ONLYDIR, _IGNORED_MASK, _FLUSH = 0x1, 0x2, 0x8, 0x20, 0x80
_OPEN_PERM, _EVENT_ON_CHILD = 0x10000, 0x08000000
_ALLOW, _DENY = 0x1, 0x2
_VERSION = 3
_NO_FD = -1
_AT_FDCWD = -100
_O_LARGEFILE = getattr(os, "O_LARGEFILE", 0)

METADATA = struct.Struct("=IBBHQii")
"""struct fanotify_event_metadata: event_len, vers, reserved, metadata_len, mask, fd, pid."""
RESPONSE = struct.Struct("=iI")
"""struct fanotify_response: fd, response."""
_READ_BYTES = 4096
"""170 events: each takes a descriptor of ours when it is read."""


@dataclass(frozen=True, slots=True)
class Opening:
    """Somebody waits to open a file: a descriptor of it, which is ours to close, and the thread that waits (0 if it cannot be seen)."""

    fd: int
    thread: int


def _calls() -> Any:
    library = ctypes.CDLL(None, use_errno=True)
    library.fanotify_init.argtypes = (ctypes.c_uint, ctypes.c_uint)
    library.fanotify_mark.argtypes = (ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p)
    return library


class Group:
    """A fanotify group, of which any process that has its descriptor can read events and write answers."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._calls = _calls()

    @classmethod
    def make(cls) -> Group:
        """A new group.

        Its queue has no limit: when one with a limit is full the kernel lets opens pass unasked. What waits there is bounded by the
        number of threads that wait.

        Raises:
            InputError: this needs root, or a kernel that can do it.
        """
        flags = _CLOEXEC | _NONBLOCK | _CLASS_CONTENT | _UNLIMITED_QUEUE | _UNLIMITED_MARKS | _REPORT_TID
        try:
            # Not to block: the event's descriptor of a pipe would else be had only when its other end is opened.
            fd = _calls().fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | _O_LARGEFILE)
        except AttributeError:
            raise InputError("this system's C library has no fanotify") from None
        if fd < 0:
            number = ctypes.get_errno()
            if number == errno.EPERM:
                raise InputError("watching opens needs root (CAP_SYS_ADMIN), in the machine's own user name space")
            if number in (errno.ENOSYS, errno.EINVAL):
                raise InputError("this kernel cannot ask before opens (CONFIG_FANOTIFY_ACCESS_PERMISSIONS, Linux 4.20)")
            raise UnreadableError(f"fanotify: {os.strerror(number)}")
        return cls(fd)

    def close(self) -> None:
        """Close it. When the last descriptor of a group is closed, the kernel lets everything pass that waits."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def mark_folder(self, folder_fd: int) -> None:
        """Ask before files directly in this folder are opened. Raises OSError."""
        self._mark(_ADD | _ONLYDIR, _OPEN_PERM | _EVENT_ON_CHILD, _AT_FDCWD, f"/proc/self/fd/{folder_fd}".encode())

    def mark_file(self, path: str) -> None:
        """Ask before this file is opened, under any of its names; a link is not followed. Raises OSError."""
        self._mark(_ADD | 0x4, _OPEN_PERM, _AT_FDCWD, os.fsencode(path))

    def ignore(self, fd: int) -> None:
        """Do not ask about this file any more; the kernel forgets that when the file is written to (FAN_MODIFY). Raises OSError."""
        self._mark(_ADD | _IGNORED_MASK, _OPEN_PERM, fd, None)

    def heed(self, fd: int) -> None:
        """Take ``ignore`` back."""
        with suppress(OSError):  # the kernel had forgotten it
            self._mark(_REMOVE | _IGNORED_MASK, _OPEN_PERM, fd, None)

    def heed_path(self, path: str) -> None:
        """Take ``ignore`` back, by path."""
        with suppress(OSError):
            self._mark(_REMOVE | _IGNORED_MASK | 0x4, _OPEN_PERM, _AT_FDCWD, os.fsencode(path))

    def _mark(self, flags: int, mask: int, folder_fd: int, path: bytes | None) -> None:
        if self._calls.fanotify_mark(self.fd, flags, mask, folder_fd, path) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def read(self) -> list[Opening]:
        """Those who wait, a page full of them at most; none if nobody does.

        Raises:
            OSError: EMFILE and the like; the kernel has then refused the one whose descriptor it could not give.
            UnreadableError: the kernel speaks another version of the protocol.
        """
        try:
            data = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return []
        found, at = [], 0
        while at + METADATA.size <= len(data):
            length, version, _, _, mask, fd, thread = METADATA.unpack_from(data, at)
            if version != _VERSION or length < METADATA.size:
                raise UnreadableError(f"this kernel's fanotify has version {version}; known is {_VERSION}")
            if fd != _NO_FD and mask & _OPEN_PERM:
                found.append(Opening(fd, thread))
            elif fd != _NO_FD:
                os.close(fd)
            at += length
        return found

    def answer(self, fd: int, *, allow: bool) -> bool:
        """Let the one pass or refuse him (EPERM). ``fd`` is the number that whoever read the event got. Whether somebody waited."""
        try:
            os.write(self.fd, RESPONSE.pack(fd, _ALLOW if allow else _DENY))
        except OSError:
            return False
        return True
