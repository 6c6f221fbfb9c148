"""What came, changed or went below the watches: heard of by events, found by walks, taken up when its writer is done.

Whatever is heard only puts a path in line. Its file is looked at here, in turn, and is work for the loop when nobody writes to it any more.
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
from bitward_agent.daemon.jobs import Jobs, root_of
from bitward_agent.daemon.pace import Stopped
from bitward_agent.daemon.quiet import QuietFiles
from bitward_agent.daemon.reconcile import Found, compare, devices_of, found_now, is_in_hub_cache, walk
from bitward_agent.daemon.state import Store
from bitward_agent.daemon.unit_indexes import UnitIndexes
from bitward_agent.daemon.watch import PathQueue
from bitward_agent.findings import Verdict
from bitward_agent.units import is_ours
from bitward_formats.unit_index import UNIT_INDEX_NAME

WALK_SECONDS = 86_400.0
WALK_DELAY_SECONDS = 1.0
"""How long a walk waits for more events: a folder that is moved in brings many."""

WALK_SHARE = 20
"""A walk that took a second is not done again within twenty, however much happens to folders."""

LOOKS_AT_ONCE = 256

_UNSETTLED = (None, Verdict.DAMAGED)
"""What is damaged is looked at again after any write, though size and time be as they were: somebody may have put it right."""


class Arrivals:
    """Files whose writers may not be done (``waiting``: when each is looked at again, in ns), and those that are work.

    ``changed`` and ``fresh`` are the latter, in the order in which they came. ``unreachable`` are watches whose mount is missing. For the
    thread of the work loop.
    """

    def __init__(
        self,
        config: AgentConfig,
        store: Store,
        accounts: Accounts,
        jobs: Jobs,
        queue: PathQueue,
        *,
        stop: Callable[[], bool],
        told: Callable[[str], None],
        clock_ns: Callable[[], int],
    ) -> None:
        """``stop`` is asked between any two files, and ``told`` is given a line for people."""
        self.config, self._store, self._accounts, self._jobs, self._queue = config, store, accounts, jobs, queue
        self._stop, self._told, self._clock_ns = stop, told, clock_ns
        self.indexes = UnitIndexes(store, accounts, clock_ns)
        self.waiting: OrderedDict[str, int] = OrderedDict()
        self.changed: dict[str, None] = {}
        self.fresh: dict[str, None] = {}
        self.unreachable: frozenset[str] = frozenset()
        self.walk_at = 0.0
        self._quiet = QuietFiles()
        self._blobs: dict[str, Found] = {}
        self._walk_after = 0.0
        self._has_walked = False

    def done(self, path: str) -> None:
        """A job about a file was done."""
        self.changed.pop(path, None)
        self.fresh.pop(path, None)

    def is_any_due(self) -> bool:
        """Whether something was heard, or a file is to be looked at again."""
        return len(self._queue) > 0 or any(again <= self._clock_ns() for again in self.waiting.values())

    def tend_indexes(self) -> None:
        """Bring indexes of directories up to date whose files are settled."""
        self.indexes.tend(self.config, [*self.waiting, *self.changed, *self.fresh], self.unreachable)

    # ----------------------------------------------------------------------------------------------------------------- events

    def take_events(self) -> None:
        while (path := self._queue.take()) is not None:
            self.hear(path)

    def hear(self, path: str) -> None:
        """Something happened to a path: a file is looked at when its writer is done, below a folder everything may be new."""
        if not path:
            return
        if is_ours(path):
            if os.path.basename(path) == UNIT_INDEX_NAME:
                self.indexes.note_folder(os.path.dirname(path))
            else:
                self._hear_of_sidecar(path)
            return
        if os.path.isdir(path) and not os.path.islink(path):
            self.walk_soon()
            return
        if is_in_hub_cache(path):
            self.walk_soon()  # only a walk knows which links lead to a new blob
            if self._store.unit(path) is None:
                return
        self.waiting[path] = 0

    def _hear_of_sidecar(self, path: str) -> None:
        """Somebody protected a file by hand, perhaps: its sidecar is another one than that which is known."""
        record = self._store.unit(path.removesuffix(".ward"))
        if record is not None and record.sidecar == path and os.path.lexists(path) and root_of(path) != record.root:
            self.changed[record.path] = None
            self.indexes.note(record.path, self.config)
            if not record.root:
                self._store.put_unit(replace(record, root=root_of(path)))

    def walk_soon(self) -> None:
        self.walk_at = min(self.walk_at, max(time.monotonic() + WALK_DELAY_SECONDS, self._walk_after))

    def look_at_waiting(self) -> None:
        """Ask of files that wait whether their writers are done. In turn, so that many of them do not hold up everything."""
        now = self._clock_ns()
        due = list(islice((path for path, again in self.waiting.items() if again <= now), LOOKS_AT_ONCE))
        expectations = self._store.expectations(now)
        for path in due:
            if self._stop():
                raise Stopped
            watch = self.config.watch_of(path)
            record = self._store.unit(path)
            found = (self._blobs.get(path) or found_now(watch, path, record)) if watch is not None else None
            if found is None or watch is None:
                del self.waiting[path]
                self._quiet.forget(path)
                if record is not None:
                    self._vanished(record)
                elif self._store.knows_below(path) and not os.path.lexists(path):
                    self.walk_soon()  # a folder that was moved away takes its files along without a word
                continue
            if record is not None and record.verdict not in _UNSETTLED and not found.is_changed_since(record):
                del self.waiting[path]
                continue
            stillness = self._quiet.look(path, now, expectations)
            if stillness.is_gone or stillness.is_quiet:
                del self.waiting[path]
                self._quiet.forget(path)
                self._blobs.pop(path, None)
                if stillness.is_quiet:
                    self._arrived(found)
            else:
                self.waiting[path] = max(stillness.again_ns, now + 1)
                self.waiting.move_to_end(path)

    def _vanished(self, record: UnitRecord) -> None:
        """A file is not there. If its whole watch is not, that is a missing mount, and the walk says so."""
        if os.path.lexists(record.watch):
            self.gone(record)
        else:
            self.walk_soon()

    def gone(self, record: UnitRecord, *, seen: bool = True) -> None:
        """A file is no longer there; ``seen``: it went while the agent was at work."""
        self._jobs.gone(record, self.config)
        self.indexes.note_removed(record, self.config, seen=seen)

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
            self.indexes.note(record.path, self.config)
            if not found.has_sidecar and watch is not None and watch.on_new is OnNew.REPORT:
                self._jobs.report_new(record)
            self.fresh[found.path] = None
        elif found.is_changed_since(record) or record.verdict in _UNSETTLED:
            if record.retry_ns:  # it was written to: no reason to wait any longer
                self._store.put_unit(replace(record, retry_ns=0), lazily=True)
            self.changed[found.path] = None

    # ------------------------------------------------------------------------------------------------------------------- walk

    def look_through(self) -> None:
        """Walk all watches and hold what is there against what is known.

        Raises:
            Stopped
        """
        self.walk_at = time.monotonic() + WALK_SECONDS
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
            self.waiting.setdefault(found.path, 0)
        for found in result.changed:
            self.waiting.setdefault(found.path, 0)
        for record in result.gone:
            self.gone(record, seen=self._has_walked)
        self._has_walked = True
        for record in result.strays:
            self._store.remove_unit(record.path)
        self._tell_unreachable(frozenset(record.watch for record in result.unreachable))
        for found in (one for walked in walks for one in walked.found):
            known = self._store.unit(found.path)
            if known is None or known.root:
                continue
            if found.has_sidecar:
                self._store.put_unit(replace(known, root=root_of(found.sidecar)))  # somebody protected it by hand
            elif known.path not in self.waiting:
                self.fresh[known.path] = None
        self.indexes.note_all(self.config)

    def _tell_unreachable(self, watches: frozenset[str]) -> None:
        for path in sorted(watches - self.unreachable):
            self._accounts.event(EventKind.GONE, path, "out of reach: not mounted, or not to be listed; what is known of it is kept")
        for path in sorted(self.unreachable - watches):
            self._accounts.event(EventKind.RESUMED, path, "within reach again")
        self.unreachable = watches
