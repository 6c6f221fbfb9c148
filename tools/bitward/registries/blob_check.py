"""A blob on this machine whose SHA-256 is known: is it whole, and where it is damaged if its sidecar can say. Reads only."""

from __future__ import annotations

import os
from dataclasses import replace

from bitward.registries.blob_facts import BlobReport
from bitward.registries.blob_reading import LostRangeError, Wanted, hash_file
from bitward_agent.errors import BitwardError, BusyError, UnreadableError
from bitward_agent.findings import Damage, ExitCode, FileVerification, ProgressSink, SourceUse, Verdict
from bitward_agent.io import OpenFile, reason
from bitward_agent.verify import open_sidecar, verify_file
from bitward_formats.errors import FormatError
from bitward_formats.frozen import dataclass

MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Healing:
    """The state of a blob after it was looked at, and perhaps healed."""

    verdict: Verdict
    repaired: int = 0
    remaining: int = 0
    damage: tuple[Damage, ...] = ()
    sources: tuple[SourceUse, ...] = ()
    message: str = ""
    exit_code: int = 0

    @property
    def fetched_bytes(self) -> int:
        return sum(source.fetched_bytes for source in self.sources)


def not_healed(path: str, error: Exception, sources: tuple[SourceUse, ...] = ()) -> Healing:
    """A damaged blob that could not be worked on: whether it can be healed is not known."""
    message = reason(error) if isinstance(error, OSError) else str(error).removeprefix(f"{path}: ")
    return Healing(Verdict.DAMAGED, sources=sources, message=message, exit_code=ExitCode.CANNOT_TELL)


def report_with(report: BlobReport, found: Healing, action: str = "") -> BlobReport:
    """A blob's report with what was found of it and done with it."""
    return replace(
        report,
        verdict=found.verdict,
        action=action,
        repaired=found.repaired,
        remaining=found.remaining,
        fetched_bytes=found.fetched_bytes,
        damage=found.damage,
        sources=found.sources,
        message=found.message,
        exit_code=found.exit_code,
    )


def difference(wanted: Wanted, found: Wanted) -> str:
    """In words what is wrong with a blob; empty if it is as it should be."""
    if found.size != wanted.size:
        less = found.size < wanted.size
        return (
            f"{abs(wanted.size - found.size):,} of {wanted.size:,} bytes are missing"
            if less
            else (f"has {found.size - wanted.size:,} bytes too many")
        )
    return "" if found.sha256 == wanted.sha256 else "its contents are not what its digest says"


def check_blob(path: str, wanted: Wanted, sidecar: str, *, jobs: int | None = None, progress: ProgressSink | None = None) -> Healing:
    """Whether a blob is whole, and where it is damaged if its sidecar can say. Reads only."""
    try:
        told = difference(wanted, hash_file(path, progress))
    except LostRangeError as error:
        told = str(error).removeprefix(f"{path}: ")
    except (UnreadableError, BusyError) as error:
        if not os.path.lexists(path):
            return Healing(Verdict.DAMAGED, message=MISSING, exit_code=ExitCode.NOT_REPAIRABLE)
        return Healing(Verdict.UNVERIFIABLE, message=str(error).removeprefix(f"{path}: "), exit_code=ExitCode.CANNOT_TELL)
    if not told:
        return Healing(Verdict.INTACT)
    if _is_only_too_long(path, wanted):
        return Healing(Verdict.DAMAGED, message=f"{told}, behind the right ones", exit_code=ExitCode.REPAIRABLE)
    if not os.path.lexists(sidecar):
        return Healing(Verdict.DAMAGED, message=f"{told}; no sidecar says where", exit_code=ExitCode.NOT_REPAIRABLE)
    if foreign := why_foreign(sidecar, wanted):
        return Healing(Verdict.DAMAGED, message=f"{told}; {foreign}", exit_code=ExitCode.NOT_REPAIRABLE)
    return _judged(verify_file(path, sidecar, jobs=jobs, progress=progress), told)


def _is_only_too_long(path: str, wanted: Wanted) -> bool:
    """Whether the right bytes are there, and others behind them: no sidecar is needed to cut those off."""
    try:
        with OpenFile(path) as file:
            if file.state().size <= wanted.size:
                return False
        return hash_file(path, end=wanted.size) == wanted
    except BitwardError:
        return False


def _judged(found: FileVerification, told: str) -> Healing:
    """A blob's name rules out that it was rewritten: what its sidecar calls changed is damaged beyond parity."""
    code = found.exit_code if found.verdict is Verdict.DAMAGED else ExitCode.NOT_REPAIRABLE
    if found.verdict is Verdict.UNVERIFIABLE or found.verdict is Verdict.INTACT:
        told = f"{told}; its sidecar does not help: {found.message or 'it is of other contents'}"
    left = found.damaged_blocks if found.verdict is not Verdict.INTACT else 0
    return Healing(Verdict.DAMAGED, remaining=left, damage=found.damage, message=told, exit_code=code)


def why_foreign(sidecar: str, wanted: Wanted, *, named: bool = False) -> str:
    """Why a sidecar must not be used on a blob; ``named`` demands that it says itself which contents it is of."""
    try:
        ward, read, _ = open_sidecar(sidecar)
        ward.close()
    except (BitwardError, FormatError) as error:
        return f"its sidecar cannot be used: {error}"
    said = read.superblock.trusted_sha256
    if read.superblock.file_bytes != wanted.size or said not in (bytes(32), bytes.fromhex(wanted.sha256)):
        return "its sidecar is of other contents"
    if named and said == bytes(32):
        return "its sidecar does not say which contents it is of: make one anew"
    return ""
