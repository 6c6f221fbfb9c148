"""Indexes of the directories that the agent protects file by file: written once their files are settled, kept true after that.

Each watched folder is a unit, and so is every folder below it that holds files itself. So ``bitward verify`` can tell of each of them
whether it is complete. Roots come from the agent's records and, where they are new, from sidecars: no file is read. An index is written
only if what it should hold differs from what it holds; one that is sealed never.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from bitward_agent.daemon.accounts import Accounts
from bitward_agent.daemon.config import AgentConfig, OnDamage, OnNew, WatchConfig
from bitward_agent.daemon.facts import EventKind, Incident, IncidentKind, UnitRecord
from bitward_agent.daemon.index_plan import Fate, IndexPlan, plan_index
from bitward_agent.daemon.reconcile import is_in_hub_cache
from bitward_agent.daemon.state import Store
from bitward_agent.durable import make_folder, remove
from bitward_agent.errors import BitwardError
from bitward_agent.io import OpenFile
from bitward_agent.seals import seal_path
from bitward_agent.units import heal_index, index_damage, index_path, read_index, sidecar_base, write_index
from bitward_formats.errors import FormatError
from bitward_formats.sidecar import read_sidecar
from bitward_formats.unit_index import UnitEntry, UnitIndex

SETTLE_SECONDS = 2.0
"""How long nothing happens in a folder before its index is looked at: who removes a whole folder must not find a new file in it."""

PATIENCE_SECONDS = 600.0
"""After so long an index is brought up to date although files of its folder are still being written."""

AGAIN_SECONDS = 5.0
"""An index that was just written is not written again within this time."""

RETRY_SECONDS = 3600.0
"""How long after an index could not be written that is tried again: the disk was full, or somebody has to give permission."""

AT_ONCE = 32
"""Folders looked at between two other things."""

FAULT = "unit"
REMOVALS_LIMIT = 100_000


class UnitIndexes:
    """The folders whose indexes are to be looked at, and the looking. For the thread of the work loop."""

    def __init__(self, store: Store, accounts: Accounts, clock_ns: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._accounts, self._clock_ns, self._clock = store, accounts, clock_ns, clock
        self._touched: dict[str, tuple[float, float]] = {}
        self._not_before: dict[str, float] = {}
        self._removed: dict[str, bool] = {}
        self._refused: dict[str, str] = {}

    # ------------------------------------------------------------------------------------------------------------ what happens

    def note(self, path: str, config: AgentConfig) -> None:
        """Something about a file or its sidecar is new: the indexes of all folders that it lies in are to be looked at."""
        for folder in _folders_above(path, config):
            self.note_folder(folder)

    def note_folder(self, folder: str) -> None:
        """A folder's index is to be looked at."""
        now = self._clock()
        first, _ = self._touched.get(folder, (now, now))
        self._touched[folder] = (first, now)

    def note_all(self, config: AgentConfig) -> None:
        """Look at every index, as after a start and once a day."""
        for watch in config.watches:
            if os.path.isdir(watch.path):
                self.note_folder(watch.path)
        for folder in {os.path.dirname(record.path) for record in self._store.units()}:
            self.note(os.path.join(folder, "*"), config)

    def note_removed(self, record: UnitRecord, config: AgentConfig, *, seen: bool) -> None:
        """A file is gone. Where changes are welcome its index may forget it: if the agent saw it go, or if its sidecar is gone too."""
        self._removed[record.path] = seen
        if len(self._removed) > REMOVALS_LIMIT:
            self._removed.pop(next(iter(self._removed)))
        self.note(record.path, config)

    def seconds_left(self) -> float | None:
        """How long until there is something to look at, None if nothing is to be."""
        now = self._clock()
        moments = [max(last + SETTLE_SECONDS, self._not_before.get(folder, 0.0)) for folder, (_, last) in self._touched.items()]
        return max(0.5, min(moments) - now) if moments else None

    # ----------------------------------------------------------------------------------------------------------------- looking

    def tend(self, config: AgentConfig, busy: Iterable[str], unreachable: frozenset[str]) -> None:
        """Look at the indexes of folders that are settled: nothing in them is ``busy``, or waits to be protected."""
        now = self._clock()
        due = [
            folder
            for folder, (_, last) in self._touched.items()
            if now >= last + SETTLE_SECONDS and now >= self._not_before.get(folder, 0.0)
        ]
        if not due:
            return
        records = self._store.units()
        unsettled = _folders_of(busy) | _folders_of(one.path for one in records if _is_to_come(one, config))
        settled = [folder for folder in due if folder not in unsettled or now >= self._touched[folder][0] + PATIENCE_SECONDS]
        for folder in set(due) - set(settled):
            self._touched[folder] = (self._touched[folder][0], now)
        settled.sort(key=len, reverse=True)  # the deepest first: what they tell is not told again above
        inside: dict[str, list[UnitRecord]] = {folder: [] for folder in settled[:AT_ONCE]}
        for record in records if inside else ():
            for folder in _ancestors(record.path):
                if folder in inside:
                    inside[folder].append(record)
        for folder, members in inside.items():
            del self._touched[folder]
            watch = config.watch_of(folder)
            if watch is None or watch.path in unreachable or os.path.islink(folder) or not os.path.isdir(folder):
                self._end(folder, "gone")
                continue
            try:
                self._bring_up_to_date(folder, watch, members)
            except (BitwardError, FormatError, OSError) as error:
                self._refuse(folder, str(error))

    def _bring_up_to_date(self, folder: str, watch: WatchConfig, members: list[UnitRecord]) -> None:
        below = sidecar_base(watch.path, watch.sidecar_dir)
        base = os.path.normpath(os.path.join(below, os.path.relpath(folder, watch.path)))
        path = os.path.join(base, os.path.basename(index_path(folder, None)))
        index = read_index(path)
        if index == "" and (watch.on_new is not OnNew.PROTECT or not _is_unit(folder, watch, members)):
            return
        old = () if isinstance(index, str) else index.entries
        mine = {entry.path: entry for entry in old}
        known = dict(_entries_of(folder, base, members, mine))
        plan = plan_index(
            old,
            known,
            lambda name: self._fate(folder, base, name),
            on_new=watch.on_new,
            on_change=watch.on_change,
        )
        if not isinstance(index, str) and os.path.lexists(seal_path(path)):
            if plan.entries != index.entries:
                self._raise(folder, IncidentKind.CHANGED, "its index is sealed and stays as it is, but files came, went or changed since")
            else:
                self._end(folder, "as sealed again")
            return
        if not _is_right(path, index, plan, watch):
            self._write(folder, path, index, plan)
        self._refused.pop(folder, None)
        self._forget_removed(folder, plan.dropped)
        self._tell(folder, plan)

    def _fate(self, folder: str, base: str, name: bytes) -> Fate:
        relative = os.fsdecode(name)
        path = os.path.join(folder, relative)
        if os.path.lexists(path) or self._store.unit(path) is not None:
            return Fate.THERE
        seen = self._removed.get(path)
        if seen or (seen is not None and not os.path.lexists(os.path.join(base, relative + ".ward"))):
            return Fate.REMOVED
        return Fate.LOST

    def _write(self, folder: str, path: str, index: UnitIndex | str, plan: IndexPlan) -> None:
        """Write an index, or remove one that would name nothing."""
        if not plan.entries:
            remove(path)
        elif not any(os.path.lexists(os.path.join(folder, os.fsdecode(entry.path))) for entry in plan.entries):
            return  # an empty mount point looks like this
        elif not isinstance(index, str) and plan.entries == index.entries:
            heal_index(path, index)
        else:
            make_folder(os.path.dirname(path))
            write_index(path, list(plan.entries), self._clock_ns())
        self._not_before[folder] = self._clock() + AGAIN_SECONDS
        self._accounts.event(EventKind.INDEXED, folder, _what_changed(index, plan), files=len(plan.entries))

    def _forget_removed(self, folder: str, dropped: Iterable[bytes]) -> None:
        """What no index names any more need not be remembered; an index further up may still name it, and is looked at on its own."""
        for name in dropped:
            path = os.path.join(folder, os.fsdecode(name))
            if not any(above in self._touched for above in _ancestors(path)):
                self._removed.pop(path, None)

    # ----------------------------------------------------------------------------------------------------------------- telling

    def _tell(self, folder: str, plan: IndexPlan) -> None:
        """An incident for what is missing or was exchanged, unless each of these files is an incident of its own already."""
        alone = {one.path for one in self._store.incidents(open_only=True) if one.kind is IncidentKind.MISSING}
        untold = [name for name in plan.missing if os.path.join(folder, os.fsdecode(name)) not in alone]
        told = replace(plan, missing=tuple(untold)).told
        if not told:
            self._end(folder, "complete again")
        elif not _is_told_below(folder, untold, alone) or plan.mismatched:
            self._raise(folder, IncidentKind.MISSING if untold else IncidentKind.CHANGED, told)

    def _raise(self, folder: str, kind: IncidentKind, told: str) -> None:
        now = self._clock_ns()
        others = [one for one in self._store.incidents(open_only=True, path=folder) if one.fault == FAULT and one.kind is not kind]
        self._accounts.end_incidents((one, kind.value) for one in others)
        self._accounts.incident(Incident(folder, kind, FAULT, now, told, seen_ns=now))

    def _end(self, folder: str, outcome: str) -> None:
        ended = [one for one in self._store.incidents(open_only=True, path=folder) if one.fault == FAULT]
        self._accounts.end_incidents((one, outcome) for one in ended)

    def _refuse(self, folder: str, message: str) -> None:
        """An index that cannot be read or written: told once, tried again after a while."""
        told = message[:1000]
        self._not_before[folder] = self._clock() + RETRY_SECONDS
        self.note_folder(folder)
        if self._refused.get(folder) != told:
            self._refused[folder] = told
            self._accounts.event(EventKind.UNVERIFIABLE, folder, f"its index cannot be kept: {told}")


