"""From a listing to what is to be done: objects with their sidecars, checkpoints without, sidecars alone, indexes of directories.

Pure, one entry after the other. A listing in the order of its keys brings ``NAME.ward`` after ``NAME``, and between them only keys that
begin with ``NAME``; so what waits for its sidecar is at most a chain of keys each of which begins with the one before. What could not be
looked at waits as well: its sidecar is not alone, and the object of a sidecar that could not be looked at is not without one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bitward_agent.stores import Entry, Unlisted, order_of
from bitward_agent.units import is_ours
from bitward_formats.frozen import dataclass
from bitward_formats.readers.hints import READERS
from bitward_formats.unit_index import UNIT_INDEX_NAME

SIDECAR_SUFFIX = ".ward"
_SUFFIXES = tuple(sorted({suffix for hint in READERS for suffix in hint.suffixes} - {".tar"}))


@dataclass(frozen=True, slots=True)
class Protected:
    entry: Entry
    sidecar: Entry


@dataclass(frozen=True, slots=True)
class Unprotected:
    """A checkpoint, by its name, without a sidecar."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class SidecarAlone:
    """A sidecar whose object is not there. ``entry`` is the sidecar's."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Index:
    """The index of a directory; ``folder`` is the directory's key with a slash at its end, or empty."""

    entry: Entry
    folder: str


Found = Protected | Unprotected | SidecarAlone | Index | Unlisted


def is_checkpoint_name(key: str) -> bool:
    """Whether an object is a checkpoint as far as its name tells."""
    return key.lower().endswith(_SUFFIXES)


def paired(entries: Iterable[Entry | Unlisted]) -> Iterator[Found]:
    """What there is in a listing that is in order."""
    waiting: list[Entry | Unlisted] = []
    for entry in entries:
        if waiting:
            place = order_of(entry.key)
            passed = [one for one in waiting if order_of(one.key + SIDECAR_SUFFIX) < place]
            waiting = [one for one in waiting if one not in passed]
            yield from _without_sidecar(passed)
        name = entry.key.rpartition("/")[2]
        if isinstance(entry, Unlisted):
            yield entry
            waiting = [one for one in waiting if one.key + SIDECAR_SUFFIX != entry.key]
            waiting.append(entry)
        elif name == UNIT_INDEX_NAME:
            yield Index(entry, entry.key[: -len(name)])
        elif entry.key.endswith(SIDECAR_SUFFIX):
            base = entry.key.removesuffix(SIDECAR_SUFFIX)
            owner = next((one for one in waiting if one.key == base), None)
            if owner is None:
                yield SidecarAlone(entry)
            else:
                waiting.remove(owner)
                if isinstance(owner, Entry):
                    yield Protected(owner, entry)
        elif not is_ours(entry.key):
            waiting.append(entry)
    yield from _without_sidecar(waiting)


def _without_sidecar(entries: list[Entry | Unlisted]) -> Iterator[Unprotected]:
    return (Unprotected(one) for one in entries if isinstance(one, Entry) and is_checkpoint_name(one.key))
