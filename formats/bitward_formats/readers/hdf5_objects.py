"""Object headers of HDF5: the messages that say what an object is.

Reads both versions of the header with their continuation blocks, and the messages of a data set: its shape and where its bytes are.
Messages that say nothing about tensors (attributes, times, fill values) are passed over.

Source: HDF5 File Format Specification 3.0, sections IV.A.1 (headers), IV.A.2 (shared messages), IV.A.2.b (dataspace), IV.A.2.i (data
layout), IV.A.2.q (continuation).
"""

from __future__ import annotations

from enum import Enum, auto

from bitward_formats.errors import FormatVersionError, HeaderSyntaxError, HeaderTooShortError
from bitward_formats.frozen import dataclass
from bitward_formats.readers.hdf5_metadata import OBJECT_STEPS, Metadata, number

DATASPACE, LINK_INFO, DATATYPE, LINK, EXTERNAL_FILES, LAYOUT, GROUP_INFO, FILTERS = 0x01, 0x02, 0x03, 0x06, 0x07, 0x08, 0x0A, 0x0B
CONTINUATION, SYMBOL_TABLE = 0x10, 0x11
_KEPT = frozenset((DATASPACE, LINK_INFO, DATATYPE, LINK, EXTERNAL_FILES, LAYOUT, GROUP_INFO, FILTERS, CONTINUATION, SYMBOL_TABLE))
_SHARED = 1 << 1
RANK_LIMIT = 32
"""The library's own limit (H5S_MAX_RANK)."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of an object header. A shared one holds only where its contents are."""

    kind: int
    is_shared: bool
    data: bytes


class Storage(Enum):
    """How a data set's bytes lie in the file."""

    COMPACT = auto()
    CONTIGUOUS = auto()
    CHUNKED = auto()
    VIRTUAL = auto()


class ChunkIndex(Enum):
    """How the chunks of a chunked data set are found."""

    BTREE_1 = auto()
    SINGLE = auto()
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class DataLayout:
    """Where a data set's bytes are. ``length`` is ``None`` where the message does not say it.

    ``chunk_dims`` has one number more than the data set has dimensions: the last one is the size of an element.
    """

    storage: Storage
    address: int = 0
    length: int | None = None
    chunk_dims: tuple[int, ...] = ()
    index: ChunkIndex = ChunkIndex.OTHER


def read_messages(metadata: Metadata, address: int) -> list[Message]:
    """The messages of the object whose header is at an address, those of its continuation blocks included."""
    metadata.step(OBJECT_STEPS)
    prefix = metadata.peek(address, 48, "an object header")
    is_new = prefix.startswith(b"OHDR")
    if is_new:
        start, length, message_flags = _new_prefix(prefix)
    elif prefix[:1] == b"\x01":
        start, length, message_flags = 16, number(prefix, 8, 4), 0
    else:
        raise HeaderSyntaxError(f"no object header at {address}")
    metadata.claim(address, start)
    messages: list[Message] = []
    # Both lists only grow by what is in the file, and no block is read twice.
    blocks, seen = [(address + start, length)], {address + start}
    for block_address, block_bytes in blocks:
        block = metadata.read(block_address, block_bytes, "messages of an object header") if block_bytes else b""
        if is_new and block_address != address + start:
            if not block.startswith(b"OCHK") or len(block) < 8:
                raise HeaderSyntaxError(f"no continuation of an object header at {block_address}")
            block = block[4:-4]
        for message in _messages(metadata, block, is_new, message_flags):
            if message.kind != CONTINUATION:
                messages.append(message)
                continue
            next_address = metadata.address(message.data, 0)
            if next_address in seen:
                raise HeaderSyntaxError(f"the object header at {address} continues in a circle")
            seen.add(next_address)
            blocks.append((next_address, metadata.length(message.data, metadata.address_bytes)))
    return messages


def _new_prefix(prefix: bytes) -> tuple[int, int, int]:
    """Of a version 2 header: where its messages begin, how many bytes they take, and its flags."""
    version, flags = number(prefix, 4, 1), number(prefix, 5, 1)
    if version != 2:
        raise FormatVersionError(f"object header version {version} is not known")
    start = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
    size_bytes = 1 << (flags & 3)
    return start + size_bytes, number(prefix, start, size_bytes), flags


def _messages(metadata: Metadata, block: bytes, is_new: bool, header_flags: int) -> list[Message]:
    """The messages of one block, which lie one behind the other."""
    head_bytes = (6 if header_flags & 0x04 else 4) if is_new else 8
    messages: list[Message] = []
    place = 0
    while place + head_bytes <= len(block):
        metadata.step()
        if is_new:
            kind, size, flags = block[place], number(block, place + 1, 2), block[place + 3]
        else:
            kind, size, flags = number(block, place, 2), number(block, place + 2, 2), block[place + 4]
        place += head_bytes
        if size > len(block) - place:
            raise HeaderTooShortError(f"a message of {size} bytes in an object header that has {len(block) - place} left")
        if kind in _KEPT:
            messages.append(Message(kind, bool(flags & _SHARED), block[place : place + size]))
        place += size
    return messages


