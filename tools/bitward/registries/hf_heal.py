"""Making one file of a hub's revision right: what is known to be damaged is fetched, and no more, as long as anything tells what that is.

In order: the blob's own sidecar (parity, then only the blocks that parity cannot restore); ranges that look lost (missing at the end,
zeroed, unreadable); a sidecar from the repository; the whole file. Blocks are written in place only where a sidecar vouches for them that
was made from the very bytes of the blob's name; all else is made in a draft beside the blob and takes its place if the digest fits.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bitward.registries.blob_reading import copy_into, copy_readable, read_blob
from bitward.registries.blob_suspects import PAGE_BYTES, SUSPECTS_LIMIT, suspects
from bitward.registries.hf_drafts import draft_of, fetch_into, keep_leftover, leftover_of, put_if_right
from bitward.registries.hf_facts import Way
from bitward.registries.hf_server import FilePlace
from bitward.registries.hf_sidecars import vouches_for
from bitward_agent.errors import BitwardError, SourceError
from bitward_agent.findings import FileRepair, Progress, ProgressSink, SidecarState, Verdict
from bitward_agent.io import OpenFile, Range, merge_ranges
from bitward_agent.repair import RepairRequest, repair_file
from bitward_agent.sources.copies import CopySource
from bitward_agent.sources.http import RangesRefusedError
from bitward_agent.sources.limits import Meter
from bitward_agent.verify import open_sidecar, verify_file
from bitward_formats import frozen
from bitward_formats.errors import FormatError
from bitward_formats.hub_listing import HubFile


@dataclass(slots=True)
class Job:
    """One file to be made right.

    ``path`` is where its bytes are or should be, ``sidecar`` its own sidecar or where one would be, ``ward`` the repository's. ``blobs`` is
    the repository's folder of blobs. ``place`` gives a file of the revision; with ``True`` one that may be read whole where the server has
    no ranges.
    """

    file: HubFile
    path: str
    sidecar: str
    ward: HubFile | None
    blobs: str
    place: Callable[[str, bool], FilePlace]
    meter: Meter = field(default_factory=Meter)
    progress: ProgressSink | None = None
    notes: list[str] = field(default_factory=list)
    unfinished: str = ""
    sidecar_is_lost: bool = False

    def tell(self, done: int, total: int) -> None:
        if self.progress:
            self.progress(Progress("fetch", self.file.path, done, total))

    def counting(self, total: int) -> Callable[[int], None]:
        """A sink of bytes that came, out of ``total``."""
        done = [0]

        def count(came: int) -> None:
            done[0] += came
            self.tell(done[0], total)

        return count


@frozen.dataclass(frozen=True, slots=True)
class Outcome:
    """How a file became right, or, with ``Way.NONE``, that it did not. ``repaired`` counts blocks that a sidecar vouched for."""

    way: Way
    repaired: int = 0


def heal(job: Job, suspected: Sequence[Range]) -> Outcome:
    """Make a damaged blob right. ``suspected`` are its ranges that look lost; what was tried in vain is in the job's notes.

    Raises:
        SourceError, WriteError, UnreadableError, BusyError: it cannot be done now. The blob is not worse than before.
    """
    outcome = _by_own_sidecar(job)
    if outcome is not None:
        return outcome
    lost = _wanted_ranges(job, suspected)
    by_ward, by_ranges = (lambda: _by_pulled_sidecar(job)), (lambda: fetch_lost(job, job.path, lost, more=True))
    steps: list[Callable[[], Outcome | None]] = [by_ward, by_ranges]
    if job.ward is not None and _total(lost) <= job.ward.size:
        steps = [lambda: fetch_lost(job, job.path, lost, more=False), *steps]
    for step in steps:
        outcome = step()
        if outcome is not None:
            return outcome
    job.notes.append("nothing at hand tells which bytes are wrong: all of it was fetched")
    return fetch_all(job)


def fetch_missing(job: Job) -> Outcome:
    """Fetch a file that is not there, from where an unfinished download of it ended, if there is one.

    Raises:
        SourceError: it does not come, or does not have the digest. What came is kept as an unfinished download.
    """
    outcome: Outcome | None = None
    job.unfinished = leftover_of(job.path)
    if job.unfinished:
        lost = _wanted_ranges(job, suspects(job.unfinished, job.file.size))
        job.notes.append(f"taken up from an unfinished download; {_total(lost):,} of {job.file.size:,} bytes were missing")
        outcome = fetch_lost(job, job.unfinished, lost, more=True)
        if outcome is not None:
            os.unlink(job.unfinished)
    return outcome or fetch_all(job)


def fetch_all(job: Job) -> Outcome:
    """Fetch all of a file. Raises SourceError as :func:`fetch_missing` does."""
    with draft_of(job.path, job.file.size) as draft:
        _fetch(job, draft, [(0, job.file.size)], whole=True)
        if not put_if_right(draft, job.path, job.file.part, job.file.size):
            raise _not_right(job)
    return Outcome(Way.WHOLE)


def _fetch(job: Job, draft: OpenFile, ranges: Sequence[Range], *, whole: bool = False) -> None:
    """Fetch ranges into a draft. If that breaks off and nothing of the file was there before, what came is kept."""
    try:
        fetch_into(draft, job.place(job.file.path, whole), ranges, job.file.size, job.meter, job.counting(_total(ranges)))
    except (SourceError, KeyboardInterrupt):
        if not os.path.lexists(job.path):
            keep_leftover(draft, job.path, job.unfinished)
        raise


def _not_right(job: Job) -> SourceError:
    return SourceError(f"what the server sends does not have the {job.file.part.algorithm.value} of its own listing: not used")


# ---------------------------------------------------------------------------------------------------------------- by a sidecar


def _by_own_sidecar(job: Job) -> Outcome | None:
    if not job.sidecar or not os.path.lexists(job.sidecar):
        return None
    try:
        if not vouches_for(job.sidecar, job.file.part):
            return _by_sidecar_in_draft(job)
    except (BitwardError, FormatError) as error:
        job.notes.append(f"its sidecar cannot be used: {str(error).removeprefix(f'{job.sidecar}: ')}")
        job.sidecar_is_lost = True
        return None
    done = _repair(job, job.path, job.sidecar)
    if done.verdict is Verdict.INTACT and read_blob(job.path, job.file.part).is_right:
        return _outcome(done)
    told = done.message or next((one.error for one in done.sources if one.error), "")
    job.notes.append(f"its sidecar did not suffice: {told or 'the server has no right blocks'}")
    return _by_sidecar_in_draft(job) if done.verdict is Verdict.UNVERIFIABLE else None  # the blob may not be written, its folder may


def _repair(job: Job, path: str, sidecar: str) -> FileRepair:
    source = CopySource(job.place(job.file.path, False), [""], os.path.basename(job.file.path), job.meter)
    try:
        return repair_file(path, sidecar, RepairRequest((source,), now_ns=time.time_ns()), progress=job.progress)
    finally:
        source.close()


def _outcome(done: FileRepair) -> Outcome:
    fetched = any(source.blocks for source in done.sources)
    return Outcome(Way.RANGES if fetched else Way.PARITY, done.repaired)


def _by_sidecar_in_draft(job: Job) -> Outcome | None:
    """Repair a copy, with a copy of the sidecar, beside which the journal lies, and see whether the digest fits."""
    beside = os.path.dirname(job.sidecar)
    with tempfile.TemporaryDirectory(prefix=".bitward-", dir=beside) as scratch, draft_of(job.path, job.file.size) as draft:
        sidecar = os.path.join(scratch, os.path.basename(job.sidecar))
        copy_readable(job.sidecar, sidecar)
        copy_into(draft, job.path, max(job.file.size, _size_of(job.path)))
        done = _repair(job, draft.path, sidecar)
        if done.verdict is Verdict.INTACT and put_if_right(draft, job.path, job.file.part, job.file.size):
            return _outcome(done)
        told = done.message or next((one.error for one in done.sources if one.error), "") or "it does not lead to the right bytes"
        job.notes.append(f"its sidecar did not help: {told}")
        return None


def _by_pulled_sidecar(job: Job) -> Outcome | None:
    if job.ward is None or not job.sidecar or (os.path.lexists(job.sidecar) and not job.sidecar_is_lost):
        return None
    if not pull_sidecar(job):
        return None
    outcome: Outcome | None = None
    try:
        outcome = _by_sidecar_in_draft(job)
    finally:
        if outcome is None:  # it fits neither what is there nor what should be, or nobody knows: the next pull must not take it for our own
            os.unlink(job.sidecar)
    return outcome


def pull_sidecar(job: Job) -> bool:
    """Bring a file's sidecar from the repository into the folder of sidecars, out of the cache if it is there.

    Whether it came, has its digest, and is the sidecar of a file of that size.
    """
    ward = job.ward
    if ward is None or ward.refusal or not job.sidecar:
        return False
    try:
        with draft_of(job.sidecar, ward.size) as draft:
            if _is_cached(job, ward):
                copy_into(draft, os.path.join(job.blobs, ward.etag), ward.size)
            else:
                fetch_into(draft, job.place(ward.path, False), [(0, ward.size)], ward.size, job.meter, job.counting(ward.size))
            opened, sidecar, _ = open_sidecar(draft.path)
            opened.close()
            if sidecar.superblock.file_bytes != job.file.size:
                raise SourceError(f"{ward.path}: is the sidecar of a file of {sidecar.superblock.file_bytes:,} bytes")
            if not put_if_right(draft, job.sidecar, ward.part, ward.size):
                raise SourceError(f"{ward.path}: does not have its digest")
    except (BitwardError, FormatError) as error:
        job.notes.append(f"the repository's sidecar was not used: {error}")
        return False
    return True


def _is_cached(job: Job, ward: HubFile) -> bool:
    """Whether the cache has the repository's sidecar itself, as after a download of the whole repository, and has it right."""
    try:
        return read_blob(os.path.join(job.blobs, ward.etag), ward.part).is_right
    except BitwardError:
        return False


