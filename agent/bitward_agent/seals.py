"""Seals of files and directories: made, found, and checked against a key. Whatever is not right is an error: nothing is let through."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bitward_agent.durable import atomic_file, remove
from bitward_agent.errors import BitwardError
from bitward_agent.io import OpenFile
from bitward_formats.errors import FormatError, SealError
from bitward_formats.seal import SEAL_BYTES, Seal, decode_seal, encode_seal, key_id
from bitward_formats.unit_index import UNIT_INDEX_NAME

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


def seal_path(sidecar: str) -> str:
    """Where the seal over a sidecar's root is, or that over the root of a directory's index."""
    return f"{sidecar}-seal"


def public_id(key: Ed25519PublicKey) -> bytes:
    """The name of a key."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key_id(key.public_bytes(Encoding.Raw, PublicFormat.Raw))


def write_seal(path: str, key: Ed25519PrivateKey, kind: int, root: bytes, file_bytes: int, signed_ns: int) -> Seal:
    """Sign a root and write the seal."""
    from dataclasses import replace

    draft = Seal(kind, signed_ns, file_bytes, root, public_id(key.public_key()))
    seal = replace(draft, signature=key.sign(draft.message))
    with atomic_file(path) as target:
        target.write_all(encode_seal(seal), 0)
    return seal


def read_seal(path: str) -> Seal:
    """A seal whose signature was not checked.

    Raises:
        SealError: there is none, or it is malformed.
        UnreadableError: it cannot be read.
    """
    if not os.path.lexists(path):
        raise SealError("there is no seal")
    with OpenFile(path) as file:
        return decode_seal(file.read(0, SEAL_BYTES + 1))


def checked_seal(path: str, key: Ed25519PublicKey, kind: int) -> Seal:
    """A seal that ``key`` made over something of this kind.

    Raises:
        SealError: there is none, it is malformed, of another kind or another key, or its signature is wrong.
        UnreadableError: it cannot be read.
    """
    from cryptography.exceptions import InvalidSignature

    seal = read_seal(path)
    if seal.kind != kind:
        raise SealError("the seal is of a file, not of a directory" if kind else "the seal is of a directory, not of a file")
    if seal.key_id != public_id(key):
        raise SealError(f"sealed by another key, {seal.key_id.hex()[:16]}…")
    try:
        key.verify(seal.signature, seal.message)
    except InvalidSignature:
        raise SealError("the seal's signature is wrong: the seal was forged, or is damaged") from None
    return seal


def unit_seal_above(path: str) -> str:
    """The seal of the nearest directory above a path that has one, or nothing."""
    folder = os.path.dirname(path)
    while True:
        seal = seal_path(os.path.join(folder, UNIT_INDEX_NAME))
        if os.path.lexists(seal):
            return seal
        if folder == os.path.dirname(folder):
            return ""
        folder = os.path.dirname(folder)


def drop_stale_seal(path: str, root: bytes) -> str:
    """Remove a seal that is not over this root; says so."""
    if not os.path.lexists(path):
        return ""
    try:
        if read_seal(path).root == root:
            return ""
    except (BitwardError, FormatError):
        pass
    remove(path)
    return "its seal was over other contents and is gone"
