"""The numbers behind a census, by NumPy: cells read again value by value, and the census itself where there is no native kernel."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from bitward_agent.io import OpenFile
from bitward_agent.page_census import CELL_BYTES, Form, Tensor

SUSPECT_CELLS_LIMIT = 8192
"""Most cells of a tensor that are read again."""

Bytes = npt.NDArray[np.uint8]
Bits = npt.NDArray[np.unsignedinteger[npt.NBitBase]]
Numbers = npt.NDArray[np.int64]


def _unsigned(form: Form) -> np.dtype[np.unsignedinteger[npt.NBitBase]]:
    return np.dtype(f"<u{form.item_bytes}")


def tops_of(tensor: Tensor) -> npt.NDArray[np.uint16]:
    """The tops of a tensor's cells."""
    return np.frombuffer(tensor.tops, np.uint16)


def read_cells(tensor: Tensor, file: OpenFile, numbers: Numbers) -> Iterator[tuple[int, Bits]]:
    """(offset in the file, values as bits) of some cells. Unreadable bytes are zero."""
    for number in numbers[:SUSPECT_CELLS_LIMIT]:
        low, high = tensor.cell_offset(int(number)), tensor.cell_offset(int(number) + 1)
        values: Bits = np.frombuffer(file.read(low, high - low), _unsigned(tensor.form))
        yield low, values.byteswap() if tensor.big_endian else values


def put_tops(data: memoryview, tensor: Tensor, tops: memoryview) -> tuple[int, int]:
    """What ``Kernel.census`` does: the tops of cells into ``tops``; returns (number of zero cells, the largest top)."""
    cells, made = np.frombuffer(data, np.uint8), np.frombuffer(tops, np.uint16)
    full = cells.size // CELL_BYTES
    if full:
        made[:full] = _tops(cells[: full * CELL_BYTES].reshape(full, CELL_BYTES), tensor)
    if full * CELL_BYTES < cells.size:
        made[full] = _tops(cells[None, full * CELL_BYTES :], tensor)[0]
    return int((made == 0).sum()), int(made.max())


def _tops(cells: Bytes, tensor: Tensor) -> npt.NDArray[np.uint16]:
    form = tensor.form
    folded = _gathered(cells, form)
    if tensor.big_endian:
        folded = folded.byteswap()
    large = np.flatnonzero(folded >> (8 * form.item_bytes - 2) & 1)
    if large.size:
        values = np.ascontiguousarray(cells[large]).view(_unsigned(form))
        folded[large] = _largest(values.byteswap() if tensor.big_endian else values, form)
    tops = ((folded >> form.mantissa_bits) & form.special).astype(np.uint16)
    tops += folded << 1 != 0
    return tops


def _gathered(cells: Bytes, form: Form) -> Bits:
    """The OR of each row's items, by NumPy: of wide words first, as that is faster."""
    word_bytes = 8 if cells.shape[1] % 8 == 0 else form.item_bytes
    folded: Bits = np.bitwise_or.reduce(cells.view(f"<u{word_bytes}"), axis=1)
    for _ in range((word_bytes // form.item_bytes).bit_length() - 1):
        half = 4 * folded.itemsize
        folded = (folded | (folded >> half)).astype(f"<u{folded.itemsize // 2}")
    return folded


def _largest(values: Bits, form: Form) -> Bits:
    """The largest magnitude of each row: of its negative numbers by the unsigned maximum, of its positive ones by the signed one."""
    sign = 1 << (8 * form.item_bytes - 1)
    unsigned = values.max(axis=1)
    signed = values.view(f"<i{form.item_bytes}").max(axis=1)
    negative = np.where(unsigned >= sign, unsigned & (sign - 1), 0).astype(_unsigned(form))
    largest: Bits = np.maximum(negative, np.maximum(signed, 0).astype(_unsigned(form)))
    return largest


def exponents_of(values: Bits, form: Form) -> npt.NDArray[np.int64]:
    """The exponent fields of values as bits."""
    return ((values >> form.mantissa_bits) & form.special).astype(np.int64)


def value_of(bits: np.unsignedinteger[npt.NBitBase], form: Form) -> float:
    """The number that some bits are."""
    if form.item_bytes == 2 and form.exponent_bits == 8:
        return float(np.array(int(bits) << 16, np.uint32).view(np.float32))
    return float(np.array(bits).view(f"<f{form.item_bytes}"))
