"""OCI image layouts on this machine: every blob that the index leads to verified, protected, and repaired in place.

Source: the OCI image specification 1.1, "image layout". Sidecars are referrers here as well: blobs of the layout, bound to their subject by
an artefact that ``index.json`` lists, so that tools which copy referrers copy them along.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import field, replace

from bitward.registries.blob_check import MISSING, check_blob, report_with, why_foreign
from bitward.registries.blob_facts import BlobReport, BlobsReport, failed, report_of
from bitward.registries.blob_reading import Wanted, copy_readable, hash_file
from bitward.registries.oci_sidecars import scratch_folder
from bitward_agent.durable import atomic_file, make_folder
from bitward_agent.errors import BitwardError, InputError
from bitward_agent.findings import ExitCode, ProgressSink, Verdict
from bitward_agent.io import OpenFile, resolve
from bitward_agent.sources.copies import CopySource
from bitward_agent.sources.limits import Meter
from bitward_agent.sources.local import LocalPlace
from bitward_agent.verify import open_sidecar
from bitward_formats.digest import LeafHash
from bitward_formats.errors import FormatError, OciError
from bitward_formats.frozen import dataclass
from bitward_formats.oci import (
    EMPTY_BLOB,
    IMAGE_MANIFEST,
    INDEX_TYPES,
    MANIFEST_LIMIT_BYTES,
    MANIFEST_TYPES,
    SIDECAR_ARTIFACT,
    Descriptor,
    Index,
    Manifest,
    artifact,
    digest_of_bytes,
    read_document,
    read_index,
    sidecar_descriptor,
    sidecars_by_layer,
    with_referrer,
)

_DOCUMENTS_LIMIT = 65_536
"""Most manifests and indexes of one layout that are read."""
_MARK_LIMIT_BYTES = 4096
WORK_FOLDER = ".bitward"
"""Below a layout: the log of its repairs."""


@dataclass(frozen=True, slots=True)
class LayoutRequest:
    """What was asked for. ``others`` are layouts from which a repair may take what parity lacks."""

    others: tuple[str, ...] = ()
    preset: str = "standard"
    leaf_hash: LeafHash = LeafHash.XXH3
    force: bool = False
    dry_run: bool = False
    jobs: int | None = None
    progress: ProgressSink | None = None


@dataclass(slots=True)
class Layout:
    """What a layout's index leads to. ``documents`` are indexes and manifests, ``unread`` those of them that cannot be read."""

    folder: str
    index: Index
    manifests: list[Manifest] = field(default_factory=list)
    documents: list[Descriptor] = field(default_factory=list)
    unread: list[tuple[Descriptor, str]] = field(default_factory=list)
    blobs: dict[str, Descriptor] = field(default_factory=dict)
    sidecars: dict[str, Descriptor] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)

    def path_of(self, digest: str) -> str:
        """Where a blob lies, or belongs."""
        return os.path.join(self.folder, "blobs", "sha256", digest[7:])

    def sidecar_of(self, digest: str) -> str:
        """A blob's sidecar: a blob of the layout, or beside it. It need not be there."""
        if digest in self.sidecars:
            return self.path_of(self.sidecars[digest].digest)
        return f"{self.path_of(digest)}.ward"


def _small(path: str, limit_bytes: int) -> bytes:
    with OpenFile(path) as file:
        size = file.state().size
        if size > limit_bytes:
            raise OciError(f"{path}: {size} bytes: too long for what it should be")
        return file.read(0, size)


def read_layout(given: str) -> Layout:
    """Read a layout's index and what it leads to.

    Raises:
        InputError: it is no OCI image layout.
        OciError, UnreadableError: its index cannot be used.
    """
    folder = resolve(given)
    try:
        mark = json.loads(_small(os.path.join(folder, "oci-layout"), _MARK_LIMIT_BYTES))
    except (BitwardError, FormatError, ValueError, RecursionError):
        mark = None
    if not isinstance(mark, dict) or not isinstance(mark.get("imageLayoutVersion"), str):
        raise InputError(f"{given}: no OCI image layout: it has no file 'oci-layout' that says so")
    index = read_index(_small(os.path.join(folder, "index.json"), MANIFEST_LIMIT_BYTES), "", f"{given}: index.json")
    layout = Layout(folder, index)
    waiting = deque(index.manifests)
    seen: set[str] = set()
    while waiting and len(seen) < _DOCUMENTS_LIMIT:
        one = waiting.popleft()
        if one.digest not in seen:
            seen.add(one.digest)
            waiting.extend(_take_in(layout, one))
    if waiting:
        raise OciError(f"{given}: its index leads to more than {_DOCUMENTS_LIMIT} manifests")
    for manifest in layout.manifests:
        if manifest.subject is not None:
            found = sidecars_by_layer(manifest, manifest.subject.digest)
            layout.sidecars |= found
            layout.artifacts += [manifest.descriptor.digest] if found else []
    return layout


