"""The trace file: what each output channel of a model's modules gave on fixed inputs, projected to a few numbers.

Little-endian throughout.

    header   72 bytes   magic "BWTRACE\\0", version u16 = 1, projections u16 = 3, inputs u32, entries u32, reserved u32 = 0,
                        body bytes u64, binding 8 bytes, SHA-256 of the 40 bytes before it and the body
    input    for each   name bytes u16, rows u32, columns u32, name (UTF-8), int32 × rows × columns
    entry    for each   name bytes u16, reserved u16 = 0, tokens u32, channels u32, exponent i32, name (UTF-8), u64 × channels

Entries stand in the order in which the modules ran; a module that ran twice has two. A channel's three numbers are kept in 21 bits each,
the first in the lowest: sign (1 bit, the highest), exponent e (6 bits), mantissa m (14 bits): (1 + m ∕ 2^14) · 2^(e − 63 + exponent of the
entry); e = 0 means zero. A relative error of 2^-15 at most. Bit 63 is 0.

Nothing is allocated from a number before it is held against the file's length.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bitward_formats.errors import NotATraceError, TraceDamagedError, TraceSyntaxError, TraceVersionError
from bitward_formats.frozen import dataclass

MAGIC = b"BWTRACE\0"
VERSION = 1
PROJECTIONS = 3
FILE_LIMIT_BYTES = 256 << 20
"""A trace of a model with some 30 million channels; the largest models have a tenth of that."""
ENTRY_LIMIT = 1 << 18
INPUT_LIMIT = 16
BINDING_BYTES = 8

_HEAD = struct.Struct("<8sHHIIIQ8s")
_INPUT = struct.Struct("<HII")
_ENTRY = struct.Struct("<HHIIi")
_DIGEST_BYTES = 32
HEADER_BYTES = _HEAD.size + _DIGEST_BYTES
_MANTISSA_BITS, _EXPONENT_BITS = 14, 6
_CODE_BITS = 1 + _EXPONENT_BITS + _MANTISSA_BITS
_TOP_EXPONENT = (1 << _EXPONENT_BITS) - 1
_CODE_MASK = (1 << _CODE_BITS) - 1
_NAME_LIMIT_BYTES = 1024
_EXPONENT_LIMIT = 256
"""Sums of float32 values are below 2^192; larger ones would overflow when they are squared, and agree with everything."""


@dataclass(frozen=True, slots=True)
class TraceInput:
    """A named int32 array [rows, columns] that the model was called with."""

    name: str
    values: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TraceEntry:
    """One call of a module. ``values``: float64 [channels, 3], as they were kept."""

    name: str
    tokens: int
    values: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Trace:
    """``binding``: 8 bytes that depend on the names and shapes of the model's tensors."""

    binding: bytes
    inputs: tuple[TraceInput, ...]
    entries: tuple[TraceEntry, ...]


def write_trace(trace: Trace) -> bytes:
    """The bytes of a trace file.

    Raises:
        TraceSyntaxError: A value is not finite, or something is beyond its limit.
    """
    parts: list[bytes] = []
    for one in trace.inputs:
        name = _name_bytes(one.name)
        rows, columns = one.values.shape
        parts += [_INPUT.pack(len(name), rows, columns), name, one.values.astype("<i4").tobytes()]
    for entry in trace.entries:
        name = _name_bytes(entry.name)
        if not np.isfinite(entry.values).all():
            raise TraceSyntaxError(f"{entry.name}: its output is not finite")
        exponent = _exponent_of(entry.values)
        codes = _encoded(entry.values, exponent)
        parts += [_ENTRY.pack(len(name), 0, entry.tokens, len(codes), exponent), name, codes.astype("<u8").tobytes()]
    body = b"".join(parts)
    if len(body) + HEADER_BYTES > FILE_LIMIT_BYTES or len(trace.entries) > ENTRY_LIMIT or len(trace.inputs) > INPUT_LIMIT:
        raise TraceSyntaxError("the model has more modules or channels than a trace can hold")
    head = _HEAD.pack(MAGIC, VERSION, PROJECTIONS, len(trace.inputs), len(trace.entries), 0, len(body), trace.binding)
    return head + hashlib.sha256(head + body).digest() + body


def read_trace(data: bytes) -> Trace:
    """A trace out of its file's bytes; everything is checked before it is used.

    Raises:
        TraceError: It is none, or damaged, or not consistent; each way has its class.
    """
    if len(data) < HEADER_BYTES or data[: len(MAGIC)] != MAGIC:
        raise NotATraceError("this is no trace file")
    _, version, projections, input_count, entry_count, reserved, body_bytes, binding = _HEAD.unpack_from(data)
    if version != VERSION or projections != PROJECTIONS or reserved:
        raise TraceVersionError(f"a trace of version {version} with {projections} projections; only {VERSION} with {PROJECTIONS} is read")
    if body_bytes != len(data) - HEADER_BYTES:
        raise TraceDamagedError(f"the trace should have {body_bytes:,} bytes after its header and has {len(data) - HEADER_BYTES:,}")
    if hashlib.sha256(data[: _HEAD.size] + data[HEADER_BYTES:]).digest() != data[_HEAD.size : HEADER_BYTES]:
        raise TraceDamagedError("the trace is damaged: its digest does not fit; record it anew from a model that is right")
    if input_count > INPUT_LIMIT or entry_count > ENTRY_LIMIT:
        raise TraceSyntaxError(f"the trace claims {input_count:,} inputs and {entry_count:,} entries")
    cursor = _Cursor(data)
    inputs = tuple(_inputs(cursor, input_count))
    entries = tuple(_entries(cursor, entry_count))
    if cursor.at != len(data):
        raise TraceSyntaxError(f"{len(data) - cursor.at:,} bytes after the last entry")
    return Trace(binding, inputs, entries)


