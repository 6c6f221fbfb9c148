"""Debian's docker-registry, a real one, on this machine: fetched once into the test cache, run on loopback over a folder.

Its version 2.8 has no referrers API, and so shows the fallback of the distribution specification. ``ReferrersProxy`` stands before it and
adds the API as the specification describes it, counts what is sent, and misbehaves on request.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from conftest import cache_folder, in_ci

os.environ.setdefault("NO_PROXY", "127.0.0.1")
START_LIMIT_SECONDS = 20
APT_LIMIT_SECONDS = 300
CONFIG = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {storage}}}, delete: {{enabled: true}}, maintenance: {{uploadpurging: {{enabled: false}}}}}}
http: {{addr: "127.0.0.1:{port}", relativeurls: true}}
{auth}
"""


def _fetch(package: str, binary: str) -> Path:
    """The binary of a Debian package. Raises OSError or subprocess.SubprocessError."""
    folder = cache_folder() / f"debian-{package}"
    found = folder / binary
    if found.is_file():
        return found
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        for commands in ([["apt-get", "download", package]], [["apt-get", "update"], ["apt-get", "download", package]]):
            ended = [subprocess.run(one, cwd=scratch, capture_output=True, timeout=APT_LIMIT_SECONDS, check=False) for one in commands]
            if list(Path(scratch).glob("*.deb")):
                break
        else:
            raise OSError(f"apt-get cannot download {package}: {ended[-1].stderr.decode(errors='replace')[-300:]}")
        subprocess.run(["dpkg", "-x", *map(str, Path(scratch).glob("*.deb")), f"{scratch}/tree"], check=True, timeout=APT_LIMIT_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(f"{scratch}/tree", folder)
    return found


def debian_binary(package: str, binary: str) -> Path:
    """The binary, or the test is skipped (in CI: fails)."""
    try:
        return _fetch(package, binary)
    except (OSError, subprocess.SubprocessError) as error:
        reason = f"{package} of Debian cannot be had: {error}"
        if in_ci():
            pytest.fail(reason)
        pytest.skip(reason)


def free_port() -> int:
    """A port that nobody had a moment ago."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class DockerRegistry:
    """A running registry: ``host`` is how references name it, ``storage`` is where it keeps blobs."""

    host: str
    storage: Path

    def blob(self, digest: str) -> Path:
        """The file in which the registry keeps a blob."""
        name = digest.removeprefix("sha256:")
        return self.storage / "docker" / "registry" / "v2" / "blobs" / "sha256" / name[:2] / name / "data"

    def manifest(self, repository: str, wanted: str) -> Any:
        """A manifest as JSON."""
        return json.loads(self.raw_manifest(repository, wanted))

    def raw_manifest(self, repository: str, wanted: str) -> bytes:
        """A manifest's bytes."""
        kinds = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"
        request = urllib.request.Request(f"http://{self.host}/v2/{repository}/manifests/{wanted}", headers={"Accept": kinds})
        with urllib.request.urlopen(request, timeout=START_LIMIT_SECONDS) as answer:
            return bytes(answer.read())


@contextmanager
def docker_registry(folder: Path, auth: str = "") -> Iterator[DockerRegistry]:
    """The registry while the block runs; ``auth`` is the part of its configuration about that."""
    binary = debian_binary("docker-registry", "usr/bin/docker-registry")
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config = folder / "config.yml"
    config.write_text(CONFIG.format(storage=folder / "storage", port=port, auth=auth))
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([str(binary), "serve", str(config)], stdout=log, stderr=log)
        try:
            _wait(port, process, folder / "log")
            yield DockerRegistry(f"127.0.0.1:{port}", folder / "storage")
        finally:
            process.terminate()
            try:
                process.wait(START_LIMIT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_LIMIT_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.02)
    pytest.fail(f"docker-registry does not start: {log.read_text(errors='replace')[-500:]}")


@dataclass
class Seen:
    """One request that went through, and the bytes of the body that was sent back."""

    method: str
    path: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0


Answer = tuple[int, dict[str, str], bytes]
"""Status, headers and body of an answer that a test makes up."""


@dataclass
class Meddling:
    """What the proxy does otherwise than the registry behind it."""

    referrers_api: bool = False
    answer: Callable[[str, str, dict[str, str]], Answer | None] = lambda method, path, headers: None
    """By method, path and headers (names in small letters): an answer instead of the registry's."""
    body: Callable[[str, str, dict[str, str], bytes], bytes] = lambda method, path, headers, body: body
    """The registry's body, perhaps changed; its length may not change."""
    trickle_seconds: float = 0.0  # bodies come in pieces of 4 KiB with such pauses
    endless: str = ""  # a path whose body does not end
    cut: dict[str, int] = field(default_factory=dict)  # path: after how many bytes the connection breaks, once


class ReferrersProxy(ThreadingHTTPServer):
    """Stands before a registry."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = behind
        self.meddling = Meddling()
        self.seen: list[Seen] = []
        self.referrers: dict[str, list[dict[str, Any]]] = {}

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def sent(self, part: str) -> int:
        """Bytes of all bodies whose path has ``part`` in it."""
        return sum(one.sent for one in self.seen if part in one.path)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are expected."""


@contextmanager
def proxied(behind: str, **meddling: Any) -> Iterator[ReferrersProxy]:
    """The proxy while the block runs."""
    server = ReferrersProxy(behind)
    server.meddling = Meddling(**meddling)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ReferrersProxy

    def log_message(self, *arguments: object) -> None:
        """Not to standard error."""

    def _answer(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        seen = Seen(self.command, self.path, headers)
        self.server.seen.append(seen)
        body = self.rfile.read(int(headers.get("content-length", 0)))
        meddling = self.server.meddling
        made = meddling.answer(self.command, self.path, headers) or (self._referrers() if meddling.referrers_api else None)
        status, answered, data = made or self._pass_on(body, headers)
        if made is None:
            data = meddling.body(self.command, self.path, headers, data)
            if meddling.referrers_api and self.command == "PUT" and "/manifests/" in self.path and status == 201:
                answered |= self._note_subject(body)
        self._send(seen, status, answered, data)

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815 - names that the base class asks for

    def _pass_on(self, body: bytes, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection(self.server.behind, timeout=START_LIMIT_SECONDS)
        try:
            kept = {name: value for name, value in headers.items() if name not in ("host", "connection")}
            connection.request(self.command, self.path, body or None, {**kept, "Host": self.headers["Host"]})
            answer = connection.getresponse()
            passed = {name: value for name, value in answer.getheaders() if name.lower() not in ("connection", "transfer-encoding")}
            return answer.status, passed, answer.read()
        finally:
            connection.close()

    def _referrers(self) -> Answer | None:
        path = urlsplit(self.path)
        if self.command != "GET" or "/referrers/" not in path.path:
            return None
        listed = self.server.referrers.get(path.path.rpartition("/")[2], [])
        index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": listed}
        return 200, {"Content-Type": index["mediaType"]}, json.dumps(index).encode()

    def _note_subject(self, body: bytes) -> dict[str, str]:
        """As the specification asks of a registry that has the API: remember the referrer, and say so."""
        manifest = json.loads(body)
        if "subject" not in manifest:
            return {}
        digest = f"sha256:{sha256(body).hexdigest()}"
        kind = manifest.get("artifactType") or manifest["config"]["mediaType"]
        said = {"mediaType": manifest["mediaType"], "digest": digest, "size": len(body), "artifactType": kind}
        listed = self.server.referrers.setdefault(manifest["subject"]["digest"], [])
        if all(one["digest"] != digest for one in listed):
            listed.append(said)
        return {"OCI-Subject": manifest["subject"]["digest"]}

    def _send(self, seen: Seen, status: int, headers: dict[str, str], data: bytes) -> None:
        seen.status = status
        self.send_response(status)
        endless = bool(self.server.meddling.endless) and self.server.meddling.endless in self.path
        for name, value in headers.items():
            if name.lower() not in ("content-length", "date", "server"):
                self.send_header(name, value)
        if not endless:
            length = next((value for name, value in headers.items() if name.lower() == "content-length"), str(len(data)))
            self.send_header("Content-Length", length if self.command == "HEAD" else str(len(data)))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = next((self.server.meddling.cut.pop(path) for path in list(self.server.meddling.cut) if path in self.path), len(data))
        while pause := self.server.meddling.trickle_seconds:
            self.wfile.write(data[:4096])
            time.sleep(pause)
            data = data[4096:]
            if not data:
                return
        while True:
            self.wfile.write(data[:limit])
            seen.sent += min(limit, len(data))
            if not endless:
                break
            data = data or bytes(65536)
        if limit < len(data):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
