"""``bitward hf push``: sidecars beside their files in a repository of the hub. Through ``huggingface_hub``, which knows how to upload.

A sidecar goes there only if it is whole, if its file here is intact by it, and if that file is, byte for byte, the one that the repository
has now. The commit names the one that was looked at, so that the hub refuses it if somebody pushed meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from bitward.registries.blob_reading import read_blob
from bitward.registries.hf_cache import RepoName, cache_root, parse_repo, read_repo
from bitward.registries.hf_facts import PushedFile, PushReport
from bitward.registries.hf_server import HubServer, limits_of
from bitward.registries.hf_sidecars import sidecar_for, sidecars_of
from bitward_agent.errors import BitwardError, InputError, SourceError
from bitward_agent.findings import ExitCode, ProgressSink, SidecarState, Verdict
from bitward_agent.io import resolve
from bitward_agent.sources.addresses import brief
from bitward_agent.sources.hub import hub_address, hub_token
from bitward_agent.sources.limits import Budget
from bitward_agent.units import is_ours, list_unit, sidecar_base
from bitward_agent.verify import verify_file
from bitward_formats.errors import FormatError, MissingExtraError
from bitward_formats.frozen import dataclass
from bitward_formats.hub_listing import HubFile, path_refusal

MESSAGE = "Add Bitward sidecars: hashes and parity of the files"


@dataclass(frozen=True, slots=True)
class PushRequest:
    """What to push. Without ``folder`` the cache's own sidecars of the revision; else those of that folder's files."""

    repo: str
    folder: str | None = None
    revision: str = "main"
    cache_dir: str | None = None
    sidecar_dir: str | None = None
    create_pr: bool = False
    message: str = MESSAGE
    dry_run: bool = False
    progress: ProgressSink | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """A file here, its sidecar, and its path in the repository."""

    path: str
    file: str
    sidecar: str


def push(request: PushRequest) -> PushReport:
    """Push sidecars to a repository.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
        InputError: nothing has a sidecar, or there is no such repository here.
        SourceError: the hub does not answer, or refuses the commit.
    """
    hub = _library()
    name = parse_repo(request.repo)
    limits = limits_of(None)
    with HubServer(limits, Budget(limits.max_fetch_bytes)) as server:
        commit = server.commit_of(name, request.revision)
        listing = server.files_of(name, commit)
    files, pairs = [], []
    for pair in _pairs(request, name, commit):
        if os.path.getsize(pair.sidecar) > os.path.getsize(pair.file):
            continue  # whoever pulls fetches the file for less
        found = _checked(pair, listing.get(pair.path), request)
        files.append(found)
        if found.pushed:
            pairs.append(pair)
    if not files:
        raise InputError(f"{name.shown}: nothing here has a sidecar; 'bitward hf protect' or 'bitward protect' makes them")
    code = ExitCode.OK if len(pairs) == len(files) else ExitCode.CANNOT_TELL
    report = PushReport("bitward.hf-push/1", name.shown, request.revision, "", "", tuple(files), request.dry_run, code)
    if request.dry_run or not pairs:
        return report
    made = _commit(hub, name, commit, pairs, request)
    url = str(getattr(made, "pr_url", None) or getattr(made, "commit_url", ""))
    return replace(report, commit=str(getattr(made, "oid", "")), url=url)


def _library() -> Any:
    """huggingface_hub, loaded only here."""
    try:
        import huggingface_hub
    except ImportError:
        raise MissingExtraError("bitward hf push needs the extra 'hf': pip install 'bitward[hf]'") from None
    return huggingface_hub


def _pairs(request: PushRequest, name: RepoName, commit: str) -> Iterator[Pair]:
    if request.folder is not None:
        folder = resolve(request.folder)
        if not os.path.isdir(folder):
            raise InputError(f"{folder}: no such folder")
        where = None if request.sidecar_dir is None else resolve(request.sidecar_dir)
        for member in list_unit(folder, where).members:
            sidecar = os.path.join(sidecar_base(folder, where), f"{member.relative}.ward")
            sidecar = sidecar if os.path.lexists(sidecar) else member.sidecar
            if os.path.lexists(sidecar):
                yield Pair(member.relative, member.path, sidecar)
        return
    root = cache_root(request.cache_dir)
    sidecars = sidecars_of(root, request.sidecar_dir)
    repo = read_repo(root, name)
    if commit not in repo.revisions:
        raise InputError(f"{name.shown}: revision {commit} is not in the cache {root}: 'bitward hf pull' fetches it, or name a folder")
    for pointer in repo.pointers:
        blob = repo.blobs.get(pointer.blob)
        if pointer.commit == commit and blob is not None and not is_ours(pointer.relative):
            sidecar = sidecar_for(sidecars, repo, blob)
            if sidecar:
                yield Pair(pointer.relative, blob.path, sidecar)


def _checked(pair: Pair, there: HubFile | None, request: PushRequest) -> PushedFile:
    """Whether a sidecar may go to the repository; ``pushed`` says so."""
    found = PushedFile(pair.path, pair.sidecar, 0, "", pushed=False)
    try:
        if there is None or path_refusal(pair.path):
            return replace(found, message="the repository has no such file: push the file first")
        if not read_blob(pair.file, there.part).is_right:
            return replace(found, message=f"the file here is not the one that the repository has ({there.part.algorithm.value} differs)")
        check = verify_file(pair.file, pair.sidecar, progress=request.progress)
    except (BitwardError, FormatError, OSError) as error:
        return replace(found, message=str(error))
    if check.verdict is not Verdict.INTACT or check.sidecar.state is not SidecarState.INTACT:
        return replace(found, message=f"its sidecar does not fit or is damaged ({check.verdict.value}): protect it again")
    return replace(found, sidecar_bytes=os.path.getsize(pair.sidecar), root=check.root, pushed=True)


def _commit(hub: Any, name: RepoName, parent: str, pairs: list[Pair], request: PushRequest) -> Any:
    """One commit with all sidecars.

    Raises:
        SourceError: the hub refuses it. What the library says is shown in short, without credentials.
    """
    api = hub.HfApi(endpoint=hub_address("").url().rstrip("/"), token=hub_token() or False, library_name="bitward")
    kind = {"models": "model", "datasets": "dataset", "spaces": "space", "kernels": "kernel"}[name.kind]
    operations = [hub.CommitOperationAdd(path_in_repo=f"{pair.path}.ward", path_or_fileobj=pair.sidecar) for pair in pairs]
    try:
        return api.create_commit(
            name.name,
            operations,
            commit_message=request.message,
            repo_type=kind,
            revision=request.revision,
            create_pr=request.create_pr,
            parent_commit=parent,
        )
    except Exception as error:  # noqa: BLE001 - the library raises errors of its own and of several others
        raise SourceError(f"{hub_address('').name}: {name.shown}: the sidecars were not pushed: {brief(error)}") from None
