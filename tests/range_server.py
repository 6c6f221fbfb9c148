"""A real web server on this machine: files of a folder by ranges, what it sent counted, and faults on request."""

from __future__ import annotations

import base64
import gzip
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

os.environ.setdefault("NO_PROXY", "127.0.0.1")  # a proxy of the tester's has no way back to this machine


@dataclass
class Seen:
    """One request as it came, and what was sent of its body."""

    path: str
    query: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0

    @property
    def range(self) -> tuple[int, int] | None:
        """First and last byte asked for."""
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        return (int(match[1]), int(match[2])) if match else None


@dataclass
class Faults:
    """What goes wrong. Counts go down with each request that is hurt; the probe for the first byte is never hurt by ``drops``."""

    drops: int = 0  # requests whose body breaks off in the middle
    short: bool = False  # every body ends early, with a length that fits
    flip: int | None = None  # this byte of the file is wrong
    no_ranges: bool = False
    chunked: bool = False  # no Content-Length; with no_ranges
    wrong_range: int = 0  # the answer begins so many bytes later than it should, and says so
    lying_range: int = 0  # the answer begins later, and does not say so
    ignores_if_range: bool = False
    endless: bool = False
    gzipped: bool = False
    trickle_seconds: float = 0.0  # the body comes in pieces of 4 KiB with such pauses
    silent: threading.Event | None = None  # nothing is answered until it is set
    busy: int = 0  # so many requests get 503
    status: int = 0  # every answer has this status
    redirect: str = ""  # prefix to which everything is redirected
    credentials: str = ""  # user:password without which the answer is 401
    token: str = ""  # likewise a bearer's
    etag: Callable[[int], str] = lambda _: '"one"'  # by the number of the request
    files: dict[str, bytes] = field(default_factory=dict)  # made answers, by path


class RangeServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.faults = folder, Faults()
        self.seen: list[Seen] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def with_user(self, user: str) -> str:
        """The URL with credentials in it."""
        return f"http://{user}@127.0.0.1:{self.server_port}"

    @property
    def sent(self) -> int:
        """Bytes of all bodies."""
        return sum(one.sent for one in self.seen)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are expected."""


@contextmanager
def serving(folder: Path) -> Iterator[RangeServer]:
    """The server while the block runs."""
    server = RangeServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        if server.faults.silent:
            server.faults.silent.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RangeServer

    def log_message(self, *arguments: object) -> None:
        """Not to standard error."""

    def _plain(self, status: int, **headers: str) -> None:
        self.seen.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        server, faults = self.server, self.server.faults
        parts = urlsplit(self.path)
        self.seen = Seen(unquote(parts.path), parts.query, {name.lower(): value for name, value in self.headers.items()})
        with server.lock:
            server.seen.append(self.seen)
            number = len(server.seen)
            busy = faults.busy > 0
            faults.busy -= busy
        if faults.silent:
            faults.silent.wait(60)
            self.close_connection = True
            return
        authorization = self.headers.get("Authorization", "")
        if faults.credentials and authorization != f"Basic {base64.b64encode(faults.credentials.encode()).decode()}":
            self._plain(401, WWW_Authenticate='Basic realm="x"')
        elif faults.token and authorization != f"Bearer {faults.token}":
            self._plain(401)
        elif busy:
            self._plain(503, Retry_After="0")
        elif faults.status:
            self._plain(faults.status)
        elif faults.redirect:
            self._plain(302, Location=faults.redirect + self.path)
        else:
            self._file(number)

    def _file(self, number: int) -> None:
        server, faults = self.server, self.server.faults
        path = server.folder / self.seen.path.lstrip("/")
        if self.seen.path in faults.files:
            data = faults.files[self.seen.path]
        elif path.is_file():
            data = path.read_bytes()
        else:
            self._plain(404)
            return
        if faults.flip is not None:
            data = data[: faults.flip] + bytes([data[faults.flip] ^ 1]) + data[faults.flip + 1 :]
        etag, wanted = faults.etag(number), self.seen.range
        if_range = self.headers.get("If-Range")
        if wanted is None or faults.no_ranges or (if_range and if_range != etag and not faults.ignores_if_range):
            self._whole(data, etag)
            return
        first, last = wanted[0] + faults.wrong_range, min(wanted[1] + faults.wrong_range, len(data) - 1)
        body = data[first + faults.lying_range : last + 1 + faults.lying_range]
        self.seen.status = 206
        self.send_response(206)
        if faults.gzipped:
            body = gzip.compress(body)
            self.send_header("Content-Encoding", "gzip")
        if faults.short:
            body = body[: len(body) // 2]
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("ETag", etag)
        if faults.endless:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            while True:
                self._chunk(body or b"x")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self._body(body)

    def _body(self, body: bytes) -> None:
        with self.server.lock:
            breaks = self.server.faults.drops > 0 and len(body) > 1
            self.server.faults.drops -= breaks
        if breaks:
            body = body[: len(body) // 2]
            self.close_connection = True
        while self.server.faults.trickle_seconds and len(body) > 4096:
            time.sleep(self.server.faults.trickle_seconds)
            self.wfile.write(body[:4096])
            body = body[4096:]
        self.wfile.write(body)
        self.wfile.flush()
        self.seen.sent += len(body)

    def _chunk(self, body: bytes) -> None:
        self.wfile.write(f"{len(body):x}\r\n".encode() + body + b"\r\n")
        self.seen.sent += len(body)

    def _whole(self, data: bytes, etag: str) -> None:
        self.seen.status = 200
        self.send_response(200)
        self.send_header("ETag", etag)
        if self.server.faults.gzipped:
            data = gzip.compress(data, 1)
            self.send_header("Content-Encoding", "gzip")
        if not self.server.faults.chunked:
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self._body(data)
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for at in range(0, len(data), 100_000):
            self._chunk(data[at : at + 100_000])
        self.wfile.write(b"0\r\n\r\n")
