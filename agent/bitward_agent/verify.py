"""Verifying one file: open, scan, decode what is bad, and say it. Only reads."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from bitward_agent.errors import BitwardError, UnreadableError
from bitward_agent.findings import FLIPS_LISTED_LIMIT, Damage, FileVerification, ProgressSink, SidecarReport, SidecarState, Verdict
from bitward_agent.io import DISK, Disk, FileState, OpenFile, journal_path
from bitward_agent.scan import ScanResult, scan
from bitward_formats.digest import LeafHash
from bitward_formats.errors import FormatError
from bitward_formats.pages import PAGE_BYTES
from bitward_formats.sidecar import Sidecar, lost_pages, read_sidecar
from bitward_formats.spans import Role, Span

MOVES_TOLD = "the file changes while it is read: verify it when its writer is done"
REPAIR_PENDING_TOLD = "an interrupted repair is pending: 'bitward repair' finishes it"
POINTER_TOLD = "this is a Git LFS pointer, not the file: 'git lfs pull' fetches it"
_POINTER_BEGINNING = b"version https://git-lfs.github.com/spec/v1\n"
_POINTER_BYTES = 1024
"""How a pointer file begins, which Git has in the file's place until it is fetched, and what it stays below (Git LFS specification)."""
REPLACED_TOLD = "the file was replaced or removed while it was read: verify it again"


@dataclass(slots=True)
class OpenPair:
    """A file and its sidecar, both open, the sidecar's metadata checked. ``lost`` are the sidecar's bad pages."""

    file: OpenFile
    ward: OpenFile
    sidecar: Sidecar
    lost: tuple[int, ...]
    state: FileState

    def close(self) -> None:
        self.file.close()
        self.ward.close()

    @property
    def modified(self) -> bool:
        """Whether size or modification time are not those of when the file was protected."""
        block = self.sidecar.superblock
        return (self.state.size, self.state.mtime_ns) != (block.file_bytes, block.mtime_ns)

    @property
    def has_new_mtime(self) -> bool:
        """Whether somebody wrote to the file, or touched it, since it was protected."""
        return self.state.mtime_ns != self.sidecar.superblock.mtime_ns

    @property
    def excess_bytes(self) -> int:
        """Bytes behind the end of what was protected."""
        return max(0, self.state.size - self.sidecar.superblock.file_bytes)

    def sidecar_report(self) -> SidecarReport:
        state = SidecarState.DAMAGED if self.lost else SidecarState.INTACT
        message = f"{len(self.lost)} of {self.sidecar.plan.total_pages} pages are damaged" if self.lost else ""
        return SidecarReport(self.ward.path, state, len(self.lost), message)


def open_sidecar(path: str, disk: Disk = DISK) -> tuple[OpenFile, Sidecar, tuple[int, ...]]:
    """Open and check a sidecar: (file, metadata, numbers of bad pages).

    Raises:
        UnreadableError, SidecarError.
    """
    ward = OpenFile(path, disk=disk)
    try:
        sidecar, lost = checked_sidecar(ward)
    except BaseException:
        ward.close()
        raise
    return ward, sidecar, lost


def checked_sidecar(ward: OpenFile) -> tuple[Sidecar, tuple[int, ...]]:
    """An open sidecar's metadata, checked, and the numbers of its bad pages. Raises UnreadableError, SidecarError."""
    size = ward.state().size
    sidecar = read_sidecar(ward.read, size)
    lost = tuple(sorted(set(lost_pages(ward.read, sidecar)) | set(sidecar.lost_pages)))
    if size != sidecar.plan.total_pages * PAGE_BYTES and not lost:
        lost = (sidecar.plan.total_pages,)
    return sidecar, lost


def open_pair(path: str, sidecar_path: str, disk: Disk = DISK) -> OpenPair | FileVerification:
    """Open a file with its sidecar, or say why that cannot be."""
    try:
        file = OpenFile(path, disk=disk)
    except UnreadableError as error:
        return unverifiable(path, 0, SidecarReport("", SidecarState.MISSING), str(error))
    size = file.state().size
    if not os.path.lexists(sidecar_path):
        file.close()
        missing = SidecarReport("", SidecarState.MISSING)
        return unverifiable(path, size, missing, "no sidecar: 'bitward protect' makes one")
    try:
        ward, sidecar, lost = open_sidecar(sidecar_path, disk)
    except (FormatError, BitwardError) as error:
        file.close()
        report = SidecarReport(sidecar_path, SidecarState.DAMAGED, 0, str(error))
        return unverifiable(path, size, report, f"sidecar cannot be used: {error}")
    return OpenPair(file, ward, sidecar, lost, file.state())


def unverifiable(path: str, size: int, sidecar: SidecarReport, message: str) -> FileVerification:
    """The verdict of a file about which nothing can be said."""
    return FileVerification(path, Verdict.UNVERIFIABLE, size, "", "", False, sidecar, message=message.removeprefix(f"{path}: "))


class FlipBudget:
    """How many flips may still be listed in this report."""

    def __init__(self, left: int = FLIPS_LISTED_LIMIT) -> None:
        self.left = left

    def take(self, wanted: int) -> int:
        given = min(wanted, self.left)
        self.left -= given
        return given