def _is_right(path: str, index: UnitIndex | str, plan: IndexPlan, watch: WatchConfig) -> bool:
    """Whether an index holds what it should; damage to it counts only where damage may be healed."""
    if isinstance(index, str):
        return not plan.entries
    return plan.entries == index.entries and (watch.on_damage is not OnDamage.HEAL or not index_damage(path, index))


def _what_changed(index: UnitIndex | str, plan: IndexPlan) -> str:
    count = len(plan.entries)
    files = f"{count} file{'s' * (count != 1)}"
    if index == "":
        return f"the directory has an index now: {files}"
    if isinstance(index, str):
        return f"its index was beyond reading ({index}) and is made anew of what is known: {files}"
    if not plan.added and not plan.dropped and plan.entries == index.entries:
        return f"its index was damaged and is whole again: {files}"
    return f"its index is up to date: {files}, {len(plan.added)} new, {len(plan.dropped)} removed"


def _is_told_below(folder: str, missing: Iterable[bytes], alone: set[str]) -> bool:
    """Whether folders below, units themselves, tell of all these files: what one incident says is not said again further up."""
    names = list(missing)
    return bool(names) and all(
        any(above in alone for above in _ancestors(os.path.join(folder, os.fsdecode(name))) if above.startswith(folder + "/"))
        for name in names
    )


