"""What a directory's index should hold, from what it held and what is known now. Pure.

An index binds files to one directory, so what it forgets is no longer missed. Hence nothing drops out of it just because it is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import Enum, auto

from bitward_agent.daemon.config import OnChange, OnNew
from bitward_formats.frozen import dataclass
from bitward_formats.unit_index import UnitEntry


class Fate(Enum):
    """What became of a file that an index names and that the agent no longer knows."""

    THERE = auto()
    """It is there, but not the agent's to protect: a person had it indexed."""
    REMOVED = auto()
    """Somebody removed it while the agent looked on, or removed its sidecar too."""
    LOST = auto()
    """It is gone, its sidecar is left, and nobody saw it go."""


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """``entries`` in order; names that came, that were let go, that are gone but still named, and whose root differs but is still named."""

    entries: tuple[UnitEntry, ...]
    added: tuple[bytes, ...] = ()
    dropped: tuple[bytes, ...] = ()
    missing: tuple[bytes, ...] = ()
    mismatched: tuple[bytes, ...] = ()

    @property
    def told(self) -> str:
        """What is wrong, for people; empty if nothing is."""
        parts = []
        if self.missing:
            parts.append(f"{_named(self.missing)} gone: 'bitward repair' with a source gets back what was lost")
        if self.mismatched:
            parts.append(f"{_named(self.mismatched)} protected anew by somebody else than the agent")
        return "; ".join([*parts, "if that was meant, 'bitward protect --force' of the directory accepts it"] if parts else [])


def plan_index(
    old: Iterable[UnitEntry],
    known: Mapping[bytes, UnitEntry | None],
    fate_of: Callable[[bytes], Fate],
    *,
    on_new: OnNew,
    on_change: OnChange,
) -> IndexPlan:
    """What an index should hold.

    Args:
        old: what it holds.
        known: the agent's files of the directory by relative path; None where a sidecar cannot be read, so that nothing is known anew.
        fate_of: asked about each file of ``old`` that is not in ``known``.
        on_new: with ``REPORT`` no file is added.
        on_change: with ``ALARM`` nothing that is named is dropped or gets another root: a person has to accept that.
    """
    entries: list[UnitEntry] = []
    dropped, missing, mismatched = [], [], []
    named = set[bytes]()
    for entry in old:
        named.add(entry.path)
        if entry.path not in known:
            fate = fate_of(entry.path)
            if fate is Fate.REMOVED and on_change is OnChange.PROTECT:
                dropped.append(entry.path)
                continue
            if fate is not Fate.THERE:
                missing.append(entry.path)
            entries.append(entry)
            continue
        now = known[entry.path]
        if now is None or now == entry:
            entries.append(entry)
        elif on_change is OnChange.ALARM:
            mismatched.append(entry.path)
            entries.append(entry)
        else:
            entries.append(now)
    new = [entry for path, entry in known.items() if entry is not None and path not in named] if on_new is OnNew.PROTECT else []
    entries = sorted([*entries, *new], key=lambda one: one.path)
    added = tuple(entry.path for entry in new)
    return IndexPlan(tuple(entries), added, tuple(dropped), tuple(missing), tuple(mismatched))


def _named(names: tuple[bytes, ...]) -> str:
    """The first names and how many more there are, with the verb that fits."""
    shown = ", ".join(name.decode("utf-8", "surrogateescape") for name in names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{shown}{more} {'is' if len(names) == 1 else 'are'}"
