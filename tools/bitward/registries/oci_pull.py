"""``bitward oci pull``: a manifest's layers and their sidecars into a folder. A file appears under its name only when its digest is right.

A layer that arrives damaged, or lies damaged in the registry, is healed on the way: from its sidecar's parity, and by asking the registry
again for the blocks that parity lacks.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace

from bitward.registries.blob_check import Healing, check_blob, difference, report_with, why_foreign
from bitward.registries.blob_facts import BlobReport, BlobsReport, failed, report_of
from bitward.registries.blob_healing import heal_beside, heal_blob
from bitward.registries.blob_reading import Wanted, hash_file
from bitward.registries.oci_client import NotInRegistryError, Repository
from bitward.registries.oci_parts import WORK_FOLDER, begun_bytes, part_path, pull_folder, take_up, told_of_parts
from bitward.registries.oci_reference import parse_reference
from bitward.registries.oci_sidecars import find_sidecars, save_sidecar, scratch_folder, wanted_manifest
from bitward_agent.durable import check_room, make_folder, sync_folder
from bitward_agent.errors import BitwardError, InputError, SourceBusyError, WriteError
from bitward_agent.findings import ExitCode, ProgressSink, SidecarState, Verdict
from bitward_agent.io import OpenFile, open_folder, reason, resolve
from bitward_agent.journal import restore_mtime
from bitward_agent.repair import RepairRequest, repair_file
from bitward_agent.sources.limits import Limits
from bitward_agent.units import index_path, is_ours, write_index
from bitward_agent.verify import open_sidecar, verify_file
from bitward_formats.errors import FormatError, OciError
from bitward_formats.frozen import dataclass
from bitward_formats.oci import Descriptor, file_names
from bitward_formats.unit_index import UnitEntry

_Todo = tuple[str, Descriptor, tuple[Descriptor, ...]]
"""A layer's name, the layer, and its sidecars."""


@dataclass(frozen=True, slots=True)
class PullRequest:
    """What was asked for. ``force``: replace files that are in the way. ``bounds_all``: the bytes of the limits are those of all that is
    fetched, and not only of what is fetched again."""

    limits: Limits
    plain_http: bool = False
    force: bool = False
    jobs: int | None = None
    progress: ProgressSink | None = None
    bounds_all: bool = False


def pull(reference: str, folder: str, request: PullRequest) -> BlobsReport:
    """Pull a manifest into a folder; see the module.

    Raises:
        InputError: the reference is none.
        SourceError, OciError, UntrustedError: the manifest cannot be had or used, or asks for more bytes than may be fetched.
        WriteError: the folder cannot be made, or has no room for what the manifest asks for. Then no blob was asked for.
    """
    started = time.monotonic()
    named = parse_reference(reference, plain_http=request.plain_http)
    with Repository(named, request.limits) as repository:
        manifest = wanted_manifest(repository)
        names = file_names(manifest.layers, named.name)
        sidecars = find_sidecars(repository, manifest)
        top = resolve(folder)
        _refuse_our_own(names, top, named.name)
        make_folder(top)
        taken = {f"{name}.ward" for name in names} & set(names)
        todo = [
            (name, layer, () if f"{name}.ward" in taken or is_ours(name) else sidecars.by_layer.get(layer.digest, ()))
            for name, layer in dict(zip(names, manifest.layers, strict=True)).items()
        ]
        size = _bytes_to_come(top, todo, request)
        if request.bounds_all:
            repository.budget.reserve(size)
        with pull_folder(top, manifest.layers) as work:
            check_room(top, size, named.name)
            puller = _Puller(repository, top, work, request)
            blobs = [puller.pull(*one) for one in todo]
            notes = [*sidecars.notes, *told_of_parts(work)]
    notes += [] if blobs else ["the manifest has no layers: there is nothing to pull"]
    if blobs and not any(blob.exit_code for blob in blobs):
        notes += _index(top, blobs)
    own, found = manifest.descriptor.digest, sidecars.artifacts
    return report_of(
        "bitward.oci-pull/1", named.name, blobs, started, digest=own, sidecars=found, referrers=sidecars.how, notes=tuple(notes)
    )


