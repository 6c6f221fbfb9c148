"""What a scrub remembers, in one SQLite file: what was listed, what was found, and when it was last intact.

Each result is a transaction of its own in a write-ahead log, so a scrub that is killed forgets no verdict; a power cut may cost the
last few, which are then found again. One scrub at a time has the file. It is hostile input as any other: what is not a state is not used.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from typing import Any

from bitward.registries.scrub.decisions import Known, was_rewritten
from bitward.registries.scrub.facts import CheckTask, Finding, ObjectResult, Problem, UnitResult, UnitTask
from bitward.report.document import document
from bitward_agent.durable import make_empty
from bitward_agent.errors import BitwardError, InputError, UnreadableError, WriteError
from bitward_agent.io import OpenFile, resolve
from bitward_agent.stores import Entry, ObjectState, order_of

_APPLICATION_ID = 0x42775363  # "BwSc"
_VERSION = 1
_SHOWN_CHARACTERS = 300
_WAITING_ROWS = 256
"""Rows of a listing that are written together: one that is lost is listed again."""
_SCHEMA = """
CREATE TABLE runs(id INTEGER PRIMARY KEY, prefixes TEXT NOT NULL, started_ns INTEGER NOT NULL, finished_ns INTEGER);
CREATE TABLE objects(url BLOB PRIMARY KEY, prefix BLOB NOT NULL, seen_run INTEGER NOT NULL,
  mark TEXT NOT NULL, sidecar_mark TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
  finding TEXT NOT NULL, message TEXT NOT NULL DEFAULT '', checked_run INTEGER NOT NULL DEFAULT 0, checked_ns INTEGER NOT NULL DEFAULT 0,
  intact_ns INTEGER NOT NULL DEFAULT 0, intact_mark TEXT NOT NULL DEFAULT '', intact_sidecar_mark TEXT NOT NULL DEFAULT '',
  bytes INTEGER NOT NULL DEFAULT 0, fetched_bytes INTEGER NOT NULL DEFAULT 0, requests INTEGER NOT NULL DEFAULT 0,
  seconds REAL NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0, root TEXT NOT NULL DEFAULT '', origin TEXT NOT NULL DEFAULT '',
  modified INTEGER NOT NULL DEFAULT 0, protected_ns INTEGER NOT NULL DEFAULT 0, sidecar TEXT NOT NULL DEFAULT '',
  damaged_blocks INTEGER NOT NULL DEFAULT 0, flip_count INTEGER NOT NULL DEFAULT 0, repairable INTEGER NOT NULL DEFAULT 0,
  damage TEXT NOT NULL DEFAULT '[]') WITHOUT ROWID;
CREATE TABLE units(url BLOB PRIMARY KEY, prefix BLOB NOT NULL, seen_run INTEGER NOT NULL, folder BLOB NOT NULL,
  index_key BLOB NOT NULL, size INTEGER NOT NULL, tag TEXT NOT NULL, mtime_ns INTEGER NOT NULL,
  finding TEXT NOT NULL, message TEXT NOT NULL DEFAULT '', checked_run INTEGER NOT NULL DEFAULT 0, files INTEGER NOT NULL DEFAULT 0,
  missing_count INTEGER NOT NULL DEFAULT 0, unprotected_count INTEGER NOT NULL DEFAULT 0,
  missing TEXT NOT NULL DEFAULT '[]', unprotected TEXT NOT NULL DEFAULT '[]') WITHOUT ROWID;
CREATE TABLE unit_roots(unit BLOB NOT NULL, url BLOB NOT NULL, root TEXT NOT NULL, PRIMARY KEY(unit, url)) WITHOUT ROWID;
CREATE TABLE problems(run INTEGER NOT NULL, place BLOB NOT NULL, message TEXT NOT NULL, PRIMARY KEY(run, place)) WITHOUT ROWID;
"""
_SEEN = """
INSERT INTO objects(url, prefix, seen_run, mark, sidecar_mark, size, mtime_ns, finding, message) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT(url) DO UPDATE SET prefix=excluded.prefix, seen_run=excluded.seen_run, size=excluded.size, mtime_ns=excluded.mtime_ns,
  mark=excluded.mark, sidecar_mark=excluded.sidecar_mark,
  finding=CASE WHEN excluded.finding='' THEN objects.finding ELSE excluded.finding END,
  message=CASE WHEN excluded.finding='' THEN objects.message ELSE excluded.message END,
  attempts=CASE WHEN excluded.finding='' THEN objects.attempts ELSE 0 END,
  damage=CASE WHEN excluded.finding='' THEN objects.damage ELSE '[]' END
