"""The signals that want leases on verified files back.

While a read lease is held nobody has the file open for writing, and whoever wants to waits until it is given back. With it the kernel may
be told to ask no more about a file. Without it a process could open the file for writing and change it through a
map, which fanotify does not see (fanotify(7), "Limitations and caveats"). See fcntl(2), "Leases", and signalfd(2).
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct

from bitward_agent.errors import UnreadableError

BREAK_SIGNAL = signal.SIGRTMIN + 4
"""A real-time signal: each one is delivered, with the descriptor that it is about. When too many wait the kernel sends SIGIO instead."""
_SIGNALS = (BREAK_SIGNAL, signal.SIGIO, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SIGSET_BYTES = 128
_INFO_BYTES = 128
_INFO = struct.Struct("=IiiIIi")
"""The beginning of struct signalfd_siginfo: signo, errno, code, pid, uid, fd."""


class Signals:
    """Signals of this process as something to read: leases that are to be given back, and the wish that it ends."""

    def __init__(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        bits = sum(1 << (number - 1) for number in _SIGNALS)
        mask = ctypes.create_string_buffer(bits.to_bytes(8, "little") + bytes(_SIGSET_BYTES - 8), _SIGSET_BYTES)
        self.fd = ctypes.CDLL(None, use_errno=True).signalfd(-1, mask, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise UnreadableError(f"signalfd: {os.strerror(ctypes.get_errno())}")

    def read(self) -> tuple[list[int], bool, bool]:
        """(descriptors whose leases are wanted back, whether more are that were not told, whether the process is to end)."""
        wanted: list[int] = []
        lost = ends = False
        while True:
            try:
                data = os.read(self.fd, _INFO_BYTES * 32)
            except BlockingIOError:
                return wanted, lost, ends
            for at in range(0, len(data), _INFO_BYTES):
                number, _, _, _, _, fd = _INFO.unpack_from(data, at)
                if number == BREAK_SIGNAL:
                    wanted.append(fd)
                elif number == signal.SIGIO:
                    lost = True
                elif number != signal.SIGHUP:
                    ends = True
