"""Seals: an Ed25519 signature over a file root or a unit root (SPEC, section 13)."""

from __future__ import annotations

import hashlib
import struct

from bitward_formats.digest import LeafHash
from bitward_formats.errors import SealError
from bitward_formats.frozen import dataclass

SEAL_MAGIC = b"\x89SEAL\r\n\x1a"
SEAL_VERSION = 1
SEAL_BYTES = 160
SIGNED_BYTES = 96
SEAL_DOMAIN = b"bitward-seal-v1\0"
PUBLIC_KEY_BYTES = 32
_HEAD = struct.Struct("<8sHBBIQQ32s32s")
assert _HEAD.size == SIGNED_BYTES


@dataclass(frozen=True, slots=True)
class Seal:
    """What is signed: the root of a file (``kind`` 0) or a unit (1), its size in bytes, when, and by which key; and the signature."""

    kind: int
    signed_ns: int
    file_bytes: int
    root: bytes
    key_id: bytes
    signature: bytes = b""

    @property
    def head(self) -> bytes:
        """The bytes before the signature."""
        fields = (self.kind, LeafHash.BLAKE3, 0, self.signed_ns, self.file_bytes, self.root, self.key_id)
        return _HEAD.pack(SEAL_MAGIC, SEAL_VERSION, *fields)

    @property
    def message(self) -> bytes:
        """What the signature covers."""
        return SEAL_DOMAIN + self.head


def key_id(public_key: bytes) -> bytes:
    """The name of an Ed25519 public key of 32 bytes."""
    return hashlib.sha256(public_key).digest()


def encode_seal(seal: Seal) -> bytes:
    """The seal file."""
    return seal.head + seal.signature


def decode_seal(data: bytes) -> Seal:
    """Read a seal file. Its signature is not checked here.

    Raises:
        SealError: another length, magic or version, an unknown kind, leaves that can be forged, reserved bytes that are not zero.
    """
    if len(data) != SEAL_BYTES:
        raise SealError(f"a seal has {SEAL_BYTES} bytes, not {len(data)}")
    magic, version, kind, leaf_hash, reserved, signed_ns, file_bytes, root, key = _HEAD.unpack(data[:SIGNED_BYTES])
    if magic != SEAL_MAGIC:
        raise SealError("not a seal: its magic is missing")
    if version != SEAL_VERSION or kind > 1 or reserved:
        raise SealError(f"seal of version {version}, kind {kind}: a newer Bitward made it, or it is damaged")
    if leaf_hash != LeafHash.BLAKE3:
        raise SealError(f"seal over leaf hash {leaf_hash}: only BLAKE3 leaves can be sealed")
    return Seal(kind, signed_ns, file_bytes, root, key, data[SIGNED_BYTES:])
