"""What disks and page caches lose or mix up: pages that are zero, and pages that hold what stands elsewhere as well.

Every 2 KiB cell of the file (half a page) that lies in a tensor is hashed while it is in the cache. Runs of zero cells are told in tensors
that are dense elsewhere, unless they are whole rows, as padding is. Pages that are equal are told if what is equal begins and ends with
pages: copies of tensors and of rows do not. The hashes of very large models are thinned, so that their number stays bounded.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import islice

import numpy as np
import numpy.typing as npt
import xxhash

from bitward_agent.diagnosis.facts import Step, Suspect
from bitward_agent.io import OpenFile
from bitward_formats import records
from bitward_formats.frozen import dataclass
from bitward_formats.spans import Span

PAGE_BYTES = 4096
CELL_BYTES = 2048
PAGES_LIMIT = 1 << 21
"""Most pages whose hashes are kept: of larger models every second, fourth … by its hash, so that equal pages are kept or dropped alike."""
ZERO_CELLS_LIMIT = 1 << 20
_ZERO_SHARE = 1 / 2
_DENSE_ZERO_BYTES = 0.35
"""A tensor's other bytes are zero more often: then it is no news that a page of them is."""
_SAMPLES = 16
_ROW_LEAST_BYTES = 512
"""Whole pages are whole rows by chance, if rows are shorter."""
_ROW_SLACK_BYTES = 16
_DISTINCT_WORDS = 128
"""A page of fewer different words of four bytes may be repeated for a reason."""
_RUN_LIMIT_PAGES = 256
_PAIRS_LIMIT = 256
"""Most pairs of equal pages that are looked at; of two tensors, only the first pair at each distance."""
_RUNS_LIMIT = 64
"""Most runs of zeros of one tensor that are looked at."""
_TOLD_NATS = 50.0
"""The score of what is not weighed: 4 KiB are not equal, or zero, by chance."""

_ZERO_HASH = xxhash.xxh3_64_intdigest(bytes(CELL_BYTES))

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class _Place:
    file: OpenFile
    span: Span


