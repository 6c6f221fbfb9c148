"""The SQLite file behind the store: rows out of frozen values and back, and what to do when the file is not what it should be.

Write-ahead log, every commit synced, locked for this process alone (so there is no shared-memory file, and no second agent). A file that
is corrupt, or no database at all, is moved aside, never deleted, and a new one begun.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from dataclasses import fields
from typing import Any, NamedTuple, TypeVar

from bitward_agent.daemon.facts import Event, Expectation, Incident, RepairRecord, UnitRecord
from bitward_agent.daemon.rows import RowError, from_sql, to_sql, value_of
from bitward_agent.errors import BusyError, WriteError

APPLICATION_ID = 0x42574147
"""``BWAG``: what ``file`` and SQLite call an application's own kind of database."""

SCHEMA_VERSION = 1
SET_ASIDE_KEPT = 3
BUSY_SECONDS = 0.5

_TABLES: dict[str, type[Any]] = {
    "units": UnitRecord,
    "incidents": Incident,
    "repairs": RepairRecord,
    "events": Event,
    "expectations": Expectation,
}
_KEYS = {"units": "path", "incidents": "id", "repairs": "number", "events": "number", "expectations": "path"}
_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

R = TypeVar("R")
Key = tuple[str, str]


class Statement(NamedTuple):
    """One row to be written, with the value that it was made of (None for a removal)."""

    sql: str
    values: tuple[object, ...]
    row: object = None


class Memory(NamedTuple):
    """What is loaded when the agent starts. The last numbers are 0 in a new database."""

    units: tuple[UnitRecord, ...]
    open_incidents: tuple[Incident, ...]
    settings: tuple[tuple[str, int], ...]
    expectations: tuple[Expectation, ...]
    intents: tuple[tuple[str, tuple[RepairRecord, ...]], ...]
    last_incident: int
    last_event: int
    last_repair: int


class Trouble(Exception):
    """The database could not be read or written. ``corrupt``: it never will be."""

    def __init__(self, told: str, *, corrupt: bool = False) -> None:
        super().__init__(told)
        self.corrupt = corrupt


