"""What went wrong, in one line and an exit code, when a command ends without a report."""

from __future__ import annotations

import os
import sys
import traceback

import click

from bitward.report.names import printable, printable_text
from bitward_agent.errors import BitwardError, InputError
from bitward_agent.findings import ExitCode
from bitward_formats.errors import FormatError
from bitward_formats.frozen import dataclass

INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A message for people and an exit code for programs."""

    message: str
    exit_code: int
    usage: str = ""


def _os_error(error: OSError) -> str:
    reason = printable_text(error.strerror or str(error) or type(error).__name__)
    names = [printable(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
    return f"{' -> '.join(names)}: {reason}" if names else reason


def _usage(error: click.ClickException) -> str:
    """How the command is used; the whole help for somebody who called ``bitward`` alone."""
    context = getattr(error, "ctx", None)
    if not isinstance(context, click.Context):
        return ""
    if isinstance(context.command, click.Group) and error.format_message().startswith("Missing command"):
        return context.get_help()
    return f"{context.get_usage()}\nTry '{context.command_path} --help' for help."


def failure_of(error: BaseException) -> Failure:
    """Sort an error by whose fault it is: the caller's, the files' and the machine's, or ours."""
    match error:
        case click.ClickException():
            return Failure(printable_text(error.format_message()), ExitCode.USAGE, _usage(error))
        case KeyboardInterrupt() | click.Abort():
            return Failure("interrupted", INTERRUPTED)
        case InputError():
            return Failure(printable_text(str(error)), ExitCode.USAGE)
        case FormatError() | BitwardError():
            return Failure(printable_text(str(error)) or type(error).__name__, ExitCode.CANNOT_TELL)
        case OSError():
            return Failure(_os_error(error), ExitCode.CANNOT_TELL)
        case MemoryError():
            return Failure("not enough memory", ExitCode.CANNOT_TELL)
        case _:
            detail = printable_text(f"{type(error).__name__}: {error}")
            told = f"internal fault ({detail}). This is a fault of Bitward, not of your files; BITWARD_DEBUG=1 shows where"
            return Failure(told, ExitCode.INTERNAL)


def tell(error: BaseException, *, as_json: bool) -> int:
    """Say on standard error what went wrong, with ``as_json`` also as a document on standard output. Returns the exit code."""
    failure = failure_of(error)
    try:
        if os.environ.get("BITWARD_DEBUG") == "1" and failure.exit_code != ExitCode.USAGE:
            traceback.print_exception(error)
        if failure.usage:
            sys.stderr.write(f"{failure.usage}\n")
        sys.stderr.write(f"bitward: {failure.message}\n")
        if as_json:
            from bitward.report.document import error_document

            sys.stdout.write(f"{error_document(failure.message, failure.exit_code)}\n")
    except OSError:
        pass  # nobody is left to tell; the exit code still does
    return failure.exit_code
