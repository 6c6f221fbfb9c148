"""``bitward hf pull``: the files of a revision in the hub's cache, each with its digest: missing ones fetched, damaged ones healed.

Made by our own requests, not by ``huggingface_hub``: that gives a blob its name when the length is right. Here the digest must be. What
is written has the library's layout: ``blobs/ETAG``, ``snapshots/COMMIT/NAME`` as links, ``refs/REVISION``, its locks.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from bitward.registries.blob_reading import read_blob
from bitward.registries.blob_suspects import suspects
from bitward.registries.hf_cache import Blob, CachedRepo, RepoName, parse_repo
from bitward.registries.hf_drafts import hub_lock
from bitward.registries.hf_facts import PulledFile, PullReport, Way
from bitward.registries.hf_heal import Job, Outcome, fetch_missing, heal, keep_sidecar_if_it_fits, pull_sidecar
from bitward.registries.hf_server import FilePlace, HubServer, limits_of
from bitward.registries.hf_sidecars import mirrored, sidecar_for, sidecars_of
from bitward.registries.hf_verify import in_words
from bitward.targets import VERDICT_OF_CODE
from bitward_agent.durable import atomic_file, make_folder, sync_folder
from bitward_agent.errors import BitwardError, InputError, UnreadableError, WriteError
from bitward_agent.findings import ExitCode, ProgressSink, Verdict
from bitward_agent.hub_cache import shared_payload
from bitward_agent.io import DISK, OpenFile, open_folder, reason, resolve
from bitward_agent.journal import restore_mtime
from bitward_agent.sources.hub import cache_folder
from bitward_agent.sources.limits import Budget, Meter
from bitward_agent.verify import open_sidecar
from bitward_formats.errors import FormatError
from bitward_formats.frozen import dataclass
from bitward_formats.hub_listing import HubFile, is_commit

WARD = ".ward"


@dataclass(frozen=True, slots=True)
class PullRequest:
    """What to pull. ``files`` are patterns of names; without any, all. ``max_fetch`` bounds all bytes that the servers send."""

    repo: str
    files: tuple[str, ...] = ()
    revision: str = "main"
    cache_dir: str | None = None
    sidecar_dir: str | None = None
    with_sidecars: bool = True
    max_fetch: int | None = None
    progress: ProgressSink | None = None


def pull(request: PullRequest) -> PullReport:
    """Pull a revision of a repository, or some of its files.

    Raises:
        InputError: that is no repository or revision, or no file has such a name.
        SourceError: the hub does not say what the revision has.
        MissingExtraError: httpx is not installed.
    """
    started = time.monotonic()
    name = parse_repo(request.repo)
    root = resolve(request.cache_dir if request.cache_dir is not None else cache_folder())
    limits = limits_of(request.max_fetch)
    with HubServer(limits, Budget(limits.max_fetch_bytes)) as server:
        commit = server.commit_of(name, request.revision)
        listing = server.files_of(name, commit)
        puller = _Puller(root, name, commit, listing, server, request)
        wanted = _wanted(listing, request.files, puller)
        files = [puller.pull(file) for file in wanted]
        code = ExitCode.worst(one.exit_code for one in files)
        if code == ExitCode.OK and not is_commit(request.revision):
            puller.write_ref(request.revision)
        fetched = server.meter.fetched_bytes + sum(one.fetched_bytes for one in files)
        requests = server.meter.requests + sum(one.requests for one in files)
    snapshot = os.path.join(puller.repo.path, "snapshots", commit)
    return PullReport(
        schema="bitward.hf-pull/1",
        verdict=VERDICT_OF_CODE[code],
        repo=name.shown,
        revision=request.revision,
        commit=commit,
        snapshot=snapshot,
        bytes=sum(one.bytes for one in files),
        fetched_bytes=fetched,
        requests=requests,
        seconds=time.monotonic() - started,
        files=tuple(files),
        exit_code=code,
    )


def _wanted(listing: dict[str, HubFile], patterns: Sequence[str], puller: _Puller) -> list[HubFile]:
    """The files that are meant. Sidecars go with their files, unless they are named or lie in the snapshot already."""
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(path, pattern) for path in listing):
            raise InputError(f"{pattern!r}: {puller.repo.name.shown} has no such file at {puller.commit}")
    found = []
    for path, file in sorted(listing.items()):
        named = any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
        if not named and patterns:
            continue
        accompanies = path.endswith(WARD) and path.removesuffix(WARD) in listing
        if accompanies and path not in patterns and (file.refusal or not os.path.lexists(puller.link(file))):
            continue
        found.append(file)
    return found


def _put_time_back(path: str, sidecar: str) -> None:
    """Give a file that was written the time that its sidecar has of it: else it would look modified since it was protected."""
    with suppress(BitwardError, FormatError, OSError), OpenFile(path) as file:
        ward, found, _ = open_sidecar(sidecar)
        ward.close()
        restore_mtime(file, found.superblock.mtime_ns)


@dataclasses.dataclass(slots=True)
class _Told:
    """What is known of a file while it is pulled, should that fail: notes, and whether what is there is damaged."""

    notes: list[str] = dataclasses.field(default_factory=list)
    is_damaged: bool = False


class _Puller:
    """One revision on its way into the cache."""

    def __init__(
        self, root: str, name: RepoName, commit: str, listing: dict[str, HubFile], server: HubServer, request: PullRequest
    ) -> None:
        self.root, self.commit, self.listing, self.server, self.request = root, commit, listing, server, request
        self.repo = CachedRepo(name, os.path.join(root, name.folder))
        self.sidecars = sidecars_of(root, request.sidecar_dir)

    def link(self, file: HubFile) -> str:
        """Where a file's name is in the snapshot."""
        return os.path.join(self.repo.path, "snapshots", self.commit, *file.path.split("/"))

    def pull(self, file: HubFile) -> PulledFile:
        """Make one file right. Whatever fails is in the value."""
        pulled = PulledFile(file.path, file.etag, file.size, Verdict.UNVERIFIABLE, Way.NONE)
        if file.refusal:
            return replace(pulled, message=f"refused: its name {file.refusal}; ask the repository's owner to rename it")
        meter = Meter(self.server.budget)
        told = _Told()
        try:
            with hub_lock(self.root, self.repo.name.folder, file.etag):
                done = self._pull(file, pulled, meter, told)
        except (BitwardError, FormatError, OSError) as error:
            text = reason(error) if isinstance(error, OSError) else str(error)
            verdict = Verdict.DAMAGED if told.is_damaged else Verdict.UNVERIFIABLE
            done = replace(pulled, verdict=verdict, message="; ".join([*told.notes, text]))
        return replace(done, fetched_bytes=meter.fetched_bytes, requests=meter.requests)

    def _pull(self, file: HubFile, pulled: PulledFile, meter: Meter, told: _Told) -> PulledFile:
        path = self._bytes_of(file)
        blob = Blob(file.etag, path, file.size)
        own = sidecar_for(self.sidecars, self.repo, blob) or mirrored(self.sidecars, self.repo, file.etag)
        ward = self.listing.get(file.path + WARD) if self.request.with_sidecars else None
        ward = ward if ward is not None and ward.size < file.size else None  # a small file is fetched for less
        blobs = os.path.join(self.repo.path, "blobs")
        job = Job(file, path, own, ward, blobs, self._place, meter, self.request.progress, told.notes)
        outcome = self._made_right(job, told)
        if not self._leads_there(file, path):
            self._make_link(file, path)
        has_sidecar = os.path.lexists(own)
        if not has_sidecar and job.ward is not None and pull_sidecar(job):
            has_sidecar = keep_sidecar_if_it_fits(job)
        if has_sidecar and outcome.way not in (Way.PRESENT, Way.LINKED):
            _put_time_back(path, own)
        return replace(
            pulled,
            verdict=Verdict.INTACT,
            way=outcome.way,
            repaired=outcome.repaired,
            sidecar=own if has_sidecar else "",
            message="; ".join(told.notes),
        )

    def _made_right(self, job: Job, told: _Told) -> Outcome:
        if not os.path.lexists(job.path):
            return fetch_missing(job)
        reading = read_blob(job.path, job.file.part)
        if reading.is_right:
            return Outcome(Way.PRESENT if self._leads_there(job.file, job.path) else Way.LINKED)
        told.is_damaged = True
        lost = suspects(job.path, job.file.size, reading.unreadable)
        job.notes.append(f"was damaged: {in_words(reading, job.file.size, lost)}")
        return heal(job, lost)

    def _place(self, path: str, whole: bool) -> FilePlace:
        return self.server.place(self.repo.name, self.commit, path, whole=whole)

    def _bytes_of(self, file: HubFile) -> str:
        """Where a file's bytes are or should be: its blob, what that leads to in the shared store, or the snapshot itself.

        Raises:
            UnreadableError: something else is in its place, or leads elsewhere.
        """
        link = self.link(file)
        if os.path.lexists(link) and not os.path.islink(link) and os.path.isfile(link):
            return link  # a cache without links
        blob = os.path.join(self.repo.path, "blobs", file.etag)
        if not os.path.islink(blob):
            return blob
        payload = shared_payload(blob, self.root)
        if payload is None:
            raise UnreadableError(f"{blob}: leads out of the repository's blobs: not followed; remove it and pull again")
        return payload

    def _leads_there(self, file: HubFile, path: str) -> bool:
        """Whether the file's name in the snapshot leads to its bytes."""
        return os.path.lexists(self.link(file)) and resolve(self.link(file)) == path

    def _make_link(self, file: HubFile, path: str) -> None:
        """The file's name in the snapshot, as a relative link to its blob, in the place of whatever link is there. Raises WriteError."""
        link = self.link(file)
        if path == link:
            return
        folder, name = os.path.split(link)
        blob = os.path.join(self.repo.path, "blobs", file.etag)
        make_folder(folder)
        temporary = f".{name[:200]}.{secrets.token_hex(4)}.new"
        try:
            folder_fd = open_folder(folder)
            try:
                os.symlink(os.path.relpath(blob, folder), temporary, dir_fd=folder_fd)
                try:
                    DISK.replace(temporary, name, dir_fd=folder_fd)
                except OSError:
                    with suppress(OSError):
                        DISK.unlink(temporary, dir_fd=folder_fd)
                    raise
                sync_folder(folder_fd)
            finally:
                DISK.close(folder_fd)
        except OSError as error:
            raise WriteError(f"{link}: cannot make this link: {reason(error)}") from error

    def write_ref(self, revision: str) -> None:
        """Note which commit a branch or tag is, once all that was wanted of it is right. Raises WriteError."""
        path = os.path.join(self.repo.path, "refs", *revision.split("/"))
        make_folder(os.path.dirname(path))
        with atomic_file(path) as file:
            file.write_all(self.commit.encode(), 0)