def tensor_filter(pattern: str | None) -> Callable[[Span], bool] | None:
    """Which spans a ``--tensor`` pattern means."""
    if pattern is None:
        return None
    return lambda span: span.role is Role.TENSOR and fnmatch.fnmatchcase(span.name, pattern)


def verify_file(
    path: str,
    sidecar_path: str,
    *,
    tensor: str | None = None,
    sidecar_only: bool = False,
    jobs: int | None = None,
    progress: ProgressSink | None = None,
    budget: FlipBudget | None = None,
    sealed_root: bytes | None = None,
    of_inode: tuple[int, int] | None = None,
    disk: Disk = DISK,
) -> FileVerification:
    """Verify one file against its sidecar.

    Args:
        of_inode: device and inode that the path must lead to; another file that has its name is not judged.
        sealed_root: the root that a trusted seal vouches for. A sidecar with another one, or with leaves that can be forged, is refused,
            and nothing of it is used.
        tensor: glob over tensor names; only these are read, and the verdict is about them alone.
        sidecar_only: check the sidecar's own pages and leave the file unread.
    """
    pair = open_pair(path, sidecar_path, disk)
    if isinstance(pair, FileVerification):
        return pair
    try:
        if of_inode is not None and (pair.state.device, pair.state.inode) != of_inode:
            return unverifiable(path, pair.state.size, pair.sidecar_report(), REPLACED_TOLD)
        if sealed_root is not None and not _has_root(pair, sealed_root):
            return _unsealed(path, pair)
        if sidecar_only:
            return _sidecar_verdict(path, pair)
        wanted = tensor_filter(tensor)
        if wanted is not None and not any(wanted(span) for span in pair.sidecar.layout.spans):
            return unverifiable(path, pair.state.size, pair.sidecar_report(), f"no tensor matches {tensor!r}")
        result = scan(pair.file, pair.sidecar, jobs=jobs, progress=progress, wanted=wanted)
        verdict = None if _moves(pair) else verdict_of(path, pair, result, budget or FlipBudget(), progress, whole=wanted is None)
        if verdict is None or _moves(pair):  # the second time because decoding reads the file again
            return unverifiable(path, pair.state.size, pair.sidecar_report(), MOVES_TOLD)
        if not pair.file.is_still_named():
            return unverifiable(path, pair.state.size, pair.sidecar_report(), REPLACED_TOLD)
        return verdict if sealed_root is None else replace(verdict, origin="sealed")
    except (BitwardError, FormatError) as error:
        return unverifiable(path, pair.state.size, pair.sidecar_report(), str(error))
    finally:
        pair.close()


def _has_root(pair: OpenPair, root: bytes) -> bool:
    block = pair.sidecar.superblock
    return block.root == root and block.leaf_hash == LeafHash.BLAKE3


def _unsealed(path: str, pair: OpenPair) -> FileVerification:
    """The verdict of a file whose sidecar is not the one that was sealed: it may fit the file, and proves nothing."""
    told = "its sidecar is not the one that was sealed: the file may have been changed, and the sidecar made anew"
    block = pair.sidecar.superblock
    report = pair.sidecar_report()
    return FileVerification(path, Verdict.DAMAGED, 0, block.root.hex(), block.origin_label, pair.modified, report, message=told)


def _moves(pair: OpenPair) -> bool:
    return pair.file.state() != pair.state


def _sidecar_verdict(path: str, pair: OpenPair) -> FileVerification:
    """Only the sidecar was looked at: damage to it is repairable as long as its metadata could be read."""
    block = pair.sidecar.superblock
    verdict = Verdict.DAMAGED if pair.lost else Verdict.INTACT
    damage = (Damage(None, page, page * PAGE_BYTES, PAGE_BYTES, True, "reference", "unknown", 0) for page in pair.lost[:FLIPS_LISTED_LIMIT])
    return FileVerification(
        *(path, verdict, 0, block.root.hex(), block.origin_label, pair.modified, pair.sidecar_report()),
        damage=tuple(damage),
        damaged_blocks=0,
        message="only the sidecar was checked",
    )


def verdict_of(
    path: str, pair: OpenPair, result: ScanResult, budget: FlipBudget, progress: ProgressSink | None, *, whole: bool
) -> FileVerification:
    """The verdict that a scan of an open pair amounts to; what is bad is read again to be decoded. ``whole``: nothing was left unread."""
    block = pair.sidecar.superblock
    excess = pair.excess_bytes if whole else 0
    notes = []
    if os.path.lexists(journal_path(pair.ward.path)):
        notes.append(REPAIR_PENDING_TOLD)
    if result.bad_blocks and pair.state.size < _POINTER_BYTES and pair.file.read(0, len(_POINTER_BEGINNING)) == _POINTER_BEGINNING:
        notes.append(POINTER_TOLD)
    verdict, damage = Verdict.INTACT, tuple[Damage, ...]()
    if result.bad_blocks or excess:
        from bitward_agent.judge import judge  # loads NumPy: only where there is damage

        judgement = judge(pair, result, excess, budget, progress)
        verdict, damage = judgement.verdict, judgement.damage
        notes += judgement.notes
    return FileVerification(
        *(path, verdict, result.scanned_bytes, block.root.hex(), block.origin_label, pair.modified, pair.sidecar_report()),
        damage=damage,
        damaged_blocks=len(result.bad_blocks),
        message="; ".join(notes),
    )
