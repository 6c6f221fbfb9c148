"""Repairing one file in place: decide everything, then journal, write, sync, read back, verify, and only then forget the journal.

In place, so that processes which map the file are healed too. Nothing is written that a digest does not vouch for, unless best effort
is asked for.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

from bitward_agent.errors import BitwardError, BusyError, WriteError
from bitward_agent.findings import (
    FLIPS_LISTED_LIMIT,
    ExitCode,
    FileRepair,
    FileVerification,
    Progress,
    ProgressSink,
    SidecarReport,
    SidecarState,
    Verdict,
)
from bitward_agent.fixes import Decision, Fix, decisions
from bitward_agent.heal import heal_sidecar
from bitward_agent.io import DISK, Disk, OpenFile, drop_cache, journal_path, reason
from bitward_agent.journal import (
    UndoEntry,
    append_log,
    drop_journal,
    entry_for,
    log_path,
    read_journal,
    restore_mtime,
    undo,
    write_journal,
)
from bitward_agent.judge import DamageDescriber
from bitward_agent.locate import Locator
from bitward_agent.medium import UncachedReader
from bitward_agent.recovery import recover
from bitward_agent.rewrite import is_rewrite
from bitward_agent.scan import ScanResult, scan
from bitward_agent.sources import Source
from bitward_agent.sourcing import Sourcing
from bitward_agent.tally import BATCH_BYTES, Tally
from bitward_agent.verify import REPLACED_TOLD, FlipBudget, OpenPair, open_pair
from bitward_formats.errors import FormatError
from bitward_formats.frozen import dataclass
from bitward_formats.spans import BLOCK_LIMIT_BYTES


@dataclass(frozen=True, slots=True)
class RepairRequest:
    """What a person asked for, or, with ``only_unmodified``, the agent. ``now_ns`` stamps the log of repairs. ``of_inode``: device and
    inode that the path must lead to; another file that has its name is left as it is."""

    sources: tuple[Source, ...] = ()
    dry_run: bool = False
    best_effort: bool = False
    now_ns: int = 0
    only_unmodified: bool = False
    of_inode: tuple[int, int] | None = None


def repair_file(
    path: str,
    sidecar_path: str,
    request: RepairRequest,
    *,
    jobs: int | None = None,
    progress: ProgressSink | None = None,
    disk: Disk = DISK,
) -> FileRepair:
    """Repair one file and its sidecar as far as digests vouch for it.

    Every failure to read or write comes back as a value: verdict ``unverifiable``, exit code 3, with the reason; the
    file is then as it was, or an undo journal beside the sidecar puts it back at the next repair.
    """
    keep_in = None if request.dry_run else os.path.dirname(os.path.abspath(sidecar_path))
    sourcing = Sourcing(request.sources, path, keep_in=keep_in, progress=progress)
    try:
        done = _repair_rounds(path, sidecar_path, request, sourcing, jobs, progress, disk)
    finally:
        sourcing.close()
    return replace(done, sources=sourcing.report())


def _repair_rounds(
    path: str,
    sidecar_path: str,
    request: RepairRequest,
    sourcing: Sourcing,
    jobs: int | None,
    progress: ProgressSink | None,
    disk: Disk,
) -> FileRepair:
    """As many rounds as bring something; see :func:`repair_file`."""
    done = _repair_once(path, sidecar_path, request, sourcing, jobs, progress, disk)
    # Blocks that a source had are known now, and may be what parity lacked to restore the others.
    while sourcing and done.repaired and done.remaining and not done.dry_run:
        again = _repair_once(path, sidecar_path, request, sourcing, jobs, progress, disk)
        if not again.repaired:
            break
        writes = tuple(sorted((*done.writes, *again.writes), key=lambda one: one.offset))
        done = replace(again, repaired=done.repaired + again.repaired, writes=writes, modified=done.modified)
    return done


def _repair_once(
    path: str,
    sidecar_path: str,
    request: RepairRequest,
    sourcing: Sourcing,
    jobs: int | None,
    progress: ProgressSink | None,
    disk: Disk,
) -> FileRepair:
    """One round of a repair; see :func:`repair_file`."""
    try:
        pair = open_pair(path, sidecar_path, disk)
    except (BitwardError, OSError) as error:
        return _failed(path, str(error))
    if isinstance(pair, FileVerification):
        return _failed(path, pair.message, pair.sidecar, pair.bytes)
    try:
        if request.of_inode is not None and (pair.state.device, pair.state.inode) != request.of_inode:
            raise BusyError(f"{path}: {REPLACED_TOLD}")
        pair.file.lock()
        recovered = ""
        if not request.dry_run:
            recovered = recover(path, pair, disk)
        pair.state = pair.file.state()  # now that nobody else repairs it, and recovery is done
        if request.only_unmodified and pair.modified:
            raise BusyError(f"{path}: was modified since it was protected: only a person may have it repaired")
        return _Repair(path, pair, request, sourcing, jobs, progress, disk, recovered).run()
    except (BitwardError, FormatError) as error:
        return _failed(path, str(error), pair.sidecar_report(), pair.state.size)
    except OSError as error:
        return _failed(path, f"{path}: {reason(error)}", pair.sidecar_report(), pair.state.size)
    finally:
        pair.close()


def _failed(path: str, message: str, sidecar: SidecarReport | None = None, size: int = 0) -> FileRepair:
    report = sidecar or SidecarReport("", SidecarState.MISSING)
    return FileRepair(
        *(path, Verdict.UNVERIFIABLE, size, "", "", False, report, 0, 0),
        message=message.removeprefix(f"{path}: "),
        exit_code=ExitCode.CANNOT_TELL,
    )


class _Repair:
    def __init__(
        self,
        path: str,
        pair: OpenPair,
        request: RepairRequest,
        sourcing: Sourcing,
        jobs: int | None,
        progress: ProgressSink | None,
        disk: Disk,
        recovered: str,
    ) -> None:
        self.sourcing = sourcing
        self.path, self.pair, self.request, self.jobs, self.progress, self.disk = path, pair, request, jobs, progress, disk
        self.notes = [recovered] if recovered else []
        self.locator = Locator(pair.file, pair.ward, pair.sidecar)
        self.excess = pair.excess_bytes

    def run(self) -> FileRepair:
        pair, request = self.pair, self.request
        result = scan(pair.file, pair.sidecar, jobs=self.jobs, progress=self.progress)
        if pair.file.state() != pair.state:
            raise BusyError(f"{self.path}: changes while it is read: repair it when its writer is done")
        tally = self._decide(result)
        if self._must_not_touch(tally, result):
            self.notes.append("rewritten since it was protected: nothing was written; if that was meant, protect it again")
            return self._report(Verdict.CHANGED, tally, 0, ExitCode.CHANGED)
        if self.excess:
            self.notes.append(f"{self.excess} bytes too many at the file's end {'would be' if request.dry_run else 'are'} cut off")
        if request.dry_run:
            return self._dry_report(tally)
        repaired = 0
        if tally.writes or self.excess:
            repaired = self._write_all(tally, result)
        remaining = len(result.bad_blocks) - repaired
        verdict = Verdict.DAMAGED if remaining else Verdict.INTACT
        code = ExitCode.NOT_REPAIRABLE if remaining else ExitCode.OK
        try:
            sidecar = heal_sidecar(self.path, pair, file_is_intact=not remaining, jobs=self.jobs, progress=self.progress, disk=self.disk)
        except (BitwardError, OSError) as error:
            found = pair.sidecar_report()
            sidecar = replace(found, message=f"{found.message}; not healed: {error}")
            code = ExitCode.worst([code, ExitCode.CANNOT_TELL])
        if not pair.file.is_still_named():
            raise BusyError(f"{self.path}: was replaced or removed while it was repaired: repair it again")
        return self._report(verdict, tally, repaired, code, sidecar)

    def _must_not_touch(self, tally: Tally, result: ScanResult) -> bool:
        """Whether the file was rewritten. A reference that has every bad block, or best effort with most blocks solved, overrules that."""
        if not is_rewrite(self.pair, tally.differences):
            return False
        if not result.bad_blocks:
            return True  # it only grew at its end
        if self.request.sources and not tally.unsolved:
            return False
        return not (self.request.best_effort and tally.solved >= tally.unsolved)

    def _decide(self, result: ScanResult) -> Tally:
        tally = Tally()
        describe = DamageDescriber(self.pair, FlipBudget(FLIPS_LISTED_LIMIT))
        done = 0
        try:
            for decision in self._decisions(result):
                tally.add(decision, describe, self.pair.state.size)
                done += 1
                if self.progress:
                    self.progress(Progress("locate", self.path, done * BLOCK_LIMIT_BYTES, len(result.bad_blocks) * BLOCK_LIMIT_BYTES))
        finally:
            describe.close()
        return tally

    def _decisions(self, result: ScanResult) -> Iterator[Decision]:
        return decisions(self.locator, result, self.sourcing, best_effort=self.request.best_effort)

    def _write_all(self, tally: Tally, result: ScanResult) -> int:
        """Write every fix, in batches; returns how many blocks are now vouched for."""
        with OpenFile(self.path, write=True, disk=self.disk) as target:
            if target.state() != self.pair.state:
                raise BusyError(f"{self.path}: changed or was replaced since it was read: repair it when its writer is done")
            repaired = 0
            if tally.overflow:
                batch: list[Fix] = []
                for decision in self._decisions(result):
                    if decision.fix is not None:
                        batch.append(decision.fix)
                    if len(batch) * BLOCK_LIMIT_BYTES >= BATCH_BYTES:
                        repaired += self._commit(target, batch, last=False)
                        batch = []
                repaired += self._commit(target, batch, last=True)
            else:
                repaired = self._commit(target, tally.fixes, last=True)
            if repaired == len(result.bad_blocks) or not is_rewrite(self.pair, tally.differences):
                # What was judged damage stays damage: the part that could not be repaired must not look like a new version next time.
                if restore_mtime(target, self.pair.sidecar.superblock.mtime_ns):
                    self.disk.sync(target.fd)
                else:
                    self.notes.append("its modification time could not be set back: only its owner may do that")
        self._log(tally)
        return repaired

    def _commit(self, target: OpenFile, fixes: Sequence[Fix], *, last: bool) -> int:
        """Journal, write, sync, read back, drop the journal. Returns how many blocks a digest now vouches for."""
        journal = journal_path(self.pair.ward.path)
        recorded = self.pair.sidecar.superblock.file_bytes
        state = replace(target.state(), mtime_ns=self.pair.state.mtime_ns)
        cut = last and state.size > recorded
        entries = [
            entry_for(fix.block.offset, fix.before.tobytes()[: max(0, state.size - fix.block.offset)], fix.after.tobytes()) for fix in fixes
        ]
        if cut:
            if self.excess > BATCH_BYTES:
                told = f"has {self.excess} bytes too many, more than is kept for undoing: cut it to {recorded} bytes, then repair it"
                raise WriteError(f"{self.path}: {told}")
            entries.append(UndoEntry(recorded, self.pair.file.read(recorded, self.excess)))
        if not entries:
            return 0
        write_journal(journal, state, entries, self.disk, mode=target.access_mode())
        try:
            for fix in fixes:
                target.write_all(memoryview(fix.after.tobytes()), fix.block.offset)
            if cut:
                self.disk.truncate(target.fd, recorded)
            restore_mtime(target, state.mtime_ns)  # a crash after this leaves no file that looks rewritten
            self.disk.sync(target.fd)
            self._read_back(target, fixes)
        except (WriteError, OSError):
            self._roll_back(target, journal)
            raise
        drop_journal(journal, self.disk)
        return sum(fix.vouched for fix in fixes)

    def _read_back(self, target: OpenFile, fixes: Sequence[Fix]) -> None:
        """Compare what the disk now holds with what was written, around the page cache where that can be."""
        reader = UncachedReader(target.fd)
        try:
            for fix in fixes:
                block = fix.block
                drop_cache(target.fd, block.offset, block.length)
                data = reader.read(block.offset, block.length)
                if data is None:
                    data = target.read(block.offset, block.length)
                if data != fix.after.tobytes():
                    raise WriteError(f"{self.path}: what was written at byte {block.offset} does not read back: the disk is failing")
        finally:
            reader.close()

    def _roll_back(self, target: OpenFile, journal: str) -> None:
        with contextlib.suppress(BitwardError, OSError):
            kept = read_journal(journal, self.disk)
            if kept is not None:
                undo(target, kept)
                drop_journal(journal, self.disk)

    def _log(self, tally: Tally) -> None:
        from dataclasses import asdict

        record = {
            "schema": "bitward.repair-log/1",
            "time_ns": self.request.now_ns,
            "path": self.path,
            "root": self.pair.sidecar.superblock.root.hex(),
            "cut_bytes": self.excess,
            "writes": [asdict(write) for write in tally.writes[:FLIPS_LISTED_LIMIT]],
        }
        try:
            append_log(log_path(self.pair.ward.path), record, self.disk, mode=self.pair.file.access_mode())
        except (WriteError, OSError) as error:
            self.notes.append(f"the repair could not be logged: {error}")

    def _dry_report(self, tally: Tally) -> FileRepair:
        damaged = bool(tally.unsolved or tally.solved or self.excess)
        verdict = Verdict.DAMAGED if damaged else Verdict.INTACT
        code = ExitCode.NOT_REPAIRABLE if tally.unsolved else ExitCode.REPAIRABLE
        return self._report(verdict, tally, 0, code if damaged else ExitCode.OK)

    def _report(self, verdict: Verdict, tally: Tally, repaired: int, code: int, sidecar: SidecarReport | None = None) -> FileRepair:
        block = self.pair.sidecar.superblock
        return FileRepair(
            path=self.path,
            verdict=verdict,
            bytes=block.file_bytes,
            root=block.root.hex(),
            origin=block.origin_label,
            modified=self.pair.modified,
            sidecar=sidecar or self.pair.sidecar_report(),
            repaired=repaired,
            remaining=tally.solved + tally.unsolved - repaired,
            writes=() if verdict is Verdict.CHANGED else tuple(sorted(tally.writes, key=lambda one: one.offset)[:FLIPS_LISTED_LIMIT]),
            damage=tuple(tally.remaining),
            dry_run=self.request.dry_run,
            message="; ".join(self.notes),
            exit_code=code,
        )
