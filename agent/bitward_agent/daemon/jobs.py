"""Doing one job: protecting a file, scrubbing it, judging a change. What follows from a verdict is drawn by ``consequences``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from bitward_agent.daemon.accounts import Accounts
from bitward_agent.daemon.config import AgentConfig, OnChange, OnNew, WatchConfig
from bitward_agent.daemon.consequences import Consequences
from bitward_agent.daemon.facts import EventKind, UnitRecord
from bitward_agent.daemon.incidents import missing_incident
from bitward_agent.daemon.pace import PacedDisk, Stopped, TokenBucket
from bitward_agent.daemon.reconcile import Found, found_now
from bitward_agent.daemon.renames import Departed, take_along
from bitward_agent.daemon.schedule import Job, JobKind
from bitward_agent.daemon.scrub import ScrubPosition, ScrubProgress, scrub_file
from bitward_agent.daemon.state import Store
from bitward_agent.errors import BitwardError
from bitward_agent.findings import Verdict
from bitward_formats.errors import FormatError


class Jobs:
    """What the work loop has done. For one thread."""

    def __init__(
        self,
        store: Store,
        accounts: Accounts,
        pace: TokenBucket,
        stop: Callable[[], bool],
        clock_ns: Callable[[], int],
        tell: Callable[[str], None],
    ) -> None:
        """``stop`` is asked often and also shows that work goes on; ``tell`` is given a line for people."""
        self._store, self._accounts, self._pace, self._stop, self._clock_ns, self._tell = store, accounts, pace, stop, clock_ns, tell
        self._departed = Departed()
        self._consequences = Consequences(store, accounts, pace, stop, clock_ns, tell, self._protect_rewritten)

    def run(self, job: Job, config: AgentConfig) -> None:
        """Do one job. Whatever goes wrong with a file becomes part of its record; only ``Stopped`` is raised."""
        record = self._store.unit(job.path)
        watch = config.watch_of(job.path)
        if record is None or watch is None:
            return
        found = found_now(watch, job.path, record)
        if found is None:
            self.gone(record, config)
            return
        record = replace(record, sidecar=found.sidecar)
        try:
            if job.kind is JobKind.PROTECT and not found.has_sidecar:
                self._protect_or_recognise(found, watch)
            elif not found.has_sidecar and record.root and watch.on_new is OnNew.PROTECT:
                # Only if the file is still what its sidecar vouched for; else its loss is told like any other fault.
                self.protect(found, watch, why="its sidecar was gone", root=bytes.fromhex(record.root))
            else:
                self._scrub(record, found, watch, afresh=job.kind is JobKind.JUDGE_CHANGE)
        except (BitwardError, FormatError, OSError, MemoryError) as error:
            self._consequences.of_failure(record, str(error) or type(error).__name__)

    # ---------------------------------------------------------------------------------------------------------------- protect

    def protect(self, found: Found, watch: WatchConfig, *, why: str = "first-seen", root: bytes | None = None) -> None:
        """Make a sidecar for a file as it is now; with a ``root`` only if that is the file's.

        Raises:
            BitwardError, FormatError: it was not possible; what was there before is unharmed.
            Stopped
        """
        from bitward_agent.durable import make_folder
        from bitward_agent.evidence import EvidenceFinder, whole_sha256
        from bitward_agent.protect import Protection, preset_groups, protect_file
        from bitward_formats.digest import LeafHash

        self._tell(f"protecting {found.shown or found.path}")
        folder = watch.path if os.path.isdir(watch.path) else os.path.dirname(watch.path)
        claims = EvidenceFinder().of(found.path, folder).claims
        trusted = whole_sha256(claims, found.size) if claims else None
        protection = Protection(
            groups=preset_groups(watch.preset),
            preset=watch.preset,
            leaf_hash=LeafHash.XXH3,
            protected_ns=self._clock_ns(),
            trusted_sha256=trusted or bytes(32),
            claims=claims,
            first_sight=True,
            origin="trusted" if claims else "first-seen",
            root=root,
        )
        make_folder(os.path.dirname(found.sidecar))
        made = protect_file(found.path, found.sidecar, protection, jobs=1, disk=PacedDisk(self._pace, self._stop))
        now = self._clock_ns()
        block = made.superblock
        new = UnitRecord(
            found.path,
            watch.path,
            block.root.hex(),
            block.origin_label,
            Verdict.INTACT,
            block.file_bytes,
            now,
            seen_mtime_ns=block.mtime_ns,
            seen_size=block.file_bytes,
            seen_inode=found.inode,
            sidecar=found.sidecar,
            message="; ".join(made.findings)[:1000],
        )
        self._store.put_unit(new)
        told = f"protected ({why}), {len(made.findings)} findings at first sight" if made.findings else f"protected ({why})"
        self._accounts.event(
            EventKind.PROTECTED, found.path, told, origin=block.origin_label, root=block.root.hex(), bytes=block.file_bytes
        )
        for finding in made.findings[:20]:
            self._accounts.event(EventKind.PROTECTED, found.path, f"at first sight: {finding}")
        stale = [(one, "accepted") for one in self._store.incidents(open_only=True, path=found.path)]
        self._accounts.end_incidents(stale)

    def _protect_rewritten(self, found: Found, watch: WatchConfig) -> None:
        self.protect(found, watch, why="rewritten")

    def _protect_or_recognise(self, found: Found, watch: WatchConfig) -> None:
        """A new name: of a file that was known under another one, or of a new file."""
        known = self._departed.take(found)
        if known is None or not take_along(known.sidecar, found.sidecar):
            self.protect(found, watch)
            return
        record = replace(known, path=found.path, watch=watch.path, sidecar=found.sidecar)
        self._store.put_unit(record)
        self._accounts.event(EventKind.PROTECTED, found.path, f"renamed from {known.path}: its sidecar went along", root=known.root)
        self._scrub(record, found, watch, afresh=True)

    def report_new(self, record: UnitRecord) -> None:
        """Say once that a file is there and not protected."""
        self._accounts.event(EventKind.REPORTED_NEW, record.path, "new and not protected, as the policy of its watch is")

    # ------------------------------------------------------------------------------------------------------------------ scrub

    def _scrub(self, record: UnitRecord, found: Found, watch: WatchConfig, *, afresh: bool) -> None:
        start = ScrubPosition() if afresh else ScrubPosition.of_record(record)
        shown = found.shown or found.path
        latest = [start]

        def tell(at: ScrubPosition, total_bytes: int) -> None:
            latest[0] = at
            self._tell(f"scrubbing {shown}: {at.position_bytes * 100 // max(1, total_bytes)} %")
            self._store.put_unit(_at(record, at), lazily=True)

        before = self._pace.taken_bytes
        try:
            result = scrub_file(record.path, found.sidecar, start, pace=self._pace, stop=self._stop, tell=tell)
        finally:
            self._store.add_scrubbed_bytes(self._pace.taken_bytes - before)
        if isinstance(result, ScrubProgress):
            self._store.put_unit(_at(record, result.at), lazily=True)
            raise Stopped
        self._consequences.of(record, found, watch, result)

    # ------------------------------------------------------------------------------------------------------------------- gone

    def gone(self, record: UnitRecord, config: AgentConfig) -> None:
        """A file is no longer there: told, forgotten, its incidents closed. Its sidecar stays: whoever removed the file may want it.

        Where every change is an alarm, so is this one.
        """
        self._departed.remember(record)
        self._store.remove_unit(record.path)
        self._accounts.event(EventKind.GONE, record.path, "no longer there")
        self._accounts.end_incidents((one, "gone") for one in self._store.incidents(open_only=True, path=record.path))
        watch = config.watch_of(record.path)
        if watch is not None and watch.on_change is OnChange.ALARM and record.root:
            self._accounts.incident(missing_incident(record.path, self._clock_ns(), "was removed, and every change is to be told"))


def root_of(sidecar_path: str) -> str:
    """The file root that a sidecar holds, in hex; zeros where it cannot be read, so that the file counts as protected and is looked at."""
    from bitward_agent.io import OpenFile
    from bitward_formats.sidecar import read_sidecar

    try:
        with OpenFile(sidecar_path) as ward:
            return read_sidecar(ward.read, ward.state().size).superblock.root.hex()
    except (BitwardError, FormatError, OSError):
        return "00" * 32


def _at(record: UnitRecord, at: ScrubPosition) -> UnitRecord:
    return replace(
        record,
        root=at.root or record.root,
        scrub_position_bytes=at.position_bytes,
        seen_size=at.size or record.seen_size,
        seen_mtime_ns=at.mtime_ns or record.seen_mtime_ns,
        suspect=at.suspect,
    )