class LostPages:
    """Collects cells from several threads; tells what it found when all files have been read, and while they are open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places: list[_Place] = []
        self._numbers: dict[tuple[str, int], int] = {}
        self._hashes: list[Hashes] = []
        self._owners: list[npt.NDArray[np.uint32]] = []
        self._offsets: list[npt.NDArray[np.int64]] = []
        self._kept = 0
        self._thinning = np.uint64(0)
        self._zero_cells: dict[int, list[int]] = {}
        self._zero_count = 0

    def add(self, file: OpenFile, span: Span, view: memoryview, offset: int, own_bytes: int) -> None:
        """Take ``view``, which lies at ``offset`` of a file: the pages that begin in its first ``own_bytes``."""
        first = -offset % PAGE_BYTES
        last = min(own_bytes, len(view) - PAGE_BYTES + 1)
        ends = range(first, max(first, last), PAGE_BYTES)
        digest = xxhash.xxh3_64_intdigest
        halves = [digest(view[at : at + CELL_BYTES]) for low in ends for at in (low, low + CELL_BYTES)]
        hashes = np.array(halves, np.uint64).reshape(-1, 2)
        zero = [offset + first + CELL_BYTES * int(at) for at in np.flatnonzero(hashes == np.uint64(_ZERO_HASH))]
        pages = hashes[:, 0] * np.uint64(0x9E3779B97F4A7C15) + hashes[:, 1]
        filled = (hashes != np.uint64(_ZERO_HASH)).all(axis=1)
        offsets = offset + first + PAGE_BYTES * np.arange(pages.size, dtype=np.int64)
        with self._lock:
            number = self._numbers.setdefault((file.path, span.offset), len(self._places))
            if number == len(self._places):
                self._places.append(_Place(file, span))
            if zero and self._zero_count < ZERO_CELLS_LIMIT:
                self._zero_count += len(zero)
                self._zero_cells.setdefault(number, []).extend(zero)
            kept = filled & (pages & self._thinning == 0)
            self._hashes.append(pages[kept])
            self._owners.append(np.full(int(kept.sum()), number, np.uint32))
            self._offsets.append(offsets[kept])
            self._kept += int(kept.sum())
            if self._kept > PAGES_LIMIT:
                self._thin()

    def _thin(self) -> None:
        hashes, owners, offsets = np.concatenate(self._hashes), np.concatenate(self._owners), np.concatenate(self._offsets)
        self._thinning = np.uint64(2 * int(self._thinning) + 1)
        kept = hashes & self._thinning == 0
        self._hashes, self._owners, self._offsets = [hashes[kept]], [owners[kept]], [offsets[kept]]
        self._kept = int(kept.sum())

    def suspects(self) -> Iterator[Suspect]:
        """What was found in all files."""
        for number, cells in sorted(self._zero_cells.items()):
            yield from _zeroed(self._places[number], sorted(cells))
        yield from self._repeated()

    def _repeated(self) -> Iterator[Suspect]:
        if not self._hashes:
            return
        hashes, owners, offsets = np.concatenate(self._hashes), np.concatenate(self._owners), np.concatenate(self._offsets)
        order = np.lexsort((offsets, owners, hashes))
        equal = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
        seen: set[tuple[int, int, int]] = set()
        for at in equal:
            one, two = int(order[at]), int(order[at + 1])
            low, other = int(offsets[one]), int(offsets[two])
            key = int(owners[one]), int(owners[two]), other - low
            if key in seen:
                continue
            if len(seen) == _PAIRS_LIMIT:
                return
            seen.add(key)
            places = self._places[owners[one]], self._places[owners[two]]
            found = _cut_run(*places, low, other)
            if found is not None:
                yield _repeat(*places, *found)


def _suspect(place: _Place, kind: str, low: int, length: int, found: float | int | str, words: str) -> Suspect:
    span = place.span
    form = records.form_of_span(span)
    element = (low - span.offset) // form.kind.record_bytes * form.elements
    index = records.locator(span, form)(element)
    return Suspect(Step.TRIAGE, kind, place.file.path, span.name, index, None, "", low, length, found, None, _TOLD_NATS, words)


def _runs(cells: list[int]) -> Iterator[tuple[int, int]]:
    """Neighbouring cells as (first byte, end)."""
    low = high = -1
    for cell in cells:
        if cell != high:
            if low >= 0:
                yield low, high
            low = cell
        high = cell + CELL_BYTES
    if low >= 0:
        yield low, high


def _zeroed(place: _Place, cells: list[int]) -> Iterator[Suspect]:
    span = place.span
    if len(cells) * CELL_BYTES > span.length * _ZERO_SHARE or not _is_dense(place, cells):
        return
    for low, high in islice(_runs(cells), _RUNS_LIMIT):
        before = place.file.read(max(span.offset, low - CELL_BYTES), low - max(span.offset, low - CELL_BYTES))
        after = place.file.read(high, min(span.end, high + CELL_BYTES) - high)
        low, high = low - (len(before) - len(before.rstrip(b"\0"))), high + len(after) - len(after.lstrip(b"\0"))
        if high - low >= PAGE_BYTES - _ROW_SLACK_BYTES and not _is_rows(span, low, high):
            words = f"{span.name}: {high - low:,} zero bytes from byte {low:,} on, in a tensor that is dense elsewhere"
            yield _suspect(place, "zeroed-page", low, high - low, 0, words)


def _is_dense(place: _Place, cells: list[int]) -> bool:
    """Whether few of the bytes outside the zero cells are zero, by a sample."""
    zero, span = set(cells), place.span
    first = span.offset + -span.offset % CELL_BYTES
    spread = np.linspace(first, max(first, span.end - CELL_BYTES), 4 * _SAMPLES).astype(np.int64) // CELL_BYTES * CELL_BYTES
    chosen = [int(at) for at in spread if int(at) not in zero and int(at) >= span.offset][: _SAMPLES * 4]
    data = b"".join(place.file.read(at, CELL_BYTES) for at in chosen)
    return bool(data) and data.count(0) <= len(data) * _DENSE_ZERO_BYTES


def _is_rows(span: Span, low: int, high: int) -> bool:
    """Whether a range begins and ends with rows of a tensor, of whatever dimension."""
    is_page = low % PAGE_BYTES == 0 and high % PAGE_BYTES == 0
    pieces = 1
    for dim in span.dims:
        pieces *= dim
        row = span.length // pieces if pieces and span.length % pieces == 0 else 0
        if row < (_ROW_LEAST_BYTES if is_page else 1):
            break
        # A number or two beside the edge can be zero by chance; of short rows that would be too large a share.
        slack = min(_ROW_SLACK_BYTES, row // _ROW_SLACK_BYTES)
        if row > high - low + 2 * slack:
            continue
        edges = [(edge - span.offset) % row for edge in (low, high)]
        if all(min(edge, row - edge) <= slack for edge in edges):
            return True
    return False


def _same(one: _Place, two: _Place, low: int, other: int, direction: int) -> int:
    """How many bytes from two places on (before them, if ``direction`` is -1) are the same, within both tensors and the limit of a run."""
    if direction < 0:
        limit = min(low - one.span.offset, other - two.span.offset)
    else:
        limit = min(one.span.end - low, two.span.end - other)
    limit = min(limit, _RUN_LIMIT_PAGES * PAGE_BYTES)
    done, size = 0, PAGE_BYTES
    while done < limit:
        size = min(size, limit - done)
        at = -done - size if direction < 0 else done
        a, b = one.file.read(low + at, size), two.file.read(other + at, size)
        if a != b:
            differ = np.flatnonzero(np.frombuffer(a, np.uint8)[::direction] != np.frombuffer(b, np.uint8)[::direction])
            return done + (int(differ[0]) if differ.size else 0)
        done, size = done + size, 4 * size
    return done


def _cut_run(one: _Place, two: _Place, low: int, other: int) -> tuple[int, int, int] | None:
    """The run of equal pages that holds a pair of them, as (offset, other offset, bytes); None unless it begins and ends with pages."""
    back = _same(one, two, low, other, -1)
    length = _same(one, two, low, other, 1)
    if length < PAGE_BYTES:
        return None  # the hashes are equal, the pages are not
    low, other, length = low - back, other - back, back + length
    # A byte or two beyond the edge can be equal by chance: the sign and exponent of the next number.
    if low % PAGE_BYTES > PAGE_BYTES - 4:
        low, other, length = low + -low % PAGE_BYTES, other + -low % PAGE_BYTES, length - -low % PAGE_BYTES
    if low % PAGE_BYTES or length % PAGE_BYTES >= 4 or length >= _RUN_LIMIT_PAGES * PAGE_BYTES:
        return None
    if low == one.span.offset and other == two.span.offset:
        return None
    words = np.frombuffer(one.file.read(low, PAGE_BYTES), "<u4")
    if words.size != PAGE_BYTES // 4 or np.unique(words).size < _DISTINCT_WORDS or abs(other - low) < PAGE_BYTES:
        return None
    return low, other, length // PAGE_BYTES * PAGE_BYTES


def _repeat(one: _Place, two: _Place, low: int, other: int, length: int) -> Suspect:
    count = f"{length // PAGE_BYTES:,} pages of 4 KiB" if length > PAGE_BYTES else "a page of 4 KiB"
    where = two.span.name if one.file.path == two.file.path else f"{two.span.name} of {two.file.path}"
    words = f"{one.span.name}: {count} from byte {low:,} on can be read at byte {other:,} as well, in {where}: one of the two is lost"
    return _suspect(one, "repeated-page", low, length, length, words)
