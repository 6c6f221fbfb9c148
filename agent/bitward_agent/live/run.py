"""Verifying and repairing what a process has mapped of one file: each of its views, and for a repair first the file itself."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace

from bitward_agent.errors import BitwardError, ProcessError
from bitward_agent.findings import (
    FLIPS_LISTED_LIMIT,
    Damage,
    ExitCode,
    FileRepair,
    FileVerification,
    ProgressSink,
    SidecarReport,
    SidecarState,
    Verdict,
    Write,
)
from bitward_agent.live.check import LiveBlock, LiveDescriber, ViewCheck, Wanted, verdict_of, verify_view
from bitward_agent.live.files import LiveFile, is_deleted, is_named, may_write, open_live_pair
from bitward_agent.live.heal import heal_block, heal_file_block, is_still_mapped, write_of
from bitward_agent.live.memory import ProcessMemory
from bitward_agent.repair import RepairRequest, repair_file
from bitward_agent.verify import FlipBudget, OpenPair, unverifiable
from bitward_formats.errors import FormatError
from bitward_formats.frozen import dataclass

_BLOCKS_BETWEEN_LOOKS = 256
"""Blocks that are healed before the process's maps are looked at again."""


@dataclass(frozen=True, slots=True)
class LiveRequest:
    """What was asked for. ``named``: a person named the file; else the process alone says that it is one to be written to."""

    named: bool
    dry_run: bool = False
    now_ns: int = 0
    jobs: int | None = None
    progress: ProgressSink | None = None
    wanted: Wanted | None = None


def verify_live_file(memory: ProcessMemory, live: LiveFile, request: LiveRequest, budget: FlipBudget) -> Iterator[FileVerification]:
    """One report for each view of the file.

    Raises:
        ProcessError: no right to the memory, or the process ended.
    """
    try:
        pair = open_live_pair(memory, live)
    except ProcessError:
        raise
    except (BitwardError, FormatError, OSError) as error:
        yield _cannot_tell(live, error)
        return
    try:
        for view in live.mapped.views:
            check = ViewCheck(pair, memory, view, request.wanted)
            if not any(check.is_wanted(span) for span in pair.sidecar.layout.spans):
                yield unverifiable(live.shown, pair.state.size, pair.sidecar_report(), "nothing of what was asked for is mapped there")
                continue
            check.run(request.jobs, request.progress)
            found = verify_view(check, live.shown, budget, deleted=is_deleted(pair))
            if pair.file.state() != pair.state:
                moves = "the file changes while it is read: verify it when its writer is done"
                found = replace(unverifiable(live.shown, pair.state.size, pair.sidecar_report(), moves), live=found.live)
            yield found
    finally:
        pair.close()


def _cannot_tell(live: LiveFile, error: Exception) -> FileVerification:
    if not os.path.lexists(live.sidecar):
        return unverifiable(live.shown, 0, SidecarReport("", SidecarState.MISSING), "no sidecar: 'bitward protect' makes one")
    sidecar = SidecarReport(live.sidecar, SidecarState.INTACT)
    told = str(error).removeprefix(f"{live.path}: ")
    if isinstance(error, FormatError):
        told = f"sidecar cannot be used: {error}"
        sidecar = SidecarReport(live.sidecar, SidecarState.DAMAGED, 0, str(error))
    return unverifiable(live.shown, 0, sidecar, told)


def repair_live_file(memory: ProcessMemory, live: LiveFile, request: LiveRequest) -> Iterator[FileRepair]:
    """Repair the file if it is wrong itself, as all who map it see that; then what is wrong in the process's own pages.

    Raises:
        ProcessError: no right to the memory, or the process ended.
    """
    try:
        pair = open_live_pair(memory, live)
    except ProcessError:
        raise
    except (BitwardError, FormatError, OSError) as error:
        told = _cannot_tell(live, error)
        yield FileRepair(*(live.shown, told.verdict, 0, "", "", False, told.sidecar, 0, 0), message=told.message, exit_code=told.exit_code)
        return
    try:
        repaired = _repair_named_file(pair, memory, live, request)
        if repaired is not None:
            yield repaired
            pair.close()
            pair = open_live_pair(memory, live)
        for view in live.mapped.views:
            file_is_told = request.dry_run and repaired is not None
            if view.shared and file_is_told:
                continue
            check = ViewCheck(pair, memory, view, request.wanted)
            check.run(request.jobs, request.progress)
            yield _ViewRepair(check, live, request, own_only=file_is_told).run()
    finally:
        pair.close()


