"""What is at hand that says how a file should be: digests in blob names, checksum lists, download notes, signature bundles.

Looks only into the file's folder and those above it, up to the top of the unit. Reads a bounded number of small files, follows no link,
and believes nothing: a claim is compared with the file's bytes, and what cannot be read or parsed is told in a note.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import field

from bitward_agent.errors import BitwardError, UnreadableError, UntrustedError
from bitward_agent.io import OpenFile
from bitward_formats.checksums import (
    LIST_LIMIT_BYTES,
    Algorithm,
    Claim,
    claim_of_blob,
    read_checksum_list,
    read_download_note,
    sha256_part,
)
from bitward_formats.errors import ManifestError
from bitward_formats.frozen import dataclass
from bitward_formats.model_signing import BUNDLE_LIMIT_BYTES, read_bundle, read_manifest

_LIST_NAMES = ("sha256sums", "sha256sums.txt", "sha256sum.txt", "sha256sum", "sha256.txt", "checksums.txt", "checksums")
_LIST_SUFFIXES = (".sha256", ".sha256sum", ".sha256sums", ".sha256.txt")
_BUNDLE_SUFFIXES = (".sig", ".sigstore", ".sigstore.json")
_NOTE_LIMIT_BYTES = 4096
_FOLDER_LIMIT_FILES = 10_000
"""Most pieces of evidence that are read in one folder."""
_FOLDER_LIMIT_BYTES = 64 << 20
_LEVELS_LIMIT = 64
"""Most folders above a file that are looked into."""
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is claimed of one file, and what could not be used."""

    claims: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class _FolderEvidence:
    claims: dict[str, list[Claim]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, claim: Claim) -> None:
        known = self.claims.setdefault(name, [])
        if claim not in known:
            known.append(claim)


class EvidenceFinder:
    """Finds claims; each folder is read once."""

    def __init__(self) -> None:
        self._folders: dict[str, _FolderEvidence] = {}

    def of(self, path: str, top: str) -> Evidence:
        """What is claimed of the file ``path``, whose unit's folder is ``top`` (the file's own folder where it stands alone)."""
        claims: list[Claim] = []
        notes: list[str] = []
        blob = claim_of_blob(path)
        if blob is not None:
            claims.append(blob)
        folder, name = os.path.split(path)
        if not folder.startswith(f"{top}/"):
            top = folder  # a blob of a hub cache lies outside of its snapshot
        for _ in range(_LEVELS_LIMIT):
            found = self._folders.get(folder)
            if found is None:
                found = self._folders[folder] = _read_folder(folder)
            claims += found.claims.get(name, [])
            notes += found.notes
            claims += _download_note(folder, name)
            if folder == top or folder == os.path.dirname(folder):
                break
            folder, last = os.path.split(folder)
            name = f"{last}/{name}"
        return Evidence(tuple(claims), tuple(dict.fromkeys(notes)))


def _read_small(path: str, limit_bytes: int) -> bytes:
    """A small file's bytes.

    Raises:
        BitwardError: unreadable, no regular file, or longer than ``limit_bytes``.
    """
    with OpenFile(path) as file:
        size = file.state().size
        if size > limit_bytes:
            raise UnreadableError(f"{path}: too long to be a list of digests")
        return file.read(0, size)


def _download_note(folder: str, name: str) -> list[Claim]:
    path = os.path.join(folder, ".cache", "huggingface", "download", name + ".metadata")
    if not os.path.lexists(path):
        return []
    try:
        part = read_download_note(_read_small(path, _NOTE_LIMIT_BYTES))
    except BitwardError:
        return []
    return [Claim("the hub's download note", (part,))] if part else []


