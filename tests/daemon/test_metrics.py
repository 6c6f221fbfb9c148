"""Figures for Prometheus: what its own checker says, and the endpoint with clients that behave and that do not."""

from __future__ import annotations

import http.client
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from bitward_agent.daemon.facts import Incident, IncidentKind, Totals, UnitRecord
from bitward_agent.daemon.metrics import MetricsServer, Snapshot, render, write_textfile
from bitward_agent.errors import WriteError
from bitward_agent.findings import Verdict

SNAPSHOT = Snapshot(
    "0.1",
    1_700_000_000_000_000_000,
    (
        UnitRecord('/m/"a"\\\n\udcff{}', "/m", "ab", "first-seen", Verdict.DAMAGED, 5, 1_700_000_000_500_000_000, damaged_blocks=2),
        UnitRecord("/m/new", "/m"),
    ),
    (Incident("/m/x", IncidentKind.CHANGED, "f", 1, "m", id=1), Incident("/m/x", IncidentKind.DAMAGED, "f", 1, "m", id=2)),
    Totals((("disk", 5), ("memory", 2)), 4, 100, 9),
    (),
    20_000_000,
)


def test_the_page_says_what_is_known() -> None:
    lines = render(SNAPSHOT).splitlines()
    odd = 'path="/m/\\"a\\"\\\\\\n\\\\xed\\\\xb3\\\\xbf{}"'
    assert f"bitward_last_full_verify_timestamp_seconds{{{odd}}} 1700000000.500" in lines
    assert 'bitward_last_full_verify_timestamp_seconds{path="/m/new"} 0.000' in lines
    assert f"bitward_uncorrectable_blocks{{{odd}}} 2" in lines
    assert f'bitward_file_verdict{{{odd},verdict="damaged"}} 1' in lines
    assert 'bitward_file_verdict{path="/m/new",verdict="unknown"} 1' in lines
    assert 'bitward_corrected_bits_total{medium="memory"} 2' in lines
    assert 'bitward_incidents_open{path="/m/x"} 2' in lines
    names = [line.split("{")[0].split(" ")[0] for line in lines if not line.startswith("#")]
    assert all(names.index(name) + names.count(name) - 1 == len(names) - 1 - names[::-1].index(name) for name in names)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (package prometheus) is not installed")
def test_promtool_has_nothing_to_say_but_that_bits_are_no_bytes() -> None:
    """Its one rule that cannot be kept: it wants every count of bits in bytes, and flipped bits are counted as bits."""
    page = render(SNAPSHOT)
    done = subprocess.run(["promtool", "check", "metrics"], input=page.encode(), capture_output=True, check=False)
    complaints = (done.stdout + done.stderr).decode().splitlines()
    assert [one for one in complaints if "bits_total use base unit" not in one] == []
    assert done.returncode in (0, 3)
    wrong = subprocess.run(["promtool", "check", "metrics"], input=page.replace("} 2", "} two").encode(), capture_output=True, check=False)
    assert wrong.returncode == 1


def test_the_textfile_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "bitward.prom"
    assert write_textfile(str(path), "a 1\n") == ""
    assert path.read_text() == "a 1\n"
    assert "cannot write" in write_textfile(str(tmp_path / "no" / "bitward.prom"), "a 1\n")
    assert [one.name for one in tmp_path.iterdir()] == ["bitward.prom"]


def get(port: int, path: str, method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request(method, path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def test_the_endpoint_answers_and_ends() -> None:
    server = MetricsServer(("127.0.0.1", 0), lambda: render(SNAPSHOT))
    assert get(server.port, "/metrics") == (200, render(SNAPSHOT).encode())
    assert get(server.port, "/other")[0] == 404
    assert get(server.port, "/metrics", "POST")[0] == 405
    with pytest.raises(WriteError):
        MetricsServer(("127.0.0.1", server.port), lambda: "")
    server.stop()
    with pytest.raises(OSError):  # noqa: PT011 - refused or reset
        get(server.port, "/metrics")


@pytest.mark.parametrize("request_bytes", [b"\r\n\r\n", b"x" * 20_000, b"GET\r\n\r\n", b"\xff\xff / HTTP/1.1\r\n\r\n", b""])
def test_hostile_requests_do_not_end_it(request_bytes: bytes) -> None:
    server = MetricsServer(("127.0.0.1", 0), lambda: "a 1\n")
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        client.sendall(request_bytes)
    assert get(server.port, "/metrics") == (200, b"a 1\n")
    server.stop()
