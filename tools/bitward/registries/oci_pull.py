"""``bitward oci pull``: a manifest's layers and their sidecars into a folder. A file appears under its name only when its digest is right.

A layer that arrives damaged, or lies damaged in the registry, is healed on the way: from its sidecar's parity, and by asking the registry
again for the blocks that parity lacks.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from bitward.registries.blob_check import Healing, check_blob, difference, report_with, why_foreign
from bitward.registries.blob_facts import BlobReport, BlobsReport, failed, report_of
from bitward.registries.blob_healing import heal_beside, heal_blob
from bitward.registries.blob_reading import Wanted, hash_file
from bitward.registries.oci_client import NotInRegistryError, Repository
from bitward.registries.oci_reference import parse_reference
from bitward.registries.oci_sidecars import find_sidecars, save_blob, save_sidecar, scratch_folder, wanted_manifest
from bitward_agent.durable import check_room, make_folder, sync_folder
from bitward_agent.errors import BitwardError, BusyError, InputError, WriteError
from bitward_agent.findings import ExitCode, ProgressSink, SidecarState, Verdict
from bitward_agent.io import OpenFile, open_folder, reason, resolve
from bitward_agent.journal import restore_mtime
from bitward_agent.repair import RepairRequest, repair_file
from bitward_agent.sources.limits import Limits
from bitward_agent.units import index_path, is_ours, write_index
from bitward_agent.verify import open_sidecar, verify_file
from bitward_formats.errors import FormatError
from bitward_formats.frozen import dataclass
from bitward_formats.oci import Descriptor, file_names
from bitward_formats.unit_index import UnitEntry

_Todo = tuple[str, Descriptor, tuple[Descriptor, ...]]
"""A layer's name, the layer, and its sidecars."""
WORK_FOLDER = ".bitward-pull"
"""Below the folder that is pulled into, while a pull is at work."""


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
        make_folder(top)
        taken = {f"{name}.ward" for name in names} & set(names)
        todo = [
            (name, layer, () if f"{name}.ward" in taken or is_ours(name) else sidecars.by_layer.get(layer.digest, ()))
            for name, layer in dict(zip(names, manifest.layers, strict=True)).items()
        ]
        size = _bytes_to_come(top, todo, request)
        if request.bounds_all:
            repository.budget.reserve(size)
        with pull_folder(top) as scratch:
            check_room(top, size, named.name)
            puller = _Puller(repository, top, scratch, request)
            blobs = [puller.pull(*one) for one in todo]
    notes = [*sidecars.notes, *([] if blobs else ["the manifest has no layers: there is nothing to pull"])]
    if blobs and not any(blob.exit_code for blob in blobs):
        notes += _index(top, blobs)
    own, found = manifest.descriptor.digest, sidecars.artifacts
    return report_of(
        "bitward.oci-pull/1", named.name, blobs, started, digest=own, sidecars=found, referrers=sidecars.how, notes=tuple(notes)
    )


def _bytes_to_come(top: str, todo: list[_Todo], request: PullRequest) -> int:
    """What the layers and sidecars take that are not there yet, by the manifest and its referrers."""
    size = 0
    for name, layer, candidates in todo:
        path = os.path.join(top, *name.split("/"))
        size += layer.size if request.force or not os.path.lexists(path) else 0
        size += candidates[-1].size if candidates and not os.path.lexists(f"{path}.ward") else 0
    return size


@contextmanager
def pull_folder(top: str) -> Iterator[str]:
    """A folder for what is on its way, on the disk where it will stay; gone afterwards. What a killed pull left in it is removed.

    Raises:
        BusyError: another pull is at work in the same place.
        WriteError: it cannot be made.
    """
    path = os.path.join(top, WORK_FOLDER)
    make_folder(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise WriteError(f"{path}: cannot use this folder: {reason(error)}") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"{top}: another pull is at work here: wait for it to end") from None
        for name in os.listdir(fd):
            shutil.rmtree(os.path.join(path, name), ignore_errors=True)
        try:
            yield path
        finally:
            with suppress(OSError):
                os.rmdir(path)
    finally:
        os.close(fd)


class _Puller:
    def __init__(self, repository: Repository, top: str, scratch: str, request: PullRequest) -> None:
        self.repository, self.top, self.scratch, self.request = repository, top, scratch, request

    def pull(self, name: str, layer: Descriptor, candidates: tuple[Descriptor, ...]) -> BlobReport:
        """One layer, with its sidecar if it has any. Every failure comes back as a value."""
        path = os.path.join(self.top, *name.split("/"))
        report = BlobReport(name, layer.digest, layer.media_type, layer.size, Verdict.UNVERIFIABLE, path=path)
        try:
            make_folder(os.path.dirname(path))
            with scratch_folder(self.scratch) as scratch:
                if os.path.lexists(path) and not self.request.force:
                    return self._existing(report, layer, candidates, scratch)
                return self._fresh(report, layer, candidates, scratch)
        except NotInRegistryError as error:
            return replace(report, verdict=Verdict.DAMAGED, path="", message=str(error), exit_code=ExitCode.NOT_REPAIRABLE)
        except (BitwardError, FormatError, OSError) as error:
            return failed(replace(report, path=""), error)

    def _fresh(self, report: BlobReport, layer: Descriptor, candidates: tuple[Descriptor, ...], scratch: str) -> BlobReport:
        part = os.path.join(scratch, os.path.basename(report.path))
        ward = f"{part}.ward"
        wanted = Wanted(layer.hex, layer.size)
        told = save_sidecar(self.repository, candidates, ward) if candidates else ""
        came = save_blob(self.repository, layer, part, self.request.progress)
        wrong = difference(wanted, came)
        healing = Healing(Verdict.INTACT)
        if wrong:
            source = self.repository.source(layer, report.name)
            try:
                found = check_blob(part, wanted, ward, jobs=self.request.jobs)
                jobs, progress = self.request.jobs, self.request.progress
                healing = heal_blob(part, wanted, ward, [source], found, named=False, jobs=jobs, progress=progress)
            finally:
                source.close()
            told = "; ".join(filter(None, (f"arrived damaged: {wrong}", healing.message, told)))
        if healing.verdict is not Verdict.INTACT:
            return replace(report_with(report, healing), verdict=Verdict.DAMAGED, path="", message=f"{told}; it was not kept")
        state, note = self._settle_sidecar(part, ward)
        _publish(part, report.path)
        done = report_with(report, healing, "healed" if wrong else "pulled")
        done = replace(done, message="; ".join(filter(None, (told, note))))
        if state:
            _publish(ward, f"{report.path}.ward")
            done = replace(done, sidecar=f"{report.path}.ward", sidecar_bytes=os.path.getsize(f"{report.path}.ward"))
        return done

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
            save_sidecar(self.repository, candidates, ward)
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
