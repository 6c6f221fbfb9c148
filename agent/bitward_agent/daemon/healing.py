"""From a verdict and a policy to an action, and doing it: repair in place, or making the kernel forget a wrong cached page.

What was modified is never healed here (a person may ask ``bitward repair`` to), nor is what was rewritten protected anew if it is sealed.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from bitward_agent.daemon.config import OnChange, OnDamage, WatchConfig
from bitward_agent.daemon.facts import RepairRecord
from bitward_agent.daemon.pace import TokenBucket
from bitward_agent.findings import FileRepair, FileVerification, Verdict
from bitward_agent.io import DISK, Disk
from bitward_formats.frozen import dataclass


class Action(StrEnum):
    """What a verdict asks for."""

    NONE = "none"
    HEAL = "heal"
    REPORT = "report"
    ALARM = "alarm"
    PROTECT = "protect"


@dataclass(frozen=True, slots=True)
class Healing:
    """What came of it. ``verdict``, ``message`` are those after. ``refreshed`` counts blocks whose cached page was dropped and read again.

    ``repairs`` is for the store: one record per block that is right again. ``refused``: it may not write there.
    """

    path: str
    verdict: Verdict
    message: str
    repairs: tuple[RepairRecord, ...] = ()
    refreshed: int = 0
    remaining: int = 0
    refused: bool = False
    repair: FileRepair | None = None


def action_for(found: FileVerification, on_damage: OnDamage, on_change: OnChange, *, is_sealed: bool) -> Action:
    """What to do about a verdict. Pure."""
    raise NotImplementedError


def is_sealed(sidecar_path: str) -> bool:
    """Whether a seal lies beside the sidecar."""
    raise NotImplementedError


def heal(
    found: FileVerification,
    sidecar_path: str,
    watch: WatchConfig,
    now_ns: int,
    *,
    pace: TokenBucket,
    stop: Callable[[], bool],
    disk: Disk = DISK,
) -> Healing:
    """Put right what ``found`` says, where that is wrong in memory by reading again, else by a journalled repair with the watch's sources.

    Raises:
        Stopped: ``stop`` said so before anything was written.
    """
    raise NotImplementedError
