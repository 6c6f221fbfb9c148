"""What the state adds up to: rows, counts, ages. Read from the database as it is asked for, so that memory does not grow with the store."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from typing import Any

from bitward.registries.scrub.facts import Finding, Row, Totals, UnitRow, exit_code_of
from bitward.registries.scrub.state import State, text_of
from bitward_agent.findings import Damage, ExitCode, Flip

AGES = (
    ("less than an hour", 3600),
    ("less than a day", 86_400),
    ("less than a week", 7 * 86_400),
    ("less than 30 days", 30 * 86_400),
    ("less than 90 days", 90 * 86_400),
    ("less than a year", 365 * 86_400),
)
OLDER, NEVER = "a year or more", "never"
_SECOND_NS = 10**9
_COLUMNS = (
    "url, finding, message, size, mark, modified, mtime_ns/1e9, protected_ns/1e9, checked_ns/1e9, intact_ns/1e9, "
    "CASE intact_ns WHEN 0 THEN -1.0 ELSE max(0, :now-intact_ns)/1e9 END, checked_run=:run, attempts, seconds, fetched_bytes, requests, "
    "root, origin, sidecar, damaged_blocks, flip_count, repairable, damage"
)
"""A ``Row``, in the order of its fields."""
_OF_THIS_RUN = "(seen_run=:run OR finding='gone')"
_BAD = ("damaged", "changed", "gone", "cannot-check", "sidecar-alone", "unprotected", "not-yet")


class Account:
    """Reads a state after, or during, a run."""

    def __init__(self, state: State) -> None:
        self._database: sqlite3.Connection = state.database
        self._run = state.run
        self._now_ns = time.time_ns()

    def _rows(self, words: str, **values: Any) -> sqlite3.Cursor:
        return self._database.execute(words, {"run": self._run, "now": self._now_ns, **values})

    def rows(self) -> Iterator[Row]:
        """Every object, in the order of their addresses."""
        for values in self._rows(f"SELECT {_COLUMNS} FROM objects WHERE {_OF_THIS_RUN} ORDER BY url"):  # noqa: S608 - our own words
            yield _row(values)

    def bad(self, limit: int) -> tuple[Row, ...]:
        """Objects that are not intact, the worst kinds first."""
        order = "CASE finding " + " ".join(f"WHEN '{name}' THEN {at}" for at, name in enumerate(_BAD)) + " END"
        words = f"SELECT {_COLUMNS} FROM objects WHERE {_OF_THIS_RUN} AND finding<>'intact' ORDER BY {order}, url LIMIT :limit"  # noqa: S608 - our own words
        return tuple(_row(values) for values in self._rows(words, limit=limit))

    def slow(self, limit: int) -> tuple[Row, ...]:
        """Objects of this run that took longest, or several tries."""
        words = f"SELECT {_COLUMNS} FROM objects WHERE checked_run=:run ORDER BY seconds DESC, url LIMIT :limit"  # noqa: S608 - our own words
        return tuple(_row(values) for values in self._rows(words, limit=limit))

    def totals(self, skipped: int, tries: int) -> Totals:
        """Objects by finding."""
        counts = dict(self._rows(f"SELECT finding, count(*) FROM objects WHERE {_OF_THIS_RUN} GROUP BY finding"))  # noqa: S608 - our own words
        one = self._rows("SELECT count(*) FROM objects WHERE finding='damaged' AND repairable AND seen_run=:run").fetchone()[0]
        checked = self._rows("SELECT count(*) FROM objects WHERE checked_run=:run AND seen_run=:run").fetchone()[0]
        return Totals(
            counts.get("intact", 0),
            counts.get("damaged", 0),
            one,
            counts.get("changed", 0),
            counts.get("unprotected", 0),
            counts.get("sidecar-alone", 0),
            counts.get("cannot-check", 0),
            counts.get("not-yet", 0),
            counts.get("gone", 0),
            checked,
            skipped,
            tries,
        )

    def bytes(self) -> tuple[int, int]:
        """Bytes that were verified in this run, and bytes that came for it."""
        words = "SELECT coalesce(sum(bytes), 0), coalesce(sum(fetched_bytes), 0) FROM objects WHERE checked_run=:run"
        verified, fetched = self._rows(words).fetchone()
        return int(verified), int(fetched)

    def ages(self) -> tuple[tuple[str, int], ...]:
        """For how many objects it is how long since they were last found intact."""
        cases = " ".join(f"WHEN :now-intact_ns < {limit * _SECOND_NS} THEN {at}" for at, (_, limit) in enumerate(AGES))
        case = f"CASE WHEN intact_ns=0 THEN {len(AGES) + 1} {cases} ELSE {len(AGES)} END"
        where = "seen_run=:run AND finding NOT IN ('unprotected', 'sidecar-alone')"
        counts = dict(self._rows(f"SELECT {case} AS age, count(*) FROM objects WHERE {where} GROUP BY age"))  # noqa: S608 - our own words
        return tuple((words, counts.get(at, 0)) for at, words in enumerate([*(words for words, _ in AGES), OLDER, NEVER]))

    def settle_units(self) -> None:
        """A directory whose files have other roots than its index binds is not one that can be vouched for."""
        self._rows(
            "UPDATE units SET finding='cannot-check', message='sidecars of its files are not those that its index knows: "
            "if that was meant, protect the directory again' WHERE seen_run=:run AND finding='intact' AND EXISTS (SELECT 1 FROM unit_roots "
            "JOIN objects ON objects.url=unit_roots.url WHERE unit_roots.unit=units.url AND objects.root<>'' "
            "AND objects.root<>unit_roots.root AND objects.seen_run=:run)"
        )
        self._database.commit()

    def units(self) -> int:
        return int(self._rows("SELECT count(*) FROM units WHERE seen_run=:run").fetchone()[0])

    def unit_rows(self, *, bad_only: bool, limit: int = -1) -> Iterator[UnitRow]:
        """The directories, or those about which there is something to say."""
        where = "seen_run=:run" + (" AND finding<>'intact'" if bad_only else "")
        words = "url, finding, message, files, missing_count, unprotected_count, missing, unprotected"
        rows = self._rows(f"SELECT {words} FROM units WHERE {where} ORDER BY url LIMIT :limit", limit=limit)  # noqa: S608 - our own words
        for url, finding, message, files, missing_count, unprotected_count, missing, unprotected in rows:
            yield UnitRow(
                *(text_of(url), Finding(finding), message, files, missing_count, unprotected_count),
                *(tuple(json.loads(missing)), tuple(json.loads(unprotected))),
            )

    def exit_code(self) -> int:
        """The most severe of all objects and directories."""
        found = self._rows(f"SELECT DISTINCT finding, repairable FROM objects WHERE {_OF_THIS_RUN}").fetchall()  # noqa: S608 - our own words
        codes = [exit_code_of(Finding(finding), repairable=bool(repairable)) for finding, repairable in found]
        units = self._rows("SELECT DISTINCT finding FROM units WHERE seen_run=:run").fetchall()
        return ExitCode.worst(codes + [exit_code_of(Finding(finding), repairable=False) for (finding,) in units])


def _row(values: Sequence[Any]) -> Row:
    named = dict(zip(Row.__annotations__, values, strict=True))
    named |= {"url": text_of(named["url"]), "finding": Finding(named["finding"]), "damage": _damage(named["damage"])}
    return Row(**named | {name: bool(named[name]) for name in ("modified", "checked_now", "repairable")})


def _damage(stored: str) -> tuple[Damage, ...]:
    """Damage as it was kept; nothing if somebody wrote something else there."""
    try:
        return tuple(Damage(**{**one, "flips": tuple(_flip(flip) for flip in one["flips"])}) for one in json.loads(stored))
    except (ValueError, TypeError, KeyError):
        return ()


def _flip(values: dict[str, Any]) -> Flip:
    return Flip(**{**values, "index": tuple(values["index"])})
