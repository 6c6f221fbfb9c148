"""``hf://org/model@revision/file``: the hub's local cache, then its server.

The cache's folders and the server's URLs are as huggingface_hub documents them ("Understand caching", ``hf_hub_url``, environment
variables); that library is not needed.
"""

from __future__ import annotations

import json
import os
import re
from urllib.parse import quote, unquote

from bitward_agent.errors import InputError, SourceError
from bitward_agent.sources.addresses import WebAddress
from bitward_agent.sources.http import HttpFile, HttpPlace
from bitward_agent.sources.limits import Budget, Limits, Meter
from bitward_agent.sources.local import LocalPlace
from bitward_formats.frozen import dataclass

ENDPOINT = "https://huggingface.co"
LISTING_LIMIT_BYTES = 16 << 20
_REF_LIMIT_BYTES = 4096
_TRUE = frozenset({"1", "ON", "YES", "TRUE"})

_ADDRESS = re.compile(
    r"hf://(?:models/)?(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>refs/(?:pr|convert)/[^/@?#]+|[^/@?#]+))?(?:/(?P<path>[^?#]*))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class HubAddress:
    """A model repository, a revision (branch, tag or commit), and a path in it, which may be empty."""

    repo: str
    revision: str
    path: str


def parse_hub(source: str) -> HubAddress:
    """Take an ``hf://`` source apart. A model without an organisation needs its revision: ``hf://gpt2@main/model.safetensors``.

    Raises:
        InputError: it has another form, or is no model.
    """
    match = _ADDRESS.fullmatch(source)
    if match is None or re.match(r"hf://(datasets|spaces|buckets)/", source):
        raise InputError(f"{source.partition('?')[0]}: a hub source is hf://ORG/MODEL[@REVISION][/FILE]")
    repo, revision, path = match["repo"], unquote(match["revision"] or "main"), (match["path"] or "").strip("/")
    for part in [*repo.split("/"), *revision.split("/"), *(path.split("/") if path else ())]:
        if part in ("", ".", "..") or any(ord(one) < 32 for one in part):
            raise InputError(f"{source}: a hub source is hf://ORG/MODEL[@REVISION][/FILE]")
    return HubAddress(repo, revision, path)


def cache_folder() -> str:
    """The hub's local cache, by the variables that huggingface_hub heeds, in its order."""
    folder = os.environ.get("HF_HUB_CACHE", os.environ.get("HUGGINGFACE_HUB_CACHE", os.path.join(_home(), "hub")))
    return os.path.expandvars(os.path.expanduser(folder))


def _home() -> str:
    """The hub's folder. As in its library's ``constants``, a variable that is set counts, be it empty."""
    above = os.environ.get("XDG_CACHE_HOME", os.path.join(os.path.expanduser("~"), ".cache"))
    return os.path.expandvars(os.path.expanduser(os.environ.get("HF_HOME", os.path.join(above, "huggingface"))))


def snapshot(address: HubAddress) -> str | None:
    """The folder of a revision in the cache, whose files are links to blobs; ``None`` if it is not there."""
    repo = os.path.join(cache_folder(), "--".join(["models", *address.repo.split("/")]))
    commit = address.revision
    try:
        with open(os.path.join(repo, "refs", address.revision), encoding="ascii") as file:
            commit = file.read(_REF_LIMIT_BYTES).strip()
    except (OSError, UnicodeError):
        pass  # no branch or tag that the cache knows: it may be a commit
    if not re.fullmatch(r"[0-9A-Za-z_.-]+", commit) or commit in (".", ".."):
        return None
    folder = os.path.join(repo, "snapshots", commit)
    return folder if os.path.isdir(folder) else None


def is_offline() -> bool:
    """Whether the user forbids to ask the server."""
    return any(os.environ.get(name, "").upper() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def hub_address(path: str) -> WebAddress:
    """The URL of a path on the hub's server.

    Raises:
        SourceError: HF_ENDPOINT is no URL.
    """
    try:
        return WebAddress((os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/") + path)
    except InputError:
        raise SourceError("HF_ENDPOINT is no valid http:// or https:// URL") from None


def hub_token() -> str:
    """The user's token for the hub, if there is one."""
    if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in _TRUE:
        return ""
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") or ""
    if not token:
        try:
            path = os.path.expandvars(os.path.expanduser(os.environ.get("HF_TOKEN_PATH", os.path.join(_home(), "token"))))
            with open(path, encoding="ascii") as file:
                token = file.read(_REF_LIMIT_BYTES)
        except (OSError, UnicodeError):
            return ""
    token = "".join(token.split())
    return token if token.isascii() and token.isprintable() else ""


class CachePlace(LocalPlace):
    """A revision in the local cache, or one file of it."""

    def __init__(self, address: HubAddress, folder: str, damaged: str, name: str) -> None:
        super().__init__(os.path.join(folder, *address.path.split("/")) if address.path else folder, damaged, f"{name} (local cache)")


class HubPlace:
    """A revision on the hub's server, or one file of it. The server is asked for the first time when a block is wanted."""

    is_local = False

    def __init__(self, address: HubAddress, limits: Limits, budget: Budget, name: str) -> None:
        self.name, self._address, self._limits, self._budget = name, address, limits, budget
        self._server: HttpPlace | None = None
        self._api: HttpPlace | None = None
        self._listing: list[str] | None = None

    def close(self) -> None:
        """Close all connections."""
        for place in (self._server, self._api):
            if place:
                place.close()
        self._server = self._api = None

    def open(self, relative: str, meter: Meter) -> HttpFile | None:
        """See ``Place.open``."""
        if self._server is None:
            revision = quote(self._address.revision, safe="")
            below = "".join(f"/{quote(part)}" for part in (self._address.path.split("/") if self._address.path else ()))
            self._server = self._at(f"/{self._address.repo}/resolve/{revision}{below}")
        if not relative and not self._address.path:
            return None  # the repository itself is no file
        return self._server.open(relative, meter)

    def names(self, folder: str, meter: Meter) -> list[str]:
        """See ``Place.names``: by the server's interface for models, ``/api/models/REPO/revision/REVISION``."""
        if self._listing is None:
            self._listing = self._list(meter)
        prefix = "/".join(part for part in (self._address.path, folder) if part)
        prefix = f"{prefix}/" if prefix else ""
        inside = [name.removeprefix(prefix) for name in self._listing if name.startswith(prefix)]
        return sorted(name for name in inside if "/" not in name)

    def _list(self, meter: Meter) -> list[str]:
        if self._api is None:
            self._api = self._at(f"/api/models/{self._address.repo}/revision/{quote(self._address.revision, safe='')}")
        text = self._api.download(LISTING_LIMIT_BYTES, meter)
        try:
            listing = json.loads(text)
            names = [entry["rfilename"] for entry in listing["siblings"]]
        except (ValueError, RecursionError, KeyError, TypeError):
            return []
        return [name for name in names if isinstance(name, str)]

    def _at(self, path: str) -> HttpPlace:
        return HttpPlace(hub_address(path), self._limits, self._budget, name=self.name, token=hub_token())
