"""The ladder: step after step, each naming its evidence, the model loaded at most once; what one step cannot do, the next may.

Nothing is written here. What was found comes back as a report, with what the caller needs to write a repaired copy.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bitward_agent.diagnosis.calibration import OWN_TEXT, calibration_text
from bitward_agent.diagnosis.facts import (
    Attempt,
    BlockScore,
    DiagnosisReport,
    DiagnosisVerdict,
    Step,
    StepReport,
    StepState,
    Suspect,
    Unflip,
)
from bitward_agent.diagnosis.step_words import KNOWS_NOTHING, counted, loss_words, without_place
from bitward_agent.diagnosis.triage import ExponentHistogram, TriageReport, best_proposals, triage
from bitward_agent.errors import BitwardError, InputError
from bitward_agent.findings import ExitCode, ProgressSink
from bitward_formats.errors import FormatError
from bitward_formats.frozen import dataclass

if TYPE_CHECKING:
    from bitward_agent.diagnosis.run_model import Differences, ModelSteps
    from bitward_agent.diagnosis.writing import Patch

ALL_STEPS = (Step.TRIAGE, Step.DIFFERENTIAL, Step.PROFILE, Step.PERTURBATION, Step.RECOVERY)
_EXIT_CODES = {
    DiagnosisVerdict.CLEAN: ExitCode.OK,
    DiagnosisVerdict.FAULT_FOUND: ExitCode.REPAIRABLE,
    DiagnosisVerdict.SUSPICIOUS: ExitCode.NOT_REPAIRABLE,
    DiagnosisVerdict.INCONCLUSIVE: ExitCode.CANNOT_TELL,
}
_LISTED = 3
TELLING = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Request:
    """What to diagnose and how far to go. ``steps`` empty: all that make sense. ``budget_seconds`` bounds the whole, step by step."""

    model: str
    calibration: str | None = None
    reference: str | None = None
    trace: str | None = None
    donors: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    budget_seconds: float | None = None
    device: str = "cpu"
    jobs: int | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The report, and what a picture or a repaired copy of the model is made from.

    ``twins`` are the bits of the report's un-flips in further places: a tensor that is stored twice is written twice. ``unplaced`` are
    tensors that were changed and that no file holds as they are: they cannot be written.
    """

    report: DiagnosisReport
    histograms: tuple[ExponentHistogram, ...]
    patches: tuple[Patch, ...] = ()
    twins: tuple[Suspect, ...] = ()
    unplaced: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    sensitivity: tuple[tuple[str, float], ...] = ()


def parse_steps(words: str | None) -> tuple[Step, ...]:
    """``triage,profile`` → steps, in the ladder's order.

    Raises:
        InputError: a word is no step.
    """
    if not words:
        return ()
    names = [word.strip() for word in words.split(",") if word.strip()]
    unknown = [name for name in names if name not in set(Step)]
    if unknown or not names:
        raise InputError(f"--steps {words}: no step is called {(unknown or [words])[0]!r}; there are {', '.join(ALL_STEPS)}")
    return tuple(step for step in ALL_STEPS if step in names)


def diagnose(request: Request, *, progress: ProgressSink | None = None, tell: TELLING = lambda _: None) -> Diagnosis:
    """Climb the ladder.

    Raises:
        InputError: there is no such model, or nothing in it that holds weights. What only a step needs makes that step fail.
    """
    return _Ladder(request, progress, tell).climb()


