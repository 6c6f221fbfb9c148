"""Protecting a file: layout, leaves and parity into a sidecar that appears whole or not at all."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from bitward_agent.durable import atomic_file
from bitward_agent.encode import Coder, ZoneParity
from bitward_agent.errors import BusyError, InputError, WriteError
from bitward_agent.evidence import check_claims
from bitward_agent.findings import ProgressSink
from bitward_agent.io import DISK, Disk, FileState, OpenFile
from bitward_agent.neighbours import layout_of_file
from bitward_agent.page_census import Census
from bitward_formats.checksums import Claim
from bitward_formats.frozen import dataclass
from bitward_formats.groups import PRESETS, LaneGroups
from bitward_formats.merkle import file_root, span_roots
from bitward_formats.pages import PAGE_BYTES, pages_for
from bitward_formats.sidecar import Plan, metadata_pages, plan_sidecar
from bitward_formats.spans import Layout
from bitward_formats.superblock import KIND_FILE, ORIGINS, Superblock, with_salt

NAME_LIMIT_BYTES = 255
"""What file systems allow for one component of a path."""
JOURNAL_NAME_BYTES = len(".-journal.new")
"""What a repair adds to a sidecar's name; a file that could be protected but never repaired would be a trap."""


@dataclass(frozen=True, slots=True)
class Protection:
    """What to make: the lane groups and their name, the leaf hash, and what is known from elsewhere about the file.

    ``trusted_sha256`` is 32 zero bytes where nobody gives one; the file must be what all ``claims`` say. ``mtime_ns`` of ``None`` means
    the file's own, ``salt`` of ``None`` the usual one. With a ``root`` nothing is written unless the file has it.
    """

    groups: LaneGroups
    preset: str
    leaf_hash: int
    protected_ns: int = 0
    trusted_sha256: bytes = bytes(32)
    claims: tuple[Claim, ...] = ()
    first_sight: bool = False
    origin: str = "first-seen"
    layout: Layout | None = None
    mtime_ns: int | None = None
    salt: int | None = None
    root: bytes | None = None


@dataclass(frozen=True, slots=True)
class Protected:
    """A sidecar that was written; ``findings`` is what looks wrong in the file, where that was asked for."""

    superblock: Superblock
    layout: Layout
    sidecar_bytes: int
    findings: tuple[str, ...] = ()


def preset_groups(preset: str) -> LaneGroups:
    """The lane groups of a preset.

    Raises:
        InputError: there is no such preset.
    """
    try:
        return PRESETS[preset]
    except KeyError:
        raise InputError(f"no preset {preset!r}; there are {', '.join(PRESETS)}") from None


def protect_file(
    path: str,
    sidecar: str,
    protection: Protection,
    *,
    jobs: int | None = None,
    progress: ProgressSink | None = None,
    task: str = "protect",
    disk: Disk = DISK,
) -> Protected:
    """Write the sidecar of a file. The file itself is only read.

    Raises:
        UntrustedError: the file is not what one of the claims says.
        BusyError: the file changed meanwhile.
        UnreadableError, WriteError: by name and place.
    """
    if len(os.fsencode(os.path.basename(sidecar))) + JOURNAL_NAME_BYTES > NAME_LIMIT_BYTES:
        raise WriteError(f"{sidecar}: the file's name is too long for a sidecar and the journal of a repair beside it: shorten it")
    with OpenFile(path, disk=disk) as file, ThreadPoolExecutor(1, "bitward-look") as pool:
        before = file.state()
        check = pool.submit(check_claims, file, before.size, protection.claims) if protection.claims else None
        layout = protection.layout or layout_of_file(file, before.size)
        census = Census(layout) if protection.first_sight else None
        plan = plan_sidecar(layout, protection.groups, protection.leaf_hash)
        with atomic_file(sidecar, disk, mode=file.access_mode()) as target:
            superblock = _write(file, before, target, layout, plan, protection, census, jobs, progress, task)
            if protection.root not in (None, superblock.root):
                raise BusyError(f"{path}: is no longer what its sidecar vouches for: repair it again")
            if file.state() != before:
                raise BusyError(f"{path}: changed while it was read: protect it again when its writer is done")
            if check is not None:
                check.result()
        findings = _findings(file, layout, census)
    return Protected(superblock, layout, plan.total_pages * PAGE_BYTES, findings)


def _findings(file: OpenFile, layout: Layout, census: Census | None) -> tuple[str, ...]:
    if census is None or not census.stands_out():
        return ()
    from bitward_agent.first_sight import examine, in_words

    return in_words(examine(file, layout, census))


def _write(
    file: OpenFile,
    state: FileState,
    target: OpenFile,
    layout: Layout,
    plan: Plan,
    protection: Protection,
    census: Census | None,
    jobs: int | None,
    progress: ProgressSink | None,
    task: str,
) -> Superblock:
    draft = Superblock(
        kind=KIND_FILE,
        leaf_hash=protection.leaf_hash,
        origin=ORIGINS.index(protection.origin),
        groups=protection.groups,
        file_bytes=layout.file_bytes,
        mtime_ns=state.mtime_ns if protection.mtime_ns is None else protection.mtime_ns,
        protected_ns=protection.protected_ns,
        salt=0,
        total_pages=plan.total_pages,
        layout_bytes=len(plan.layout_stream),
        block_count=plan.table.count,
        root=bytes(32),
        trusted_sha256=protection.trusted_sha256,
        preset=protection.preset,
    )
    salt = with_salt(draft).salt if protection.salt is None else protection.salt
    coder = Coder(file, plan, protection.groups, protection.leaf_hash, jobs, progress, task, census)

    longest = max((max(zone.parity_stream_bytes, zone.inner_stream_bytes) for zone in plan.geometry.zones), default=0)
    scratch = memoryview(bytearray(pages_for(longest) * PAGE_BYTES))  # the coder puts one zone at a time

    def put(zone: ZoneParity) -> None:
        for section, page, stream in zone.streams():
            target.write_all(coder.coding.pages(stream, section, page, salt, scratch), page * PAGE_BYTES)

    coder.run(put)
    leaves = bytes(coder.leaves)
    roots = span_roots(layout, leaves, protection.leaf_hash, coder.leaf_bytes)
    root = file_root(layout.file_bytes, plan.layout_stream, roots)
    superblock = replace(draft, root=root, salt=salt)
    for page, pages in metadata_pages(superblock, plan.layout_stream, leaves, plan):
        target.write_all(pages, page * PAGE_BYTES)
    return superblock
