"""Labels of elements: ``ELEMENT[.BE][@axes]``, which say how a tensor's bytes are to be read (SPEC, section 2.2.1).

``ELEMENT`` names an element type. ``.BE``: the bytes of each of its numbers are stored most significant first. ``@1,0``: the tensor's
shape is its own, but in memory its axes lie in this order, outermost first; without it they lie as in the shape (row-major).

Labels come out of sidecars, which are hostile input: a label is short, is matched as a whole, and anything else is an unknown type.
"""

from __future__ import annotations

import math
import re

from bitward_formats.errors import UnknownDtypeError
from bitward_formats.frozen import dataclass

LABEL_LIMIT_BYTES = 255
"""The length of a label fills one byte of the layout stream (SPEC, section 2.1)."""

_LABEL = re.compile(r"([A-Z0-9_]*)(\.BE)?(?:@((?:0|[1-9][0-9]{0,2})(?:,(?:0|[1-9][0-9]{0,2}))*))?")


@dataclass(frozen=True, slots=True)
class Label:
    """A label, taken apart. ``axes`` is a permutation of 0 .. n for a tensor of n dimensions, or empty: row-major."""

    element: str
    big_endian: bool = False
    axes: tuple[int, ...] = ()

    def __str__(self) -> str:
        order = ".BE" if self.big_endian else ""
        return self.element + order + (f"@{','.join(map(str, self.axes))}" if self.axes else "")


def parse_label(text: str) -> Label:
    """Take a label apart. Whether its element type is known is not asked. Raises UnknownDtypeError for what is no label."""
    match = _LABEL.fullmatch(text) if len(text) <= LABEL_LIMIT_BYTES else None
    if match is None:
        raise UnknownDtypeError(f"{text[:40]!r} is no label of an element type")
    axes = tuple(map(int, match[3].split(","))) if match[3] else ()
    if sorted(axes) != list(range(len(axes))):
        raise UnknownDtypeError(f"{text[:40]!r}: the axes of a label are the numbers 0 to n in some order")
    return Label(match[1], match[2] is not None, axes)


def unravel(element_index: int, dims: tuple[int, ...]) -> tuple[int, ...]:
    """The row-major coordinates of an element of an array of shape ``dims``. Raises ValueError for an index outside the array."""
    if not 0 <= element_index < math.prod(dims):
        raise ValueError(f"no element {element_index} in an array of shape {dims}")
    coordinates = []
    for dim in reversed(dims):
        element_index, coordinate = divmod(element_index, dim)
        coordinates.append(coordinate)
    return tuple(reversed(coordinates))


def index_in_tensor(axes: tuple[int, ...], dims: tuple[int, ...], place: int) -> tuple[int, ...]:
    """The index of the element that lies at ``place`` (counted in elements) in the memory of a tensor of shape ``dims``.

    ``axes`` are those of its label. Raises ValueError for a place outside the tensor, or for axes that are not the shape's.
    """
    if not axes:
        return unravel(place, dims)
    if len(axes) != len(dims):
        raise ValueError(f"{len(axes)} axes for an array of {len(dims)} dimensions")
    index = [0] * len(dims)
    for axis, coordinate in zip(axes, unravel(place, tuple(dims[axis] for axis in axes)), strict=True):
        index[axis] = coordinate
    return tuple(index)
