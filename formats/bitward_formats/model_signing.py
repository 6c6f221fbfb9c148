"""Manifests of OpenSSF Model Signing: an in-toto statement in a DSSE envelope in a Sigstore bundle.

Sources: the OpenSSF Model Signing specification and its reference implementation ``model-signing`` 1.1 (predicate
``https://model_signing/signature/v1.0``); the in-toto attestation framework (Statement v1); DSSE 1.0 (pre-authentication encoding);
the Sigstore bundle format 0.3. Only JSON and lengths here: who signed is for the caller to find out.

A statement's subject is the SHA-256 over the digests of all resources in order. A resource is a file (method ``files``) or a range of
one (method ``shards``, named ``PATH:START:END``); empty files have no shards.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from bitward_formats.checksums import Algorithm, Claim, Part
from bitward_formats.errors import ManifestError
from bitward_formats.frozen import dataclass

BUNDLE_LIMIT_BYTES = 32 << 20
"""Longest bundle that is read: some 100,000 resources."""
SHARD_BYTES = 1_000_000_000
"""Shard size of ``model-signing``'s default."""
PAYLOAD_TYPE = "application/vnd.in-toto+json"
BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
ALWAYS_IGNORED = (".git", ".gitattributes", ".github", ".gitignore")
"""What the reference implementation leaves out unless told otherwise."""
_SIZE_LIMIT = 1 << 63


