"""Triage: what files of weights show by themselves, without running a model, down to the element and the bit.

Reads every tensor once. Works on whatever the readers know; needs NumPy alone.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from bitward_agent.diagnosis.census import Census, CensusTaker, Group
from bitward_agent.diagnosis.facts import Suspect
from bitward_agent.diagnosis.lonely import lonely
from bitward_agent.diagnosis.lost_pages import LostPages
from bitward_agent.diagnosis.series import Series, series_of
from bitward_agent.diagnosis.settling import settle
from bitward_agent.diagnosis.siblings import is_vector, stacks
from bitward_agent.diagnosis.strays import strays
from bitward_agent.errors import InputError, UnreadableError
from bitward_agent.findings import Progress, ProgressSink
from bitward_agent.io import DISK, Disk, FileState, OpenFile, Range, merge_ranges, resolve
from bitward_agent.neighbours import layout_of_file
from bitward_agent.scan import default_jobs
from bitward_agent.units import list_unit
from bitward_formats.frozen import dataclass
from bitward_formats.spans import Layout, Role, Span

_WEIGHTS = re.compile(r"(\.(safetensors|gguf)|pytorch_model[^/]*\.bin)$", re.IGNORECASE)
"""Files that are weights by their names: one of these in which no tensors are known is damaged, or something else than it says."""
FILES_AT_ONCE = 256
"""Files that are open together."""


@dataclass(frozen=True, slots=True)
class ExponentHistogram:
    """``counts[i]`` numbers of a tensor (or of one scale of its blocks, ``part`` counts these) have exponent field ``first + i``.

    ``2 ** (field - bias)`` is the least magnitude of a field; field 0 holds zero and what is smaller than all others.
    """

    path: str
    tensor: str
    part: int
    dtype: str
    bias: int
    first: int
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TriageReport:
    """``suspects`` by falling score; those with a ``bit`` are proposals, the others words. ``bytes`` were read of tensors.

    ``candidates`` are the likeliest un-flips of those that the census alone does not justify, at most ``settling.CANDIDATES_LIMIT``: clean
    models have them too. They are for steps that can try them. ``is_whole`` unless weights could not be looked at; ``notes`` say which.
    """

    suspects: tuple[Suspect, ...]
    bytes: int
    seconds: float
    histograms: tuple[ExponentHistogram, ...]
    notes: tuple[str, ...] = ()
    candidates: tuple[Suspect, ...] = ()
    is_whole: bool = True


@dataclass(frozen=True, slots=True)
class _File:
    """A file with tensors, not open."""

    path: str
    state: FileState
    layout: Layout
    series: list[Series]


class _Triage:
    def __init__(self, jobs: int, progress: ProgressSink | None, total_bytes: int, weights: int) -> None:
        self.jobs, self.progress, self.total_bytes, self.weights = jobs, progress, total_bytes, weights
        self.suspects: list[Suspect] = []
        self.histograms: list[ExponentHistogram] = []
        self.notes: list[str] = []
        self.unreadable: dict[str, list[Range]] = {}
        self.vectors: list[Census] = []
        self.lost_pages = LostPages()
        self.done_bytes = 0
        self.lock = threading.Lock()

    def examine(self, file: OpenFile, known: _File) -> None:
        """All tensors of one file."""

        def on_tensor(group: Group) -> None:
            suspects: list[Suspect] = []
            histograms: list[ExponentHistogram] = []
            for part, census in enumerate(group.censuses):
                single = list(lonely(census, self.weights))
                told = {one.kind for one in single}
                suspects += [*single, *(one for one in strays(census) if one.kind not in told)]
                filled = census.exponents.nonzero()[0]
                if filled.size:
                    first, last = int(filled[0]), int(filled[-1])
                    counts = tuple(map(int, census.exponents[first : last + 1]))
                    span = group.span
                    histograms.append(ExponentHistogram(file.path, span.name, part, span.dtype, census.series.form.bias, first, counts))
            with self.lock:
                self.suspects += suspects
                self.histograms += histograms
                self.vectors += filter(is_vector, group.censuses)

        def on_pages(span: Span, view: memoryview, offset: int, own_bytes: int) -> None:
            self.lost_pages.add(file, span, view, offset, own_bytes)

        def on_bytes(count: int) -> None:
            self.done_bytes += count
            if self.progress:
                self.progress(Progress("triage", file.path, self.done_bytes, self.total_bytes))

        taker = CensusTaker(file, known.layout, known.series, on_tensor, on_pages, on_bytes)
        taker.run(self.jobs)
        lost = self.unreadable[file.path] = merge_ranges(taker.unreadable)
        if lost:
            count = sum(high - low for low, high in lost)
            self.notes.append(f"{file.path}: {count:,} bytes cannot be read, the first at byte {lost[0][0]:,}")
        if file.state() != known.state:
            self.notes.append(f"{file.path}: it was changed while it was read")

    def compare(self) -> None:
        """What only files together show, while they are open."""
        for stack in stacks(sorted(self.vectors, key=lambda one: (one.file.path, one.series.span.offset))):
            self.suspects += lonely(stack, self.weights)
        for one in self.lost_pages.suspects():
            end = one.offset + one.length_bytes
            if not any(low < end and one.offset < high for low, high in self.unreadable[one.path]):
                self.suspects.append(one)
        self.vectors, self.lost_pages = [], LostPages()


def _paths(paths: Sequence[Path | str]) -> dict[str, bool]:
    """The files that paths name: themselves, or all in a directory; and whether they were named themselves."""
    found: dict[str, bool] = {}
    for path in paths:
        real = resolve(os.fspath(path))
        if os.path.isdir(real):
            for member in list_unit(real).members:
                found.setdefault(member.path, False)
        elif os.path.lexists(real):
            found[real] = True
        else:
            raise InputError(f"{os.fspath(path)}: no such file or directory")
    return found


def _files(paths: dict[str, bool], notes: list[str], gaps: list[str], disk: Disk) -> Iterator[_File]:
    """The files that hold tensors. What is in a directory and cannot be read is noted; ``gaps`` are weights among that."""
    for path, is_named in paths.items():
        try:
            with OpenFile(path, disk=disk) as file:
                state = file.state()
                layout = layout_of_file(file, state.size)
        except UnreadableError as error:
            if is_named:
                raise
            notes.append(str(error))
            gaps.append(path)
            continue
        if any(span.role is Role.TENSOR for span in layout.spans):
            yield _File(path, state, layout, series_of(layout))
        elif layout.note:
            notes.append(f"{path}: {layout.note}")
            if _WEIGHTS.search(path):
                gaps.append(path)


def triage(
    paths: Sequence[Path | str], *, jobs: int | None = None, progress: ProgressSink | None = None, disk: Disk = DISK
) -> TriageReport:
    """Look for damage in files, or in all files of directories, that belong to one model.

    ``jobs`` threads read (default: as ``verify``). Files in which the readers know no tensors are passed over, as are those of a directory
    that cannot be read (``notes`` say so; if they are weights by their names, the report is not ``is_whole``). Vectors and pages are
    compared between up to ``FILES_AT_ONCE`` files.

    Raises:
        InputError: a path leads nowhere.
        UnreadableError: a file that was named, or a directory, cannot be read.
    """
    started = time.perf_counter()
    notes: list[str] = []
    gaps: list[str] = []
    files = list(_files(_paths(paths), notes, gaps, disk))
    total_bytes = sum(span.length for file in files for span in file.layout.spans if span.role is Role.TENSOR)
    # A flip may have hit anything: a number, or a byte of codes and integers.
    weights = total_bytes - sum(one.count * (one.form.item_bytes - 1) for file in files for one in file.series)
    state = _Triage(jobs or default_jobs(), progress, total_bytes, weights)
    for first in range(0, len(files), FILES_AT_ONCE):
        with ExitStack() as stack:
            for one in files[first : first + FILES_AT_ONCE]:
                state.examine(stack.enter_context(OpenFile(one.path, disk=disk)), one)
            state.compare()
    suspects, candidates = settle(state.suspects)
    histograms = sorted(state.histograms, key=lambda one: (one.path, one.tensor, one.part))
    seconds = time.perf_counter() - started
    is_whole = not (gaps or state.notes)
    return TriageReport(suspects, state.done_bytes, seconds, tuple(histograms), (*notes, *state.notes), candidates, is_whole)


def best_proposals(report: TriageReport) -> tuple[Suspect, ...]:
    """The suspects of a report that name a bit, likeliest first."""
    return tuple(one for one in report.suspects if one.bit is not None and not math.isnan(one.score_nats))
