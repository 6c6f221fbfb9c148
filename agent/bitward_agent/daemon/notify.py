"""Telling the service manager how it goes: the protocol of sd_notify(3), datagrams of ``NAME=value`` lines to ``$NOTIFY_SOCKET``.

Source: the sd_notify(3), sd_watchdog_enabled(3) and systemd.service(5) manual pages (sections on ``NOTIFY_SOCKET``, ``WATCHDOG_USEC``,
``Type=notify-reload``). Without the variable, or where nobody listens, everything here does nothing: an agent must also run by hand.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress

STATUS_CHARACTERS = 300


class Notifier:
    """The service manager's socket. Every method is safe to call whether or not there is one."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """``environment`` is read once; ``watchdog_seconds`` is how often the manager wants to be told, None if it does not."""
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._socket: socket.socket | None = None
        if self._address is not None:
            with suppress(OSError):
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                self._socket.setblocking(False)
        self.watchdog_seconds = _watchdog_seconds(environment) if self._socket is not None else None
        self._status = ""

    def ready(self, status: str) -> None:
        """Started, or done with reloading."""
        self._send("READY=1", f"STATUS={_line(status)}", f"MAINPID={os.getpid()}")

    def status(self, status: str) -> None:
        """One line for people; said again only if it is another."""
        line = _line(status)
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def watchdog(self) -> None:
        """Still alive."""
        self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """The configuration is being read again; ``ready`` ends it. The manager wants the monotonic time, so that it can tell replies."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str) -> None:
        """About to end."""
        self._send("STOPPING=1", f"STATUS={_line(status)}")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        """A manager that does not read must not stop the agent: what cannot be sent at once is dropped."""
        if self._socket is not None and self._address is not None:
            with suppress(OSError):
                self._socket.sendto("\n".join(lines).encode("utf-8", "backslashreplace"), self._address)


def _address(text: str) -> str | bytes | None:
    """``@name`` means the abstract name space, where a zero byte stands for the ``@``; other forms (vsock) are not for a local service."""
    if text.startswith("/"):
        return text
    if text.startswith("@") and len(text) > 1:
        return b"\0" + os.fsencode(text[1:])
    return None


def _watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """Half of what the manager allows, as its manual recommends; None where the watchdog is off or meant for another process."""
    micros, process = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not (micros.isascii() and micros.isdigit() and len(micros) < 18) or int(micros) == 0 or (process and process != str(os.getpid())):
        return None
    return int(micros) / 2_000_000


def _line(text: str) -> str:
    shown = "".join(one if one.isprintable() else "?" for one in text)
    return shown if len(shown) <= STATUS_CHARACTERS else f"{shown[: STATUS_CHARACTERS - 1]}…"