@dataclass(frozen=True, slots=True)
class Shard:
    """SHA-256 of the bytes ``start .. end`` of a file of the model, ``path`` relative to it."""

    path: str
    start: int
    end: int
    digest: bytes

    @property
    def name(self) -> str:
        return f"{self.path}:{self.start}:{self.end}"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle's envelope: what is signed, the signatures, and the hint which key it was (may be empty)."""

    payload: bytes
    signatures: tuple[bytes, ...]
    key_hint: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a statement says: claims by path relative to the model, and which paths it does not speak of."""

    model_name: str
    claims: dict[str, Claim]
    ignored: tuple[str, ...]
    has_empty_files: bool


def pre_authentication(payload: bytes) -> bytes:
    """The bytes that a DSSE signature of an in-toto statement covers."""
    return b"DSSEv1 %d %s %d " % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload)) + payload


def _json(data: bytes, what: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{what} is no JSON: {str(error)[:100]}") from None


def _field(value: Any, key: str, kind: type, what: str) -> Any:
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, kind):
        raise ManifestError(f"{what} has no {key!r} of type {kind.__name__}")
    return found


def _base64(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ManifestError(f"{what} is no base64") from None


def read_bundle(data: bytes) -> Bundle:
    """The envelope in a Sigstore bundle with an in-toto statement.

    Raises:
        ManifestError: it is none, or too long.
    """
    if len(data) > BUNDLE_LIMIT_BYTES:
        raise ManifestError(f"signature bundle has more than {BUNDLE_LIMIT_BYTES} bytes")
    bundle = _json(data, "signature bundle")
    envelope = _field(bundle, "dsseEnvelope", dict, "signature bundle")
    if _field(envelope, "payloadType", str, "DSSE envelope") != PAYLOAD_TYPE:
        raise ManifestError("DSSE envelope holds no in-toto statement")
    payload = _base64(_field(envelope, "payload", str, "DSSE envelope"), "DSSE payload")
    signatures = tuple(
        _base64(_field(one, "sig", str, "DSSE signature"), "DSSE signature")
        for one in _field(envelope, "signatures", list, "DSSE envelope")
    )
    material = bundle.get("verificationMaterial")
    key = material.get("publicKey") if isinstance(material, dict) else None
    hint = key.get("hint") if isinstance(key, dict) else None
    return Bundle(payload, signatures, hint if isinstance(hint, str) else "")


def read_manifest(payload: bytes, source: str) -> Manifest:
    """What a model-signing statement says of each file; ``source`` is the claims' name for people.

    Raises:
        ManifestError: another kind of statement, inconsistent, or with another hash than SHA-256.
    """
    statement = _json(payload, "in-toto statement")
    if _field(statement, "_type", str, "statement") != STATEMENT_TYPE or statement.get("predicateType") != PREDICATE_TYPE:
        raise ManifestError("statement is not one of model signing 1.0")
    subjects = _field(statement, "subject", list, "statement")
    if len(subjects) != 1:
        raise ManifestError(f"statement has {len(subjects)} subjects, not one")
    predicate = _field(statement, "predicate", dict, "statement")
    serialization = _field(predicate, "serialization", dict, "predicate")
    method = serialization.get("method")
    if method not in ("files", "shards") or serialization.get("hash_type") != "sha256":
        raise ManifestError("manifest lists neither files nor shards by SHA-256")
    whole = hashlib.sha256()
    parts: dict[str, list[Part]] = {}
    for resource in _field(predicate, "resources", list, "predicate"):
        part, path = _resource(resource, sharded=method == "shards")
        whole.update(part.digest)
        parts.setdefault(path, []).append(part)
    root = _field(_field(subjects[0], "digest", dict, "subject"), "sha256", str, "subject's digest")
    if root.lower() != whole.hexdigest():
        raise ManifestError("manifest is inconsistent: its resources do not add up to its subject")
    ignored = serialization.get("ignore_paths", [])
    if not isinstance(ignored, list) or not all(isinstance(one, str) for one in ignored):
        raise ManifestError("ignore_paths is no list of paths")
    claims = {path: Claim(source, _in_order(path, found)) for path, found in parts.items()}
    return Manifest(_field(subjects[0], "name", str, "subject"), claims, tuple(ignored), method == "files")


def _resource(resource: Any, *, sharded: bool) -> tuple[Part, str]:
    name = _field(resource, "name", str, "resource")
    try:
        digest = bytes.fromhex(_field(resource, "digest", str, "resource"))
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise ManifestError(f"digest of {name[:80]!r} is no SHA-256")
    if not sharded:
        return Part(Algorithm.SHA256, digest), name
    path, *numbers = name.rsplit(":", 2)
    if len(numbers) != 2 or not all(1 <= len(one) <= 19 and one.isascii() and one.isdigit() for one in numbers):
        raise ManifestError(f"{name[:80]!r} does not name a shard")
    start, end = map(int, numbers)
    if not 0 <= start < end < _SIZE_LIMIT:
        raise ManifestError(f"{name[:80]!r} is no range")
    return Part(Algorithm.SHA256, digest, start, end), path


def _in_order(path: str, parts: list[Part]) -> tuple[Part, ...]:
    """The parts of one file, which must follow each other from its first byte."""
    parts.sort(key=lambda part: part.start)
    at = 0
    for index, part in enumerate(parts):
        if part.start != at or (part.end is None and len(parts) > 1):
            raise ManifestError(f"shards of {path[:80]!r} leave a gap or overlap at byte {at}")
        at = at if part.end is None else part.end
        if part.end is None and index:
            raise ManifestError(f"{path[:80]!r} is listed twice")
    return tuple(parts)


def build_statement(model_name: str, resources: Sequence[Shard], ignored: Sequence[str], shard_bytes: int | None = SHARD_BYTES) -> bytes:
    """The statement over files of a model, as bytes to be signed: by shards, or with ``shard_bytes`` of ``None`` by whole files."""
    # The reference implementation compares paths component by component, then the range.
    listed = sorted(resources, key=lambda one: (one.path.split("/"), one.start, one.end))
    whole = hashlib.sha256(b"".join(one.digest for one in listed)).hexdigest()
    serialization: dict[str, object] = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
    if shard_bytes is None:
        described = [{"name": one.path, "algorithm": "sha256", "digest": one.digest.hex()} for one in listed]
    else:
        algorithm = f"sha256-sharded-{shard_bytes}"
        serialization |= {"method": "shards", "shard_size": shard_bytes}
        described = [{"name": one.name, "algorithm": algorithm, "digest": one.digest.hex()} for one in listed]
    predicate = {"serialization": serialization | {"ignore_paths": list(ignored)}, "resources": described}
    subject = [{"name": model_name, "digest": {"sha256": whole}}]
    statement = {"_type": STATEMENT_TYPE, "subject": subject, "predicateType": PREDICATE_TYPE, "predicate": predicate}
    return json.dumps(statement, ensure_ascii=True).encode()


def build_bundle(payload: bytes, signature: bytes, key_hint: str) -> bytes:
    """The bundle around a signed statement; ``key_hint`` is the SHA-256 of the public key's PEM, in hexadecimal."""
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
    }
    material = {"publicKey": {"hint": key_hint}, "tlogEntries": []}
    return json.dumps({"mediaType": BUNDLE_TYPE, "verificationMaterial": material, "dsseEnvelope": envelope}).encode()
