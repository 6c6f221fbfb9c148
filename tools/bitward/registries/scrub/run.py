"""The scrub itself: lists, hands out tasks, keeps what comes back. One thread; the workers are elsewhere, and only this keeps anything."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from bitward.registries.scrub.check import failed
from bitward.registries.scrub.decisions import Trust, is_due, pause_before
from bitward.registries.scrub.engines import Ended, Engine
from bitward.registries.scrub.facts import CheckTask, Finding, ObjectResult, Result, Task, UnitTask, WorkerUse
from bitward.registries.scrub.pairing import Index, Protected, SidecarAlone, Unprotected, paired
from bitward.registries.scrub.state import State
from bitward_agent.errors import BitwardError
from bitward_agent.findings import Progress, ProgressSink
from bitward_agent.sources.limits import Limits
from bitward_agent.stores import Entry, Store, Unlisted
from bitward_agent.stores.opening import open_store
from bitward_agent.verify_object import StoredPair

_LOOK_SECONDS = 0.5
"""How long at most it takes to see that the user wants it to stop, or that a pause is over."""
_DELAYED_LIMIT = 1000
"""Tasks that wait for another try; with so many in trouble nothing new is begun."""
_WORKERS_TOLD = 256


class _Stopped(Exception):
    """Whoever started the scrub wants it to stop."""


class Scrub:
    """One scrub over some prefixes. ``stop`` may be set by anybody: then no more is begun, and what is under way is given up."""

    def __init__(
        self,
        state: State,
        engine: Engine,
        limits: Limits,
        *,
        retries: int,
        max_age_ns: int,
        stop: threading.Event | None = None,
        progress: ProgressSink | None = None,
    ) -> None:
        self.state, self.engine, self.limits = state, engine, limits
        self.retries, self.max_age_ns = retries, max_age_ns
        self.stop = stop or threading.Event()
        self.progress = progress
        self.interrupted = False
        self.skipped = self.tries = 0
        self.workers: dict[str, WorkerUse] = {}
        self._delayed: list[tuple[float, int, Task]] = []
        self._numbers = itertools.count()
        self._listed_bytes = self._done_bytes = 0

    def run(self, prefixes: Sequence[tuple[str, Store]]) -> None:
        """Scrub all of it in the run that the state has begun. ``prefixes``: each address as the user gave it, and its store.

        Raises:
            WriteError: the state cannot be written.
        """
        self._work(task for address, store in prefixes for task in self._found(address, store))
        self._work(task for address, store in prefixes for task in self.state.units_due(store.name, address))
        self.state.commit()
        if not self.interrupted:
            self.state.finish()

    # ------------------------------------------------------------------------------------------------------------- listing

    def _found(self, address: str, store: Store) -> Iterator[Task]:
        """The tasks of a prefix; all else that the listing tells is kept on the way."""
        trust = Trust(self.state.run, time.time_ns(), self.max_age_ns)
        is_whole = True
        try:
            for found in paired(self._until_stopped(store.entries())):
                if isinstance(found, Unlisted):
                    is_whole = False
                    self.state.problem(store.shown(found.key), found.message)
                    continue
                url = store.shown(found.entry.key)
                if isinstance(found, Protected):
                    task = self._protected(found, url, address, store, trust)
                    if task is not None:
                        yield task
                elif isinstance(found, Index):
                    self.state.saw_index(UnitTask(address, url, found.folder, found.entry.key, found.entry.state), store.name)
                elif isinstance(found, Unprotected):
                    told = "no sidecar beside it: 'bitward protect' makes one"
                    self.state.saw(url, store.name, found.entry, "", Finding.UNPROTECTED, told)
                elif isinstance(found, SidecarAlone):
                    told = "a sidecar without its object: was that removed on purpose?"
                    self.state.saw(url, store.name, found.entry, "", Finding.SIDECAR_ALONE, told)
        except _Stopped:
            return
        except BitwardError as error:
            self.state.problem(store.name, str(error))
            return
        self.state.commit()
        if is_whole:
            self.state.listed(store.name)

    def _until_stopped(self, entries: Iterator[Entry | Unlisted]) -> Iterator[Entry | Unlisted]:
        """A listing may be long and bring no task; where it breaks off, what waits for its sidecar must not pass for one without."""
        for entry in entries:
            if self.stop.is_set():
                raise _Stopped
            yield entry

    def _protected(self, found: Protected, url: str, address: str, store: Store, trust: Trust) -> CheckTask | None:
        mark, sidecar_mark = found.entry.state.mark, found.sidecar.state.mark
        due = is_due(self.state.known(url), mark, sidecar_mark, trust)
        rewritten = self.state.rewritten(url, mark, sidecar_mark)
        self.state.saw(url, store.name, found.entry, sidecar_mark, Finding.WAITING if due else None)
        if not due:
            self.skipped += 1
            return None
        self._listed_bytes += found.entry.state.size
        pair = StoredPair(found.entry.key, found.entry.state, found.sidecar.key, found.sidecar.state, rewritten)
        return CheckTask(address, url, pair)

    # ------------------------------------------------------------------------------------------------------------- working

    def _work(self, tasks: Iterator[Task]) -> None:
        while not self.stop.is_set():
            while self.engine.under_way < self.engine.capacity and not self.stop.is_set():
                task = self._next(tasks)
                if task is None:
                    break
                self.engine.submit(task)
            if not self.engine.under_way and not self._delayed:
                return
            self._wait()
        self.interrupted = True
        for ended in self.engine.wait(0.0) if self.engine.under_way else ():  # verdicts that are here already
            self._take(ended)

    def _next(self, tasks: Iterator[Task]) -> Task | None:
        """What to begin now: first what waited long enough, then what is new."""
        if self._delayed and self._delayed[0][0] <= time.monotonic():
            return heapq.heappop(self._delayed)[2]
        return next(tasks, None) if len(self._delayed) < _DELAYED_LIMIT else None

    def _wait(self) -> None:
        seconds = _LOOK_SECONDS
        if self._delayed:
            seconds = max(0.01, min(seconds, self._delayed[0][0] - time.monotonic()))
        if not self.engine.under_way:
            self.stop.wait(seconds)
            return
        for ended in self.engine.wait(seconds):
            self._take(ended)

    def _take(self, ended: Ended) -> None:
        task, result = ended.task, ended.result
        self.tries += 1
        if result is None:
            result = failed(task, Finding.UNCHECKED, ended.message, passing=True)
        else:
            self._count(result)
        if result.passing:
            pause = pause_before(task.attempt + 1, self.retries)
            if pause is not None:
                if isinstance(task, CheckTask):
                    self.state.tried(task.url)
                later = replace(task, attempt=task.attempt + 1)
                heapq.heappush(self._delayed, (time.monotonic() + pause, next(self._numbers), later))
                return
        if isinstance(task, UnitTask):
            assert not isinstance(result, ObjectResult)
            self.state.keep_unit(task, result)
            return
        assert isinstance(result, ObjectResult)
        self.state.keep(task, result)
        self._done_bytes += task.pair.state.size
        if self.progress:
            self.progress(Progress("scrub", "all objects that are listed so far", self._done_bytes, self._listed_bytes))

    def _count(self, result: Result) -> None:
        effort = result.effort
        known = self.workers.get(effort.worker)
        if known is None:
            if len(self.workers) >= _WORKERS_TOLD:
                return
            known = WorkerUse(effort.worker, 0, 0)
        self.workers[effort.worker] = WorkerUse(effort.worker, known.tasks + 1, max(known.peak_rss_bytes, effort.peak_rss_bytes))


def with_stores(addresses: Sequence[str], limits: Limits, use: Callable[[list[tuple[str, Store]]], None]) -> None:
    """Call ``use`` with the stores of some addresses, and close them. Raises what ``open_store`` does."""
    stores: list[tuple[str, Store]] = []
    try:
        for address in addresses:
            stores.append((address, open_store(address, limits)))  # noqa: PERF401 - those that were opened are closed
        use(stores)
    finally:
        for _, store in stores:
            store.close()