def _repair_named_file(pair: OpenPair, memory: ProcessMemory, live: LiveFile, request: LiveRequest) -> FileRepair | None:
    """Repair the file by its name, journalled, if it is wrong where it is mapped; ``None`` if it is not, or cannot be reached so."""
    if not is_named(live, pair) or (not request.named and may_write(pair)):
        return None
    wrong = False
    for view in live.mapped.views:
        check = ViewCheck(pair, memory, view, request.wanted)
        check.run(request.jobs, request.progress)
        wrong = wrong or check.is_rewritten or any(one.correct is None or (one.in_file != one.correct).any() for one in check.damaged())
    if not wrong:
        return None
    done = repair_file(live.path, live.sidecar, RepairRequest((), request.dry_run, now_ns=request.now_ns), jobs=request.jobs)
    return replace(done, path=live.shown)


class _ViewRepair:
    """Heals one view that was run, block by block; with ``own_only`` not what the file's own repair is about."""

    def __init__(self, check: ViewCheck, live: LiveFile, request: LiveRequest, *, own_only: bool) -> None:
        self.own_only = own_only
        self.check, self.live, self.request = check, live, request
        self.writes: list[Write] = []
        self.remaining: list[Damage] = []
        self.notes: list[str] = []
        self.found = self.repaired = 0
        self._file_fd = -1

    def run(self) -> FileRepair:
        describe = LiveDescriber(self.check, FlipBudget(FLIPS_LISTED_LIMIT))
        try:
            if self.check.view.shared and is_deleted(self.check.pair) and not self.request.dry_run:
                self._open_deleted()
            for one in self.check.damaged():
                if self.own_only and not one.is_own:
                    continue
                finding = describe(one)
                healed = False
                if finding.repairable:
                    self.writes.append(write_of(one, self.live.path))
                    healed = not self.request.dry_run and self._heal(one)
                if not healed:
                    self.remaining += [] if self.request.dry_run and finding.repairable else [finding]
                self.found += 1
                self.repaired += healed
        finally:
            describe.close()
            if self._file_fd >= 0:
                os.close(self._file_fd)
        return self._report()

    def _open_deleted(self) -> None:
        with contextlib.suppress(OSError):
            self._file_fd = self.check.memory.mapped_fd(self.live.mapped.mapping, os.O_RDWR)

    def _heal(self, one: LiveBlock) -> bool:
        try:
            if self.found % _BLOCKS_BETWEEN_LOOKS == 0 and not is_still_mapped(self.check):
                raise ProcessError(f"process {self.check.memory.pid}: does not map it there any more")
            if not self.check.view.shared:
                return heal_block(self.check, one)
            if self._file_fd >= 0:
                return heal_file_block(self.check, one, self._file_fd)
            self._note(may_write(self.check.pair) or "its pages are those of the file, which has not been repaired")
        except ProcessError as error:
            self._note(str(error))
        return False

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _report(self) -> FileRepair:
        check, pair = self.check, self.check.pair
        verdict, message = verdict_of(check, ())
        left = self.found - self.repaired
        code = ExitCode.CHANGED if verdict is Verdict.CHANGED else ExitCode.OK
        if left:
            verdict = Verdict.DAMAGED
            code = ExitCode.REPAIRABLE if self.request.dry_run and not self.remaining else ExitCode.NOT_REPAIRABLE
        block = pair.sidecar.superblock
        report = check.report(is_deleted(pair))
        return FileRepair(
            *(self.live.shown, verdict, report.mapped_bytes, block.root.hex(), block.origin_label, pair.modified, pair.sidecar_report()),
            repaired=self.repaired,
            remaining=left,
            writes=tuple(self.writes[:FLIPS_LISTED_LIMIT]),
            damage=tuple(self.remaining[:FLIPS_LISTED_LIMIT]),
            dry_run=self.request.dry_run,
            message="; ".join(filter(None, [message, *self.notes])),
            exit_code=code,
            live=report,
        )
