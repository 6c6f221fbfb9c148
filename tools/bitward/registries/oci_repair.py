"""``bitward oci repair`` with a registry's own storage at hand: damaged blobs are put back in the very files that the registry serves.

The distribution specification has no way to replace a blob: what a registry believes to have it does not take again. So whoever keeps
the registry repairs its files, in the layout of the distribution project's file system driver
(``docker/registry/v2/blobs/sha256/AB/HEX/data``), with the sidecars that the registry itself has, which lie there as well.
A dry run writes nothing.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from dataclasses import replace

from bitward.registries.blob_check import Healing, check_blob, report_with, why_foreign
from bitward.registries.blob_facts import BlobReport, BlobsReport, failed, report_of
from bitward.registries.blob_healing import heal_beside
from bitward.registries.blob_reading import Wanted, copy_readable
from bitward.registries.oci_client import Repository
from bitward.registries.oci_layout import log_in
from bitward.registries.oci_reference import Reference, parse_reference
from bitward.registries.oci_sidecars import find_sidecars, scratch_folder, unique, wanted_manifest
from bitward_agent.errors import BitwardError, InputError
from bitward_agent.findings import ProgressSink, Verdict
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
    with Repository(named, request.limits) as repository:
        manifest = wanted_manifest(repository)
        sidecars = find_sidecars(repository, manifest)
    blobs = [
        _repair_one(one, sidecars.by_layer.get(one.digest, ()), others, storage, request)
        for one in unique((manifest.config, *manifest.layers))
    ]
    blobs[0] = replace(blobs[0], name=manifest.config.title or "(config)")
    own, found = manifest.descriptor.digest, sidecars.artifacts
    return report_of(
        "bitward.oci-repair/1", named.name, blobs, started, digest=own, sidecars=found, referrers=sidecars.how, notes=sidecars.notes
    )


def _path_in(storage: str, blob: Descriptor) -> str:
    return os.path.join(storage, _BLOBS, blob.hex[:2], blob.hex, "data")


def _sidecar_in(storage: str, candidates: tuple[Descriptor, ...], wanted: Wanted) -> tuple[str, str]:
    """Where in the storage the newest sidecar is that is whole, else the newest that can be used, else nothing; and what is wrong."""
    paths = [(_path_in(storage, one), Wanted(one.hex, one.size)) for one in reversed(candidates)]
    usable = [(path, own) for path, own in paths if os.path.isfile(path) and not why_foreign(path, wanted)]
    for path, own in usable:
        if check_blob(path, own, "").verdict is Verdict.INTACT:
            return path, ""
    if usable:
        return usable[0][0], f"its sidecar sha256:{usable[0][1].sha256[:12]}… is damaged in the registry"
    return "", "its sidecar cannot be used" if candidates else ""


def _repair_one(
    one: Descriptor, candidates: tuple[Descriptor, ...], others: list[Reference], storage: str, request: RepairRequest
) -> BlobReport:
    """One blob. Every failure comes back as a value, so that the others are looked at."""
    path, wanted = _path_in(storage, one), Wanted(one.hex, one.size)
    report = BlobReport(one.name, one.digest, one.media_type, one.size, Verdict.UNVERIFIABLE, path=path)
    if candidates:
        report = replace(report, sidecar=candidates[-1].digest, sidecar_bytes=candidates[-1].size)
    try:
        found = check_blob(path, wanted, "", progress=request.progress)
        if found.verdict is Verdict.INTACT:
            return report_with(report, found)
        ward, told = _sidecar_in(storage, candidates, wanted)
        found = check_blob(path, wanted, ward, jobs=request.jobs) if ward else found
        done = found if request.dry_run else _healed(path, one, ward, others, found, storage, request)
    except (BitwardError, FormatError, OSError) as error:
        return failed(report, error)
    healed = report_with(report, done, "healed" if done.verdict is Verdict.INTACT else "")
    return replace(healed, message="; ".join(filter(None, (done.message, told))))


def _healed(
    path: str, one: Descriptor, ward: str, others: list[Reference], found: Healing, storage: str, request: RepairRequest
) -> Healing:
    """A blob made whole beside its place, on the storage's own disk. Raises BitwardError, OSError."""
    with ExitStack() as stack:
        copies = [stack.enter_context(Repository(other, request.limits)).source(one, one.hex) for other in others]
        for copy in copies:
            stack.callback(copy.close)
        scratch = stack.enter_context(scratch_folder(storage))
        own = os.path.join(scratch, "sidecar.ward")
        if ward:
            copy_readable(ward, own)
        log = log_in(os.path.join(storage, WORK_FOLDER))
        wanted = Wanted(one.hex, one.size)
        return heal_beside(path, wanted, own, copies, found, scratch, log, jobs=request.jobs, progress=request.progress)
