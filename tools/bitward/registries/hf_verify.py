"""``bitward hf verify``: each blob of a cache once against its digest, and whether everything leads where it should. Reads only."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import field, replace

from bitward.registries.blob_reading import Reading, read_blob
from bitward.registries.blob_suspects import suspects
from bitward.registries.hf_cache import Blob, CachedRepo, Pointer, RepoName, cache_root, list_repos, parse_repo, read_repo
from bitward.registries.hf_facts import BlobVerification, CacheVerification, Problem, ProblemKind, RepoVerification
from bitward.registries.hf_sidecars import no_sidecar, sidecar_for, sidecars_of
from bitward.targets import VERDICT_OF_CODE
from bitward_agent.errors import BitwardError
from bitward_agent.findings import ExitCode, FileVerification, Progress, ProgressSink, SidecarReport, SidecarState, Verdict
from bitward_agent.verify import FlipBudget, open_sidecar, verify_file
from bitward_formats.checksums import Part, etag_part
from bitward_formats.errors import FormatError
from bitward_formats.frozen import dataclass
from bitward_formats.hub_listing import HubFile, is_commit

DEFAULT_JOBS = 4
SUSPECTS_SHOWN = 100

Online = Callable[[RepoName, str], dict[str, HubFile]]
"""The listing of a commit, from the server. Raises SourceError."""


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """What to verify. Without ``repos`` the whole cache; with ``online`` the hub says which digests its files have."""

    repos: tuple[str, ...] = ()
    cache_dir: str | None = None
    sidecar_dir: str | None = None
    online: bool = False
    jobs: int | None = None
    progress: ProgressSink | None = None
    budget: FlipBudget = field(default_factory=FlipBudget)


@dataclass(frozen=True, slots=True)
class Expected:
    """What a blob should be, and who says so; ``size`` is ``None`` where nobody does."""

    part: Part | None
    size: int | None
    evidence: str


_Todo = tuple[Blob, Expected, list[str]]
"""A blob, what it should be, and its names in snapshots."""


def verify_cache(request: VerifyRequest) -> CacheVerification:
    """Verify a cache or some of its repositories.

    Raises:
        InputError: no such cache, or a repository that is not in it.
        MissingExtraError, SourceError: with ``online``, the server cannot be asked at all.
    """
    started = time.monotonic()
    root = cache_root(request.cache_dir)
    sidecars = sidecars_of(root, request.sidecar_dir)
    names, problems = list_repos(root, [parse_repo(one) for one in request.repos])
    asked = 0
    if request.online and names:
        from bitward.registries.hf_server import HubServer, limits_of
        from bitward_agent.sources.limits import Budget

        limits = limits_of(None)
        with HubServer(limits, Budget(limits.max_fetch_bytes)) as server:
            repos = [verify_repo(read_repo(root, name), sidecars, request, server.files_of) for name in names]
            asked = server.meter.fetched_bytes
    else:
        repos = [verify_repo(read_repo(root, name), sidecars, request) for name in names]
    repos += [RepoVerification(one.repo, one.path, (), {}, (), (one,)) for one in problems]
    code = ExitCode.worst(one.exit_code for one in repos) if repos else ExitCode.CANNOT_TELL  # nothing was looked at: that is not fine
    size = sum(blob.bytes for repo in repos for blob in repo.blobs)
    seconds = time.monotonic() - started
    return CacheVerification("bitward.hf-verify/1", VERDICT_OF_CODE[code], root, sidecars, size, seconds, tuple(repos), asked, code)


def verify_repo(repo: CachedRepo, sidecars: str, request: VerifyRequest, online: Online | None = None) -> RepoVerification:
    """Verify one repository."""
    listings = dict(repo.trees)
    sources = dict.fromkeys(listings, "the revision's listing in the cache")
    if online is not None:
        for commit in filter(is_commit, repo.revisions):
            try:
                listings[commit], sources[commit] = online(repo.name, commit), "the hub's listing"
            except BitwardError as error:
                repo.tell(ProblemKind.UNREADABLE, os.path.join(repo.path, "snapshots", commit), f"the hub could not be asked: {error}")
        _hold_against(repo, listings, sources)
    expected = expectations(repo, listings, sources)
    names = repo.names_of()
    todo: list[_Todo] = [(one, expected[one.name], names.get(one.name, [])) for one in _sorted(repo)]
    todo += [_copy(one, listings, sources) for one in repo.pointers if not one.blob]
    with ThreadPoolExecutor(request.jobs or min(DEFAULT_JOBS, os.cpu_count() or 1), "bitward-hash") as pool:
        found = tuple(pool.map(lambda one: _verify_blob(repo, one, sidecars, request), todo))
    problems = _sorted_problems(repo.problems)
    return RepoVerification(repo.name.shown, repo.path, tuple(repo.revisions), dict(repo.refs), found, problems)


def _sorted(repo: CachedRepo) -> list[Blob]:
    """Largest first, so that no thread is left alone with it at the end."""
    return sorted(repo.blobs.values(), key=lambda one: (-one.size, one.name))


def _sorted_problems(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    return tuple(sorted(problems, key=lambda one: (-ExitCode.SEVERITY.index(one.exit_code), one.path)))


def _hold_against(repo: CachedRepo, listings: dict[str, dict[str, HubFile]], sources: dict[str, str]) -> None:
    """Links that lead to other contents than the server's listing says."""
    for one in repo.pointers:
        listed = listings.get(one.commit, {}).get(one.relative)
        told = any(problem.kind is ProblemKind.WRONG_LINK and problem.path == one.path for problem in repo.problems)
        if one.blob and listed is not None and listed.etag != one.blob and etag_part(one.blob) is not None and not told:
            repo.tell(ProblemKind.WRONG_LINK, one.path, f"leads to {one.blob}, but {sources[one.commit]} says {listed.etag}")


