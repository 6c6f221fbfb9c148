"""What Bitward finds and does, as frozen values. Their fields are the JSON documents of the command line.

Damage is data here, never an exception, and "cannot check" is a verdict of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum

from bitward_formats.frozen import dataclass

FLIPS_LISTED_LIMIT = 100_000
"""Most flips that one report lists one by one; ``flip_count`` always counts all of them."""


class Verdict(StrEnum):
    """The state of a file. There is no fifth, and none of them is a bool."""

    INTACT = "intact"
    DAMAGED = "damaged"
    CHANGED = "changed"
    UNVERIFIABLE = "unverifiable"


class SidecarState(StrEnum):
    INTACT = "intact"
    HEALED = "healed"
    DAMAGED = "damaged"
    MISSING = "missing"


class ExitCode:
    """Exit codes of the command line. The most severe of all paths wins."""

    OK = 0
    REPAIRABLE = 1
    USAGE = 2
    CANNOT_TELL = 3
    NOT_REPAIRABLE = 4
    CHANGED = 5
    INTERNAL = 70

    SEVERITY = (OK, CHANGED, CANNOT_TELL, REPAIRABLE, NOT_REPAIRABLE)

    @classmethod
    def worst(cls, codes: Iterable[int]) -> int:
        """The most severe of some verdict codes; 0 for none."""
        return max(codes, key=cls.SEVERITY.index, default=cls.OK)


@dataclass(frozen=True, slots=True)
class Flip:
    """One wrong bit.

    ``bit`` counts from the least significant bit of the element; ``offset`` is the byte of the file that holds the bit.
    ``found`` and ``correct`` are the element's values: numbers, or one of the strings "nan", "inf", "-inf".
    """

    tensor: str | None
    index: tuple[int, ...]
    bit: int
    field: str
    offset: int
    found: float | int | str
    correct: float | int | str


@dataclass(frozen=True, slots=True)
class Damage:
    """One bad block. ``offset`` and ``length`` give the block's range in the file, in bytes.

    ``unreadable``: the medium gave an error; ``missing``: the file ends before the block does. ``block`` is the block's index in its span.
    ``flips`` may be cut; ``flip_count`` is not, and 0 when what was there is unknown.
    """

    tensor: str | None
    block: int
    offset: int
    length: int
    repairable: bool
    source: str
    medium: str
    flip_count: int
    flips: tuple[Flip, ...] = ()
    unreadable: bool = False
    missing: bool = False


@dataclass(frozen=True, slots=True)
class SidecarReport:
    """``path`` is empty when there is none; ``lost_pages`` counts pages that failed their check."""

    path: str
    state: SidecarState
    lost_pages: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class LiveReport:
    """The image of a file in a process's memory, where a report is about that and not about the file.

    ``mapping`` is shared (its pages are the page cache) or private (pages may be copies of the process's own). ``own_bytes`` counts bytes
    of pages that are such copies, ``None`` where the kernel does not tell. ``partial_blocks`` were mapped in part only: the rest of
    them was taken from the file. ``changed`` are tensors that the process itself has changed, as far as can be told. ``deleted``: the
    file has no name any more.
    """

    pid: int
    process: str
    mapping: str
    addresses: tuple[str, ...]
    mapped_bytes: int
    own_bytes: int | None
    partial_blocks: int = 0
    changed: tuple[str, ...] = ()
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class FileVerification:
    path: str
    verdict: Verdict
    bytes: int
    root: str
    origin: str
    modified: bool
    sidecar: SidecarReport
    damage: tuple[Damage, ...] = ()
    damaged_blocks: int = 0
    message: str = ""
    live: LiveReport | None = None

    @property
    def exit_code(self) -> int:
        match self.verdict:
            case Verdict.INTACT:
                return ExitCode.OK
            case Verdict.CHANGED:
                return ExitCode.CHANGED
            case Verdict.UNVERIFIABLE:
                return ExitCode.CANNOT_TELL
            case Verdict.DAMAGED:
                lost = not self.damage or not all(one.repairable for one in self.damage)
                return ExitCode.NOT_REPAIRABLE if lost else ExitCode.REPAIRABLE


@dataclass(frozen=True, slots=True)
class UnitReport:
    """A directory as one unit: its index file and what it says of files that came, went or were protected anew by themselves.

    ``unprotected`` files are in the directory and not in its index; the sidecars of ``mismatched`` ones have another root than the index.
    """

    path: str
    root: str
    state: SidecarState
    missing: tuple[str, ...] = ()
    unprotected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    message: str = ""

    @property
    def exit_code(self) -> int:
        if self.missing:
            return ExitCode.NOT_REPAIRABLE
        if self.unprotected or self.mismatched or not self.root:
            return ExitCode.CANNOT_TELL
        return ExitCode.OK


@dataclass(frozen=True, slots=True)
class VerifyReport:
    schema: str
    verdict: Verdict
    bytes: int
    seconds: float
    files: tuple[FileVerification, ...]
    units: tuple[UnitReport, ...] = ()
    exit_code: int = 0
    sealed_by: str = ""


@dataclass(frozen=True, slots=True)
class Write:
    """One range that a repair wrote, or with ``--dry-run`` would write.

    ``vouched`` is false only for what ``--best-effort`` writes: parity says so, but no digest does. ``before`` and ``after`` are digests of
    the block's bytes (XXH3 leaves, in hexadecimal), so that a log of repairs can be held against copies.
    """

    tensor: str | None
    block: int
    offset: int
    length: int
    source: str
    flip_count: int
    vouched: bool = True
    before: str = ""
    after: str = ""


@dataclass(frozen=True, slots=True)
class SourceUse:
    """What one source was good for: blocks taken from it, and what asking cost. ``name`` has no credentials in it.

    ``wrong_blocks`` came from it with bytes that their digests refuse; ``error`` is why it could give no more.
    """

    name: str
    blocks: int
    fetched_bytes: int
    requests: int
    wrong_blocks: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class FileRepair:
    """``repaired`` and ``remaining`` count blocks. ``verdict`` is the state after the repair.

    ``sources`` has an entry for each source of the file, in their order.
    """

    path: str
    verdict: Verdict
    bytes: int
    root: str
    origin: str
    modified: bool
    sidecar: SidecarReport
    repaired: int
    remaining: int
    writes: tuple[Write, ...] = ()
    damage: tuple[Damage, ...] = ()
    dry_run: bool = False
    message: str = ""
    exit_code: int = 0
    sources: tuple[SourceUse, ...] = ()
    live: LiveReport | None = None


@dataclass(frozen=True, slots=True)
class RepairReport:
    schema: str
    verdict: Verdict
    bytes: int
    seconds: float
    repaired: int
    remaining: int
    files: tuple[FileRepair, ...]
    units: tuple[UnitReport, ...] = ()
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class GuardedTensor:
    """A tensor in memory and its state after a check. ``unverifiable``: it is not guarded, ``message`` says why.

    ``path`` is the file that has a tensor of this name, "" if none has.
    """

    name: str
    path: str
    verdict: Verdict
    message: str = ""


@dataclass(frozen=True, slots=True)
class GuardReport:
    """One look at tensors in memory. ``files`` tell what was found, by file; ``verdict`` is the state after healing.

    ``repaired`` and ``remaining`` count blocks. ``bytes`` were compared.
    """

    schema: str
    verdict: Verdict
    bytes: int
    seconds: float
    repaired: int
    remaining: int
    files: tuple[FileVerification, ...]
    tensors: tuple[GuardedTensor, ...]
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class FileProtection:
    """``findings`` are things about the file which look wrong already, ``evidence`` is what vouches for it, in plain words."""

    path: str
    bytes: int
    sidecar: str
    sidecar_bytes: int
    root: str
    origin: str
    preset: str
    format: str
    tensors: int
    blocks: int
    note: str = ""
    findings: tuple[str, ...] = ()
    message: str = ""
    exit_code: int = 0
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProtectReport:
    schema: str
    bytes: int
    seconds: float
    files: tuple[FileProtection, ...]
    units: tuple[UnitReport, ...] = ()
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """``task`` names what is done (protect, verify, locate, sidecar, diff …); both counts are bytes of this file."""

    task: str
    path: str
    done_bytes: int
    total_bytes: int


ProgressSink = Callable[[Progress], None]
