"""Whether a file's writer is done: size and time quiet for a while, nobody has it open for writing, no rewrite announced.

Only then is a change judged: a file that is half written is neither damaged nor to be protected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bitward_agent.daemon.facts import Expectation
from bitward_formats.frozen import dataclass

QUIET_SECONDS = 2.0
PATIENCE_SECONDS = 600.0
"""How long a writer who has a quiet file open is waited for: some programs keep what they map open for writing for ever."""


@dataclass(frozen=True, slots=True)
class Stillness:
    """``is_quiet``: go ahead. Else ``again_ns`` says when to ask next and ``reason`` why. ``is_gone``: no such file."""

    is_quiet: bool
    is_gone: bool = False
    again_ns: int = 0
    reason: str = ""


class QuietFiles:
    """Remembers of each waiting path what it looked like. Bounded: the oldest are forgotten, and then wait anew."""

    def __init__(self, *, quiet_seconds: float = QUIET_SECONDS, patience_seconds: float = PATIENCE_SECONDS, proc: str = "/proc") -> None:
        raise NotImplementedError

    def look(self, path: str, now_ns: int, expectations: Sequence[Expectation] = ()) -> Stillness:
        """Look at a file now. ``now_ns`` is the time since 1970; nobody sleeps here."""
        raise NotImplementedError

    def forget(self, path: str) -> None:
        """No longer wait for it."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError


def expected(path: str, now_ns: int, expectations: Sequence[Expectation]) -> Expectation | None:
    """The announced rewrite that a path falls under."""
    raise NotImplementedError


def open_writers(device: int, inode: int, *, proc: str = "/proc", stop: Callable[[], bool] | None = None) -> tuple[int, ...]:
    """Processes that have a file open, or mapped shared, for writing, as far as this one may see; itself left out."""
    raise NotImplementedError
