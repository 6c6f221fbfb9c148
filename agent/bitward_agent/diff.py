"""Two checkpoints side by side, down to the bits. Tensors are matched by name, wherever they lie in their files."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from bitward_agent.differences import TensorDifference
from bitward_agent.errors import UnreadableError
from bitward_agent.findings import Flip, Progress, ProgressSink
from bitward_agent.flips import count_flips, list_flips
from bitward_agent.io import OpenFile
from bitward_agent.neighbours import layout_of_file
from bitward_agent.verify import FlipBudget
from bitward_formats import records
from bitward_formats.blocks import Block
from bitward_formats.frozen import dataclass
from bitward_formats.spans import Layout, Role, Span

Bytes = npt.NDArray[np.uint8]
_CHUNK_BYTES = 1 << 20
_ROWS_AT_ONCE = 1 << 12
"""Records whose bits are spread out at once: a byte for each bit."""
_NUMPY_TYPES = {
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "I8": "<i1",
    "U8": "<u1",
    "I16": "<i2",
    "U16": "<u2",
    "I32": "<i4",
    "U32": "<u4",
    "I64": "<i8",
    "U64": "<u8",
}


@dataclass(frozen=True, slots=True)
class FileDifference:
    differences: tuple[TensorDifference, ...]
    compared_bytes: int


def _named(layout: Layout) -> dict[tuple[str, str], Span]:
    """Spans by what they are called; opaque ones by their role and place."""
    found: dict[tuple[str, str], Span] = {}
    for span in layout.spans:
        if span.role is Role.TENSOR:
            found["tensor", span.name] = span
        else:
            found[span.role.name.lower(), str(span.offset)] = span
    return found


def diff_files(a: str, b: str, budget: FlipBudget, progress: ProgressSink | None = None) -> FileDifference:
    """Compare two files.

    Raises:
        UnreadableError: one of them cannot be read, a bad sector included: what was not read was not compared.
    """
    with OpenFile(a) as file_a, OpenFile(b) as file_b:
        layouts = [layout_of_file(file, file.state().size) for file in (file_a, file_b)]
        spans_a, spans_b = (_named(layout) for layout in layouts)
        differences: list[TensorDifference] = []
        done = 0
        for key, span in spans_a.items():
            twin = spans_b.get(key)
            if twin is None:
                differences.append(_whole(span, "only-in-a"))
                continue
            done += span.length
            difference = _compare(file_a, span, file_b, twin, budget)
            if difference is not None:
                differences.append(difference)
            if progress:
                progress(Progress("diff", a, done, layouts[0].file_bytes))
        differences += [_whole(span, "only-in-b") for key, span in spans_b.items() if key not in spans_a]
    return FileDifference(tuple(differences), done)


def _whole(span: Span, kind: str) -> TensorDifference:
    return TensorDifference(span.name if span.role is Role.TENSOR else None, kind, _elements(span), 0, None)


def _elements(span: Span) -> int:
    form = records.form_of_span(span)
    return span.length // form.kind.record_bytes * form.elements


def _compare(file_a: OpenFile, a: Span, file_b: OpenFile, b: Span, budget: FlipBudget) -> TensorDifference | None:
    name = a.name if a.role is Role.TENSOR else None
    if a.role is Role.TENSOR and a.dtype != b.dtype:
        return TensorDifference(name, "dtype", _elements(a), 0, None)
    if a.length != b.length or a.dims != b.dims:
        return TensorDifference(name, "shape", max(_elements(a), _elements(b)), 0, None)
    flips: list[Flip] = []
    bits, elements = 0, 0
    largest: float | None = 0.0 if a.role is Role.TENSOR else None
    for at, left, right in _chunks(file_a, a, file_b, b):
        if np.array_equal(left, right):
            continue
        count = count_flips(left, right)
        bits += count
        block = Block(0, 0, a.offset + at, left.size, a)
        flips += list_flips(block, right, left, budget.take(count))
        changed, change = _elements_changed(a, left, right)
        elements += changed
        largest = None if largest is None or change is None else max(largest, change)
    if not bits:
        return None
    return TensorDifference(name, "changed", elements, bits, largest, tuple(flips))


def _chunks(file_a: OpenFile, a: Span, file_b: OpenFile, b: Span) -> Iterator[tuple[int, Bytes, Bytes]]:
    step = _CHUNK_BYTES // a.kind.record_bytes * a.kind.record_bytes
    left, right = np.empty(step, np.uint8), np.empty(step, np.uint8)
    for at in range(0, a.length, step):
        size = min(step, a.length - at)
        for file, span, target in ((file_a, a, left), (file_b, b, right)):
            lost = file.read_into(memoryview(target[:size]), span.offset + at)  # type: ignore[arg-type]  # arrays are buffers
            if lost:
                raise UnreadableError(f"{file.path}: bytes {lost[0][0]} to {lost[0][1]} cannot be read")
        yield at, left[:size], right[:size]


def _elements_changed(span: Span, left: Bytes, right: Bytes) -> tuple[int, float | None]:
    """How many numbers of a chunk differ, and the largest finite change of an element's value; None where values take more to tell."""
    form = records.form_of_span(span)
    size = form.kind.record_bytes
    rows = ((left ^ right).reshape(-1, size) != 0).any(axis=1).nonzero()[0]
    stored_at = list(form.stored_at) or slice(None)
    straight = [data.reshape(-1, size)[rows][:, stored_at] for data in (left, right)]
    if form.numbers[0].is_code or form.numbers[0].field:
        return _numbers_changed(form, straight[0] ^ straight[1]), None
    if form.elements > 1:
        return _numbers_changed(form, straight[0] ^ straight[1]), 0.0
    values = [_values(span.dtype, data) for data in straight]
    with np.errstate(all="ignore"):
        changes = np.abs(values[1] - values[0])
    finite = changes[np.isfinite(changes)]
    return int(rows.size), float(finite.max(initial=0.0))


def _numbers_changed(form: records.RecordForm, difference: Bytes) -> int:
    """How many numbers are not zero in the XOR of little-endian records, (n, R) u8."""
    lanes = [lane for number in form.numbers for lane in number.lanes]
    starts = np.cumsum([0, *(len(number.lanes) for number in form.numbers[:-1])])
    changed = 0
    for at in range(0, len(difference), _ROWS_AT_ONCE):
        bits = np.unpackbits(difference[at : at + _ROWS_AT_ONCE], axis=1, bitorder="little")[:, lanes]
        changed += int(np.count_nonzero(np.bitwise_or.reduceat(bits, starts, axis=1)))
    return changed


def _values(dtype: str, elements: Bytes) -> npt.NDArray[np.float64]:
    """Little-endian elements (n, bytes of one) u8 as float64; NaN where an element is no real number."""
    plain = records.parse_label(dtype).element if records.is_known(dtype) else ""
    if plain in _NUMPY_TYPES:
        return np.ascontiguousarray(elements).reshape(-1).view(_NUMPY_TYPES[plain]).astype(np.float64)
    if plain == "BF16":
        return (np.ascontiguousarray(elements).reshape(-1).view("<u2").astype("<u4") << 16).view("<f4").astype(np.float64)
    codes, inverse = np.unique(elements, axis=0, return_inverse=True)  # one-byte types have few; the others are rare
    decoded = [records.decode_element(plain, int.from_bytes(code.tobytes(), "little")) for code in codes]
    return np.array([math.nan if isinstance(one, str) else float(one) for one in decoded])[inverse.reshape(-1)]
