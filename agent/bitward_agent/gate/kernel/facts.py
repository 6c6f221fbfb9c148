"""What the kernel gate's parts tell each other, as frozen values, and its decisions. Pure."""

from __future__ import annotations

from enum import StrEnum

from bitward_agent.findings import Verdict
from bitward_agent.gate.facts import DEFAULT_MAX_AGE_SECONDS, Policy
from bitward_formats.frozen import dataclass

Key = tuple[int, int]
"""Device and inode."""


class Fail(StrEnum):
    """What becomes of opens about which nothing can be said in time: the gate is overloaded, or its parts died."""

    OPEN = "open"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class WatchRequest:
    """What the kernel gate is to do.

    ``timeout_seconds``: longest that an open waits for its verdict. ``waiting_limit``: most opens that wait; those beyond it, and those
    that waited too long, end as ``fail`` says. ``unprotected_pass``: files without a sidecar may be opened.
    """

    folders: tuple[str, ...]
    policy: Policy = Policy.ENFORCE
    fail: Fail = Fail.CLOSED
    max_age_seconds: float = DEFAULT_MAX_AGE_SECONDS
    timeout_seconds: float = 300.0
    waiting_limit: int = 4096
    unprotected_pass: bool = True
    sidecar_dir: str | None = None
    verifiers: int = 2
    jobs: int | None = None


@dataclass(frozen=True, slots=True)
class GateEvent:
    """One thing that is told: ``event`` is a word for machines, the rest for people."""

    event: str
    path: str = ""
    process: int = 0
    program: str = ""
    verdict: str = ""
    message: str = ""
    seconds: float = 0.0


BAD_VERDICT_SECONDS = 60.0
"""How long a bad verdict stands while nothing is touched. Not for long: a wrong page in memory may be read anew from a right disk."""


def may_open(verdict: Verdict, policy: Policy) -> bool:
    """Whether a file with this verdict may be opened."""
    return verdict is Verdict.INTACT or policy is Policy.WARN
