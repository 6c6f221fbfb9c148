"""The census of a file's numbers: exponents counted per tensor, and for each row its largest, its smallest and its usual magnitude.

Spans are read once, in chunks of whole rows, by a few threads; a tensor's rows are judged when its last chunk is in, and forgotten. So
memory is that of the tensors under way: about 12 bytes for each row.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bitward_agent.diagnosis.series import Bits, FloatForm, Series
from bitward_agent.io import OpenFile, Range
from bitward_formats.frozen import dataclass
from bitward_formats.spans import Layout, Role, Span

CHUNK_BYTES = 1 << 20
PAGE_BYTES = 4096


class Countable(Protocol):
    """What numbers in rows are to those who judge them: the fields of ``Census``."""

    @property
    def exponents(self) -> npt.NDArray[np.int64]: ...
    @property
    def top(self) -> Bits: ...
    @property
    def low(self) -> Bits: ...
    @property
    def usual(self) -> npt.NDArray[np.float32]: ...
    @property
    def form(self) -> FloatForm: ...
    @property
    def row_length(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def column_rows(self) -> int: ...

    def place(self, row: int, column: int) -> tuple[str, Series, int]: ...

    def read_row(self, row: int) -> Bits: ...


@dataclass(frozen=True, slots=True)
class Census:
    """What is known of a series.

    ``exponents[e]`` counts numbers with exponent field e. For each row: ``top``, the largest magnitude as bits; ``low``, the smallest that
    is not zero, as bits less one (all ones: there is none); ``usual``, the mean of its magnitudes' bits, in float32.
    """

    file: OpenFile
    series: Series
    exponents: npt.NDArray[np.int64]
    top: Bits
    low: Bits
    usual: npt.NDArray[np.float32]

    @property
    def form(self) -> FloatForm:
        return self.series.form

    @property
    def column_rows(self) -> int:
        """Fewest sampled rows that tell a column's scale."""
        return 16

    @property
    def row_length(self) -> int:
        return self.series.row_length

    @property
    def count(self) -> int:
        return self.series.count

    def place(self, row: int, column: int) -> tuple[str, Series, int]:
        """Where a number is: (file, series, number in it)."""
        return self.file.path, self.series, row * self.series.row_length + column

    def read_row(self, row: int) -> Bits:
        """The numbers of a row as bits."""
        series = self.series
        count = series.row_size(row)
        start = row * series.row_length * series.stride
        data = self.file.read(series.span.offset + start, count * series.stride)
        data += bytes(count * series.stride - len(data))  # the file was cut meanwhile
        return series.values(data, row * series.row_length, count, start)

    def take(self, data: memoryview, first_row: int, row_count: int, start: int) -> npt.NDArray[np.int64]:
        """Put rows into the arrays; returns their exponents' counts. ``data`` lies ``start`` bytes into the span."""
        series, form = self.series, self.series.form
        first = first_row * series.row_length
        count = min(series.count - first, row_count * series.row_length)
        values = series.values(data, first, count, start)
        magnitudes = values & values.dtype.type(form.magnitude_mask)
        whole = count // series.row_length
        grid = magnitudes[: whole * series.row_length].reshape(whole, series.row_length)
        self._take_rows(grid, slice(first_row, first_row + whole))
        if whole < row_count:
            self._take_rows(magnitudes[None, whole * series.row_length :], slice(first_row + whole, first_row + row_count))
        fields = magnitudes >> magnitudes.dtype.type(form.mantissa_bits)
        return np.bincount(fields.astype(np.intp, copy=False), minlength=self.exponents.size)

    def _take_rows(self, grid: Bits, rows: slice) -> None:
        if not grid.size:
            return
        self.top[rows] = grid.max(axis=1)
        self.low[rows] = (grid - grid.dtype.type(1)).min(axis=1)
        # Sums of four-byte magnitudes by their upper halves: a mean needs no more, and 32 bits hold it.
        shift = max(0, 8 * grid.itemsize - 16)
        upper = (grid >> grid.dtype.type(shift)).astype(np.uint16) if shift else grid
        means = upper.sum(axis=1, dtype=np.uint64 if grid.shape[1] > 1 << 16 else np.uint32) / grid.shape[1]
        self.usual[rows] = means * float(1 << shift)


