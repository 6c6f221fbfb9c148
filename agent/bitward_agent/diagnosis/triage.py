"""Triage: what files of weights show by themselves, without running a model, down to the element and the bit.

Reads every tensor once. Works on whatever the readers know; needs NumPy alone.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Sequence
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
from bitward_agent.errors import InputError
from bitward_agent.findings import Progress, ProgressSink
from bitward_agent.io import DISK, Disk, OpenFile, resolve
from bitward_agent.neighbours import layout_of_file
from bitward_agent.scan import default_jobs
from bitward_agent.units import list_unit
from bitward_formats.frozen import dataclass
from bitward_formats.spans import Layout, Role, Span


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
    models have them too. They are for steps that can try them.
    """

    suspects: tuple[Suspect, ...]
    bytes: int
    seconds: float
    histograms: tuple[ExponentHistogram, ...]
    notes: tuple[str, ...] = ()
    candidates: tuple[Suspect, ...] = ()


class _Triage:
    def __init__(self, jobs: int, progress: ProgressSink | None, total_bytes: int, weights: int) -> None:
        self.jobs, self.progress, self.total_bytes, self.weights = jobs, progress, total_bytes, weights
        self.suspects: list[Suspect] = []
        self.histograms: list[ExponentHistogram] = []
        self.vectors: list[Census] = []
        self.lost_pages = LostPages()
        self.done_bytes = 0
        self.lock = threading.Lock()

    def examine(self, file: OpenFile, layout: Layout, series: list[Series]) -> None:
        """All tensors of one file."""

        def on_tensor(group: Group) -> None:
            suspects: list[Suspect] = []
            histograms: list[ExponentHistogram] = []
            for part, census in enumerate(group.censuses):
                single = list(lonely(census, self.weights))
                if not any(one.kind == "not-finite" for one in single):
                    suspects += strays(census)
                suspects += single
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

        CensusTaker(file, layout, series, on_tensor, on_pages, on_bytes).run(self.jobs)

    def compare(self) -> None:
        """What only all files together show, while they are open."""
        for stack in stacks(sorted(self.vectors, key=lambda one: (one.file.path, one.series.span.offset))):
            self.suspects += lonely(stack, self.weights)
        self.suspects += self.lost_pages.suspects()


def _files(paths: Sequence[Path | str]) -> list[str]:
    """The files that paths name: themselves, or all in a directory."""
    found: list[str] = []
    for path in paths:
        real = resolve(os.fspath(path))
        if os.path.isdir(real):
            found += [member.path for member in list_unit(real).members]
        elif os.path.lexists(real):
            found.append(real)
        else:
            raise InputError(f"{os.fspath(path)}: no such file or directory")
    return list(dict.fromkeys(found))


def triage(
    paths: Sequence[Path | str], *, jobs: int | None = None, progress: ProgressSink | None = None, disk: Disk = DISK
) -> TriageReport:
    """Look for damage in files, or in all files of directories, that belong to one model.

    ``jobs`` threads read (default: as ``verify``). Files in which the readers know no tensors are passed over.

    Raises:
        InputError: a path leads nowhere.
        UnreadableError: a file or directory cannot be read.
    """
    started = time.perf_counter()
    with ExitStack() as stack:
        opened: list[tuple[OpenFile, Layout, list[Series]]] = []
        for path in _files(paths):
            file = OpenFile(path, disk=disk)
            layout = layout_of_file(file, file.state().size)
            if any(span.role is Role.TENSOR for span in layout.spans):
                opened.append((stack.enter_context(file), layout, series_of(layout)))
            else:
                file.close()
        total_bytes = sum(span.length for _, layout, _ in opened for span in layout.spans if span.role is Role.TENSOR)
        # A flip may have hit anything: a number, or a byte of codes and integers.
        weights = total_bytes - sum(one.count * (one.form.item_bytes - 1) for _, _, series in opened for one in series)
        state = _Triage(jobs or default_jobs(), progress, total_bytes, weights)
        for file, layout, series in opened:
            state.examine(file, layout, series)
        state.compare()
    suspects, candidates = settle(state.suspects)
    histograms = sorted(state.histograms, key=lambda one: (one.path, one.tensor, one.part))
    return TriageReport(suspects, state.done_bytes, time.perf_counter() - started, tuple(histograms), (), candidates)


def best_proposals(report: TriageReport) -> tuple[Suspect, ...]:
    """The suspects of a report that name a bit, likeliest first."""
    return tuple(one for one in report.suspects if one.bit is not None and not math.isnan(one.score_nats))
