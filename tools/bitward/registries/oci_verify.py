"""``bitward oci verify``: every blob of a manifest as the registry serves it, held against its digest, and damage located by its sidecar.

Nothing is kept but a damaged blob that has a sidecar, while it is looked at: it takes its own size on this machine's disk.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import replace

from bitward.registries.blob_check import check_blob, difference
from bitward.registries.blob_facts import BlobReport, BlobsReport, failed, report_of
from bitward.registries.blob_reading import Wanted
from bitward.registries.oci_client import NotInRegistryError, Repository
from bitward.registries.oci_parts import save_blob
from bitward.registries.oci_reference import parse_reference
from bitward.registries.oci_sidecars import (
    Sidecars,
    find_sidecars,
    save_sidecar,
    scratch_folder,
    scratch_name,
    unique,
    wanted_manifest,
)
from bitward_agent.errors import BitwardError
from bitward_agent.findings import ExitCode, Progress, ProgressSink, Verdict
from bitward_agent.io import OpenFile, reason
from bitward_agent.journal import restore_mtime
from bitward_agent.sources.limits import Limits
from bitward_agent.verify import open_sidecar
from bitward_formats.errors import FormatError
from bitward_formats.frozen import dataclass
from bitward_formats.oci import Descriptor


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """What was asked for."""

    limits: Limits
    plain_http: bool = False
    jobs: int | None = None
    progress: ProgressSink | None = None


def verify(reference: str, request: VerifyRequest) -> BlobsReport:
    """Verify a manifest's blobs in a registry; see the module.

    Raises:
        InputError: the reference is none.
        SourceError, OciError, UntrustedError: the manifest cannot be had or used.
    """
    started = time.monotonic()
    named = parse_reference(reference, plain_http=request.plain_http)
    with Repository(named, request.limits) as repository:
        manifest = wanted_manifest(repository)
        sidecars = find_sidecars(repository, manifest)
        wanted = unique((manifest.config, *manifest.layers))
        blobs = [verify_served(repository, one, sidecars.by_layer.get(one.digest, ()), request) for one in wanted]
        config = replace(blobs[0], name=manifest.config.title or "(config)")
        blobs = [config, *blobs[1:], *_verify_sidecars(repository, sidecars)]
    own, found = manifest.descriptor.digest, sidecars.artifacts
    return report_of(
        "bitward.oci-verify/1", named.name, blobs, started, digest=own, sidecars=found, referrers=sidecars.how, notes=sidecars.notes
    )


def verify_served(repository: Repository, layer: Descriptor, candidates: tuple[Descriptor, ...], request: VerifyRequest) -> BlobReport:
    """One blob as it is served, with what its sidecars say of it if it is damaged. Every failure comes back as a value."""
    report = BlobReport(layer.name, layer.digest, layer.media_type, layer.size, Verdict.UNVERIFIABLE)
    if candidates:
        report = replace(report, sidecar=candidates[-1].digest, sidecar_bytes=candidates[-1].size)
    try:
        wrong = difference(Wanted(layer.hex, layer.size), _served(repository, layer, request.progress))
        if not wrong:
            return replace(report, verdict=Verdict.INTACT)
        damaged = replace(report, verdict=Verdict.DAMAGED, message=wrong, exit_code=ExitCode.NOT_REPAIRABLE)
        return locate(repository, layer, candidates, damaged, request) if candidates else damaged
    except NotInRegistryError:
        return replace(report, verdict=Verdict.DAMAGED, message="missing", exit_code=ExitCode.NOT_REPAIRABLE)
    except (BitwardError, FormatError, OSError) as error:
        return failed(report, error)


def _verify_sidecars(repository: Repository, sidecars: Sidecars) -> list[BlobReport]:
    """The sidecars themselves, the newest of each layer: where one is damaged, its layer still is as it was found above."""
    reports = []
    for layer_sidecars in sidecars.by_layer.values():
        one = layer_sidecars[-1]
        report = BlobReport(one.name, one.digest, one.media_type, one.size, Verdict.UNVERIFIABLE)
        try:
            wrong = difference(Wanted(one.hex, one.size), _served(repository, one, None))
        except NotInRegistryError:
            wrong = "missing"
        except BitwardError as error:
            reports.append(failed(report, error))
            continue
        if wrong:
            told = f"{wrong}; 'bitward oci protect --force' makes it anew"
            reports.append(replace(report, verdict=Verdict.DAMAGED, message=told, exit_code=ExitCode.REPAIRABLE))
        else:
            reports.append(replace(report, verdict=Verdict.INTACT))
    return reports


def _served(repository: Repository, layer: Descriptor, progress: ProgressSink | None) -> Wanted:
    digest, done = hashlib.sha256(), 0
    for chunk in repository.blob(layer):
        digest.update(chunk)
        done += len(chunk)
        if progress:
            progress(Progress("verify", layer.name, done, layer.size))
    return Wanted(digest.hexdigest(), done)


def locate(
    repository: Repository, layer: Descriptor, candidates: tuple[Descriptor, ...], damaged: BlobReport, request: VerifyRequest
) -> BlobReport:
    """The damage, named by the sidecar: the blob is fetched once more, to be read at any place. It stays damaged if that fails."""
    try:
        return _located(repository, layer, candidates, damaged, request)
    except (BitwardError, FormatError, OSError) as error:
        told = reason(error) if isinstance(error, OSError) else str(error)
        return replace(damaged, message=f"{damaged.message}; where could not be looked for: {told}")


def _located(
    repository: Repository, layer: Descriptor, candidates: tuple[Descriptor, ...], damaged: BlobReport, request: VerifyRequest
) -> BlobReport:
    with scratch_folder() as scratch:
        path = os.path.join(scratch, scratch_name(layer))
        told = save_sidecar(repository, candidates, layer, f"{path}.ward")
        if not os.path.lexists(f"{path}.ward"):
            return replace(damaged, message=f"{damaged.message}; {told}")
        save_blob(repository, layer, path, request.progress, "verify")
        ward, read, _ = open_sidecar(f"{path}.ward")
        ward.close()
        with OpenFile(path, write=True) as file:
            restore_mtime(file, read.superblock.mtime_ns)
        found = check_blob(path, Wanted(layer.hex, layer.size), f"{path}.ward", jobs=request.jobs)
    if found.verdict is Verdict.INTACT:
        told = "came damaged the first time and right the second: the way here, or the registry's memory, is at fault"
        return replace(damaged, message=told, exit_code=ExitCode.REPAIRABLE)
    message = "; ".join(filter(None, (found.message, told)))
    return replace(damaged, damage=found.damage, remaining=found.remaining, message=message, exit_code=found.exit_code)
