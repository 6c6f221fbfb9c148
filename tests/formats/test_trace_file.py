"""The trace file: what is written is read again within its precision, and whatever is wrong with it has a name."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitward_formats.errors import NotATraceError, TraceDamagedError, TraceError, TraceSyntaxError, TraceVersionError
from bitward_formats.trace_file import HEADER_BYTES, Trace, TraceEntry, TraceInput, read_trace, write_trace


def trace_of(values: np.ndarray) -> Trace:
    return Trace(b"12345678", (TraceInput("input_ids", np.array([[1, 2, 3]], np.int32)),), (TraceEntry("a.b", 3, values),))


def sample() -> bytes:
    draw = np.random.default_rng(3)
    return write_trace(trace_of(draw.normal(0, 10, (5, 3)) * np.exp2(draw.integers(-20, 20, (5, 1)))))


def resealed(data: bytes) -> bytes:
    """The same with a digest that fits."""
    return data[:40] + hashlib.sha256(data[:40] + data[HEADER_BYTES:]).digest() + data[HEADER_BYTES:]


@given(st.lists(st.floats(-1e30, 1e30, allow_nan=False), min_size=3, max_size=30), st.integers(-60, 60))
def test_values_keep_fifteen_bits(listed: list[float], power: int) -> None:
    values = np.array(listed[: len(listed) // 3 * 3]).reshape(-1, 3) * 2.0**power
    read = read_trace(write_trace(trace_of(values))).entries[0].values
    largest = np.abs(values).max()
    least = max(largest * 2.0**-61, 2.0**-300)  # less than any sum of float32 values is kept as zero
    assert (np.abs(read - values) <= np.maximum(np.abs(values) * 2.0**-15, least)).all()


def test_everything_else_comes_back() -> None:
    trace = read_trace(sample())
    assert trace.binding == b"12345678"
    assert trace.inputs[0].name == "input_ids"
    assert trace.inputs[0].values.tolist() == [[1, 2, 3]]
    assert (trace.entries[0].name, trace.entries[0].tokens) == ("a.b", 3)


def test_every_flipped_bit_is_found() -> None:
    data = sample()
    for at in range(len(data)):
        for bit in (0, 7):
            hurt = bytearray(data)
            hurt[at] ^= 1 << bit
            with pytest.raises(TraceError):
                read_trace(bytes(hurt))


def test_every_cut_is_found() -> None:
    data = sample()
    for length in range(len(data)):
        with pytest.raises(NotATraceError if length < HEADER_BYTES else TraceDamagedError):
            read_trace(data[:length])
    with pytest.raises(TraceDamagedError):
        read_trace(data + b"\0")


def put(layout: str, offset: int, value: int) -> bytes:
    data = bytearray(sample())
    struct.pack_into(layout, data, offset, value)
    return resealed(bytes(data))


ENTRY = HEADER_BYTES + 10 + 9 + 12
"""Where the first entry is: after an input of 10 bytes, its name, its three numbers."""


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (put("<H", 8, 2), TraceVersionError, "version 2"),
        (put("<H", 10, 4), TraceVersionError, "4 projections"),
        (put("<I", 12, 17), TraceSyntaxError, "17 inputs"),
        (put("<I", 16, 0xFFFFFFFF), TraceSyntaxError, "entries"),
        (put("<I", 16, 2), TraceSyntaxError, "beyond the end"),
        (put("<I", 16, 0), TraceSyntaxError, "after the last entry"),
        (put("<H", HEADER_BYTES, 60000), TraceSyntaxError, "a name of 60,000 bytes"),
        (put("<I", HEADER_BYTES + 2, 0), TraceSyntaxError, "is empty"),
        (put("<I", HEADER_BYTES + 2, 0xFFFFFFFF), TraceSyntaxError, "beyond the end"),
        (put("<B", HEADER_BYTES + 10, 0xFF), TraceSyntaxError, "not UTF-8"),
        (put("<I", ENTRY + 8, 0xFFFFFFFF), TraceSyntaxError, "beyond the end"),
        (put("<I", ENTRY + 8, 0), TraceSyntaxError, "0 channels"),
        (put("<i", ENTRY + 12, 1 << 30), TraceSyntaxError, "exponent"),
        (put("<Q", len(sample()) - 8, 1 << 63), TraceSyntaxError, "codes"),
    ],
)
def test_what_is_wrong_is_named_behind_a_right_digest(data: bytes, error: type[TraceError], words: str) -> None:
    with pytest.raises(error, match=words):
        read_trace(data)


def test_what_is_not_finite_is_not_written() -> None:
    with pytest.raises(TraceSyntaxError, match="not finite"):
        write_trace(trace_of(np.array([[1.0, np.nan, 0.0]])))
