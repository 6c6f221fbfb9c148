"""What to verify, when to try again, when to give up: from values alone."""

from __future__ import annotations

import random

from bitward.registries.scrub.facts import Finding
from bitward_formats.frozen import dataclass

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
_FINAL = (Finding.INTACT, Finding.DAMAGED, Finding.CHANGED)


@dataclass(frozen=True, slots=True)
class Known:
    """What the state remembers of an object: the marks of object and sidecar when it was last looked at, and when it was last intact."""

    mark: str
    sidecar_mark: str
    finding: Finding
    checked_run: int
    checked_ns: int
    intact_mark: str
    intact_sidecar_mark: str


@dataclass(frozen=True, slots=True)
class Trust:
    """How far earlier verdicts count: those of this run always, intact ones for ``max_age_ns``; 0 for not at all."""

    run: int
    now_ns: int
    max_age_ns: int = 0


def is_due(known: Known | None, mark: str, sidecar_mark: str, trust: Trust) -> bool:
    """Whether an object is to be verified.

    Nothing counts of an object or sidecar that is another one now. A verdict from the future is one of a clock that was wrong.
    """
    if known is None or known.finding not in _FINAL or (known.mark, known.sidecar_mark) != (mark, sidecar_mark):
        return True
    if known.checked_run == trust.run:
        return False
    age_ns = trust.now_ns - known.checked_ns
    return known.finding is not Finding.INTACT or not 0 <= age_ns < trust.max_age_ns


def was_rewritten(known: Known | None, mark: str, sidecar_mark: str) -> bool | None:
    """Whether an object was written since it was last found intact with this very sidecar; ``None`` if it never was."""
    if known is None or not known.intact_mark or known.intact_sidecar_mark != sidecar_mark:
        return None
    return known.intact_mark != mark


def pause_before(attempt: int, retries: int, chance: float | None = None) -> float | None:
    """Seconds before attempt number ``attempt`` (the first one is 1), or ``None`` if there shall be none.

    Twice as long each time, and spread by ``chance`` (0 to 1), so that workers that were refused together do not come back together.
    """
    if attempt - 1 > retries:
        return None
    chance = random.random() if chance is None else chance
    return min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(attempt - 2, 10)) * (0.5 + chance)
