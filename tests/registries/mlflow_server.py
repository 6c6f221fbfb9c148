"""A real MLflow server on this machine: SQLite behind, artefacts in a folder, its own process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cli.command_line import ROOTS

START_LIMIT_SECONDS = 240


@dataclass(frozen=True)
class Server:
    """``artifacts`` is the folder of its store."""

    uri: str
    artifacts: Path

    def stored(self, pattern: str) -> Path:
        """The one stored file that matches."""
        (found,) = self.artifacts.rglob(pattern)
        return found


def quiet_environment(**more: str) -> dict[str, str]:
    """For processes that use MLflow: nothing is reported to anybody, and nothing is tried for minutes."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*ROOTS, *sys.path]),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "GIT_PYTHON_REFRESH": "quiet",
    } | more


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    """A server over a new registry in ``folder``, stopped at the end."""
    port = _free_port()
    artifacts = folder / "artifacts"
    artifacts.mkdir()
    options = ["--backend-store-uri", f"sqlite:///{folder}/registry.db", "--artifacts-destination", str(artifacts)]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
            stdout=log,
            stderr=log,
            env=quiet_environment(),
            cwd=folder,
            start_new_session=True,
        )
        try:
            _wait(process, f"http://127.0.0.1:{port}/health", folder / "server.log")
            yield Server(f"http://127.0.0.1:{port}", artifacts)
        finally:
            os.killpg(process.pid, signal.SIGTERM)  # the process group that was just made for it
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait(process: subprocess.Popen[bytes], health: str, log: Path) -> None:
    until = time.monotonic() + START_LIMIT_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(health, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"the MLflow server does not answer:\n{log.read_text(errors='replace')[-3000:]}")
