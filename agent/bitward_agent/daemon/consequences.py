"""What follows from the verdict about a whole file: its record, incidents, healing by whoever may, protecting it anew.

Whatever is repaired is noted before and accounted for after, once, whenever the agent is killed between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bitward_agent.daemon.accounts import Accounts
from bitward_agent.daemon.config import WatchConfig
from bitward_agent.daemon.extents import place_of_repair
from bitward_agent.daemon.facts import EventKind, Incident, IncidentKind, RepairRecord, UnitRecord
from bitward_agent.daemon.handover import hand_over, heal_unit
from bitward_agent.daemon.healing import Action, Healing, action_for, heal, is_sealed
from bitward_agent.daemon.incidents import ended_by, hardware_suspects, incident_of
from bitward_agent.daemon.pace import TokenBucket
from bitward_agent.daemon.reconcile import Found, found_now
from bitward_agent.daemon.schedule import after_failure, after_success
from bitward_agent.daemon.state import Store
from bitward_agent.errors import BitwardError
from bitward_agent.findings import FileVerification, SidecarReport, SidecarState, Verdict
from bitward_formats.errors import FormatError

UNVERIFIABLE_PATIENCE = 3
"""Attempts in a row that came to nothing before somebody is told: a file that is just being replaced is no incident."""

SUSPECT_WINDOW_NS = 90 * 86_400 * 1_000_000_000
SUSPECT_REPAIRS = 1000


class Consequences:
    """Draws them. For the thread of the work loop."""

    def __init__(
        self,
        store: Store,
        accounts: Accounts,
        pace: TokenBucket,
        stop: Callable[[], bool],
        clock_ns: Callable[[], int],
        tell: Callable[[str], None],
        protect: Callable[[Found, WatchConfig], None],
    ) -> None:
        """``stop`` is asked often; ``tell`` is given a line for people; ``protect`` protects a file that was rewritten."""
        self._store, self._accounts, self._pace, self._stop, self._clock_ns, self._tell = store, accounts, pace, stop, clock_ns, tell
        self._protect = protect

    def of(self, record: UnitRecord, found: Found, watch: WatchConfig, verdict: FileVerification) -> None:
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
            self._protect(found, watch)
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

    def of_failure(self, record: UnitRecord, message: str) -> None:
        """An attempt came to nothing: told at first, and an incident after some more."""
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
