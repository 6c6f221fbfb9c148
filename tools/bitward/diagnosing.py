"""``bitward diagnose``: the ladder, and what a person asked for besides: a repaired copy, a page with pictures."""

from __future__ import annotations

from collections.abc import Callable

from bitward_agent.diagnosis.facts import DiagnosisReport
from bitward_agent.diagnosis.ladder import Request, diagnose, parse_steps
from bitward_agent.findings import ProgressSink
from bitward_formats.frozen import dataclass


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
    diagnosis = diagnose(request, progress=progress, tell=tell)
    return diagnosis.report