def _refuse_our_own(names: list[str], top: str, what: str) -> None:
    """Names that would be taken for a journal of ours, which a repair obeys, for a file's sidecar, or for what is on its way.

    Raises:
        OciError: there is one.
    """
    known = set(names)
    for name in names:
        if name.split("/")[0] == WORK_FOLDER or (is_ours(name) and not name.endswith(".ward")):
            raise OciError(f"{what}: a layer wants the name {name[:100]!r}, which is kept for Bitward's own files")
        about = name.removesuffix(".ward")
        if about != name and about not in known and os.path.lexists(os.path.join(top, *about.split("/"))):
            raise OciError(f"{what}: a layer wants to be the sidecar of {about[:100]!r}, which is not from there: pull into another folder")


def _bytes_to_come(top: str, todo: list[_Todo], request: PullRequest) -> int:
    """What the layers and sidecars take that are not there yet, by the manifest and its referrers."""
    size = 0
    for name, layer, candidates in todo:
        path = os.path.join(top, *name.split("/"))
        if request.force or not os.path.lexists(path):
            size += layer.size - begun_bytes(os.path.join(top, WORK_FOLDER), layer)
        size += candidates[-1].size if candidates and not os.path.lexists(f"{path}.ward") else 0
    return size


class _Puller:
    def __init__(self, repository: Repository, top: str, work: str, request: PullRequest) -> None:
        self.repository, self.top, self.work, self.request = repository, top, work, request

    def pull(self, name: str, layer: Descriptor, candidates: tuple[Descriptor, ...]) -> BlobReport:
        """One layer, with its sidecar if it has any. Every failure comes back as a value."""
        path = os.path.join(self.top, *name.split("/"))
        report = BlobReport(name, layer.digest, layer.media_type, layer.size, Verdict.UNVERIFIABLE, path=path)
        try:
            make_folder(os.path.dirname(path))
            with scratch_folder(self.work) as scratch:
                if os.path.lexists(path) and not self.request.force:
                    return self._existing(report, layer, candidates, scratch)
                return self._fresh(report, layer, candidates, scratch)
        except NotInRegistryError as error:
            return replace(report, verdict=Verdict.DAMAGED, path="", message=str(error), exit_code=ExitCode.NOT_REPAIRABLE)
        except (BitwardError, FormatError, OSError) as error:
            return failed(replace(report, path=""), error)

    def _fresh(self, report: BlobReport, layer: Descriptor, candidates: tuple[Descriptor, ...], scratch: str) -> BlobReport:
        part, ward = part_path(self.work, layer), os.path.join(scratch, "sidecar.ward")
        told = save_sidecar(self.repository, candidates, layer, ward) if candidates else ""
        try:
            came, had = take_up(self.repository, layer, part, self.request.progress)
            wrong = difference(Wanted(layer.hex, layer.size), came)
            healing = self._heal_part(report, layer, part, ward) if wrong else Healing(Verdict.INTACT)
            if healing.verdict is not Verdict.INTACT and had:
                os.remove(part)  # what was begun may be at fault, not what came: once more, without it
                return self._fresh(report, layer, candidates, scratch)
            told = "; ".join(filter(None, (f"arrived damaged: {wrong}" if wrong else "", healing.message, told)))
            if healing.verdict is not Verdict.INTACT:
                os.remove(part)
                return replace(report_with(report, healing), verdict=Verdict.DAMAGED, path="", message=f"{told}; it was not kept")
            state, note = self._settle_sidecar(part, ward)
            _publish(part, report.path)
        except (BitwardError, FormatError, OSError) as error:
            if os.path.lexists(part) and not (isinstance(error, SourceBusyError) and os.path.getsize(part)):
                os.remove(part)
            raise
        note = "; ".join(filter(None, (f"{had:,} bytes of it were there from a pull that was broken off" if had else "", told, note)))
        done = replace(report_with(report, healing, "healed" if wrong else "pulled"), message=note)
        if state:
            _publish(ward, f"{report.path}.ward")
            done = replace(done, sidecar=f"{report.path}.ward", sidecar_bytes=os.path.getsize(f"{report.path}.ward"))
        return done

    def _heal_part(self, report: BlobReport, layer: Descriptor, part: str, ward: str) -> Healing:
        wanted, jobs = Wanted(layer.hex, layer.size), self.request.jobs
        source = self.repository.source(layer, report.name)
        try:
            found = check_blob(part, wanted, ward, jobs=jobs)
            return heal_blob(part, wanted, ward, [source], found, named=False, jobs=jobs, progress=self.request.progress)
        finally:
            source.close()

    def _settle_sidecar(self, part: str, ward: str) -> tuple[bool, str]:
        """Whether a sidecar is there that fits the file, whose digest is right; a sidecar that was damaged is healed from the file."""
        if not os.path.lexists(ward):
            return False, ""
        found = verify_file(part, ward, jobs=self.request.jobs)
        if found.verdict is Verdict.INTACT and found.sidecar.state is not SidecarState.INTACT:
            repair_file(part, ward, RepairRequest(), jobs=self.request.jobs)
            found = verify_file(part, ward, jobs=self.request.jobs)
        if found.verdict is Verdict.INTACT and found.sidecar.state is SidecarState.INTACT:
            _take_time(part, ward)
            return True, ""
        return False, "its sidecar does not fit its contents and was left out"

    def _existing(self, report: BlobReport, layer: Descriptor, candidates: tuple[Descriptor, ...], scratch: str) -> BlobReport:
        """A file is in the place: the same, the same but damaged, or something else."""
        wanted = Wanted(layer.hex, layer.size)
        own = ward = f"{report.path}.ward"
        if not os.path.lexists(own) and candidates:
            ward = os.path.join(scratch, "sidecar.ward")
            save_sidecar(self.repository, candidates, layer, ward)
        wrong = difference(wanted, hash_file(report.path, self.request.progress))
        done, notes = replace(report, verdict=Verdict.INTACT, action="kept"), [""]
        if wrong:
            if not os.path.lexists(ward) or not self._is_damage(report.path, ward):
                raise InputError(f"{report.path}: is in the way and holds something else; --force replaces it")
            healing = self._heal_existing(report, layer, ward, scratch)
            notes = [f"was damaged: {wrong}", healing.message]
            done = report_with(report, healing, "healed")
            if healing.verdict is not Verdict.INTACT:
                return replace(done, action="", message="; ".join(filter(None, notes)))
        if ward != own:
            fits, note = self._settle_sidecar(report.path, ward)
            notes.append(note)
            if fits:
                _publish(ward, own)
        if os.path.lexists(own):
            done = replace(done, sidecar=own, sidecar_bytes=os.path.getsize(own))
        return replace(done, message="; ".join(filter(None, notes)))

    def _heal_existing(self, report: BlobReport, layer: Descriptor, ward: str, scratch: str) -> Healing:
        """In place with the file's own sidecar, which was held against right contents once; else beside it, on a copy."""
        wanted = Wanted(layer.hex, layer.size)
        source = self.repository.source(layer, report.name)
        jobs, progress = self.request.jobs, self.request.progress
        found = check_blob(report.path, wanted, ward, jobs=jobs)
        try:
            if os.path.dirname(ward) != scratch and not why_foreign(ward, wanted, named=True):
                return heal_blob(report.path, wanted, ward, [source], found, jobs=jobs, progress=progress)
            log = f"{report.path}.ward-log"
            return heal_beside(report.path, wanted, ward, [source], found, scratch, log, jobs=jobs, progress=progress)
        finally:
            source.close()

    def _is_damage(self, path: str, ward: str) -> bool:
        """Whether a file that differs is a damaged copy of what the sidecar knows, and not something that somebody wrote there."""
        return verify_file(path, ward, jobs=self.request.jobs).verdict is Verdict.DAMAGED


