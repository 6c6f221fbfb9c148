"""``bitward scrub``: verify everything in a store."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from bitward.cli.options import with_view
from bitward.cli.view import View

_DURATION = re.compile(r"(\d{1,9})([smhdw]?)", re.ASCII)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def _duration(context: click.Context, parameter: click.Parameter, value: str | None) -> int:  # noqa: ARG001 - click's signature
    """Seconds of ``90``, ``15m``, ``12h``, ``7d`` or ``2w``."""
    if value is None:
        return 0
    match = _DURATION.fullmatch(value)
    if match is None:
        raise click.BadParameter(f"{value!r} is no span of time, such as 90s, 15m, 12h, 7d or 2w")
    return int(match[1]) * _SECONDS[match[2]]


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """Ctrl-C, SIGTERM and SIGHUP end a scrub in good order: its state is kept, its report is written. A second one ends it at once."""
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a signal handler
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@click.command("scrub", short_help="Verify every model in an object store.")
@click.argument("prefixes", nargs=-1, required=True, metavar="URL-PREFIX...")
@click.option("--engine", type=click.Choice(("local", "ray")), default="local", show_default=True, help="Processes here, or a Ray cluster.")
@click.option("--workers", type=click.IntRange(1, 1024), metavar="N", help="Worker processes; as many as processors, unless given.")
@click.option("--state", metavar="FILE", help="Where to remember verdicts, to go on from after any end.")
@click.option("--report-dir", metavar="DIR", help="Write the report there: JSON lines, Parquet and an HTML page.")
@click.option("--max-age", callback=_duration, metavar="SPAN", help="Leave out what was intact within SPAN (12h, 7d) and is the same.")
@click.option("--retries", type=click.IntRange(0, 100), default=3, show_default=True, metavar="N", help="More tries for each object.")
@with_view
def command(prefixes: tuple[str, ...], max_age: int, view: View, **rest: Any) -> int:
    """Verify every checkpoint below each URL-PREFIX (s3://bucket/models/, gs://…, a folder) against the sidecar NAME.ward beside it.

    Nothing is written to the stores. Objects are read by ranges, by many workers, each in bounded memory. A scrub that is interrupted or
    killed goes on where it was when the same command is given again.
    """
    from bitward.registries.scrub.scrubbing import ScrubOrder, scrub
    from bitward.report.scrub_text import scrub_lines

    order = ScrubOrder(prefixes, max_age_seconds=max_age, **rest)
    with _stopped_by_signals() as stop, view.progress() as sink:
        report = scrub(order, stop=stop, progress=sink)
    return view.finish(report, scrub_lines)
