"""Two Ray nodes on this machine, on 127.0.0.1, each with one processor; the second one can be killed."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

STORE_BYTES = 78 << 20
START_SECONDS = 120
_COMMAND = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=1"]
_COMMAND += [f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats", "--log-style=record"]


class Nodes:
    """The cluster. ``environment`` is for those who use it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        # A token of its own: what Ray finds in the home folder, or writes there, is for others.
        self.environment = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self._environment = {**environment, **self.environment, "PYTHONWARNINGS": "ignore"}
        self._folder = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp")  # a socket's path may have 107 bytes
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        port = self.address.rpartition(":")[2]
        self.head = self._start("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self._folder.name}")
        self.environment["RAY_ADDRESS"] = self.address
        try:
            self.second = self._start(f"--address={self.address}")
        except BaseException:
            _kill(self.head)
            raise

    def _start(self, *words: str) -> subprocess.Popen[str]:
        log = open(Path(self._folder.name, f"start{len(words)}.log"), "w+")  # noqa: SIM115 - as long as the node
        process = subprocess.Popen([*_COMMAND, *words], env=self._environment, stdout=log, stderr=subprocess.STDOUT, text=True)
        for _ in range(START_SECONDS * 10):
            if "Ray runtime started" in Path(log.name).read_text():
                log.close()
                return process
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
                break
        told = Path(log.name).read_text()[-3000:]
        log.close()
        _kill(process)
        raise AssertionError(f"a Ray node did not start: {told}")

    def kill_second(self) -> int:
        """SIGKILL to all of the second node's processes, its workers included; how many there were."""
        return _kill(self.second)

    def close(self) -> None:
        """End everything, at once."""
        for process in (self.second, self.head):
            _kill(process)
        self._folder.cleanup()


@contextmanager
def ray_nodes(environment: Mapping[str, str]) -> Iterator[Nodes]:
    """Two nodes, for as long as the context lasts."""
    nodes = Nodes(environment)
    try:
        yield nodes
    finally:
        nodes.close()


def _kill(process: subprocess.Popen[str]) -> int:
    pids = [process.pid, *below(process.pid)] if process.poll() is None else []
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    return len(pids)


def below(pid: int) -> list[int]:
    """Process ids of what a process started, and what those did."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found += [int(stat.parent.name), *below(int(stat.parent.name))]
    return found