def _take_in(layout: Layout, one: Descriptor) -> Sequence[Descriptor]:
    """Read one document of a layout; the documents that it leads to."""
    if one.media_type not in (*MANIFEST_TYPES, *INDEX_TYPES):
        layout.blobs.setdefault(one.digest, one)
        return ()
    path = layout.path_of(one.digest)
    try:
        data = _small(path, MANIFEST_LIMIT_BYTES)
        if digest_of_bytes(data) != one.digest:
            raise OciError("damaged: it is not what its name says")
        found = read_document(data, one.media_type, one.digest)
    except (BitwardError, FormatError) as error:
        layout.unread.append((one, str(error).removeprefix(f"{path}: ") if os.path.lexists(path) else MISSING))
        return ()
    layout.documents.append(one)
    if isinstance(found, Index):
        return found.manifests
    layout.manifests.append(found)
    for blob in (found.config, *found.layers):
        layout.blobs.setdefault(blob.digest, blob)
    return ()


def _finish(layout: Layout, command: str, blobs: Sequence[BlobReport], started: float, artifacts: Sequence[str] = ()) -> BlobsReport:
    known = (*layout.artifacts, *artifacts)
    return report_of(f"bitward.oci-{command}/1", layout.folder, blobs, started, sidecars=known, referrers="index" if known else "")


def _blank(layout: Layout, one: Descriptor) -> BlobReport:
    ward = layout.sidecar_of(one.digest)
    report = BlobReport(one.name, one.digest, one.media_type, one.size, Verdict.UNVERIFIABLE, path=layout.path_of(one.digest))
    with suppress(OSError):
        report = replace(report, sidecar_bytes=os.lstat(ward).st_size, sidecar=ward)
    return report


def _unread(layout: Layout) -> Iterator[BlobReport]:
    for one, told in layout.unread:
        yield replace(_blank(layout, one), verdict=Verdict.DAMAGED, message=told, exit_code=ExitCode.NOT_REPAIRABLE)


def verify_layout(folder: str, request: LayoutRequest) -> BlobsReport:
    """Hold every blob that the index leads to against its digest. Reads only. Raises as :func:`read_layout`."""
    started = time.monotonic()
    layout = read_layout(folder)
    blobs = [*_unread(layout), *(replace(_blank(layout, one), verdict=Verdict.INTACT) for one in layout.documents)]
    for one in layout.blobs.values():
        blank = _blank(layout, one)
        found = check_blob(blank.path, _wanted(one), layout.sidecar_of(one.digest), jobs=request.jobs, progress=request.progress)
        blobs.append(report_with(blank, found))
    return _finish(layout, "verify", blobs, started)


def _wanted(one: Descriptor) -> Wanted:
    return Wanted(one.hex, one.size)


def repair_layout(folder: str, request: LayoutRequest) -> BlobsReport:
    """Put damaged blobs back in place, from their sidecars and from other layouts. Raises as :func:`read_layout`."""
    started = time.monotonic()
    layout = read_layout(folder)
    others = [read_layout(other) for other in request.others]
    repaired = [_repair_one(layout, one, others, request) for one in layout.blobs.values()]
    return _finish(layout, "repair", [*_unread(layout), *repaired], started)


def _repair_one(layout: Layout, one: Descriptor, others: Sequence[Layout], request: LayoutRequest) -> BlobReport:
    """One blob. Every failure comes back as a value, so that the others are looked at."""
    blank = _blank(layout, one)
    copies: list[CopySource] = []
    try:
        ward = layout.sidecar_of(one.digest)
        found = check_blob(blank.path, _wanted(one), ward, jobs=request.jobs, progress=request.progress)
        if found.verdict is Verdict.INTACT or request.dry_run:
            return report_with(blank, found)
        from bitward.registries.blob_healing import heal_beside  # loads NumPy: only where there is damage

        paths = [other.path_of(one.digest) for other in others]
        copies = [CopySource(LocalPlace(path, blank.path), [""], one.hex, Meter()) for path in paths if os.path.isfile(path)]
        log = log_in(os.path.join(layout.folder, WORK_FOLDER))
        with scratch_folder(layout.folder) as scratch:
            own = os.path.join(scratch, "sidecar.ward")
            if os.path.isfile(ward) and not os.path.islink(ward):
                copy_readable(ward, own)
            done = heal_beside(blank.path, _wanted(one), own, copies, found, scratch, log, jobs=request.jobs, progress=request.progress)
        return report_with(blank, done, "healed" if done.verdict is Verdict.INTACT else "")
    except (BitwardError, FormatError, OSError) as error:
        return failed(blank, error)
    finally:
        for copy in copies:
            copy.close()