class _Ladder:
    def __init__(self, request: Request, progress: ProgressSink | None, tell: TELLING) -> None:
        self.request, self.progress, self.tell = request, progress, tell
        self.started = time.monotonic()
        self.steps: list[StepReport] = []
        self.suspects: list[Suspect] = []
        self.unflips: list[Unflip] = []
        self.attempts: list[Attempt] = []
        self.blocks: list[BlockScore] = []
        self.histograms: tuple[ExponentHistogram, ...] = ()
        self.triaged: TriageReport | None = None
        self.model: ModelSteps | None = None
        self.is_cut_short = False
        self.is_refused = False
        self.is_told = False
        self.loss_before: float | None = None
        self.loss_after: float | None = None

    def climb(self) -> Diagnosis:
        request = self.request
        is_file = os.path.isfile(request.model)
        is_factory = not os.path.exists(request.model) and ":" in request.model
        if not is_file and not is_factory and not os.path.isdir(request.model):
            raise InputError(f"{request.model}: no such file or directory (a model is a directory, a file, or module:factory)")
        wanted = request.steps or tuple(step for step in ALL_STEPS if step is not Step.DIFFERENTIAL or request.reference or request.trace)
        if is_file:
            wanted = request.steps or (Step.TRIAGE,)
        for step in wanted:
            if step is Step.TRIAGE and is_factory:
                self._skip(step, "the model comes from a factory: there are no files to look at")
            elif step is not Step.TRIAGE and is_file:
                self._skip(step, "a file alone cannot be run; give its model directory")
            else:
                self._take(step)
        return self._diagnosis()

    def seconds_left(self) -> float:
        """Of the budget; infinite where there is none."""
        if self.request.budget_seconds is None:
            return math.inf
        return self.request.budget_seconds - (time.monotonic() - self.started)

    def _skip(self, step: Step, why: str) -> None:
        self.steps.append(StepReport(step, StepState.SKIPPED, 0.0, (why,)))
        self.is_cut_short |= self.seconds_left() <= 0
        self.is_refused |= step in self.request.steps

    def _take(self, step: Step) -> None:
        works: dict[Step, Callable[[], Sequence[str]]] = {
            Step.TRIAGE: self._triage,
            Step.DIFFERENTIAL: self._differential,
            Step.PERTURBATION: self._perturbation,
            Step.PROFILE: self._profile,
            Step.RECOVERY: self._recovery,
        }
        began, turned = time.monotonic(), len(self.unflips)
        if self.seconds_left() <= 0:
            self._skip(step, "the budget was used up")
            return
        self.tell(f"{step} …")
        try:
            words, state = tuple(works[step]()), StepState.DONE
        except (BitwardError, FormatError) as error:
            if step is Step.TRIAGE and isinstance(error, InputError):
                raise
            words, state = (str(error),), StepState.FAILED
        except MemoryError:
            words, state = ("not enough memory for this step",), StepState.FAILED
        except Exception as error:
            # Somebody else's model may raise anything when it is run; torch says almost everything by RuntimeError, out of memory among it.
            if step is Step.TRIAGE and not isinstance(error, RuntimeError):
                raise
            said = (str(error).splitlines() or ["no message"])[0][:300]
            kind = "torch" if isinstance(error, RuntimeError) else f"running the model failed: {type(error).__name__}"
            words, state = ("not enough memory for this step" if "memory" in said.lower() else f"{kind}: {said}",), StepState.FAILED
        words += without_place(self.unflips[turned:])
        if self.model is not None and not self.is_told:
            self.is_told = True
            words += self.model.subject.notes
        self.steps.append(StepReport(step, state, time.monotonic() - began, words))

    # ------------------------------------------------------------------------------------------------------------- the steps

    def _triage(self) -> list[str]:
        report = triage([Path(self.request.model)], jobs=self.request.jobs, progress=self.progress)
        self.triaged = report
        self.histograms = report.histograms
        self.suspects += report.suspects
        proposals = best_proposals(report)
        self.is_refused |= not report.is_whole
        if report.bytes == 0 and report.notes:
            raise BitwardError("; ".join(report.notes[:_LISTED]))
        if report.bytes == 0:
            raise InputError(f"{self.request.model}: no weights were found here")
        rate = report.bytes / max(report.seconds, 1e-9)
        words = [f"{report.bytes:,} bytes of tensors looked at, {rate / 1e6:,.0f} MB/s", *report.notes]
        words.append(counted(len(proposals), "bit") + " to turn back" if proposals else "no weight stands out that a single bit explains")
        others = len(report.suspects) - len(proposals)
        if others:
            words.append(counted(others, "place") + " that no single bit explains")
        return words

    def _loaded(self) -> ModelSteps:
        """The model, loaded when a step first needs it; the steps after a failure do not try again."""
        if self.model is None:
            if any("cannot be run" in word for report in self.steps for word in report.words):
                raise BitwardError("the model cannot be run (see above)")
            text = calibration_text(None if self.request.calibration is None else Path(self.request.calibration))
            try:
                from bitward_agent.diagnosis.run_model import ModelSteps
            except ImportError as error:
                raise BitwardError(f"the model cannot be run: {error.name} is missing (pip install 'bitward[diagnose]')") from error
            try:
                self.model = ModelSteps(self.request.model, text, self.request.device, lambda: self.seconds_left() <= 0)
            except BitwardError as error:
                raise BitwardError(f"the model cannot be run: {error}") from error
            self.loss_before = self.loss_after = self.model.loss()
            self._confirm_triage(self.model)
        return self.model

    def _confirm_triage(self, model: ModelSteps) -> None:
        """Turn back what triage proposes; what makes the model worse is taken back."""
        if self.triaged is None:
            return
        self.tell("trying what triage proposes …")
        self.suspects = model.without_twins(self.suspects)
        proposals = model.without_twins(best_proposals(self.triaged))
        if proposals:
            unflips, refused = model.try_proposals(proposals)
            self.unflips += unflips
            self.suspects = [one for one in self.suspects if one not in refused]
        if any(one.kind == "not-finite" and one.bit is None for one in self.suspects):
            unflips, explained = model.make_numbers(self.suspects)
            self.unflips += unflips
            self.suspects = [*(one for one in self.suspects if one not in explained), *(one.suspect for one in unflips)]
        self.loss_after = model.loss()

    def _profile(self) -> list[str]:
        model = self._loaded()
        if self.loss_after is None:
            raise BitwardError("the loss is not a number, so no bit can be weighed by it; triage has nothing (more) to turn back")
        candidates = self.triaged.candidates if self.triaged is not None else ()
        found = model.profile(candidates, self.tell)
        self.unflips += found
        self.suspects += [one.suspect for one in found]
        self.loss_after = model.loss()
        words = [f"loss {loss_words(self.loss_before)} at first, {loss_words(self.loss_after)} now (nats per item of the held-out text)"]
        words.append(counted(len(found), "bit") + " confirmed by held-out text" if found else "no bit wins enough on held-out text")
        if self.seconds_left() <= 0:
            self.is_cut_short = True
            words.append("the budget was used up: more may be there")
        return words

    def _differential(self) -> list[str]:
        model = self._loaded()
        words: list[str] = []
        if self.request.trace is not None:
            words += self._taken_over(model.against_trace(self.request.trace))
        if self.request.reference is not None:
            words += self._taken_over(model.against_reference(self.request.reference))
        if not words:
            raise BitwardError("neither a reference (--reference) nor a trace (--trace) was given")
        self.loss_after = model.loss()
        return words

    def _taken_over(self, found: Differences) -> list[str]:
        known = {(one.path, one.tensor, one.index) for one in self.suspects}
        self.suspects += [one for one in found.suspects if (one.path, one.tensor, one.index) not in known]
        self.unflips += found.unflips
        self.blocks += found.blocks
        return list(found.words)

    def _perturbation(self) -> list[str]:
        scores, words = self._loaded().perturbation()
        self.blocks += scores
        self.is_cut_short |= self.seconds_left() <= 0
        self.is_refused |= not scores and Step.PERTURBATION in self.request.steps
        return words

    def _recovery(self) -> list[str]:
        model = self._loaded()
        attempts, words = model.recover(self.suspects, self.request.donors)
        self.attempts += attempts
        self.is_cut_short |= self.seconds_left() <= 0
        self.loss_after = model.loss()
        return words

    # ------------------------------------------------------------------------------------------------------------ the report

    def _diagnosis(self) -> Diagnosis:
        if self.model is None and self.triaged is not None:
            # Without a model to ask, the census alone speaks.
            self.unflips += [Unflip(one, None, None, None) for one in best_proposals(self.triaged)]
        if self.model is not None and self.model.knows_nothing(self.loss_after) and not self.unflips:
            last = self.steps.pop()
            self.steps.append(replace(last, words=(*last.words, KNOWS_NOTHING)))
        verdict = self._verdict()
        report = DiagnosisReport(
            model=self.request.model,
            architecture=self.model.architecture if self.model is not None else "",
            verdict=verdict,
            steps=tuple(self.steps),
            suspects=tuple(sorted(self.suspects, key=lambda one: -one.score_nats)),
            unflips=tuple(self.unflips),
            attempts=tuple(self.attempts),
            blocks=tuple(self.blocks),
            loss_before=self.loss_before,
            loss_after=self.loss_after,
            calibration=self.request.calibration or OWN_TEXT,
            output="",
            seconds=time.monotonic() - self.started,
            exit_code=_EXIT_CODES[verdict],
        )
        if self.model is None:
            return Diagnosis(report, self.histograms)
        twins = self.model.twins_of([one.suspect for one in self.unflips])
        unplaced = (*(one.suspect.tensor for one in self.unflips if not one.suspect.path), *self.model.unplaced())
        model = self.model
        return Diagnosis(report, self.histograms, model.patches(), twins, unplaced, model.tensors(), model.sensitivity())

    def _verdict(self) -> DiagnosisVerdict:
        if self.unflips or any(one.accepted for one in self.attempts):
            return DiagnosisVerdict.FAULT_FOUND
        if self.suspects or any(one.evidence == "trace" for one in self.blocks):
            return DiagnosisVerdict.SUSPICIOUS
        if self.model is not None and (self.model.subject.is_part or self.model.knows_nothing(self.loss_after)):
            return DiagnosisVerdict.INCONCLUSIVE
        done = [one for one in self.steps if one.state is StepState.DONE]
        failed = [one for one in self.steps if one.state is StepState.FAILED]
        is_whole = bool(done) and not (failed or self.is_cut_short or self.is_refused)
        return DiagnosisVerdict.CLEAN if is_whole else DiagnosisVerdict.INCONCLUSIVE
