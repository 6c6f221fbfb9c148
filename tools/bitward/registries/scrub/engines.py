"""What runs tasks: worker processes of this machine, or a cluster. Both do the same with the same function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from bitward.registries.scrub.facts import Result, Task
from bitward_agent.errors import InputError
from bitward_agent.sources.limits import Limits
from bitward_formats.frozen import dataclass

ENGINES = ("local", "ray")
WORKERS_LIMIT = 1024


@dataclass(frozen=True, slots=True)
class Ended:
    """A task that is under way no more. ``result`` is ``None`` if its worker died of it, or with it; ``message`` says how then."""

    task: Task
    result: Result | None
    message: str = ""


class Engine(Protocol):
    """Runs tasks. What is under way at once is bounded by ``capacity``; results come in any order."""

    @property
    def capacity(self) -> int:
        """How many tasks may be under way now."""

    @property
    def under_way(self) -> int: ...

    @property
    def workers_lost(self) -> int:
        """Workers that died so far."""

    def submit(self, task: Task) -> None:
        """Begin a task. Only while fewer than ``capacity`` are under way."""

    def wait(self, seconds: float) -> Sequence[Ended]:
        """What ended by now; waits for at least one, but no longer than that."""

    def close(self) -> None:
        """End all workers, whatever they do."""


def open_engine(name: str, workers: int | None, limits: Limits, ahead: int) -> Engine:
    """An engine by its name.

    Raises:
        MissingExtraError: an extra is not installed.
        EngineError: it cannot be started.
    """
    if name == "local":
        from bitward.registries.scrub.local_engine import LocalEngine

        return LocalEngine(workers, limits, ahead)
    if name == "ray":
        from bitward.registries.scrub.ray_engine import RayEngine

        return RayEngine(workers, limits, ahead)
    raise InputError(f"{name!r} is no engine; there are {', '.join(ENGINES)}")
