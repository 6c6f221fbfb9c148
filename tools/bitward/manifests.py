"""Manifests of OpenSSF Model Signing: written so that ``model_signing verify`` takes them, and adopted once their signature is right."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from bitward.protecting import Request, protect_paths
from bitward.targets import PathLike, folder_of
from bitward_agent.durable import atomic_file
from bitward_agent.errors import InputError, UnreadableError, UntrustedError
from bitward_agent.evidence import Evidence, EvidenceFinder, digest_of
from bitward_agent.findings import ExitCode, ProtectReport, SidecarState, UnitReport, Verdict
from bitward_agent.io import OpenFile, resolve
from bitward_agent.keys import manifest_private_key, manifest_public_key
from bitward_agent.scan import default_jobs
from bitward_agent.trust_reports import ManifestReport
from bitward_agent.units import Listing, Member, is_ours, list_unit
from bitward_agent.verify import verify_file
from bitward_formats.checksums import Algorithm
from bitward_formats.model_signing import (
    ALWAYS_IGNORED,
    BUNDLE_LIMIT_BYTES,
    SHARD_BYTES,
    Bundle,
    Manifest,
    Shard,
    build_bundle,
    build_statement,
    pre_authentication,
    read_bundle,
    read_manifest,
)
from bitward_formats.unit_index import UNIT_INDEX_NAME

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurve, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

DEFAULT_NAME = "model.sig"


def _hash_of(curve: EllipticCurve) -> HashAlgorithm:
    """The hash that model signing uses with a NIST curve.

    Raises:
        InputError: another curve.
    """
    from cryptography.hazmat.primitives import hashes

    known = {"secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384(), "secp521r1": hashes.SHA512()}
    if curve.name not in known:
        raise InputError(f"model signing knows no keys on the curve {curve.name}: use P-256, P-384 or P-521")
    return known[curve.name]


def _hint(key: EllipticCurvePublicKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _is_ignored(relative: str, ignored: Sequence[str]) -> bool:
    return any(relative == one or relative.startswith(f"{one}/") for one in ignored)


def export_manifest(
    key_path: PathLike, folder: PathLike, out: PathLike | None = None, *, method: str = "shards", jobs: int | None = None
) -> ManifestReport:
    """Sign the files of a directory as model signing does. Files that have a sidecar must be intact.

    Args:
        method: ``shards`` of 1 GB, or whole ``files``, which alone the command line of ``model_signing`` 1.1 verifies.

    Raises:
        InputError: no directory, or the key will not do.
        UntrustedError: a file is not what its sidecar says.
        UnreadableError: links or names that model signing cannot take.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    key = manifest_private_key(os.fspath(key_path))
    hashing = _hash_of(key.curve)
    top = resolve(os.fspath(folder))
    if not os.path.isdir(top):
        raise InputError(f"{top}: a manifest is about a directory")
    target = os.path.join(top, DEFAULT_NAME) if out is None else resolve(os.fspath(out))
    listing = list_unit(top)
    own = [os.path.relpath(target, top)] if target.startswith(f"{top}/") else []
    sidecars = (f"{name}.ward" for name in (*own, *(member.relative for member in listing.members)))
    ignored = sorted({*ALWAYS_IGNORED, *own, *sidecars, *_ours_in(top), UNIT_INDEX_NAME})
    members = [member for member in listing.members if not _is_ignored(member.relative, ignored)]
    _refuse_odd(top, listing, members)
    shard_bytes = SHARD_BYTES if method == "shards" else None
    shards = list(_shards(members, shard_bytes, jobs))
    payload = build_statement(os.path.basename(top), shards, ignored, shard_bytes)
    signature = key.sign(pre_authentication(payload), ec.ECDSA(hashing))
    with atomic_file(target) as file:
        file.write_all(build_bundle(payload, signature, _hint(key.public_key())), 0)
    size = sum(shard.end - shard.start for shard in shards)
    return ManifestReport("bitward.manifest/1", target, method, _hint(key.public_key()), len(members), size)


def _ours_in(top: str) -> Iterator[str]:
    for folder, _, names in os.walk(top):
        yield from (os.path.relpath(os.path.join(folder, name), top) for name in names if is_ours(name))


def _refuse_odd(top: str, listing: Listing, members: Sequence[Member]) -> None:
    if listing.skipped:
        raise UnreadableError(f"{top}: holds {listing.skipped[0]}, which model signing refuses")
    for member in members:
        if ":" in member.relative or not member.relative.isprintable() or member.shown:
            raise UnreadableError(f"{member.name}: model signing cannot name this file in a manifest of shards")
        if os.path.lexists(member.sidecar):
            found = verify_file(member.path, member.sidecar)
            if found.verdict is not Verdict.INTACT:
                raise UntrustedError(f"{member.path}: {found.verdict.value}; only what is intact is signed")


