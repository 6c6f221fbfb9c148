"""Hardening a model before it is deployed: a new directory with its files, the guard, perhaps fine-tuned weights, and sidecars.

The model that was given is only read. The new directory appears whole or not at all.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bitward.api import protect, verify
from bitward.drill_copy import copy_file, files_of
from bitward_agent.errors import BitwardError, InputError, WriteError
from bitward_agent.findings import ExitCode, ProgressSink, Verdict
from bitward_agent.hardening import guard_file
from bitward_agent.hardening.exponent_guard import FileGuard, GuardedFile, apply, guarded_elements, measure, would_change
from bitward_agent.io import OpenFile, resolve
from bitward_formats.frozen import dataclass

if TYPE_CHECKING:
    from bitward_agent.hardening.self_correction import TuningReport, TuningRequest

SCHEMA = "bitward.harden/1"


@dataclass(frozen=True, slots=True)
class HardenOrder:
    """``tuning`` of ``None``: no fine-tuning. ``apply_guard``: the guard that lies beside the model is applied; none is measured."""

    model: str
    output: str
    preset: str = "standard"
    apply_guard: bool = False
    tuning: TuningRequest | None = None
    calibration: str | None = None
    max_tokens: int = 2048
    jobs: int | None = None
    progress: ProgressSink | None = None


@dataclass(frozen=True, slots=True)
class GuardReport:
    """The guard that was written. ``bit_guarded`` of ``elements`` have their top exponent bit guarded, the others their range alone;
    ``exceptions`` are single weights in which that bit is the other way. ``unguarded`` are tensors with values that are not finite."""

    file: str
    tensors: int
    elements: int
    bit_guarded: int
    exceptions: int
    unguarded: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HardenReport:
    """The document ``bitward.harden/1``. Of ``guard``, ``tuning`` and ``applied`` only what was asked for is there."""

    schema: str
    model: str
    output: str
    files: int
    bytes: int
    guard: GuardReport | None
    tuning: TuningReport | None
    applied: tuple[GuardedFile, ...]
    sidecar_bytes: int
    findings: tuple[str, ...]
    seconds: float
    notes: tuple[str, ...] = ()
    exit_code: int = ExitCode.OK


def harden(order: HardenOrder, tell: Callable[[int, float], None] | None = None) -> HardenReport:
    """Make a hardened copy of a model.

    Raises:
        InputError: What was asked makes no sense, or the model's sidecars say that it is damaged.
        BitwardError: Files cannot be read or written, or the model cannot be run.
    """
    started = time.monotonic()
    source, output = _checked(order)
    if not order.apply_guard:
        _refuse_damage(order)
    scratch = output.with_name(f".{output.name}.bitward-partial")
    if scratch.exists():
        raise WriteError(f"{scratch}: left by an attempt that was cut short; remove it")
    try:
        files = _copied(source, scratch)
        report = _applied(order, scratch, files) if order.apply_guard else _hardened(order, scratch, files, tell)
        os.replace(scratch, output)
    except OSError as error:
        raise WriteError(f"{output}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return replace(report, seconds=time.monotonic() - started)


def _checked(order: HardenOrder) -> tuple[Path, Path]:
    source, output = Path(order.model).resolve(), Path(order.output).absolute()
    if not source.is_dir():
        raise InputError(f"{order.model}: no such directory")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{order.output}: is there already; the output must be a new directory")
    real = output.resolve()
    if real == source or real.is_relative_to(source) or source.is_relative_to(real):
        raise InputError(f"{order.output}: must lie outside the model; nothing is hardened in place")
    if not real.parent.is_dir():
        raise InputError(f"{output.parent}: no such directory")
    return source, output


def _refuse_damage(order: HardenOrder) -> None:
    """A model that its sidecars know to be damaged must not be hardened: the guard would learn the damage."""
    report = verify(order.model, jobs=order.jobs, progress=order.progress)
    for file in report.files:
        if file.verdict in (Verdict.DAMAGED, Verdict.CHANGED):
            raise InputError(f"{file.path}: {file.verdict.value}, says its sidecar; 'bitward repair' or protect it first")


def _copied(source: Path, target: Path) -> list[Path]:
    """Copy all files but Bitward's own; their paths relative to the model."""
    files = files_of(source)
    target.mkdir(mode=0o755)
    for file in files:
        copy_file(source / file, target / file, lambda _: None)
    return files