def expectations(repo: CachedRepo, listings: dict[str, dict[str, HubFile]], sources: dict[str, str]) -> dict[str, Expected]:
    """Blob to what it should be. Its name comes first; where that is no digest, what a listing says of a file that leads to it."""
    found = {}
    listed: dict[str, tuple[HubFile, str]] = {}
    for one in repo.pointers:
        file = listings.get(one.commit, {}).get(one.relative)
        if one.blob and file is not None and (file.etag == one.blob or etag_part(one.blob) is None):
            listed.setdefault(one.blob, (file, sources[one.commit]))
    for name in repo.blobs:
        part = etag_part(name)
        file, source = listed.get(name, (None, ""))
        size = file.size if file is not None else None
        if part is not None:
            found[name] = Expected(part, size, "its name" + (f" and {source}" if source else ""))
        else:
            found[name] = Expected(file.part if file is not None else None, size, source)
    return found


def _copy(pointer: Pointer, listings: dict[str, dict[str, HubFile]], sources: dict[str, str]) -> _Todo:
    """A file that lies in its snapshot itself, where links are not used: only a listing can say what it should be."""
    file = listings.get(pointer.commit, {}).get(pointer.relative)
    try:
        size = os.lstat(pointer.path).st_size
    except OSError:
        size = 0
    expected = Expected(file.part, file.size, sources[pointer.commit]) if file is not None else Expected(None, None, "")
    return Blob(file.etag if file is not None else "", pointer.path, size), expected, [f"{pointer.commit}/{pointer.relative}"]


def _verify_blob(repo: CachedRepo, todo: _Todo, sidecars: str, request: VerifyRequest) -> BlobVerification:
    blob, expected, names = todo
    sidecar_path = sidecar_for(sidecars, repo, blob) if blob.name else ""
    found = BlobVerification(
        repo=repo.name.shown,
        blob=blob.name,
        path=blob.path,
        files=tuple(names),
        verdict=Verdict.UNVERIFIABLE,
        bytes=blob.size,
        expected_bytes=expected.size,
        algorithm="" if expected.part is None else expected.part.algorithm.value,
        evidence=expected.evidence,
        sidecar=_sidecar_report(sidecar_path),
    )
    if expected.part is None:
        hint = "" if request.online else "; --online asks the hub"
        return replace(found, message=f"its name is no digest, and no listing at hand tells what it should be{hint}")

    def told(done: int, total: int) -> None:
        if request.progress:
            request.progress(Progress("verify", blob.path, done, total))

    try:
        reading = read_blob(blob.path, expected.part, told)
        if reading.is_right:
            return replace(found, verdict=Verdict.INTACT, bytes=reading.size)
        lost = suspects(blob.path, expected.size, reading.unreadable)
        check = _by_sidecar(blob, sidecar_path, request)
    except (BitwardError, OSError) as error:
        return replace(found, message=str(error).removeprefix(f"{blob.path}: "))
    return replace(
        found,
        verdict=Verdict.DAMAGED,
        bytes=reading.size,
        suspects=lost[:SUSPECTS_SHOWN],
        message=f"does not have the {expected.part.algorithm.value} of {expected.evidence}: {in_words(reading, expected.size, lost)}",
        check=check,
    )


def in_words(reading: Reading, expected_bytes: int | None, lost: Sequence[tuple[int, int]]) -> str:
    """What is wrong with a damaged blob, as far as its bytes tell."""
    told = []
    if expected_bytes is not None and reading.size < expected_bytes:
        told.append(f"truncated: {expected_bytes - reading.size:,} of {expected_bytes:,} bytes are missing at its end")
    elif expected_bytes is not None and reading.size > expected_bytes:
        told.append(f"{reading.size - expected_bytes:,} bytes too long")
    if reading.unreadable:
        told.append(f"{sum(high - low for low, high in reading.unreadable):,} bytes cannot be read")
    zeros = [(low, high) for low, high in lost if high <= reading.size and (low, high) not in reading.unreadable]
    if zeros:
        low, high = max(zeros, key=lambda one: one[1] - one[0])
        told.append(f"{sum(b - a for a, b in zeros):,} bytes of zeroed pages, most at bytes {low:,} to {high - 1:,}")
    if not told:
        told.append("overwritten: nothing in its bytes shows where")
    return "; ".join(told)


def _sidecar_report(path: str) -> SidecarReport:
    """Whether a blob's sidecar could be used if it were needed; an intact one need not be read in full for that."""
    if not path:
        return no_sidecar()
    try:
        ward, _, lost = open_sidecar(path)
        ward.close()
    except (FormatError, BitwardError) as error:
        return SidecarReport(path, SidecarState.DAMAGED, 0, str(error))
    return SidecarReport(path, SidecarState.DAMAGED if lost else SidecarState.INTACT, len(lost))


def _by_sidecar(blob: Blob, sidecar_path: str, request: VerifyRequest) -> FileVerification | None:
    """What a damaged blob's sidecar names."""
    return verify_file(blob.path, sidecar_path, jobs=1, budget=request.budget) if sidecar_path else None
