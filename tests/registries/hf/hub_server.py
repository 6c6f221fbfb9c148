"""A server on this machine that speaks what ``huggingface_hub`` 2.4 asks of the Hugging Face hub, and one for large files.

The front has ``/api/models/REPO/revision``, ``tree`` in pages, ``preupload``, ``commit``, LFS ``batch`` and ``resolve``; files in LFS lead
to the store, another server, as on the hub. Bytes of bodies are counted at both, and faults are made on request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from mmap import mmap
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

os.environ.setdefault("NO_PROXY", "127.0.0.1")  # a proxy of the tester's has no way back to this machine

PAGE_FILES = 3
"""Files of one page of a tree: few, so that listings have several pages."""
LFS_BYTES = 100_000
"""Files from this size on are in LFS."""


@dataclass
class Request:
    """One request: what came, and how many bytes of body went out."""

    method: str
    path: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0


@dataclass
class HubFaults:
    """What goes wrong."""

    token: str = ""  # a bearer's, without which the front answers 401
    wrong_bytes: set[str] = field(default_factory=set)  # files whose bytes come with one bit flipped in each
    endless: bool = False  # file bodies never end
    no_ranges: bool = False  # files come whole or not at all
    listed_size: dict[str, int] = field(default_factory=dict)  # other sizes in listings
    listed_path: dict[str, str] = field(default_factory=dict)  # other names in listings
    next_page: str = ""  # where the listing says its next page is
    redirect: str = ""  # where files lead to instead of the store
    listing: bytes | None = None  # the listing's whole answer
    endless_listing: bool = False
    looping_listing: bool = False  # the next page is always the same
    commit: str = ""  # what the server says is the commit
    xet: bool = False  # files in LFS are told to be in Xet as well
    pause_seconds: float = 0.0  # before each body of a file
    moved: bool = False  # commits are refused, as the branch has moved


def git_blob(data: bytes | mmap) -> str:
    digest = hashlib.sha1(b"blob %d\0" % len(data))
    digest.update(data)
    return digest.hexdigest()


@dataclass
class Stored:
    """One file of a revision."""

    data: bytes | mmap

    def __post_init__(self) -> None:
        self.sha256 = hashlib.sha256(self.data).hexdigest()
        self.git = git_blob(self.data)
        self.in_lfs = len(self.data) >= LFS_BYTES

    @property
    def etag(self) -> str:
        return self.sha256 if self.in_lfs else self.git


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.requests: list[Request] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are expected."""


class Hub(_Server):
    """The front. ``repos`` maps a repository's name to its commits, and those to files; ``branches`` says which commit a branch is."""

    def __init__(self) -> None:
        super().__init__(_Front)
        self.repos: dict[str, dict[str, dict[str, Stored]]] = {}
        self.branches: dict[tuple[str, str], str] = {}
        self.faults = HubFaults()
        self.store = _Server(_Store)
        self.store.hub = self  # type: ignore[attr-defined]
        self.pending: dict[str, bytes] = {}
        self.messages: list[str] = []

    def commit(self, repo: str, files: dict[str, bytes | Stored], branch: str = "main") -> str:
        """Put files into a branch, beside those that are there; returns the commit."""
        known = self.repos.setdefault(repo, {})
        before = known.get(self.branches.get((repo, branch), ""), {})
        stored = {**before, **{name: one if isinstance(one, Stored) else Stored(one) for name, one in files.items()}}
        text = json.dumps([repo, len(known), sorted((name, one.etag) for name, one in stored.items())])
        commit = hashlib.sha1(text.encode()).hexdigest()
        known[commit], self.branches[repo, branch] = stored, commit
        return commit

    def at(self, repo: str, revision: str) -> tuple[str, dict[str, Stored]] | None:
        """The commit and files of a revision."""
        commit = self.branches.get((repo, revision), revision)
        files = self.repos.get(repo, {}).get(commit)
        return None if files is None else (commit, files)

    @property
    def sent(self) -> int:
        """Bytes of all bodies, of both servers."""
        return sum(one.sent for one in [*self.requests, *self.store.requests])

    def forget(self) -> None:
        """Begin to count anew."""
        self.requests.clear()
        self.store.requests.clear()

    def file_bytes_sent(self) -> int:
        """Bytes of bodies of files, without listings."""
        return sum(one.sent for one in [*self.requests, *self.store.requests] if "/resolve/" in one.path or "/lfs/" in one.path)


