"""``bitward oci protect``: sidecars for what is in a registry already, whoever pushed it and with whatever.

What is protected is the blob as it is stored. A layer that is one file (ORAS, ModelPack's raw layers) is read as what its title says, and
flips in it are named by tensor; an archive or a compressed layer (KitOps' tar and tar+gzip) is a run of bytes, which heals just as well.
Every layer is read, also one that has a sidecar already: what nobody read is not called intact.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace

from bitward.registries.blob_check import difference, why_foreign
from bitward.registries.blob_facts import BlobReport, BlobsReport, failed, report_of
from bitward.registries.blob_reading import Wanted, hash_file
from bitward.registries.oci_client import NotInRegistryError, Repository
from bitward.registries.oci_parts import save_blob
from bitward.registries.oci_push import make_sidecar
from bitward.registries.oci_reference import parse_reference
from bitward.registries.oci_sidecars import (
    Sidecars,
    attach_sidecars,
    find_sidecars,
    scratch_folder,
    scratch_name,
    unique,
    wanted_manifest,
)
from bitward.registries.oci_verify import VerifyRequest, locate, verify_served
from bitward_agent.errors import BitwardError
from bitward_agent.findings import ExitCode, ProgressSink, Verdict
from bitward_agent.protect import preset_groups
from bitward_agent.sources.limits import Limits
from bitward_agent.units import is_ours
from bitward_formats.digest import LeafHash, leaf_function
from bitward_formats.errors import FormatError
from bitward_formats.frozen import dataclass
from bitward_formats.oci import Descriptor


@dataclass(frozen=True, slots=True)
class ProtectRequest:
    """What was asked for. ``force``: make sidecars also for layers that have some."""

    limits: Limits
    preset: str = "standard"
    leaf_hash: LeafHash = LeafHash.XXH3
    force: bool = False
    plain_http: bool = False
    jobs: int | None = None
    progress: ProgressSink | None = None


def protect(reference: str, request: ProtectRequest) -> BlobsReport:
    """Make and attach sidecars of a manifest's layers; see the module.

    Raises:
        InputError: the reference is none.
        SourceError, OciError, UntrustedError: the manifest cannot be had or used, or the registry does not take the sidecars.
    """
    started = time.monotonic()
    named = parse_reference(reference, plain_http=request.plain_http)
    preset_groups(request.preset)
    leaf_function(request.leaf_hash)
    with Repository(named, request.limits) as repository, scratch_folder() as scratch:
        manifest = wanted_manifest(repository)
        known = find_sidecars(repository, manifest)
        blobs, made = [], []
        for number, layer in enumerate(unique(manifest.layers)):
            folder = os.path.join(scratch, str(number))
            os.mkdir(folder)
            kept = _kept(repository, layer, known, folder, request)
            report, ward = (kept, "") if kept else _protect_one(repository, layer, known.by_layer.get(layer.digest, ()), folder, request)
            blobs.append(report)
            if ward:
                made.append((layer, ward))
        artifacts, how = known.artifacts, known.how
        if made:
            attached, how = attach_sidecars(repository, manifest, made)
            artifacts = (*artifacts, attached)
    own = manifest.descriptor.digest
    return report_of("bitward.oci-protect/1", named.name, blobs, started, digest=own, sidecars=artifacts, referrers=how, notes=known.notes)


def _report(layer: Descriptor) -> BlobReport:
    return BlobReport(layer.name, layer.digest, layer.media_type, layer.size, Verdict.UNVERIFIABLE)


def _kept(repository: Repository, layer: Descriptor, known: Sidecars, folder: str, request: ProtectRequest) -> BlobReport | None:
    """The report of a layer that gets no sidecar now, read all the same: it has one that is whole, or is one. ``None`` for the others."""
    if is_ours(layer.title):
        found = verify_served(repository, layer, (), _looking(request))
        return replace(found, message=found.message or "belongs to Bitward itself: it gets no sidecar")
    candidates = () if request.force else known.by_layer.get(layer.digest, ())
    path = os.path.join(folder, "has.ward")
    try:
        whole = next((one for one in reversed(candidates) if _is_whole(repository, one, layer, path)), None)
    except (BitwardError, OSError) as error:
        return failed(_report(layer), error)
    if whole is None:
        return None
    found = verify_served(repository, layer, (whole,), _looking(request))
    return replace(found, action="kept", message=found.message or "its sidecar is there already")


def _looking(request: ProtectRequest) -> VerifyRequest:
    return VerifyRequest(request.limits, request.plain_http, request.jobs, request.progress)


def _is_whole(repository: Repository, sidecar: Descriptor, layer: Descriptor, path: str) -> bool:
    """Whether a sidecar in the registry has its digest and says that it is the layer's. Raises SourceError, OSError."""
    try:
        came = save_blob(repository, sidecar, path)
        return not difference(Wanted(sidecar.hex, sidecar.size), came) and not why_foreign(path, Wanted(layer.hex, layer.size))
    except NotInRegistryError:
        return False
    finally:
        if os.path.lexists(path):
            os.remove(path)


def _protect_one(
    repository: Repository, layer: Descriptor, older: tuple[Descriptor, ...], folder: str, request: ProtectRequest
) -> tuple[BlobReport, str]:
    """A layer's sidecar, made from a copy that is gone when this returns; empty if there is none. ``older`` ones say what damage is."""
    report = _report(layer)
    try:
        path = os.path.join(folder, scratch_name(layer))
        ward = f"{path}.ward"
        wrong = difference(Wanted(layer.hex, layer.size), save_blob(repository, layer, path, request.progress, "protect"))
        if wrong:
            os.remove(path)
            told = f"damaged already, not protected: {wrong}"
            damaged = replace(report, verdict=Verdict.DAMAGED, message=told, exit_code=ExitCode.NOT_REPAIRABLE)
            return (locate(repository, layer, older, damaged, _looking(request)) if older else damaged), ""
        make_sidecar(path, ward, layer.hex, "the manifest", request.preset, request.leaf_hash, request.jobs)
        os.remove(path)
    except (BitwardError, FormatError, OSError) as error:
        return failed(report, error), ""
    done = replace(report, verdict=Verdict.INTACT, action="protected", sidecar_bytes=os.path.getsize(ward))
    return replace(done, sidecar=f"sha256:{hash_file(ward).sha256}"), ward
