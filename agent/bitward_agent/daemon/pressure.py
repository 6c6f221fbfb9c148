"""Reasons to pause: battery, heat, and pressure on memory and disks; and being the last in every queue.

Everything is read from /sys and /proc; what is not there is no reason. No reading costs more than a few small files.
"""

from __future__ import annotations

from bitward_agent.daemon.config import ScrubConfig

RESUME_CELSIUS_BELOW = 5.0
"""How far below its limit the temperature must fall before scrubbing goes on, so that it does not flap."""


class Pressure:
    """Tells whether to pause. Keeps which limits are exceeded, so that each ends only well below its limit."""

    def __init__(self, *, sys_root: str = "/sys", proc_root: str = "/proc") -> None:
        raise NotImplementedError

    def reasons(self, limits: ScrubConfig) -> tuple[str, ...]:
        """Why to pause now, in words; empty: go ahead."""
        raise NotImplementedError


def yield_to_others() -> tuple[str, ...]:
    """Make the calling thread the last in every queue: SCHED_IDLE, and the idle class of I/O. Returns what was not possible, in words."""
    raise NotImplementedError
