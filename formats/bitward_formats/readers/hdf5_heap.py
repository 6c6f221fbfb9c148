"""Links of large HDF5 groups: an index (version 2 B-tree) of identifiers, and a fractal heap that holds what they identify.

The index of names is walked from its root, and each identifier is looked up in the heap by its doubling table. Heaps with filters and
links that are too long for the heap's blocks are a FormatVersionError: HDF5 writes neither by itself for groups.

Source: HDF5 File Format Specification 3.0, sections III.A.2 (version 2 B-trees, record type 5) and III.G (fractal heap).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from bitward_formats.errors import FormatVersionError, HeaderSyntaxError, TensorBoundsError
from bitward_formats.readers.hdf5_metadata import Metadata, number

_NAME_RECORDS = 5
_HASH_BYTES = 4
_DEPTH_LIMIT = 16
_NODE_LIMIT_BYTES = 1 << 20
_NODE_OVERHEAD_BYTES = 10
"""Signature, version, type and checksum."""
_MANAGED, _TINY = 0, 2


def dense_links(metadata: Metadata, heap_address: int, index_address: int) -> Iterator[bytes]:
    """The link messages of a group in the order of its index."""
    heap = _open_heap(metadata, heap_address)
    for record in _records(metadata, index_address):
        metadata.step()
        yield heap.object(record[_HASH_BYTES : _HASH_BYTES + heap.id_bytes])


def _width(limit: int) -> int:
    """Bytes that a number up to ``limit`` takes."""
    return max(1, (limit.bit_length() + 7) // 8)


def _records(metadata: Metadata, address: int) -> Iterator[bytes]:
    """The records of a version 2 B-tree of link names. Order within a group does not matter: a node's own come before its children's."""
    head = metadata.read(address, 22 + metadata.address_bytes + metadata.length_bytes, "a B-tree header")
    if head[:5] != b"BTHD\0" or head[5] != _NAME_RECORDS:
        raise HeaderSyntaxError(f"no B-tree of link names at {address}")
    node_bytes, record_bytes, depth = number(head, 6, 4), number(head, 10, 2), number(head, 12, 2)
    if not _NODE_OVERHEAD_BYTES + record_bytes <= node_bytes <= _NODE_LIMIT_BYTES or record_bytes <= _HASH_BYTES or depth > _DEPTH_LIMIT:
        raise HeaderSyntaxError(f"the B-tree at {address} claims nodes of {node_bytes} bytes, records of {record_bytes}, depth {depth}")
    root = metadata.address(head, 16)
    if root == metadata.undefined:
        return
    # Per level, from the leaves up: how many records there can be, in a node and below it.
    leaf_most = (node_bytes - _NODE_OVERHEAD_BYTES) // record_bytes
    count_bytes, below_most, total_bytes = _width(leaf_most), leaf_most, [0]
    for _ in range(depth):
        pointer_bytes = metadata.address_bytes + count_bytes + total_bytes[-1]
        most = (node_bytes - _NODE_OVERHEAD_BYTES - pointer_bytes) // (record_bytes + pointer_bytes)
        if most < 1:
            raise HeaderSyntaxError(f"the B-tree at {address} has nodes too small for its depth")
        below_most = (most + 1) * below_most + most
        total_bytes.append(_width(below_most))
    pending = [(root, number(head, 16 + metadata.address_bytes, 2), depth)]
    while pending:
        node_address, count, level = pending.pop()
        pointer_bytes = metadata.address_bytes + count_bytes + total_bytes[level - 1] if level else 0
        used_bytes = 6 + count * record_bytes + (count + 1) * pointer_bytes
        if used_bytes + 4 > node_bytes:
            raise HeaderSyntaxError(f"the B-tree node at {node_address} claims {count} records")
        node = metadata.read(node_address, used_bytes, "a B-tree node")
        if node[:5] != (b"BTIN\0" if level else b"BTLF\0") or node[5] != _NAME_RECORDS:
            raise HeaderSyntaxError(f"no B-tree node of level {level} at {node_address}")
        for index in range(count):
            yield node[6 + index * record_bytes : 6 + (index + 1) * record_bytes]
        for index in range(count + 1 if level else 0):
            place = 6 + count * record_bytes + index * pointer_bytes
            pending.append((metadata.address(node, place), number(node, place + metadata.address_bytes, count_bytes), level - 1))


@dataclass(slots=True)
class _Heap:
    """A fractal heap without filters. ``root_rows`` is 0 where the root is a direct block."""

    metadata: Metadata
    id_bytes: int
    width: int
    start_bytes: int
    direct_bytes: int
    offset_bytes: int
    length_bytes: int
    root: int
    root_rows: int
    blocks: dict[int, int] = field(default_factory=dict)
    """Entries of indirect blocks that were read: the place of an entry -> the address in it."""

    def object(self, heap_id: bytes) -> bytes:
        """What an identifier identifies."""
        kind = number(heap_id, 0, 1) >> 4
        if kind == _TINY:
            return heap_id[1 : 2 + (heap_id[0] & 15)]
        if kind != _MANAGED:
            raise FormatVersionError("a link so long that the group's heap has it elsewhere")
        offset = number(heap_id, 1, self.offset_bytes)
        length = number(heap_id, 1 + self.offset_bytes, self.length_bytes)
        if length > self.direct_bytes:
            raise HeaderSyntaxError(f"a link of {length} bytes in heap blocks of {self.direct_bytes}")
        return self.metadata.read(self._place(offset, length), length, "a link") if length else b""

    def _place(self, offset: int, length: int) -> int:
        """The address of a range of the heap's address space, going down the doubling table."""
        if not self.root_rows:
            return self._inside(self.root, offset, length, self.start_bytes)
        block, rows = self.root, self.root_rows
        direct_rows = (self.direct_bytes // self.start_bytes).bit_length() + 1
        while True:
            # The first two rows have blocks of the starting size; each further row doubles it.
            first_row = offset // (self.width * self.start_bytes)
            row = first_row.bit_length()
            size = self.start_bytes << max(row - 1, 0)
            column, inside = divmod(offset - (self.width * size if row else 0), size)
            if row >= rows:
                raise TensorBoundsError(f"a link at {offset} of a heap block of {rows} rows")
            entry = block + 5 + self.metadata.address_bytes + self.offset_bytes
            entry += (row * self.width + column) * self.metadata.address_bytes
            if entry not in self.blocks:
                self.blocks[entry] = self.metadata.address(self.metadata.read(entry, self.metadata.address_bytes, "a heap block"), 0)
            if row < direct_rows:
                return self._inside(self.blocks[entry], inside, length, size)
            # The block below represents `size` bytes: at most half of what this one does, so this ends.
            block, offset = self.blocks[entry], inside
            rows = (size // (self.start_bytes * self.width)).bit_length()

    def _inside(self, block: int, offset: int, length: int, size: int) -> int:
        if offset + length > size:
            raise TensorBoundsError(f"a link of {length} bytes at {offset} of a heap block of {size}")
        return block + offset


def _open_heap(metadata: Metadata, address: int) -> _Heap:
    """The heap whose header is at an address."""
    address_bytes, length_bytes = metadata.address_bytes, metadata.length_bytes
    table = 14 + length_bytes + address_bytes + length_bytes + address_bytes + 8 * length_bytes
    head = metadata.read(address, table + 2 + 2 * length_bytes + 4 + address_bytes + 2, "a heap header")
    if head[:5] != b"FRHP\0":
        raise HeaderSyntaxError(f"no fractal heap at {address}")
    if number(head, 7, 2):
        raise FormatVersionError("a heap of links with filters")
    width, start_bytes = number(head, table, 2), metadata.length(head, table + 2)
    direct_bytes, heap_bits = metadata.length(head, table + 2 + length_bytes), number(head, table + 2 + 2 * length_bytes, 2)
    powers_of_two = all(value and not value & value - 1 for value in (width, start_bytes, direct_bytes))
    if not powers_of_two or not start_bytes <= direct_bytes <= 1 << 32 or not 1 <= heap_bits <= 64:
        raise HeaderSyntaxError(f"the heap at {address} claims rows of {width} blocks of {start_bytes} to {direct_bytes} bytes")
    rows_at = table + 2 + 2 * length_bytes + 4 + address_bytes
    return _Heap(
        metadata=metadata,
        id_bytes=number(head, 5, 2),
        width=width,
        start_bytes=start_bytes,
        direct_bytes=direct_bytes,
        offset_bytes=(heap_bits + 7) // 8,
        length_bytes=min(_width(direct_bytes), _width(number(head, 10, 4))),
        root=metadata.address(head, rows_at - address_bytes),
        root_rows=number(head, rows_at, 2),
    )
