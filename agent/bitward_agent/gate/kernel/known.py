"""What the kernel gate knows of files: verdicts under the identity of file and sidecar, the leases that go with them, and which inodes are
protected.

The oldest goes when there are too many. A verdict is gone when either identity is another, or when it is too old.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import replace

from bitward_agent.findings import Verdict
from bitward_agent.gate.file_systems import identity_at
from bitward_agent.gate.identity import FileIdentity
from bitward_agent.gate.kernel.facts import Key
from bitward_agent.gate.kernel.fanotify import Group
from bitward_agent.gate.writers import give_lease_back
from bitward_formats.frozen import dataclass

KNOWN_LIMIT = 65_536


@dataclass(frozen=True, slots=True)
class Known:
    """A verdict, until when it stands (seconds since boot), and, where the kernel asks no more about the file, the leased descriptor."""

    file: FileIdentity
    sidecar_path: str
    sidecar: FileIdentity | None
    verdict: Verdict
    message: str
    until_seconds: float
    lease_fd: int = -1


class KnownFiles:
    """Verdicts by inode."""

    def __init__(self, group: Group, leases_limit: int) -> None:
        """``leases_limit``: most leases that are held; each takes a descriptor."""
        self._group, self._leases_limit = group, leases_limit
        self._known: OrderedDict[Key, Known] = OrderedDict()
        self._by_lease: dict[int, Key] = {}
        self._by_sidecar: dict[str, Key] = {}

    def find(self, file: FileIdentity, now_seconds: float) -> Known | None:
        """What is known of a file as it is now."""
        key = (file.device, file.inode)
        known = self._known.get(key)
        if known is None:
            return None
        if known.file != file or known.until_seconds < now_seconds or identity_at(known.sidecar_path) != known.sidecar:
            self.drop(key)
            return None
        return known

    def keep(self, known: Known) -> None:
        """Remember a verdict. With a lease, the kernel asks no more about the file until that has to be given back."""
        key = (known.file.device, known.file.inode)
        self.drop(key)
        if known.lease_fd >= 0:
            while len(self._by_lease) >= self._leases_limit:
                self.drop(next(iter(self._by_lease.values())))
            try:
                self._group.ignore(known.lease_fd)
            except OSError:
                give_lease_back(known.lease_fd)
                os.close(known.lease_fd)
                known = replace(known, lease_fd=-1)
            else:
                self._by_lease[known.lease_fd] = key
        while len(self._known) >= KNOWN_LIMIT:
            self.drop(next(iter(self._known)))
        self._known[key] = known
        self._by_sidecar[known.sidecar_path] = key

    def drop(self, key: Key) -> None:
        """Forget a file: the kernel asks about it again."""
        known = self._known.pop(key, None)
        if known is None:
            return
        self._by_sidecar.pop(known.sidecar_path, None)
        if known.lease_fd >= 0:
            self._by_lease.pop(known.lease_fd, None)
            self._group.heed(known.lease_fd)  # first: who gets to write then is asked about from the start
            give_lease_back(known.lease_fd)
            os.close(known.lease_fd)

    def drop_lease(self, fd: int) -> bool:
        """A lease is wanted back: whether it was one of ours."""
        key = self._by_lease.get(fd)
        if key is None:
            return False
        self.drop(key)
        return True

    def drop_sidecar(self, path: str) -> None:
        """Something happened to a sidecar: its file is to be verified again."""
        key = self._by_sidecar.get(path)
        if key is not None:
            self.drop(key)

    def drop_all(self) -> None:
        """Forget everything."""
        for key in list(self._known):
            self.drop(key)

    def sweep(self, now_seconds: float) -> None:
        """Forget what is too old: of files that the kernel does not ask about nobody else would notice."""
        for key in [key for key, known in self._known.items() if known.until_seconds < now_seconds]:
            self.drop(key)

    def drop_deleted(self) -> None:
        """Let go of files that have no name any more: as long as a descriptor is open their space is not free."""
        for fd, key in list(self._by_lease.items()):
            if not os.fstat(fd).st_nlink:
                self.drop(key)

    def __len__(self) -> int:
        return len(self._known)