"""


class State:
    """An open state, locked. Use it as a context."""

    def __init__(self, path: str) -> None:
        """
        Raises:
            BusyError: another scrub has it.
            InputError: what lies there is something else.
            WriteError, UnreadableError: it cannot be made or used.
        """
        self.path = resolve(path)
        self.run = 0
        self.resumed = False
        self._pending = 0
        self._lock = _locked(f"{self.path}.lock")
        try:
            self.database = _opened(self.path)
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> State:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self.database.commit()
            self.database.close()
        self._lock.close()

    def _do(self, words: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        try:
            return self.database.execute(words, [_storable(one) for one in values])
        except sqlite3.Error as error:
            raise WriteError(f"{self.path}: the scrub's state cannot be used: {error}") from error

    def commit(self) -> None:
        """Make what was noted last."""
        self._pending = 0
        try:
            self.database.commit()
        except sqlite3.Error as error:
            raise WriteError(f"{self.path}: the scrub's state cannot be written: {error}") from error

    # ---------------------------------------------------------------------------------------------------------------- runs

    def begin(self, prefixes: Sequence[str], identities: Sequence[str] = ()) -> None:
        """Go on with an unfinished run over the same prefixes, or begin a new one.

        ``identities`` are the prefixes with what else tells their stores apart. A state is for one set of them: what one has seen tells
        nothing of what is gone, or to be trusted, in another.

        Raises:
            InputError: it is the state of other prefixes.
        """
        named = json.dumps(sorted(set(identities or prefixes)))
        other = self._do("SELECT prefixes FROM runs WHERE prefixes<>? LIMIT 1", (named,)).fetchone()
        if other is not None:
            raise InputError(
                f"{self.path}: is the state of another scrub, of {str(other[0])[:_SHOWN_CHARACTERS]}; this one is of "
                f"{named[:_SHOWN_CHARACTERS]}: give it a file of its own"
            )
        row = self._do("SELECT id FROM runs WHERE prefixes=? AND finished_ns IS NULL ORDER BY id DESC LIMIT 1", (named,)).fetchone()
        self.resumed = row is not None
        if row is not None:
            self.run = int(row[0])
            self._do("DELETE FROM problems WHERE run=?", (self.run,))  # what could not be listed is tried again
        else:
            self.run = int(self._do("INSERT INTO runs(prefixes, started_ns) VALUES(?, ?)", (named, time.time_ns())).lastrowid or 0)
            for prefix in prefixes:
                self._do("DELETE FROM objects WHERE finding=? AND prefix=?", (Finding.GONE, order_of(prefix)))  # told once, by the last run
            self._do("DELETE FROM problems")
        self.commit()

    def finish(self) -> None:
        """The run has looked at everything."""
        self._do("UPDATE runs SET finished_ns=? WHERE id=?", (time.time_ns(), self.run))
        self.commit()

    # ------------------------------------------------------------------------------------------------------------- listing

    def known(self, url: str) -> Known | None:
        """What is remembered of an object."""
        row = self._do(
            "SELECT mark, sidecar_mark, finding, checked_run, checked_ns, intact_mark, intact_sidecar_mark FROM objects WHERE url=?",
            (order_of(url),),
        ).fetchone()
        if row is None:
            return None
        try:
            return Known(row[0], row[1], Finding(row[2]), *row[3:])
        except ValueError:
            return None

    def saw(self, url: str, prefix: str, entry: Entry, sidecar_mark: str, finding: Finding | None, message: str = "") -> None:
        """An object is in the listing. ``finding`` is what that alone tells of it; ``None`` leaves what is known."""
        state = entry.state
        values = (order_of(url), order_of(prefix), self.run, state.mark, sidecar_mark, state.size, state.mtime_ns, finding or "", message)
        self._do(_SEEN, values)
        self._noted()

    def saw_index(self, task: UnitTask, prefix: str) -> None:
        """A directory's index is in the listing."""
        state = task.index_state
        self._do(
            "INSERT INTO units(url, prefix, seen_run, folder, index_key, size, tag, mtime_ns, finding) VALUES(?,?,?,?,?,?,?,?,?) "
            "ON CONFLICT(url) DO UPDATE SET prefix=excluded.prefix, seen_run=excluded.seen_run, size=excluded.size, "
            "checked_run=CASE WHEN (size, tag, mtime_ns)=(excluded.size, excluded.tag, excluded.mtime_ns) THEN checked_run ELSE 0 END, "
            "tag=excluded.tag, mtime_ns=excluded.mtime_ns",
            (
                *(order_of(task.url), order_of(prefix), self.run, order_of(task.folder)),
                *(order_of(task.index_key), state.size, state.tag, state.mtime_ns, Finding.WAITING),
            ),
        )
        self._noted()

    def _noted(self) -> None:
        self._pending += 1
        if self._pending >= _WAITING_ROWS:
            self.commit()

    def problem(self, place: str, message: str) -> None:
        """Something could not be listed."""
        self._do("INSERT OR REPLACE INTO problems VALUES(?, ?, ?)", (self.run, order_of(place), message))
        self.commit()

    def listed(self, prefix: str) -> None:
        """A prefix was listed to its end, and without a gap: what was there before and was not seen now is gone."""
        self._do(
            "UPDATE objects SET finding=?, message='it was there when this prefix was scrubbed before' WHERE prefix=? AND seen_run<>?",
            (Finding.GONE, order_of(prefix), self.run),
        )
        unseen = (order_of(prefix), self.run)
        self._do("DELETE FROM unit_roots WHERE unit IN (SELECT url FROM units WHERE prefix=? AND seen_run<>?)", unseen)
        self._do("DELETE FROM units WHERE prefix=? AND seen_run<>?", unseen)
        self.commit()

    def problems(self) -> list[Problem]:
        rows = self._do("SELECT place, message FROM problems WHERE run=? ORDER BY place LIMIT 1000", (self.run,))
        return [Problem(text_of(place), message) for place, message in rows]

    # ------------------------------------------------------------------------------------------------------------- results

    def tried(self, url: str) -> None:
        """An attempt was in vain, and there will be another."""
        self._do("UPDATE objects SET attempts=attempts+1 WHERE url=?", (order_of(url),))

    def keep(self, task: CheckTask, result: ObjectResult) -> None:
        """What became of an object."""
        now_ns, pair, effort = time.time_ns(), result.pair, result.effort
        is_intact = result.finding is Finding.INTACT
        self._do(
            "UPDATE objects SET mark=?, sidecar_mark=?, size=?, mtime_ns=?, finding=?, message=?, checked_run=?, checked_ns=?, bytes=?, "
            "fetched_bytes=?, requests=?, seconds=?, attempts=attempts+1, root=?, origin=?, modified=?, protected_ns=?, sidecar=?, "
            "damaged_blocks=?, flip_count=?, repairable=?, damage=? WHERE url=?",
            (
                *(pair.state.mark, pair.sidecar_state.mark, pair.state.size, pair.state.mtime_ns, result.finding, result.message),
                *(self.run, now_ns, result.bytes, effort.fetched_bytes, effort.requests, effort.seconds, result.root, result.origin),
                *(result.modified, result.protected_ns, result.sidecar, result.damaged_blocks, result.flip_count, result.repairable),
                *(document(result.damage), order_of(task.url)),
            ),
        )
        if is_intact:
            words = "UPDATE objects SET intact_ns=?, intact_mark=mark, intact_sidecar_mark=sidecar_mark WHERE url=?"
            self._do(words, (now_ns, order_of(task.url)))
        self.commit()

    def keep_unit(self, task: UnitTask, result: UnitResult) -> None:
        """What became of a directory."""
        unit = order_of(task.url)
        self._do("DELETE FROM unit_roots WHERE unit=?", (unit,))
        for url, root in result.roots:
            self._do("INSERT OR REPLACE INTO unit_roots VALUES(?, ?, ?)", (unit, order_of(url), root))
        self._do(
            "UPDATE units SET finding=?, message=?, checked_run=?, files=?, missing_count=?, unprotected_count=?, missing=?, unprotected=? "
            "WHERE url=?",
            (
                *(result.finding, result.message, self.run, result.files, result.missing_count, result.unprotected_count),
                *(document(result.missing), document(result.unprotected), unit),
            ),
        )
        self.commit()

    def units_due(self, prefix: str, store: str) -> Iterator[UnitTask]:
        """The directories of a prefix that were not held against their indexes in this run."""
        words = (
            "SELECT url, folder, index_key, size, tag, mtime_ns FROM units "
            "WHERE prefix=? AND seen_run=? AND checked_run<>? AND url>? ORDER BY url LIMIT 500"
        )
        last = b""
        while rows := self._do(words, (order_of(prefix), self.run, self.run, last)).fetchall():
            for url, folder, key, size, tag, mtime_ns in rows:
                yield UnitTask(store, text_of(url), text_of(folder), text_of(key), ObjectState(size, tag, mtime_ns))
            last = rows[-1][0]

    def rewritten(self, url: str, mark: str, sidecar_mark: str) -> bool | None:
        """See ``decisions.was_rewritten``."""
        return was_rewritten(self.known(url), mark, sidecar_mark)


