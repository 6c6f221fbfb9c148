"""HDF5 files: data sets whose bytes lie in one piece, as Keras weights and netCDF variables without compression do.

The format is read by a walker of its own: the format's C library crashes on hostile files. Contiguous data sets of plain numbers are
tensors, named by their path from the root group; so is a chunked one that has a single chunk without filters. Chunks otherwise, and
elements that are no plain numbers, are opaque; a compact data set stays part of the header that it is stored in. Every byte that no data
set claims is header where metadata was found, else a gap.

What a data set does not say clearly, or in a version that is not known here, costs that data set alone, with a note; structures that
contradict themselves or the file's size are a named error. Source: HDF5 File Format Specification 3.0.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import field, replace
from operator import attrgetter

from bitward_formats import records
from bitward_formats.errors import DuplicateKeyError, FormatVersionError, TensorBoundsError, TensorOverlapError, TensorSizeError
from bitward_formats.frozen import dataclass
from bitward_formats.readers.file_view import FileView
from bitward_formats.readers.hdf5_datatype import Element, read_element
from bitward_formats.readers.hdf5_groups import CHUNK_NODE, links_of, tree_children
from bitward_formats.readers.hdf5_metadata import FIRST_USER_BLOCK_BYTES, SIGNATURE, Metadata, number, open_metadata
from bitward_formats.readers.hdf5_objects import (
    DATASPACE,
    DATATYPE,
    EXTERNAL_FILES,
    FILTERS,
    LAYOUT,
    ChunkIndex,
    DataLayout,
    Message,
    Storage,
    message_of,
    read_data_layout,
    read_dims,
    read_messages,
)
from bitward_formats.readers.jsonwalk import shown
from bitward_formats.spans import OPAQUE_KIND, Layout, Role, Span

NAME = "hdf5"
SUFFIXES: tuple[str, ...] = (".h5", ".hdf5")

ELEMENTS_LIMIT = 1 << 63


def looks_like(head: bytes, file_bytes: int, name: str) -> bool:  # noqa: ARG001 - the readers' common signature
    """Whether the signature stands where a superblock may be, or the name ends as it should."""
    place = 0
    while place < len(head):
        if head.startswith(SIGNATURE, place):
            return True
        place = place * 2 or FIRST_USER_BLOCK_BYTES
    return name.lower().endswith(SUFFIXES)


def read_layout(view: FileView) -> Layout:
    """The layout of an HDF5 file. Raises CheckpointError."""
    metadata, root = open_metadata(view.fetch, view.size)
    found = _Found()
    _walk(metadata, root, found)
    spans = _tile(found, metadata, view.size)
    names = {span.name for span in spans if span.role is Role.TENSOR}
    if len(names) < sum(span.role is Role.TENSOR for span in spans):
        raise DuplicateKeyError("two data sets have the same path")
    notes = [f"{count} {'data set' if count == 1 else 'data sets'} {why}" for why, count in found.notes.items()]
    if found.regrouped:
        notes.append(f"{found.regrouped} further links to groups are not followed")
    return Layout(NAME, view.size, tuple(spans), "; ".join(notes), tuple(found.aliases))


@dataclass(slots=True)
class _Found:
    """What the walk has found. Empty tensors have no place of their own; they come last."""

    pieces: list[Span] = field(default_factory=list)
    empty: list[Span] = field(default_factory=list)
    aliases: list[tuple[str, str]] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    regrouped: int = 0


@dataclass(frozen=True, slots=True)
class _Array:
    """A data set whose shape and elements are known; ``dims`` are those of its space and then of its elements."""

    path: str
    element: Element
    dims: tuple[int, ...]
    data_bytes: int
    has_filters: bool


def _walk(metadata: Metadata, root: int, found: _Found) -> None:
    """Visits every object once, from the root group down."""
    # Object header -> its tensor's name; empty for a data set without a tensor, None for a group.
    seen: dict[int, str | None] = {}
    pending = [(root, "")]
    while pending:
        address, path = pending.pop()
        if address in seen:
            first = seen[address]
            if first:
                found.aliases.append((path, first))
            found.regrouped += first is None
            continue
        messages = read_messages(metadata, address)
        if any(message.kind == LAYOUT for message in messages):
            seen[address] = path if _data_set(metadata, messages, path, found) else ""
            continue
        seen[address] = None
        # The last one is popped first.
        pending += [(target, metadata.joined(path, name)) for name, target in reversed(links_of(metadata, messages))]


def _data_set(metadata: Metadata, messages: list[Message], path: str, found: _Found) -> bool:
    """Notes the bytes of one data set; whether they are a tensor."""
    try:
        contents = [message_of(metadata, messages, kind) for kind in (DATATYPE, DATASPACE, LAYOUT)]
        if any(content is None for content in contents):
            found.notes["without a type, shape or place are left in the header"] += 1
            return False
        datatype, dataspace, layout_message = (content or b"" for content in contents)
        element, dims = read_element(datatype), read_dims(metadata, dataspace)
        layout = read_data_layout(metadata, layout_message)
    except FormatVersionError as error:
        found.notes[f"not understood ({error})"] += 1
        return False
    if layout.storage is Storage.VIRTUAL or any(message.kind == EXTERNAL_FILES for message in messages):
        found.notes["in other files"] += 1
        return False
    if layout.storage is Storage.COMPACT:
        found.notes["stored within the header"] += 1
        return False
    if dims is None:
        return False
    dims += element.dims
    # Zeros aside, so that no dimension is beyond what a layout can hold.
    if math.prod(dim or 1 for dim in dims) * element.size >= ELEMENTS_LIMIT:
        raise TensorSizeError(f"{shown(path)}: the shape has more elements than a file can hold")
    data_bytes = math.prod(dims) * element.size
    array = _Array(path, element, dims, data_bytes, any(message.kind == FILTERS for message in messages))
    if not data_bytes:
        return _add_tensor(found.empty, array, 0)
    if layout.storage is Storage.CHUNKED:
        return _chunked(metadata, layout, array, found)
    return _contiguous(metadata, layout, array, found)


def _contiguous(metadata: Metadata, layout: DataLayout, array: _Array, found: _Found) -> bool:
    if layout.address == metadata.undefined:
        found.notes["without bytes in the file"] += 1
        return False
    # Versions before 3 do not say the length: it is what the array takes.
    length = array.data_bytes if layout.length is None else layout.length
    if length < array.data_bytes:
        raise TensorSizeError(f"{shown(array.path)}: the shape takes {array.data_bytes} bytes; its range has {length}")
    offset = _offset(metadata, layout.address, length, array.path)
    if _add_tensor(found.pieces, array, offset):
        return True
    found.notes["of other elements than numbers are protected as opaque bytes"] += 1
    found.pieces.append(Span(Role.DATA, OPAQUE_KIND, offset, length))
    return False


def _chunked(metadata: Metadata, layout: DataLayout, array: _Array, found: _Found) -> bool:
    """The chunks as opaque bytes, or the one that is the whole array as its tensor."""
    chunk_dims = layout.chunk_dims[:-1]
    if layout.index is ChunkIndex.OTHER or layout.address == metadata.undefined:
        chunks: list[tuple[int, int]] = []
    elif layout.index is ChunkIndex.SINGLE:
        chunks = [(layout.address, math.prod(layout.chunk_dims) if layout.length is None else layout.length)]
    else:
        children = tree_children(metadata, layout.address, CHUNK_NODE, 8 + 8 * len(layout.chunk_dims))
        chunks = [(address, number(key, 0, 4)) for key, address in children]
    places = [(_offset(metadata, address, length, array.path), length) for address, length in chunks if length]
    # A chunk may be larger than the array in the outermost dimension: then the array is the beginning of it.
    array_dims = array.dims[: len(array.dims) - len(array.element.dims)]
    is_whole = len(chunk_dims) == len(array_dims) and array_dims[1:] == chunk_dims[1:] and array_dims[:1] <= chunk_dims[:1]
    is_whole = is_whole and len(places) == 1 and not array.has_filters and places[0][1] >= array.data_bytes
    if is_whole and _add_tensor(found.pieces, array, places[0][0]):
        return True
    found.notes["in chunks are protected as opaque bytes"] += 1
    found.pieces += [Span(Role.DATA, OPAQUE_KIND, offset, length) for offset, length in places]
    return False


def _add_tensor(spans: list[Span], array: _Array, offset: int) -> bool:
    """Adds the tensor's span, if its elements are numbers; whether they are."""
    dtype = array.element.dtype
    if dtype:
        spans.append(Span(Role.TENSOR, records.kind_of(dtype), offset, array.data_bytes, dtype, array.dims, array.path))
    return bool(dtype)


