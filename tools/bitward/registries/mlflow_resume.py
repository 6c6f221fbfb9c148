"""Where a scrub of a registry stopped: versions that it found intact are not read again when the same command goes on.

It is kept in the state of ``bitward scrub`` (``scrub.state``): one file, one scrub at a time, a transaction for each version. What is not
plainly intact is not kept, so that it is looked at, and told, again. A scrub that reached its end begins anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bitward.registries.mlflow_options import Options
from bitward.registries.mlflow_reports import ModelVersionReport
from bitward.registries.scrub.decisions import Trust, is_due
from bitward.registries.scrub.facts import CheckTask, Effort, Finding, ObjectResult
from bitward.registries.scrub.state import State
from bitward_agent.findings import ExitCode, Verdict
from bitward_agent.sources.addresses import without_secrets
from bitward_agent.stores import Entry, ObjectState
from bitward_agent.verify_object import StoredPair

_NO_SIDECAR = ObjectState(0, "", 0)
"""A version stands for all of its artefacts and their sidecars."""


class Remembered:
    """What a scrub has found so far. A version is the same as long as its artefacts lie where they lay and the root's tag is the same."""

    def __init__(self, path: str, scrub: str) -> None:
        """``scrub`` says which scrub it is: another one's state is refused.

        Raises:
            BusyError, InputError, UnreadableError, WriteError: see ``State``.
        """
        self._scrub = scrub
        self._state = State(path)
        try:
            self._state.begin([scrub])
        except BaseException:
            self._state.close()
            raise

    def close(self) -> None:
        """Keep what there is."""
        self._state.close()

    def finish(self) -> None:
        """All versions were looked at: the next scrub begins anew, and forgets those that are gone. Raises WriteError."""
        self._state.listed(self._scrub)
        self._state.finish()

    def has(self, report: ModelVersionReport, root: str) -> bool:
        """Whether this scrub found a version intact already; else it is noted as one that is to be looked at. Raises WriteError."""
        entry = _entry(report, root)
        due = is_due(self._state.known(entry.key), entry.state.mark, _NO_SIDECAR.mark, Trust(self._state.run, 0))
        self._state.saw(entry.key, self._scrub, entry, _NO_SIDECAR.mark, Finding.WAITING if due else None)
        return not due

    def keep(self, report: ModelVersionReport, root: str) -> None:
        """Remember a version, if it is intact and there is nothing else to say of it. Raises WriteError."""
        if report.verdict is not Verdict.INTACT or report.exit_code != ExitCode.OK or report.files or report.healed:
            return
        entry = _entry(report, root)
        pair = StoredPair(entry.key, entry.state, "", _NO_SIDECAR)
        self._state.keep(CheckTask(self._scrub, entry.key, pair), ObjectResult(pair, Finding.INTACT, "", Effort(), bytes=report.bytes))


def _entry(report: ModelVersionReport, root: str) -> Entry:
    name = f"models:/{report.model}/{report.version}".encode("utf-8", "backslashreplace").decode()  # whatever the registry calls it
    return Entry(name, ObjectState(0, f"{root} {report.location}", 0))


@contextmanager
def remembered(options: Options, tracking: str, models: Sequence[str]) -> Iterator[Remembered | None]:
    """The state that the options name, if they do, for as long as the context lasts; it is at its end when the context ends well.

    Raises:
        InputError: it is the state of another scrub.
        BusyError, UnreadableError, WriteError: see ``State``.
    """
    if options.state is None:
        yield None
        return
    scrub = f"the MLflow registry {tracking}"
    if options.registry_uri:
        scrub += f" ({without_secrets(options.registry_uri)})"
    scrub += f", {', '.join(sorted(set(models))) or 'all models'}, {'with' if options.tags else 'without'} tags"
    known = Remembered(options.state, scrub)
    try:
        yield known
        known.finish()
    finally:
        known.close()
