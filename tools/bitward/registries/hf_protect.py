"""``bitward hf protect``: sidecars of a cache's blobs, in a folder beside it. The cache itself is only read.

A blob is protected only if it has the digest that its name is. So a sidecar here vouches for what the hub served, and an older one that
is damaged may always be made anew.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace

from bitward.registries.hf_cache import Blob, CachedRepo, cache_root, list_repos, parse_repo, read_repo
from bitward.registries.hf_facts import ProblemKind
from bitward.registries.hf_sidecars import mirrored, sidecars_of, vouches_for
from bitward_agent.durable import make_folder
from bitward_agent.errors import BitwardError, UntrustedError
from bitward_agent.findings import ExitCode, FileProtection, ProgressSink, ProtectReport, SidecarState, UnitReport, Verdict
from bitward_agent.io import resolve
from bitward_agent.protect import Protection, preset_groups, protect_file
from bitward_agent.units import write_index
from bitward_agent.verify import verify_file
from bitward_formats.checksums import Algorithm, Claim, etag_part
from bitward_formats.digest import LeafHash, leaf_function
from bitward_formats.errors import FormatError
from bitward_formats.frozen import dataclass
from bitward_formats.spans import Role
from bitward_formats.unit_index import UNIT_INDEX_NAME, UnitEntry

_NEXT = "'bitward hf pull' heals it"


@dataclass(frozen=True, slots=True)
class ProtectRequest:
    """What to protect, and how. Without ``repos`` the whole cache."""

    repos: tuple[str, ...] = ()
    cache_dir: str | None = None
    sidecar_dir: str | None = None
    preset: str = "standard"
    leaf_hash: LeafHash = LeafHash.XXH3
    jobs: int | None = None
    progress: ProgressSink | None = None


def protect_cache(request: ProtectRequest) -> ProtectReport:
    """Protect a cache or some of its repositories.

    Raises:
        InputError: no such cache, or a repository that is not in it.
    """
    started = time.monotonic()
    preset_groups(request.preset)
    leaf_function(request.leaf_hash)
    root = cache_root(request.cache_dir)
    sidecars = sidecars_of(root, request.sidecar_dir)
    names, problems = list_repos(root, [parse_repo(one) for one in request.repos])
    files: list[FileProtection] = []
    units = [UnitReport(one.path, "", SidecarState.MISSING, message=one.message) for one in problems]
    for name in names:
        made, unit = _protect_repo(read_repo(root, name), sidecars, request)
        files += made
        units.append(unit)
    code = ExitCode.worst([*(one.exit_code for one in files), *(one.exit_code for one in units)]) if units else ExitCode.CANNOT_TELL
    size, seconds = sum(one.bytes for one in files), time.monotonic() - started
    return ProtectReport("bitward.protect/1", size, seconds, tuple(files), tuple(units), code)


def _protect_repo(repo: CachedRepo, sidecars: str, request: ProtectRequest) -> tuple[list[FileProtection], UnitReport]:
    names = repo.names_of()
    files = []
    for name, blob in repo.blobs.items():
        known = names.get(name)
        shown = os.path.join(repo.path, "snapshots", known[0]) if known else blob.path
        files.append(protect_blob(repo, blob, shown, sidecars, request))
    skipped = tuple(f"{one.path} ({one.message})" for one in repo.problems if one.kind is not ProblemKind.UNREFERENCED)
    skipped += tuple(f"{one.path} (lies in its snapshot itself: 'bitward protect' protects it)" for one in repo.pointers if not one.blob)
    report = UnitReport(repo.path, "", SidecarState.MISSING, skipped=skipped)
    if not repo.blobs:
        return [], replace(report, message="no blobs in it: nothing was protected")
    if any(one.exit_code for one in files):
        return files, replace(report, message="not every blob could be protected: the repository's index was not written")
    entries = [
        UnitEntry(os.fsencode(f"blobs/{name}"), one.bytes, bytes.fromhex(one.root)) for name, one in zip(repo.blobs, files, strict=True)
    ]
    try:
        root = write_index(os.path.join(resolve(sidecars), repo.name.folder, UNIT_INDEX_NAME), entries, time.time_ns())
    except (BitwardError, OSError) as error:
        return files, replace(report, message=str(error))
    return files, replace(report, root=root.hex(), state=SidecarState.INTACT)


def protect_blob(repo: CachedRepo, blob: Blob, shown: str, sidecars: str, request: ProtectRequest) -> FileProtection:
    """Protect one blob, unless it has a sidecar already that vouches for it as it is."""
    sidecar = mirrored(sidecars, repo, blob.name)
    failed = FileProtection(shown, 0, sidecar, 0, "", "", request.preset, "", 0, 0)
    part = etag_part(blob.name)
    claims = () if part is None else (Claim("the blob's name in the hub cache", (part,)),)
    try:
        kept = _kept(blob, sidecar, shown, request) if os.path.lexists(sidecar) else None
        if kept is not None:
            return kept
        make_folder(os.path.dirname(sidecar))
        made = protect_file(
            blob.path,
            sidecar,
            Protection(
                groups=preset_groups(request.preset),
                preset=request.preset,
                leaf_hash=request.leaf_hash,
                protected_ns=time.time_ns(),
                trusted_sha256=part.digest if part is not None and part.algorithm is Algorithm.SHA256 else bytes(32),
                claims=claims,
                origin="trusted" if claims else "first-seen",
            ),
            jobs=request.jobs,
            progress=request.progress,
        )
    except UntrustedError as error:
        told = str(error).removeprefix(f"{blob.path}: ").partition(": not protected")[0]
        return _with(failed, f"{told}: not protected; {_NEXT}", ExitCode.NOT_REPAIRABLE)
    except (BitwardError, FormatError, OSError) as error:
        return _with(failed, str(error).removeprefix(f"{blob.path}: "), ExitCode.CANNOT_TELL)
    block = made.superblock
    return FileProtection(
        path=shown,
        bytes=block.file_bytes,
        sidecar=sidecar,
        sidecar_bytes=made.sidecar_bytes,
        root=block.root.hex(),
        origin=block.origin_label,
        preset=request.preset,
        format=made.layout.format_name,
        tensors=sum(span.role is Role.TENSOR for span in made.layout.spans),
        blocks=block.block_count,
        note=made.layout.note,
        evidence=tuple(f"{claim.parts[0].algorithm.value} as in {claim.source}" for claim in claims),
    )


def _kept(blob: Blob, sidecar: str, shown: str, request: ProtectRequest) -> FileProtection | None:
    """The report of a blob whose sidecar need not be made again; ``None`` if it must be."""
    try:
        if not vouches_for(sidecar, etag_part(blob.name)):
            return None
    except (BitwardError, FormatError):
        return None
    found = verify_file(blob.path, sidecar, jobs=request.jobs, progress=request.progress)
    kept = FileProtection(shown, found.bytes, sidecar, os.path.getsize(sidecar), found.root, found.origin, request.preset, "", 0, 0)
    if found.verdict is not Verdict.INTACT:
        told = f"no longer what its sidecar vouches for ({found.verdict.value}): the sidecar was kept; {_NEXT}"
        return _with(kept, told, ExitCode.NOT_REPAIRABLE)
    return None if found.sidecar.state is not SidecarState.INTACT else _with(kept, "", ExitCode.OK, "has its sidecar already")


def _with(file: FileProtection, message: str, code: int, note: str = "") -> FileProtection:
    return replace(file, message=message, exit_code=code, note=note)
