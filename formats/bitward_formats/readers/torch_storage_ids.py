"""Storages as PyTorch's pickles refer to them: by persistent ids."""

from __future__ import annotations

from typing import TypeGuard

from bitward_formats.errors import PickleSyntaxError
from bitward_formats.frozen import dataclass
from bitward_formats.readers.pickle_nodes import Global, Persistent
from bitward_formats.readers.torch_dtypes import storage_label

SIZE_LIMIT = 1 << 63
"""PyTorch counts in signed 64 bits."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A reference to the bytes ``offset .. offset + length`` of the storage ``key``, which has ``whole_bytes``.

    ``label`` is that of its elements, or None where they have none. Only old files refer to a part of a storage.
    """

    key: str
    label: str | None
    item_bytes: int
    offset: int
    length: int
    whole_bytes: int


def storage_of(node: Persistent) -> Storage | None:
    """The storage that a persistent id names; None for other ids.

    Zip files give (kind, type, key, device, count); legacy ones add None, or (key, offset, count) of the part that is meant. Raises
    PickleSyntaxError for an id that begins like that and goes on otherwise.
    """
    pid = node.pid
    if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] not in ("storage", b"storage"):
        return None
    _, kind, key, _, count, *rest = pid
    if not isinstance(kind, Global) or not isinstance(key, str) or not is_count(count):
        raise PickleSyntaxError("a storage without a type, a key or a count of elements")
    label, item_bytes = storage_label(kind.name)
    part = rest[0] if rest else None
    if part is None:
        return Storage(key, label, item_bytes, 0, count * item_bytes, count * item_bytes)
    if not isinstance(part, tuple) or len(part) != 3 or not is_count(part[1]) or not is_count(part[2]):
        raise PickleSyntaxError("a part of a storage without an offset and a count of elements")
    if part[1] + part[2] > count:
        raise PickleSyntaxError(f"a part of a storage ends at element {part[1] + part[2]}; the storage has {count}")
    return Storage(key, label, item_bytes, part[1] * item_bytes, part[2] * item_bytes, count * item_bytes)


def is_count(value: object) -> TypeGuard[int]:
    """Whether it is a number of elements; bool is an int to Python, but not here."""
    return type(value) is int and 0 <= value < SIZE_LIMIT
