"""A directory of a store against its index: what is missing, what does not belong."""

from __future__ import annotations

import os
from collections.abc import Iterator

from bitward.registries.scrub.facts import Effort, Finding, UnitResult, UnitTask
from bitward_agent.errors import SourceMovedError
from bitward_agent.sources.limits import Meter
from bitward_agent.stores import Store, Unlisted, order_of
from bitward_agent.units import is_ours
from bitward_formats.errors import FormatError
from bitward_formats.unit_index import UnitIndex, read_unit_index

INDEX_LIMIT_BYTES = 64 << 20
"""Of an index that is read; a real one has some 100 bytes for each file."""
NAMES_TOLD_LIMIT = 100
ROOTS_LIMIT = 4096
"""Files of one directory whose roots are compared with what the index binds."""


def check_unit(store: Store, task: UnitTask, meter: Meter) -> UnitResult:
    """Hold a directory against its index, in memory of the index's size.

    Raises:
        SourceMovedError: the index was exchanged since it was listed.
        SourceError: index or listing do not come.
    """
    if task.attempt > 1:
        state = store.state(task.index_key)
        if state is None:
            return UnitResult(Finding.GONE, "its index was removed while the scrub ran", Effort())
    else:
        state = task.index_state
    if state.size > INDEX_LIMIT_BYTES:
        return UnitResult(Finding.UNCHECKED, f"its index has {state.size} bytes, more than {INDEX_LIMIT_BYTES}", Effort())
    file = store.open(task.index_key, state, meter, 1)
    try:
        index = read_unit_index(file.read, state.size)
    except FormatError as error:
        if store.state(task.index_key) != state:
            raise SourceMovedError("its index was exchanged while it was read") from None
        return UnitResult(Finding.UNCHECKED, f"its index cannot be used: {error}", Effort())
    finally:
        file.close()
    return _compared(store, task, index)


def _compared(store: Store, task: UnitTask, index: UnitIndex) -> UnitResult:
    missing: list[str] = []
    extra: list[str] = []
    counts = {"missing": 0, "extra": 0}
    unlisted: list[str] = []
    there = _present(store, task.folder, unlisted)
    present = next(there, None)
    for entry in index.entries:
        while present is not None and present < entry.path:
            _count(extra, counts, "extra", present)
            present = next(there, None)
        if present == entry.path:
            present = next(there, None)
        else:
            _count(missing, counts, "missing", entry.path)
    while present is not None:
        _count(extra, counts, "extra", present)
        present = next(there, None)
    finding, told = Finding.INTACT, []
    if counts["extra"]:
        finding = Finding.UNPROTECTED
        told.append(f"{counts['extra']} files are not in its index")
    if len(index.entries) > ROOTS_LIMIT:
        finding = Finding.UNCHECKED
        told.append(f"its index names {len(index.entries)} files: whether their sidecars are the ones that it knows was not compared")
    if counts["missing"]:
        finding = Finding.DAMAGED
        told.append(f"{counts['missing']} files that its index names are missing")
    if unlisted:
        finding = Finding.UNCHECKED
        told.append(f"cannot be listed: {unlisted[0]}")
    roots = () if len(index.entries) > ROOTS_LIMIT else _roots(store, task, index)
    return UnitResult(
        *(finding, "; ".join(told), Effort(), False, len(index.entries), counts["missing"], counts["extra"]),
        *(tuple(missing), tuple(extra), roots),
    )


def _present(store: Store, folder: str, unlisted: list[str]) -> Iterator[bytes]:
    """Paths of a directory's files relative to it, in order, without Bitward's own."""
    for entry in store.entries_below(folder):
        if isinstance(entry, Unlisted):
            unlisted.append(store.shown(entry.key))
        elif not is_ours(entry.key):
            yield order_of(entry.key.removeprefix(folder))


def _count(names: list[str], counts: dict[str, int], kind: str, path: bytes) -> None:
    counts[kind] += 1
    if len(names) < NAMES_TOLD_LIMIT:
        names.append(os.fsdecode(path))


def _roots(store: Store, task: UnitTask, index: UnitIndex) -> tuple[tuple[str, str], ...]:
    return tuple((store.shown(task.folder + os.fsdecode(entry.path)), entry.root.hex()) for entry in index.entries)