class Database:
    """One SQLite file. ``lost`` says why an older one was moved aside, if one was."""

    def __init__(self, path: str) -> None:
        """
        Raises:
            BusyError: another process has it.
            WriteError: it can be neither opened nor made.
        """
        self.path = path
        self.lost = ""
        self._connection: sqlite3.Connection | None = None
        try:
            self._connection = self._open()
        except Trouble as trouble:
            if not trouble.corrupt:
                raise WriteError(f"{path}: the agent's state cannot be opened: {trouble}") from trouble
            self.lost = self._set_aside(str(trouble))
            try:
                self._connection = self._open()
            except Trouble as again:
                raise WriteError(f"{path}: the agent's state cannot be made: {again}") from again

    def _open(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = None
        try:
            folder = os.path.dirname(self.path)
            os.makedirs(folder, mode=0o700, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            self._set_up(connection)
        except (sqlite3.Error, OSError, UnicodeDecodeError, OverflowError) as error:
            if connection is not None:
                connection.close()
            if isinstance(error, sqlite3.OperationalError) and _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise BusyError(f"{self.path}: another agent uses this state") from error
            raise _trouble(error) from error
        except Trouble:
            if connection is not None:
                connection.close()
            raise
        return connection

    def _set_up(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA trusted_schema = OFF")
        (found,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (objects,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if objects and (found, version) != (APPLICATION_ID, SCHEMA_VERSION):
            raise Trouble(f"it is of another kind or version ({version}, this agent knows {SCHEMA_VERSION})", corrupt=True)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA cache_size = -1024")
        connection.execute("PRAGMA journal_size_limit = 1048576")
        if objects:
            told = [row[0] for row in connection.execute("PRAGMA quick_check(1)")]
            if told != ["ok"]:
                raise Trouble(f"it is corrupt: {told[0] if told else 'no answer'}", corrupt=True)
            return
        connection.execute("BEGIN IMMEDIATE")
        for name, kind in _TABLES.items():
            columns = [f"{field.name} PRIMARY KEY" if field.name == _KEYS[name] else field.name for field in fields(kind)]
            if _KEYS[name] == "number":
                columns.insert(0, "number INTEGER PRIMARY KEY")
            columns = [column.replace("id PRIMARY", "id INTEGER PRIMARY") for column in columns]
            connection.execute(f"CREATE TABLE {name} ({', '.join(columns)})")
        connection.execute("CREATE TABLE settings (name TEXT PRIMARY KEY, value INTEGER)")
        connection.execute("CREATE TABLE intents (path PRIMARY KEY, repairs TEXT)")
        connection.execute("CREATE INDEX repairs_by_path ON repairs (path)")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")

    def start_over(self, why: str) -> str:
        """Move the file aside and begin a new one; says so in words. Where that fails too, the next write tries again."""
        self.close()
        self.lost = self._set_aside(why)
        with contextlib.suppress(Trouble, BusyError):
            self._connection = self._open()
        return self.lost

    def _set_aside(self, why: str) -> str:
        folder, name = os.path.split(self.path)
        aside = f"{self.path}.lost-{time.time_ns()}"
        try:
            os.replace(self.path, aside)
            for suffix in ("-wal", "-shm", "-journal"):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(self.path + suffix, aside + suffix)
            old = sorted(one for one in os.listdir(folder) if one.startswith(f"{name}.lost-") and one.rpartition("-")[2].isdigit())
            for one in old[:-SET_ASIDE_KEPT]:
                for suffix in ("", "-wal", "-shm", "-journal"):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(os.path.join(folder, one + suffix))
        except OSError as error:
            return f"the agent's state cannot be used ({why}) nor moved aside ({error.strerror})"
        return f"the agent's state was lost ({why}); it is kept as {aside} and is learnt anew from the sidecars"

    # ------------------------------------------------------------------------------------------------------------------- rows

    def put(self, table: str, row: object) -> Statement:
        """The row of a value, new or in place of that with the same key."""
        names = [field.name for field in fields(_TABLES[table])]
        marks = ", ".join("?" * len(names))
        sql = f"INSERT OR REPLACE INTO {table} ({', '.join(names)}) VALUES ({marks})"  # noqa: S608 - names are our own
        return Statement(sql, tuple(to_sql(getattr(row, name)) for name in names), row)

    def add(self, table: str, number: int, row: object) -> Statement:
        """The row of a value that has a number instead of a key."""
        names = ["number", *(field.name for field in fields(_TABLES[table]))]
        marks = ", ".join("?" * len(names))
        sql = f"INSERT OR REPLACE INTO {table} ({', '.join(names)}) VALUES ({marks})"  # noqa: S608 - names are our own
        return Statement(sql, (number, *(to_sql(getattr(row, name)) for name in names[1:])), row)

    def remove(self, table: str, key: str) -> Statement:
        """Nothing in place of a row."""
        return Statement(f"DELETE FROM {table} WHERE {_KEYS[table]} = ?", (to_sql(key),))  # noqa: S608 - names are our own

    def setting(self, name: str, value: int) -> Statement:
        """A number under a name."""
        return Statement("INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)", (to_sql(name), to_sql(value)))

    def intent(self, path: str, repairs: tuple[RepairRecord, ...]) -> Statement:
        """What is about to be repaired in a file; nothing takes it away."""
        if not repairs:
            return Statement("DELETE FROM intents WHERE path = ?", (to_sql(path),))
        names = [field.name for field in fields(RepairRecord)]
        rows = json.dumps([[getattr(repair, name) for name in names] for repair in repairs])
        return Statement("INSERT OR REPLACE INTO intents (path, repairs) VALUES (?, ?)", (to_sql(path), rows))

    def write(self, statements: list[Statement]) -> None:
        """All of them or none, on the disk when this returns.

        Raises:
            Trouble: nothing was written.
        """
        connection = self._usable()
        try:
            connection.execute("BEGIN IMMEDIATE")
            for statement in statements:
                connection.execute(statement.sql, statement.values)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            raise _trouble(error) from error

    def load(self) -> Memory:
        """Everything that is kept in memory.

        A row that does not fit its kind is as good as a corrupt file: that is moved aside and the memory is empty.
        """
        try:
            return self._load()
        except Trouble as trouble:
            self.start_over(str(trouble))
            return Memory((), (), (), (), (), 0, 0, 0)

    def _load(self) -> Memory:
        settings = self._select("SELECT name, value FROM settings", ())
        if not all(isinstance(name, str | bytes) and isinstance(value, int) for name, value in settings):
            raise Trouble("a setting is no number", corrupt=True)
        return Memory(
            self._values(UnitRecord, "", ()),
            self._values(Incident, "WHERE closed_ns = 0", ()),
            tuple((str(from_sql("str", name)), value) for name, value in settings),
            self._values(Expectation, "", ()),
            self._intents(),
            self._last("incidents", "id"),
            self._last("events", "number"),
            self._last("repairs", "number"),
        )

    def _intents(self) -> tuple[tuple[str, tuple[RepairRecord, ...]], ...]:
        names = [field.name for field in fields(RepairRecord)]
        found: list[tuple[str, tuple[RepairRecord, ...]]] = []
        for path, rows in self._select("SELECT path, repairs FROM intents", ()):
            try:
                repairs = tuple(value_of(RepairRecord, names, tuple(row)) for row in json.loads(rows))
            except (ValueError, TypeError, RowError) as error:
                raise Trouble(f"an intended repair makes no sense: {error}", corrupt=True) from error
            found.append((str(from_sql("str", path)), repairs))
        return tuple(found)

    def newest(self, kind: type[R], limit: int, *, path: str | None = None, since_ns: int = 0) -> tuple[R, ...]:
        """Values of a kind, newest first."""
        table = next(name for name, one in _TABLES.items() if one is kind)
        wheres: list[str] = []
        values: list[object] = []
        if path is not None:
            wheres.append("path = ?")
            values.append(to_sql(path))
        if since_ns:
            wheres.append("at_ns >= ?")
            values.append(since_ns)
        where = f"WHERE {' AND '.join(wheres)}" if wheres else ""
        return self._values(kind, f"{where} ORDER BY {_KEYS[table]} DESC LIMIT ?", (*values, max(0, limit)))

    def trim(self, *, events: int, repairs: int, incidents: int) -> tuple[()]:
        """Drop the oldest rows beyond these numbers."""
        for table, key, keep, closed in (
            ("events", "number", events, ""),
            ("repairs", "number", repairs, ""),
            ("incidents", "id", incidents, " AND closed_ns > 0"),
        ):
            self._select(f"DELETE FROM {table} WHERE {key} <= (SELECT max({key}) FROM {table}) - ?{closed}", (keep,))  # noqa: S608
        return ()

    def close(self) -> None:
        """Close the file; all that was committed is in it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _usable(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                self._connection = self._open()
            except BusyError as error:
                raise Trouble(str(error)) from error
        return self._connection

    def _last(self, table: str, key: str) -> int:
        ((found,),) = self._select(f"SELECT max({key}) FROM {table}", ())  # noqa: S608 - names are our own
        if found is not None and not isinstance(found, int):
            raise Trouble(f"a number of {table} is none", corrupt=True)
        return found or 0

    def _values(self, kind: type[R], rest: str, values: tuple[object, ...]) -> tuple[R, ...]:
        table = next(name for name, one in _TABLES.items() if one is kind)
        names = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # a frozen dataclass
        rows = self._select(f"SELECT {', '.join(names)} FROM {table} {rest}", values)  # noqa: S608 - names are our own
        try:
            return tuple(value_of(kind, names, row) for row in rows)
        except RowError as error:
            raise Trouble(str(error), corrupt=True) from error

    def _select(self, sql: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        try:
            return self._usable().execute(sql, values).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise _trouble(error) from error


def _code(error: BaseException) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _trouble(error: BaseException) -> Trouble:
    corrupt = isinstance(error, UnicodeDecodeError) or (isinstance(error, sqlite3.DatabaseError) and _code(error) in _CORRUPT)
    told = error.strerror if isinstance(error, OSError) else str(error)
    return Trouble(told or type(error).__name__, corrupt=corrupt)
