"""The links of an HDF5 group: names and the objects that they lead to.

Groups keep their links in one of three ways: a symbol table (version 1 B-tree, symbol nodes and a heap of names), link messages in the
group's header, or, where there are many, link messages in a fractal heap. Soft, external and user-defined links are passed over: what
they name is reached by its hard link, or is not in the file.

Source: HDF5 File Format Specification 3.0, sections III.A.1 (version 1 B-trees), III.B (symbol table nodes), III.C (entries), III.D
(local heaps), IV.A.2.c (link info), IV.A.2.g (link), IV.A.2.r (symbol table message).
"""

from __future__ import annotations

from collections.abc import Iterator

from bitward_formats.errors import FormatVersionError, HeaderSyntaxError, HeaderTooShortError
from bitward_formats.readers.hdf5_heap import dense_links
from bitward_formats.readers.hdf5_metadata import LINK_STEPS, Metadata, decoded, number
from bitward_formats.readers.hdf5_objects import LINK, LINK_INFO, SYMBOL_TABLE, Message, message_of

GROUP_NODE, CHUNK_NODE = 0, 1
_HARD_LINK = 0
_SOFT_LINK_CACHE = 2
_DEPTH_LIMIT = 64

Link = tuple[str, int]
"""A name, and the address of an object header."""


def links_of(metadata: Metadata, messages: list[Message]) -> list[Link]:
    """The hard links of a group, by name: an order that does not depend on how the group keeps them."""
    links: list[Link] = []
    table = message_of(metadata, messages, SYMBOL_TABLE)
    if table is not None:
        links += _table_links(metadata, metadata.address(table, 0), metadata.address(table, metadata.address_bytes))
    for message in messages:
        if message.kind == LINK:
            links += _hard_link(metadata, message.data)
    info = message_of(metadata, messages, LINK_INFO)
    if info is not None:
        version, flags = number(info, 0, 1), number(info, 1, 1)
        if version:
            raise FormatVersionError(f"link info version {version} is not known")
        place = 10 if flags & 1 else 2
        heap, index = metadata.address(info, place), metadata.address(info, place + metadata.address_bytes)
        if metadata.undefined not in (heap, index):
            for link in dense_links(metadata, heap, index):
                links += _hard_link(metadata, link)
    links.sort()
    return links


def tree_children(metadata: Metadata, root: int, node_type: int, key_bytes: int) -> Iterator[tuple[bytes, int]]:
    """The leaves' children of a version 1 B-tree, in order: the key before each, and its address."""
    entry_bytes = key_bytes + metadata.address_bytes
    head_bytes = 8 + 2 * metadata.address_bytes
    # Addresses still to visit, each with the level which it must have; levels only fall, so there is no circle.
    pending: list[tuple[int, int | None]] = [(root, None)]
    while pending:
        address, wanted_level = pending.pop()
        head = metadata.read(address, head_bytes, "a B-tree node")
        level, count = head[5], number(head, 6, 2)
        if head[:4] != b"TREE" or head[4] != node_type or level > _DEPTH_LIMIT:
            raise HeaderSyntaxError(f"no B-tree node of type {node_type} at {address}")
        if wanted_level is not None and level != wanted_level:
            raise HeaderSyntaxError(f"the B-tree node at {address} has level {level}, not {wanted_level}")
        entries = metadata.read(address + head_bytes, count * entry_bytes, "entries of a B-tree node") if count else b""
        places = range(0, count * entry_bytes, entry_bytes)
        if level:
            pending += [(metadata.address(entries, place + key_bytes), level - 1) for place in reversed(places)]
        else:
            for place in places:
                metadata.step()
                yield entries[place : place + key_bytes], metadata.address(entries, place + key_bytes)


def _table_links(metadata: Metadata, tree: int, heap: int) -> list[Link]:
    """The links of a symbol table."""
    head = metadata.read(heap, 8 + 2 * metadata.length_bytes + metadata.address_bytes, "a local heap")
    if head[:5] != b"HEAP\0":
        raise HeaderSyntaxError(f"no local heap at {heap}")
    names_bytes = metadata.length(head, 8)
    names_address = metadata.address(head, 8 + 2 * metadata.length_bytes)
    names = metadata.read(names_address, names_bytes, "the names of a group") if names_bytes else b""
    links: list[Link] = []
    for _, node in tree_children(metadata, tree, GROUP_NODE, metadata.length_bytes):
        links += _node_links(metadata, node, names)
    return links


def _node_links(metadata: Metadata, node: int, names: bytes) -> list[Link]:
    """The hard links of one symbol table node."""
    head = metadata.read(node, 8, "a symbol table node")
    if head[:5] != b"SNOD\1":
        raise HeaderSyntaxError(f"no symbol table node at {node}")
    entry_bytes = 2 * metadata.address_bytes + 24
    count = number(head, 6, 2)
    entries = metadata.read(node + 8, count * entry_bytes, "a symbol table node") if count else b""
    links: list[Link] = []
    for place in range(0, count * entry_bytes, entry_bytes):
        metadata.step(LINK_STEPS)
        name_start = metadata.address(entries, place)
        name_end = names.find(b"\0", name_start)
        if name_end < 0:
            raise HeaderTooShortError(f"the heap of names ends within the one at {name_start}")
        if number(entries, place + 2 * metadata.address_bytes, 4) != _SOFT_LINK_CACHE:
            links.append((decoded(names[name_start:name_end]), metadata.address(entries, place + metadata.address_bytes)))
    return links


def _hard_link(metadata: Metadata, data: bytes) -> list[Link]:
    """The link of a link message, if it is a hard one."""
    version, flags = number(data, 0, 1), number(data, 1, 1)
    if version != 1:
        raise FormatVersionError(f"link message version {version} is not known")
    metadata.step(LINK_STEPS)
    place = 2
    kind = _HARD_LINK
    if flags & 0x08:
        kind = number(data, place, 1)
        place += 1
    place += (8 if flags & 0x04 else 0) + (1 if flags & 0x10 else 0)
    size = 1 << (flags & 3)
    name_bytes = number(data, place, size)
    place += size
    if kind != _HARD_LINK:
        return []
    # The address is checked to be there, and so is the name before it.
    address = metadata.address(data, place + name_bytes)
    return [(decoded(data[place : place + name_bytes]), address)]
