"""A Hugging Face cache as it lies on the disk: repositories, blobs, what leads to them. Only looks, and follows no link out of its place.

The layout is that of ``huggingface_hub`` 2.4 ("Understand caching", ``_shared_blobs``, ``_tree_cache``): ``KIND--ORG--NAME/`` with
``blobs/ETAG``, ``snapshots/COMMIT/NAME`` that link to them, ``refs/``, ``trees/COMMIT.json``; where a file came through Xet, ``blobs/ETAG``
may itself be a link into ``blobs/HH/XETHASH`` of the whole cache. All of it may have been changed by anybody who can write there.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from bitward.registries.hf_facts import Problem, ProblemKind
from bitward_agent.errors import BitwardError, InputError
from bitward_agent.hub_cache import shared_payload
from bitward_agent.io import OpenFile, resolve
from bitward_agent.sources.hub import cache_folder
from bitward_agent.units import is_ours
from bitward_formats import frozen
from bitward_formats.checksums import etag_part, is_hub_repository
from bitward_formats.errors import HubListingError
from bitward_formats.hub_listing import LISTING_LIMIT_BYTES, HubFile, is_commit, read_tree_cache

ENTRIES_LIMIT = 1_000_000
"""Most entries of one repository's folder."""
_REF_LIMIT_BYTES = 4096
KINDS = ("models", "datasets", "spaces", "kernels")
_NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)?", re.ASCII)
_SYSTEM_FILES = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})


@frozen.dataclass(frozen=True, slots=True)
class RepoName:
    """A repository: its kind, ``models`` where nothing else is said, and its name."""

    kind: str
    name: str

    @property
    def folder(self) -> str:
        """Its folder's name in the cache."""
        return "--".join([self.kind, *self.name.split("/")])

    @property
    def shown(self) -> str:
        """As people write it."""
        return self.name if self.kind == "models" else f"{self.kind}/{self.name}"


def parse_repo(text: str) -> RepoName:
    """``ORG/NAME`` or ``NAME``, with ``datasets/``, ``spaces/`` or ``kernels/`` before it for those kinds.

    Raises:
        InputError: it is no such name.
    """
    kind, _, rest = text.partition("/")
    kind, name = (kind, rest) if kind in KINDS and rest else ("models", text)
    if not _NAME.fullmatch(name) or any(part in (".", "..") or "--" in part for part in name.split("/")):
        raise InputError(f"{text!r}: a repository is ORG/NAME, or datasets/ORG/NAME")
    return RepoName(kind, name)


@frozen.dataclass(frozen=True, slots=True)
class Blob:
    """A file under its digest's name. ``path`` is where its bytes lie, which is elsewhere where it is shared; ``size`` in bytes."""

    name: str
    path: str
    size: int
    is_shared: bool = False


@frozen.dataclass(frozen=True, slots=True)
class Pointer:
    """A file of a snapshot: ``blob`` is the name of the one it leads to, empty where the bytes lie in the snapshot itself."""

    commit: str
    relative: str
    path: str
    blob: str


