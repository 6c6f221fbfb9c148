"""The tensors of a file whose elements are plain floats, as bits: listed, read in pieces, written back.

Bits are unsigned integers of the element's width, little-endian as in the file. Files are read and written through ``bitward_agent.io``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from bitward_agent.errors import UnreadableError
from bitward_agent.io import OpenFile
from bitward_agent.neighbours import layout_of_file
from bitward_formats.frozen import dataclass
from bitward_formats.records.plain import ELEMENT_TYPES
from bitward_formats.spans import Role

Bits = npt.NDArray[np.unsignedinteger]
Values = npt.NDArray[np.floating]

_AT_ONCE = 1 << 21
"""Elements in one piece: with what is made of them, a few arrays of 8 to 16 MB."""
_UNSIGNED: dict[int, np.dtype[np.unsignedinteger]] = {16: np.dtype("<u2"), 32: np.dtype("<u4"), 64: np.dtype("<u8")}
_FLOATS: dict[str, np.dtype[np.floating]] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
GUARDED_TYPES = ("F64", "F32", "F16", "BF16")
"""Element types by the labels of layouts."""


@dataclass(frozen=True, slots=True)
class FloatTensor:
    """``elements`` floats of type ``dtype`` from byte ``offset`` of the file on; ``shape`` is row-major."""

    name: str
    dtype: str
    offset: int
    elements: int
    shape: tuple[int, ...]

    @property
    def element_bits(self) -> int:
        return ELEMENT_TYPES[self.dtype].bits

    @property
    def top_exponent_bit(self) -> int:
        """Counted from the least significant bit of an element."""
        return self.element_bits - 2


def float_tensors(file: OpenFile) -> tuple[FloatTensor, ...]:
    """The tensors of plain floats of an open file, in its order; none where it is opaque."""
    layout = layout_of_file(file, file.state().size)
    found = []
    for span in layout.spans:
        if span.role is Role.TENSOR and span.dtype in GUARDED_TYPES and span.length:
            elements = span.length * 8 // ELEMENT_TYPES[span.dtype].bits
            found.append(FloatTensor(span.name, span.dtype, span.offset, elements, tuple(span.dims)))
    return tuple(found)


def unsigned_type(dtype: str) -> np.dtype[np.unsignedinteger]:
    """NumPy's type for the bits of an element."""
    return _UNSIGNED[ELEMENT_TYPES[dtype].bits]


def values_of(bits: Bits, dtype: str) -> Values:
    """Elements as numbers (which may not be finite); BF16 as float32, for which NumPy has no type of its own."""
    if dtype == "BF16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return bits.view(_FLOATS[dtype])


def bits_of(value: float, dtype: str) -> int:
    """The bits of a number that the type can hold; of others those of the number next to it on the side of zero (BF16), or nearest."""
    if dtype == "BF16":
        return int(np.float32(value).view(np.uint32)) >> 16
    return int(np.asarray(value, _FLOATS[dtype]).view(_UNSIGNED[ELEMENT_TYPES[dtype].bits]))


def pieces(file: OpenFile, tensor: FloatTensor) -> Iterator[tuple[int, Bits]]:
    """The tensor in pieces: (number of the first element, bits, which may be changed).

    Raises:
        UnreadableError: The medium gives an error, or the file ends early.
    """
    kind = unsigned_type(tensor.dtype)
    for first in range(0, tensor.elements, _AT_ONCE):
        count = min(_AT_ONCE, tensor.elements - first)
        data = file.read(tensor.offset + first * kind.itemsize, count * kind.itemsize)
        if len(data) != count * kind.itemsize:
            raise UnreadableError(f"{tensor.name}: the file ends within this tensor")
        yield first, np.frombuffer(bytearray(data), kind)


def rewrite(file: OpenFile, tensor: FloatTensor, change: Callable[[int, Bits], Bits | None]) -> None:
    """Replace each piece of a tensor by what ``change(number of the first element, bits)`` gives; ``None``: it stays."""
    for first, bits in pieces(file, tensor):
        new = change(first, bits)
        if new is not None:
            file.write_all(new.tobytes(), tensor.offset + first * bits.itemsize)
