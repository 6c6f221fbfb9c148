"""The drill: hurt a copy in the ways that the field reports and see whether every byte comes back.

protect -> (damage -> verify -> repair -> compare) for each fault. It uses the public functions and nothing behind them, and judges
by SHA-256, not by what they say.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from bitward.api import protect, repair, verify
from bitward.drill_copy import make_copy, sha256_of, temporary_folder
from bitward.drill_faults import Fault, faults_for, located
from bitward.inject import InjectReport, inject
from bitward_agent.findings import Damage, ExitCode, FileVerification, Progress, ProgressSink, SidecarState, Verdict, VerifyReport
from bitward_agent.io import OpenFile
from bitward_agent.neighbours import layout_of_file
from bitward_formats.frozen import dataclass
from bitward_formats.spans import Layout

SCHEMA = "bitward.drill/1"


@dataclass(frozen=True, slots=True)
class FaultResult:
    """What became of one fault. ``located`` is None where there is nothing to name; ``left_out`` is a reason, or empty.

    ``first_block`` is the first damage that verify named, with its first flip alone.
    """

    name: str
    found: bool = False
    located: bool | None = None
    repaired: bool = False
    verify_seconds: float = 0.0
    repair_seconds: float = 0.0
    verify_exit_code: int = 0
    repair_exit_code: int = 0
    first_block: Damage | None = None
    left_out: str = ""

    @property
    def came_back(self) -> bool:
        return bool(self.left_out) or (self.found and self.repaired)


@dataclass(frozen=True, slots=True)
class Prepared:
    """The copy stands and is protected. ``file`` is the part of it that will be damaged."""

    path: str
    file: str
    bytes: int
    file_bytes: int
    sidecar_bytes: int
    protect_seconds: float


@dataclass(frozen=True, slots=True)
class DrillReport:
    """``path`` is empty if the drill made its own checkpoint. Counts leave out the faults that were left out."""

    schema: str
    path: str
    file: str
    bytes: int
    sidecar_bytes: int
    seed: int
    seconds: float
    protect_seconds: float
    came_back: int
    drilled: int
    faults: tuple[FaultResult, ...]
    exit_code: int = 0


Tell = Callable[[Prepared | FaultResult], None]
Watch = Callable[[], AbstractContextManager[ProgressSink | None]]


@dataclass(frozen=True, slots=True)
class _Patient:
    """The protected copy: the unit, the file to be hurt, and pristine twins to start over from."""

    unit: Path
    file: Path
    sidecar: Path
    pristine: Path
    pristine_sidecar: Path
    sha256: str
    jobs: int | None

    def reset(self) -> None:
        """Start over after a fault that did not come back."""
        shutil.copy2(self.pristine, self.file)
        shutil.copy2(self.pristine_sidecar, self.sidecar)


def drill(
    path: str | os.PathLike[str] | None = None,
    *,
    seed: int = 1,
    jobs: int | None = None,
    tell: Tell | None = None,
    watch: Watch = nullcontext,
) -> DrillReport:
    """Run the drill on a copy of ``path``, or on a small checkpoint of its own.

    ``tell`` gets each result as it comes; ``watch`` makes a context with a progress sink for each step. Raises OSError.
    """
    started = time.perf_counter()
    original = None if path is None else Path(path).resolve(strict=True)
    results: list[FaultResult] = []
    with temporary_folder() as folder:
        with watch() as sink:
            patient, prepared = _prepare(original, folder, seed, jobs, sink)
        if tell:
            tell(prepared)
        for number, fault in enumerate(faults_for(_layout(patient.file))):
            if fault.left_out:
                result = FaultResult(fault.name, left_out=fault.left_out)
            else:
                with watch() as sink:
                    result = _run(fault, patient, seed + number, sink)
            results.append(result)
            if tell:
                tell(result)
    drilled = [result for result in results if not result.left_out]
    came_back = sum(result.came_back for result in drilled)
    exit_code = ExitCode.OK if came_back == len(drilled) else ExitCode.NOT_REPAIRABLE
    seconds = time.perf_counter() - started
    told_path = "" if path is None else os.fspath(path)
    return DrillReport(
        SCHEMA, told_path, prepared.file, prepared.bytes, prepared.sidecar_bytes, seed, seconds, prepared.protect_seconds,
        came_back, len(drilled), tuple(results), exit_code,
    )  # fmt: skip


def _layout(path: Path) -> Layout:
    with OpenFile(os.path.realpath(path)) as file:
        return layout_of_file(file, file.state().size)


def _prepare(original: Path | None, folder: Path, seed: int, jobs: int | None, sink: ProgressSink | None) -> tuple[_Patient, Prepared]:
    """Copy and protect. Raises OSError if either fails."""

    def report(path: str, done_bytes: int, total_bytes: int) -> None:
        if sink:
            sink(Progress("copy", path, done_bytes, total_bytes))

    unit, file = make_copy(original, folder / "copy", seed, report)
    done = protect(unit, jobs=jobs, progress=sink)
    mine = next((one for one in done.files if Path(one.path).resolve() == file), None)
    if done.exit_code != ExitCode.OK or mine is None:
        reason = "; ".join(one.message for one in done.files if one.message) or f"exit code {done.exit_code}"
        raise OSError(None, f"the copy could not be protected: {reason}", str(original or file))
    pristine = original if original is not None and unit == file else None
    if pristine is None:
        pristine = folder / "pristine"
        shutil.copy2(file, pristine)
    shutil.copy2(mine.sidecar, folder / "pristine.ward")
    patient = _Patient(unit, file, Path(mine.sidecar), pristine, folder / "pristine.ward", sha256_of(file), jobs)
    name = str(file.relative_to(unit)) if unit != file else file.name
    sidecar_bytes = sum(one.sidecar_bytes for one in done.files)
    return patient, Prepared(str(original or ""), name, done.bytes, mine.bytes, sidecar_bytes, done.seconds)


def _run(fault: Fault, patient: _Patient, seed: int, sink: ProgressSink | None) -> FaultResult:
    """One fault from damage to comparison."""
    done = _damage(fault, patient, seed)
    if done is not None and done.zero is not None and not done.zero.changed_bits:
        patient.reset()  # the sidecar may have been hurt already
        return FaultResult(fault.name, left_out="the bytes that would be zeroed are zero already")
    seen = verify(patient.unit, jobs=patient.jobs, progress=sink)
    file = _about(seen, patient.file)
    mended = repair(patient.unit, jobs=patient.jobs, progress=sink)
    same = sha256_of(patient.file) == patient.sha256
    again = verify(patient.unit, jobs=patient.jobs, progress=sink)
    after = _about(again, patient.file)
    repaired = same and again.exit_code == ExitCode.OK and after.verdict is Verdict.INTACT and after.sidecar.state is SidecarState.INTACT
    if not repaired:
        patient.reset()
    found = (file.verdict is Verdict.DAMAGED or not fault.hurts_file) and (
        file.sidecar.state is not SidecarState.INTACT or not fault.sidecar_flips
    )
    first = next((replace(one, flips=one.flips[:1]) for one in file.damage), None)
    return FaultResult(
        fault.name, found, located(done, file.damage) if done else None, repaired, seen.seconds, mended.seconds,
        seen.exit_code, mended.exit_code, first,
    )  # fmt: skip


def _damage(fault: Fault, patient: _Patient, seed: int) -> InjectReport | None:
    if fault.sidecar_flips:
        inject(patient.sidecar, flips=fault.sidecar_flips, seed=seed, keep_mtime=True)
    if not fault.hurts_file:
        return None
    return inject(
        patient.file,
        flips=fault.flips,
        lanes=fault.lanes,
        burst_bytes=fault.burst_bytes,
        zero_bytes=fault.zero_bytes,
        seed=seed,
        keep_mtime=True,
    )


def _about(report: VerifyReport, path: Path) -> FileVerification:
    """What a report says of one file."""
    for file in report.files:
        if Path(file.path).resolve() == path:
            return file
    raise LookupError(f"verify said nothing about {path.name}")
