"""The work loop: hears of changes, waits for writers, asks the schedule what is next, has it done. One thread runs it.

All that other threads may ask of it goes through ``Requests``.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

from bitward_agent.daemon.accounts import Accounts
from bitward_agent.daemon.config import AgentConfig, OnNew
from bitward_agent.daemon.facts import EventKind, UnitRecord
from bitward_agent.daemon.jobs import Jobs, found_now, root_of
from bitward_agent.daemon.pace import Stopped, TokenBucket
from bitward_agent.daemon.pressure import Pressure
from bitward_agent.daemon.quiet import QuietFiles
from bitward_agent.daemon.reconcile import Found, compare, devices_of, is_in_hub_cache, walk
from bitward_agent.daemon.requests import Requests
from bitward_agent.daemon.schedule import Job, JobKind, after_failure, next_job
from bitward_agent.daemon.state import Store
from bitward_agent.daemon.watch import PathQueue, Watcher
from bitward_agent.findings import Verdict
from bitward_agent.units import is_ours

WALK_SECONDS = 86_400.0
TEND_SECONDS = 60.0
PRESSURE_SECONDS = 5.0
WALK_DELAY_SECONDS = 1.0
"""How long a walk waits for more events: a folder that is moved in brings many."""

LONGEST_WAIT_SECONDS = 30.0
"""Waits are cut here, and more so for a watchdog that is to be fed."""

PAUSED_WAIT_SECONDS = 5.0
WALK_SHARE = 20
"""A walk that took a second is not done again within twenty, however much happens to folders."""

YIELD_SECONDS = 20.0
"""How long a scrub goes on before it makes room for files that wait."""

LOOKS_AT_ONCE = 256
BATCH = 64

_UNSETTLED = (None, Verdict.DAMAGED)
"""What is damaged is looked at again after any write, though size and time be as they were: somebody may have put it right."""


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
        self._pressure, self._quiet = Pressure(), QuietFiles()
        self._watcher = self._new_watcher()
        self._longest_wait = min(LONGEST_WAIT_SECONDS, longest_wait_seconds)
        self._walk_after = 0.0
        self._blobs: dict[str, Found] = {}
        self._waiting: OrderedDict[str, int] = OrderedDict()
        self._changed: dict[str, None] = {}
        self._fresh: dict[str, None] = {}
        self._walk_at, self._tend_at, self._pressure_at = 0.0, 0.0, 0.0
        self._yield_at = 0.0
        self._reasons: tuple[str, ...] = ()
        self._limits: tuple[str, ...] = ()
        self._unreachable: frozenset[str] = frozenset()
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
        self.config = config
        self.pace.set_rate(config.scrub.bytes_per_second)
        if watches_differ:
            self._watcher.stop()
            self._watcher = self._new_watcher()
            self._watcher.start()
        self._walk_at = 0.0

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
            self._changed.pop(path, None)
            self._fresh.pop(path, None)
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
        return now >= self._yield_at and (len(self.queue) > 0 or any(again <= self._clock_ns() for again in self._waiting.values()))

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
        self._take_events()
        if self._watcher.needs_walk() or self.queue.take_overflow():
            self._walk_soon()
        self._current, self._interruptible = "", False
        try:
            if now >= self._walk_at:
                self._walk_at = now + WALK_SECONDS
                self._reconcile()
            self._look_at_waiting()
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
        self._jobs.run(job, self.config)
        self._changed.pop(job.path, None)
        self._fresh.pop(job.path, None)
        self.requests.done(job.path)
        self._current = ""

    def _next(self) -> Job:
        """The next job. A few candidates are asked about first: with ten thousand new files not all are to be looked at for each."""
        now = self._clock_ns()
        requested = self.requests.scrubs()
        for path in requested:
            if self._store.unit(path) is None:
                self.requests.done(path)
        names = [*requested[:BATCH], *islice(self._changed, BATCH), *islice(self._fresh, BATCH)]
        urgent = [record for name in dict.fromkeys(names) if (record := self._store.unit(name)) is not None]
        if urgent:
            job = self._ask(urgent, now, requested)
            if job.kind is not JobKind.WAIT:
                return job
        for name in list(islice(self._fresh, BATCH)):
            del self._fresh[name]  # nothing to be done about it now; the look at all records finds it again
        if self._fresh:
            return Job(JobKind.WAIT, until_ns=now)  # the next step looks at the others
        return self._ask(self._store.units(), now, requested)

    def _ask(self, records: tuple[UnitRecord, ...] | list[UnitRecord], now: int, requested: tuple[str, ...]) -> Job:
        return next_job(
            records,
            self.config,
            now,
            changed=self._changed,
            requested=requested,
            expectations=self._store.expectations(now),
            pause_reasons=self.pause_reasons,
            busy=self._waiting,
        )

    def _wait(self, job: Job) -> None:
        now = self._clock_ns()
        longest = min(self._longest_wait, PAUSED_WAIT_SECONDS) if self.pause_reasons else self._longest_wait
        longest = min(longest, max(0.0, self._walk_at - time.monotonic()))
        until = min([job.until_ns or now + int(longest * 1e9), *self._waiting.values()])
        seconds = min(longest, max(0.0, (until - now) / 1e9))
        if seconds > 0 and (path := self.queue.take(seconds)) is not None:
            self._hear(path)

    def _idle_status(self, job: Job) -> str:
        if self.pause_reasons:
            return f"scrubbing is paused: {', '.join(self.pause_reasons)}"
        count = len(self._store.units())
        return f"{count} files known; idle{f' ({job.reason})' if job.reason else ''}"

    # ----------------------------------------------------------------------------------------------------------------- events

    def _take_events(self) -> None:
        while (path := self.queue.take()) is not None:
            self._hear(path)

    def _hear(self, path: str) -> None:
        """Something happened to a path: a file is looked at when its writer is done, below a folder everything may be new."""
        if not path:
            return
        if is_ours(path):
            self._hear_of_sidecar(path)
            return
        if os.path.isdir(path) and not os.path.islink(path):
            self._walk_soon()
            return
        if is_in_hub_cache(path):
            self._walk_soon()  # only a walk knows which links lead to a new blob
            if self._store.unit(path) is None:
                return
        self._waiting[path] = 0

    def _hear_of_sidecar(self, path: str) -> None:
        """Somebody protected a file by hand, perhaps: its sidecar is another one than that which is known."""
        record = self._store.unit(path.removesuffix(".ward"))
        if record is not None and record.sidecar == path and os.path.lexists(path) and root_of(path) != record.root:
            self._changed[record.path] = None
            if not record.root:
                self._store.put_unit(replace(record, root=root_of(path)))

    def _walk_soon(self) -> None:
        self._walk_at = min(self._walk_at, max(time.monotonic() + WALK_DELAY_SECONDS, self._walk_after))

    def _look_at_waiting(self) -> None:
        """Ask of files that wait whether their writers are done. In turn, so that many of them do not hold up everything."""
        now = self._clock_ns()
        due = list(islice((path for path, again in self._waiting.items() if again <= now), LOOKS_AT_ONCE))
        expectations = self._store.expectations(now)
        for path in due:
            if self._stop():
                raise Stopped
            watch = self.config.watch_of(path)
            record = self._store.unit(path)
            found = (self._blobs.get(path) or found_now(watch, path, record)) if watch is not None else None
            if found is None or watch is None:
                del self._waiting[path]
                self._quiet.forget(path)
                if record is not None:
                    self._vanished(record)
                elif self._store.knows_below(path) and not os.path.lexists(path):
                    self._walk_soon()  # a folder that was moved away takes its files along without a word
                continue
            if record is not None and record.verdict not in _UNSETTLED and not found.is_changed_since(record):
                del self._waiting[path]
                continue
            stillness = self._quiet.look(path, now, expectations)
            if stillness.is_gone or stillness.is_quiet:
                del self._waiting[path]
                self._quiet.forget(path)
                self._blobs.pop(path, None)
                if stillness.is_quiet:
                    self._arrived(found)
            else:
                self._waiting[path] = max(stillness.again_ns, now + 1)
                self._waiting.move_to_end(path)

    def _vanished(self, record: UnitRecord) -> None:
        """A file is not there. If its whole watch is not, that is a missing mount, and the walk says so."""
        if os.path.lexists(record.watch):
            self._jobs.gone(record, self.config)
        else:
            self._walk_soon()

    def _arrived(self, found: Found) -> None:
        """A file whose writer is done: new, changed, or as it was."""
        record = self._store.unit(found.path)
        watch = self.config.watch_of(found.path)
        if record is None:
            record = UnitRecord(
                found.path,
                found.watch,
                seen_mtime_ns=found.mtime_ns,
                seen_size=found.size,
                seen_inode=found.inode,
                sidecar=found.sidecar,
                bytes=found.size,
                root=root_of(found.sidecar) if found.has_sidecar else "",
            )
            self._store.put_unit(record, lazily=True)
            if not found.has_sidecar and watch is not None and watch.on_new is OnNew.REPORT:
                self._jobs.report_new(record)
            self._fresh[found.path] = None
        elif found.is_changed_since(record) or record.verdict in _UNSETTLED:
            if record.retry_ns:  # it was written to: no reason to wait any longer
                self._store.put_unit(replace(record, retry_ns=0), lazily=True)
            self._changed[found.path] = None

    # ------------------------------------------------------------------------------------------------------------------- walk

    def _reconcile(self) -> None:
        """Walk all watches and hold what is there against what is known."""
        self._told("looking through the watched folders")
        began = time.monotonic()
        walks = [walk(watch, self._stop) for watch in self.config.watches]
        self._walk_after = time.monotonic() + WALK_SHARE * (time.monotonic() - began)
        before = {watch.path: self._store.number(f"device:{watch.path}") for watch in self.config.watches}
        result = compare(walks, self._store.units(), before)
        for path, device in devices_of(walks, before).items():
            self._store.keep_number(f"device:{path}", device)
        self._blobs = {found.path: found for found in result.new if is_in_hub_cache(found.path)}
        for found in result.new:
            self._waiting.setdefault(found.path, 0)
        for found in result.changed:
            self._waiting.setdefault(found.path, 0)
        for record in result.gone:
            self._jobs.gone(record, self.config)
        for record in result.strays:
            self._store.remove_unit(record.path)
        self._tell_unreachable(frozenset(record.watch for record in result.unreachable))
        for found in (one for walked in walks for one in walked.found):
            known = self._store.unit(found.path)
            if known is None or known.root:
                continue
            if found.has_sidecar:
                self._store.put_unit(replace(known, root=root_of(found.sidecar)))  # somebody protected it by hand
            elif known.path not in self._waiting:
                self._fresh[known.path] = None

    def _tell_unreachable(self, watches: frozenset[str]) -> None:
        for path in sorted(watches - self._unreachable):
            self._accounts.event(EventKind.GONE, path, "out of reach: not mounted, or not to be listed; what is known of it is kept")
        for path in sorted(self._unreachable - watches):
            self._accounts.event(EventKind.RESUMED, path, "within reach again")
        self._unreachable = watches

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
