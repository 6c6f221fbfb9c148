"""The hub's server: which commit a revision is, which files that has, and their bytes by ranges. Nothing that it says is believed.

The addresses are those that ``huggingface_hub`` 2.4 asks (``HfApi.repo_info``, ``list_repo_tree``, ``hf_hub_url``). The user's token goes
to that server only: not where a redirect leads, not to a next page elsewhere.
"""

from __future__ import annotations

import re
import time
from dataclasses import replace
from types import TracebackType
from typing import Self
from urllib.parse import quote, urlsplit

from bitward.registries.hf_cache import RepoName
from bitward_agent.errors import InputError, SourceError
from bitward_agent.sources.addresses import WebAddress
from bitward_agent.sources.http import HttpFile, HttpPlace
from bitward_agent.sources.hub import hub_address, hub_token, is_offline
from bitward_agent.sources.limits import Budget, Limits, Meter, Patience, TransientError
from bitward_agent.sources.web_client import WebClient
from bitward_formats.errors import HubListingError
from bitward_formats.hub_listing import FILES_LIMIT, LISTING_LIMIT_BYTES, HubFile, is_commit, read_revision, read_tree_page

PAGES_LIMIT = 1000
LISTING_TOTAL_BYTES = 128 << 20
"""Of all pages of one listing."""
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_WORDS = {
    401: "it wants a token, or another one (HF_TOKEN), or there is no such repository",
    403: "forbidden: the token may not do that, or the repository is gated",
    404: "it has no such repository or revision",
}
_REVISION = re.compile(r"[\w./+-]{1,255}", re.ASCII)


class FilePlace:
    """One file of a revision as a place of its own; connections are shared with the revision's other files."""

    is_local = False

    def __init__(self, revision: HttpPlace, path: str, name: str) -> None:
        self.name, self._revision, self._path = name, revision, path

    def open(self, relative: str, meter: Meter) -> HttpFile | None:
        """See ``Place.open``."""
        return None if relative else self._revision.open(self._path, meter)

    def names(self, folder: str, meter: Meter) -> list[str]:  # noqa: ARG002 - the protocol's signature
        """None: it is a file."""
        return []

    def close(self) -> None:
        """The connections stay open for other files."""


