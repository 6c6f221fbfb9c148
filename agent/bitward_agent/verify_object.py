"""Verifying one object of a store against the sidecar that lies beside it there. Only reads, and never more than it needs at once."""

from __future__ import annotations

import os
from dataclasses import replace

from bitward_agent.errors import BitwardError, SourceBusyError, SourceMovedError
from bitward_agent.findings import FileVerification, SidecarReport, SidecarState, Verdict
from bitward_agent.io import FileState, OpenFile
from bitward_agent.scan import scan
from bitward_agent.sources.limits import Meter
from bitward_agent.stores import ObjectState, Store
from bitward_agent.stores.object_file import ObjectFile
from bitward_agent.verify import FlipBudget, OpenPair, checked_sidecar, unverifiable, verdict_of
from bitward_formats.errors import FormatError
from bitward_formats.frozen import dataclass

DECODED_BLOCKS_LIMIT = 16_384
"""Bad blocks of one object (1 GiB of it) that are decoded and named; of more, only their number is told."""
SIDECAR_EXCESS_BYTES = 8 << 20
"""How much larger than its object a sidecar may be: Bitward's own are a few per cent of it, and at least 80 kB."""


@dataclass(frozen=True, slots=True)
class StoredPair:
    """An object and its sidecar, as they were listed.

    ``rewritten``: whether it was written since it was last found intact; ``None`` where it never was, or its sidecar is another one now.
    """

    key: str
    state: ObjectState
    sidecar_key: str
    sidecar_state: ObjectState
    rewritten: bool | None = None

    @property
    def is_newer(self) -> bool:
        """Whether the object was written after its sidecar, as far as the store's own clock tells."""
        return bool(self.sidecar_state.mtime_ns) and self.state.mtime_ns > self.sidecar_state.mtime_ns


@dataclass(frozen=True, slots=True)
class ObjectVerification:
    """``protected_ns``: when the sidecar was made, by its maker's clock, 0 where it could not be read."""

    file: FileVerification
    protected_ns: int = 0


def verify_object(store: Store, pair: StoredPair, meter: Meter, *, ahead: int = 1, budget: FlipBudget | None = None) -> ObjectVerification:
    """Verify one object. "Cannot check" for reasons that stay is a verdict; for reasons that may pass it is an error.

    Raises:
        SourceMovedError: object or sidecar were exchanged or removed since they were listed.
        SourceBusyError: the store did not give them, and may later.
    """
    name = store.shown(pair.key)
    shown = store.shown(pair.sidecar_key)
    if pair.sidecar_state.size > pair.state.size + SIDECAR_EXCESS_BYTES:
        report = SidecarReport(shown, SidecarState.DAMAGED, 0, f"{pair.sidecar_state.size} bytes: too large for a sidecar of it")
        return ObjectVerification(unverifiable(name, 0, report, f"sidecar cannot be used: {report.message}"))
    opened: list[OpenFile] = []
    try:
        opened.append(ward := store.open(pair.sidecar_key, pair.sidecar_state, meter, ahead))
        opened.append(file := store.open(pair.key, pair.state, meter, ahead))
        if isinstance(file, ObjectFile):
            file.begin()  # a small object is two requests: both are made at once
        try:
            sidecar, lost = checked_sidecar(ward)
        except FormatError as error:
            _still_there(store, pair)
            report = SidecarReport(shown, SidecarState.DAMAGED, 0, str(error))
            return ObjectVerification(unverifiable(name, 0, report, f"sidecar cannot be used: {error}"))
        _scatter(ward)
        both = OpenPair(file, ward, sidecar, lost, _judged_state(pair, file, sidecar.superblock.mtime_ns))
        found = _verdict(name, both, budget or FlipBudget())
        if found.verdict is not Verdict.INTACT:  # what fits its digests does so whatever happened meanwhile
            _still_there(store, pair)
        return ObjectVerification(replace(found, path=name), sidecar.superblock.protected_ns)
    except (SourceMovedError, SourceBusyError):
        raise
    except (BitwardError, FormatError) as error:
        _still_there(store, pair)
        return ObjectVerification(unverifiable(name, 0, SidecarReport(shown, SidecarState.INTACT), str(error)))
    finally:
        for one in opened:
            one.close()


def _verdict(name: str, both: OpenPair, budget: FlipBudget) -> FileVerification:
    result = scan(both.file, both.sidecar, jobs=1)
    _scatter(both.file)
    if len(result.bad_blocks) <= DECODED_BLOCKS_LIMIT:
        return verdict_of(name, both, result, budget, None, whole=True)
    block = both.sidecar.superblock
    verdict = Verdict.CHANGED if both.modified else Verdict.DAMAGED
    told = f"{len(result.bad_blocks)} blocks differ: too many to be told one by one"
    return FileVerification(
        *(name, verdict, result.scanned_bytes, block.root.hex(), block.origin_label, both.modified, both.sidecar_report()),
        damaged_blocks=len(result.bad_blocks),
        message=told,
    )


def _scatter(file: OpenFile) -> None:
    if isinstance(file, ObjectFile):
        file.scatter()


def _judged_state(pair: StoredPair, file: OpenFile, protected_mtime_ns: int) -> FileState:
    """The state by which damaged and rewritten are told apart.

    What is the very one that was intact with this sidecar was not rewritten, whatever its time. Else a file of this machine has its own. An
    object's time is that of its upload, so it is no news that it differs from the file's; that it is later than the sidecar's is.
    """
    if not isinstance(file, ObjectFile) and pair.rewritten is not False:
        return file.state()
    rewritten = pair.is_newer if pair.rewritten is None else pair.rewritten
    return FileState(pair.state.size, protected_mtime_ns + rewritten, 0, 0)


def _still_there(store: Store, pair: StoredPair) -> None:
    """Raises SourceMovedError unless both are what they were when they were listed; SourceError where that cannot be told."""
    for key, state in ((pair.key, pair.state), (pair.sidecar_key, pair.sidecar_state)):
        if store.state(key) != state:
            raise SourceMovedError(f"{os.path.basename(key)} was exchanged or removed while it was read")
