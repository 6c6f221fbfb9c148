"""The agent's memory: what is kept over ends of every kind, a full disk, a database that rots."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bitward_agent.daemon.facts import (
    Event,
    EventKind,
    Expectation,
    Incident,
    IncidentKind,
    RepairRecord,
    UnitRecord,
)
from bitward_agent.daemon.state import Store
from bitward_agent.errors import BusyError, WriteError
from bitward_agent.findings import Verdict

ODD = "/m/\udcff\n\udc80'\"; DROP TABLE units;--"
"""A name with bytes that are no UTF-8, a newline, and what people call a joke."""


def unit(path: str, **fields: object) -> UnitRecord:
    return replace(UnitRecord(path, "/m", root="ab" * 32, origin="first-seen", verdict=Verdict.INTACT, bytes=5), **fields)  # type: ignore[arg-type]


def repair(path: str, number: int) -> RepairRecord:
    return RepairRecord(number, path, "t\ud800", number, 4096 * number, 4096, "parity", "disk", 1, 4096 * number)


def incident(path: str, fault: str) -> Incident:
    return Incident(path, IncidentKind.DAMAGED, fault, 10, "a block is lost", "disk", "t", 3, 4096, 7)


def fill(store: Store) -> None:
    store.put_unit(unit(ODD, message="x\udcff", suspect=True, scrub_position_bytes=7))
    store.put_unit(unit("/m/never", verdict=None, root=""))
    store.open_incident(incident(ODD, "t:3"))
    store.add_repair(repair(ODD, 1), repair("/m/b", 2), unit=unit("/m/b"))
    store.add_event(Event(5, EventKind.HEALED, ODD, "m\udcff", (("tensor", "t\ud800"), ("bit", "3"))))
    store.expect(Expectation(ODD, 1000))
    store.pause(77)
    store.keep_number("device:/m\udcff", 3)
    store.intend(ODD, (repair(ODD, 9),))


def contents(store: Store) -> tuple[object, ...]:
    return (
        store.units(),
        store.incidents(),
        store.repairs(),
        store.events(),
        store.expectations(0),
        store.paused_until,
        store.number("device:/m\udcff"),
        store.intended(ODD),
        store.totals(),
    )


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "s" / "agent.db"))
    fill(store)
    before = contents(store)
    store.close()
    again = Store(str(tmp_path / "s" / "agent.db"))
    assert contents(again) == before
    assert (again.lost, again.trouble) == ("", "")
    assert os.stat(again.path).st_mode & 0o777 == 0o600
    again.close()


def test_an_incident_is_one_however_often_it_is_seen(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "agent.db"))
    first, is_new = store.open_incident(incident("/a", "x"))
    again, is_new_again = store.open_incident(incident("/a", "x"))
    other, _ = store.open_incident(incident("/a", "y"))
    assert (is_new, is_new_again, again.id, again.seen_count) == (True, False, first.id, 2)
    store.mark_alerted(first.id)
    store.close_incident(first.id, "healed", 20)
    store.close_incident(first.id, "twice", 21)
    store.close()
    store = Store(str(tmp_path / "agent.db"))
    assert [one.id for one in store.incidents(open_only=True)] == [other.id]
    closed = store.incidents(path="/a")[-1]
    assert (closed.outcome, closed.closed_ns, closed.alerted) == ("healed", 20, True)
    reopened, is_new = store.open_incident(incident("/a", "x"))
    assert is_new
    assert reopened.id > other.id
    store.close()


def test_an_intended_repair_is_settled_with_its_account_or_kept(tmp_path: Path) -> None:
    path = str(tmp_path / "agent.db")
    store = Store(path)
    store.intend("/a", (repair("/a", 1), repair("/a", 2)))
    store._database.close()  # what was not written by now is lost
    store = Store(path)
    assert [one.block for one in store.intended("/a")] == [1, 2]
    store.add_repair(repair("/a", 1), settles="/a")
    store.close()
    store = Store(path)
    assert (store.intended("/a"), store.intents(), len(store.repairs())) == ((), (), 1)
    assert dict(store.totals().corrected_bits) == {"disk": 1}
    store.close()


def test_only_one_agent_has_it(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "agent.db"))
    with pytest.raises(BusyError):
        Store(store.path)
    store.close()
    Store(store.path).close()


def test_a_folder_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WriteError):
        Store(str(tmp_path / "file" / "agent.db"))
    (tmp_path / "link.db").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WriteError):
        Store(str(tmp_path / "link.db"))
    assert not (tmp_path / "elsewhere").exists()


WRITER = """
import sys
from bitward_agent.daemon.facts import RepairRecord, UnitRecord
from bitward_agent.daemon.state import Store
store = Store(sys.argv[1])
number = len(store.repairs(limit=10**6))
while True:
    number += 1
    record = RepairRecord(number, "/a", None, number, 0, 1, "parity", "disk", 1)
    store.intend("/a", (record,))
    store.add_repair(record, unit=UnitRecord("/a", "/", scrub_position_bytes=number), settles="/a")
    print(number, flush=True)