def _shards(members: Sequence[Member], shard_bytes: int | None, jobs: int | None) -> Iterator[Shard]:
    with ThreadPoolExecutor(jobs or default_jobs(), "bitward-manifest") as pool:
        yield from (shard for shards in pool.map(lambda member: _shards_of(member, shard_bytes), members) for shard in shards)


def _shards_of(member: Member, shard_bytes: int | None) -> list[Shard]:
    with OpenFile(member.path) as file:
        before = file.state()
        ranges = [(0, before.size)]
        if shard_bytes is not None:
            ranges = [(low, min(low + shard_bytes, before.size)) for low in range(0, before.size, shard_bytes)]
        shards = [Shard(member.relative, low, high, digest_of(file, Algorithm.SHA256, low, high)) for low, high in ranges]
        if file.state() != before:
            raise UnreadableError(f"{member.path}: changed while it was read")
    return shards


def checked_manifest(key: EllipticCurvePublicKey, path: str) -> Manifest:
    """The manifest in a bundle that ``key`` signed.

    Raises:
        ManifestError: malformed, or another kind.
        UntrustedError: signed by another key, or the signature is wrong.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec

    with OpenFile(path) as file:
        bundle: Bundle = read_bundle(file.read(0, BUNDLE_LIMIT_BYTES + 1))
    hint = _hint(key)
    if bundle.key_hint and bundle.key_hint != hint:
        raise UntrustedError(f"{path}: signed with another key, {bundle.key_hint[:16]}…")
    try:
        if len(bundle.signatures) != 1:
            raise UntrustedError(f"{path}: has {len(bundle.signatures)} signatures, not one")
        key.verify(bundle.signatures[0], pre_authentication(bundle.payload), ec.ECDSA(_hash_of(key.curve)))
    except InvalidSignature:
        raise UntrustedError(f"{path}: the signature is wrong: forged, or damaged") from None
    return read_manifest(bundle.payload, f"{os.path.basename(path)}, signed by the key {hint[:16]}…")


class _SignedEvidence(EvidenceFinder):
    """Evidence at hand, and before it what a signed manifest says."""

    def __init__(self, manifest: Manifest, signature: str) -> None:
        super().__init__()
        self._manifest, self._signature = manifest, os.path.basename(signature)

    def of(self, path: str, top: str) -> Evidence:
        found = super().of(path, top)
        signed = self._manifest.claims.get(os.path.relpath(path, top))
        others = [claim for claim in found.claims if not claim.source.startswith(f"{self._signature} (")]
        return replace(found, claims=(*([signed] if signed else []), *others))


def import_manifest(
    key_path: PathLike, folder: PathLike, request: Request, signature: PathLike | None = None, sidecar_dir: PathLike | None = None
) -> ProtectReport:
    """Protect a directory as a signed manifest says it is: each file listed, none missing, none too many.

    Raises:
        InputError: no directory, or the key will not do.
    """
    key = manifest_public_key(os.fspath(key_path))
    top = resolve(os.fspath(folder))
    if not os.path.isdir(top):
        raise InputError(f"{top}: a manifest is about a directory")
    path = os.path.join(top, DEFAULT_NAME) if signature is None else resolve(os.fspath(signature))
    empty = ProtectReport("bitward.protect/1", 0, 0.0, ())
    try:
        manifest = checked_manifest(key, path)
        listing = list_unit(top, folder_of(sidecar_dir))
    except UntrustedError as error:
        unit = UnitReport(top, "", SidecarState.MISSING, message=str(error))
        return replace(empty, units=(unit,), exit_code=ExitCode.NOT_REPAIRABLE)
    ignored = (*ALWAYS_IGNORED, *manifest.ignored, *([os.path.relpath(path, top)] if path.startswith(f"{top}/") else []))
    present = {member.relative: member for member in listing.members if not _is_ignored(member.relative, ignored)}
    missing = sorted(manifest.claims.keys() - {member.relative for member in listing.members})
    unlisted = sorted(present.keys() - manifest.claims.keys())
    extra = [name for name in unlisted if manifest.has_empty_files or os.path.getsize(present[name].path)]
    if missing or extra or listing.skipped:
        told = "the directory is not what the manifest lists: nothing was protected"
        odd = UnitReport(top, "", SidecarState.MISSING, tuple(missing), (*extra, *listing.skipped), message=told)
        return replace(empty, units=(odd,), exit_code=ExitCode.NOT_REPAIRABLE)
    return protect_paths([top], sidecar_dir, replace(request, finder=_SignedEvidence(manifest, path)))