def _take_time(path: str, ward: str) -> None:
    """Give a file the time that its sidecar recorded, so that a difference that comes later counts as damage and not as a new version."""
    read_ward, read, _ = open_sidecar(ward)
    read_ward.close()
    with OpenFile(path, write=True) as file:
        restore_mtime(file, read.superblock.mtime_ns)


def _publish(part: str, path: str) -> None:
    """Let a finished file appear under its name. No link is followed on the way. Raises WriteError."""
    folder, name = os.path.split(path)
    try:
        fd = open_folder(folder)
        try:
            os.replace(part, name, dst_dir_fd=fd)
            sync_folder(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise WriteError(f"{path}: cannot write: {reason(error)}") from error


def _index(top: str, blobs: list[BlobReport]) -> list[str]:
    """Write the folder's index, if every file has a sidecar and nothing else is in it. What kept it from being written."""
    from bitward_agent.units import list_unit

    try:
        members = {member.path: member for member in list_unit(top).members}
        if set(members) != {blob.path for blob in blobs} or not all(blob.sidecar for blob in blobs):
            return []
        entries = []
        for blob in sorted(blobs, key=lambda one: one.name):
            ward, read, _ = open_sidecar(blob.sidecar)
            ward.close()
            entries.append(UnitEntry(os.fsencode(members[blob.path].relative), blob.bytes, read.superblock.root))
        write_index(index_path(top, None), entries, time.time_ns())
    except (BitwardError, FormatError) as error:
        return [f"the folder's index was not written: {error}"]
    return []
