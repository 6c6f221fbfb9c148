"""The hash tree above the leaves (SPEC, section 3). Inner nodes are BLAKE2b, whatever the leaves are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b

from bitward_formats.spans import Layout, Span

TREE_FANOUT = 256
ROOT_BYTES = 32


def _node(person: bytes, data: bytes) -> bytes:
    return blake2b(data, digest_size=ROOT_BYTES, person=person).digest()


def span_root(span: Span, leaves: bytes, leaf_hash: int, leaf_bytes: int) -> bytes:
    """The root of one span from its leaves, ``block_count * leaf_bytes`` bytes. Where the span lies does not matter."""
    entries, entry_bytes, level = leaves, leaf_bytes, 0
    while True:
        run_bytes = TREE_FANOUT * entry_bytes
        prefix = bytes([level])
        runs = range(0, max(len(entries), 1), run_bytes)
        entries = b"".join(_node(b"bitward-node-v1", prefix + entries[at : at + run_bytes]) for at in runs)
        entry_bytes, level = ROOT_BYTES, level + 1
        if len(entries) == ROOT_BYTES:
            break
    head = bytes([leaf_hash]) + span.kind.record_bytes.to_bytes(2, "little") + span.length.to_bytes(8, "little")
    return _node(b"bitward-span-v1", head + entries)


def span_roots(layout: Layout, leaves: bytes, leaf_hash: int, leaf_bytes: int) -> Iterator[bytes]:
    """The roots of all spans, in order, from the leaf stream."""
    at = 0
    for span in layout.spans:
        end = at + span.block_count * leaf_bytes
        yield span_root(span, leaves[at:end], leaf_hash, leaf_bytes)
        at = end


def file_root(file_bytes: int, layout_stream: bytes, roots: Iterable[bytes]) -> bytes:
    """The root of a file. It binds size, names, types and shapes, but not the preset."""
    return _node(b"bitward-file-v1", file_bytes.to_bytes(8, "little") + layout_stream + b"".join(roots))


def unit_root(index_stream: bytes) -> bytes:
    """The root of a directory from its unit index stream."""
    return _node(b"bitward-unit-v1", index_stream)
