"""Whether somebody has a file open for writing.

A process that maps a file and has written to a page may write to it again without moving the file's times, until the kernel has written the
page back. So while there is a writer, times prove nothing. A read lease can only be had while nobody has the file open for writing
(fcntl(2), "Leases"): asking for one tells, and giving it back at once disturbs nobody.
"""

from __future__ import annotations

import errno
import fcntl
import signal
from contextlib import suppress


def has_writer(fd: int) -> bool | None:
    """Whether the file of a read-only descriptor is open for writing somewhere; ``None`` where that cannot be told.

    It cannot on file systems without leases, nor for files of others unless the process may lease them (CAP_LEASE).
    """
    try:
        # Were the lease broken in the instant in which it is held, the default signal would end the process; this one is ignored.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    with suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
