"""What gates say, as frozen values: the fields of the JSON document of ``bitward gate``."""

from __future__ import annotations

from enum import StrEnum

from bitward_agent.findings import ExitCode, FileVerification, Verdict
from bitward_agent.gate.identity import FileIdentity
from bitward_formats.frozen import dataclass

DEFAULT_MAX_AGE_SECONDS = 86_400
"""A day: rot moves no time stamp, so that only reading again finds it; machines restart their servers more often than disks lose bits."""


class Evidence(StrEnum):
    """What a verdict rests on: every byte read now, a reading that is remembered, or nothing."""

    FULL = "full"
    CACHED = "cached"
    NONE = "none"


class Policy(StrEnum):
    """What a gate does: stop what is not intact; heal first, and stop what stays bad; or only tell."""

    ENFORCE = "enforce"
    HEAL = "heal"
    WARN = "warn"


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """What a gate knows of one file.

    ``when_ns``: when the reading began that the verdict rests on, ns since the epoch; 0 if nothing was read. ``root``: of the sidecar, in
    hexadecimal. ``seconds``: how long the answer took. ``healed``: blocks were put right just now. ``remembered``: the next gate may
    answer from the cache; if not, ``message`` may say why. ``writes_show``: whoever writes to the file after that reading moves its times.
    ``identity``: of the file that the verdict is about, which was the same before and after the reading; ``None`` where it was not.
    ``file``: the full report, where the file was read.
    """

    path: str
    verdict: Verdict
    evidence: Evidence
    when_ns: int
    root: str
    seconds: float
    bytes: int = 0
    healed: bool = False
    remembered: bool = False
    writes_show: bool = False
    message: str = ""
    identity: FileIdentity | None = None
    file: FileVerification | None = None

    @property
    def exit_code(self) -> int:
        """The code of DESIGN's table for this file alone."""
        if self.file is not None:
            return self.file.exit_code
        return ExitCode.OK if self.verdict is Verdict.INTACT else ExitCode.CANNOT_TELL