def _storable(value: Any) -> Any:
    """A value that SQLite takes. Messages hold names, and names may be no UTF-8: in a text their bytes are escaped."""
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-8", "backslashreplace").decode()
    return value


def text_of(stored: bytes) -> str:
    """A key or address as it was kept."""
    return stored.decode("utf-8", "surrogateescape")


def _locked(path: str) -> OpenFile:
    if not os.path.lexists(path):
        with contextlib.suppress(WriteError):  # another one made it meanwhile, or opening it tells why it cannot be
            make_empty(path, mode=0o600)
    lock = OpenFile(path, write=True)
    try:
        lock.lock()
    except BitwardError:
        lock.close()
        raise
    return lock


def _opened(path: str) -> sqlite3.Connection:
    """The database of a state, made if there is none. The path was resolved, and no link is followed."""
    is_new = not os.path.lexists(path)
    if is_new:
        make_empty(path, mode=0o600)
    with OpenFile(path, write=True) as file:
        head = file.read(0, 16)
    if head and head != b"SQLite format 3\0":
        raise InputError(f"{path}: is there already and is no state of a scrub; name another file")
    try:
        database = sqlite3.connect(path, isolation_level="IMMEDIATE", cached_statements=64)
        found = database.execute("PRAGMA application_id").fetchone()[0], database.execute("PRAGMA user_version").fetchone()[0]
        tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not tables and found == (0, 0):
            database.execute("PRAGMA journal_mode=WAL")
            database.executescript(f"PRAGMA application_id={_APPLICATION_ID}; BEGIN; {_SCHEMA} PRAGMA user_version={_VERSION}; COMMIT;")
        elif found[0] != _APPLICATION_ID:
            database.close()
            raise InputError(f"{path}: is there already and is no state of a scrub; name another file")
        elif found[1] != _VERSION:
            database.close()
            raise InputError(f"{path}: was made by another version of Bitward ({found[1]}, this one knows {_VERSION}); name another file")
        database.execute("PRAGMA trusted_schema=OFF")
        database.execute("PRAGMA synchronous=NORMAL")
        database.execute("PRAGMA cache_size=-8192")
    except sqlite3.Error as error:
        raise UnreadableError(f"{path}: the scrub's state cannot be used: {error}; remove it to begin anew") from error
    return database