@contextmanager
def serving_hub() -> Iterator[Hub]:
    """Both servers while the block runs."""
    hub = Hub()
    threads = [threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True) for one in (hub, hub.store)]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for one in (hub, hub.store):
            one.shutdown()
            one.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: Request

    def log_message(self, *arguments: object) -> None:
        """Not to standard error."""

    @property
    def hub(self) -> Hub:
        raise NotImplementedError

    def begin(self) -> str:
        server: Any = self.server
        self.seen = Request(self.command, unquote(urlsplit(self.path).path), {name.lower(): one for name, one in self.headers.items()})
        with server.lock:
            server.requests.append(self.seen)
        return self.seen.path

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def answer(self, status: int, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.seen.status = status
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if not any(name.lower() == "content-length" for name in headers or {}):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
            self.seen.sent += len(data)

    def json(self, value: Any, headers: dict[str, str] | None = None) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def file(self, stored: Stored, name: str, headers: dict[str, str]) -> None:
        """A file's bytes, whole or the range that is asked for."""
        faults = self.hub.faults
        data = stored.data
        time.sleep(faults.pause_seconds)
        match = None if faults.no_ranges else re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(match[1]), min(int(match[2] or len(data)), len(data) - 1)) if match else (0, len(data) - 1)
        part = bytearray(memoryview(data)[first : last + 1])
        if name in faults.wrong_bytes and part:
            part[len(part) // 2] ^= 16
        headers = {"ETag": f'"{stored.etag}"', "Accept-Ranges": "bytes", **headers}
        if match:
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        if not faults.endless or self.command == "HEAD":
            if self.command == "HEAD":
                headers["Content-Length"] = str(len(part))
            self.answer(206 if match else 200, bytes(part), headers)
            return
        self.endless(bytes(part) or b"x", 206 if match else 200, headers)

    def endless(self, part: bytes, status: int, headers: dict[str, str]) -> None:
        """A body that does not end before the client goes away; nor here before 1 GiB."""
        self.seen.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while self.seen.sent < 1 << 30:
            self.wfile.write(b"%x\r\n" % len(part) + part + b"\r\n")
            self.seen.sent += len(part)


class _Store(_Handler):
    """Where files in LFS lie: by their SHA-256."""

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined]

    def do_GET(self) -> None:
        path = self.begin()
        oid, _, name = path.removeprefix("/lfs/").partition("/")
        for commits in self.hub.repos.values():
            for files in commits.values():
                for one in files.values():
                    if one.sha256 == oid:
                        self.file(one, name, {})
                        return
        self.answer(404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        oid = self.begin().removeprefix("/upload/")
        data = self.body()
        if hashlib.sha256(data).hexdigest() != oid:
            self.answer(400)
            return
        self.hub.pending[oid] = data
        self.answer(200)


class _Front(_Handler):
    @property
    def hub(self) -> Hub:
        assert isinstance(self.server, Hub)
        return self.server

    def begin(self) -> str:
        path = super().begin()
        token = self.hub.faults.token
        if token and self.headers.get("Authorization") != f"Bearer {token}":
            self.answer(401, b'{"error": "Invalid credentials"}')
            return ""
        return path

    def do_GET(self) -> None:
        path = self.begin()
        routes: tuple[tuple[str, Callable[..., None]], ...] = (
            (r"/api/(?:models|datasets)/(?P<repo>[^/]+/[^/]+)/revision/(?P<revision>.+)", self.revision),
            (r"/api/(?:models|datasets)/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)", self.tree),
            (r"/(?:datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)", self.resolve),
            (r"/api/(?:models|datasets)/(?P<repo>[^/]+/[^/]+)", self.revision),
        )
        for pattern, method in routes:
            if match := re.fullmatch(pattern, path):
                method(**match.groupdict())
                return
        if path:
            self.answer(404, headers={"X-Error-Code": "RepoNotFound"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        path = self.begin()
        routes: tuple[tuple[str, Callable[..., None]], ...] = (
            (r"/api/(?:models|datasets)/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", self.preupload),
            (r"/api/(?:models|datasets)/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", self.take_commit),
            (r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", self.batch),
        )
        for pattern, method in routes:
            if match := re.fullmatch(pattern, path):
                method(**match.groupdict())
                return
        if path:
            self.answer(404)

    def revision(self, repo: str, revision: str = "main") -> None:
        found = self.hub.at(repo, revision)
        if found is None:
            self.answer(404, headers={"X-Error-Code": "RevisionNotFound" if repo in self.hub.repos else "RepoNotFound"})
            return
        commit, files = found
        siblings = [{"rfilename": name} for name in files]
        sha = self.hub.faults.commit or commit
        self.json({"id": repo, "modelId": repo, "sha": sha, "private": False, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings})

    def tree(self, repo: str, revision: str) -> None:
        hub = self.hub
        found = hub.at(repo, revision)
        if found is None:
            self.answer(404, headers={"X-Error-Code": "RevisionNotFound"})
            return
        if hub.faults.endless_listing:
            self.endless(b'[{"type": "file"}, ' * 1000, 200, {})
            return
        if hub.faults.listing is not None:
            self.answer(200, hub.faults.listing)
            return
        start = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        names = sorted(found[1])
        entries = [self.entry(name, found[1][name]) for name in names[start : start + PAGE_FILES]]
        folders = {name.rpartition("/")[0] for name in names if "/" in name}
        if not start:
            entries += [{"type": "directory", "path": one, "oid": "0" * 40, "size": 0} for one in sorted(folders)]
        headers = {}
        if start + PAGE_FILES < len(names) or hub.faults.looping_listing:
            there = hub.faults.next_page or f"{hub.url}/api/models/{repo}/tree/{revision}"
            cursor = PAGE_FILES if hub.faults.looping_listing else start + PAGE_FILES
            headers["Link"] = f'<{there}?recursive=True&cursor={cursor}>; rel="next"'
        self.json(entries, headers)

    def entry(self, name: str, one: Stored) -> dict[str, Any]:
        faults = self.hub.faults
        size = faults.listed_size.get(name, len(one.data))
        entry: dict[str, Any] = {"type": "file", "path": faults.listed_path.get(name, name), "oid": one.git, "size": size}
        if one.in_lfs:
            entry["lfs"] = {"oid": one.sha256, "size": size, "pointerSize": 134}
            if faults.xet:
                entry["xetHash"] = hashlib.blake2s(one.data).hexdigest()
        return entry

    def resolve(self, repo: str, revision: str, name: str) -> None:
        hub = self.hub
        found = hub.at(repo, revision)
        if found is None or name not in found[1]:
            kind = "RevisionNotFound" if found is None else "EntryNotFound"
            self.answer(404, headers={"X-Error-Code": kind, **({} if found is None else {"X-Repo-Commit": found[0]})})
            return
        commit, one = found[0], found[1][name]
        headers = {"X-Repo-Commit": commit}
        if not one.in_lfs:
            self.file(one, name, headers)
            return
        headers |= {"X-Linked-Etag": f'"{one.sha256}"', "X-Linked-Size": str(len(one.data)), "ETag": f'"{one.sha256}"'}
        if hub.faults.xet:
            headers["X-Xet-Hash"] = hashlib.blake2s(one.data).hexdigest()
            headers["Link"] = f'<{hub.url}/api/models/{repo}/xet-read-token/{commit}>; rel="xet-auth"'
        there = hub.faults.redirect or f"{hub.store.url}/lfs/{one.sha256}/{name}?X-Signature=secret"
        self.answer(302, headers={**headers, "Location": there})

    def preupload(self, repo: str, revision: str) -> None:
        asked = json.loads(self.body())["files"]
        files = self.hub.at(repo, revision)
        known = {} if files is None else files[1]
        self.json({"files": [self.upload_mode(one, known.get(one["path"])) for one in asked]})

    def upload_mode(self, asked: dict[str, Any], known: Stored | None) -> dict[str, Any]:
        mode = "lfs" if asked["size"] >= LFS_BYTES else "regular"
        return {"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None if known is None else known.etag}

    def batch(self, repo: str) -> None:
        objects = json.loads(self.body())["objects"]
        store = self.hub.store.url
        made = [{**one, "actions": {"upload": {"href": f"{store}/upload/{one['oid']}", "header": {}}}} for one in objects]
        self.json({"transfer": "basic", "objects": made})

    def take_commit(self, repo: str, revision: str) -> None:
        lines = [json.loads(line) for line in self.body().splitlines() if line]
        header = lines[0]["value"]
        found = self.hub.at(repo, revision)
        if self.hub.faults.moved or (header.get("parentCommit") and (found is None or header["parentCommit"] != found[0])):
            self.answer(412, b'{"error": "A commit has happened since. Please refresh and try again."}')
            return
        files: dict[str, bytes | Stored] = {}
        for line in lines[1:]:
            value = line["value"]
            files[value["path"]] = base64.b64decode(value["content"]) if line["key"] == "file" else self.hub.pending[value["oid"]]
        self.hub.messages.append(header["summary"])
        commit = self.hub.commit(repo, files, revision)
        self.json({"success": True, "commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "commitOid": commit, "pullRequestUrl": ""})