"""


def test_kills_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """Twenty kills at random moments; what the process had printed by then is there, each repair once."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    path = str(tmp_path / "agent.db")
    for _ in range(20):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        acknowledged = int(writer.stdout.readline())
        time.sleep(chance.random() * 0.03)
        writer.send_signal(signal.SIGKILL)
        acknowledged = int((writer.stdout.read().splitlines() or [b"%d" % acknowledged])[-1] or acknowledged)
        writer.wait()
        writer.stdout.close()
        store = Store(path)
        assert store.lost == ""
        kept = [one.block for one in store.repairs(limit=1 << 30)]
        assert kept == list(range(len(kept), 0, -1))
        assert acknowledged <= len(kept) <= acknowledged + 1
        known = store.unit("/a")
        assert known is not None
        assert known.scrub_position_bytes == len(kept) == dict(store.totals().corrected_bits)["disk"]
        store.close()


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("a small file system needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_up(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_full_disk_stops_nothing_and_loses_nothing(tmp_path: Path) -> None:
    now = [0.0]
    with small_disk(tmp_path / "disk"):
        store = Store(str(tmp_path / "disk" / "agent.db"), clock=lambda: now[0])
        store.put_unit(unit("/m/a"))
        ballast = tmp_path / "disk" / "ballast"
        with pytest.raises(OSError, match="No space"):
            fill_up(ballast)
        for number in range(300):
            store.put_unit(unit(f"/m/{number}", message="x" * 200))
            store.add_repair(repair(f"/m/{number}", number))
        opened, _ = store.open_incident(incident("/m/1", "z"))
        assert "full" in store.trouble
        assert len(store.units()) == 301
        assert len(store.repairs()) >= 300
        assert [one.id for one in store.incidents(open_only=True)] == [opened.id]
        ballast.unlink()
        now[0] += 100
        store.flush_if_due()
        assert store.trouble == ""
        before = (store.units(), store.repairs(), store.incidents(), store.totals())
        store.close()
        again = Store(str(tmp_path / "disk" / "agent.db"))
        assert (again.units(), again.repairs(), again.incidents(), again.totals()) == before
        assert len({one.block for one in again.repairs()}) == 300
        again.close()


def broken(path: Path, how: str, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if how == "flip in each page":
        for page in range(0, len(data), 4096):
            data[page + chance.randrange(min(100, 4096))] ^= 1 << chance.randrange(8)
    elif how == "zeroed page":
        data[4096:8192] = bytes(4096)
    elif how == "text":
        data = bytearray(b"this was a database\n" * 1000)
    elif how == "truncated":
        del data[len(data) // 2 :]
    elif how == "another's":
        path.unlink()
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE songs (name)")
        connection.close()
        return
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["flip in each page", "zeroed page", "text", "truncated", "another's"])
def test_a_corrupt_database_is_moved_aside_and_told(tmp_path: Path, how: str) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    path = tmp_path / "agent.db"
    store = Store(str(path))
    fill(store)
    for number in range(200):
        store.put_unit(unit(f"/m/{number}"))
    store.close()
    broken(path, how, random.Random(seed))
    kept = path.read_bytes()
    store = Store(str(path))
    assert "was lost" in store.lost
    assert store.units() == ()
    (aside,) = tmp_path.glob("agent.db.lost-*[0-9]")
    assert aside.read_bytes() == kept
    fill(store)
    store.close()
    again = Store(str(path))
    assert (again.lost, len(again.units())) == ("", 3)
    again.close()


def test_rows_that_make_no_sense_are_as_good_as_corrupt(tmp_path: Path) -> None:
    for number, change in enumerate(
        (
            "UPDATE units SET verdict = 'splendid'",
            "UPDATE units SET bytes = 'many'",
            "UPDATE incidents SET kind = 'x', closed_ns = 0",
            "UPDATE intents SET repairs = '[[1]]'",
            "UPDATE settings SET value = 'x'",
            "PRAGMA user_version = 99",
        )
    ):
        path = tmp_path / f"{number}.db"
        store = Store(str(path))
        fill(store)
        store.close()
        connection = sqlite3.connect(path)
        connection.execute(change)
        connection.commit()
        connection.close()
        store = Store(str(path))
        assert "was lost" in store.lost, change
        assert store.units() == ()
        store.close()


def test_a_database_that_rots_while_it_is_used_is_written_anew_from_memory(tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    store = Store(str(path))
    fill(store)
    for number in range(2000):
        store.put_unit(unit(f"/m/{number}", message="old" * 400), lazily=True)
    store.close()
    store = Store(str(path))
    with path.open("r+b") as file:
        file.seek(0)
        file.write(b"\xff" * path.stat().st_size)
    for number in range(2000):
        store.put_unit(unit(f"/m/{number}", message="new" * 400), lazily=True)
    store.flush(force=True)
    assert "was lost" in store.lost
    units = store.units()
    store.close()
    again = Store(str(path))
    assert again.units() == units
    assert [one.fault for one in again.incidents(open_only=True)] == ["t:3"]
    again.close()


def test_old_sets_are_not_kept_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    for _ in range(6):
        path.write_bytes(b"nonsense" * 600)
        Store(str(path)).close()
    assert len(list(tmp_path.glob("agent.db.lost-*[0-9]"))) == 3


def written_bytes() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("wchar:"):
            return int(line.split()[1])
    raise AssertionError


def test_a_quiet_day_writes_less_than_a_megabyte(tmp_path: Path) -> None:
    """Twenty files of a gigabyte, each verified once that day, a position told for every 4 MiB; the clock runs 86,400 seconds."""
    now = [0.0]
    store = Store(str(tmp_path / "agent.db"), clock=lambda: now[0])
    for number in range(20):
        store.put_unit(unit(f"/m/{number}"))
    store.flush(force=True)
    before = written_bytes()
    for number in range(20):
        for position in range(0, 1 << 30, 4 << 20):
            now[0] += 0.2
            store.put_unit(unit(f"/m/{number}", scrub_position_bytes=position), lazily=True)
            store.flush_if_due()
        store.add_scrubbed_bytes(1 << 30)
        store.put_unit(unit(f"/m/{number}", last_full_verify_ns=number + 1), lazily=True)
        for _ in range(60):
            now[0] += (86_400 / 20 - 51.2) / 60
            store.flush_if_due()
    store.close()
    assert written_bytes() - before < 1 << 20


def test_the_log_keeps_the_newest_events(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "agent.db"))
    for number in range(6000):
        store.add_event(Event(number, EventKind.VERIFIED, "", ""))
        if number % 100 == 0:
            store.flush(force=True)
    store.flush(force=True)
    assert [event.at_ns for event in store.events(3)] == [5997, 5998, 5999]
    assert 4900 <= len(store.events(10_000)) <= 5400
    store.close()
