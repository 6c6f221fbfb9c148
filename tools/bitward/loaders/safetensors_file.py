"""A safetensors file behind a gate: the interface of ``safetensors.safe_open``, with tensors on memory that was hashed.

The names and meanings are those of the safetensors package's own interface (its type stubs and documentation). Nothing of the package is
needed but its error class, where it is installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import numpy as np

from bitward.loaders.gated import Charge, GatedFile
from bitward.loaders.read_ahead import ReadAhead
from bitward.loaders.tensors import Build, Bytes, builder, rows_between
from bitward_agent.errors import BitwardError
from bitward_agent.scan import default_jobs
from bitward_formats.errors import CheckpointError
from bitward_formats.readers import safetensors as reader
from bitward_formats.readers.file_view import FileView
from bitward_formats.spans import Role, Span

SLAB_BYTES = 32 << 20
"""Neighbouring tensors that are asked for together share memory up to this size: large pages cost fewer faults. A tensor that is kept keeps
its slab."""


def safetensors_error(message: str) -> Exception:
    """The error that the safetensors package raises for what is asked wrongly; programs catch it."""
    try:
        from safetensors import SafetensorError
    except ImportError:
        return BitwardError(message)
    error: Exception = SafetensorError(message)
    return error


class NoSafetensorsError(Exception):
    """The header cannot be understood, and the policy leaves it to the real library to say so."""


class VerifiedFile:
    """What ``safe_open`` gives: names, metadata, tensors and slices of one file. A context manager; safe to use from several threads.

    Only the header and the blocks of what is asked for are read, once for each time it is asked for.
    """

    def __init__(self, gated: GatedFile, charge: Charge, framework: str, device: Any) -> None:
        """``gated`` is closed with it, or when this fails. ``framework``: pt or np. Raises LoadRefusedError, NoSafetensorsError."""
        self._gated: GatedFile | None = gated
        self._ahead: ReadAhead | None = None
        try:
            self._build: Build = builder(framework, device)
            view = FileView(gated.path, gated.size, self._fetch)
            try:
                layout, self._metadata = reader.read_layout_and_metadata(view)
            except CheckpointError as error:
                charge.unverifiable(f"is no safetensors file: {error}")
                raise NoSafetensorsError(str(error)) from error
            self._spans = {span.name: span for span in layout.spans if span.role is Role.TENSOR}
            # With one processor there is nobody to read ahead.
            self._ahead = ReadAhead(list(self._spans.values()), gated.read_right) if default_jobs() > 1 else None
        except BaseException:
            gated.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._gated is not None:
            self._end()
        self._gated = None

    def __del__(self) -> None:
        if getattr(self, "_gated", None) is not None:
            self._end()

    def _end(self) -> None:
        """Close the file, when nothing reads from it any more."""
        if self._ahead is not None:
            self._ahead.end()
        self._open.close()

    @property
    def _open(self) -> GatedFile:
        if self._gated is None:
            raise safetensors_error("File is closed")
        return self._gated

    def _fetch(self, offset: int, length: int) -> bytes:
        gated = self._open
        return gated.read(offset, min(offset + length, gated.size)).tobytes()

    def keys(self) -> list[str]:
        """Names of the tensors, sorted."""
        return sorted(self._spans)

    def offset_keys(self) -> list[str]:
        """Names of the tensors in the order of their bytes."""
        return list(self._spans)

    def metadata(self) -> dict[str, str] | None:
        """What the header says beside the tensors, or None."""
        return None if self._metadata is None else dict(self._metadata)

    def span(self, name: str) -> Span:
        """A tensor's place in the file."""
        span = self._spans.get(name)
        if span is None:
            raise safetensors_error(f"File does not contain tensor {name}")
        return span

    def get_tensor(self, name: str) -> Any:
        """One tensor, in memory of its own.

        Raises:
            LoadRefusedError: its blocks are not right, and the policy does not let them through.
        """
        gated, span = self._gated or self._open, self._spans.get(name) or self.span(name)
        data = self._ahead.take(name) if self._ahead else None
        if data is None:
            data = gated.read(span.offset, span.offset + span.length)
        else:
            gated.note_verified(span.length)
        return self._build(data, span.dtype, span.dims)

    def get_tensors(self) -> dict[str, Any]:
        """All tensors. Raises as :meth:`get_tensor`."""
        found = {}
        for slab in _slabs(self._spans.values()):
            low, high = slab[0].offset, slab[-1].end
            data = self._open.read(low, high)
            for span in slab:
                found[span.name] = self._build(data[span.offset - low : span.end - low], span.dtype, span.dims)
        return found

    def get_slice(self, name: str) -> VerifiedSlice:
        """A tensor of which parts are asked for by indexing."""
        return VerifiedSlice(self, self.span(name))

    def read_rows(self, span: Span, low: int, high: int) -> Any:
        """Some rows of a tensor's outermost dimension."""
        start, end = rows_between(span, low, high)
        data: Bytes = self._open.read(start, end)
        return self._build(data, span.dtype, (high - low, *span.dims[1:]))


def _slabs(spans: Any) -> Iterator[list[Span]]:
    """Neighbouring tensors, up to SLAB_BYTES together; larger ones alone."""
    slab: list[Span] = []
    for span in spans:
        if slab and (span.offset != slab[-1].end or span.end - slab[0].offset > SLAB_BYTES):
            yield slab
            slab = []
        slab.append(span)
    if slab:
        yield slab


class VerifiedSlice:
    """One tensor of an open file, of which only the rows that are asked for are read and verified."""

    def __init__(self, file: VerifiedFile, span: Span) -> None:
        self._file, self._span = file, span

    def get_shape(self) -> list[int]:
        """The shape in the header."""
        return list(self._span.dims)

    def get_dtype(self) -> str:
        """The element type in the header, such as BF16."""
        return self._span.dtype

    def __getitem__(self, index: Any) -> Any:
        """As for an array. What the first index selects as a range of rows is all that is read."""
        span = self._span
        parts = index if isinstance(index, tuple) else (index,)
        first = parts[0] if parts else Ellipsis
        if not span.dims or not span.length or span.dtype == "F4":
            return self._file.get_tensor(span.name)[index]
        if isinstance(first, (int, np.integer)) and not isinstance(first, bool):
            row = int(first) + (span.dims[0] if first < 0 else 0)
            if not 0 <= row < span.dims[0]:
                raise safetensors_error(f"index {first} is out of bounds for tensor {span.name} of shape {list(span.dims)}")
            return self._file.read_rows(span, row, row + 1)[(0, *parts[1:])]
        if isinstance(first, slice) and (first.step is None or first.step > 0):
            low, high, step = first.indices(span.dims[0])
            rows = self._file.read_rows(span, low, max(low, high)) if low < high else self._file.read_rows(span, 0, 0)
            return rows[(slice(None, None, step), *parts[1:])]
        return self._file.get_tensor(span.name)[index]
