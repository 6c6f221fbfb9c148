"""What a worker does: one task, start to end. It needs nothing but the task, raises nothing, and keeps nothing but open connections."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bitward.registries.scrub.facts import Effort, Finding, ObjectResult, Result, Task, UnitResult, UnitTask
from bitward.registries.scrub.unit_check import check_unit
from bitward_agent.errors import BitwardError, SourceBusyError, SourceMovedError
from bitward_agent.findings import Damage, ExitCode, FileVerification, Verdict
from bitward_agent.sources.addresses import brief
from bitward_agent.sources.limits import Limits, Meter
from bitward_agent.stores import Store
from bitward_agent.stores.opening import open_store
from bitward_agent.verify import FlipBudget
from bitward_agent.verify_object import StoredPair, verify_object
from bitward_formats.errors import FormatError

DAMAGE_TOLD_LIMIT = 32
"""Bad blocks of one object that a result names; their number is never cut."""
FLIPS_TOLD_LIMIT = 64
MESSAGE_LIMIT_CHARACTERS = 1000
_STORES_LIMIT = 16
_FINDINGS = {
    Verdict.INTACT: Finding.INTACT,
    Verdict.DAMAGED: Finding.DAMAGED,
    Verdict.CHANGED: Finding.CHANGED,
    Verdict.UNVERIFIABLE: Finding.UNCHECKED,
}


class Checker:
    """Does tasks one after the other; keeps the stores open that they name."""

    def __init__(self, limits: Limits, ahead: int) -> None:
        self._limits, self._ahead = limits, ahead
        self._stores: dict[str, Store] = {}
        self._name = f"{platform.node() or 'localhost'}/{os.getpid()}"

    def close(self) -> None:
        """Close all stores."""
        for store in self._stores.values():
            store.close()
        self._stores.clear()

    def __call__(self, task: Task) -> Result:
        """Do a task. Every way to fail is a result."""
        meter, started = Meter(), time.monotonic()
        try:
            result = self._done(task, meter)
        except (SourceMovedError, SourceBusyError) as error:
            finding = Finding.CHANGED if isinstance(error, SourceMovedError) else Finding.UNCHECKED
            result = failed(task, finding, str(error), passing=True)
        except (BitwardError, FormatError, OSError, MemoryError) as error:
            result = failed(task, Finding.UNCHECKED, str(error) or type(error).__name__)
        except Exception as error:  # noqa: BLE001 - the others' verdicts must not be lost for it
            result = failed(task, Finding.UNCHECKED, f"a fault of Bitward: {type(error).__name__}: {brief(error)}")
        effort = Effort(time.monotonic() - started, meter.fetched_bytes, meter.requests, self._name, peak_rss_bytes())
        return replace(result, effort=effort, message=result.message[:MESSAGE_LIMIT_CHARACTERS])

    def _done(self, task: Task, meter: Meter) -> Result:
        store = self._store(task.store)
        if isinstance(task, UnitTask):
            return check_unit(store, task, meter)
        pair = task.pair
        if task.attempt > 1:  # what was listed may be long ago
            state, sidecar_state = store.state(pair.key), store.state(pair.sidecar_key)
            if state is None:
                return failed(task, Finding.GONE, "it was removed while the scrub ran")
            if sidecar_state is None:
                return failed(task, Finding.UNPROTECTED, "its sidecar was removed while the scrub ran")
            if (state, sidecar_state) != (pair.state, pair.sidecar_state):
                pair = replace(pair, state=state, sidecar_state=sidecar_state, rewritten=None)
        found = verify_object(store, pair, meter, ahead=self._ahead, budget=FlipBudget(FLIPS_TOLD_LIMIT))
        return _result(pair, found.file, found.protected_ns)

    def _store(self, address: str) -> Store:
        store = self._stores.get(address)
        if store is None:
            while len(self._stores) >= _STORES_LIMIT:
                self._stores.pop(next(iter(self._stores))).close()
            store = self._stores[address] = open_store(address, self._limits)
        return store


def failed(task: Task, finding: Finding, message: str, *, passing: bool = False) -> Result:
    """The result of a task that could not be done."""
    if isinstance(task, UnitTask):
        return UnitResult(finding, message, Effort(), passing)
    return ObjectResult(task.pair, finding, message, Effort(), passing)


def _result(pair: StoredPair, file: FileVerification, protected_ns: int) -> ObjectResult:
    return ObjectResult(
        pair,
        _FINDINGS[file.verdict],
        file.message,
        Effort(),
        bytes=file.bytes,
        root=file.root,
        origin=file.origin,
        modified=file.modified,
        protected_ns=protected_ns,
        sidecar=file.sidecar.state,
        damaged_blocks=file.damaged_blocks,
        flip_count=sum(one.flip_count for one in file.damage),
        repairable=file.exit_code == ExitCode.REPAIRABLE,
        damage=_told(file.damage),
    )


def _told(damage: Sequence[Damage]) -> tuple[Damage, ...]:
    return tuple(damage[:DAMAGE_TOLD_LIMIT])


def peak_rss_bytes() -> int:
    """The highest resident memory of this process (VmHWM, proc(5)); 0 where the kernel does not tell.

    Not ``getrusage``: its figure outlives exec, and so may be that of the process which started this one.
    """
    try:
        with open("/proc/self/status", "rb") as status:
            for line in status:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0


def version() -> str:
    """Which Bitward a process has."""
    from bitward import __version__

    return __version__


_checkers: dict[tuple[Limits, int], Checker] = {}


def check(task: Task, limits: Limits, ahead: int) -> Any:
    """Do a task in a process that has no ``Checker`` of its own, as in a cluster; connections are kept for the next one."""
    key = (limits, ahead)
    if key not in _checkers:
        _checkers.clear()
        _checkers[key] = Checker(limits, ahead)
    return _checkers[key](task)
