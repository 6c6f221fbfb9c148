"""Guarding weights that this process has in its memory: compared with a checkpoint's sidecar, again and again, and flips put right.

The rules are those for mapped weights (``bitward_agent.live``): only bytes that a leaf vouches for are written, and a tensor that the
program itself has changed is told as changed and left alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from bitward.guard_look import REPAIRABLE, Look, Place
from bitward.guard_tensors import HeldTensor, held_tensors
from bitward.targets import VERDICT_OF_CODE, PathLike, lone_member
from bitward_agent.errors import InputError
from bitward_agent.findings import ExitCode, FileVerification, GuardedTensor, GuardReport, Progress, Verdict
from bitward_agent.io import resolve
from bitward_agent.units import Member, list_unit
from bitward_agent.verify import open_pair
from bitward_formats.records.labels import Label, parse_label
from bitward_formats.spans import Role, Span

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d{1,9})([smhd])", re.ASCII)


def seconds_of(every: str | float | None) -> float | None:
    """``"90s"``, ``"10m"``, ``"6h"``, ``"1d"`` or a number of seconds. Raises InputError."""
    if every is None:
        return None
    if isinstance(every, str):
        match = _DURATION.fullmatch(every)
        if match is None:
            raise InputError(f"{every!r} is no time, such as 90s, 10m, 6h or 1d")
        every = int(match[1]) * _SECONDS[match[2]]
    if not 0 < every < 1e10:
        raise InputError(f"every {every} seconds makes no sense")
    return float(every)


class _Stopped(Exception):
    """The guard was stopped in the middle of a check."""


class Guard:
    """Keeps watch over tensors in memory; see :func:`bitward.guard`. A context manager: leaving it stops the watch."""

    def __init__(
        self,
        target: Any,
        path: PathLike,
        *,
        every: str | float | None,
        heal: bool,
        on_damage: Callable[[GuardReport], object] | None,
        sidecar_dir: str | None,
        bytes_per_second: int | None,
    ) -> None:
        self._target, self._heal, self._on_damage, self._rate = target, heal, on_damage, bytes_per_second
        self._every = seconds_of(every)
        if bytes_per_second is not None and bytes_per_second < 1:
            raise InputError("fewer than one byte per second make no sense")
        real = resolve(os.fspath(path))
        if os.path.isdir(real):
            self._members: tuple[Member, ...] = list_unit(real, sidecar_dir).members
        else:
            self._members = (lone_member(real, sidecar_dir, os.fspath(path)),)
        self._members = tuple(member for member in self._members if os.path.lexists(member.sidecar))
        if not self._members:
            raise InputError(f"{real}: no sidecar: 'bitward protect' makes one")
        self._turn, self._stop = threading.Lock(), threading.Event()
        self.last: GuardReport | None = None
        """What the latest check found."""
        self.error: Exception | None = None
        """Why the latest check in the background, or its callback, failed."""
        if not any(place for _, places, _ in self._matched() for place in places):
            raise InputError(f"{real}: none of its tensors is held in memory under its name, with its element type and shape")
        self._thread = threading.Thread(target=self._watch, name="bitward-guard", daemon=True)
        if self._every is not None:
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """End the watch; a check in the background is broken off. May be called again."""
        self._stop.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def check(self) -> GuardReport:
        """Check everything now, at full speed, and heal if that was asked for."""
        report = self._checked(None)
        self._tell(report)
        return report

    def _tell(self, report: GuardReport) -> None:
        if self._on_damage is not None and any(file.damage for file in report.files):
            self._on_damage(report)

    def _watch(self) -> None:
        assert self._every is not None
        while not self._stop.wait(self._every):
            try:
                self._tell(self._checked(self._rate))
                self.error = None
            except _Stopped:
                return
            except Exception as error:  # noqa: BLE001  # the watch goes on; the caller finds the reason here
                self.error = error

    def _checked(self, rate: int | None) -> GuardReport:
        with self._turn:
            started = time.monotonic()
            files: list[FileVerification] = []
            tensors: list[GuardedTensor] = []
            repaired = remaining = 0
            for member, places, apart in self._matched():
                tensors += apart
                if not places or member is None:
                    continue
                opened = open_pair(member.path, member.sidecar)
                if isinstance(opened, FileVerification):
                    files.append(replace(opened, path=member.name))
                    tensors += [GuardedTensor(one.held.name, member.name, Verdict.UNVERIFIABLE, opened.message) for one in places]
                    continue
                with contextlib.closing(opened):
                    look = Look(member.name, opened, places, heal=self._heal)
                    look.run(_Pace(rate, self._stop if rate is not None else None))
                    files.append(look.report())
                    tensors += look.tensors()
                    repaired, remaining = repaired + look.repaired, remaining + look.remaining
            code = _code_of(files, tensors)
            size = sum(file.bytes for file in files)
            self.last = GuardReport(
                *("bitward.guard/1", VERDICT_OF_CODE[code], size, time.monotonic() - started, repaired, remaining, tuple(files)),
                tensors=tuple(tensors),
                exit_code=code,
            )
            return self.last

    def _matched(self) -> Iterator[tuple[Member | None, list[Place], list[GuardedTensor]]]:
        """For each file the tensors that are held in memory, and what is to be said of those that are not guarded."""
        left = {held.name: held for held in held_tensors(self._target)}
        known: set[tuple[Any, ...]] = set()
        for member in self._members:
            opened = open_pair(member.path, member.sidecar)
            if isinstance(opened, FileVerification):
                yield member, [], [GuardedTensor("", member.name, Verdict.UNVERIFIABLE, opened.message)]
                continue
            with contextlib.closing(opened):
                spans = [span for span in opened.sidecar.layout.spans if span.role is Role.TENSOR and span.name in left]
            places, apart = [], []
            for span in spans:
                held = left.pop(span.name, None)
                if held is None:
                    continue
                reason = held.reason or _mismatch(held, span)
                if reason:
                    apart.append(GuardedTensor(held.name, member.name, Verdict.UNVERIFIABLE, f"not guarded: {reason}"))
                else:
                    known.add(held.memory)
                    places.append(Place(held, span, held.elements(parse_label(span.dtype).axes)))
            yield member, places, apart
        # A tied tensor has several names in memory, and often just one of them in the file.
        rest = [held.name for held in left.values() if held.memory not in known]
        told = "not guarded: no file has a tensor of this name"
        yield None, [], [GuardedTensor(name, "", Verdict.UNVERIFIABLE, told) for name in rest]


def _mismatch(held: HeldTensor, span: Span) -> str:
    """Why a tensor in memory is not what the file has under its name, or ""."""
    label = parse_label(span.dtype)
    element = str(Label(label.element, label.big_endian))
    if element != held.label:
        return f"it is {held.label}, and {element} in the file"
    if span.dims != held.dims:
        return f"its shape is {held.dims}, and {span.dims} in the file"
    return ""


def _code_of(files: Sequence[FileVerification], tensors: Sequence[GuardedTensor]) -> int:
    """A tensor that the file does not know says nothing; one that it has in another form cannot be told."""
    codes = {Verdict.INTACT: ExitCode.OK, Verdict.CHANGED: ExitCode.CHANGED, Verdict.UNVERIFIABLE: ExitCode.CANNOT_TELL}
    found = [codes[one.verdict] for one in tensors if one.path and one.verdict in codes]
    found += [ExitCode.CANNOT_TELL for file in files if file.verdict is Verdict.UNVERIFIABLE]
    left = {one.message for one in tensors if one.verdict is Verdict.DAMAGED}
    if left:
        found.append(ExitCode.REPAIRABLE if left == {REPAIRABLE} else ExitCode.NOT_REPAIRABLE)
    return ExitCode.worst(found)


class _Pace:
    """A progress sink that holds a check to its rate and breaks it off when the guard is stopped."""

    def __init__(self, rate: int | None, stop: threading.Event | None) -> None:
        self._rate, self._stop, self._started = rate, stop, time.monotonic()

    def __call__(self, progress: Progress) -> None:
        if self._rate is None or self._stop is None:
            return
        ahead = progress.done_bytes / self._rate - (time.monotonic() - self._started)
        if self._stop.wait(max(0.0, ahead)):
            raise _Stopped
