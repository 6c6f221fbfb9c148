"""What the agent remembers: units, incidents, repairs, events. The truth is in memory, SQLite keeps it over restarts.

Every change is made in memory first and then written, so a disk that is full or gone stops nothing: what could not be written waits, each
row once, and is written when that works again. What is urgent (a repair, an incident) is on the disk when the method returns; how far a
scrub has come waits up to ``LAZY_SECONDS`` for company, since flash wears. docs/adr/0017-agent-state.md says how SQLite is set and why.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from threading import RLock

from bitward_agent.daemon.database import Database, Key, Statement
from bitward_agent.daemon.facts import Event, Expectation, Incident, RepairRecord, Totals, UnitRecord
from bitward_agent.daemon.rows_waiting import RowsWaiting

EXPECTATIONS_LIMIT = 1000


class Store:
    """The agent's memory. Any thread may use it."""

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Open or make the database.

        Raises:
            BusyError: another agent uses it.
            WriteError: its folder cannot be made or written.
        """
        self.path = path
        self._lock = RLock()
        self._database = Database(path)
        memory = self._database.load()
        self._rows = RowsWaiting(self._database, self._all_rows, clock)
        self._units = {record.path: record for record in memory.units}
        self._paths: list[str] | None = None
        self._open = {incident.id: incident for incident in memory.open_incidents}
        self._settings = dict(memory.settings)
        self._intents = dict(memory.intents)
        self._expectations = {one.path: one for one in memory.expectations}
        self._next = {"incident": memory.last_incident + 1, "event": memory.last_event + 1, "repair": memory.last_repair + 1}

    @property
    def lost(self) -> str:
        """Why an older database was moved aside, empty if none was."""
        return self._rows.lost

    def take_lost(self) -> str:
        """The same, told once."""
        told, self._rows.lost = self._rows.lost, ""
        return told

    @property
    def trouble(self) -> str:
        """Why rows wait to be written, empty if they need not."""
        return self._rows.trouble

    # ------------------------------------------------------------------------------------------------------------------ units

    def units(self) -> tuple[UnitRecord, ...]:
        """All records, in the order of their paths."""
        with self._lock:
            return tuple(self._units[path] for path in sorted(self._units))

    def knows_below(self, folder: str) -> bool:
        """Whether there are files below a folder."""
        with self._lock:
            if self._paths is None:
                self._paths = sorted(self._units)
            below = folder.rstrip("/") + "/"
            place = bisect_left(self._paths, below)
            return place < len(self._paths) and self._paths[place].startswith(below)

    def unit(self, path: str) -> UnitRecord | None:
        """The record of a file, None if it is not known."""
        with self._lock:
            return self._units.get(path)

    def put_unit(self, record: UnitRecord, *, lazily: bool = False) -> None:
        """Add a record or replace that of the same path. Nothing is written if it is the same.

        ``lazily``: losing it costs time but nothing else, so it is written with the next urgent row, or within ``LAZY_SECONDS``.
        """
        with self._lock:
            if self._units.get(record.path) == record:
                return
            if record.path not in self._units:
                self._paths = None
            self._units[record.path] = record
            self._rows.write(("unit", record.path), self._database.put("units", record), lazily=lazily)

    def remove_unit(self, path: str) -> None:
        """Forget a file. Its incidents and repairs stay."""
        with self._lock:
            if self._units.pop(path, None) is not None:
                self._paths = None
                self._rows.write(("unit", path), self._database.remove("units", path))

    # -------------------------------------------------------------------------------------------------------------- incidents

    def open_incident(self, incident: Incident) -> tuple[Incident, bool]:
        """(the incident with its id, whether it is new). A sighting of an open one of the same path, kind and fault is counted there."""
        with self._lock:
            for known in self._open.values():
                if (known.path, known.kind, known.fault) == (incident.path, incident.kind, incident.fault):
                    seen = incident.seen_ns or incident.opened_ns
                    again = replace(known, seen_ns=seen, seen_count=known.seen_count + 1, message=incident.message)
                    self._open[known.id] = again
                    self._rows.write(("incident", str(known.id)), self._database.put("incidents", again), lazily=True)
                    return again, False
            number = self._take("incident")
            new = replace(incident, id=number, seen_ns=incident.seen_ns or incident.opened_ns)
            self._open[number] = new
            self._rows.write(("incident", str(number)), self._database.put("incidents", new))
            return new, True

    def close_incident(self, incident_id: int, outcome: str, at_ns: int) -> None:
        """Close an incident; one that is closed stays as it is."""
        with self._lock:
            incident = self._open.pop(incident_id, None)
            if incident is not None:
                closed = replace(incident, closed_ns=at_ns, outcome=outcome)
                self._rows.write(("incident", str(incident_id)), self._database.put("incidents", closed))

    def mark_alerted(self, incident_id: int) -> None:
        """Somebody was told of an open incident."""
        with self._lock:
            incident = self._open.get(incident_id)
            if incident is not None and not incident.alerted:
                self._open[incident_id] = replace(incident, alerted=True)
                self._rows.write(("incident", str(incident_id)), self._database.put("incidents", self._open[incident_id]))

    def incidents(self, *, open_only: bool = False, path: str | None = None, limit: int = 1000) -> tuple[Incident, ...]:
        """Incidents, newest first."""
        with self._lock:
            if open_only:
                found = sorted(self._open.values(), key=lambda one: -one.id)
                return tuple(one for one in found if path is None or one.path == path)[:limit]
            self._rows.flush()
            waiting = {one.id: one for one in self._rows.of_kind(Incident)}
            merged = {one.id: one for one in self._rows.read(lambda base: base.newest(Incident, limit, path=path))} | waiting
            return tuple(sorted((one for one in merged.values() if path is None or one.path == path), key=lambda one: -one.id)[:limit])

    # ------------------------------------------------------------------------------------------------------- repairs, events

    def intend(self, path: str, repairs: tuple[RepairRecord, ...]) -> None:
        """Note what is about to be repaired in a file. Whoever finds the note after a crash sees from the file what came of it."""
        with self._lock:
            self._intents[path] = repairs
            self._rows.write(("intent", path), self._database.intent(path, repairs))

    def intended(self, path: str) -> tuple[RepairRecord, ...]:
        """Repairs of a file that were begun and not accounted for."""
        with self._lock:
            return self._intents.get(path, ())

    def intents(self) -> tuple[str, ...]:
        """The files for which there are such."""
        with self._lock:
            return tuple(self._intents)

    def add_repair(self, *repairs: RepairRecord, unit: UnitRecord | None = None, settles: str = "") -> None:
        """Account for blocks that were put right, with the ``unit`` as it is then, instead of what was intended for the file ``settles``.

        All of it is written together, or nothing.
        """
        with self._lock:
            if self._intents.pop(settles, None) is not None:
                self._rows.put(("intent", settles), self._database.intent(settles, ()))
            if unit is not None:
                self._units[unit.path] = unit
                self._rows.put(("unit", unit.path), self._database.put("units", unit))
            for repair in repairs:
                number = self._take("repair")
                self._rows.put(("repair", str(number)), self._database.add("repairs", number, repair))
                self._count(f"corrected_bits:{repair.medium}", repair.flip_count)
            if repairs:
                self._count("healed_blocks", len(repairs))
            self._rows.flush()

    def repairs(self, *, path: str | None = None, since_ns: int = 0, limit: int = 1000) -> tuple[RepairRecord, ...]:
        """Repairs, newest first."""
        with self._lock:
            self._rows.flush()
            waiting = [one for one in reversed(self._rows.of_kind(RepairRecord)) if path in (None, one.path) and one.at_ns >= since_ns]
            written = self._rows.read(lambda base: base.newest(RepairRecord, limit, path=path, since_ns=since_ns))
            return (*waiting, *written)[:limit]

    def add_event(self, event: Event) -> None:
        """Add a line to the log; the oldest go when there are too many."""
        with self._lock:
            number = self._take("event")
            self._rows.write(("event", str(number)), self._database.add("events", number, event), lazily=True)

    def events(self, limit: int = 100) -> tuple[Event, ...]:
        """The newest events, oldest first."""
        with self._lock:
            self._rows.flush()
            written = self._rows.read(lambda base: base.newest(Event, limit))
            return (*reversed(written), *self._rows.of_kind(Event))[-limit:] if limit > 0 else ()

    # --------------------------------------------------------------------------------------------------------------- settings

    def number(self, name: str) -> int:
        """A number that was kept; 0 if none was."""
        return self._settings.get(name, 0)

    def keep_number(self, name: str, value: int) -> None:
        """Keep a number."""
        with self._lock:
            self._set(name, value)
            self._rows.write_soon()

    @property
    def paused_until(self) -> int:
        """Until when scrubbing is paused, in ns since 1970; 0: it is not."""
        return self._settings.get("paused_until", 0)

    def pause(self, until_ns: int) -> None:
        """Pause scrubbing until then, or with 0 no longer."""
        with self._lock:
            self._set("paused_until", until_ns)
            self._rows.flush()

    def expectations(self, now_ns: int) -> tuple[Expectation, ...]:
        """Announced rewrites that still count."""
        with self._lock:
            for gone in [one for one in self._expectations.values() if one.until_ns <= now_ns]:
                del self._expectations[gone.path]
                self._rows.write(("expectation", gone.path), self._database.remove("expectations", gone.path), lazily=True)
            return tuple(self._expectations.values())

    def expect(self, expectation: Expectation) -> bool:
        """Announce a rewrite; False if there are too many already."""
        with self._lock:
            if len(self._expectations) >= EXPECTATIONS_LIMIT and expectation.path not in self._expectations:
                return False
            self._expectations[expectation.path] = expectation
            self._rows.write(("expectation", expectation.path), self._database.put("expectations", expectation))
            return True

    def totals(self) -> Totals:
        """What was counted since the state began."""
        with self._lock:
            bits = {key.partition(":")[2]: value for key, value in self._settings.items() if key.startswith("corrected_bits:")}
            healed, scrubbed = (self._settings.get(name, 0) for name in ("healed_blocks", "scrubbed_bytes"))
            return Totals(tuple(sorted(bits.items())), healed, scrubbed, self._next["incident"] - 1)

    def add_scrubbed_bytes(self, count: int) -> None:
        """Count bytes that scrubs read."""
        with self._lock:
            self._count("scrubbed_bytes", count)
            self._rows.write_soon()

    # ---------------------------------------------------------------------------------------------------------------- writing

    def flush(self, *, force: bool = False) -> bool:
        """Write what waits; True if nothing waits then. After a failure only now and then, unless that is forced."""
        with self._lock:
            return self._rows.flush(force=force)

    def flush_if_due(self) -> None:
        """What the work loop calls now and then: writes what has waited long enough."""
        if self._rows.is_due():
            self.flush()

    def close(self) -> None:
        """Write what is to be written, and close."""
        with self._lock:
            self._rows.flush(force=True)
            self._database.close()

    def _all_rows(self) -> dict[Key, Statement]:
        """Everything in memory, as rows for a new database."""
        rows: dict[Key, Statement] = {("unit", path): self._database.put("units", one) for path, one in self._units.items()}
        rows |= {("incident", str(number)): self._database.put("incidents", one) for number, one in self._open.items()}
        rows |= {("expectation", path): self._database.put("expectations", one) for path, one in self._expectations.items()}
        rows |= {("intent", path): self._database.intent(path, ones) for path, ones in self._intents.items()}
        return rows | {("setting", name): self._database.setting(name, value) for name, value in self._settings.items()}

    def _take(self, name: str) -> int:
        number = self._next[name]
        self._next[name] = number + 1
        return number

    def _set(self, name: str, value: int) -> None:
        if self._settings.get(name, 0) != value:
            self._settings[name] = value
            self._rows.put(("setting", name), self._database.setting(name, value))

    def _count(self, name: str, more: int) -> None:
        self._set(name, self._settings.get(name, 0) + more)
