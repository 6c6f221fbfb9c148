"""The alert command, run for real: once per incident, bounded in number and time; and the forms of the log."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from pathlib import Path

import pytest

from bitward_agent.daemon.accounts import Accounts
from bitward_agent.daemon.alerts import BURST, Alerts
from bitward_agent.daemon.config import LogForm
from bitward_agent.daemon.facts import Event, EventKind, Incident, IncidentKind
from bitward_agent.daemon.logs import MESSAGE_IDS, Log, json_line, priority, text_line
from bitward_agent.daemon.state import Store


def incident(number: int, path: str = "/m/a") -> Incident:
    return Incident(path, IncidentKind.DAMAGED, str(number), 10, "lost", "disk", "t\nx", 3, 4096, 7, id=number)


def command(tmp_path: Path, body: str) -> tuple[str, ...]:
    script = tmp_path / "alert.sh"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    return (str(script), "argument")


class Sink:
    def __init__(self) -> None:
        self.told: list[int] = []
        self.failed: list[str] = []
        self.changed = threading.Condition()

    def tell(self, one: Incident) -> None:
        with self.changed:
            self.told.append(one.id)
            self.changed.notify_all()

    def fail(self, message: str) -> None:
        with self.changed:
            self.failed.append(message)
            self.changed.notify_all()

    def wait_failed(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.failed) >= count, timeout=20)

    def wait(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.told) >= count, timeout=20)


def test_the_command_gets_the_incident(tmp_path: Path) -> None:
    sink = Sink()
    out = tmp_path / "out"
    words = command(tmp_path, f'{{ echo "$1|$BITWARD_KIND|$BITWARD_PATH|$BITWARD_MEDIUM|$AWS_SECRET"; cat; }} > {out}')
    alerts = Alerts(words, sink.tell, sink.fail)
    alerts.send(incident(1, "/m/\udcff"))
    sink.wait(1)
    alerts.stop()
    first, second = out.read_bytes().splitlines()
    assert first == b"argument|damaged|/m/\xff|disk|"
    document = json.loads(second)
    assert (document["schema"], document["tensor"], document["id"]) == ("bitward.incident/1", "t\nx", 1)
    assert sink.failed == []


def test_secrets_of_the_agents_environment_are_not_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    sink = Sink()
    alerts = Alerts(command(tmp_path, f"env > {tmp_path}/out"), sink.tell, sink.fail)
    alerts.send(incident(1))
    sink.wait(1)
    alerts.stop()
    assert "hunter2" not in (tmp_path / "out").read_text()


@pytest.mark.parametrize(("body", "told"), [("exit 3", "ended with 3"), ("sleep 60", "was ended after"), (None, "cannot be run")])
def test_a_command_that_fails_is_told_of(tmp_path: Path, body: str | None, told: str) -> None:
    sink = Sink()
    words = ("/nowhere/alert",) if body is None else command(tmp_path, body)
    alerts = Alerts(words, sink.tell, sink.fail, command_seconds=0.3, retry_seconds=())
    alerts.send(incident(1))
    sink.wait_failed(1)
    alerts.stop()
    assert told in sink.failed[0]
    assert "given up after 1 calls" in sink.failed[0]
    assert sink.told == []


def test_a_call_that_failed_is_made_again_until_it_succeeds_and_then_never(tmp_path: Path) -> None:
    sink = Sink()
    words = command(tmp_path, f'echo "$BITWARD_INCIDENT" >> {tmp_path}/out; [ $(wc -l < {tmp_path}/out) -ge 3 ]')
    alerts = Alerts(words, sink.tell, sink.fail, retry_seconds=(0.1, 0.2, 60.0))
    for _ in range(3):
        alerts.send(incident(1))
    sink.wait(1)
    alerts.send(incident(1))  # somebody saw it again before the store knew
    alerts.send(incident(2))
    sink.wait(2)
    alerts.stop()
    assert sink.told == [1, 2]
    assert (tmp_path / "out").read_text().split() == ["1", "1", "1", "2"]
    assert ["called again in" in one for one in sink.failed] == [True, True]


def test_a_call_that_always_fails_ends_and_may_be_asked_for_again(tmp_path: Path) -> None:
    sink = Sink()
    alerts = Alerts(command(tmp_path, f"echo x >> {tmp_path}/out; exit 1"), sink.tell, sink.fail, retry_seconds=(0.1, 0.1))
    for count in (3, 6):
        alerts.send(incident(1))
        sink.wait_failed(count)
        assert "given up after 3 calls" in sink.failed[-1]
    alerts.stop()
    assert len((tmp_path / "out").read_text().splitlines()) == 6
    assert sink.told == []


def test_a_failed_call_holds_up_no_other_incident(tmp_path: Path) -> None:
    sink = Sink()
    alerts = Alerts(command(tmp_path, '[ "$BITWARD_INCIDENT" != 1 ]'), sink.tell, sink.fail)
    alerts.send(incident(1))
    sink.wait_failed(1)
    alerts.send(incident(2))
    sink.wait(1)
    alerts.stop()
    assert sink.told == [2]
    assert "called again in 30 s" in sink.failed[0]


def test_what_nobody_took_is_told_after_the_next_start_once(tmp_path: Path) -> None:
    words = command(tmp_path, f"[ -e {tmp_path}/mended ] && echo x >> {tmp_path}/out")
    for start in range(4):
        if start == 2:
            (tmp_path / "mended").touch()
        store = Store(str(tmp_path / "agent.db"))
        stream = io.StringIO()
        accounts = Accounts(store, Log(LogForm.TEXT, stream=stream), words)
        accounts.catch_up()
        accounts.incident(Incident("/a", IncidentKind.CHANGED, "f", 1, "m"))
        deadline = time.monotonic() + 20
        while not store.incidents(open_only=True)[0].alerted and "alert-failed" not in stream.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert store.incidents(open_only=True)[0].alerted == (start >= 2)
        accounts.close()
        store.close()
    assert (tmp_path / "out").read_text() == "x\n"


def test_a_flood_becomes_a_few_calls_that_speak_of_all(tmp_path: Path) -> None:
    sink = Sink()
    now = [0.0]
    alerts = Alerts(command(tmp_path, f'echo "$BITWARD_MESSAGE" >> {tmp_path}/out'), sink.tell, sink.fail, clock=lambda: now[0])
    for number in range(1, 501):
        alerts.send(incident(number))
    now[0] += 61
    sink.wait(490)
    now[0] += 61
    sink.wait(500)
    alerts.stop()
    lines = (tmp_path / "out").read_text().splitlines()
    assert sorted(sink.told) == list(range(1, 501))
    assert len(lines) <= BURST + 2
    assert any("incidents (damaged), the first" in line for line in lines)


def test_stopping_does_not_wait_for_the_command(tmp_path: Path) -> None:
    sink = Sink()
    alerts = Alerts(command(tmp_path, f"touch {tmp_path}/began; exec sleep 60"), sink.tell, sink.fail)
    alerts.send(incident(1))
    while not (tmp_path / "began").exists():
        time.sleep(0.01)
    alerts.stop()
    assert sink.told == []  # it will be told after the next start


def test_one_incident_one_alert_over_sightings_and_restarts(tmp_path: Path) -> None:
    words = command(tmp_path, f"echo x >> {tmp_path}/out")
    for _ in range(3):
        store = Store(str(tmp_path / "agent.db"))
        accounts = Accounts(store, Log(LogForm.TEXT, stream=io.StringIO()), words)
        accounts.catch_up()
        for _ in range(3):
            accounts.incident(Incident("/a", IncidentKind.CHANGED, "f", 1, "m"))
        deadline = time.monotonic() + 20
        while not store.incidents(open_only=True)[0].alerted:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        accounts.close()
        store.close()
    assert (tmp_path / "out").read_text() == "x\n"


EVENT = Event(
    1_700_000_000_123_000_000,
    EventKind.DAMAGE_FOUND,
    "/m/\udcff\n\x1b[31m",
    "bit 3",
    (("tensor", "a\nMESSAGE_ID=x\ud800"), ("bit", "3"), ("path", "no"), ("Bad Name", "x")),
)


def fields_of(datagram: bytes) -> list[tuple[bytes, bytes]]:
    """The slow twin: the native protocol, read as its page says."""
    found = []
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + size], rest[9 + size :]
        found.append((name, value))
        datagram = rest
    return found


def test_the_journal_gets_fields(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "socket"))
        journal.settimeout(5)
        log = Log(LogForm.JOURNAL, stream=io.StringIO(), journal=str(tmp_path / "socket"))
        log.write(EVENT)
        fields = dict(fields_of(journal.recv(1 << 16)))
        log.close()
    assert fields[b"MESSAGE_ID"].decode() == MESSAGE_IDS[EventKind.DAMAGE_FOUND]
    assert fields[b"PRIORITY"] == b"4"
    assert fields[b"BITWARD_PATH"] == b"/m/\xff\n\x1b[31m"
    assert fields[b"BITWARD_TENSOR"] == b"a\nMESSAGE_ID=x\\ud800"
    assert fields[b"BITWARD_BIT"] == b"3"
    assert b"BITWARD_BAD NAME" not in fields
    assert fields[b"MESSAGE"].endswith(b": bit 3")


def test_without_a_journal_lines_go_to_the_stream(tmp_path: Path) -> None:
    stream = io.StringIO()
    log = Log(LogForm.JOURNAL, stream=stream, journal=str(tmp_path / "none"))
    log.write(EVENT)
    log.write(EVENT)
    log.close()
    assert len(stream.getvalue().splitlines()) == 3
    assert "the journal does not take entries" in stream.getvalue()


def test_lines_are_lines_whatever_a_name_holds() -> None:
    for form in (LogForm.TEXT, LogForm.JSON):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        Log(form, stream=stream).write(EVENT)
        stream.seek(0)
        (line,) = stream.read().splitlines()
        assert "\x1b" not in line
    assert text_line(EVENT).startswith("2023-11-14T22:13:20.123Z warning damage-found: /m/\\udcff\\n\\x1b[31m: bit 3")
    document = json.loads(json_line(EVENT))
    assert (document["path"], document["event"], document["bit"]) == (EVENT.path, "damage-found", "3")


def test_a_closed_stream_is_borne() -> None:
    stream = io.StringIO()
    log = Log(LogForm.TEXT, stream=stream)
    log.write(EVENT)
    assert stream.getvalue().count("\n") == 1
    stream.close()
    log.write(EVENT)
    assert stream.closed


def test_every_kind_has_an_id_of_its_own_and_a_priority() -> None:
    assert set(MESSAGE_IDS) == set(EventKind)
    assert len(set(MESSAGE_IDS.values())) == len(EventKind)
    assert all(len(bytes.fromhex(one)) == 16 for one in MESSAGE_IDS.values())
    assert all(3 <= priority(kind) <= 6 for kind in EventKind)
