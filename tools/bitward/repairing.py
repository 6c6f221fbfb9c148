"""Repairing files and directories: which sources each file has, files that are gone, and the report."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import field, replace

from bitward.targets import VERDICT_OF_CODE, PathLike, Target, roots_of, targets
from bitward_agent.durable import make_empty, remove
from bitward_agent.errors import BitwardError, WriteError
from bitward_agent.findings import ExitCode, FileRepair, ProgressSink, RepairReport, UnitReport, Verdict
from bitward_agent.repair import RepairRequest, repair_file
from bitward_agent.sources.limits import Limits
from bitward_agent.sources.opening import Places
from bitward_agent.units import Member, list_unit
from bitward_formats.frozen import dataclass


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for. ``sources`` are paths and URLs, in order."""

    sources: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    dry_run: bool = False
    best_effort: bool = False
    jobs: int | None = None
    progress: ProgressSink | None = None


def repair_paths(paths: Iterable[PathLike], sidecar_dir: str | None, request: Request) -> RepairReport:
    """Repair files, and directories file by file.

    Raises:
        InputError: a source makes no sense, or a copy on this machine lacks a file that was named. Then nothing was written.
        MissingExtraError: a source needs an extra that is not installed.
    """
    started = time.monotonic()
    files: list[FileRepair] = []
    units: list[UnitReport] = []
    with Places(request.sources, request.limits) as places:
        asked = list(targets(paths, sidecar_dir, heal=not request.dry_run))
        for target in asked:  # a source that lacks a file is told before anything is written
            if target.unit is None:
                for source in places.of_file(target.members[0].path, target.members[0].relative, alone=True):
                    source.close()
        for target in asked:
            found = [_repair_member(target, member, places, request) for member in target.members]
            files += found
            if target.unit is not None:
                units.append(replace(target.unit.report_on(roots_of(target, found)), missing=_still_missing(target)))
    code = ExitCode.worst([file.exit_code for file in files] + [unit.exit_code for unit in units])
    return RepairReport(
        "bitward.repair/1",
        VERDICT_OF_CODE[code],
        sum(file.bytes for file in files),
        time.monotonic() - started,
        sum(file.repaired for file in files),
        sum(file.remaining for file in files),
        tuple(files),
        tuple(units),
        code,
    )


def _repair_member(target: Target, member: Member, places: Places, request: Request) -> FileRepair:
    opened = places.of_file(member.path, member.relative, alone=target.unit is None)
    try:
        made = target.is_missing(member) and not request.dry_run and bool(opened) and _make_room(member)
        wanted = RepairRequest(tuple(opened), request.dry_run, request.best_effort, time.time_ns())
        done = repair_file(member.path, member.sidecar, wanted, jobs=request.jobs, progress=request.progress)
        if made and done.verdict is not Verdict.INTACT:
            _clear_room(member)
        return done
    finally:
        for source in opened:
            source.close()


def _still_missing(target: Target) -> tuple[str, ...]:
    """The files that the directory's index knows and that did not come back. A link in a file's place is not the file."""
    if target.unit is None or not target.unit.missing:
        return ()
    here = {member.relative for member in list_unit(target.path).members}
    return tuple(member.relative for member in target.unit.missing if member.relative not in here)


def _make_room(member: Member) -> bool:
    """Make an empty file in the place of one that is gone: a file torn to nothing, which a source can fill. Whether that was done."""
    try:
        if not os.path.lexists(member.sidecar):
            return False
        make_empty(member.path, mode=os.stat(member.sidecar).st_mode & 0o666)
    except (WriteError, OSError):
        return False  # the repair, which cannot open it either, says why
    return True


def _clear_room(member: Member) -> None:
    """Take the empty file away again if nothing came into it."""
    with suppress(OSError, BitwardError):
        if os.path.getsize(member.path) == 0:
            remove(member.path)
