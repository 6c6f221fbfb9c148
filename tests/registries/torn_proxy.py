"""A web proxy on this machine that tears transfers: it promises a whole file and hangs up in the middle."""

from __future__ import annotations

import http.client
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

CONNECTION_HEADERS = {"connection", "transfer-encoding", "keep-alive", "content-length"}


@dataclass
class Torn:
    """``ranges`` are the Range headers that were asked of files that end with ``suffix``, ``torn`` how many transfers were cut.

    Of transfers of whole files the first ``flips`` get a wrong bit, and ``tears`` are torn. With ``excess`` as many bytes follow each of
    them, and with ``said`` the listings say that they have so many; ``sent`` counts the bytes of whole files that were written.
    ``whole`` are the files that were asked for whole; while there are more of them than ``patience``, they wait.
    """

    uri: str = ""
    suffix: str = ".safetensors"
    at_bytes: int = 1_000_000
    tears: int = 1_000
    flips: int = 0
    torn: int = 0
    excess: int = 0
    said: int | None = None
    sent: int = 0
    patience: int = 1_000
    whole: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)


@contextmanager
def torn_proxy(upstream: str, at_bytes: int) -> Iterator[Torn]:
    """Forward everything; transfers of whole files end after ``at_bytes`` of their body, ranges come whole."""
    state = Torn(at_bytes=at_bytes)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(urlsplit(upstream).netloc, state))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.uri = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def _handler(netloc: str, state: Torn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            connection = http.client.HTTPConnection(netloc, timeout=30)
            kept = {key: value for key, value in self.headers.items() if key.lower() not in CONNECTION_HEADERS}
            connection.request(self.command, self.path, body or None, kept)
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            whole = self.path.endswith(state.suffix)
            if state.said is not None and b'"files"' in data:
                data = re.sub(rb'("path": *"[^"]*%s"[^}]*"file_size": *)[0-9]+' % state.suffix.encode(), rb"\g<1>%d" % state.said, data)
                data = re.sub(rb'("file_size": *)[0-9]+([^}]*"path": *"[^"]*%s")' % state.suffix.encode(), rb"\g<1>%d\2" % state.said, data)
            excess = state.excess if whole and not self.headers.get("Range") else 0
            if whole and not self.headers.get("Range"):
                state.whole.append(self.path)
                while len(state.whole) > state.patience:
                    time.sleep(0.02)
            if whole and self.headers.get("Range"):
                state.ranges.append(self.headers["Range"])
            self.send_response(answer.status)
            for key, value in answer.getheaders():
                if key.lower() not in CONNECTION_HEADERS:
                    self.send_header(key, value)
            self.send_header("Content-Length", str(len(data) + excess))
            self.send_header("Connection", "close")
            self.end_headers()
            if whole and not self.headers.get("Range") and len(data) > state.at_bytes:
                if state.flips:
                    state.flips -= 1
                    data = data[: state.at_bytes] + bytes([data[state.at_bytes] ^ 64]) + data[state.at_bytes + 1 :]
                elif state.tears:
                    state.tears -= 1
                    state.torn += 1
                    data = data[: state.at_bytes]
            self.close_connection = True
            try:
                self.wfile.write(data)
                state.sent += len(data) if whole else 0
                for at in range(0, excess, 65536):
                    state.sent += self.wfile.write(bytes(min(65536, excess - at)))
            except ConnectionError:
                pass  # whoever asked has had enough

        do_GET = do_PUT = do_POST = do_PATCH = _forward  # noqa: N815 - the names that http.server calls

        def log_message(self, *arguments: object) -> None:
            """Tests are quiet."""

    return Handler