@dataclass(slots=True)
class CachedRepo:
    """One repository as it lies there."""

    name: RepoName
    path: str
    blobs: dict[str, Blob] = field(default_factory=dict)
    pointers: list[Pointer] = field(default_factory=list)
    revisions: list[str] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)
    trees: dict[str, dict[str, HubFile]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def tell(self, kind: ProblemKind, path: str, message: str) -> None:
        self.problems.append(Problem(self.name.shown, kind, path, message))

    def names_of(self) -> dict[str, list[str]]:
        """Blob to its names in snapshots."""
        found: dict[str, list[str]] = {}
        for one in self.pointers:
            if one.blob:
                found.setdefault(one.blob, []).append(f"{one.commit}/{one.relative}")
        return found


def cache_root(cache_dir: str | None) -> str:
    """The cache's real folder: what was named, or where ``huggingface_hub`` has it.

    Raises:
        InputError: it is not there.
    """
    root = resolve(cache_dir if cache_dir is not None else cache_folder())
    if not os.path.isdir(root):
        raise InputError(f"{root}: no such folder; --cache-dir, HF_HUB_CACHE or HF_HOME say where the cache is")
    return root


def list_repos(root: str, wanted: list[RepoName]) -> tuple[list[RepoName], list[Problem]]:
    """The repositories of a cache, or of them those that are wanted.

    Raises:
        InputError: one that is wanted is not in the cache.
    """
    problems: list[Problem] = []
    found: list[RepoName] = []
    with os.scandir(root) as entries:
        folders = sorted((one for one in entries if is_hub_repository(one.name)), key=lambda one: one.name)
    for entry in folders:
        kind, _, rest = entry.name.partition("--")
        name = RepoName(kind, rest.replace("--", "/"))
        if wanted and name not in wanted:
            continue
        if entry.is_dir(follow_symlinks=False):
            found.append(name)
        else:
            told = "is no folder" if not entry.is_symlink() else "is a link, which is not followed: name the cache it leads to, --cache-dir"
            problems.append(Problem(name.shown, ProblemKind.FOREIGN_LINK, entry.path, told))
    refused = {one.repo for one in problems}
    for one in wanted:
        if one not in found and one.shown not in refused:
            raise InputError(f"{one.shown}: not in the cache {root}; 'bitward hf pull' fetches it")
    return found, problems


def read_repo(root: str, name: RepoName) -> CachedRepo:
    """Look at one repository's folder. What is wrong in it is told in ``problems``."""
    repo = CachedRepo(name, os.path.join(root, name.folder))
    left = ENTRIES_LIMIT
    for reader in (_read_blobs, _read_snapshots, _read_refs, _read_trees):
        try:
            left -= reader(repo, root, left)
        except OSError as error:
            repo.tell(ProblemKind.UNREADABLE, str(error.filename or repo.path), f"cannot be listed: {error.strerror}")
        if left < 0:
            repo.tell(ProblemKind.UNREADABLE, repo.path, f"more than {ENTRIES_LIMIT:,} entries: the rest was not looked at")
            break
    _check_refs_and_links(repo)
    if not repo.blobs and not repo.pointers and not repo.problems:
        repo.tell(ProblemKind.UNREADABLE, repo.path, "holds no files: nothing of this repository was looked at")
    return repo


def _entries(folder: str, limit: int) -> Iterator[os.DirEntry[str]]:
    """What is in a folder, sorted, at most ``limit`` and one."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            found.append(entry)
            if len(found) > limit:
                break
    yield from sorted(found, key=lambda one: one.name)


def _below(folder: str, limit: int) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """(relative path, entry) of all that is no folder; folders that are links are not entered. Not recursive."""
    stack = [("", _entries(folder, limit))]
    while stack:
        prefix, entries = stack[-1]
        entry = next(entries, None)
        if entry is None:
            stack.pop()
        elif entry.is_dir(follow_symlinks=False):
            stack.append((f"{prefix}{entry.name}/", _entries(entry.path, limit)))
        else:
            yield prefix + entry.name, entry


def _is_real_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def _read_blobs(repo: CachedRepo, root: str, limit: int) -> int:
    folder = os.path.join(repo.path, "blobs")
    if not _is_real_folder(folder):
        return 0
    entries = list(_entries(folder, limit))
    for entry in entries:
        if entry.name.endswith((".incomplete", ".shared")):
            size = entry.stat(follow_symlinks=False).st_size
            repo.tell(ProblemKind.INCOMPLETE, entry.path, f"{size} bytes of a download that did not end; 'bitward hf pull' takes it up")
        elif is_ours(entry.name) or entry.name in _SYSTEM_FILES:
            continue
        elif entry.is_symlink():
            payload = shared_payload(entry.path, root)
            if payload is None:
                repo.tell(ProblemKind.FOREIGN_LINK, entry.path, "leads out of the repository's blobs: it was not followed")
            else:
                repo.blobs[entry.name] = Blob(entry.name, payload, os.lstat(payload).st_size, is_shared=True)
        elif entry.is_file(follow_symlinks=False):
            repo.blobs[entry.name] = Blob(entry.name, entry.path, entry.stat(follow_symlinks=False).st_size)
        else:
            repo.tell(ProblemKind.UNREADABLE, entry.path, "is no regular file: it was not read")
    return len(entries)


def _read_snapshots(repo: CachedRepo, root: str, limit: int) -> int:  # noqa: ARG001 - as the other readers
    folder = os.path.join(repo.path, "snapshots")
    if not _is_real_folder(folder):
        repo.tell(ProblemKind.UNREADABLE, folder, "no snapshots: nothing of this repository can be loaded")
        return 0
    blobs = os.path.join(repo.path, "blobs")
    count = 0
    for entry in _entries(folder, limit):
        if entry.is_dir(follow_symlinks=False):
            repo.revisions.append(entry.name)
        elif entry.name not in _SYSTEM_FILES:
            repo.tell(ProblemKind.FOREIGN_LINK, entry.path, "is no folder of a revision: it was not looked into")
    for revision in repo.revisions:
        for relative, entry in _below(os.path.join(folder, revision), limit):
            count += 1
            if count > limit:
                return count
            if entry.is_symlink():
                blob = _target_in(entry.path, blobs)
                if blob is None:
                    repo.tell(ProblemKind.FOREIGN_LINK, entry.path, "leads out of the repository's blobs: it was not followed")
                else:
                    repo.pointers.append(Pointer(revision, relative, entry.path, blob))
            elif entry.is_file(follow_symlinks=False):
                if entry.name not in _SYSTEM_FILES and not is_ours(entry.name):
                    repo.pointers.append(Pointer(revision, relative, entry.path, ""))
            else:
                repo.tell(ProblemKind.UNREADABLE, entry.path, "is no regular file: it was not read")
    return count


def _target_in(link: str, folder: str) -> str | None:
    """The name in ``folder`` to which a link leads, there or not; ``None`` if it leads elsewhere."""
    try:
        target = os.path.join(os.path.dirname(link), os.readlink(link))
    except OSError:
        return None
    name = os.path.basename(target)
    return name if name not in ("", ".", "..") and os.path.realpath(os.path.dirname(target)) == folder else None


def _read_refs(repo: CachedRepo, root: str, limit: int) -> int:  # noqa: ARG001 - as the other readers
    folder = os.path.join(repo.path, "refs")
    if not _is_real_folder(folder):
        return 0
    count = 0
    for relative, entry in _below(folder, limit):
        count += 1
        if count > limit:
            break
        if entry.name in _SYSTEM_FILES or relative.endswith(".tmp"):
            continue
        try:
            with OpenFile(entry.path) as file:
                text = file.read(0, _REF_LIMIT_BYTES).decode("ascii").strip()
        except (BitwardError, UnicodeError):
            repo.tell(ProblemKind.BAD_REF, entry.path, "cannot be read as the name of a commit")
            continue
        repo.refs[relative] = text
    return count


def _read_trees(repo: CachedRepo, root: str, limit: int) -> int:  # noqa: ARG001 - as the other readers
    """The listings that the hub's library keeps. One that is damaged says nothing, as for the library itself, but that is told."""
    folder = os.path.join(repo.path, "trees")
    if not _is_real_folder(folder):
        return 0
    entries = list(_entries(folder, limit))
    for entry in entries:
        commit = entry.name.removesuffix(".json")
        if not is_commit(commit) or commit == entry.name or commit not in repo.revisions:
            continue
        try:
            with OpenFile(entry.path) as file:
                if file.state().size > LISTING_LIMIT_BYTES:
                    raise HubListingError("too long")
                repo.trees[commit] = read_tree_cache(file.read(0, LISTING_LIMIT_BYTES))
        except (BitwardError, HubListingError) as error:
            told = f"the revision's listing cannot be used: {error}; remove it, the hub's library makes it anew"
            repo.tell(ProblemKind.UNREADABLE, entry.path, told)
    return len(entries)


def _check_refs_and_links(repo: CachedRepo) -> None:
    for ref, commit in repo.refs.items():
        path = os.path.join(repo.path, "refs", *ref.split("/"))
        if not is_commit(commit):
            repo.tell(ProblemKind.BAD_REF, path, "holds no name of a commit")
        elif commit not in repo.revisions:
            repo.tell(ProblemKind.BAD_REF, path, f"names {commit}, of which no snapshot is there; 'bitward hf pull' fetches it")
    named = {one.blob for one in repo.pointers}
    refused = {one.path for one in repo.problems if one.kind is ProblemKind.FOREIGN_LINK}
    for one in repo.pointers:
        listed = repo.trees.get(one.commit, {}).get(one.relative)
        if one.blob and one.blob not in repo.blobs and os.path.join(repo.path, "blobs", one.blob) not in refused:
            repo.tell(ProblemKind.BROKEN_LINK, one.path, f"its blob {one.blob} is gone; 'bitward hf pull {repo.name.shown}' fetches it")
        elif one.blob and listed is not None and listed.etag != one.blob and etag_part(one.blob) is not None:
            repo.tell(ProblemKind.WRONG_LINK, one.path, f"leads to {one.blob}, but the revision's listing says {listed.etag}")
    for name, blob in repo.blobs.items():
        if name not in named:
            repo.tell(ProblemKind.UNREFERENCED, blob.path, f"no snapshot has it ({blob.size} bytes)")
