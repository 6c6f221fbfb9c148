"""What a pickle describes, as inert values.

Beside these a node is a tuple, string, bytes, number, bool or None. They are compared by identity alone: a pickle chooses how deep and
how cyclic its containers are, so nothing may hash, compare or print one.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Global:
    """What a pickle names as importable."""

    module: str
    name: str


@dataclass(eq=False, slots=True)
class Blob:
    """A string or bytes object too long to be kept."""

    length: int


@dataclass(eq=False, slots=True)
class Listing:
    """A list or set."""

    items: list[object] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Mapping:
    """A dict as the pairs that were set, in that order; keys may come twice."""

    pairs: list[tuple[object, object]] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Call:
    """What calling or instantiating ``function`` with ``args`` would have made, and what was put into it afterwards."""

    function: object
    args: tuple[object, ...]
    items: list[object] = field(default_factory=list)
    pairs: list[tuple[object, object]] = field(default_factory=list)
    state: object = None


@dataclass(eq=False, slots=True)
class Persistent:
    """An object that lies outside the pickle, by the id that the pickle gives it."""

    pid: object
