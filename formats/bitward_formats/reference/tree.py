"""Leaves and roots (SPEC, section 3)."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import xxhash

from bitward_formats.errors import MissingExtraError
from bitward_formats.reference.layout_stream import Block, StoredLayout
from bitward_formats.reference.limits import TREE_FANOUT, XXH3_LEAF
from bitward_formats.spans import Span

BLAKE3_KEY_TAIL = b"bitward leaf v1."


def blake2b_256(person: bytes, data: bytes) -> bytes:
    """BLAKE2b with 32 bytes of output; hashlib pads the personalisation with zero bytes."""
    return hashlib.blake2b(data, digest_size=32, person=person).digest()


def leaf(data: bytes, index: int, leaf_hash: int) -> bytes:
    """The digest of block ``index`` of its span. Raises MissingExtraError for BLAKE3 without its package."""
    if leaf_hash == XXH3_LEAF:
        return xxhash.xxh3_128(data, seed=(index << 32) + len(data)).digest()
    try:
        import blake3
    except ImportError as error:
        raise MissingExtraError("leaf hash 2 needs the package blake3: install bitward[blake3]") from error
    key = struct.pack("<QQ", index, len(data)) + BLAKE3_KEY_TAIL
    return blake3.blake3(data, key=key).digest()


def span_root(span: Span, leaves: Sequence[bytes], leaf_hash: int) -> bytes:
    """The root of the tree over a span's leaves."""
    entries, level = list(leaves), 0
    while level == 0 or len(entries) > 1:
        runs = [entries[start : start + TREE_FANOUT] for start in range(0, len(entries), TREE_FANOUT)] or [[]]
        entries = [blake2b_256(b"bitward-node-v1", struct.pack("<B", level) + b"".join(run)) for run in runs]
        level += 1
    facts = struct.pack("<BHQ", leaf_hash, span.kind.record_bytes, span.length)
    return blake2b_256(b"bitward-span-v1", facts + entries[0])


def span_roots(stored: StoredLayout, blocks: Sequence[Block], leaves: Sequence[bytes], leaf_hash: int) -> list[bytes]:
    """The roots of all spans; ``leaves`` are those of ``blocks``."""
    leaves_of_span: list[list[bytes]] = [[] for _ in stored.layout.spans]
    for block in blocks:
        leaves_of_span[block.span_index].append(leaves[block.number])
    return [span_root(span, own, leaf_hash) for span, own in zip(stored.layout.spans, leaves_of_span, strict=True)]


def file_root(file_bytes: int, layout_stream: bytes, roots: Sequence[bytes]) -> bytes:
    """The root of a file over its size, layout and span roots."""
    return blake2b_256(b"bitward-file-v1", struct.pack("<Q", file_bytes) + layout_stream + b"".join(roots))


def unit_root(unit_stream: bytes) -> bytes:
    """The root of a directory over its unit index stream."""
    return blake2b_256(b"bitward-unit-v1", unit_stream)