def log_in(folder: str) -> str:
    """Where repairs are logged, in a folder that is made for it. Raises WriteError."""
    make_folder(folder)
    return os.path.join(folder, "repairs.ward-log")


def protect_layout(folder: str, request: LayoutRequest) -> BlobsReport:
    """Make sidecars for the layers of every manifest, and list them in the index as its referrers. Raises as :func:`read_layout`."""
    started = time.monotonic()
    layout = read_layout(folder)
    blobs = [*_unread(layout)]
    artifacts: list[str] = []
    with scratch_folder(layout.folder) as scratch:
        for manifest in layout.manifests:
            if manifest.artifact_type == SIDECAR_ARTIFACT:
                continue
            made: list[Descriptor] = []
            for layer in dict.fromkeys(one.digest for one in manifest.layers):
                report, sidecar = _protect_one(layout, layout.blobs[layer], scratch, request)
                blobs.append(report)
                made += [sidecar] if sidecar else []
            if made:
                artifacts.append(_attach(layout, manifest, made))
    return _finish(layout, "protect", blobs, started, artifacts)


def _has_sidecar(layout: Layout, layer: Descriptor) -> bool:
    """Whether a layer has a sidecar that is whole and its own: one that is neither does not count as protection."""
    ward, own = layout.sidecar_of(layer.digest), layout.sidecars.get(layer.digest)
    if own is not None and check_blob(ward, _wanted(own), "").verdict is not Verdict.INTACT:
        return False
    return os.path.lexists(ward) and not why_foreign(ward, _wanted(layer))


def _protect_one(layout: Layout, layer: Descriptor, scratch: str, request: LayoutRequest) -> tuple[BlobReport, Descriptor | None]:
    from bitward.registries.oci_push import make_sidecar

    blank = _blank(layout, layer)
    if not request.force and _has_sidecar(layout, layer):
        found = check_blob(blank.path, _wanted(layer), layout.sidecar_of(layer.digest), jobs=request.jobs, progress=request.progress)
        return report_with(blank, replace(found, message=found.message or "its sidecar is there already"), "kept"), None
    ward = os.path.join(scratch, f"{layer.hex}.ward")
    try:
        make_sidecar(blank.path, ward, layer.hex, "its name", request.preset, request.leaf_hash, request.jobs)
        opened, read, _ = open_sidecar(ward)
        opened.close()
        word = hash_file(ward)
        sidecar = sidecar_descriptor(f"sha256:{word.sha256}", word.size, layer, read.superblock.root.hex())
        os.replace(ward, layout.path_of(sidecar.digest))
    except (BitwardError, FormatError, OSError) as error:
        code = ExitCode.CANNOT_TELL if os.path.lexists(blank.path) else ExitCode.NOT_REPAIRABLE
        found = check_blob(blank.path, _wanted(layer), layout.sidecar_of(layer.digest), jobs=request.jobs)
        if found.verdict is Verdict.DAMAGED:
            return report_with(blank, replace(found, message=f"damaged already, not protected: {found.message}")), None
        return replace(failed(blank, error), exit_code=code), None
    path = layout.path_of(sidecar.digest)
    return replace(blank, verdict=Verdict.INTACT, action="protected", sidecar=path, sidecar_bytes=word.size), sidecar


def _attach(layout: Layout, manifest: Manifest, sidecars: Sequence[Descriptor]) -> str:
    """Write the artefact that binds sidecars to a manifest, and list it in the index. Its digest. Raises WriteError."""
    data = artifact(SIDECAR_ARTIFACT, sidecars, manifest.descriptor)
    own = Descriptor(IMAGE_MANIFEST, digest_of_bytes(data), len(data), {}, SIDECAR_ARTIFACT)
    for blob in (EMPTY_BLOB, data):
        path = layout.path_of(digest_of_bytes(blob))
        if not os.path.lexists(path):
            with atomic_file(path) as file:
                file.write_all(blob, 0)
    changed = with_referrer(layout.index, own)
    if changed is not None:
        with atomic_file(os.path.join(layout.folder, "index.json")) as file:
            file.write_all(changed, 0)
        layout.index = read_index(changed, "", "index.json")
    return own.digest
