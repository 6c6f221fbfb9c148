"""What a scrub's parts tell each other, and what it reports, as frozen values."""

from __future__ import annotations

from enum import StrEnum

from bitward_agent.findings import Damage, ExitCode
from bitward_agent.stores import ObjectState
from bitward_agent.verify_object import StoredPair
from bitward_formats.frozen import dataclass


class Finding(StrEnum):
    """What is known of an object. "Cannot check" is never "intact", and neither is what has not been looked at yet."""

    INTACT = "intact"
    DAMAGED = "damaged"
    CHANGED = "changed"
    UNPROTECTED = "unprotected"
    SIDECAR_ALONE = "sidecar-alone"
    UNCHECKED = "cannot-check"
    WAITING = "not-yet"
    GONE = "gone"


def exit_code_of(finding: Finding, *, repairable: bool) -> int:
    """The exit code that one object asks for."""
    match finding:
        case Finding.INTACT:
            return ExitCode.OK
        case Finding.DAMAGED:
            return ExitCode.REPAIRABLE if repairable else ExitCode.NOT_REPAIRABLE
        case Finding.CHANGED | Finding.GONE:
            return ExitCode.CHANGED
        case _:
            return ExitCode.CANNOT_TELL


@dataclass(frozen=True, slots=True)
class CheckTask:
    """One object to verify. ``store`` is the address that it was found under, ``url`` its own, as it may be shown."""

    store: str
    url: str
    pair: StoredPair
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class UnitTask:
    """One directory to hold against its index. ``folder`` is a key with a slash at its end, or empty."""

    store: str
    url: str
    folder: str
    index_key: str
    index_state: ObjectState
    attempt: int = 1


Task = CheckTask | UnitTask


@dataclass(frozen=True, slots=True)
class Effort:
    """What a task cost, and on whom. ``peak_rss_bytes`` is the worker's highest resident memory so far."""

    seconds: float = 0.0
    fetched_bytes: int = 0
    requests: int = 0
    worker: str = ""
    peak_rss_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ObjectResult:
    """What became of a ``CheckTask``. ``passing``: the reason may pass, so that another try is worth it.

    ``pair`` is what was looked at, which may be newer than what the task named. ``damage`` is cut; ``damaged_blocks`` and ``flip_count``
    are not.
    """

    pair: StoredPair
    finding: Finding
    message: str
    effort: Effort
    passing: bool = False
    bytes: int = 0
    root: str = ""
    origin: str = ""
    modified: bool = False
    protected_ns: int = 0
    sidecar: str = ""
    damaged_blocks: int = 0
    flip_count: int = 0
    repairable: bool = False
    damage: tuple[Damage, ...] = ()


@dataclass(frozen=True, slots=True)
class UnitResult:
    """What became of a ``UnitTask``. ``missing`` and ``unprotected`` are cut, their counts are not; ``roots`` are what the index binds."""

    finding: Finding
    message: str
    effort: Effort
    passing: bool = False
    files: int = 0
    missing_count: int = 0
    unprotected_count: int = 0
    missing: tuple[str, ...] = ()
    unprotected: tuple[str, ...] = ()
    roots: tuple[tuple[str, str], ...] = ()


Result = ObjectResult | UnitResult


@dataclass(frozen=True, slots=True)
class Row:
    """One object in the report. Times are Unix seconds, 0 for never; ages are in seconds, -1 for never."""

    url: str
    finding: Finding
    message: str
    size: int
    mark: str
    modified: bool
    stored_at: float
    protected_at: float
    checked_at: float
    intact_at: float
    intact_age_seconds: float
    checked_now: bool
    attempts: int
    seconds: float
    fetched_bytes: int
    requests: int
    root: str
    origin: str
    sidecar: str
    damaged_blocks: int
    flip_count: int
    repairable: bool
    damage: tuple[Damage, ...]


@dataclass(frozen=True, slots=True)
class UnitRow:
    """One directory in the report."""

    url: str
    finding: Finding
    message: str
    files: int
    missing_count: int
    unprotected_count: int
    missing: tuple[str, ...]
    unprotected: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """A place that could not be listed."""

    place: str
    message: str


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts of objects by finding. ``checked`` were verified in this run, ``skipped`` earlier, as a resumed run or ``--max-age`` allow."""

    intact: int = 0
    damaged: int = 0
    repairable: int = 0
    changed: int = 0
    unprotected: int = 0
    sidecar_alone: int = 0
    cannot_check: int = 0
    not_yet: int = 0
    gone: int = 0
    checked: int = 0
    skipped: int = 0
    tries: int = 0

    @property
    def objects(self) -> int:
        return sum(
            (self.intact, self.damaged, self.changed, self.unprotected, self.sidecar_alone, self.cannot_check, self.not_yet, self.gone)
        )


@dataclass(frozen=True, slots=True)
class WorkerUse:
    """One worker process: where it ran, what it did, and its highest resident memory."""

    worker: str
    tasks: int
    peak_rss_bytes: int


@dataclass(frozen=True, slots=True)
class ScrubReport:
    """``ages``: for how many objects it is how long since they were last known intact. ``bad`` is cut; the files of the report are not."""

    schema: str
    prefixes: tuple[str, ...]
    engine: str
    run: int
    resumed: bool
    interrupted: bool
    seconds: float
    bytes: int
    fetched_bytes: int
    totals: Totals
    ages: tuple[tuple[str, int], ...]
    bad: tuple[Row, ...]
    slow: tuple[Row, ...]
    units: int
    bad_units: tuple[UnitRow, ...]
    problems: tuple[Problem, ...]
    workers: tuple[WorkerUse, ...]
    workers_lost: int
    state: str
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    exit_code: int = 0
