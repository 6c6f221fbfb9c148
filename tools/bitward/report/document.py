"""Frozen values as JSON documents. The fields of the values are the keys."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from functools import cache
from math import isfinite
from pathlib import PurePath
from typing import Any

ERROR_SCHEMA = "bitward.error/1"


@cache
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def _form(value: Any) -> Any:
    """The JSON form of what the encoder does not know by itself."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: getattr(value, name) for name in _field_names(type(value))}
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"no JSON form for {type(value).__name__}")


def _without_nan(value: Any) -> Any:
    """``value`` with NaN and infinities, for which JSON has no literal, as strings."""
    if isinstance(value, float):
        return value if isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, (tuple, list)):
        return [_without_nan(one) for one in value]
    return _without_nan(_form(value)) if is_dataclass(value) and not isinstance(value, type) else value


def document(value: Any) -> str:
    """One JSON document on one line, ASCII only, so that any path and any terminal's encoding will do."""
    try:
        return json.dumps(value, ensure_ascii=True, allow_nan=False, default=_form)
    except ValueError:  # rare: values that are not numbers are strings already where they are made
        return json.dumps(_without_nan(value), ensure_ascii=True, allow_nan=False, default=_form)


def error_document(message: str, exit_code: int) -> str:
    """The document that stands in for a report when there is none."""
    return document({"schema": ERROR_SCHEMA, "error": message, "exit_code": exit_code})
