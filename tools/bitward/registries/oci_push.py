"""``bitward oci push``: files as an artefact with one raw layer each, titled by its path, and their sidecars as a referrer of it.

The form is that of ORAS, so that its tools and others pull it. A file with a sidecar is verified first: damage is not uploaded.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace

from bitward.registries.blob_facts import BlobReport, BlobsReport, failed, report_of
from bitward.registries.blob_reading import hash_file
from bitward.registries.oci_client import Repository
from bitward.registries.oci_reference import parse_reference
from bitward.registries.oci_sidecars import FileBody, attach_sidecars, find_sidecars, scratch_folder
from bitward.targets import PathLike
from bitward_agent.errors import BitwardError, InputError
from bitward_agent.findings import ExitCode, ProgressSink, SidecarState, Verdict
from bitward_agent.io import resolve
from bitward_agent.protect import Protection, preset_groups, protect_file
from bitward_agent.sources.limits import Limits
from bitward_agent.units import Member, is_ours, list_unit
from bitward_agent.verify import open_sidecar, verify_file
from bitward_formats.checksums import Claim, sha256_part
from bitward_formats.digest import LeafHash
from bitward_formats.errors import FormatError
from bitward_formats.frozen import dataclass
from bitward_formats.oci import (
    EMPTY_BLOB,
    IMAGE_MANIFEST,
    MODEL_ARTIFACT,
    TITLE,
    Descriptor,
    Manifest,
    artifact,
    digest_of_bytes,
    empty_config,
    file_names,
)

_SCHEMA = "bitward.oci-push/1"
RAW_TYPE = "application/octet-stream"
"""Media type of a layer that is a file as it is."""


@dataclass(frozen=True, slots=True)
class PushRequest:
    """What was asked for. ``preset`` and ``leaf_hash`` are those of sidecars that are made for it."""

    limits: Limits
    artifact_type: str = MODEL_ARTIFACT
    preset: str = "standard"
    leaf_hash: LeafHash = LeafHash.XXH3
    with_sidecars: bool = True
    plain_http: bool = False
    jobs: int | None = None
    progress: ProgressSink | None = None


def push(reference: str, paths: Sequence[PathLike], request: PushRequest) -> BlobsReport:
    """Push files, and the files of directories, under a tag; see the module.

    Raises:
        InputError: the reference is none or has no tag; a path is not there, or two have the same name.
        SourceError: the registry does not take it.
    """
    started = time.monotonic()
    named = parse_reference(reference, plain_http=request.plain_http)
    if named.digest:
        raise InputError("push needs a tag, not a digest: a digest follows from what is pushed")
    preset_groups(request.preset)
    members = _members(paths)
    with scratch_folder() as scratch, Repository(named, request.limits) as repository:
        prepared = [_prepare(member, os.path.join(scratch, f"{number}.ward"), request) for number, member in enumerate(members)]
        if any(report.exit_code for report, _ in prepared):
            return report_of(_SCHEMA, named.name, [report for report, _ in prepared], started, notes=("nothing was pushed",))
        layers = [_descriptor(report) for report, _ in prepared]
        file_names(layers, named.name)  # what could not be pulled again is not pushed
        sent = []
        for layer, (report, _) in zip(layers, prepared, strict=True):
            fresh = repository.put_blob(layer, FileBody(report.path, request.progress))
            sent.append(replace(report, action="pushed" if fresh else "kept"))
        repository.put_blob(empty_config(), EMPTY_BLOB)
        data = artifact(request.artifact_type, layers)
        repository.put_manifest(data, IMAGE_MANIFEST, named.tag)
        own = Descriptor(IMAGE_MANIFEST, digest_of_bytes(data), len(data), {})
        manifest = Manifest(own, request.artifact_type, empty_config(), tuple(layers), None, {})
        known = find_sidecars(repository, manifest)
        wards = {layer.digest: (layer, ward) for layer, (_, ward) in zip(layers, prepared, strict=True) if ward}
        made = [one for digest, one in wards.items() if digest not in known.by_layer]
        artifacts, how = known.artifacts, known.how
        if made:
            attached, how = attach_sidecars(repository, manifest, made)
            artifacts = (*artifacts, attached)
        return report_of(_SCHEMA, named.name, sent, started, digest=own.digest, sidecars=artifacts, referrers=how, notes=known.notes)


def _members(paths: Sequence[PathLike]) -> list[Member]:
    """The files to be pushed, each with its name in the artefact as ``relative``."""
    found: list[Member] = []
    for path in paths:
        real = resolve(os.fspath(path))
        if os.path.isdir(real):
            listing = list_unit(real)
            if listing.skipped:
                raise InputError(f"{real}: holds {listing.skipped[0]}, which is not pushed: push the files that are meant, by name")
            found += listing.members
        elif is_ours(real):
            raise InputError(f"{real}: belongs to Bitward itself; name the file that it is about")
        elif not os.path.lexists(real):
            raise InputError(f"{real}: no such file or directory")
        else:
            found.append(Member(real, os.path.basename(os.fspath(path).rstrip("/")) or os.path.basename(real), f"{real}.ward"))
    names = [member.relative for member in found]
    if not found or len(set(names)) < len(names):
        raise InputError("two files have the same name: push their directory instead" if found else "no file to push")
    return found


def _descriptor(report: BlobReport) -> Descriptor:
    return Descriptor(report.media_type, report.digest, report.bytes, {TITLE: report.name})


def _prepare(member: Member, made: str, request: PushRequest) -> tuple[BlobReport, str]:
    """A file's digest and its sidecar: the one that it has, if that fits and names the digest, else one that is made for it."""
    report = BlobReport(member.relative, "", RAW_TYPE, 0, Verdict.UNVERIFIABLE, path=member.path)
    try:
        member.relative.encode()
        ward = member.sidecar if os.path.lexists(member.sidecar) else ""
        if ward:
            found = verify_file(member.path, ward, jobs=request.jobs, progress=request.progress)
            if found.verdict is not Verdict.INTACT:
                told = found.message or "it is not what its sidecar knows: 'bitward repair' or 'bitward protect' it first"
                return replace(report, verdict=found.verdict, damage=found.damage, message=told, exit_code=found.exit_code), ""
            ward = ward if found.sidecar.state is SidecarState.INTACT else ""
        word = hash_file(member.path, request.progress)
        report = replace(report, digest=f"sha256:{word.sha256}", bytes=word.size, verdict=Verdict.INTACT)
        if not request.with_sidecars:
            return report, ""
        if not ward or not _names(ward, word.sha256):
            make_sidecar(member.path, made, word.sha256, "its digest", request.preset, request.leaf_hash, request.jobs)
            ward = made
        return replace(report, sidecar=ward, sidecar_bytes=os.path.getsize(ward)), ward
    except UnicodeEncodeError:
        return replace(report, message="its name is no text in UTF-8: rename it", exit_code=ExitCode.CANNOT_TELL), ""
    except (BitwardError, FormatError, OSError) as error:
        return failed(report, error), ""


def _names(ward: str, sha256: str) -> bool:
    """Whether a sidecar says itself of which contents it is; one that goes on a journey should."""
    opened, read, _ = open_sidecar(ward)
    opened.close()
    return read.superblock.trusted_sha256 == bytes.fromhex(sha256)


def make_sidecar(path: str, ward: str, sha256: str, source: str, preset: str, leaf_hash: LeafHash, jobs: int | None) -> None:
    """A sidecar for a file that must have a digest; the sidecar names it.

    Raises:
        UntrustedError: the file has another digest.
        UnreadableError, WriteError, BusyError: by name and place.
    """
    claim = Claim(source, (sha256_part(sha256),))
    protection = Protection(
        groups=preset_groups(preset),
        preset=preset,
        leaf_hash=leaf_hash,
        protected_ns=time.time_ns(),
        trusted_sha256=bytes.fromhex(sha256),
        claims=(claim,),
        origin="trusted",
    )
    protect_file(path, ward, protection, jobs=jobs)
