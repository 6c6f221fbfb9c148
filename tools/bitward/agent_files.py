"""One path as the agent's configuration has it: which watch, which sidecar, which policy. For the units that verify and heal by name.

Verifying takes any path; healing only what the configuration lets heal, since whoever may start the unit may name any file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

from bitward.repairing import Request
from bitward.targets import VERDICT_OF_CODE
from bitward_agent.daemon.config import DEFAULT_CONFIG, AgentConfig, OnDamage, WatchConfig, read_config
from bitward_agent.daemon.reconcile import Found, look, walk
from bitward_agent.errors import InputError
from bitward_agent.findings import ExitCode, FileVerification, RepairReport, SidecarReport, SidecarState, UnitReport, Verdict, VerifyReport
from bitward_agent.io import resolve, sidecar_path
from bitward_agent.repair import RepairRequest, repair_file
from bitward_agent.sources.opening import Places
from bitward_agent.units import check_unit, sidecar_base
from bitward_agent.verify import FlipBudget, verify_file


def configured(path: str | None) -> AgentConfig | None:
    """The configuration at ``path``; without one the usual one, or None where there is none."""
    return read_config(path or DEFAULT_CONFIG) if path or os.path.exists(DEFAULT_CONFIG) else None


def verify_watched(config: AgentConfig | None, paths: Iterable[str], *, jobs: int | None = None) -> VerifyReport:
    """Verify files, and directories with all files of the watch below them, and with what their index misses.

    What no watch has is held against the sidecar beside it.
    """
    started = time.monotonic()
    budget = FlipBudget()
    files: list[FileVerification] = []
    units: list[UnitReport] = []
    for path in paths:
        members = list(_members(config, resolve(path)))
        units += _unit(config, resolve(path))
        files += [verify_file(file, sidecar, jobs=jobs, budget=budget) for file, sidecar in members]
        if not members:
            files.append(_nothing(path))
    code = ExitCode.worst([*(file.exit_code for file in files), *(unit.exit_code for unit in units)])
    size, seconds = sum(file.bytes for file in files), time.monotonic() - started
    return VerifyReport("bitward.verify/1", VERDICT_OF_CODE[code], size, seconds, tuple(files), tuple(units), code)


def heal_watched(config: AgentConfig, path: str, *, jobs: int | None = None) -> RepairReport:
    """Repair one file, if its watch says ``on_damage = "heal"`` and it was not modified.

    Raises:
        InputError: the configuration does not let this file heal.
    """
    started = time.monotonic()
    watch, found = _healable(config, path)
    with Places(watch.sources, Request().limits) as places:
        opened = places.of_file(found.path, found.relative, alone=False)
        try:
            before = verify_file(found.path, found.sidecar, jobs=jobs)
            wanted = RepairRequest(tuple(opened), before.modified, False, time.time_ns())
            done = repair_file(found.path, found.sidecar, wanted, jobs=jobs)
        finally:
            for source in opened:
                source.close()
    if before.modified and before.verdict is Verdict.DAMAGED:
        told = "its size or time is not as it was when it was protected: 'bitward repair', asked for by a person, puts it back"
        done = replace(done, message=told, exit_code=ExitCode.worst((done.exit_code, ExitCode.REPAIRABLE)))
    verdict = VERDICT_OF_CODE[done.exit_code]
    seconds = time.monotonic() - started
    return RepairReport("bitward.repair/1", verdict, done.bytes, seconds, done.repaired, done.remaining, (done,), (), done.exit_code)


def _healable(config: AgentConfig, path: str) -> tuple[WatchConfig, Found]:
    """The watch of a file and what it has there, if the file may be healed."""
    if not os.path.isabs(path):
        raise InputError(f"{path}: must be an absolute path")
    watch = config.watch_of(path)
    if watch is None:
        raise InputError(f"{path}: no [[watch]] of the configuration has this file")
    if watch.on_damage is not OnDamage.HEAL:
        raise InputError(f'{path}: its [[watch]] says on_damage = "{watch.on_damage}"')
    if resolve(path) != path:
        raise InputError(f"{path}: leads over a link; only files that lie where their name says are healed")
    found = look(watch, path)
    if found is None or found.path != path:
        raise InputError(f"{path}: is no file that its [[watch]] includes")
    return watch, found


def _members(config: AgentConfig | None, path: str) -> Iterator[tuple[str, str]]:
    """(file, sidecar) of a path."""
    watch = config.watch_of(path) if config is not None else None
    if os.path.isdir(path):
        below = path.rstrip("/") + "/"
        watch = watch or WatchConfig(path)
        yield from ((one.path, one.sidecar) for one in walk(watch).found if one.path.startswith(below))
        return
    found = look(watch, path) if watch is not None else None
    yield (found.path, found.sidecar) if found is not None else (path, sidecar_path(path))


def _unit(config: AgentConfig | None, path: str) -> list[UnitReport]:
    """What a directory's index says of files that are gone. Where there is no index, files are all there is to verify."""
    if not os.path.isdir(path):
        return []
    watch = (config.watch_of(path) if config is not None else None) or WatchConfig(path)
    base = sidecar_base(watch.path, watch.sidecar_dir)
    sidecar_dir = os.path.dirname(os.path.normpath(os.path.join(base, os.path.relpath(path, watch.path)))) if watch.sidecar_dir else None
    report = check_unit(path, sidecar_dir).report
    if report.state is SidecarState.MISSING:
        return []
    # What the watch leaves out is nobody's to protect, and what it has is verified by its own sidecar.
    return [replace(report, unprotected=())]


def _nothing(path: str) -> FileVerification:
    """What there is to say of a directory without a file to verify: a gate must not open for it."""
    missing = SidecarReport("", SidecarState.MISSING)
    return FileVerification(path, Verdict.UNVERIFIABLE, 0, "", "", False, missing, message="there is no file to verify")
