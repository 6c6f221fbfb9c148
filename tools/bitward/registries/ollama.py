"""``bitward ollama``: the blobs of an Ollama store, checked by name and content, protected, and repaired.

Sidecars lie in a folder of their own below the store, since Ollama deletes what it does not know from among its blobs. A repair takes what
parity lacks from another store on this machine or from the registry that the model came from, by ranges.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from bitward.registries.blob_check import MISSING, Healing, check_blob, report_with, why_foreign
from bitward.registries.blob_facts import BlobReport, BlobsReport, failed, report_of
from bitward.registries.blob_reading import Wanted
from bitward.registries.oci_reference import Reference, is_loopback
from bitward.registries.ollama_store import Store, StoreBlob, read_store, store_folder
from bitward.targets import VERDICT_OF_CODE
from bitward_agent.errors import BitwardError, InputError
from bitward_agent.findings import ExitCode, ProgressSink, Verdict
from bitward_agent.io import OpenFile, resolve
from bitward_agent.sources.addresses import WebAddress, scheme_of
from bitward_agent.sources.copies import CopySource
from bitward_agent.sources.limits import Budget, Limits, Meter
from bitward_agent.sources.local import LocalPlace
from bitward_formats.digest import LeafHash
from bitward_formats.errors import FormatError
from bitward_formats.frozen import dataclass
from bitward_formats.ollama import ModelName

if TYPE_CHECKING:
    from bitward.registries.oci_client import Repository

SIDECAR_FOLDER = "wards"
"""Below the store: Ollama looks at ``blobs`` and ``manifests`` only."""
REGISTRY = "registry"
"""What ``--from`` calls the registry that a model came from."""
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """What was asked for. ``store`` and ``sidecar_dir`` of None are the usual ones; ``sources`` are only for a repair."""

    models: tuple[str, ...] = ()
    store: str | None = None
    sidecar_dir: str | None = None
    sources: tuple[str, ...] = ()
    limits: Limits = Limits()
    dry_run: bool = False
    force: bool = False
    preset: str = "standard"
    leaf_hash: LeafHash = LeafHash.XXH3
    jobs: int | None = None
    progress: ProgressSink | None = None


class _Look:
    """A store, and where the sidecars of its blobs are."""

    def __init__(self, request: StoreRequest) -> None:
        self.started = time.monotonic()
        self.request = request
        self.store: Store = read_store(store_folder(request.store), request.models)
        given = request.sidecar_dir
        self.sidecar_dir = resolve(given) if given else os.path.join(self.store.folder, SIDECAR_FOLDER)

    def sidecar_of(self, digest: str) -> str:
        return os.path.join(self.sidecar_dir, f"{digest.replace(':', '-', 1)}.ward")

    def blank(self, blob: StoreBlob) -> BlobReport:
        one = blob.descriptor
        ward = self.sidecar_of(one.digest)
        has = os.path.lexists(ward)
        report = BlobReport(one.digest.replace(":", "-", 1), one.digest, one.media_type, one.size, Verdict.UNVERIFIABLE)
        return replace(
            report,
            path=self.store.path_of(one.digest),
            sidecar=ward if has else "",
            sidecar_bytes=os.lstat(ward).st_size if has else 0,
            users=tuple(user.shortest for user in blob.users),
        )

    def report(self, command: str, blobs: Sequence[BlobReport]) -> BlobsReport:
        unread = [
            BlobReport(name, "", "", 0, Verdict.UNVERIFIABLE, users=(name,), message=told, exit_code=ExitCode.CANNOT_TELL)
            for name, told in self.store.unread
        ]
        every = (*unread, *blobs)
        return report_of(f"bitward.ollama-{command}/1", self.store.folder, every, self.started, leftovers=self.store.leftovers)


def verify_store(request: StoreRequest) -> BlobsReport:
    """Check every blob that models need, and without ``models`` every other one too. Reads only.

    Raises:
        InputError: there is no such store or model.
    """
    look = _Look(request)
    others = [StoreBlob(one, ()) for one in look.store.orphans]
    return look.report("verify", [_verify_one(look, blob) for blob in (*look.store.blobs, *others)])


def _wanted(blob: StoreBlob) -> Wanted:
    return Wanted(blob.descriptor.hex, blob.descriptor.size)


def _verify_one(look: _Look, blob: StoreBlob) -> BlobReport:
    blank = look.blank(blob)
    found = check_blob(blank.path, _wanted(blob), look.sidecar_of(blank.digest), jobs=look.request.jobs, progress=look.request.progress)
    return _state(look, blank, found)


def _state(look: _Look, blank: BlobReport, found: Healing, action: str = "") -> BlobReport:
    message = found.message
    if message == MISSING:
        begun = look.store.partial_of(blank.digest)
        message = f"missing; a download of it has begun: {os.path.basename(begun)}" if begun else "missing"
        name = blank.users[0] if blank.users else ""
        message += f"; 'ollama pull {name}' gets it" if name else ""
    return replace(report_with(blank, found, action), message=message)


def protect_store(request: StoreRequest) -> BlobsReport:
    """Make sidecars for the blobs that models need. A blob that is not what its name says is not protected.

    Raises:
        InputError: there is no such store or model.
    """
    from bitward.protecting import Request as ProtectPaths
    from bitward.protecting import protect_paths

    look = _Look(request)
    blobs = []
    for blob in look.store.blobs:
        blank = look.blank(blob)
        if not os.path.lexists(blank.path):
            blobs.append(_state(look, blank, Healing(Verdict.DAMAGED, message=MISSING, exit_code=ExitCode.NOT_REPAIRABLE)))
            continue
        if blank.sidecar and not request.force and not why_foreign(blank.sidecar, _wanted(blob)):
            kept = _verify_one(look, blob)
            blobs.append(replace(kept, action="kept", message=kept.message or "has a sidecar already"))
            continue
        if blank.sidecar and (found := _verify_one(look, blob)).exit_code:
            blobs.append(replace(found, message=f"not protected: {found.message}"))
            continue
        # What has its digest may get a new sidecar in the place of an old one; what has not is never protected as it is.
        paths = ProtectPaths(request.preset, request.leaf_hash, None, bool(blank.sidecar), request.jobs, request.progress)
        (made,) = protect_paths([blank.path], look.sidecar_dir, paths).files
        verdict = VERDICT_OF_CODE[made.exit_code]
        done = replace(look.blank(blob), verdict=verdict, message=made.message, exit_code=made.exit_code)
        blobs.append(done if made.exit_code else replace(done, action="protected"))
    return look.report("protect", blobs)


def repair_store(request: StoreRequest) -> BlobsReport:
    """Make the blobs that models need whole again.

    Raises:
        InputError: there is no such store or model, or a source is none.
        MissingExtraError: a registry is to be asked, and httpx is not installed.
    """
    look = _Look(request)
    with ExitStack() as stack:
        origins = _Origins(look, stack)
        return look.report("repair", [_repair_one(look, blob, origins) for blob in look.store.blobs])


Whole = Callable[[], Iterator[bytes]]


class _Origins:
    """The sources of a repair: what each has of a blob, as a copy to take ranges from, and as a whole if that may be read."""

    def __init__(self, look: _Look, stack: ExitStack) -> None:
        self._look, self._stack = look, stack
        self._budget = Budget(look.request.limits.max_fetch_bytes)
        self._repositories: dict[Reference, Repository] = {}
        for source in look.request.sources:
            if source == REGISTRY or scheme_of(source) in ("http", "https"):
                continue
            if not os.path.isdir(os.path.join(resolve(source), "blobs")):
                raise InputError(f"{source}: neither '{REGISTRY}', nor the URL of a registry, nor the folder of an Ollama store")
            if os.path.samefile(source, look.store.folder):
                raise InputError(f"{source}: is the store that is to be repaired")

    def of(self, blob: StoreBlob) -> tuple[list[CopySource], list[Whole]]:
        """What the sources have of a blob, in their order. Raises InputError, MissingExtraError."""
        copies: list[CopySource] = []
        whole: list[Whole] = []
        for source in self._look.request.sources:
            address = WebAddress(source) if scheme_of(source) in ("http", "https") else None
            if address is not None or source == REGISTRY:
                self._add_registry(blob, address, copies, whole)
            else:
                self._add_store(blob, resolve(source), copies, whole)
        return copies, whole

    def _add_store(self, blob: StoreBlob, other: str, copies: list[CopySource], whole: list[Whole]) -> None:
        digest = blob.descriptor.digest
        path = os.path.join(other, "blobs", digest.replace(":", "-", 1))
        if os.path.isfile(path):
            copies.append(CopySource(LocalPlace(path, self._look.store.path_of(digest)), [""], os.path.basename(path), Meter()))
            whole.append(partial(_chunks, resolve(path), blob.descriptor.size))

    def _add_registry(self, blob: StoreBlob, address: WebAddress | None, copies: list[CopySource], whole: list[Whole]) -> None:
        from bitward.registries.oci_client import Repository
        from bitward.registries.oci_credentials import Credentials

        reference = _reference(blob.users[0], address)
        if reference not in self._repositories:
            given = Credentials(address.user, address.password) if address is not None and address.user else None
            limits = self._look.request.limits
            self._repositories[reference] = self._stack.enter_context(Repository(reference, limits, given, self._budget))
        repository = self._repositories[reference]
        copies.append(repository.source(blob.descriptor, blob.descriptor.digest.replace(":", "-", 1)))
        if self._look.request.limits.allow_full_download:
            whole.append(partial(repository.blob, blob.descriptor))


def _chunks(path: str, size: int) -> Iterator[bytes]:
    with OpenFile(path) as file:
        for offset in range(0, min(size, file.state().size), _CHUNK_BYTES):
            yield file.read(offset, min(_CHUNK_BYTES, size - offset))


def _reference(name: ModelName, address: WebAddress | None) -> Reference:
    """Where a model's blobs are: at the host that its name tells, unless another is given."""
    host = name.host
    scheme = "http" if is_loopback(host) else "https"
    if address is not None:
        scheme, _, host = address.name.rstrip("/").partition("://")
    return Reference(scheme, host, f"{name.namespace}/{name.model}", name.tag, "")


def _repair_one(look: _Look, blob: StoreBlob, origins: _Origins) -> BlobReport:
    blank, one = look.blank(blob), blob.descriptor
    ward, wanted = look.sidecar_of(one.digest), _wanted(blob)
    jobs, progress = look.request.jobs, look.request.progress
    found = check_blob(blank.path, wanted, ward, jobs=jobs, progress=progress)
    if found.verdict is Verdict.INTACT or look.request.dry_run:
        return _state(look, blank, found)
    from bitward.registries.blob_healing import heal_blob  # loads NumPy: only where there is damage

    copies: list[CopySource] = []
    try:
        copies, whole = origins.of(blob)
        done = heal_blob(blank.path, wanted, ward, copies, found, whole=whole, jobs=jobs, progress=progress)
    except (BitwardError, FormatError, OSError) as error:
        return failed(blank, error)
    finally:
        for copy in copies:
            copy.close()
    return _state(look, look.blank(blob), done, "healed" if done.verdict is Verdict.INTACT else "")
