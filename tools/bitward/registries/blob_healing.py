"""A blob on this machine whose SHA-256 is known: is it whole, and how it becomes whole again.

The digest decides in the end; nothing counts as healed that does not have it. With a sidecar parity is asked first and then the sources,
for the blocks that parity lacks. Without one the digest does not say where the damage is. Two kinds can be guessed all the same: a file
that ends too early, and pages that are zero. Both are fetched, and written only if the whole then has the digest.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from bitward_agent.errors import BitwardError, SourceError, UnreadableError
from bitward_agent.findings import Damage, ExitCode, FileVerification, Progress, ProgressSink, SidecarState, SourceUse, Verdict
from bitward_agent.io import OpenFile
from bitward_agent.journal import append_log, log_path, restore_mtime
from bitward_agent.repair import RepairRequest, repair_file
from bitward_agent.sources import Range
from bitward_agent.sources.copies import CopySource
from bitward_agent.verify import open_sidecar, verify_file
from bitward_formats.errors import FormatError
from bitward_formats.frozen import dataclass

_CHUNK_BYTES = 1 << 20
_PAGE_BYTES = 4096
_FETCH_BYTES = 1 << 20
"""Bytes of a guessed range that are asked for and kept in memory at once."""
MISSING = "missing"
_TAIL_LIMIT_BYTES = 1 << 40
"""A manifest that tells of more bytes than this behind a file's end is not believed."""


class LostRangeError(UnreadableError):
    """Part of a file cannot be read: the medium lost it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a blob should be: SHA-256 in hexadecimal, and bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Healing:
    """The state of a blob after it was looked at, and perhaps healed."""

    verdict: Verdict
    repaired: int = 0
    remaining: int = 0
    damage: tuple[Damage, ...] = ()
    sources: tuple[SourceUse, ...] = ()
    message: str = ""
    exit_code: int = 0

    @property
    def fetched_bytes(self) -> int:
        return sum(source.fetched_bytes for source in self.sources)


def hash_file(path: str, progress: ProgressSink | None = None) -> Wanted:
    """SHA-256 and size of a file as it is.

    Raises:
        LostRangeError: part of it cannot be read.
        UnreadableError: it cannot be opened, or changes meanwhile.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with OpenFile(path) as file:
        before = file.state()
        for offset in range(0, before.size, _CHUNK_BYTES):
            view = buffer[: min(_CHUNK_BYTES, before.size - offset)]
            if lost := file.read_into(view, offset):
                raise LostRangeError(f"{path}: bytes {lost[0][0]} to {lost[0][1]} cannot be read")
            digest.update(view)
            if progress:
                progress(Progress("hash", path, offset + len(view), before.size))
        if file.state() != before:
            raise UnreadableError(f"{path}: changes while it is read: try again when its writer is done")
    return Wanted(digest.hexdigest(), before.size)


def difference(wanted: Wanted, found: Wanted) -> str:
    """In words what is wrong with a blob; empty if it is as it should be."""
    if found.size != wanted.size:
        less = found.size < wanted.size
        return (
            f"{abs(wanted.size - found.size):,} of {wanted.size:,} bytes are missing"
            if less
            else (f"has {found.size - wanted.size:,} bytes too many")
        )
    return "" if found.sha256 == wanted.sha256 else "its contents are not what its digest says"


def check_blob(path: str, wanted: Wanted, sidecar: str, *, jobs: int | None = None, progress: ProgressSink | None = None) -> Healing:
    """Whether a blob is whole, and where it is damaged if its sidecar can say. Reads only."""
    try:
        told = difference(wanted, hash_file(path, progress))
    except LostRangeError as error:
        told = str(error).removeprefix(f"{path}: ")
    except UnreadableError as error:
        if not os.path.lexists(path):
            return Healing(Verdict.DAMAGED, message=MISSING, exit_code=ExitCode.NOT_REPAIRABLE)
        return Healing(Verdict.UNVERIFIABLE, message=str(error).removeprefix(f"{path}: "), exit_code=ExitCode.CANNOT_TELL)
    if not told:
        return Healing(Verdict.INTACT)
    if not os.path.lexists(sidecar):
        return Healing(Verdict.DAMAGED, message=f"{told}; no sidecar says where", exit_code=ExitCode.NOT_REPAIRABLE)
    if foreign := _is_foreign(sidecar, wanted):
        return Healing(Verdict.DAMAGED, message=f"{told}; {foreign}", exit_code=ExitCode.NOT_REPAIRABLE)
    return _judged(verify_file(path, sidecar, jobs=jobs, progress=progress), told)


def _judged(found: FileVerification, told: str) -> Healing:
    """A blob's name rules out that it was rewritten: what its sidecar calls changed is damaged beyond parity."""
    code = found.exit_code if found.verdict is Verdict.DAMAGED else ExitCode.NOT_REPAIRABLE
    if found.verdict is Verdict.UNVERIFIABLE or found.verdict is Verdict.INTACT:
        told = f"{told}; its sidecar does not help: {found.message or 'it is of other contents'}"
    left = found.damaged_blocks if found.verdict is not Verdict.INTACT else 0
    return Healing(Verdict.DAMAGED, remaining=left, damage=found.damage, message=told, exit_code=code)