def _offset(metadata: Metadata, address: int, length: int, path: str) -> int:
    """Where in the file a range of data begins; TensorBoundsError if it does not fit."""
    room = metadata.end - metadata.base
    if length > room or address > room - length:
        raise TensorBoundsError(f"{shown(path)} claims {length} bytes at {metadata.shown(address)} of {room}")
    return metadata.base + address


def _tile(found: _Found, metadata: Metadata, file_bytes: int) -> list[Span]:
    """The pieces in order, with headers and gaps between them. Nothing may overlap: neither pieces, nor these and metadata."""
    spans: list[Span] = []
    ranges = metadata.ranges()
    start, end = next(ranges, (file_bytes, file_bytes))
    place = 0
    trailer = Span(Role.TRAILER, OPAQUE_KIND, metadata.end, file_bytes - metadata.end)
    for piece in [*sorted(found.pieces, key=attrgetter("offset")), trailer]:
        if piece.offset < place:
            raise TensorOverlapError(f"{shown(piece.name)} begins {place - piece.offset} bytes before the end of {shown(spans[-1].name)}")
        has_metadata = False
        while start < piece.end:
            if end > piece.offset:
                raise TensorOverlapError(f"{shown(piece.name)} claims bytes {piece.offset} to {piece.end}, where metadata is")
            has_metadata = True
            start, end = next(ranges, (file_bytes, file_bytes))
        if place < piece.offset:
            spans.append(Span(Role.HEADER if has_metadata else Role.GAP, OPAQUE_KIND, place, piece.offset - place))
        elif spans and piece.role is Role.DATA is spans[-1].role:
            # Chunks that follow each other are one range of opaque bytes.
            piece = replace(spans[-1], length=piece.end - spans.pop().offset)
        if piece.length:
            spans.append(piece)
        place = piece.end
    return spans + [replace(span, offset=file_bytes) for span in found.empty]
