"""``bitward diagnose``: the ladder, and what a person asked for besides: a repaired copy, a page with pictures."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bitward.recovering import write_and_protect
from bitward_agent.diagnosis.calibration import calibration_text
from bitward_agent.diagnosis.facts import DiagnosisReport
from bitward_agent.diagnosis.ladder import Diagnosis, Request, diagnose, parse_steps
from bitward_agent.diagnosis.model_files import model_files
from bitward_agent.diagnosis.writing import contents_of, refuse_output
from bitward_agent.durable import atomic_file, refuse_other_file
from bitward_agent.errors import BitwardError, BusyError, InputError, WriteError
from bitward_agent.findings import ExitCode, ProgressSink
from bitward_agent.io import FileState, OpenFile, resolve
from bitward_formats.errors import MissingExtraError
from bitward_formats.frozen import dataclass

if TYPE_CHECKING:
    from bitward_agent.diagnosis.serving_facts import ServingReport


PAGE_BEGINNING = b"<!doctype html>"


@dataclass(frozen=True, slots=True)
class Wish:
    """The command line's options. ``output``: the directory of the repaired copy, ``None`` if none is wanted; ``html`` a file."""

    model: str
    calibration: str | None
    reference: str | None
    trace: str | None
    donors: tuple[str, ...]
    steps: str | None
    budget_seconds: float | None
    device: str
    output: str | None
    html: str | None
    jobs: int | None


def diagnose_model(wish: Wish, *, progress: ProgressSink | None, tell: Callable[[str], None]) -> DiagnosisReport:
    """Climb the ladder, write what was asked for, and report.

    Raises:
        InputError: the model, a text or an option makes no sense.
        BusyError: the model changed while it was diagnosed.
    """
    request = Request(
        model=wish.model,
        calibration=wish.calibration,
        reference=wish.reference,
        trace=wish.trace,
        donors=wish.donors,
        steps=parse_steps(wish.steps),
        budget_seconds=wish.budget_seconds,
        device=wish.device,
        jobs=wish.jobs,
    )
    if wish.output is not None and not os.path.isdir(wish.model):
        raise InputError(f"{wish.model}: a repaired copy can be written of a model directory only")
    if wish.html is not None:
        refuse_other_file(wish.html, PAGE_BEGINNING)
    contents = None
    if wish.output is not None:
        refuse_output(wish.model, wish.output)
        contents = contents_of(wish.model)
    before = _states(wish.model)
    diagnosis = diagnose(request, progress=progress, tell=tell)
    if changed := [path for path, state in _states(wish.model).items() if before.get(path, state) != state]:
        raise BusyError(f"{changed[0]}: changed while it was diagnosed: diagnose it again when its writer is done")
    report = diagnosis.report
    if contents is not None:
        try:
            report = _applied(wish, diagnosis, contents)
        except WriteError as error:  # what was found in minutes is not to be lost because a disk is full
            report = _with_failure(report, error)
    if wish.html is not None:
        try:
            _write_page(wish.html, report, diagnosis)
        except WriteError as error:
            report = _with_failure(report, error)
    return report


def _states(model: str) -> dict[str, FileState]:
    """The states of the files that are diagnosed, as far as they are there."""
    found: dict[str, FileState] = {}
    with contextlib.suppress(BitwardError):
        files = model_files(Path(model)).files if os.path.isdir(model) else [Path(model)] if os.path.isfile(model) else []
        for path in files:
            with OpenFile(resolve(str(path))) as file:
                found[str(path)] = file.state()
    return found


def _with_failure(report: DiagnosisReport, error: WriteError) -> DiagnosisReport:
    words = "; ".join(one for one in (report.failure, str(error)) if one)
    return replace(report, failure=words, exit_code=ExitCode.worst([report.exit_code, ExitCode.CANNOT_TELL]))


def serving_report(model: str, *, calibration: str | None, device: str, jobs: int | None) -> ServingReport:
    """May a model be served whose sidecars located damage that nothing at hand restores?

    Raises:
        InputError: there is no such model, or it has no lost blocks.
    """
    from bitward.api import verify

    if not os.path.isdir(model):
        raise InputError(f"{model}: a model directory is needed, with its sidecars")
    verified = verify(model, jobs=jobs)
    damages = tuple(one for file in verified.files for one in file.damage if not one.repairable)
    if not damages:
        raise InputError(f"{model}: its sidecars know of no block that cannot be restored (bitward verify: {verified.verdict})")
    try:
        from bitward_agent.diagnosis.serving import judge_serving
        from bitward_agent.diagnosis.subject import load_subject, told_as_model_error
    except ImportError as error:
        raise MissingExtraError(f"judging a model needs {error.name}: pip install 'bitward[diagnose]'") from error
    text = calibration_text(None if calibration is None else Path(calibration))
    subject = load_subject(model, text, device=device)
    with told_as_model_error(model):
        return judge_serving(subject, damages)


def _applied(wish: Wish, diagnosis: Diagnosis, contents: Mapping[str, bytes]) -> DiagnosisReport:
    """The report once the repaired copy is written and protected, if there was anything to repair."""
    report = diagnosis.report
    unflips = [*(one.suspect for one in report.unflips if one.suspect.path), *diagnosis.twins]
    if wish.output is None:
        return report
    if not (unflips or diagnosis.patches):
        return replace(report, exit_code=ExitCode.NOT_REPAIRABLE) if diagnosis.unplaced else report
    written = write_and_protect(
        wish.model, wish.output, unflips=unflips, patches=diagnosis.patches, contents=contents, jobs=wish.jobs
    )
    is_left = not diagnosis.patches and any(one.bit is None for one in report.suspects)
    is_whole = not diagnosis.unplaced and not is_left
    return replace(report, output=written.directory, exit_code=ExitCode.OK if is_whole else ExitCode.NOT_REPAIRABLE)


def _write_page(path: str, report: DiagnosisReport, diagnosis: Diagnosis) -> None:
    from bitward.report.diagnosis_html import Pictures, diagnosis_html

    pictures = Pictures(
        histograms=diagnosis.histograms,
        tensors=diagnosis.tensors,
        sensitivity=dict(diagnosis.sensitivity),
        changed=tuple(one.tensor for one in diagnosis.patches),
    )
    with atomic_file(path) as file:
        file.write_all(diagnosis_html(report, pictures).encode("utf-8", "backslashreplace"), 0)
