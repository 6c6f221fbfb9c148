"""How a command talks: report and progress, as the shared options ask for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from bitward.report.style import Style
from bitward_agent.findings import ExitCode, ProgressSink

if TYPE_CHECKING:
    from bitward.agent_reports import Answer


class Report(Protocol):
    """Every report says how the process should end."""

    @property
    def exit_code(self) -> int: ...


R = TypeVar("R", bound=Report)


@dataclass(slots=True)
class View:
    """Writes to standard output and, on a terminal, progress to standard error. A reader that goes away is borne silently."""

    as_json: bool = False
    quiet: bool = False
    progress_wanted: bool = True
    _failed: bool = False

    @contextmanager
    def progress(self) -> Iterator[ProgressSink | None]:
        """A sink for the engine, or None where nobody would see the bars."""
        if self.quiet or not self.progress_wanted or not sys.stderr.isatty():
            yield None
            return
        from bitward.report.progress import ProgressBars

        with ProgressBars(sys.stderr) as bars:
            yield bars.sink

    @property
    def speaks(self) -> bool:
        """Whether text for people is wanted."""
        return not self.as_json and not self.quiet

    def style(self) -> Style:
        return Style.of(sys.stdout)

    def write(self, lines: Iterable[str]) -> None:
        """Print lines. Characters that the stream's encoding lacks are escaped rather than fatal."""
        encoding = sys.stdout.encoding or "utf-8"
        try:
            for line in lines:
                sys.stdout.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            # `| head` has seen enough. Nothing more can be written there, not even at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            self._failed = True
            sys.stderr.write(f"bitward: the report could not be written: {error.strerror or error}\n")

    def finish_answer(self, answer: Answer, lines: Callable[[Answer, Style], Iterable[str]]) -> int:
        """As ``finish``, for a document that came from the agent."""
        if self.as_json:
            from bitward.report.document import document

            self.write([document(answer.document)])
        elif not self.quiet:
            self.write(lines(answer, self.style()))
        return ExitCode.worst([answer.exit_code, ExitCode.CANNOT_TELL]) if self._failed else answer.exit_code

    def finish(self, report: R, lines: Callable[[R, Style], Iterable[str]]) -> int:
        """Print the report as asked for and return the exit code."""
        if self.as_json:
            from bitward.report.document import document

            self.write([document(report)])
        elif not self.quiet:
            self.write(lines(report, self.style()))
        return ExitCode.worst([report.exit_code, ExitCode.CANNOT_TELL]) if self._failed else report.exit_code