def message_of(metadata: Metadata, messages: list[Message], kind: int) -> bytes | None:
    """The contents of the first message of a kind, also where they are shared; ``None`` if there is none.

    Raises FormatVersionError for contents in the file's heap of shared messages.
    """
    message = next((message for message in messages if message.kind == kind), None)
    if message is None:
        return None
    if not message.is_shared:
        return message.data
    version, share = number(message.data, 0, 1), number(message.data, 1, 1)
    if version not in (1, 2, 3) or (version == 3 and share != 2):
        raise FormatVersionError(f"a message shared in a way (version {version}, type {share}) that this reader does not know")
    address = metadata.address(message.data, 8 if version == 1 else 2)
    for other in read_messages(metadata, address):
        if other.kind == kind and not other.is_shared:
            return other.data
    raise HeaderSyntaxError(f"the object header at {address} lacks the message that is shared from there")


def read_dims(metadata: Metadata, data: bytes) -> tuple[int, ...] | None:
    """The shape of a dataspace message; ``None`` for the null space, which has no elements and no shape."""
    version, rank, flags = number(data, 0, 1), number(data, 1, 1), number(data, 2, 1)
    if version not in (1, 2):
        raise FormatVersionError(f"dataspace version {version} is not known")
    if rank > RANK_LIMIT or (version == 1 and flags & 2):
        raise FormatVersionError(f"a dataspace of {rank} dimensions, or of permuted ones")
    if version == 2 and number(data, 3, 1) == 2:
        return None
    start = 8 if version == 1 else 4
    return tuple(metadata.length(data, start + axis * metadata.length_bytes) for axis in range(rank))


def read_data_layout(metadata: Metadata, data: bytes) -> DataLayout:
    """A data layout message of version 1 to 4."""
    version = number(data, 0, 1)
    if version in (1, 2):
        return _old_data_layout(metadata, data)
    if version not in (3, 4):
        raise FormatVersionError(f"data layout version {version} is not known")
    match number(data, 1, 1):
        case 0:
            return DataLayout(Storage.COMPACT)
        case 1:
            return DataLayout(Storage.CONTIGUOUS, metadata.address(data, 2), metadata.length(data, 2 + metadata.address_bytes))
        case 2 if version == 3:
            dims = tuple(number(data, 3 + metadata.address_bytes + 4 * axis, 4) for axis in range(_chunk_rank(data, 2)))
            return DataLayout(Storage.CHUNKED, metadata.address(data, 3), None, dims, ChunkIndex.BTREE_1)
        case 2:
            return _new_chunks(metadata, data)
        case 3:
            return DataLayout(Storage.VIRTUAL)
        case other:
            raise HeaderSyntaxError(f"data layout class {other} does not exist")


def _old_data_layout(metadata: Metadata, data: bytes) -> DataLayout:
    """Versions 1 and 2, whose address is left out for compact storage."""
    match number(data, 2, 1):
        case 0:
            return DataLayout(Storage.COMPACT)
        case 1:
            return DataLayout(Storage.CONTIGUOUS, metadata.address(data, 8))
        case 2:
            dims = tuple(number(data, 8 + metadata.address_bytes + 4 * axis, 4) for axis in range(_chunk_rank(data, 1)))
            return DataLayout(Storage.CHUNKED, metadata.address(data, 8), None, dims, ChunkIndex.BTREE_1)
        case other:
            raise HeaderSyntaxError(f"data layout class {other} does not exist")


def _new_chunks(metadata: Metadata, data: bytes) -> DataLayout:
    """Chunks of version 4. Of its five indexes only that of a single chunk is followed."""
    flags, rank, size = number(data, 2, 1), _chunk_rank(data, 3), number(data, 4, 1)
    if not 1 <= size <= 8:
        raise HeaderSyntaxError(f"chunk dimensions of {size} bytes")
    place = 5 + rank * size
    dims = tuple(number(data, 5 + axis * size, size) for axis in range(rank))
    if number(data, place, 1) != 1:
        return DataLayout(Storage.CHUNKED, metadata.undefined, None, dims, ChunkIndex.OTHER)
    place += 1
    length = None
    if flags & 2:
        length = metadata.length(data, place)
        place += metadata.length_bytes + 4
    return DataLayout(Storage.CHUNKED, metadata.address(data, place), length, dims, ChunkIndex.SINGLE)


def _chunk_rank(data: bytes, place: int) -> int:
    rank = number(data, place, 1)
    if not 1 <= rank <= RANK_LIMIT + 1:
        raise HeaderSyntaxError(f"chunks of {rank} dimensions")
    return rank
