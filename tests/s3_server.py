"""A real S3 server in a process of its own, which can be told to misbehave, and which ends with the process that started it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "s3cr3t-Pa55",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
START_SECONDS = 30
SILENCE_SECONDS = 3.0


class Misbehaving:
    """WSGI around the server. ``/__tell/NAME/VALUE`` sets what it does from then on; ``/__told`` gives what it counted."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.busy_until = 0.0
        self.delay = 0.0
        self.forbidden = ""
        self.longest_body = 0
        self.flood = False
        self.lie = ""
        self.short: int | None = None
        self.silent = ""
        self.gets: dict[str, int] = {}
        self.lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        path = environ["PATH_INFO"]
        if path.startswith("/__"):
            start("200 OK", [("Content-Type", "text/plain")])
            return [self._told(path).encode()]
        if time.monotonic() < self.busy_until:
            start("503 Slow Down", [("Content-Type", "application/xml")])
            return [b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"]
        if self.forbidden and (self.forbidden in path or self.forbidden in environ.get("QUERY_STRING", "")):
            start("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"]
        if self.delay or (self.silent and path.endswith(self.silent)):
            time.sleep(self.delay or SILENCE_SECONDS)
        if self.flood and environ["REQUEST_METHOD"] == "GET" and environ.get("HTTP_RANGE"):
            environ.pop("HTTP_RANGE")
            start("200 OK", [("Content-Length", str(1 << 40)), ("Content-Type", "binary/octet-stream"), *_head(self.app, environ)])
            return (bytes(1 << 20) for _ in range(1 << 20))
        if self.lie and path.endswith(self.lie) and environ.get("HTTP_RANGE"):
            data = b"".join(self.app(environ, start))
            return [data[:-1] + bytes([data[-1] ^ 4])]
        if self.short is not None and environ.get("HTTP_RANGE"):
            return self._cut(environ, start, self.short)
        body = b"".join(self.app(environ, start))
        if environ["REQUEST_METHOD"] == "GET" and environ.get("HTTP_RANGE"):
            with self.lock:
                self.gets[path] = self.gets.get(path, 0) + 1
                self.longest_body = max(self.longest_body, len(body))
        return [body]

    def _cut(self, environ: dict[str, Any], start: Any, limit_bytes: int) -> list[bytes]:
        """A body that ends too early, and says that it has so many bytes."""
        given: list[Any] = []
        data = b"".join(self.app(environ, lambda *words: given.extend(words)))[:limit_bytes]
        start(given[0], [(name, str(len(data)) if name.lower() == "content-length" else value) for name, value in given[1]])
        return [data]

    def _told(self, path: str) -> str:
        import json

        parts = path.split("/")
        if parts[1] == "__tell":
            name, value = parts[2], "/".join(parts[3:])
            if name == "busy":
                self.busy_until = time.monotonic() + float(value)
            elif name == "delay":
                self.delay = float(value)
            elif name == "forbidden":
                self.forbidden = value
            elif name == "flood":
                self.flood = bool(value)
            elif name in ("lie", "silent"):
                setattr(self, name, value)
            elif name == "short":
                self.short = int(value) if value else None
            elif name == "forget":
                self.gets.clear()
                self.longest_body = 0
        with self.lock:
            return json.dumps({"gets": self.gets, "longest_body": self.longest_body})


def _head(app: Any, environ: dict[str, Any]) -> list[tuple[str, str]]:
    """Entity tag and time of what is asked for, as the server has them."""
    found: list[tuple[str, str]] = []
    body = app(environ, lambda status, headers, *_: found.extend(headers))
    for _ in body:
        pass
    return [(name, value) for name, value in found if name.lower() in ("etag", "last-modified")]


class S3Server:
    """What the tests know of the server."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.environment = {"AWS_ENDPOINT_URL": address, **CREDENTIALS}

    def tell(self, name: str, value: object = "") -> None:
        """From now on: ``busy`` SECONDS, ``delay`` SECONDS, ``forbidden`` PART-OF-A-PATH, ``flood`` anything, ``forget``.

        ``lie`` END: ranges of keys that end so have a wrong bit, under entity tag, time and checksum of what was put. ``short`` BYTES: no
        range brings more. ``silent`` END: keys that end so are answered after three seconds.
        """
        with urllib.request.urlopen(f"{self.address}/__tell/{name}/{value}", timeout=10) as answer:
            answer.read()

    def told(self) -> Any:
        """What it counted: range requests by path, and the longest body."""
        import json

        with urllib.request.urlopen(f"{self.address}/__told", timeout=10) as answer:
            return json.load(answer)

    def client(self) -> Any:
        """boto3's client: objects are put by another library than the one that reads them."""
        import boto3

        keys = {name.lower(): CREDENTIALS[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        return boto3.client("s3", endpoint_url=self.address, region_name="us-east-1", **keys)


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """The server, for as long as the context lasts."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__))],
        stdin=subprocess.PIPE,  # its end tells the server to end
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **CREDENTIALS},
        text=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), "the S3 server did not start"
        yield S3Server(address)
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def main() -> None:
    """Serve until standard input ends."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    WSGIRequestHandler.protocol_version = "HTTP/1.1"  # connections are kept, as real servers do
    server = make_server("127.0.0.1", 0, Misbehaving(DomainDispatcherApplication(create_backend_app)), threaded=True)
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main()
