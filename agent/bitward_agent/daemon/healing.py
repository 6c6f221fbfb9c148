"""From a verdict and a policy to an action, and doing it: repair in place, or making the kernel forget a wrong cached page.

What was modified is never healed here (a person may ask ``bitward repair`` to), nor is what was rewritten protected anew if it is sealed.
NumPy is loaded only when something is to be repaired.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum

from bitward_agent.daemon.config import OnChange, OnDamage, WatchConfig
from bitward_agent.daemon.disk_check import rewrite_from_cache
from bitward_agent.daemon.facts import RepairRecord
from bitward_agent.daemon.pace import PacedDisk, TokenBucket
from bitward_agent.daemon.page_cache import PAGE_CACHE_BYTES
from bitward_agent.errors import BitwardError
from bitward_agent.findings import Damage, FileRepair, FileVerification, SidecarState, Verdict
from bitward_agent.io import DISK, Disk, OpenFile, drop_cache, journal_path
from bitward_agent.medium import MEMORY, UNKNOWN
from bitward_agent.seals import seal_path
from bitward_agent.sources import Source
from bitward_agent.verify import MOVES_TOLD, REPAIR_PENDING_TOLD, REPLACED_TOLD, open_sidecar
from bitward_formats.digest import leaf_function
from bitward_formats.errors import FormatError
from bitward_formats.frozen import dataclass


class Action(StrEnum):
    """What a verdict asks for."""

    NONE = "none"
    HEAL = "heal"
    REPORT = "report"
    ALARM = "alarm"
    PROTECT = "protect"


@dataclass(frozen=True, slots=True)
class Healing:
    """What came of it. ``verdict``, ``message`` are those after. ``refreshed`` counts blocks whose cached page was dropped and read again.

    ``repairs`` is for the store: one record per block that is right again. ``refused``: it may not write there.
    """

    path: str
    verdict: Verdict
    message: str
    repairs: tuple[RepairRecord, ...] = ()
    refreshed: int = 0
    remaining: int = 0
    refused: bool = False
    repair: FileRepair | None = None


def action_for(found: FileVerification, on_damage: OnDamage, on_change: OnChange, *, is_sealed: bool) -> Action:
    """What to do about a verdict. Pure.

    While an undo journal lies there the file's time says nothing: finishing that repair comes first, and tells.
    """
    may_heal = on_damage is OnDamage.HEAL
    if REPAIR_PENDING_TOLD in found.message and found.verdict is not Verdict.UNVERIFIABLE:
        return Action.HEAL if may_heal else Action.REPORT
    match found.verdict:
        case Verdict.INTACT:
            if found.sidecar.state is not SidecarState.DAMAGED:
                return Action.NONE
            return Action.HEAL if may_heal and not found.modified else Action.REPORT
        case Verdict.DAMAGED:
            return Action.HEAL if may_heal and not found.modified else Action.REPORT
        case Verdict.CHANGED:
            return Action.PROTECT if on_change is OnChange.PROTECT and not is_sealed else Action.ALARM
        case Verdict.UNVERIFIABLE:
            return Action.NONE if found.message in (MOVES_TOLD, REPLACED_TOLD) else Action.REPORT


def is_sealed(sidecar_path: str) -> bool:
    """Whether a seal lies beside the sidecar."""
    return os.path.lexists(seal_path(sidecar_path))


def is_repair_pending(sidecar_path: str) -> bool:
    """Whether a repair was interrupted: its undo journal lies beside the sidecar."""
    return os.path.lexists(journal_path(sidecar_path))


def heal(
    found: FileVerification,
    sidecar_path: str,
    watch: WatchConfig,
    now_ns: int,
    *,
    pace: TokenBucket,
    stop: Callable[[], bool],
    disk: Disk = DISK,
) -> Healing:
    """Put right what ``found`` says, where that is wrong in memory by reading again, else by a journalled repair with the watch's sources.

    Raises:
        Stopped: ``stop`` said so before anything was written.
    """
    healing = _Healing(found, sidecar_path, watch, now_ns, PacedDisk(pace, stop, below=disk))
    try:
        return healing.run()
    except (BitwardError, FormatError, OSError) as error:
        return healing.result(Verdict.UNVERIFIABLE, str(error).removeprefix(f"{found.path}: "))


class _Healing:
    def __init__(self, found: FileVerification, sidecar_path: str, watch: WatchConfig, now_ns: int, disk: Disk) -> None:
        self.found, self.path, self.sidecar_path, self.watch = found, found.path, sidecar_path, watch
        self.now_ns, self.disk = now_ns, disk
        self.right: dict[int, RepairRecord] = {}
        self.refreshed = 0
        self.notes: list[str] = []

    def run(self) -> Healing:
        pending = is_repair_pending(self.sidecar_path)
        if self.found.modified and not pending:
            return self.result(self.found.verdict, "was modified since it was protected: only a person may have it repaired")
        if not pending:
            self._refresh()
            if self._left():
                for one in rewrite_from_cache(self.path, self.sidecar_path, self._left(), self.disk):
                    self._account(one, "memory")
        if not self._left() and not pending and self.found.sidecar.state is not SidecarState.DAMAGED:
            return self.result(Verdict.INTACT, "")
        from bitward_agent.repair import RepairRequest, repair_file  # loads NumPy

        with contextlib.ExitStack() as stack:
            request = RepairRequest(self._sources(stack), now_ns=self.now_ns, only_unmodified=True)
            done = repair_file(self.path, self.sidecar_path, request, jobs=1, disk=self.disk)
        by_offset = {one.offset: one for one in self.found.damage}
        for write in done.writes if done.repaired else ():
            where = (write.tensor, write.block, write.offset, write.length)
            found = by_offset.get(write.offset, Damage(*where, True, write.source, UNKNOWN, write.flip_count))
            # What was put right counts, not what the scrub saw: more bits may have flipped since.
            self._account(replace(found, flip_count=max(found.flip_count, write.flip_count)), write.source)
        return replace(self.result(done.verdict, done.message), remaining=done.remaining, repair=done)

    def _left(self) -> tuple[Damage, ...]:
        return tuple(one for one in self.found.damage if one.offset not in self.right)

    def _account(self, one: Damage, source: str) -> None:
        cell = one.flips[0].offset if one.flips else -1
        where = (one.tensor, one.block, one.offset, one.length)
        self.right[one.offset] = RepairRecord(self.now_ns, self.path, *where, source, one.medium, one.flip_count, cell, self._device())

    def _device(self) -> int:
        try:
            return os.lstat(self.path).st_dev
        except OSError:
            return 0

    def _refresh(self) -> None:
        """Where memory alone is wrong: make the kernel forget the pages, and see whether what it reads then is right.

        Pages that a process maps stay; those a repair rewrites.
        """
        wrong = [one for one in self.found.damage if one.medium == MEMORY]
        if not wrong:
            return
        ward, sidecar, _ = open_sidecar(self.sidecar_path, self.disk)
        ward.close()
        leaf = leaf_function(sidecar.superblock.leaf_hash)
        with OpenFile(self.path, disk=self.disk) as file:
            for one in wrong:
                block = sidecar.plan.table.at_offset(one.offset)
                low = block.offset // PAGE_CACHE_BYTES * PAGE_CACHE_BYTES
                drop_cache(file.fd, low, -(-block.end // PAGE_CACHE_BYTES) * PAGE_CACHE_BYTES - low)
                data = file.read(block.offset, block.length)
                if len(data) == block.length and leaf(data, block.index, block.length) == sidecar.leaf(block.number):
                    self._account(one, "disk")
                    self.refreshed += 1

    def _sources(self, stack: contextlib.ExitStack) -> tuple[Source, ...]:
        """The watch's sources of this file, in their order; opened only if parity does not restore everything."""
        if all(one.repairable for one in self._left()) and len(self.found.damage) == self.found.damaged_blocks:
            return ()
        from bitward_agent.sources.opening import Places

        alone = self.path == self.watch.path
        relative = os.path.basename(self.path) if alone else os.path.relpath(self.path, self.watch.path)
        sources: list[Source] = []
        for name in self.watch.sources:
            try:
                places = stack.enter_context(Places([name]))
                for source in places.of_file(self.path, relative, alone=alone):
                    stack.callback(source.close)
                    sources.append(source)
            except BitwardError as error:
                self.notes.append(f"a source is out of reach: {error}")
        return tuple(sources)

    def result(self, verdict: Verdict, message: str) -> Healing:
        """What came of it so far."""
        refused = verdict is not Verdict.INTACT and not self._may_write()
        text = "; ".join(filter(None, (message, *self.notes)))
        return Healing(self.path, verdict, text, tuple(self.right.values()), self.refreshed, len(self._left()), refused)

    def _may_write(self) -> bool:
        folder = os.path.dirname(self.sidecar_path)
        return os.access(self.path, os.W_OK, effective_ids=True) and os.access(folder, os.W_OK, effective_ids=True)
