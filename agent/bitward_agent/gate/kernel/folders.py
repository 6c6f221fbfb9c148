"""The watched folders: all folders below them are marked, also those that come later, and which of their files are protected is known.

inotify (inotify(7)) tells of folders that come and of sidecars that come, change and go. A folder that was just made is marked a moment
later; a file that is opened in it before that is not asked about.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from bitward_agent.errors import UnreadableError
from bitward_agent.gate.kernel.facts import Key
from bitward_agent.gate.kernel.fanotify import Group
from bitward_agent.io import reason
from bitward_agent.units import is_ours, sidecar_base

FOLDERS_LIMIT = 65_536
PROTECTED_LIMIT = 1_000_000
_SLICE_FILES = 256
_EVENT = struct.Struct("=iIII")
_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x8, 0x40, 0x80, 0x100, 0x200
_OVERFLOW, _IGNORED, _ISDIR, _ONLYDIR = 0x4000, 0x8000, 0x40000000, 0x01000000
_WATCHED = _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _ONLYDIR
_READ_BYTES = 65_536
_SUFFIX = ".ward"


class Folders:
    """Marks folders and protected files, a slice at a time, so that whoever waits at the gate does not wait for a walk."""

    def __init__(self, group: Group, roots: tuple[str, ...], sidecar_dir: str | None, on_sidecar: Callable[[str], None]) -> None:
        """``on_sidecar`` is called with the path of each sidecar that something happened to, and with "" when that cannot be told."""
        self._group, self._roots, self._sidecar_dir, self._on_sidecar = group, roots, sidecar_dir, on_sidecar
        self._calls = ctypes.CDLL(None, use_errno=True)
        self.fd: int = self._calls.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise UnreadableError(f"inotify: {os.strerror(ctypes.get_errno())}")
        self._paths: dict[int, str] = {}
        self._to_walk: deque[str] = deque()
        self._to_look_at: deque[str] = deque()
        self.protected: dict[Key, str] = {}
        self._key_of: dict[str, Key] = {}
        self.troubles: list[str] = []
        self._is_walked: set[str] = set()
        self._root_keys: list[tuple[str, int, int]] = []
        self.have_roots_changed()
        self.walk_again()

    def walk_again(self) -> None:
        """Begin from the roots."""
        self._is_walked.clear()
        self._to_walk.extend(self._roots)
        for root in {sidecar_base(root, self._sidecar_dir) for root in self._roots} if self._sidecar_dir else ():
            if os.path.isdir(root):
                self._to_walk.append(root)

    def have_roots_changed(self) -> bool:
        """Whether one of the watched folders is another one than when this was last asked: replaced, or mounted over."""
        found = []
        for root in self._roots:
            with suppress(OSError):
                state = os.lstat(root)
                found.append((root, state.st_dev, state.st_ino))
        before, self._root_keys = self._root_keys, found
        return found != before

    @property
    def is_behind(self) -> bool:
        """Whether there is something left to walk."""
        return bool(self._to_walk or self._to_look_at)

    def walk_on(self) -> None:
        """Walk one slice."""
        for _ in range(min(_SLICE_FILES, len(self._to_look_at))):
            self._look_at(self._to_look_at.popleft())
        if self._to_walk and len(self._to_look_at) < _SLICE_FILES:
            self._enter(self._to_walk.popleft())

    def sidecar_of(self, path: str) -> str:
        """Where the sidecar of a file below a root is."""
        if self._sidecar_dir:
            for root in self._roots:
                if path.startswith(root.rstrip("/") + "/"):
                    return os.path.join(sidecar_base(root, self._sidecar_dir), os.path.relpath(path, root) + _SUFFIX)
        return path + _SUFFIX

    def is_inside(self, path: str) -> bool:
        """Whether a path is below a root."""
        return any(path.startswith(root.rstrip("/") + "/") for root in self._roots)

    def _enter(self, folder: str) -> None:
        """Mark one folder and list it: marked first, so that what comes meanwhile is asked about."""
        if folder in self._is_walked:
            return
        if len(self._is_walked) >= FOLDERS_LIMIT:
            self._trouble(f"{folder}: not watched: there are more than {FOLDERS_LIMIT} folders")
            return
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if self.is_inside(folder) or folder in self._roots:
                    self._group.mark_folder(fd)
                self._watch(fd, folder)
                with os.scandir(fd) as entries:
                    for entry in entries:
                        path = os.path.join(folder, entry.name)
                        if entry.is_dir(follow_symlinks=False):
                            self._to_walk.append(path)
                        elif not is_ours(entry.name):
                            self._to_look_at.append(path)
            finally:
                os.close(fd)
        except OSError as error:
            self._trouble(f"{folder}: not watched: {reason(error)}")
            return
        self._is_walked.add(folder)

    def _watch(self, fd: int, folder: str) -> None:
        number = self._calls.inotify_add_watch(self.fd, f"/proc/self/fd/{fd}".encode(), ctypes.c_uint32(_WATCHED))
        if number < 0:
            told = os.strerror(ctypes.get_errno())
            self._trouble(f"{folder}: folders that come later are not noticed: {told} (fs.inotify.max_user_watches)")
        else:
            self._paths[number] = folder

    def _look_at(self, path: str) -> None:
        """Take up a file if it is protected."""
        try:
            found = os.lstat(path)
        except OSError:
            return
        if not stat.S_ISREG(found.st_mode) or not self.is_inside(path) or not os.path.lexists(self.sidecar_of(path)):
            return
        if len(self.protected) >= PROTECTED_LIMIT:
            self._trouble(f"{path}: other names of it are not watched: there are more than {PROTECTED_LIMIT} protected files")
            return
        key = (found.st_dev, found.st_ino)
        if self.protected.get(key) == path:
            return
        self._forget(path)
        self.protected[key], self._key_of[path] = path, key
        self._group.heed_path(path)
        with suppress(OSError):
            self._group.mark_file(path)

    def _forget(self, path: str) -> None:
        """Nothing is known any more of what had this name."""
        key = self._key_of.pop(path, None)
        if key is not None and self.protected.get(key) == path:
            del self.protected[key]

    def _trouble(self, told: str) -> None:
        if len(self.troubles) < 100:
            self.troubles.append(told)

    def read(self) -> bool:
        """Take in what inotify tells; whether files may have lost their last name."""
        try:
            data = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return False
        at, lost = 0, False
        while at + _EVENT.size <= len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, at)
            name = os.fsdecode(data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0"))
            at += _EVENT.size + length
            lost = lost or bool(mask & (_DELETE | _MOVED_TO | _OVERFLOW))
            if mask & _OVERFLOW:
                self._on_sidecar("")
                self.walk_again()
            elif mask & _IGNORED:
                self._is_walked.discard(self._paths.pop(watch, ""))
            elif watch in self._paths and name:
                self._happened(os.path.join(self._paths[watch], name), mask)
        return lost

    def _happened(self, path: str, mask: int) -> None:
        if mask & _ISDIR:
            if mask & (_CREATE | _MOVED_TO):
                self._is_walked.discard(path)
                self._to_walk.append(path)
        elif path.endswith(_SUFFIX):
            self._on_sidecar(path)
            self._to_look_at.append(self._file_of(path))
        elif mask & _DELETE:
            self._forget(path)
        elif not is_ours(path) and mask & (_MOVED_TO | _CREATE):
            self._to_look_at.append(path)

    def _file_of(self, sidecar: str) -> str:
        path = sidecar.removesuffix(_SUFFIX)
        if self._sidecar_dir:
            for root in self._roots:
                base = sidecar_base(root, self._sidecar_dir)
                if path.startswith(base + "/"):
                    return os.path.join(root, os.path.relpath(path, base))
        return path
