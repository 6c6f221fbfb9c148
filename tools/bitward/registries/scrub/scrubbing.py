"""``bitward scrub``: from what a user asks to the report."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from bitward.registries.scrub.accounting import Account
from bitward.registries.scrub.engines import open_engine
from bitward.registries.scrub.facts import ScrubReport
from bitward.registries.scrub.report_files import NO_PARQUET, has_parquet, names_of, prepare_folder, write_files
from bitward.registries.scrub.run import Scrub, with_stores
from bitward.registries.scrub.state import State
from bitward_agent.durable import make_folder
from bitward_agent.errors import InputError
from bitward_agent.findings import ExitCode, ProgressSink
from bitward_agent.sources.addresses import without_secrets
from bitward_agent.sources.limits import Limits
from bitward_agent.stores import Store
from bitward_formats.frozen import dataclass

BAD_ROWS_LIMIT = 1000
"""Objects that are not intact which the document and the page list; the files of the report list all."""
SLOW_ROWS = 20
BAD_UNITS_LIMIT = 200
_AHEAD_LIMIT = 16
"""Windows that a worker may have under way, whatever it is told: 64 MiB."""


@dataclass(frozen=True, slots=True)
class ScrubOrder:
    """What to scrub, and how. ``jobs``: requests that each worker makes ahead for one object. ``max_age_seconds`` 0: verify everything."""

    prefixes: tuple[str, ...]
    engine: str = "local"
    workers: int | None = None
    state: str | None = None
    report_dir: str | None = None
    max_age_seconds: int = 0
    retries: int = 3
    jobs: int | None = None


def scrub(
    order: ScrubOrder, *, stop: threading.Event | None = None, progress: ProgressSink | None = None, limits: Limits | None = None
) -> ScrubReport:
    """Verify every protected object below some prefixes.

    Raises:
        InputError, MissingExtraError: what is asked for cannot be; the state is one of other prefixes.
        BusyError: another scrub uses the same state.
        WriteError: state or report cannot be written.
        SourceError: the engine cannot be started, or a store not be made ready.
    """
    started = time.monotonic()
    limits = limits or Limits()
    reports: list[ScrubReport] = []

    def use(stores: list[tuple[str, Store]]) -> None:
        folder = prepare_folder(order.report_dir) if order.report_dir else None
        names = [store.name for _, store in stores]
        identities = [store.identity for _, store in stores]
        with State(order.state or _default_state(identities)) as state:
            state.begin(names, identities)
            engine = open_engine(order.engine, order.workers, limits, min(order.jobs or 1, _AHEAD_LIMIT))
            try:
                work = Scrub(
                    *(state, engine, limits),
                    retries=order.retries,
                    max_age_ns=order.max_age_seconds * 10**9,
                    stop=stop,
                    progress=progress,
                )
                work.run(stores)
            finally:
                engine.close()
            lost = engine.workers_lost
            account = Account(state)
            report = _report(order, names, state, work, account, time.monotonic() - started, lost)
            if folder is not None:
                notes = () if has_parquet() else (NO_PARQUET,)
                report = replace(report, files=names_of(folder), notes=report.notes + notes)
                write_files(report, account)
            reports.append(report)

    if order.engine == "ray" and any(without_secrets(one) != one for one in order.prefixes):
        raise InputError("a prefix has credentials in it, which would lie open in the cluster: put them into its nodes' settings")
    # A listing that breaks off leaves all that lies behind it unverified, so it is worth more patience than one object.
    patient = replace(limits, attempts=limits.attempts + 2 * order.retries)
    with_stores(_distinct(order.prefixes), patient, use)
    return reports[0]


def _distinct(prefixes: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(prefixes))


def _default_state(identities: Sequence[str]) -> str:
    """One state for each set of prefixes, where states of programs belong (XDG Base Directory Specification)."""
    home = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    folder = os.path.join(home, "bitward", "scrub")
    make_folder(folder)
    key = hashlib.sha256(json.dumps(sorted(set(identities))).encode()).hexdigest()[:16]
    return os.path.join(folder, f"{key}.sqlite")


def _report(
    order: ScrubOrder, names: Sequence[str], state: State, work: Scrub, account: Account, seconds: float, lost: int
) -> ScrubReport:
    account.settle_units()
    problems = state.problems()
    totals = account.totals(work.skipped, work.tries)
    code = ExitCode.worst([account.exit_code(), *([ExitCode.CANNOT_TELL] if problems or work.interrupted else [])])
    notes = [] if totals.objects or problems else ["nothing was found: neither checkpoints nor sidecars"]
    verified, fetched = account.bytes()
    return ScrubReport(
        "bitward.scrub/1",
        tuple(sorted(names)),
        order.engine,
        state.run,
        state.resumed,
        work.interrupted,
        seconds,
        verified,
        fetched,
        totals,
        account.ages(),
        account.bad(BAD_ROWS_LIMIT),
        account.slow(SLOW_ROWS),
        account.units(),
        tuple(account.unit_rows(bad_only=True, limit=BAD_UNITS_LIMIT)),
        tuple(problems),
        tuple(sorted(work.workers.values(), key=lambda one: one.worker)),
        lost,
        state.path,
        notes=tuple(notes),
        exit_code=code if totals.objects or problems else ExitCode.CANNOT_TELL,
    )
