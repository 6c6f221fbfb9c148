"""Figures for Prometheus: as a file for node_exporter's textfile collector, and on a loopback address.

Source of the form: "Exposition formats" of the Prometheus documentation (text-based format, version 0.0.4).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from threading import Thread

from bitward_agent.daemon.facts import Incident, Totals, UnitRecord
from bitward_agent.errors import WriteError
from bitward_agent.findings import Verdict
from bitward_formats.frozen import dataclass

REQUEST_BYTES_LIMIT = 8192
REQUEST_SECONDS = 5.0
MEDIA = ("disk", "memory", "unknown")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is told at one moment. ``started_ns`` is when the agent began."""

    version: str
    started_ns: int
    units: Sequence[UnitRecord]
    incidents: Sequence[Incident]
    totals: Totals
    pause_reasons: Sequence[str]
    bytes_per_second: int


Labels = tuple[tuple[str, str], ...]


class _Page:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def family(self, name: str, kind: str, about: str, samples: Iterable[tuple[Labels, float | int]]) -> None:
        """One metric with all its samples, as the format wants them: together, and each label set once."""
        self.lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
        for labels, value in samples:
            inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
            self.lines.append(f"{name}{{{inside}}} {_number(value)}" if inside else f"{name} {_number(value)}")


def render(snapshot: Snapshot) -> str:
    """The page."""
    page = _Page()
    units = [(((("path", unit.path),)), unit) for unit in snapshot.units]
    left = {incident.path: 0 for incident in snapshot.incidents}
    for incident in snapshot.incidents:
        left[incident.path] += 1
    page.family("bitward_agent_info", "gauge", "The agent that tells this.", [((("version", snapshot.version),), 1)])
    page.family("bitward_agent_start_timestamp_seconds", "gauge", "When the agent was started.", [((), snapshot.started_ns / 1e9)])
    page.family(
        "bitward_last_full_verify_timestamp_seconds",
        "gauge",
        "When a file was last verified whole; 0: never.",
        ((labels, unit.last_full_verify_ns / 1e9) for labels, unit in units),
    )
    page.family("bitward_file_bytes", "gauge", "Size of a file that is known.", ((labels, unit.bytes) for labels, unit in units))
    page.family(
        "bitward_file_verdict",
        "gauge",
        "1 for the verdict that a file has, 0 for the others.",
        (
            ((*labels, ("verdict", word)), int((unit.verdict.value if unit.verdict is not None else "unknown") == word))
            for labels, unit in units
            for word in (*(one.value for one in Verdict), "unknown")
        ),
    )
    page.family(
        "bitward_uncorrectable_blocks",
        "gauge",
        "Damaged blocks of a file that could not be put right.",
        ((labels, unit.damaged_blocks) for labels, unit in units),
    )
    page.family(
        "bitward_incidents_open",
        "gauge",
        "Open incidents of a path.",
        (((("path", path),), count) for path, count in sorted(left.items())),
    )
    page.family("bitward_incidents_total", "counter", "Incidents since the state began.", [((), snapshot.totals.incidents)])
    bits = dict(snapshot.totals.corrected_bits)
    page.family(
        "bitward_corrected_bits_total",
        "counter",
        "Flipped bits that were put right, by the medium that they were found in.",
        (((("medium", medium),), bits.get(medium, 0)) for medium in sorted({*MEDIA, *bits})),
    )
    page.family("bitward_corrected_blocks_total", "counter", "Blocks that were put right.", [((), snapshot.totals.healed_blocks)])
    page.family("bitward_scrubbed_bytes_total", "counter", "Bytes that scrubs have read.", [((), snapshot.totals.scrubbed_bytes)])
    page.family("bitward_scrub_limit_bytes_per_second", "gauge", "The limit set for scrubs.", [((), snapshot.bytes_per_second)])
    page.family("bitward_scrub_paused", "gauge", "1 while scrubs pause.", [((), int(bool(snapshot.pause_reasons)))])
    return "\n".join(page.lines) + "\n"


def _number(value: float | int) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _escaped(text: str) -> str:
    """A label's value. What is no UTF-8 in a name is shown as ``\\xNN``, its backslash escaped like any other."""
    shown = text.encode("utf-8", "surrogatepass").decode("utf-8", "backslashreplace")
    return shown.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def write_textfile(path: str, text: str) -> str:
    """Write the page where the collector looks; in words why not, if it cannot be."""
    from bitward_agent.durable import atomic_file

    try:
        with atomic_file(path, mode=0o644) as target:
            target.write_all(text.encode(), 0)
    except WriteError as error:
        return str(error)
    return ""


class MetricsServer:
    """Answers ``GET /metrics`` on a loopback address, one request at a time, in a thread of its own."""

    def __init__(self, address: tuple[str, int], page: Callable[[], str]) -> None:
        """
        Raises:
            WriteError: nothing can listen there.
        """
        self._page = page
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            self._listener = socket.create_server(address, family=family, backlog=8)
        except OSError as error:
            raise WriteError(f"metrics.listen: {address[0]}:{address[1]}: {error.strerror or error}") from error
        self.port: int = self._listener.getsockname()[1]
        self._stopped = False
        self._thread = Thread(target=self._serve, name="bitward-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End listening."""
        self._stopped = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends the wait for a client
        self._listener.close()
        self._thread.join(timeout=0.5)

    def _serve(self) -> None:
        while not self._stopped:
            try:
                client, _ = self._listener.accept()
            except OSError:
                continue
            with client, suppress(OSError):
                client.settimeout(REQUEST_SECONDS)
                self._answer(client)

    def _answer(self, client: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request and b"\n\n" not in request:
            data = client.recv(REQUEST_BYTES_LIMIT)
            request += data
            if not data or len(request) > REQUEST_BYTES_LIMIT:
                _reply(client, "400 Bad Request", "bad request\n")
                return
        words = request.split(b"\n", 1)[0].split()
        if len(words) < 2 or words[0] != b"GET":
            _reply(client, "405 Method Not Allowed", "GET only\n")
        elif words[1].split(b"?")[0] != b"/metrics":
            _reply(client, "404 Not Found", "see /metrics\n")
        else:
            _reply(client, "200 OK", self._page())


def _reply(client: socket.socket, status: str, text: str) -> None:
    body = text.encode()
    head = f"HTTP/1.0 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {len(body)}\r\n\r\n"
    client.sendall(head.encode() + body)