def _is_foreign(sidecar: str, wanted: Wanted, *, named: bool = False) -> str:
    """Why a sidecar must not be used on a blob; ``named`` demands that it says itself which contents it is of."""
    try:
        ward, read, _ = open_sidecar(sidecar)
        ward.close()
    except (BitwardError, FormatError) as error:
        return f"its sidecar cannot be used: {error}"
    said = read.superblock.trusted_sha256
    if read.superblock.file_bytes != wanted.size or said not in (bytes(32), bytes.fromhex(wanted.sha256)):
        return "its sidecar is of other contents"
    if named and said == bytes(32):
        return "its sidecar does not say which contents it is of: make one anew"
    return ""


def heal_blob(
    path: str,
    wanted: Wanted,
    sidecar: str,
    sources: Sequence[CopySource],
    found: Healing,
    *,
    named: bool = True,
    whole: Sequence[Callable[[], Iterator[bytes]]] = (),
    jobs: int | None = None,
    progress: ProgressSink | None = None,
) -> Healing:
    """Make a blob whole in place, and say what was done.

    Args:
        sidecar: where its sidecar is, if there is one.
        sources: other copies, asked in their order for what parity lacks.
        found: what :func:`check_blob` said of it.
        named: use only a sidecar that names the digest itself; without that a wrong one could ruin the rest of the blob.
        whole: its bytes from elsewhere, all of them; asked last, and for a blob that is gone.
    """
    if found.verdict is Verdict.INTACT or found.exit_code == ExitCode.CANNOT_TELL:
        return found
    uses: tuple[SourceUse, ...] = ()
    if os.path.lexists(path):
        usable = os.path.lexists(sidecar) and not _is_foreign(sidecar, wanted, named=named)
        if usable:
            found = _by_sidecar(path, wanted, sidecar, sources, jobs, progress)
        else:
            found = _by_guess(path, wanted, sidecar, sources, progress)
        uses = found.sources
    for download in whole:
        if found.verdict is Verdict.INTACT:
            break
        found = _anew(path, wanted, download, uses, progress)
    return found


def _by_sidecar(
    path: str, wanted: Wanted, sidecar: str, sources: Sequence[CopySource], jobs: int | None, progress: ProgressSink | None
) -> Healing:
    ward, read, _ = open_sidecar(sidecar)
    ward.close()
    try:
        # What has a digest for a name was never rewritten: an odd time is no sign of new contents, and must not stop the repair.
        with OpenFile(path, write=True) as file:
            if file.state().mtime_ns != read.superblock.mtime_ns:
                restore_mtime(file, read.superblock.mtime_ns)
        done = repair_file(path, sidecar, RepairRequest(tuple(sources), now_ns=time.time_ns()), jobs=jobs, progress=progress)
        told = difference(wanted, hash_file(path, progress))
    except BitwardError as error:
        return Healing(Verdict.DAMAGED, message=str(error), exit_code=ExitCode.CANNOT_TELL)
    if not told:
        return Healing(Verdict.INTACT, done.repaired, sources=done.sources, message=_healed_how(done.repaired, done.sidecar.state))
    message = "; ".join(filter(None, (told, done.message)))
    return Healing(Verdict.DAMAGED, done.repaired, done.remaining, done.damage, done.sources, message, ExitCode.NOT_REPAIRABLE)


def _healed_how(repaired: int, state: SidecarState) -> str:
    return "its sidecar was damaged and is whole again" if state is SidecarState.HEALED and not repaired else ""


# ------------------------------------------------------------------------------------------------------------------ without a sidecar


def suspicious_ranges(file: OpenFile, size: int) -> list[Range]:
    """Where a file of ``size`` bytes may have lost something: pages of zeros, and what lies behind its end."""
    present = min(file.state().size, size)
    found: list[Range] = []
    if size - present > _TAIL_LIMIT_BYTES:
        return found
    zeros = bytes(_PAGE_BYTES)

    def add(low: int, high: int) -> None:
        if found and found[-1][1] == low and found[-1][1] - found[-1][0] < _FETCH_BYTES:
            low = found.pop()[0]
        found.append((low, high))

    for offset in range(0, present, _CHUNK_BYTES):
        data = file.read(offset, min(_CHUNK_BYTES, present - offset))
        if data.find(zeros[:64]) < 0 and len(data) == _CHUNK_BYTES:
            continue
        for at in range(0, len(data), _PAGE_BYTES):
            page = data[at : at + _PAGE_BYTES]
            if page == zeros[: len(page)]:
                add(offset + at, offset + at + len(page))
    for low in range(present, size, _FETCH_BYTES):
        add(low, min(low + _FETCH_BYTES, size))
    return found


