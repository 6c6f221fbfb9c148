"""The guard file ``bitward.guard.json`` beside a model: written, and read as the hostile input that any file may be."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from typing import Any

from bitward_agent.durable import atomic_file
from bitward_agent.errors import BitwardError
from bitward_agent.hardening.exponent_guard import EXCEPTIONS_LIMIT, FileGuard, Range, TensorGuard
from bitward_agent.hardening.float_tensors import GUARDED_TYPES
from bitward_agent.io import OpenFile

NAME = "bitward.guard.json"
SCHEMA = "bitward.guard/1"
LIMIT_BYTES = 64 << 20
"""A guard takes some 150 bytes a tensor: room for 400,000 of them."""
_FIELDS = ["dtype", "elements", "top_exponent_bit", "exceptions", "range", "range_with_exceptions"]
_FILES_LIMIT = 10_000
_TENSORS_LIMIT = 400_000
_ELEMENTS_LIMIT = 1 << 48
_NAME_CHARACTERS = 120


class GuardFileError(BitwardError):
    """The guard file is not what it claims to be. The message says where; nothing was changed."""


def write_guards(path: str, guards: Sequence[FileGuard]) -> None:
    """Write a guard file, whole or not at all.

    Raises:
        WriteError: It cannot be written.
    """
    files = {guard.file: {one.name: _fields_of(one) for one in guard.tensors} for guard in guards}
    text = json.dumps({"schema": SCHEMA, "fields": _FIELDS, "files": files}, ensure_ascii=True, allow_nan=False)
    with atomic_file(path) as file:
        file.write_all(text.encode("ascii"), 0)


def _fields_of(one: TensorGuard) -> list[object]:
    ranges = [[within.lowest, within.highest] for within in (one.usual, one.whole)]
    return [one.dtype, one.elements, one.top_bit, list(one.exceptions), *ranges]


def read_guards(path: str) -> tuple[FileGuard, ...]:
    """Read a guard file.

    Raises:
        GuardFileError: It is none, or something in it cannot be.
        UnreadableError: It cannot be read.
    """
    with OpenFile(path) as file:
        size = file.state().size
        if size > LIMIT_BYTES:
            raise GuardFileError(f"{path}: {size:,} bytes; a guard file has at most {LIMIT_BYTES:,}")
        data = file.read(0, size)
    try:
        document = json.loads(data.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise GuardFileError(f"{path}: not JSON: {str(error)[:200]}") from error
    return _guards(path, document)


def _refuse(literal: str) -> float:
    raise ValueError(f"{literal} is no number")


def _guards(path: str, document: Any) -> tuple[FileGuard, ...]:
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise GuardFileError(f"{path}: no {SCHEMA} document")
    files = document.get("files")
    if not isinstance(files, dict) or len(files) > _FILES_LIMIT:
        raise GuardFileError(f"{path}: 'files' must be an object of at most {_FILES_LIMIT:,} files")
    if any(not isinstance(tensors, dict) for tensors in files.values()):
        raise GuardFileError(f"{path}: each file must be an object of tensors")
    if sum(map(len, files.values())) > _TENSORS_LIMIT:
        raise GuardFileError(f"{path}: more than {_TENSORS_LIMIT:,} tensors")
    guards = []
    for name, tensors in files.items():
        _check_name(path, name)
        guards.append(FileGuard(name, tuple(_tensor(path, tensor, fields) for tensor, fields in tensors.items())))
    return tuple(guards)


def _check_name(path: str, name: str) -> None:
    parts = name.split("/")
    if not name or name.startswith("/") or "\0" in name or os.pardir in parts or "" in parts or "." in parts:
        raise GuardFileError(f"{path}: file {name[:_NAME_CHARACTERS]!r} does not lie beside the guard")


def _tensor(path: str, name: str, fields: Any) -> TensorGuard:
    where = f"{path}: tensor {name[:_NAME_CHARACTERS]!r}"
    if not isinstance(fields, list) or len(fields) != len(_FIELDS):
        raise GuardFileError(f"{where}: {len(_FIELDS)} fields are needed")
    dtype, elements, top_bit, exceptions, usual, whole = fields
    if not isinstance(dtype, str) or dtype not in GUARDED_TYPES:
        raise GuardFileError(f"{where}: no guarded type {str(dtype)[:40]!r}")
    if type(elements) is not int or not 0 < elements <= _ELEMENTS_LIMIT:
        raise GuardFileError(f"{where}: an impossible number of elements")
    if top_bit is not None and (type(top_bit) is not int or top_bit not in (0, 1)):
        raise GuardFileError(f"{where}: the bit must be 0, 1 or null")
    if not isinstance(exceptions, list) or len(exceptions) > EXCEPTIONS_LIMIT:
        raise GuardFileError(f"{where}: the exceptions must be a list of at most {EXCEPTIONS_LIMIT:,}")
    previous = -1
    for place in exceptions:
        if type(place) is not int or not previous < place < elements:
            raise GuardFileError(f"{where}: the exceptions must be ascending numbers of its elements")
        previous = place
    ranges = [_range(where, one, dtype) for one in (usual, whole)]
    return TensorGuard(name, dtype, elements, top_bit, tuple(exceptions), *ranges)


def _range(where: str, value: Any, dtype: str) -> Range:
    if not isinstance(value, list) or len(value) != 2 or any(type(one) not in (int, float) for one in value):
        raise GuardFileError(f"{where}: a range must be two numbers")
    try:
        low, high = float(value[0]), float(value[1])
    except OverflowError as error:
        raise GuardFileError(f"{where}: the range is too large for any float") from error
    largest = _LARGEST[dtype]
    if not (math.isfinite(low) and math.isfinite(high) and -largest <= low <= high <= largest):
        raise GuardFileError(f"{where}: no range of {dtype}: {low} to {high}")
    return Range(low, high)


_LARGEST = {"F64": 1.7976931348623157e308, "F32": 3.4028234663852886e38, "F16": 65504.0, "BF16": 3.3895313892515355e38}
"""The largest finite number of each type (IEEE 754; for BF16 (2 − 2^-7) · 2^127)."""