def _is_unit(folder: str, watch: WatchConfig, members: Iterable[UnitRecord]) -> bool:
    """Whether a folder without an index gets one: it is watched itself or holds protected files itself, and is none of a hub cache's."""
    if folder == watch.path:
        return True
    return not is_in_hub_cache(folder) and any(os.path.dirname(one.path) == folder and one.root for one in members)


def _is_to_come(record: UnitRecord, config: AgentConfig) -> bool:
    """Whether a file will be protected soon: an index without it would be out of date at once."""
    watch = config.watch_of(record.path)
    return not record.root and not record.failures and watch is not None and watch.on_new is OnNew.PROTECT


def _entries_of(
    folder: str, base: str, members: Iterable[UnitRecord], old: Mapping[bytes, UnitEntry]
) -> Iterator[tuple[bytes, UnitEntry | None]]:
    """Each protected file's entry. Only those whose sidecar lies where the folder's own layout has it: others it does not hold."""
    for record in members:
        relative = os.path.relpath(record.path, folder)
        if record.sidecar != os.path.join(base, relative + ".ward"):
            continue
        path = os.fsencode(relative)
        entry = old.get(path)
        if entry is not None and entry.root.hex() == record.root:
            yield path, entry
        elif record.root:
            yield path, _entry_of_sidecar(path, record.sidecar)
        elif entry is not None:
            yield path, None


def _entry_of_sidecar(path: bytes, sidecar: str) -> UnitEntry | None:
    """A file's entry as its sidecar has it; None where that cannot be read."""
    try:
        with OpenFile(sidecar) as ward:
            block = read_sidecar(ward.read, ward.state().size).superblock
    except (BitwardError, FormatError, OSError):
        return None
    return UnitEntry(path, block.file_bytes, block.root)


def _ancestors(path: str) -> Iterator[str]:
    while (above := os.path.dirname(path)) != path:
        yield above
        path = above


def _folders_of(paths: Iterable[str]) -> set[str]:
    """All folders above any of these paths."""
    found: set[str] = set()
    for path in paths:
        for folder in _ancestors(path):
            if folder in found:
                break
            found.add(folder)
    return found


def _folders_above(path: str, config: AgentConfig) -> Iterator[str]:
    """The folders above a file that belong to a watch, the nearest first."""
    for folder in _ancestors(path):
        watch = config.watch_of(folder)
        if watch is None:
            return
        yield folder
