"""A process that verifies files for the kernel gate: one JSON line per file on its socket, one back. ``python -m`` runs it.

It is a process of its own so that a disk that does not answer, or a fault in the verification, never stops the one that answers the kernel.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from dataclasses import asdict
from typing import Any

from bitward_agent.findings import Verdict
from bitward_agent.gate.check import check_file
from bitward_agent.gate.facts import GateVerdict
from bitward_agent.gate.file_systems import identity_at
from bitward_agent.gate.identity import FileIdentity
from bitward_agent.gate.kernel.facts import Key
from bitward_formats.frozen import dataclass

LINE_LIMIT = 65_536


@dataclass(frozen=True, slots=True)
class Task:
    """A file to verify: which inode, under which path, by which sidecar, and how."""

    key: Key
    path: str
    sidecar: str
    max_age_seconds: float
    heal: bool
    jobs: int | None

    def line(self) -> bytes:
        """As it is sent."""
        return json.dumps(asdict(self)).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of it. ``when_ns``: when the reading began, by the wall's clock. ``file``: the identity of what was read, if it was steady;
    ``sidecar``: that of the sidecar before the file was read. ``writes_show``: whoever writes to the file from then on moves its times."""

    key: Key
    verdict: Verdict
    evidence: str
    when_ns: int
    healed: bool
    message: str
    seconds: float
    file: FileIdentity | None
    sidecar: FileIdentity | None
    writes_show: bool = False

    def line(self) -> bytes:
        """As it is sent."""
        return json.dumps(asdict(self)).encode() + b"\n"


def read_finding(line: bytes) -> Finding:
    """A finding as it was sent by one of our own processes."""
    found: dict[str, Any] = json.loads(line)
    found["key"] = tuple(found["key"])
    found["verdict"] = Verdict(found["verdict"])
    for name in ("file", "sidecar"):
        found[name] = FileIdentity(**found[name]) if found[name] else None
    return Finding(**found)


def verify(task: Task) -> Finding:
    """Do one task."""
    sidecar = identity_at(task.sidecar)
    try:
        found = check_file(
            task.path,
            max_age_seconds=task.max_age_seconds,
            heal=task.heal,
            sidecar=task.sidecar,
            of_inode=task.key,
            jobs=task.jobs,
        )
    except Exception as error:  # noqa: BLE001 - whatever a file does to the verification, the gate must say something
        return Finding(task.key, Verdict.UNVERIFIABLE, "none", 0, False, f"{type(error).__name__}: {error}"[:1000], 0.0, None, sidecar)
    if found.healed:
        sidecar = identity_at(task.sidecar)
    what = (found.verdict, found.evidence, found.when_ns, found.healed, _told(found), found.seconds)
    return Finding(task.key, *what, found.identity, sidecar, found.writes_show)


def _told(found: GateVerdict) -> str:
    """What is wrong, in few words."""
    damage = found.file.damaged_blocks if found.file is not None else 0
    words = [f"{damage} damaged blocks"] if damage else []
    return "; ".join([*words, *([found.message] if found.message and not found.message.startswith("not remembered") else [])])[:2000]


def main(fd: int) -> None:
    """Serve until the other end of the socket is closed."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that holds the gate
    channel = socket.socket(fileno=fd)
    with channel.makefile("rb") as lines:
        while line := lines.readline(LINE_LIMIT):
            words: dict[str, Any] = json.loads(line)
            words["key"] = tuple(words["key"])
            channel.sendall(verify(Task(**words)).line())


if __name__ == "__main__":
    main(int(sys.argv[1]))
    os._exit(0)
