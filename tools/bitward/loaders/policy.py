"""Which policy holds where: gates nest, and what no gate of its own context covers is under the strictest of all that are in force."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum

from bitward_agent.errors import InputError
from bitward_formats.frozen import dataclass

TOLD_LIMIT = 10_000
"""Most files and findings that one gate remembers; all are told."""


class Policy(StrEnum):
    """What becomes of a model that is not intact.

    ``warn``: told and loaded. ``heal``: put right, or refused; what has no sidecar is told and loaded. ``enforce``: refused, and so is
    what has no sidecar. Not that of ``bitward gate`` (``gate.facts.Policy``), which cannot be off, and which heals nothing unprotected: a
    command line names its models, and a library opens whatever it comes upon.
    """

    OFF = "off"
    WARN = "warn"
    HEAL = "heal"
    ENFORCE = "enforce"

    @property
    def strictness(self) -> int:
        return list(Policy).index(self)


def policy_of(text: str) -> Policy:
    """Raises InputError: no policy is called so."""
    try:
        return Policy(text)
    except ValueError:
        raise InputError(f"{text!r} is no policy: {', '.join(Policy)}") from None


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a gate told: ``kind`` is damaged, changed, healed or unverifiable; ``loader`` what was about to load the file."""

    kind: str
    path: str
    loader: str
    message: str


class Gate:
    """A policy in force, and what it found so far. Safe to use from any thread."""

    def __init__(self, policy: Policy, sidecar_dir: str | None = None) -> None:
        self.policy, self.sidecar_dir = policy, sidecar_dir
        self.before: Gate | None = None
        self.is_lifted = False
        self._lock = threading.Lock()
        self._verified: dict[str, int] = {}
        self._findings: list[Finding] = []

    @property
    def verified(self) -> dict[str, int]:
        """Bytes of each file that were handed out after they had been found right, healed ones included."""
        with self._lock:
            return dict(self._verified)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Everything that was told or refused."""
        with self._lock:
            return tuple(self._findings)

    def note_verified(self, path: str, byte_count: int) -> None:
        """Count bytes that were handed out as right."""
        with self._lock:
            if path in self._verified or len(self._verified) < TOLD_LIMIT:
                self._verified[path] = self._verified.get(path, 0) + byte_count

    def note(self, finding: Finding) -> None:
        """Remember a finding."""
        with self._lock:
            if len(self._findings) < TOLD_LIMIT:
                self._findings.append(finding)


_own: ContextVar[Gate | None] = ContextVar("bitward_gate", default=None)
_in_force: list[Gate] = []
_lock = threading.Lock()


def current_gate() -> Gate | None:
    """The innermost gate of this thread or task. Where it has none: the strictest that is in force anywhere in the process, or None.

    So the threads that a loader starts are bound as well. A task may outlive the gate that it was started in: then the outer one counts.
    """
    own = _own.get()
    while own is not None and own.is_lifted:
        own = own.before
    if own is not None:
        return own
    with _lock:
        return max(_in_force, key=lambda gate: gate.policy.strictness, default=None)


def put_in_force(gate: Gate) -> None:
    """Make a gate the innermost of this context."""
    with _lock:
        _in_force.append(gate)
    gate.before = _own.get()
    _own.set(gate)


def put_in_force_everywhere(gate: Gate) -> None:
    """A gate for all threads and tasks that have none of their own."""
    with _lock:
        _in_force.append(gate)


def lift(gate: Gate) -> None:
    """End a gate, wherever it is."""
    gate.is_lifted = True
    with _lock:
        if gate in _in_force:
            _in_force.remove(gate)
    if _own.get() is gate:
        _own.set(gate.before)


@contextmanager
def gated_off() -> Iterator[None]:
    """No hook acts in this context: what is loaded has passed a gate already, or may be loaded as it is."""
    before = _own.get()
    _own.set(_OFF)
    try:
        yield
    finally:
        _own.set(before)


_OFF = Gate(Policy.OFF)
