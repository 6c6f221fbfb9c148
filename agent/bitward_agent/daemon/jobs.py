"""Doing one job: protecting a file, scrubbing it, judging a change; and what follows from the verdict."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from bitward_agent.daemon.accounts import Accounts
from bitward_agent.daemon.config import AgentConfig, OnChange, OnNew, WatchConfig
from bitward_agent.daemon.extents import place_of_repair
from bitward_agent.daemon.facts import EventKind, Incident, IncidentKind, RepairRecord, UnitRecord
from bitward_agent.daemon.handover import hand_over, heal_unit
from bitward_agent.daemon.healing import Action, Healing, action_for, heal, is_sealed
from bitward_agent.daemon.incidents import ended_by, hardware_suspects, incident_of, missing_incident
from bitward_agent.daemon.pace import PacedDisk, Stopped, TokenBucket
from bitward_agent.daemon.reconcile import Found, is_in_hub_cache, look
from bitward_agent.daemon.renames import Departed, take_along
from bitward_agent.daemon.schedule import Job, JobKind, after_failure, after_success
from bitward_agent.daemon.scrub import ScrubPosition, ScrubProgress, scrub_file
from bitward_agent.daemon.state import Store
from bitward_agent.errors import BitwardError
from bitward_agent.findings import FileVerification, SidecarReport, SidecarState, Verdict
from bitward_formats.errors import FormatError

UNVERIFIABLE_PATIENCE = 3
"""Attempts in a row that came to nothing before somebody is told: a file that is just being replaced is no incident."""

SUSPECT_WINDOW_NS = 90 * 86_400 * 1_000_000_000
SUSPECT_REPAIRS = 1000


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
            self._failed(record, str(error) or type(error).__name__)

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
        self._settle(record, found, watch, result)

    def _settle(self, record: UnitRecord, found: Found, watch: WatchConfig, verdict: FileVerification) -> None:
        """Everything that follows from the verdict about a whole file."""
        self._account_for_interrupted(record, verdict)
        open_ones = self._store.incidents(open_only=True, path=record.path)
        now = self._clock_ns()
        if verdict.verdict is Verdict.UNVERIFIABLE:
            self._unverifiable(record, verdict)
            return
        self._accounts.end_incidents(ended_by(verdict, open_ones))
        seen = _seen(record, found, verdict, now)
        if verdict.verdict is Verdict.INTACT:
            self._store.put_unit(seen, lazily=record.verdict is Verdict.INTACT)
            self._accounts.event(EventKind.VERIFIED, record.path, "intact", bytes=verdict.bytes, root=verdict.root)
            if action_for(verdict, watch.on_damage, watch.on_change, is_sealed=is_sealed(found.sidecar)) is Action.HEAL:
                self._heal(seen, found, watch, verdict)
            return
        action = action_for(verdict, watch.on_damage, watch.on_change, is_sealed=is_sealed(found.sidecar))
        if verdict.verdict is Verdict.DAMAGED:
            self._accounts.damage(verdict)
        if action is Action.PROTECT:
            self.protect(found, watch, why="rewritten")
            return
        if action is Action.HEAL:
            self._heal(seen, found, watch, verdict)
            return
        incident = incident_of(verdict, now, self._store.incidents(open_only=True, path=record.path))
        self._store.put_unit(seen)
        if incident is not None:
            self._accounts.incident(incident)

    def _unverifiable(self, record: UnitRecord, verdict: FileVerification) -> None:
        failed = after_failure(record, self._clock_ns(), verdict.message)
        self._store.put_unit(replace(failed, verdict=Verdict.UNVERIFIABLE, scrub_position_bytes=0, suspect=False))
        if failed.failures >= UNVERIFIABLE_PATIENCE or verdict.sidecar.state is SidecarState.DAMAGED:
            incident = incident_of(verdict, self._clock_ns(), self._store.incidents(open_only=True, path=record.path))
            if incident is not None:
                self._accounts.incident(incident)

    # ------------------------------------------------------------------------------------------------------------------- heal

    def _heal(self, record: UnitRecord, found: Found, watch: WatchConfig, verdict: FileVerification) -> None:
        now = self._clock_ns()
        intended = _intended(verdict, now)
        if intended:
            self._store.put_unit(replace(record, suspect=True))
            self._store.intend(record.path, intended)
        self._tell(f"healing {found.shown or found.path}")
        try:
            done = heal(verdict, found.sidecar, watch, now, pace=self._pace, stop=self._stop)
        except (BitwardError, FormatError, OSError) as error:
            done = Healing(record.path, verdict.verdict, str(error), remaining=verdict.damaged_blocks, refused=True)
        if done.refused and not record.failures:  # once: if the file is still damaged when it is looked at again, somebody is told
            told = hand_over(record.path)
            if not told:
                self._handed_over(record, verdict, now)
                return
            done = replace(done, message=f"{done.message}; {told}")
        after = found_now(watch, record.path, record) or found
        healed = _seen(record, after, verdict, self._clock_ns())
        healed = replace(healed, verdict=done.verdict, message=done.message[:1000], damaged_blocks=done.remaining)
        self._store.add_repair(*done.repairs, unit=healed, settles=record.path)
        for repair in done.repairs[:100]:
            self._tell_repair(repair)
        if done.refreshed and not done.repairs:
            self._accounts.event(EventKind.HEALED, record.path, f"{done.refreshed} cached blocks read again from the disk", medium="memory")
        open_ones = self._store.incidents(open_only=True, path=record.path)
        if done.verdict is Verdict.INTACT:
            self._accounts.end_incidents((one, "healed") for one in open_ones if one.kind is not IncidentKind.HARDWARE_SUSPECT)
        elif verdict.verdict is not Verdict.INTACT:
            incident = incident_of(verdict, now, open_ones)
            if incident is not None:
                self._accounts.incident(replace(incident, message=_escalation(incident, done)))
        self._suspect_hardware()

    def _handed_over(self, record: UnitRecord, verdict: FileVerification, now: int) -> None:
        """Another process heals the file. What was intended stays so, and is accounted for when the file is found whole."""
        self._accounts.event(EventKind.HANDED_OVER, record.path, f"may not be written here; {heal_unit(record.path)} was started")
        damaged = replace(record, verdict=verdict.verdict, damaged_blocks=verdict.damaged_blocks, suspect=True, scrub_position_bytes=0)
        self._store.put_unit(after_failure(damaged, now, "handed over for healing"))
        incident = incident_of(verdict, now, self._store.incidents(open_only=True, path=record.path))
        if incident is not None:
            self._accounts.incident(incident, alert=False)

    def _tell_repair(self, repair: RepairRecord) -> None:
        self._accounts.event(
            EventKind.HEALED,
            repair.path,
            f"{repair.tensor or 'opaque bytes'}: block {repair.block} put right from {repair.source}",
            tensor=repair.tensor,
            block=repair.block,
            offset=repair.offset,
            source=repair.source,
            medium=repair.medium,
            flips=repair.flip_count,
        )

    def _account_for_interrupted(self, record: UnitRecord, verdict: FileVerification) -> None:
        """Repairs that were begun before a crash: those whose blocks are right were made, and are accounted for now."""
        intended = self._store.intended(record.path)
        if not intended or verdict.verdict not in (Verdict.INTACT, Verdict.DAMAGED):
            return
        still = {damage.offset for damage in verdict.damage}
        made = tuple(one for one in intended if one.offset not in still)
        self._store.add_repair(*made, settles=record.path)
        for repair in made[:100]:
            self._tell_repair(repair)

    def _suspect_hardware(self) -> None:
        now = self._clock_ns()
        recent = self._store.repairs(since_ns=now - SUSPECT_WINDOW_NS, limit=SUSPECT_REPAIRS)
        for incident in hardware_suspects(recent, now, place_of_repair):
            self._accounts.incident(incident)

    # ------------------------------------------------------------------------------------------------------------- gone, failed

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

    def _failed(self, record: UnitRecord, message: str) -> None:
        told = message.removeprefix(f"{record.path}: ")[:1000]
        failed = after_failure(record, self._clock_ns(), told)
        self._store.put_unit(failed)
        if failed.failures in (1, UNVERIFIABLE_PATIENCE):
            self._accounts.event(EventKind.UNVERIFIABLE, record.path, told)
        if failed.failures == UNVERIFIABLE_PATIENCE:
            report = SidecarReport("", SidecarState.MISSING)
            verdict = FileVerification(record.path, Verdict.UNVERIFIABLE, 0, "", "", False, report, message=told)
            incident = incident_of(verdict, self._clock_ns(), self._store.incidents(open_only=True, path=record.path))
            if incident is not None:
                self._accounts.incident(incident)


def found_now(watch: WatchConfig, path: str, record: UnitRecord | None) -> Found | None:
    """What is at a path now. A blob of a hub cache that a walk has found before is looked at as it was found."""
    if record is None or not is_in_hub_cache(path):
        return look(watch, path)
    try:
        state = os.lstat(path)
    except OSError:
        return None
    where = (path, watch.path, os.path.relpath(path, watch.path), record.sidecar, path)
    return Found(*where, state.st_size, state.st_mtime_ns, state.st_ino, os.path.lexists(record.sidecar))


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


def _seen(record: UnitRecord, found: Found, verdict: FileVerification, now_ns: int) -> UnitRecord:
    """The record after a verdict about the whole file."""
    return replace(
        after_success(record),
        root=verdict.root or record.root,
        origin=verdict.origin or record.origin,
        verdict=verdict.verdict,
        bytes=verdict.bytes or record.bytes,
        last_full_verify_ns=now_ns,
        scrub_position_bytes=0,
        seen_mtime_ns=found.mtime_ns,
        seen_size=found.size,
        seen_inode=found.inode,
        suspect=False,
        damaged_blocks=verdict.damaged_blocks if verdict.verdict is Verdict.DAMAGED else 0,
        message=verdict.message[:1000],
    )


def _intended(verdict: FileVerification, now_ns: int) -> tuple[RepairRecord, ...]:
    """What a repair will do, as far as it can be known before."""
    return tuple(
        RepairRecord(
            *(now_ns, verdict.path, one.tensor, one.block, one.offset, one.length, one.source, one.medium, one.flip_count),
            cell=one.flips[0].offset if one.flips else -1,
        )
        for one in verdict.damage
        if one.repairable
    )


def _escalation(incident: Incident, done: Healing) -> str:
    """What a person is told of damage that is left, with the next thing to try by name."""
    left = f"{done.remaining} damaged blocks are left" if done.remaining else "damage is left"
    how = f"; {done.message}" if done.message else ""
    return f"{incident.message}; {left}{how}: give a source to 'bitward repair --from', or look with 'bitward diagnose'"
