"""The service manager's protocol, against a real datagram socket."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from bitward_agent.daemon.notify import Notifier


@pytest.mark.parametrize("is_abstract", [False, True])
def test_messages_arrive(tmp_path: Path, is_abstract: bool) -> None:
    name = f"@bitward-test-{os.getpid()}-{tmp_path.name}" if is_abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if is_abstract else name)
        manager.settimeout(5)
        notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())})
        assert notifier.watchdog_seconds == 5.0
        notifier.ready("up")
        assert manager.recv(4096).split(b"\n")[:2] == [b"READY=1", b"STATUS=up"]
        notifier.status("a\nREADY=0 \udcff")
        assert manager.recv(4096) == b"STATUS=a?READY=0 ?"
        notifier.status("a\nREADY=0 \udcff")  # the same again is not sent
        notifier.watchdog()
        assert manager.recv(4096) == b"WATCHDOG=1"
        notifier.reloading()
        first, second = manager.recv(4096).split(b"\n")
        assert first == b"RELOADING=1"
        assert second.startswith(b"MONOTONIC_USEC=")
        notifier.stopping("x" * 1000)
        assert manager.recv(4096) == b"STOPPING=1\nSTATUS=" + b"x" * 299 + "…".encode()
        notifier.close()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "@"},
        {"NOTIFY_SOCKET": "vsock:2:9"},
        {"NOTIFY_SOCKET": "/nowhere/at/all"},
        {"NOTIFY_SOCKET": "/" + "x" * 300},
    ],
)
def test_without_a_manager_nothing_happens(environment: dict[str, str]) -> None:
    before = os.listdir("/proc/self/fd")
    notifier = Notifier(environment)
    assert notifier.watchdog_seconds is None
    notifier.ready("up")
    notifier.watchdog()
    notifier.close()
    notifier.status("after the end")
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(("micros", "process"), [("", ""), ("0", ""), ("x", ""), ("9" * 30, ""), ("1000000", "1")])
def test_a_watchdog_that_is_not_meant(tmp_path: Path, micros: str, process: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": micros, "WATCHDOG_PID": process})
        assert notifier.watchdog_seconds is None
        notifier.close()


def test_a_manager_that_does_not_read_stops_nobody(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        for number in range(5000):
            notifier.status(f"{number}")
        notifier.close()
        manager.setblocking(False)
        assert manager.recv(100) == b"STATUS=0", "what fitted came in order; the rest was dropped, and nobody waited"
