"""``bitward oci repair`` with a registry's own storage at hand: damaged blobs are put back in the very files that the registry serves.

The distribution specification has no way to replace a blob: what a registry believes to have it does not take again. So whoever keeps
the registry repairs its files, in the layout of the distribution project's file system driver
(``docker/registry/v2/blobs/sha256/AB/HEX/data``), with the sidecars that the registry itself has.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace

from bitward.registries.blob_check import check_blob, report_with
from bitward.registries.blob_facts import BlobReport, BlobsReport, worst_of
from bitward.registries.blob_healing import heal_beside
from bitward.registries.blob_reading import Wanted
from bitward.registries.oci_client import Repository
from bitward.registries.oci_layout import log_in
from bitward.registries.oci_reference import Reference, parse_reference
from bitward.registries.oci_sidecars import Sidecars, find_sidecars, save_sidecar, scratch_folder, unique, wanted_manifest
from bitward.targets import VERDICT_OF_CODE
from bitward_agent.errors import BitwardError, InputError
from bitward_agent.findings import ExitCode, ProgressSink, Verdict
from bitward_agent.io import resolve
from bitward_agent.sources.limits import Limits
from bitward_formats.errors import FormatError
from bitward_formats.frozen import dataclass
from bitward_formats.oci import Descriptor

_BLOBS = os.path.join("docker", "registry", "v2", "blobs", "sha256")
WORK_FOLDER = "bitward"
"""Below the storage: the log of repairs."""


@dataclass(frozen=True, slots=True)
class RepairRequest:
    """What was asked for. ``others`` are references to the same blobs elsewhere, for what parity lacks."""

    storage: str
    limits: Limits
    others: tuple[str, ...] = ()
    dry_run: bool = False
    plain_http: bool = False
    jobs: int | None = None
    progress: ProgressSink | None = None


def repair(reference: str, request: RepairRequest) -> BlobsReport:
    """Repair a manifest's blobs in the registry's storage; see the module.

    Raises:
        InputError: a reference is none, or the folder is no storage of a registry.
        SourceError, OciError, UntrustedError: the manifest cannot be had or used.
    """
    started = time.monotonic()
    named = parse_reference(reference, plain_http=request.plain_http)
    others = [parse_reference(other, plain_http=request.plain_http) for other in request.others]
    storage = resolve(request.storage)
    if not os.path.isdir(os.path.join(storage, _BLOBS)):
        raise InputError(f"{request.storage}: no storage of a registry: there is no folder {_BLOBS} in it")
    with Repository(named, request.limits) as repository, scratch_folder(storage) as scratch:
        manifest = wanted_manifest(repository)
        sidecars = find_sidecars(repository, manifest)
        blobs = [
            _repair_one(repository, one, sidecars, others, os.path.join(scratch, f"{one.hex}.ward"), storage, request)
            for one in unique((manifest.config, *manifest.layers))
        ]
        blobs[0] = replace(blobs[0], name=manifest.config.title or "(config)")
    code = worst_of(blobs)
    return BlobsReport(
        *("bitward.oci-repair/1", named.name, VERDICT_OF_CODE[code], sum(blob.bytes for blob in blobs)),
        time.monotonic() - started,
        tuple(blobs),
        manifest.descriptor.digest,
        sidecars.artifacts,
        sidecars.how,
        notes=sidecars.notes,
        exit_code=code,
    )


def _repair_one(
    repository: Repository,
    one: Descriptor,
    sidecars: Sidecars,
    others: list[Reference],
    ward: str,
    storage: str,
    request: RepairRequest,
) -> BlobReport:
    path = os.path.join(storage, _BLOBS, one.hex[:2], one.hex, "data")
    report = BlobReport(one.name, one.digest, one.media_type, one.size, Verdict.UNVERIFIABLE, path=path)
    wanted = Wanted(one.hex, one.size)
    candidates = sidecars.by_layer.get(one.digest, ())
    opened: list[Repository] = []
    try:
        found = check_blob(path, wanted, "", progress=request.progress)
        told = ""
        if found.verdict is not Verdict.INTACT and candidates:
            told = save_sidecar(repository, candidates, ward)
            found = check_blob(path, wanted, ward, jobs=request.jobs)
        done, action = found, ""
        if found.verdict is not Verdict.INTACT and not request.dry_run:
            opened = [Repository(other, request.limits) for other in others]
            copies = [other.source(one, one.hex) for other in opened]
            log = log_in(os.path.join(storage, WORK_FOLDER))
            scratch = os.path.dirname(ward)
            done = heal_beside(path, wanted, ward, copies, found, scratch, log, jobs=request.jobs, progress=request.progress)
            action = "healed" if done.verdict is Verdict.INTACT else ""
    except (BitwardError, FormatError) as error:
        return replace(report, message=str(error), exit_code=ExitCode.CANNOT_TELL)
    finally:
        for other in opened:
            other.close()
    return replace(
        report_with(report, done, action),
        sidecar=candidates[-1].digest if candidates else "",
        sidecar_bytes=candidates[-1].size if candidates else 0,
        message="; ".join(filter(None, (done.message, told))),
    )