class _Cursor:
    """Takes pieces off the front, never more than there are."""

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, HEADER_BYTES

    def take(self, count: int, what: str) -> bytes:
        if count > len(self._data) - self.at:
            raise TraceSyntaxError(f"{what} at byte {self.at:,} goes beyond the end of the file")
        self.at += count
        return self._data[self.at - count : self.at]

    def name(self, count: int) -> str:
        if count > _NAME_LIMIT_BYTES:
            raise TraceSyntaxError(f"a name of {count:,} bytes at byte {self.at:,}")
        try:
            return self.take(count, "a name").decode("utf-8")
        except UnicodeDecodeError as error:
            raise TraceSyntaxError(f"a name before byte {self.at:,} is not UTF-8") from error


def _inputs(cursor: _Cursor, count: int) -> Iterator[TraceInput]:
    for _ in range(count):
        name_bytes, rows, columns = _INPUT.unpack(cursor.take(_INPUT.size, "an input"))
        name = cursor.name(name_bytes)
        if not rows or not columns:
            raise TraceSyntaxError(f"the input {name!r} is empty")
        values = np.frombuffer(cursor.take(4 * rows * columns, f"the input {name!r}"), "<i4")
        yield TraceInput(name, values.reshape(rows, columns).astype(np.int32))


def _entries(cursor: _Cursor, count: int) -> Iterator[TraceEntry]:
    for _ in range(count):
        name_bytes, reserved, tokens, channels, exponent = _ENTRY.unpack(cursor.take(_ENTRY.size, "an entry"))
        name = cursor.name(name_bytes)
        if reserved or not channels or abs(exponent) > _EXPONENT_LIMIT:
            raise TraceSyntaxError(f"the entry {name!r} has {channels:,} channels and the exponent {exponent}")
        codes = np.frombuffer(cursor.take(8 * channels, f"the entry {name!r}"), "<u8")
        if int(codes.max()) >> (PROJECTIONS * _CODE_BITS):
            raise TraceSyntaxError(f"the entry {name!r} has codes of more than {PROJECTIONS * _CODE_BITS} bits")
        yield TraceEntry(name, tokens, _decoded(codes, exponent))


def _name_bytes(name: str) -> bytes:
    data = name.encode("utf-8")
    if len(data) > _NAME_LIMIT_BYTES:
        raise TraceSyntaxError(f"a name of {len(data):,} bytes; at most {_NAME_LIMIT_BYTES:,} can be held")
    return data


def _exponent_of(values: NDArray[np.float64]) -> int:
    """The largest binary exponent x of the values, each being f · 2^x with 1 ≤ f < 2; one more, as rounding may reach the next.

    What is smaller than any sum of float32 values is kept as zero.
    """
    largest = float(np.abs(values).max(initial=0.0))
    return max(int(np.frexp(largest)[1]), -_EXPONENT_LIMIT) if largest else 0


def _encoded(values: NDArray[np.float64], exponent: int) -> NDArray[np.uint64]:
    fraction, power = np.frexp(np.abs(values))  # fraction in [0.5, 1)
    mantissa = np.rint(fraction * (2 << _MANTISSA_BITS)).astype(np.int64) - (1 << _MANTISSA_BITS)
    carried = mantissa >> _MANTISSA_BITS  # 1 where rounding reached the next power of two
    mantissa = np.where(carried > 0, 0, mantissa)
    biased = power.astype(np.int64) - 1 + carried - exponent + _TOP_EXPONENT
    kept = (values != 0) & (biased > 0)
    codes = np.where(kept, (np.signbit(values).astype(np.int64) << (_CODE_BITS - 1)) | (biased << _MANTISSA_BITS) | mantissa, 0)
    shifts = np.arange(PROJECTIONS, dtype=np.uint64) * np.uint64(_CODE_BITS)
    packed: NDArray[np.uint64] = np.bitwise_or.reduce(codes.astype(np.uint64) << shifts, axis=1)
    return packed


def _decoded(codes: NDArray[np.uint64], exponent: int) -> NDArray[np.float64]:
    shifts = np.arange(PROJECTIONS, dtype=np.uint64) * np.uint64(_CODE_BITS)
    parts = ((codes.reshape(-1, 1) >> shifts) & np.uint64(_CODE_MASK)).astype(np.int64)
    biased = (parts >> _MANTISSA_BITS) & _TOP_EXPONENT
    fraction = 1.0 + (parts & ((1 << _MANTISSA_BITS) - 1)) / (1 << _MANTISSA_BITS)
    with np.errstate(over="ignore", under="ignore"):
        values = np.ldexp(fraction, biased - _TOP_EXPONENT + exponent)
    signed = np.where(parts >> (_CODE_BITS - 1), -values, values)
    return np.where(biased > 0, signed, 0.0)
