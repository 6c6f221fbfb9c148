"""The options that commands share."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import Any

import click

from bitward.cli.view import View

Command = Callable[..., int]

JOBS_LIMIT = 256
"""More threads than any machine profits from; a slip of the finger must not start thousands."""


_BYTE_COUNT = re.compile(r"(\d{1,15})([kMGT]?)(i?)B?", re.ASCII)
_BYTE_POWERS = ("", "k", "M", "G", "T")


def byte_count(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:  # noqa: ARG001 - click's signature
    """Callback of an option that takes a number of bytes: ``65536``, ``500M`` (10^6), ``2GiB`` (2^30)."""
    if value is None:
        return None
    match = _BYTE_COUNT.fullmatch(value)
    if match is None or (match[3] and not match[2]):
        raise click.BadParameter(f"{value!r} is no number of bytes, such as 65536, 500M or 2GiB")
    base = 1024 if match[3] else 1000
    count: int = int(match[1]) * base ** _BYTE_POWERS.index(match[2])
    return count


def with_view(command: Command) -> Command:
    """Add ``--json``, ``--jobs``, ``--quiet`` and ``--no-progress``. The command gets ``view`` and ``jobs``."""

    @wraps(command)
    def call(*args: Any, as_json: bool, quiet: bool, no_progress: bool, **rest: Any) -> int:
        return command(*args, view=View(as_json=as_json, quiet=quiet, progress_wanted=not no_progress), **rest)

    options = (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output."),
        click.option("--jobs", type=click.IntRange(1, JOBS_LIMIT), metavar="N", help="Threads that read and compute."),
        click.option("--quiet", is_flag=True, help="Print no text: the exit code says it all."),
        click.option("--no-progress", is_flag=True, help="No progress bars, not even on a terminal."),
    )
    decorated: Command = call
    for option in reversed(options):
        decorated = option(decorated)
    return decorated


def paths_argument(command: Command) -> Command:
    """``PATH…``: files or directories. Whether they are there is the engine's to say: a missing one is no usage error."""
    return click.argument("paths", nargs=-1, required=True, metavar="PATH...")(command)


def sidecar_dir_option(command: Command) -> Command:
    """``--sidecar-dir``: where the sidecars are if they are not beside their files."""
    text = "The directory of the sidecars, if they are not beside their files."
    return click.option("--sidecar-dir", metavar="DIR", help=text)(command)


def live_option(command: Command) -> Command:
    """``--live PID``, and ``PATH…`` that may then be left out. Put it where ``paths_argument`` would be."""

    @wraps(command)
    def call(*args: Any, paths: tuple[str, ...], live: int | None, **rest: Any) -> int:
        if not paths and live is None:
            raise click.UsageError("Missing argument 'PATH...'.", click.get_current_context())
        return command(*args, paths=paths, live=live, **rest)

    text = "What this process has mapped, in its memory; without PATH every mapped file that has a sidecar."
    decorated: Command = click.option("--live", type=click.IntRange(1), metavar="PID", help=text)(call)
    return click.argument("paths", nargs=-1, metavar="PATH...")(decorated)


@contextmanager
def ended_in_good_order() -> Iterator[None]:
    """SIGTERM and SIGHUP act as Ctrl-C: copies of a model must not be left behind half made."""

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a signal handler
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    before: dict[int, Any] = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
