"""Digests that other programs left beside files or in their names: checksum lists, blob names, download notes.

Formats, each from its program's own documentation:

- checksum lists as ``sha256sum`` of GNU coreutils writes and reads them: ``HEX␠␠NAME`` or ``HEX␠*NAME``, with ``--tag``
  ``SHA256 (NAME) = HEX``; a line that begins with a backslash has ``\\\\``, ``\\n`` and ``\\r`` escaped in its name;
- names of blobs: Ollama (``blobs/sha256-HEX``), OCI image layout (``blobs/sha256/HEX``), Hugging Face hub cache
  (``models--ORG--NAME/blobs/ETAG``), where the ETag of a file in LFS is its SHA-256 and that of any other its git blob id;
- ``.cache/huggingface/download/FILE.metadata`` of ``huggingface_hub``: three lines, the second being that ETag.

Everything here is text that anybody may have written: what does not parse says nothing, and no length is believed.
"""

from __future__ import annotations

import re
from enum import StrEnum

from bitward_formats.frozen import dataclass

LIST_LIMIT_BYTES = 4 << 20
"""Longest checksum list that is read: some 50,000 files."""
_HEX_64 = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)
_HEX_40 = re.compile(r"[0-9a-f]{40}", re.ASCII)
_TAGGED = re.compile(r"(\\?)SHA256 \((.*)\) = ([0-9a-fA-F]{64})", re.ASCII | re.DOTALL)
_PLAIN = re.compile(r"(\\?)([0-9a-fA-F]{64})(?:[ \t]+\*?|\Z)(.*)", re.ASCII | re.DOTALL)
_HUB_REPOSITORY = re.compile(r"(?:models|datasets|spaces|kernels)--.+", re.DOTALL)
_ESCAPES = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}


class Algorithm(StrEnum):
    """How a digest is made. ``GIT_BLOB``: SHA-1 of ``blob SIZE\\0`` and the contents, as git names them."""

    SHA256 = "SHA-256"
    GIT_BLOB = "git blob SHA-1"


@dataclass(frozen=True, slots=True)
class Part:
    """The digest of the bytes ``start .. end`` of a file; ``end`` of ``None`` is wherever the file ends."""

    algorithm: Algorithm
    digest: bytes
    start: int = 0
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """What somebody says of a whole file: the digests of its parts, in order. ``source`` names the evidence for people."""

    source: str
    parts: tuple[Part, ...]


def sha256_part(digest_hex: str) -> Part:
    """The claim of one SHA-256 over a whole file, from 64 hexadecimal digits."""
    return Part(Algorithm.SHA256, bytes.fromhex(digest_hex))


def read_checksum_list(data: bytes) -> tuple[tuple[str, str], ...]:
    """(name, SHA-256 in hexadecimal) of each line that is one; the name is empty where a line has only a digest.

    Names are the file system's bytes (surrogateescape), ``./`` in front taken off. Other lines say nothing.
    """
    found = []
    for line in data.decode("utf-8", "surrogateescape").split("\n"):
        line = line.rstrip("\r")
        if tagged := _TAGGED.fullmatch(line):
            escaped, name, digest = tagged.groups()
        elif plain := _PLAIN.fullmatch(line):
            escaped, digest, name = plain.groups()
        else:
            continue
        if escaped:
            name = re.sub(r"\\[\\nr]", lambda match: _ESCAPES[match[0]], name)
        while name.startswith("./"):
            name = name[2:]
        found.append((name, digest.lower()))
    return tuple(found)


def etag_part(etag: str) -> Part | None:
    """What the ETag of a file on the Hugging Face hub says of its contents, or None where it is no digest."""
    if _HEX_64.fullmatch(etag):
        return sha256_part(etag)
    return Part(Algorithm.GIT_BLOB, bytes.fromhex(etag)) if _HEX_40.fullmatch(etag) else None


def read_download_note(data: bytes) -> Part | None:
    """The digest in a ``.metadata`` file of ``huggingface_hub``, or None."""
    lines = data.decode("utf-8", "replace").split("\n")
    return etag_part(lines[1].strip()) if len(lines) >= 3 and _HEX_40.fullmatch(lines[0].strip()) else None


def is_hub_repository(name: str) -> bool:
    """Whether a folder's name is that of a repository in a Hugging Face hub cache."""
    return _HUB_REPOSITORY.fullmatch(name) is not None


def is_ollama_blob(path: str) -> bool:
    """Whether a path is that of a blob in an Ollama store."""
    parts = ("", "", *path.split("/"))
    return parts[-2] == "blobs" and parts[-1].startswith("sha256-") and _HEX_64.fullmatch(parts[-1][7:]) is not None


def claim_of_blob(path: str) -> Claim | None:
    """What a file's own name says of its contents where the file lies in a blob store; ``path`` is absolute."""
    parts = ("", "", "", *path.split("/"))
    name = parts[-1]
    if parts[-2] == "blobs" and is_hub_repository(parts[-3]):
        part = etag_part(name)
        return Claim("the blob's name in the hub cache", (part,)) if part else None
    if is_ollama_blob(path):
        return Claim("the blob's name in the Ollama store", (sha256_part(name[7:]),))
    if parts[-3:-1] == ("blobs", "sha256") and _HEX_64.fullmatch(name):
        return Claim("the blob's name in the OCI layout", (sha256_part(name),))
    return None