class HubServer:
    """The hub's server, for one command. ``meter`` counts what listings cost."""

    def __init__(self, limits: Limits, budget: Budget) -> None:
        """
        Raises:
            InputError: HF_HUB_OFFLINE forbids to ask.
            SourceError: HF_ENDPOINT is no URL.
            MissingExtraError: httpx is not installed.
        """
        if is_offline():
            raise InputError("HF_HUB_OFFLINE forbids to ask the hub's server")
        self.limits, self.budget, self.meter = limits, budget, Meter(budget)
        self._token = hub_token()
        self._base = hub_address("")
        self._client = WebClient(self._base, limits, self._token)
        self._places: dict[tuple[RepoName, str, bool], HttpPlace] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for place in self._places.values():
            place.close()
        self._client.close()

    def commit_of(self, repo: RepoName, revision: str) -> str:
        """The commit that a branch, tag or commit is.

        Raises:
            InputError: that is no name of a revision.
            SourceError: the server does not say.
        """
        if not _REVISION.fullmatch(revision) or ".." in revision.split("/"):
            raise InputError(f"{revision!r}: no name of a revision")
        data, _ = self._document(f"/api/{repo.kind}/{repo.name}/revision/{quote(revision, safe='')}", repo, LISTING_LIMIT_BYTES)
        try:
            commit = read_revision(data)
        except HubListingError as error:
            raise SourceError(f"{self._base.name}: {repo.shown}@{revision}: {error}") from None
        if is_commit(revision) and commit != revision:
            raise SourceError(f"{self._base.name}: {repo.shown}@{revision}: the server names another commit, {commit}")
        return commit

    def files_of(self, repo: RepoName, commit: str) -> dict[str, HubFile]:
        """All files of a commit by path. Names that may not be used as paths are among them, each with its refusal.

        Raises:
            SourceError: the server does not say, or says what makes no sense.
        """
        path = f"/api/{repo.kind}/{repo.name}/tree/{commit}?recursive=true&expand=false"
        found: dict[str, HubFile] = {}
        total = 0
        for _ in range(PAGES_LIMIT):
            data, following = self._document(path, repo, LISTING_LIMIT_BYTES)
            total += len(data)
            known = len(found)
            try:
                page = read_tree_page(data)
            except HubListingError as error:
                raise SourceError(f"{self._base.name}: {repo.shown}@{commit}: {error}") from None
            for file in page:
                if found.setdefault(file.path, file) != file:
                    raise SourceError(f"{self._base.name}: {repo.shown}@{commit}: {file.path[:200]!r} is listed twice")
            if len(found) > FILES_LIMIT:
                raise SourceError(f"{self._base.name}: {repo.shown}@{commit}: more than {FILES_LIMIT:,} files")
            if not following:
                return found
            if len(found) == known or total > LISTING_TOTAL_BYTES:
                break  # a page that tells nothing new, and has another behind it
            path = following
        raise SourceError(f"{self._base.name}: {repo.shown}@{commit}: the listing has no end")

    def place(self, repo: RepoName, commit: str, path: str, *, whole: bool = False) -> FilePlace:
        """A file of a commit, as a place; ``whole`` it may be read from its start where the server has no ranges."""
        key = (repo, commit, whole)
        if key not in self._places:
            prefix = "" if repo.kind == "models" else f"/{repo.kind}"
            address = hub_address(f"{prefix}/{repo.name}/resolve/{commit}")
            limits = replace(self.limits, allow_full_download=True) if whole else self.limits
            self._places[key] = HttpPlace(address, limits, self.budget, token=self._token)
        return FilePlace(self._places[key], path, f"hf://{repo.shown}@{commit[:12]}/{path}")

    def _document(self, path: str, repo: RepoName, limit_bytes: int) -> tuple[bytes, str]:
        """A small document, and where its next page is; ``path`` is below the server, with its query."""
        patience = Patience(self.limits)
        while True:
            try:
                self.meter.count_request()
                return self._once(path, repo, limit_bytes)
            except TransientError as error:
                patience.failed(error, progressed=False)

    def _once(self, path: str, repo: RepoName, limit_bytes: int) -> tuple[bytes, str]:
        text = bytearray()
        started = time.monotonic()
        with self._client.get(_joined(self._base, path), {"Accept": "application/json"}) as response:
            code = response.status_code
            if code in _BUSY:
                raise TransientError(f"{self._base.name}: the server answers {code}")
            if code != 200:
                told = f": {_WORDS[code]}" if code in _WORDS else ""
                raise SourceError(f"{self._base.name}: {repo.shown}: the server answers {code}{told}")
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise SourceError(f"{self._base.name}: {repo.shown}: the server serves a compressed form only")
            for chunk in response.iter_raw():
                self.meter.reserve(len(chunk))
                self.meter.count_bytes(len(chunk))
                text += chunk
                if time.monotonic() - started > self.limits.silence_seconds + len(text) / self.limits.slowest_bytes_per_second:
                    raise TransientError(f"{self._base.name}: fewer than {self.limits.slowest_bytes_per_second} bytes per second come")
                if len(text) > limit_bytes:
                    raise SourceError(f"{self._base.name}: {repo.shown}: the answer has more than {limit_bytes >> 20} MiB")
            following = response.links.get("next", {}).get("url", "")
        return bytes(text), _own_path(self._base, following, repo) if following else ""


def _joined(base: WebAddress, path: str) -> str:
    return base.url().rstrip("/") + path


def _own_path(base: WebAddress, url: str, repo: RepoName) -> str:
    """The path and query of a next page, which must be on the same server.

    Raises:
        SourceError: it is elsewhere; the token would go there.
    """
    own = urlsplit(base.url())
    try:
        parts = urlsplit(url)
        port, own_port = parts.port, own.port
    except ValueError:
        parts, port, own_port = urlsplit(""), None, None
    if not parts.scheme and not parts.netloc and parts.path.startswith("/"):
        parts, port = parts._replace(scheme=own.scheme, netloc=own.netloc), own_port
    is_own = (parts.scheme, parts.hostname, port) == (own.scheme, own.hostname, own_port)
    if not is_own or not parts.path.startswith(own.path.rstrip("/") + "/"):
        raise SourceError(f"{base.name}: {repo.shown}: the listing's next page is on another server: not followed")
    path = parts.path.removeprefix(own.path.rstrip("/"))
    return f"{path}?{parts.query}" if parts.query else path


def limits_of(max_fetch: int | None) -> Limits:
    """The limits of a command; without ``max_fetch`` only each file's listed size bounds it."""
    return Limits(max_fetch_bytes=(1 << 62) if max_fetch is None else max_fetch)
