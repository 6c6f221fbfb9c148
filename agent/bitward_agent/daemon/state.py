"""What the agent remembers, in SQLite. See docs/adr/0017-agent-state.md for how and why."""

from __future__ import annotations

from bitward_agent.daemon.facts import Event, Expectation, Incident, RepairRecord, Totals, UnitRecord


class Store:
    """The agent's memory. One thread may use it at a time; a lock inside holds that. Every method is one transaction."""

    def __init__(self, path: str) -> None:
        """Open or make the database. ``lost``: in words why an older one was moved aside and all is to be learnt anew, else empty."""
        self.path = path
        self.lost = ""

    def units(self) -> tuple[UnitRecord, ...]:
        """All records, in the order of their paths."""
        raise NotImplementedError

    def unit(self, path: str) -> UnitRecord | None:
        """The record of a file, None if it is not known."""
        raise NotImplementedError

    def put_unit(self, record: UnitRecord) -> None:
        """Add a record or replace that of the same path. Nothing is written if it is the same."""
        raise NotImplementedError

    def remove_unit(self, path: str) -> None:
        """Forget a file."""
        raise NotImplementedError

    def open_incident(self, incident: Incident) -> tuple[Incident, bool]:
        """(the incident with its id, whether it is new). A sighting of an open one of the same path, kind and fault is counted there."""
        raise NotImplementedError

    def close_incident(self, incident_id: int, outcome: str, at_ns: int) -> None:
        """Close an incident; one that is closed stays as it is."""
        raise NotImplementedError

    def incidents(self, *, open_only: bool = False, path: str | None = None, limit: int = 1000) -> tuple[Incident, ...]:
        """Incidents, newest first."""
        raise NotImplementedError

    def add_repair(self, *repairs: RepairRecord) -> None:
        """Account for blocks that were put right, together: all of them or none."""
        raise NotImplementedError

    def repairs(self, *, path: str | None = None, since_ns: int = 0, limit: int = 1000) -> tuple[RepairRecord, ...]:
        """Repairs, newest first."""
        raise NotImplementedError

    def add_event(self, event: Event) -> None:
        """Add a line to the log; the oldest go when there are too many."""
        raise NotImplementedError

    def events(self, limit: int = 100) -> tuple[Event, ...]:
        """The newest events, oldest first."""
        raise NotImplementedError

    @property
    def paused_until(self) -> int:
        """Until when scrubbing is paused, in ns; 0: it is not."""
        raise NotImplementedError

    def pause(self, until_ns: int) -> None:
        """Pause scrubbing until then, or with 0 no longer."""
        raise NotImplementedError

    def expectations(self, now_ns: int) -> tuple[Expectation, ...]:
        """Announced rewrites that still count."""
        raise NotImplementedError

    def expect(self, expectation: Expectation) -> None:
        """Announce a rewrite."""
        raise NotImplementedError

    def totals(self) -> Totals:
        """What was counted since the state began."""
        raise NotImplementedError

    def add_scrubbed_bytes(self, count: int) -> None:
        """Count bytes that scrubs read."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what is to be written, and close."""
