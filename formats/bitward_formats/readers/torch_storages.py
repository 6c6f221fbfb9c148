"""From what is said of tensors to spans: which bytes of a storage are which tensor's.

Several tensors may lie in one storage: views, tied weights, slices, in any order and overlapping. Each byte goes to one span. The larger
tensor wins; one with the same bytes becomes its alias; another that overlaps is only counted. A dense tensor whose axes lie in another
order keeps its shape, and its label says the order; one with holes or repeats is shown as the flat run of elements that it reaches over.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import field

from bitward_formats.errors import TensorBoundsError
from bitward_formats.frozen import dataclass
from bitward_formats.readers.jsonwalk import shown
from bitward_formats.readers.torch_tensors import TensorClaim
from bitward_formats.records import Label, kind_of
from bitward_formats.records.labels import LABEL_LIMIT_BYTES
from bitward_formats.spans import OPAQUE_KIND, Role, Span

_ELEMENTS_LIMIT = 1 << 64


@dataclass(frozen=True, slots=True)
class StorageRange:
    """Where a storage's bytes lie in the file."""

    offset: int
    length: int
    big_endian: bool = False


@dataclass(slots=True)
class Tally:
    """Aliases, and what a layout's note should count."""

    aliases: list[tuple[str, str]] = field(default_factory=list)
    overlapping: int = 0
    flat: int = 0


@dataclass(frozen=True, slots=True)
class _Reach:
    """The bytes of the storage over which a tensor reaches, and its shape and label as a span."""

    start: int
    end: int
    label: str
    dims: tuple[int, ...]
    name: str
    is_dense: bool


def place_tensors(where: StorageRange, claims: Iterable[TensorClaim], tally: Tally) -> list[Span]:
    """Spans over the whole storage: tensors where there are, data elsewhere. Adds to ``tally``.

    Raises TensorBoundsError for a tensor that reaches beyond the storage.
    """
    reaches = [_reach_of(claim, where) for claim in claims]
    empty = [reach for reach in reaches if reach.start == reach.end]
    # The sort is stable: of equals, the first that the pickle names.
    order = sorted((reach for reach in reaches if reach.start < reach.end), key=lambda r: (r.start - r.end, not r.is_dense))
    segments = {place: index for index, place in enumerate(sorted({place for reach in order for place in (reach.start, reach.end)}))}
    owners: list[_Reach | None] = [None] * len(segments)
    placed: list[_Reach] = []
    for reach in order:
        first, behind = segments[reach.start], segments[reach.end]
        # No shorter one was placed before, so one that shares bytes with this holds its first or its last.
        owner = owners[first] or owners[behind - 1]
        if owner is None:
            owners[first:behind] = [reach] * (behind - first)
            placed.append(reach)
            tally.flat += not reach.is_dense
        elif (owner.start, owner.end) == (reach.start, reach.end):
            tally.aliases.append((reach.name, owner.name))
        else:
            tally.overlapping += 1
    placed.sort(key=lambda reach: reach.start)
    return _spans(where, [_at_start(reach) for reach in empty] + placed)


def note_of(tally: Tally, packed: int = 0) -> str:
    """What a person should know of tensors that are not spans of their own."""
    parts = [
        (packed, "in deflated or encrypted entries, protected as opaque bytes"),
        (tally.flat, "not dense or of a type without a layout: shown as flat runs of elements"),
        (tally.overlapping, "within or across other tensors, under whose names their bytes are"),
    ]
    return "; ".join(f"{count} tensor{'s' if count > 1 else ''} {what}" for count, what in parts if count)


def _spans(where: StorageRange, placed: list[_Reach]) -> list[Span]:
    spans: list[Span] = []
    position = 0
    for reach in placed:
        if reach.start > position:
            spans.append(Span(Role.DATA, OPAQUE_KIND, where.offset + position, reach.start - position))
        length = reach.end - reach.start
        spans.append(Span(Role.TENSOR, kind_of(reach.label), where.offset + reach.start, length, reach.label, reach.dims, reach.name))
        position = reach.end
    if position < where.length:
        spans.append(Span(Role.DATA, OPAQUE_KIND, where.offset + position, where.length - position))
    return spans


def _at_start(reach: _Reach) -> _Reach:
    """Empty tensors stand before all others of their storage, wherever they point: the order that tiles."""
    return _Reach(0, 0, reach.label, reach.dims, reach.name, is_dense=True)


def _reach_of(claim: TensorClaim, where: StorageRange) -> _Reach:
    storage = claim.storage
    if storage.whole_bytes > where.length:
        raise TensorBoundsError(f"{shown(claim.name)} needs a storage of {_brief(storage.whole_bytes)} bytes; it has {where.length}")
    last = sum((dim - 1) * stride for dim, stride in zip(claim.dims, claim.strides, strict=True))
    count = 0 if 0 in claim.dims else last + 1
    start = storage.offset + claim.offset * claim.item_bytes
    end = start + count * claim.item_bytes
    if count and end > storage.offset + storage.length:
        raise TensorBoundsError(
            f"{shown(claim.name)} claims bytes {_brief(start)} .. {_brief(end)} of a storage of {storage.offset + storage.length}"
        )
    if claim.label is None or (where.big_endian and claim.label != storage.label):
        # Bytes whose elements, or whose order, cannot be told: the whole storage, as bytes.
        whole = storage.length if count else 0
        return _Reach(storage.offset, storage.offset + whole, "U8", (whole,), claim.name, is_dense=False)
    axes = dense_axes(claim.dims, claim.strides) if count else ()
    big_endian = where.big_endian and claim.item_bytes > 1
    label = str(Label(claim.label, big_endian, axes or ()))
    if axes is None or len(label) > LABEL_LIMIT_BYTES:
        return _Reach(start, end, str(Label(claim.label, big_endian)), (count,), claim.name, is_dense=False)
    if not count and math.prod(dim or 1 for dim in claim.dims) >= _ELEMENTS_LIMIT:
        raise TensorBoundsError(f"{shown(claim.name)} is empty, but its other dimensions have more elements than 64 bits can count")
    return _Reach(start, end, label, claim.dims, claim.name, is_dense=True)


def dense_axes(dims: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...] | None:
    """The axes in the order of their strides, outermost first, if the tensor has no holes and no repeats; () for row-major, else None.

    Axes of one element have no place in memory and stand first, unless the order is row-major anyway.
    """
    long = [axis for axis, dim in enumerate(dims) if dim != 1]
    order = sorted(long, key=lambda axis: -strides[axis])
    expected = 1
    for axis in reversed(order):
        if strides[axis] != expected:
            return None
        expected *= dims[axis]
    if order == long:
        return ()
    return tuple(axis for axis, dim in enumerate(dims) if dim == 1) + tuple(order)


def _brief(number: int) -> str:
    return str(number) if number < _ELEMENTS_LIMIT else "2^64 or more"
