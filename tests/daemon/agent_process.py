"""The real agent as a process of its own: started with a configuration, killed, asked, and looked at from outside."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from cli.command_line import COMMAND, environment

PATIENCE_SECONDS = 120
"""How long a test waits for what must happen before it fails: no measure of speed, only an end to waiting."""
READY_SECONDS = 60


class Agent:
    """An agent with folders of its own below ``home``. Its log is JSON lines; it is ready when ``start`` returns."""

    def __init__(self, home: Path, watches: str, *, scrub: str = "", top: str = "") -> None:
        self.home = home
        self.state, self.runtime, self.config, self.alerts = (home / name for name in ("state", "run", "agent.toml", "alerts"))
        self.log = home / "agent.log"
        home.mkdir(parents=True, exist_ok=True)
        alert = home / "alert.sh"
        alert.write_text(f'#!/bin/sh\necho "alert $*" >> {self.alerts}\n')
        alert.chmod(0o755)
        self.config.write_text(
            f'state_dir = "{self.state}"\nruntime_dir = "{self.runtime}"\nlog = "json"\n{top}\n'
            f"[scrub]\npause_on_battery = false\npause_above_celsius = false\npause_above_pressure = false\n{scrub}\n"
            f'[alert]\ncommand = ["{alert}"]\n{watches}\n'
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self.starts = 0

    def __enter__(self) -> Agent:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._socket is not None:
            self._socket.close()
        if error is not None:
            print(f"--- the agent's log, its end\n{self.tail()}")

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def start(self, *, wait: bool = True) -> None:
        """Start it, and wait until it says READY=1 as to the service manager."""
        if self._socket is not None:
            self._socket.close()
        address = self.home / f"notify-{self.starts}"
        address.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(address))
        self._socket.settimeout(0.2)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*COMMAND, "agent", "run", "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(NOTIFY_SOCKET=str(address)),
            )
        self.starts += 1
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        assert self._socket is not None
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"the agent ended with {self.process.returncode}\n{self.tail()}"
            try:
                told = self._socket.recv(1 << 16)
            except TimeoutError:
                continue
            if b"READY=1" in told.split(b"\n"):
                return
        raise AssertionError(f"not ready\n{self.tail()}")

    def drain(self) -> list[str]:
        """What it told the service manager since; so that its socket never fills."""
        assert self._socket is not None
        told: list[str] = []
        self._socket.setblocking(False)
        try:
            while True:
                told += self._socket.recv(1 << 16).decode(errors="replace").splitlines()
        except BlockingIOError:
            return told
        finally:
            self._socket.settimeout(0.2)

    def kill(self) -> None:
        """SIGKILL, as from a power cut but for the page cache."""
        self.process.kill()
        self.process.wait()

    def terminate(self, patience: float = PATIENCE_SECONDS) -> int:
        """SIGTERM; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(patience)

    def ask(self, *words: str) -> Any:
        """The JSON document of ``bitward agent WORDS --json``."""
        line = [*COMMAND, "agent", *words, "--config", str(self.config), "--json"]
        done = subprocess.run(line, capture_output=True, text=True, env=environment(), timeout=PATIENCE_SECONDS, check=False)
        try:
            return json.loads(done.stdout)
        except ValueError:
            raise AssertionError(f"{line} ended with {done.returncode}: {done.stdout[:500]} {done.stderr[-500:]}") from None

    def until(self, what: Callable[[], bool], why: str, patience: float = PATIENCE_SECONDS) -> None:
        """Wait until something holds. Fails if it does not within a patience that no working agent needs, or if the agent ends."""
        deadline = time.monotonic() + patience
        while not what():
            assert self.process.poll() is None, f"the agent ended with {self.process.returncode} before {why}\n{self.tail()}"
            assert time.monotonic() < deadline, f"never: {why}\n{self.tail()}"
            self.drain()
            time.sleep(0.1)

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The lines of the log, of one kind or all. A line that a kill tore is left out."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and (kind is None or event.get("event") == kind):
                found.append(event)
        return found

    def kinds(self) -> Counter[str]:
        """How many log lines there are of each kind."""
        return Counter(str(event.get("event")) for event in self.events())

    def alert_count(self) -> int:
        """How often the alert command was called."""
        return len(self.alerts.read_text().splitlines()) if self.alerts.exists() else 0

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""

    def memory_bytes(self, field: str = "VmRSS") -> int:
        """``VmRSS`` (now) or ``VmHWM`` (its highest so far)."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"/proc/{self.process.pid}/status has no {field}")


def flip(path: Path, offset: int, bit: int) -> None:
    """Flip one bit as rot does: size and times are as before. Done on the open file, so that a rename meanwhile hurts nobody."""
    fd = os.open(path, os.O_RDWR)
    try:
        state = os.fstat(fd)
        byte = os.pread(fd, 1, offset)[0]
        os.pwrite(fd, bytes([byte ^ (1 << bit)]), offset)
        os.utime(fd, ns=(state.st_atime_ns, state.st_mtime_ns))
    finally:
        os.close(fd)