def keep_sidecar_if_it_fits(job: Job) -> bool:
    """Whether a pulled sidecar is that of the right file, by the file itself; if not, it goes again."""
    fits = False
    try:
        found = verify_file(job.path, job.sidecar)
        fits = found.verdict is Verdict.INTACT and found.sidecar.state is SidecarState.INTACT
    finally:
        if not fits:
            os.unlink(job.sidecar)
    if fits:
        return True
    job.notes.append("the repository's sidecar is not that of this file: not kept")
    return False


# ---------------------------------------------------------------------------------------------------------------- by ranges


def _wanted_ranges(job: Job, suspected: Sequence[Range]) -> list[Range]:
    """What looks lost, with a page around it, as what was lost need not begin where a page does."""
    if len(suspected) >= SUSPECTS_LIMIT:
        return []
    size = job.file.size
    return merge_ranges([(max(0, low - PAGE_BYTES), min(size, high + PAGE_BYTES)) for low, high in suspected if low < size])


def fetch_lost(job: Job, path: str, lost: list[Range], *, more: bool) -> Outcome | None:
    """Fetch what looks lost of the bytes at ``path``. If others are wrong too, with ``more`` all the rest as well; else ``None``.

    Raises:
        SourceError: it does not come, or all of it came and is wrong.
    """
    size, total = job.file.size, _total(lost)
    if total >= size or (not lost and _size_of(path) <= size):
        return None
    with draft_of(job.path, size) as draft:
        copy_into(draft, path, size)
        try:
            _fetch(job, draft, lost)
        except RangesRefusedError as error:
            job.notes.append(f"no ranges could be fetched: {error}")
            return None
        if put_if_right(draft, job.path, job.file.part, size):
            return Outcome(Way.RANGES)
        job.notes.append(f"{total:,} bytes that look lost were fetched, and others are wrong as well")
        if not more:
            return None
        _fetch(job, draft, _others(lost, size))
        job.notes.append("nothing at hand tells which: all of it was fetched")
        if put_if_right(draft, job.path, job.file.part, size):
            return Outcome(Way.WHOLE)
    raise _not_right(job)


def _total(ranges: Sequence[Range]) -> int:
    return sum(high - low for low, high in ranges)


def _others(ranges: Sequence[Range], size: int) -> list[Range]:
    """What of a file lies between some sorted ranges."""
    edges = [0, *(edge for one in ranges for edge in one), size]
    return [(low, high) for low, high in zip(edges[::2], edges[1::2], strict=True) if low < high]


def _size_of(path: str) -> int:
    with OpenFile(path) as file:
        return file.state().size