def _by_guess(path: str, wanted: Wanted, sidecar: str, sources: Sequence[CopySource], progress: ProgressSink | None) -> Healing:
    """Fetch what looks lost, and keep it if the whole then has the digest."""
    uses: list[SourceUse] = []
    told = "damaged, and no sidecar says where"
    for source in sources:
        error = ""
        try:
            with OpenFile(path, write=True) as file, tempfile.TemporaryFile(dir=os.path.dirname(path)) as patch:
                file.lock()
                ranges = suspicious_ranges(file, wanted.size)
                kept = _fetch(source, ranges, patch)
                if ranges and len(kept) == len(ranges) and _patched_digest(file, patch, kept, wanted.size) == wanted.sha256:
                    _write(file, patch, kept, wanted, sidecar, source.name)
                    after = difference(wanted, hash_file(path, progress))
                    uses.append(_use(source, len(kept), ""))
                    if after:
                        raise UnreadableError(f"{path}: what was written does not read back: the disk is failing")
                    lost = sum(high - low for low, high in ranges)
                    return Healing(Verdict.INTACT, len(kept), sources=tuple(uses), message=f"{lost:,} bytes that looked lost were fetched")
                told = "damaged elsewhere than in zeroed pages or at its end, and no sidecar says where" if kept or not ranges else told
        except SourceError as caught:
            error = str(caught)
        except BitwardError as caught:
            return Healing(Verdict.DAMAGED, sources=tuple(uses), message=str(caught), exit_code=ExitCode.CANNOT_TELL)
        uses.append(_use(source, 0, error))
    return Healing(Verdict.DAMAGED, sources=tuple(uses), message=told, exit_code=ExitCode.NOT_REPAIRABLE)


def _use(source: CopySource, blocks: int, error: str) -> SourceUse:
    return SourceUse(source.name, blocks, source.meter.fetched_bytes, source.meter.requests, 0, error)


def _fetch(source: CopySource, ranges: list[Range], patch: IO[bytes]) -> dict[Range, int]:
    """Each range that the source has, with where in ``patch`` its bytes are."""
    kept: dict[Range, int] = {}
    remote = source.place.open("", source.meter) if ranges else None
    if remote is None:
        return kept
    try:
        total = sum(high - low for low, high in ranges)
        source.meter.reserve(total)  # more than may be fetched is refused before the first byte
        source.meter.give_back(total)
        for place, data in remote.read(ranges):
            kept[place] = patch.seek(0, os.SEEK_END)
            patch.write(data)
    finally:
        remote.close()
    return kept


def _patched_digest(file: OpenFile, patch: IO[bytes], kept: dict[Range, int], size: int) -> str:
    """SHA-256 of the file as it would be with the patch."""
    digest = hashlib.sha256()
    at = 0
    for low, high in [*sorted(kept), (size, size)]:
        for offset in range(at, low, _CHUNK_BYTES):
            digest.update(file.read(offset, min(_CHUNK_BYTES, low - offset)))
        if low < high:
            patch.seek(kept[low, high])
            digest.update(patch.read(high - low))
        at = high
    return digest.hexdigest()


def _write(file: OpenFile, patch: IO[bytes], kept: dict[Range, int], wanted: Wanted, sidecar: str, source: str) -> None:
    """Write what the digest vouches for; a crash on the way leaves fewer pages of zeros than before, and the next run goes on."""
    for low, high in sorted(kept):
        patch.seek(kept[low, high])
        file.write_all(patch.read(high - low), low)
    file.disk.truncate(file.fd, wanted.size)
    file.disk.sync(file.fd)
    writes = [{"offset": low, "length": high - low} for low, high in sorted(kept)]
    record: dict[str, object] = {"schema": "bitward.repair-log/1", "time_ns": time.time_ns(), "path": file.path, "source": source}
    if os.path.isdir(os.path.dirname(sidecar)):
        append_log(log_path(sidecar), record | {"sha256": wanted.sha256, "writes": writes}, mode=file.access_mode())


def _anew(
    path: str, wanted: Wanted, download: Callable[[], Iterator[bytes]], uses: tuple[SourceUse, ...], progress: ProgressSink | None
) -> Healing:
    """The whole blob from elsewhere; it takes the place of the damaged one only if it has the digest."""
    from bitward_agent.durable import atomic_file, make_folder

    digest, done = hashlib.sha256(), 0
    try:
        make_folder(os.path.dirname(path))
        with atomic_file(path) as file:
            for chunk in download():
                file.write_all(chunk, done)
                digest.update(chunk)
                done += len(chunk)
                if progress:
                    progress(Progress("fetch", path, done, wanted.size))
            told = difference(wanted, Wanted(digest.hexdigest(), done))
            if told:
                raise SourceError(f"the copy that was sent is no better: {told}")
            _keep_owner(path, file.fd)
    except BitwardError as error:
        message = str(error).removeprefix(f"{path}: ")
        return Healing(Verdict.DAMAGED, sources=uses, message=message, exit_code=ExitCode.NOT_REPAIRABLE)
    whole = SourceUse("the whole blob", 0, done, 1)
    return Healing(Verdict.INTACT, 1, sources=(*uses, whole), message=f"{done:,} bytes were fetched: the whole blob")


def _keep_owner(path: str, fd: int) -> None:
    """A store's files belong to its folder's owner; root must not leave files there that the store's own program cannot touch."""
    if os.geteuid() == 0:
        owner = os.stat(os.path.dirname(path))
        os.fchown(fd, owner.st_uid, owner.st_gid)
