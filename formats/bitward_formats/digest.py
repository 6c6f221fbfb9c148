"""Leaf digests of blocks and checks of sidecar pages (SPEC, sections 3 and 7)."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING

import xxhash

from bitward_formats.errors import MissingExtraError, UnsupportedVersionError

if TYPE_CHECKING:
    from typing_extensions import Buffer

LeafFunction = Callable[["Buffer", int, int], bytes]
"""(data, index of the block in its span, length in bytes) -> leaf."""


class LeafHash(IntEnum):
    """Which function makes leaves. The numbers are those of the superblock."""

    XXH3 = 1
    BLAKE3 = 2

    @property
    def leaf_bytes(self) -> int:
        return 16 if self is LeafHash.XXH3 else 32

    @property
    def label(self) -> str:
        return self.name.lower()


_xxh3_128_digest = xxhash.xxh3_128_digest
_xxh3_64_intdigest = xxhash.xxh3_64_intdigest
_BLAKE3_DOMAIN = b"bitward leaf v1."


def _xxh3_leaf(data: Buffer, index: int, length: int) -> bytes:
    return _xxh3_128_digest(data, (index << 32) + length)


def leaf_function(leaf_hash: int) -> LeafFunction:
    """The function that makes leaves.

    Raises:
        UnsupportedVersionError: a number that this version does not know.
        MissingExtraError: BLAKE3 without the ``blake3`` package.
    """
    if leaf_hash == LeafHash.XXH3:
        return _xxh3_leaf
    if leaf_hash != LeafHash.BLAKE3:
        raise UnsupportedVersionError(f"unknown leaf hash {leaf_hash}: a newer Bitward made this sidecar")
    try:
        from blake3 import blake3
    except ImportError:
        raise MissingExtraError("BLAKE3 leaves need the extra 'blake3': pip install 'bitward[blake3]'") from None

    def leaf(data: Buffer, index: int, length: int) -> bytes:
        key = index.to_bytes(8, "little") + length.to_bytes(8, "little") + _BLAKE3_DOMAIN
        return blake3(data, key=key).digest()

    return leaf


def run_leaves(leaf_hash: int) -> LeafFunction:
    """A function (data, index of the first block, block_bytes) -> leaves of the neighbouring blocks in ``data``, joined.

    Scanning spends its time here, so the XXH3 case is spelled out.
    """
    leaf = leaf_function(leaf_hash)

    def run(data: Buffer, first: int, block_bytes: int) -> bytes:
        view = memoryview(data)
        starts = range(0, len(view), block_bytes)
        parts = [view[at : at + block_bytes] for at in starts]
        return b"".join([leaf(part, first + step, len(part)) for step, part in enumerate(parts)])

    def run_xxh3(data: Buffer, first: int, block_bytes: int) -> bytes:
        view, digest = memoryview(data), _xxh3_128_digest
        size = len(view)
        whole = size // block_bytes * block_bytes
        seed = (first << 32) + block_bytes
        leaves = [digest(view[at : at + block_bytes], seed + (step << 32)) for step, at in enumerate(range(0, whole, block_bytes))]
        if whole != size:
            leaves.append(digest(view[whole:], ((first + len(leaves)) << 32) + size - whole))
        return b"".join(leaves)

    return run_xxh3 if leaf_hash == LeafHash.XXH3 else run


def page_check(body: Buffer, salt: int) -> int:
    """The check of a sidecar page over its first 4088 bytes."""
    return _xxh3_64_intdigest(body, salt)
