"""Progress bars on standard error, with rate and time left.

The engine calls the sink often and from several threads: it only keeps the newest numbers. One thread of ours draws them,
and loads rich, which is slow to load, only when a task lasts long enough to be worth a bar.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from bitward.report.names import printable
from bitward_agent.findings import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

_FIRST_DRAW_SECONDS = 0.3
"""A command that is done sooner shows no bar at all."""

_REDRAW_SECONDS = 0.1
_BARS_LIMIT = 8
"""Most bars at once; a directory of many shards must not scroll the terminal."""

_NAME_CHARACTERS = 40


def _short_name(path: str) -> str:
    name = printable(path.rstrip("/").rpartition("/")[2] or path)
    return name if len(name) <= _NAME_CHARACTERS else f"{name[: _NAME_CHARACTERS - 9]}…{name[-8:]}"


def _new_bars(stream: TextIO) -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    return Bars(
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.fields[name]}", markup=False),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(file=stream),
        auto_refresh=False,
        transient=True,
        expand=True,
    )


class ProgressBars:
    """A context manager; ``sink`` is what the engine calls."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._newest: dict[tuple[str, str], Progress] = {}
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._stop = threading.Event()
        self._drawer = threading.Thread(target=self._draw, name="bitward-progress", daemon=True)

    def sink(self, progress: Progress) -> None:
        """Keep the newest numbers of a task. Calls that overtake each other never move a bar back."""
        key = (progress.task, progress.path)
        known = self._newest.get(key)
        if known is None or progress.done_bytes > known.done_bytes or progress.total_bytes != known.total_bytes:
            self._newest[key] = progress  # one dict store: atomic, no lock on the engine's path

    def __enter__(self) -> Self:
        self._drawer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._drawer.join()

    def _draw(self) -> None:
        if self._stop.wait(_FIRST_DRAW_SECONDS):
            return
        bars = _new_bars(self._stream)
        try:
            with bars:
                while True:
                    self._update(bars)
                    bars.refresh()
                    if self._stop.wait(_REDRAW_SECONDS):
                        return
        except OSError:
            return  # the terminal went away; the work goes on without bars

    def _update(self, bars: Bars) -> None:
        for key, newest in list(self._newest.items()):
            finished = newest.done_bytes >= newest.total_bytes
            if key in self._tasks:
                bars.update(self._tasks[key], completed=newest.done_bytes, total=newest.total_bytes)
                if finished and len(self._tasks) > 1:
                    bars.remove_task(self._tasks.pop(key))
                    self._newest.pop(key, None)
            elif not finished and len(self._tasks) < _BARS_LIMIT:
                task = bars.add_task(newest.task, total=newest.total_bytes, completed=newest.done_bytes, name=_short_name(newest.path))
                self._tasks[key] = task
