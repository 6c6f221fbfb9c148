"""Frozen values as rows of SQLite and back; what comes back is checked, since files rot."""

from __future__ import annotations

import json
from enum import Enum
from typing import Any, TypeVar

from bitward_agent.daemon.facts import EventKind, IncidentKind
from bitward_agent.findings import Verdict

R = TypeVar("R")


class RowError(Exception):
    """A row that no value of its kind can have been written as."""


_ENUMS: dict[str, type[Enum]] = {"Verdict | None": Verdict, "IncidentKind": IncidentKind, "EventKind": EventKind}
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, type(None)),
    "int": (int,),
    "bool": (bool,),
}


def value_of(kind: type[R], names: list[str], row: tuple[Any, ...]) -> R:
    """The value of a row.

    Raises:
        RowError: it does not fit its kind.
    """
    annotations = kind.__annotations__
    try:
        return kind(*(from_sql(annotations[name], found) for name, found in zip(names, row, strict=True)))
    except (ValueError, TypeError) as error:
        raise RowError(f"a row of {kind.__name__} makes no sense: {error}") from error


def to_sql(value: object) -> object:
    """Text that is no Unicode (names of files, of tensors) is kept as bytes."""
    if isinstance(value, tuple):
        return json.dumps(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, int):
        return max(-1 << 63, min(int(value), (1 << 63) - 1))  # SQLite has no larger ones
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-8", "surrogatepass")
    return value


def from_sql(annotation: str, found: object) -> object:
    """A value as a field of that annotation has it.

    Raises:
        ValueError, TypeError: it is no such value.
    """
    value = found.decode("utf-8", "surrogatepass") if isinstance(found, bytes) else found
    if annotation in _ENUMS:
        return None if value is None and "None" in annotation else _ENUMS[annotation](value)
    if annotation == "bool":
        return bool(value)
    if annotation in _TYPES:
        if not isinstance(value, _TYPES[annotation]):
            raise ValueError(f"{type(value).__name__} for {annotation}")
        return value
    pairs = json.loads(str(value))
    return tuple((str(name), str(text)) for name, text in pairs)
