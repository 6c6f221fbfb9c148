"""Telling what happens: each event to the log and the store, each incident once to the alert command."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import islice

from bitward_agent.daemon.alerts import Alerts
from bitward_agent.daemon.facts import Event, EventKind, Incident, IncidentKind
from bitward_agent.daemon.logs import Log
from bitward_agent.daemon.state import Store
from bitward_agent.findings import Damage, FileVerification, Flip

FLIPS_TOLD = 20
"""Flips of one verdict that get a log entry each; the counts speak for the rest."""

_UNKEPT = frozenset({EventKind.VERIFIED})
"""Logged, but not kept: the unit's record says the same, and flash wears."""

_EVENT_OF = {
    IncidentKind.DAMAGED: EventKind.NOT_HEALED,
    IncidentKind.CHANGED: EventKind.CHANGED,
    IncidentKind.UNVERIFIABLE: EventKind.UNVERIFIABLE,
    IncidentKind.MISSING: EventKind.GONE,
    IncidentKind.HARDWARE_SUSPECT: EventKind.HARDWARE_SUSPECT,
    IncidentKind.STATE_LOST: EventKind.STATE_LOST,
}


class Accounts:
    """Every module that has something to say says it here. Any thread may."""

    def __init__(self, store: Store, log: Log, alert_command: tuple[str, ...], clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._store, self._log, self._clock_ns = store, log, clock_ns
        self._alerts = self._alerts_of(alert_command)
        self._told: set[int] = set()

    def _alerts_of(self, command: tuple[str, ...]) -> Alerts:
        return Alerts(
            command,
            lambda incident: self._store.mark_alerted(incident.id),
            lambda message: self.event(EventKind.ALERT_FAILED, "", message),
        )

    def configure(self, log: Log, alert_command: tuple[str, ...]) -> None:
        """Another log and another command from now on."""
        self._log.close()
        self._log = log
        if alert_command != self._alerts.command:
            self._alerts.stop()
            self._alerts = self._alerts_of(alert_command)
            self.catch_up()

    def event(self, kind: EventKind, path: str, message: str, **fields: object) -> None:
        """Log something and keep it. Fields that are None or empty are left out."""
        pairs = tuple((name, str(value)) for name, value in fields.items() if value is not None and value != "")
        event = Event(self._clock_ns(), kind, path, message, pairs)
        self._log.write(event)
        if kind not in _UNKEPT:
            self._store.add_event(event)

    def damage(self, found: FileVerification) -> None:
        """Log what a verdict names: one entry for the file, one for each of the first flips."""
        flips = sum(one.flip_count for one in found.damage)
        first = found.damage[0] if found.damage else None
        self.event(
            EventKind.DAMAGE_FOUND,
            found.path,
            f"{found.damaged_blocks} damaged blocks, {flips} flipped bits{f'; {found.message}' if found.message else ''}",
            blocks=found.damaged_blocks,
            flips=flips,
            medium=first.medium if first else None,
            modified="yes" if found.modified else None,
        )
        for damage, flip in _flips(found.damage, FLIPS_TOLD):
            self.event(
                EventKind.DAMAGE_FOUND,
                found.path,
                f"{flip.tensor or 'opaque bytes'}{list(flip.index)} bit {flip.bit} ({flip.field}): {flip.found} should be {flip.correct}",
                tensor=flip.tensor,
                index=",".join(str(one) for one in flip.index),
                bit=flip.bit,
                field=flip.field,
                offset=flip.offset,
                block=damage.block,
                medium=damage.medium,
                found=flip.found,
                correct=flip.correct,
            )

    def incident(self, incident: Incident, *, alert: bool = True) -> Incident:
        """Open an incident or count it as seen again. Told of only when it is new, and with ``alert`` to the command too."""
        kept, _ = self._store.open_incident(incident)
        if alert and not kept.alerted:
            if kept.id not in self._told:
                self._told.add(kept.id)
                self._tell(kept)
            self._alerts.send(kept)
        return kept

    def _tell(self, incident: Incident) -> None:
        self.event(
            _EVENT_OF[incident.kind],
            incident.path,
            incident.message,
            incident=incident.id,
            tensor=incident.tensor,
            block=incident.block if incident.block >= 0 else None,
            offset=incident.offset if incident.offset >= 0 else None,
            medium=incident.medium,
        )

    def end_incidents(self, ended: Iterable[tuple[Incident, str]]) -> None:
        """Close incidents, each with its outcome."""
        for incident, outcome in ended:
            self._store.close_incident(incident.id, outcome, self._clock_ns())
            self._told.discard(incident.id)
            self.event(EventKind.INCIDENT_CLOSED, incident.path, f"{incident.kind.value}: {outcome}", incident=incident.id, outcome=outcome)

    def catch_up(self) -> None:
        """After a start: tell of open incidents that nobody was told of, because the agent was ended between or the command failed."""
        for incident in reversed(self._store.incidents(open_only=True)):
            if not incident.alerted and not self._is_judged_anew(incident):
                self._alerts.send(incident)

    def _is_judged_anew(self, incident: Incident) -> bool:
        """Whether a scrub that comes first, since the file is suspect, will say what there is to be told."""
        unit = self._store.unit(incident.path)
        return incident.kind is IncidentKind.DAMAGED and (unit is None or unit.suspect)

    def close(self) -> None:
        """End the alert command's thread and the log."""
        self._alerts.stop()
        self._log.close()


def _flips(damage: Iterable[Damage], limit: int) -> Iterable[tuple[Damage, Flip]]:
    return islice(((one, flip) for one in damage for flip in one.flips), limit)
