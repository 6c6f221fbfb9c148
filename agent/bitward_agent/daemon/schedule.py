"""What to do next, decided from values alone: no file is touched, no clock read.

Order: what somebody asked for; files that changed; new files; then the oldest verified, once it is due.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum

from bitward_agent.daemon.config import AgentConfig
from bitward_agent.daemon.facts import Expectation, UnitRecord
from bitward_formats.frozen import dataclass


class JobKind(StrEnum):
    PROTECT = "protect"
    SCRUB = "scrub"
    JUDGE_CHANGE = "judge-change"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class Job:
    """``path`` is empty for WAIT. ``until_ns``: when there is something to do again, at the latest. ``reason`` is for people."""

    kind: JobKind
    path: str = ""
    until_ns: int = 0
    reason: str = ""
    urgent: bool = False


def next_job(
    records: Iterable[UnitRecord],
    config: AgentConfig,
    now_ns: int,
    *,
    changed: Collection[str] = (),
    requested: Sequence[str] = (),
    expectations: Sequence[Expectation] = (),
    pause_reasons: Sequence[str] = (),
    busy: Collection[str] = (),
) -> Job:
    """The next job.

    Args:
        changed: paths whose size, time or inode are no longer those of their record, and whose writer is done.
        requested: paths to scrub now, in this order, paused or not.
        expectations: announced rewrites; these paths are left alone.
        pause_reasons: why scrubbing pauses, empty if it does not. Changes and new files are looked at all the same.
        busy: paths to leave alone for now: their writers are not done.
    """
    raise NotImplementedError


def due_ns(record: UnitRecord, config: AgentConfig) -> int:
    """When a protected file is to be verified again."""
    raise NotImplementedError


def after_failure(record: UnitRecord, now_ns: int, message: str) -> UnitRecord:
    """The record after an attempt that came to nothing: the next one after twice the time, from a minute up to a day."""
    raise NotImplementedError


def after_success(record: UnitRecord) -> UnitRecord:
    """The record with its failures forgotten."""
    raise NotImplementedError
