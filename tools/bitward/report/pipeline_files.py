"""The reports that pipelines pick up as files: made ready before the work, written after it."""

from __future__ import annotations

import os

from bitward_agent.durable import atomic_file, refuse_other_file, remove
from bitward_agent.errors import InputError
from bitward_agent.findings import VerifyReport
from bitward_agent.io import resolve
from bitward_formats.frozen import dataclass


@dataclass(frozen=True, slots=True)
class PipelineFiles:
    """Where to write which report; ``None`` for none."""

    sarif: str | None = None
    junit: str | None = None

    def make_ready(self) -> None:
        """Remove what an earlier run left, so that a run which fails cannot be taken for that one.

        Raises:
            InputError: something else lies there, or both are one file.
            UnreadableError, WriteError: it cannot be looked at or removed.
        """
        from bitward.report import junit, sarif

        if self.sarif is not None and self.junit is not None and resolve(self.sarif) == resolve(self.junit):
            raise InputError(f"{self.sarif}: --sarif and --junit name the same file")
        for path, beginning in ((self.sarif, sarif.BEGINNING), (self.junit, junit.BEGINNING)):
            if path is None:
                continue
            refuse_other_file(path, beginning)
            if os.path.lexists(path):
                remove(os.path.join(resolve(os.path.dirname(path) or "."), os.path.basename(path)))

    def write(self, report: VerifyReport) -> None:
        """Write what was asked for.

        Raises:
            WriteError: that is not possible.
        """
        from bitward.report.junit import junit_text
        from bitward.report.sarif import sarif_text

        if self.sarif is not None:
            _write(self.sarif, sarif_text(report, os.getcwd()))
        if self.junit is not None:
            _write(self.junit, junit_text(report))


def _write(path: str, text: str) -> None:
    with atomic_file(os.path.join(resolve(os.path.dirname(path) or "."), os.path.basename(path))) as file:
        file.write_all(text.encode("utf-8"), 0)
