"""Healing a sidecar: anew from an intact file, or, while the file is damaged, what its own redundancy gives."""

from __future__ import annotations

from bitward_agent.durable import atomic_file
from bitward_agent.findings import ProgressSink, SidecarReport, SidecarState
from bitward_agent.io import Disk
from bitward_agent.protect import Protection, protect_file
from bitward_agent.verify import OpenPair
from bitward_formats.pages import PAGE_BYTES, Section, mend_flip
from bitward_formats.sidecar import metadata_pages

_COPY_PAGES = 256
_SEARCHED_PAGES_LIMIT = 64
"""Pages on which the search for a flipped bit, 20 ms each, is spent."""


def heal_sidecar(
    path: str, pair: OpenPair, *, file_is_intact: bool, jobs: int | None, progress: ProgressSink | None, disk: Disk
) -> SidecarReport:
    """Put the sidecar's bad pages right, if there are any; the result is byte for byte the sidecar that was made first."""
    if not pair.lost:
        return pair.sidecar_report()
    if file_is_intact:
        block = pair.sidecar.superblock
        protection = Protection(
            groups=block.groups,
            preset=block.preset,
            leaf_hash=block.leaf_hash,
            protected_ns=block.protected_ns,
            trusted_sha256=block.trusted_sha256,
            origin=block.origin_label,
            layout=pair.sidecar.layout,
            mtime_ns=block.mtime_ns,
            salt=block.salt,
            root=block.root,
        )
        protect_file(path, pair.ward.path, protection, jobs=jobs, progress=progress, task="sidecar", disk=disk)
        return SidecarReport(pair.ward.path, SidecarState.HEALED, 0, f"{len(pair.lost)} damaged pages were made anew")
    left = _mend(pair, disk)
    if left:
        return SidecarReport(pair.ward.path, SidecarState.DAMAGED, left, f"{left} parity pages stay damaged until the file is whole")
    return SidecarReport(pair.ward.path, SidecarState.HEALED, 0, f"{len(pair.lost)} damaged pages were mended")


def _mend(pair: OpenPair, disk: Disk) -> int:
    """Rewrite the sidecar with its metadata whole and single flips in parity pages undone; returns the pages still bad."""
    sidecar, plan = pair.sidecar, pair.sidecar.plan
    lost, left, searched = set(pair.lost), 0, 0
    sections = {page: section for section, _, first, count in plan.sections() for page in range(first, first + count) if page in lost}
    with atomic_file(pair.ward.path, disk, mode=pair.file.access_mode()) as target:
        for at in range(0, plan.total_pages, _COPY_PAGES):
            count = min(_COPY_PAGES, plan.total_pages - at)
            data = pair.ward.read(at * PAGE_BYTES, count * PAGE_BYTES)
            target.write_all(data.ljust(count * PAGE_BYTES, b"\0"), at * PAGE_BYTES)
        for page, pages in metadata_pages(sidecar.superblock, plan.layout_stream, sidecar.leaves, plan):
            target.write_all(pages, page * PAGE_BYTES)
        for page in pair.lost:
            section = sections.get(page)
            if section not in (Section.P, Section.INNER, Section.Q):
                continue
            searched += 1
            page_now = pair.ward.read(page * PAGE_BYTES, PAGE_BYTES)
            mended = mend_flip(page_now, section, 0, page, sidecar.superblock.salt) if searched <= _SEARCHED_PAGES_LIMIT else None
            if mended is None:
                left += 1
            else:
                target.write_all(mended, page * PAGE_BYTES)
    return left
