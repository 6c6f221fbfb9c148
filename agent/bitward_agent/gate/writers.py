"""Whether somebody has a file open for writing: read leases.

A process that maps a file and has written to a page may write to it again without moving the file's times, until the kernel has written the
page back. So while there is a writer, times prove nothing. A read lease can only be had while nobody has the file open for writing
(fcntl(2), "Leases"): asking for one tells, and giving it back at once disturbs nobody.

Leases are for the file's owner and root. For anybody else, and where the file system has none, the file is written back instead: from then
on a writer's next store into a mapped page is a fault, and moves the times.
"""

from __future__ import annotations

import errno
import fcntl
import signal
from contextlib import suppress
from enum import StrEnum

from bitward_agent.gate.file_systems import is_written_back, type_at, type_of_open_file, why_not_believed


class Taken(StrEnum):
    """What came of asking for a lease. ``REFUSED``: the file system has none, or not for us."""

    HELD = "held"
    WRITER = "somebody has the file open for writing"
    REFUSED = "refused"


def take_lease(fd: int, broken: int) -> Taken:
    """Take a read lease on the file of a read-only descriptor. ``broken``: the signal that tells when it has to go."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, broken)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return Taken.WRITER if error.errno == errno.EAGAIN else Taken.REFUSED
    return Taken.HELD


def give_lease_back(fd: int) -> None:
    """Give a lease back: who waits to write may."""
    with suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def has_writer(fd: int) -> bool | None:
    """Whether the file of a read-only descriptor is open for writing somewhere; ``None`` where that cannot be told.

    It cannot on file systems without leases, nor for files of others unless the process may lease them (CAP_LEASE).
    """
    # Were the lease broken in the instant in which it is held, the default signal would end the process; this one is ignored.
    taken = take_lease(fd, signal.SIGURG)
    if taken is Taken.REFUSED:
        return None
    if taken is Taken.HELD:
        give_lease_back(fd)
    return taken is Taken.WRITER


def why_untold(fd: int, sidecar: str) -> str:
    """Why somebody may write to a file, or change its sidecar, from now on without moving the times of either; "" if nobody can."""
    for what, kind in (("file", type_of_open_file(fd)), ("sidecar", type_at(sidecar))):
        why = why_not_believed(kind)
        if why:
            return f"{what}: {why}"
    writer = has_writer(fd)
    if writer:
        return str(Taken.WRITER)
    if writer is None and not is_written_back(fd, type_of_open_file(fd)):
        return "whether somebody has the file open for writing cannot be told: its owner's gate, or root's, can"
    return ""