def _read_folder(folder: str) -> _FolderEvidence:
    found = _FolderEvidence()
    names = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                lower = entry.name.lower()
                if (lower in _LIST_NAMES or lower.endswith((*_LIST_SUFFIXES, *_BUNDLE_SUFFIXES))) and entry.is_file(follow_symlinks=False):
                    names.append(entry.name)
                if len(names) > _FOLDER_LIMIT_FILES:
                    found.notes.append(f"more than {_FOLDER_LIMIT_FILES:,} checksum files beside it: the rest was not read")
                    break
    except OSError:
        return found
    left_bytes = _FOLDER_LIMIT_BYTES
    for name in sorted(names[:_FOLDER_LIMIT_FILES]):
        is_bundle = name.lower().endswith(_BUNDLE_SUFFIXES)
        try:
            data = _read_small(os.path.join(folder, name), min(left_bytes, BUNDLE_LIMIT_BYTES if is_bundle else LIST_LIMIT_BYTES))
            left_bytes -= len(data)
            if is_bundle:
                _add_bundle(found, name, data)
            else:
                _add_list(found, name, data)
        except BitwardError as error:
            found.notes.append(f"{name} was not used: {str(error).removeprefix(os.path.join(folder, name) + ': ')}")
    return found


def _add_bundle(found: _FolderEvidence, name: str, data: bytes) -> None:
    if b"dsseEnvelope" not in data:
        return  # another kind of signature: it says nothing that can be compared
    try:
        manifest = read_manifest(read_bundle(data).payload, f"{name} (its signature was not checked)")
    except ManifestError as error:
        found.notes.append(f"{name} was not used: {error}")
        return
    for path, claim in manifest.claims.items():
        found.add(path, claim)


def _add_list(found: _FolderEvidence, name: str, data: bytes) -> None:
    lines = read_checksum_list(data)
    suffix = next((one for one in reversed(_LIST_SUFFIXES) if name.lower().endswith(one)), "")
    own = name[: -len(suffix)] if suffix else ""
    for listed, digest in lines:
        claim = Claim(name, (sha256_part(digest),))
        if listed:
            found.add(listed, claim)
        # FILE.sha256 with one line speaks of FILE, whatever folder its maker was in.
        if own and len(lines) == 1 and os.path.basename(listed) in ("", own):
            found.add(own, claim)


def check_claims(file: OpenFile, size: int, claims: Sequence[Claim]) -> None:
    """Compare a file with what is claimed of it. A digest that several claim is computed once.

    Raises:
        UntrustedError: it is another file, or a changed one.
    """
    known: dict[tuple[Algorithm, int, int], bytes] = {}
    for claim in claims:
        if claim.parts[-1].end not in (None, size):
            raise UntrustedError(f"{file.path}: has {size} bytes, but {claim.parts[-1].end} by {claim.source}{_NEXT}")
        for part in claim.parts:
            key = (part.algorithm, part.start, size if part.end is None else part.end)
            if key not in known:
                known[key] = digest_of(file, *key)
            if known[key] != part.digest:
                where = "" if len(claim.parts) == 1 else f" of bytes {key[1]} to {key[2]}"
                name = part.algorithm.value
                raise UntrustedError(
                    f"{file.path}: {name}{where} is {known[key].hex()}, but {part.digest.hex()} by {claim.source}{_NEXT}"
                )


_NEXT = ": not protected; get a good copy, or use --force"


def digest_of(file: OpenFile, algorithm: Algorithm, start: int, end: int) -> bytes:
    """The digest of a range of an open file.

    Raises:
        UnreadableError: part of it cannot be read.
    """
    if algorithm is Algorithm.GIT_BLOB:
        digest = hashlib.sha1(b"blob %d\0" % (end - start), usedforsecurity=False)
    else:
        digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    for offset in range(start, end, _CHUNK_BYTES):
        view = buffer[: min(_CHUNK_BYTES, end - offset)]
        lost = file.read_into(view, offset)
        if lost:
            raise UnreadableError(f"{file.path}: bytes {lost[0][0]} to {lost[0][1]} cannot be read")
        digest.update(view)
    return digest.digest()


def whole_sha256(claims: Sequence[Claim], size: int) -> bytes | None:
    """The SHA-256 of a whole file, if one of the claims says it."""
    for claim in claims:
        part = claim.parts[0]
        if len(claim.parts) == 1 and part.algorithm is Algorithm.SHA256 and part.start == 0 and part.end in (None, size):
            return part.digest
    return None

