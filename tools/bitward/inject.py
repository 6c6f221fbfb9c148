"""Hurt a file on purpose: single bits, a burst of noise, a run of zeros. For drills and research.

Everything is drawn from a seed, so that the same call on the same bytes does the same damage again. The file is changed in
place with positioned writes of the pages that change; nothing else is touched. A symbolic link is followed to the file it
means, and the report names that file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from random import Random

from bitward.inject_places import (
    InjectRefusedError,
    LaneChoice,
    Names,
    Run,
    critical_lanes,
    draw_flips,
    draw_rate,
    every_bit,
    every_lane,
    one_bit,
    runs_of,
)
from bitward_agent.findings import FLIPS_LISTED_LIMIT
from bitward_agent.io import open_after_leases
from bitward_agent.neighbours import FolderNeighbours
from bitward_formats.frozen import dataclass
from bitward_formats.readers import layout_of
from bitward_formats.spans import Layout

SCHEMA = "bitward.inject/1"

_REGION_WINDOW_BYTES = 1 << 20
_FLIP_WINDOW_BYTES = 1 << 16
"""Scattered flips need small windows, or most of what is read is read for nothing."""

_PAGE_BYTES = 4096
_SIGHT_LIMIT = 64
"""Offsets to try for a run of zeros before settling for one where zeros change nothing."""

_NO_ZERO = bytes([0xA5]) + bytes(range(1, 256))
"""Noise that is XORed on must not be zero in any byte, or a burst would have holes."""


@dataclass(frozen=True, slots=True)
class InjectedFlip:
    """One flipped bit, named as ``verify`` names it."""

    tensor: str | None
    index: tuple[int, ...]
    bit: int
    offset: int


@dataclass(frozen=True, slots=True)
class InjectedRegion:
    """A run of overwritten bytes. ``changed_bits`` counts the bits that differ now."""

    offset: int
    length: int
    changed_bits: int


@dataclass(frozen=True, slots=True)
class InjectReport:
    """What was done. ``target`` is the file behind ``path``, and ``via_link`` whether ``path`` itself is a symbolic link."""

    schema: str
    path: str
    target: str
    via_link: bool
    bytes: int
    seed: int
    lanes: str
    flip_count: int
    flips: tuple[InjectedFlip, ...]
    burst: InjectedRegion | None
    zero: InjectedRegion | None
    kept_mtime: bool
    exit_code: int = 0


def lane_choice(lanes: str) -> LaneChoice | None:
    """The lanes that ``critical``, ``all`` or a bit number mean; None for every bit of the file. Raises InjectRefusedError."""
    if lanes == "all":
        return None
    if lanes == "critical":
        return critical_lanes
    if lanes.isascii() and lanes.isdigit() and len(lanes) <= 3:
        return one_bit(int(lanes))
    raise InjectRefusedError(f"lanes must be critical, all or the number of a bit, not {lanes!r}")


def inject(
    path: str | os.PathLike[str],
    *,
    flips: int = 0,
    lanes: str | LaneChoice = "all",
    rate: float | None = None,
    burst_bytes: int = 0,
    zero_bytes: int = 0,
    seed: int,
    keep_mtime: bool = False,
) -> InjectReport:
    """Damage the file at ``path`` and say how.

    ``flips`` distinct bits are flipped, or with ``rate`` one bit in that share of the tensors' elements. ``lanes`` is
    "all" (any bit of the file; with ``rate`` of the tensors), "critical", a bit's number, or a function that picks the
    lanes of a span. Flips avoid the burst and the zeros. Raises InjectRefusedError, before anything is
    written, and OSError.
    """
    choice = lane_choice(lanes) if isinstance(lanes, str) else lanes
    if flips < 0 or burst_bytes < 0 or zero_bytes < 0:
        raise InjectRefusedError("counts must not be negative")
    if flips and rate is not None:
        raise InjectRefusedError("flips and rate exclude each other")
    if not flips and rate is None and not burst_bytes and not zero_bytes:
        raise InjectRefusedError("nothing to do: say how many flips, or a rate, a burst or zeros")
    given = os.fspath(path)
    target = os.path.realpath(given, strict=True)
    rng = Random(seed)
    with _opened(target, keep_mtime) as (fd, file_bytes):
        with FolderNeighbours(target) as neighbours:
            layout = layout_of(lambda offset, length: _read(fd, offset, length), file_bytes, os.path.basename(given), neighbours)
        burst_at = _place(rng, burst_bytes, file_bytes, "burst")
        zero_at = _place_zero(fd, rng, zero_bytes, file_bytes, burst_at)
        runs = _runs(layout, choice, rate, [burst_at, zero_at])
        chosen = draw_flips(runs, flips, rng) if rate is None else draw_rate(runs, rate, rng)
        if flips or rate is not None:
            _require_places(runs, layout)
        first = next(iter(chosen), None)  # drawing checks what was asked for: before the first write
        burst = _overwrite(fd, burst_at, rng) if burst_bytes else None
        zero = _overwrite(fd, zero_at, None) if zero_bytes else None
        listed: list[InjectedFlip] = []
        count = _flip_all(fd, _listing(_chain(first, chosen), Names(layout), listed))
        os.fsync(fd)
    described = lanes if isinstance(lanes, str) else "chosen"
    return InjectReport(
        SCHEMA, given, target, os.path.islink(given), file_bytes, seed, described, count, tuple(listed), burst, zero, keep_mtime
    )  # fmt: skip


@contextmanager
def _opened(target: str, keep_mtime: bool) -> Iterator[tuple[int, int]]:
    """The file, opened for reading and writing, and its size. Puts its times back at the end if that was asked for."""
    if not stat.S_ISREG(os.stat(target).st_mode):  # before opening: to open a pipe or a device can block or act
        raise InjectRefusedError(f"{target} is not a regular file")
    fd = open_after_leases(target, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        before = os.fstat(fd)
        if not stat.S_ISREG(before.st_mode):
            raise InjectRefusedError(f"{target} is not a regular file")
        yield fd, before.st_size
        if keep_mtime:
            os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))
    finally:
        os.close(fd)


def _read(fd: int, offset: int, length: int) -> bytes:
    """Exactly the bytes asked for, or fewer where the file ends."""
    parts = []
    while length > 0:
        part = os.pread(fd, length, offset)
        if not part:
            break
        parts.append(part)
        offset, length = offset + len(part), length - len(part)
    return b"".join(parts)


def _write(fd: int, offset: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        offset, view = offset + written, view[written:]


def _place(rng: Random, length: int, file_bytes: int, what: str) -> range:
    if length > file_bytes:
        raise InjectRefusedError(f"the {what} of {length:,} bytes is longer than the file ({file_bytes:,} bytes)")
    start = rng.randrange(file_bytes - length + 1)
    return range(start, start + length)


def _place_zero(fd: int, rng: Random, length: int, file_bytes: int, burst: range) -> range:
    """A range beside the burst whose bytes are not all zero already, if one turns up."""
    place = _place(rng, length, file_bytes, "run of zeros")
    for _ in range(_SIGHT_LIMIT):
        apart = place.stop <= burst.start or burst.stop <= place.start
        if not length or (apart and any(_read(fd, place.start, min(length, _PAGE_BYTES)))):
            break
        place = _place(rng, length, file_bytes, "run of zeros")
    return place


def _runs(layout: Layout, choice: LaneChoice | None, rate: float | None, taken: list[range]) -> list[Run]:
    if choice is None and rate is None:
        return runs_of(layout, every_bit, taken)
    return runs_of(layout, choice or every_lane, taken)


def _require_places(runs: list[Run], layout: Layout) -> None:
    if runs:
        return
    if not layout.file_bytes:
        raise InjectRefusedError("the file is empty")
    note = f" ({layout.note})" if layout.note else ""
    raise InjectRefusedError(f"no tensor of this file has such bits{note}; lanes 'all' takes any bit of the file")


def _chain(first: tuple[int, int] | None, rest: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    if first is not None:
        yield first
        yield from rest


def _overwrite(fd: int, place: range, rng: Random | None) -> InjectedRegion:
    """Fill a range with noise in which every byte differs from what was there, or without ``rng`` with zeros."""
    changed_bits = 0
    for offset in range(place.start, place.stop, _REGION_WINDOW_BYTES):
        old = _read(fd, offset, min(_REGION_WINDOW_BYTES, place.stop - offset))
        before = int.from_bytes(old, "little")
        noise = before if rng is None else int.from_bytes(rng.randbytes(len(old)).translate(_NO_ZERO), "little")
        changed_bits += noise.bit_count()
        _write(fd, offset, (before ^ noise).to_bytes(len(old), "little"))
    return InjectedRegion(place.start, len(place), changed_bits)


def _listing(places: Iterable[tuple[int, int]], name: Names, listed: list[InjectedFlip]) -> Iterator[tuple[int, int]]:
    """Pass the places on, naming the first of them in ``listed``."""
    for offset, bit in places:
        if len(listed) < FLIPS_LISTED_LIMIT:
            element = name(offset, bit)
            listed.append(InjectedFlip(element.tensor, element.index, element.bit, offset))
        yield offset, bit


def _flip_all(fd: int, places: Iterator[tuple[int, int]]) -> int:
    """Flip the bits, window by window, and write back only the bytes from the first to the last that changed. Returns their number."""
    count = 0
    window = bytearray()
    start, low, high = 0, 0, 0
    for offset, bit in places:
        at = offset - start
        if not window or not 0 <= at < len(window):
            _write(fd, start + low, memoryview(window)[low:high])
            start = offset // _PAGE_BYTES * _PAGE_BYTES
            window = bytearray(_read(fd, start, _FLIP_WINDOW_BYTES))
            at = offset - start
            low, high = at, at
        window[at] ^= 1 << bit
        low, high = min(low, at), max(high, at + 1)
        count += 1
    _write(fd, start + low, memoryview(window)[low:high])
    return count
