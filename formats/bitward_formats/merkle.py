"""The hash tree above the leaves (SPEC, section 3). Inner nodes are BLAKE2b, whatever the leaves are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b

from bitward_formats.spans import Layout, Span

TREE_FANOUT = 256
ROOT_BYTES = 32


_NODE, _SPAN, _FILE, _UNIT = (
    blake2b(digest_size=ROOT_BYTES, person=b"bitward-%b-v1" % kind) for kind in (b"node", b"span", b"file", b"unit")
)
"""Hashers of each kind of node before any data. They are copied: making one anew takes three times as long as the hash of a small node."""


def _node(kind: blake2b, data: bytes) -> bytes:
    hasher = kind.copy()
    hasher.update(data)
    return hasher.digest()


def span_root(span: Span, leaves: bytes, leaf_hash: int, leaf_bytes: int) -> bytes:
    """The root of one span from its leaves, ``block_count * leaf_bytes`` bytes. Where the span lies does not matter."""
    entries, entry_bytes, level = leaves, leaf_bytes, 0
    while True:
        run_bytes = TREE_FANOUT * entry_bytes
        prefix = bytes([level])
        if len(entries) <= run_bytes:
            entries = _node(_NODE, prefix + entries)
            break
        entries = b"".join([_node(_NODE, prefix + entries[at : at + run_bytes]) for at in range(0, len(entries), run_bytes)])
        entry_bytes, level = ROOT_BYTES, level + 1
    head = bytes([leaf_hash]) + span.kind.record_bytes.to_bytes(2, "little") + span.length.to_bytes(8, "little")
    return _node(_SPAN, head + entries)


def span_roots(layout: Layout, leaves: bytes, leaf_hash: int, leaf_bytes: int) -> Iterator[bytes]:
    """The roots of all spans, in order, from the leaf stream."""
    at = 0
    for span in layout.spans:
        end = at + span.block_count * leaf_bytes
        yield span_root(span, leaves[at:end], leaf_hash, leaf_bytes)
        at = end


def file_root(file_bytes: int, layout_stream: bytes, roots: Iterable[bytes]) -> bytes:
    """The root of a file. It binds size, names, types and shapes, but not the preset."""
    return _node(_FILE, file_bytes.to_bytes(8, "little") + layout_stream + b"".join(roots))


def unit_root(index_stream: bytes) -> bytes:
    """The root of a directory from its unit index stream."""
    return _node(_UNIT, index_stream)
