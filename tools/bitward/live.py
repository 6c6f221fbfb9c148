"""Verifying and repairing what a running process has mapped: which files are meant, and the report."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace

from bitward.targets import VERDICT_OF_CODE, PathLike, targets
from bitward_agent.errors import InputError, UnreadableError
from bitward_agent.findings import (
    ExitCode,
    FileRepair,
    FileVerification,
    ProgressSink,
    RepairReport,
    SidecarReport,
    SidecarState,
    Verdict,
    VerifyReport,
)
from bitward_agent.live.files import LiveFile, find_live_files, match_live_files
from bitward_agent.live.memory import ProcessMemory
from bitward_agent.live.run import LiveRequest, repair_live_file, verify_live_file
from bitward_agent.verify import FlipBudget, tensor_filter
from bitward_formats.frozen import dataclass


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of a process. ``paths`` may be empty: then every mapped file that has a sidecar is meant."""

    pid: int
    paths: tuple[PathLike, ...]
    sidecar_dir: str | None = None
    tensor: str | None = None
    dry_run: bool = False
    jobs: int | None = None
    progress: ProgressSink | None = None

    def request(self) -> LiveRequest:
        wanted = tensor_filter(self.tensor)
        return LiveRequest(bool(self.paths), self.dry_run, time.time_ns(), self.jobs, self.progress, wanted)


def _chosen(memory: ProcessMemory, asked: Asked) -> tuple[tuple[LiveFile, ...], tuple[str, ...]]:
    """The mapped files that are meant, and the names of paths of which nothing is mapped."""
    if asked.pid == os.getpid():
        raise InputError("a process cannot look at itself so: use bitward.guard")
    if not asked.paths:
        found = find_live_files(memory, asked.sidecar_dir)
        if not found:
            raise UnreadableError(f"process {asked.pid} maps no file that has a sidecar; weights that it has copied are out of reach")
        return found, ()
    chosen: list[LiveFile] = []
    absent: list[str] = []
    for target in targets(asked.paths, asked.sidecar_dir):
        found, missing = match_live_files(memory, [(member.path, member.sidecar, member.name) for member in target.members])
        chosen += found
        if target.unit is None:
            absent += [name for _, _, name in missing]
        elif not found:
            absent.append(target.path)
    return tuple(chosen), tuple(absent)


def _not_mapped(name: str, pid: int) -> FileVerification:
    told = f"process {pid} does not map it; weights that it has copied are out of reach"
    return FileVerification(name, Verdict.UNVERIFIABLE, 0, "", "", False, SidecarReport("", SidecarState.MISSING), message=told)


def verify_live(asked: Asked) -> VerifyReport:
    """Verify what a process has mapped; see :func:`bitward.api.verify`.

    Raises:
        ProcessError: there is no such process, or no right to its memory.
    """
    started = time.monotonic()
    files: list[FileVerification] = []
    budget = FlipBudget()
    with ProcessMemory(asked.pid) as memory:
        chosen, absent = _chosen(memory, asked)
        for live in chosen:
            files += verify_live_file(memory, live, asked.request(), budget)
    files += [_not_mapped(name, asked.pid) for name in absent]
    code = ExitCode.worst(file.exit_code for file in files)
    size, seconds = sum(file.bytes for file in files), time.monotonic() - started
    return VerifyReport("bitward.verify/1", VERDICT_OF_CODE[code], size, seconds, tuple(files), exit_code=code)


def repair_live(asked: Asked) -> RepairReport:
    """Put right what a process has mapped; see :func:`bitward.api.repair`.

    Raises:
        ProcessError: there is no such process, or no right to its memory.
    """
    started = time.monotonic()
    files: list[FileRepair] = []
    with ProcessMemory(asked.pid, write=not asked.dry_run) as memory:
        chosen, absent = _chosen(memory, asked)
        for live in chosen:
            files += repair_live_file(memory, live, asked.request())
    for name in absent:
        told = _not_mapped(name, asked.pid)
        empty = FileRepair(*(name, told.verdict, 0, "", "", False, told.sidecar, 0, 0), message=told.message)
        files.append(replace(empty, exit_code=ExitCode.CANNOT_TELL))
    code = ExitCode.worst(file.exit_code for file in files)
    return RepairReport(
        "bitward.repair/1",
        VERDICT_OF_CODE[code],
        sum(file.bytes for file in files),
        time.monotonic() - started,
        sum(file.repaired for file in files),
        sum(file.remaining for file in files),
        tuple(files),
        exit_code=code,
    )


def no_other(options: Sequence[tuple[str, bool]]) -> None:
    """Refuse options that mean nothing for a process. Raises InputError."""
    for name, given in options:
        if given:
            raise InputError(f"{name} and --live do not go together")
