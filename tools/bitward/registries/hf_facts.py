"""What ``bitward hf`` finds and does in a Hugging Face cache, as frozen values: the fields of its JSON documents."""

from __future__ import annotations

from enum import StrEnum

from bitward_agent.findings import ExitCode, FileVerification, SidecarReport, Verdict
from bitward_formats.frozen import dataclass


class Way(StrEnum):
    """How a file of a pull came to be right."""

    PRESENT = "present"  # it was there, and right
    LINKED = "linked"  # another revision's blob had its bytes
    PARITY = "parity"  # a sidecar restored it: nothing was fetched
    RANGES = "ranges"  # damaged ranges were fetched
    WHOLE = "whole"  # all of it was fetched
    NONE = "none"  # it is not right


@dataclass(frozen=True, slots=True)
class BlobVerification:
    """One blob of a cache, held against its digest.

    ``path`` is the blob's own, ``files`` are its names in snapshots (``COMMIT/NAME``). ``expected_bytes`` is ``None`` where nothing at
    hand tells the length. ``evidence`` says where the digest is from. ``suspects`` are the ranges of a damaged blob that look lost:
    zeroed pages, unreadable sectors, what is missing at its end; at most 100. ``check`` is what the sidecar says of a damaged one.
    """

    repo: str
    blob: str
    path: str
    files: tuple[str, ...]
    verdict: Verdict
    bytes: int
    expected_bytes: int | None
    algorithm: str
    evidence: str
    sidecar: SidecarReport
    suspects: tuple[tuple[int, int], ...] = ()
    message: str = ""
    check: FileVerification | None = None

    @property
    def exit_code(self) -> int:
        match self.verdict:
            case Verdict.INTACT:
                return ExitCode.OK
            case Verdict.DAMAGED:
                repairable = self.check is not None and self.check.exit_code == ExitCode.REPAIRABLE
                return ExitCode.REPAIRABLE if repairable else ExitCode.NOT_REPAIRABLE
            case _:
                return ExitCode.CANNOT_TELL


class ProblemKind(StrEnum):
    """What can be wrong with a cache besides its blobs' bytes. The first two are no harm."""

    INCOMPLETE = "incomplete-download"
    UNREFERENCED = "unreferenced-blob"
    BROKEN_LINK = "broken-link"
    WRONG_LINK = "wrong-link"
    FOREIGN_LINK = "foreign-link"
    BAD_REF = "bad-ref"
    UNREADABLE = "unreadable"


_SEVERITY = {
    ProblemKind.INCOMPLETE: ExitCode.OK,
    ProblemKind.UNREFERENCED: ExitCode.OK,
    ProblemKind.BROKEN_LINK: ExitCode.NOT_REPAIRABLE,
    ProblemKind.WRONG_LINK: ExitCode.NOT_REPAIRABLE,
}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something about one path of a cache. ``message`` says what to do."""

    repo: str
    kind: ProblemKind
    path: str
    message: str

    @property
    def exit_code(self) -> int:
        return _SEVERITY.get(self.kind, ExitCode.CANNOT_TELL)


@dataclass(frozen=True, slots=True)
class RepoVerification:
    """One repository of a cache. ``refs`` maps branches and tags to commits; ``revisions`` are the snapshots that are there."""

    repo: str
    path: str
    revisions: tuple[str, ...]
    refs: dict[str, str]
    blobs: tuple[BlobVerification, ...]
    problems: tuple[Problem, ...]

    @property
    def exit_code(self) -> int:
        return ExitCode.worst([*(one.exit_code for one in self.blobs), *(one.exit_code for one in self.problems)])


@dataclass(frozen=True, slots=True)
class CacheVerification:
    """The document of ``bitward hf verify``. ``asked_bytes`` came from the hub's server, which is asked with ``--online`` only."""

    schema: str
    verdict: Verdict
    cache: str
    sidecars: str
    bytes: int
    seconds: float
    repos: tuple[RepoVerification, ...]
    asked_bytes: int = 0
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class PulledFile:
    """One file of a pull. ``fetched_bytes`` came for it, sidecar included; ``repaired`` counts blocks that a sidecar vouched for.

    ``message`` says what was wrong and what was done; ``sidecar`` is empty where there is none now.
    """

    path: str
    blob: str
    bytes: int
    verdict: Verdict
    way: Way
    fetched_bytes: int = 0
    requests: int = 0
    repaired: int = 0
    sidecar: str = ""
    message: str = ""

    @property
    def exit_code(self) -> int:
        match self.verdict:
            case Verdict.INTACT:
                return ExitCode.OK
            case Verdict.DAMAGED:
                return ExitCode.NOT_REPAIRABLE
            case _:
                return ExitCode.CANNOT_TELL


@dataclass(frozen=True, slots=True)
class PullReport:
    """The document of ``bitward hf pull``. ``fetched_bytes`` counts all that the servers sent, listings included."""

    schema: str
    verdict: Verdict
    repo: str
    revision: str
    commit: str
    snapshot: str
    bytes: int
    fetched_bytes: int
    requests: int
    seconds: float
    files: tuple[PulledFile, ...]
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class PushedFile:
    """A sidecar that was pushed, or why it was not; ``path`` is its file's in the repository."""

    path: str
    sidecar: str
    sidecar_bytes: int
    root: str
    pushed: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class PushReport:
    """The document of ``bitward hf push``."""

    schema: str
    repo: str
    revision: str
    commit: str
    url: str
    files: tuple[PushedFile, ...]
    dry_run: bool = False
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class CardReport:
    """The document of ``bitward hf card``: Markdown for a model card."""

    schema: str
    text: str
    exit_code: int = 0