@dataclass(frozen=True, slots=True)
class Group:
    """A tensor's span, of which all series have the same rows, or none."""

    span: Span
    censuses: tuple[Census, ...]

    @property
    def row_bytes(self) -> int:
        return self.censuses[0].series.row_length * self.censuses[0].series.stride if self.censuses else PAGE_BYTES

    @property
    def rows_per_chunk(self) -> int:
        return max(1, CHUNK_BYTES // self.row_bytes)

    @property
    def row_count(self) -> int:
        return -(-self.span.length // self.row_bytes)


def _group(file: OpenFile, span: Span, series: list[Series]) -> Group:
    censuses = []
    for one in series:
        dtype = np.dtype(f"=u{one.form.item_bytes}")
        rows = one.row_count
        exponents = np.zeros(1 << one.form.exponent_bits, np.int64)
        censuses.append(Census(file, one, exponents, np.zeros(rows, dtype), np.zeros(rows, dtype), np.zeros(rows, np.float32)))
    return Group(span, tuple(censuses))


Chunk = tuple[Group, int, int]
"""(tensor, first row, number of rows)."""

PageSink = Callable[[Span, memoryview, int, int], None]
"""(span, bytes, offset of the first one in the file, how many of them are this chunk's own): what follows these is there for whole
pages."""


def _chunks(file: OpenFile, layout: Layout, series: list[Series]) -> Iterator[Chunk]:
    of_span: dict[int, list[Series]] = {}
    for one in series:
        of_span.setdefault(one.span.offset, []).append(one)
    for span in layout.spans:
        if span.role is not Role.TENSOR or not span.length:
            continue
        group = _group(file, span, of_span.get(span.offset, []))
        for first in range(0, group.row_count, group.rows_per_chunk):
            yield group, first, min(group.rows_per_chunk, group.row_count - first)


class CensusTaker:
    """Reads the tensors of one file in several threads; ``on_tensor`` gets each census when it is complete, in whichever thread."""

    def __init__(
        self,
        file: OpenFile,
        layout: Layout,
        series: list[Series],
        on_tensor: Callable[[Group], None],
        on_pages: PageSink | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> None:
        self._file, self._on_tensor, self._on_pages, self._on_bytes = file, on_tensor, on_pages, on_bytes
        self._pending = _chunks(file, layout, series)
        self._left: dict[int, int] = {}
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self.unreadable: list[Range] = []

    def run(self, jobs: int) -> None:
        """Take all of it. What cannot be read counts as zeros, and stands in ``unreadable`` afterwards.

        Raises:
            UnreadableError: the file cannot be read for a reason other than bad sectors.
        """
        threads = [threading.Thread(target=self._work, name=f"bitward-census-{number}") for number in range(jobs - 1)]
        for thread in threads:
            thread.start()
        self._work()
        for thread in threads:
            thread.join()
        if self._error:
            raise self._error

    def _next(self) -> Chunk | None:
        with self._lock:
            return None if self._error else next(self._pending, None)

    def _work(self) -> None:
        buffer = bytearray(CHUNK_BYTES + PAGE_BYTES)
        try:
            while (chunk := self._next()) is not None:
                group, first, count = chunk
                size = min(group.span.length - first * group.row_bytes, count * group.row_bytes)
                if size + PAGE_BYTES > len(buffer):
                    buffer = bytearray(size + PAGE_BYTES)
                self._take(group, first, count, size, memoryview(buffer))
        except BaseException as error:  # noqa: BLE001  # carried to the caller's thread
            self._error = error

    def _take(self, group: Group, first: int, count: int, size: int, buffer: memoryview) -> None:
        start = first * group.row_bytes
        more = min(PAGE_BYTES, group.span.length - start - size) if self._on_pages else 0
        view = buffer[: size + more]
        lost = self._file.read_into(view, group.span.offset + start)
        counts = [census.take(view[:size], first, count, start) for census in group.censuses]
        if self._on_pages:
            self._on_pages(group.span, view, group.span.offset + start, size)
        with self._lock:
            self.unreadable += lost
            for census, some in zip(group.censuses, counts, strict=True):
                census.exponents[:] += some
            left = self._left.get(id(group), group.row_count) - count
            self._left[id(group)] = left
            if not left:
                del self._left[id(group)]
            if self._on_bytes:
                self._on_bytes(size)
        if not left:
            self._on_tensor(group)
