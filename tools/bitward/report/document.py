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


def plain(value: Any) -> Any:
    """``value`` made of what JSON knows. NaN and infinities, for which it has no literal, become strings."""
    if isinstance(value, float):
        return value if isfinite(value) else str(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(getattr(value, name)) for name in _field_names(type(value))}
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(one) for one in value]
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"no JSON form for {type(value).__name__}")


def document(value: Any) -> str:
    """One JSON document on one line, ASCII only, so that any path and any terminal's encoding will do."""
    return json.dumps(plain(value), ensure_ascii=True, allow_nan=False)


def error_document(message: str, exit_code: int) -> str:
    """The document that stands in for a report when there is none."""
    return document({"schema": ERROR_SCHEMA, "error": message, "exit_code": exit_code})
