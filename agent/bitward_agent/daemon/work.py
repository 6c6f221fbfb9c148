"""The work loop: takes up what arrived, asks the schedule what is next, has it done. One thread runs it.

All that other threads may ask of it goes through ``Requests``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice

from bitward_agent.daemon.accounts import Accounts
from bitward_agent.daemon.arrivals import Arrivals
from bitward_agent.daemon.config import AgentConfig
from bitward_agent.daemon.facts import EventKind, UnitRecord
from bitward_agent.daemon.jobs import Jobs
from bitward_agent.daemon.pace import Stopped, TokenBucket
from bitward_agent.daemon.pressure import Pressure
from bitward_agent.daemon.requests import Requests
from bitward_agent.daemon.schedule import Job, JobKind, after_failure, next_job
from bitward_agent.daemon.state import Store
from bitward_agent.daemon.watch import PathQueue, Watcher

TEND_SECONDS = 60.0
PRESSURE_SECONDS = 5.0
LONGEST_WAIT_SECONDS = 30.0
"""Waits are cut here, and more so for a watchdog that is to be fed."""

PAUSED_WAIT_SECONDS = 5.0
YIELD_SECONDS = 20.0
"""How long a scrub goes on before it makes room for files that wait."""

BATCH = 64


class Work:
    """The loop and what it knows between two jobs. ``status`` is the line that tells what it does."""

    def __init__(
        self,
        config: AgentConfig,
        store: Store,
        accounts: Accounts,
        *,
        stop: Callable[[], bool],
        told: Callable[[str], None],
        longest_wait_seconds: float = LONGEST_WAIT_SECONDS,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """``stop`` is asked at least every second while something is done, and ``told`` is given each new status line."""
        self.config, self._store, self._accounts = config, store, accounts
        self._stop_asked, self._told, self._clock_ns = stop, told, clock_ns
        self.queue = PathQueue()
        self.requests = Requests(self.queue)
        self.pace = TokenBucket(config.scrub.bytes_per_second)
        self._jobs = Jobs(store, accounts, self.pace, self._stop, clock_ns, told)
        self._arrivals = Arrivals(config, store, accounts, self._jobs, self.queue, stop=self._stop, told=told, clock_ns=clock_ns)
        self._pressure = Pressure()
        self._watcher = self._new_watcher()
        self._longest_wait = min(LONGEST_WAIT_SECONDS, longest_wait_seconds)
        self._tend_at, self._pressure_at = 0.0, 0.0
        self._yield_at = 0.0
        self._reasons: tuple[str, ...] = ()
        self._limits: tuple[str, ...] = ()
        self._interruptible = False
        self._current = ""

    # ------------------------------------------------------------------------------------------------------------- life cycle

    def start(self) -> None:
        """Begin to listen, and take up what a crash left."""
        self._watcher.start()
        self.requests.scrub([path for path in self._store.intents() if self._store.unit(path) is not None])

    def configure(self, config: AgentConfig) -> None:
        """Another configuration from now on. To be called by the thread of the loop, between two steps."""
        watches_differ = config.watches != self.config.watches
        self.config = self._arrivals.config = config
        self.pace.set_rate(config.scrub.bytes_per_second)
        if watches_differ:
            self._watcher.stop()
            self._watcher = self._new_watcher()
            self._watcher.start()
        self._arrivals.walk_at = 0.0

    def close(self) -> None:
        """End listening."""
        self._watcher.stop()

    def _new_watcher(self) -> Watcher:
        return Watcher(self.config.watches, self.queue.put)

    @property
    def pause_reasons(self) -> tuple[str, ...]:
        """Why scrubbing pauses; empty if it does not."""
        until = self._store.paused_until
        asked = ("paused on request",) if until > self._clock_ns() else ()
        return asked + self._reasons

    def current_fault(self) -> str:
        """The file at which a fault of ours came up, empty if at none. It is left alone for a while then."""
        path, self._current = self._current, ""
        record = self._store.unit(path)
        if record is not None:
            self._store.put_unit(after_failure(record, self._clock_ns(), "a fault of Bitward's own: see the log"))
            self._arrivals.done(path)
            self.requests.done(path)
        return path

    def _stop(self) -> bool:
        """Asked by jobs between reads. A scrub also ends for what is more urgent: a pause, a request."""
        if self._stop_asked():
            return True
        if not self._interruptible:
            return False
        now = time.monotonic()
        if now >= self._pressure_at:
            self._look_at_pressure(now)
        if self.pause_reasons or self.requests.scrubs():
            return True
        # New and changed files do not wait for the end of a long scrub.
        return now >= self._yield_at and self._arrivals.is_any_due()

    # ------------------------------------------------------------------------------------------------------------------- step

    def step(self) -> None:
        """Do the next thing, or wait a little."""
        now = time.monotonic()
        self._store.flush_if_due()
        if now >= self._tend_at:
            self._tend_at = now + TEND_SECONDS
            self._watcher.tend()
            self._tell_limits()
        if now >= self._pressure_at:
            self._look_at_pressure(now)
        self._arrivals.take_events()
        if self._watcher.needs_walk() or self.queue.take_overflow():
            self._arrivals.walk_soon()
        self._current, self._interruptible = "", False
        try:
            if now >= self._arrivals.walk_at:
                self._arrivals.look_through()
            self._arrivals.look_at_waiting()
            self._arrivals.tend_indexes()
            self._work()
        except Stopped:
            return

    def _work(self) -> None:
        job = self._next()
        if job.kind is JobKind.WAIT:
            self._told(self._idle_status(job))
            self._wait(job)
            return
        urgent = job.path in self.requests.scrubs()
        self._yield_at = time.monotonic() + YIELD_SECONDS
        self._current, self._interruptible = job.path, job.kind is JobKind.SCRUB and not urgent
        before = self._store.unit(job.path)
        self._jobs.run(job, self.config)
        self._arrivals.done(job.path)
        self._note_for_indexes(before)
        self.requests.done(job.path)
        self._current = ""

    def _note_for_indexes(self, before: UnitRecord | None) -> None:
        """What a job did to a file may concern the indexes of its folders."""
        after = None if before is None else self._store.unit(before.path)
        if before is not None and after is None:
            self._arrivals.indexes.note_removed(before, self.config, seen=True)
        elif before is not None and after is not None and (before.root, before.failures) != (after.root, after.failures):
            self._arrivals.indexes.note(before.path, self.config)

    def _next(self) -> Job:
        """The next job. A few candidates are asked about first: with ten thousand new files not all are to be looked at for each."""
        now = self._clock_ns()
        requested = self.requests.scrubs()
        for path in requested:
            if self._store.unit(path) is None:
                self.requests.done(path)
        names = [*requested[:BATCH], *islice(self._arrivals.changed, BATCH), *islice(self._arrivals.fresh, BATCH)]
        urgent = [record for name in dict.fromkeys(names) if (record := self._store.unit(name)) is not None]
        if urgent:
            job = self._ask(urgent, now, requested)
            if job.kind is not JobKind.WAIT:
                return job
        for name in list(islice(self._arrivals.fresh, BATCH)):
            del self._arrivals.fresh[name]  # nothing to be done about it now; the look at all records finds it again
        if self._arrivals.fresh:
            return Job(JobKind.WAIT, until_ns=now)  # the next step looks at the others
        return self._ask(self._store.units(), now, requested)

    def _ask(self, records: tuple[UnitRecord, ...] | list[UnitRecord], now: int, requested: tuple[str, ...]) -> Job:
        return next_job(
            records,
            self.config,
            now,
            changed=self._arrivals.changed,
            requested=requested,
            expectations=self._store.expectations(now),
            pause_reasons=self.pause_reasons,
            busy=self._arrivals.waiting,
        )

    def _wait(self, job: Job) -> None:
        now = self._clock_ns()
        longest = min(self._longest_wait, PAUSED_WAIT_SECONDS) if self.pause_reasons else self._longest_wait
        longest = min(longest, max(0.0, self._arrivals.walk_at - time.monotonic()))
        indexes = self._arrivals.indexes.seconds_left()
        longest = longest if indexes is None else min(longest, indexes)
        until = min([job.until_ns or now + int(longest * 1e9), *self._arrivals.waiting.values()])
        seconds = min(longest, max(0.0, (until - now) / 1e9))
        if seconds > 0 and (path := self.queue.take(seconds)) is not None:
            self._arrivals.hear(path)

    def _idle_status(self, job: Job) -> str:
        if self.pause_reasons:
            return f"scrubbing is paused: {', '.join(self.pause_reasons)}"
        count = len(self._store.units())
        return f"{count} files known; idle{f' ({job.reason})' if job.reason else ''}"

    def _tell_limits(self) -> None:
        limits = self._watcher.limits
        if limits != self._limits:
            for limit in limits[:20]:
                self._accounts.event(EventKind.WATCH_LIMIT, "", limit)
            self._limits = limits

    def _look_at_pressure(self, now: float) -> None:
        self._pressure_at = now + PRESSURE_SECONDS
        before = self.pause_reasons
        self._reasons = self._pressure.reasons(self.config.scrub)
        after = self.pause_reasons
        if bool(after) != bool(before):
            kind = EventKind.PAUSED if after else EventKind.RESUMED
            self._accounts.event(kind, "", f"scrubbing pauses: {', '.join(after)}" if after else "scrubbing goes on")