def _applied(order: HardenOrder, folder: Path, files: list[Path]) -> HardenReport:
    guard_path = folder / guard_file.NAME
    if not guard_path.is_file():
        raise InputError(f"{order.model}: no {guard_file.NAME} here; 'bitward harden' writes one while a model is well")
    results = []
    for guard in guard_file.read_guards(str(guard_path)):
        path = folder / guard.file
        if Path(guard.file) not in files or path.is_symlink():
            results.append(GuardedFile(guard.file, 0, 0, tuple(one.name for one in guard.tensors)))
        else:
            results.append(apply(str(path), guard))
    notes = ("not protected: what mask and clip leave is not what was there; where a sidecar is at hand, 'bitward repair' gives that back",)
    missing = any(one.missing for one in results)
    code = ExitCode.CANNOT_TELL if missing else ExitCode.OK
    return replace(_report(order, folder, files), applied=tuple(results), notes=notes, exit_code=code)


def _hardened(order: HardenOrder, folder: Path, files: list[Path], tell: Callable[[int, float], None] | None) -> HardenReport:
    tuning = _tuned(order, folder, tell) if order.tuning else None
    guards = [measure(str(folder / file), file.as_posix()) for file in files if file.name != guard_file.NAME]
    guards = [guard for guard in guards if guard.tensors or guard.unguarded]
    if not guards:
        raise InputError(f"{order.model}: no file with tensors of floats in it: nothing could be guarded")
    for guard in guards:
        if would_change(str(folder / guard.file), guard):
            raise BitwardError(f"{guard.file}: its own guard would change it; nothing was written (a fault of Bitward, please report it)")
    guard_file.write_guards(str(folder / guard_file.NAME), guards)
    protected = protect(folder, preset=order.preset, jobs=order.jobs, progress=order.progress)
    if protected.exit_code:
        raise WriteError(f"{order.output}: could not be protected: {next((one.message for one in protected.files if one.message), '')}")
    report = _report(order, folder, [*files, Path(guard_file.NAME)])
    findings = tuple(finding for file in protected.files for finding in file.findings)
    sidecar_bytes = sum(file.sidecar_bytes for file in protected.files)
    return replace(report, guard=_guard_report(guards), tuning=tuning, sidecar_bytes=sidecar_bytes, findings=findings)


def _report(order: HardenOrder, folder: Path, files: list[Path]) -> HardenReport:
    distinct = list(dict.fromkeys(files))
    size = sum((folder / file).stat().st_size for file in distinct)
    return HardenReport(SCHEMA, order.model, order.output, len(distinct), size, None, None, (), 0, (), 0.0)


def _guard_report(guards: list[FileGuard]) -> GuardReport:
    bit_guarded, elements = guarded_elements(guards)
    return GuardReport(
        file=guard_file.NAME,
        tensors=sum(len(guard.tensors) for guard in guards),
        elements=elements,
        bit_guarded=bit_guarded,
        exceptions=sum(len(one.exceptions) for guard in guards for one in guard.tensors),
        unguarded=tuple(name for guard in guards for name in guard.unguarded),
    )


def _tuned(order: HardenOrder, folder: Path, tell: Callable[[int, float], None] | None) -> TuningReport:
    """Fine-tune, and write what changed into the copied files, where it lies."""
    try:
        import torch

        from bitward_agent.diagnosis.calibration import calibration_text
        from bitward_agent.diagnosis.model_files import weight_files
        from bitward_agent.diagnosis.subject import load_subject, told_as_model_error
        from bitward_agent.hardening.self_correction import tune
    except ImportError as error:
        raise BitwardError("fine-tuning runs the model: pip install 'bitward[diagnose]'") from error
    assert order.tuning is not None
    order.tuning.check()
    if order.jobs is not None:
        torch.set_num_threads(order.jobs)
    text = calibration_text(None if order.calibration is None else Path(order.calibration))
    subject = load_subject(order.model, text, max_tokens=order.max_tokens)
    with told_as_model_error(order.model):
        tuned = tune(subject, order.tuning, tell)
    names = {resolve(str(one)): one.name for one in weight_files(Path(order.model))}
    for name, weight in tuned.weights.items():
        place = subject.places[name]
        data = weight.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        for one in (place, *subject.twins.get(name, ())):
            with OpenFile(str(folder / names[one.path]), write=True) as file:
                file.write_all(data, one.offset)
    return tuned.report
