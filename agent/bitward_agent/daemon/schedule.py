"""What to do next, decided from values alone: no file is touched, no clock read.

Order: what somebody asked for; files that changed; new files; then the oldest verified, once it is due.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from enum import StrEnum

from bitward_agent.daemon.config import AgentConfig, OnNew
from bitward_agent.daemon.facts import Expectation, UnitRecord
from bitward_formats.frozen import dataclass

_SECOND_NS = 1_000_000_000
SHORTEST_WAIT_NS = _SECOND_NS // 2
LONGEST_WAIT_NS = 3600 * _SECOND_NS
FIRST_RETRY_NS = 60 * _SECOND_NS
LONGEST_RETRY_NS = 86_400 * _SECOND_NS


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
    known = {record.path: record for record in records}

    def may(path: str) -> bool:
        return path not in busy and not any(_lies_in(path, one.path) and now_ns < one.until_ns for one in expectations)

    for path in requested:
        if path in known and known[path].root and may(path):
            return Job(JobKind.SCRUB, path, reason="asked for", urgent=True)
    ready = sorted(record.path for record in known.values() if record.retry_ns <= now_ns and may(record.path))
    changed_ones = set(changed)
    for path in ready:
        if path in changed_ones and known[path].root:
            return Job(JobKind.JUDGE_CHANGE, path, reason="it changed")
    for path in ready:
        if not known[path].root and _is_to_be_protected(known[path], config):
            return Job(JobKind.PROTECT, path, reason="new")
    protected = [known[path] for path in ready if known[path].root]
    due = [record for record in protected if due_ns(record, config) <= now_ns]
    if due and not pause_reasons:
        # What is half done comes first: else two files in turn might both start again and again.
        first = min(due, key=lambda one: (not one.suspect, not one.scrub_position_bytes, one.last_full_verify_ns, one.path))
        return Job(JobKind.SCRUB, first.path, reason="suspect" if first.suspect else "due")
    reason = "; ".join(pause_reasons) if due else "nothing is due"
    return Job(JobKind.WAIT, until_ns=_next_ns(known.values(), config, now_ns, expectations), reason=reason)


def _next_ns(records: Iterable[UnitRecord], config: AgentConfig, now_ns: int, expectations: Sequence[Expectation]) -> int:
    """When something becomes due, at most an hour away; soon if something is due and may not be done yet."""
    moments = [now_ns + LONGEST_WAIT_NS, *(one.until_ns for one in expectations)]
    moments += [max(due_ns(record, config), record.retry_ns) if record.root else record.retry_ns for record in records]
    later = [moment for moment in moments if moment > now_ns]
    return max(min(later), now_ns + SHORTEST_WAIT_NS)


def _is_to_be_protected(record: UnitRecord, config: AgentConfig) -> bool:
    watch = config.watch_of(record.path)
    return watch is not None and watch.on_new is OnNew.PROTECT


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def due_ns(record: UnitRecord, config: AgentConfig) -> int:
    """When a protected file is to be verified again;."""
    if record.suspect or record.scrub_position_bytes:
        return 0
    return record.last_full_verify_ns + int(config.scrub.every_seconds * _SECOND_NS) if record.last_full_verify_ns else 0


def after_failure(record: UnitRecord, now_ns: int, message: str) -> UnitRecord:
    """The record after an attempt that came to nothing: the next one after twice the time, from a minute up to a day."""
    failures = record.failures + 1
    delay_ns = min(FIRST_RETRY_NS << min(failures - 1, 20), LONGEST_RETRY_NS)
    return replace(record, failures=failures, retry_ns=now_ns + delay_ns, message=message)


def after_success(record: UnitRecord) -> UnitRecord:
    """The record with its failures forgotten."""
    return replace(record, failures=0, retry_ns=0)
