"""What a diagnosis finds, as frozen values. Their fields are the JSON document of ``bitward diagnose``."""

from __future__ import annotations

from enum import StrEnum

from bitward_formats.frozen import dataclass


class Step(StrEnum):
    """The rungs of the ladder; ``ladder.ALL_STEPS`` has the order in which they are taken."""

    TRIAGE = "triage"
    DIFFERENTIAL = "differential"
    PERTURBATION = "perturbation"
    PROFILE = "profile"
    RECOVERY = "recovery"


class StepState(StrEnum):
    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Suspect:
    """One place that looks damaged, or a bit whose un-flipping is proposed.

    ``index`` is the element's; for a range (zeroed or repeated bytes) it is the first element's and ``length_bytes`` says how far it goes.
    ``bit`` counts from the least significant bit of the element and is ``None`` where no single bit explains what was found; then
    ``correct`` is ``None`` too. ``found`` and ``correct`` are the element's values: numbers, or one of the strings "nan", "inf", "-inf".
    ``path`` is the file, ``offset`` the byte of it that holds the bit (or the first byte of the range). ``score_nats`` orders
    suspects: the natural logarithm of how much likelier what was found is as damage than as a weight that was trained so. ``kind`` names
    the evidence in one word (``lonely-exponent``, ``not-finite``, ``gradient`` …), ``words`` tells it to people.
    """

    step: Step
    kind: str
    path: str
    tensor: str
    index: tuple[int, ...]
    bit: int | None
    field: str
    offset: int
    length_bytes: int
    found: float | int | str
    correct: float | int | str | None
    score_nats: float
    words: str


@dataclass(frozen=True, slots=True)
class Unflip:
    """A bit that was turned back, on trial or for good. Losses are means in nats per token of the calibration text.

    ``gain_z`` is the improvement on text that took no part in choosing the bit, in standard errors of the paired difference by token;
    ``None`` where the loss before was not a number.
    """

    suspect: Suspect
    loss_before: float | None
    loss_after: float | None
    gain_z: float | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way of recovery that was tried: un-flip, clamp, attenuate, restore. ``accepted`` if it is part of the result."""

    way: str
    what: str
    loss_before: float | None
    loss_after: float | None
    accepted: bool
    words: str


@dataclass(frozen=True, slots=True)
class BlockScore:
    """How suspicious one part of the model is, by one kind of evidence; larger is more."""

    part: str
    evidence: str
    score: float


@dataclass(frozen=True, slots=True)
class StepReport:
    """``words`` tell what the step found and how it knows; ``state`` failed or skipped says why it did not."""

    step: Step
    state: StepState
    seconds: float
    words: tuple[str, ...] = ()


class DiagnosisVerdict(StrEnum):
    """``clean``: every step that was asked for was done and found nothing. ``suspicious``: something was found that no single bit explains
    and nothing undid. ``inconclusive``: some steps could not be done, and nothing was found."""

    CLEAN = "clean"
    FAULT_FOUND = "fault-found"
    SUSPICIOUS = "suspicious"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class DiagnosisReport:
    """The document ``bitward.diagnose/1``. ``loss_*`` are nats per item of the held-out text, ``None`` where not measured or not finite.

    ``failure`` says what was asked for besides, a repaired copy or a page, and could not be written; then the ``exit_code`` is not 0.
    """

    model: str
    architecture: str
    verdict: DiagnosisVerdict
    steps: tuple[StepReport, ...]
    suspects: tuple[Suspect, ...]
    unflips: tuple[Unflip, ...]
    attempts: tuple[Attempt, ...]
    blocks: tuple[BlockScore, ...]
    loss_before: float | None
    loss_after: float | None
    calibration: str
    output: str
    seconds: float
    schema: str = "bitward.diagnose/1"
    exit_code: int = 0
    failure: str = ""
