"""``bitward drill``: copy, damage, find, repair, compare."""

from __future__ import annotations

import signal
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any, Self

import click

from bitward.cli.options import with_view
from bitward.cli.view import View
from bitward_agent.findings import ProgressSink

DEFAULT_SEED = 1


class _Stopped:
    """Ends the drill in good order when it is told to stop: a copy of a whole model must not be left behind in TMPDIR.

    SIGTERM and SIGHUP act as Ctrl-C does. Python drops an exception that a handler raises while an object is being destroyed, so
    that the signal is remembered as well and asked for between the steps.
    """

    _NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self._seen = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._stop) for number in self._NUMBERS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a signal handler
        self._seen = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raises KeyboardInterrupt if a signal came and got lost."""
        if self._seen:
            raise KeyboardInterrupt


@click.command("drill", short_help="Damage a copy in several ways and show that it comes back.")
@click.argument("path", metavar="[PATH]", required=False)
@click.option("--seed", type=int, default=DEFAULT_SEED, show_default=True, metavar="S", help="The same seed does the same damage.")
@with_view
def command(path: str | None, seed: int, jobs: int | None, view: View) -> int:
    """Copy PATH, protect the copy, damage it, find the damage, repair it and compare: does every byte come back?

    PATH, a file or a directory, is only read. Without PATH the drill makes a small checkpoint itself.
    """
    from bitward.drill import drill
    from bitward.report.drill_text import DrillText

    text = DrillText(view.style())
    tell = (lambda event: view.write(text.lines(event))) if view.speaks else None
    with _Stopped() as stopped:

        def watch() -> AbstractContextManager[ProgressSink | None]:
            stopped.check()
            return view.progress()

        report = drill(path, seed=seed, jobs=jobs, tell=tell, watch=watch)
        stopped.check()
    return view.finish(report, text.closing)
