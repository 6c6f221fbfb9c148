"""What a user names in an OCI registry: ``HOST[:PORT]/REPOSITORY[:TAG][@sha256:HEX]``, with the grammar of the distribution specification.

The host is always part of it: a name without one would mean another registry to each program.
"""

from __future__ import annotations

import re

from bitward_agent.errors import InputError
from bitward_formats.frozen import dataclass
from bitward_formats.oci import is_digest

_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*", re.ASCII)
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", re.ASCII)
_HOST = re.compile(r"(?:localhost|[a-zA-Z0-9-]+(?:\.[a-zA-Z0-9-]+)+|[a-zA-Z0-9-]+(?=:)|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?", re.ASCII)
_LOOPBACK = re.compile(r"(?:localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::[0-9]{1,5})?", re.ASCII)
_REPOSITORY_LIMIT = 255
_FORM = "a reference is HOST[:PORT]/REPOSITORY[:TAG][@sha256:HEX], such as registry.example.org/models/mine:v1"


@dataclass(frozen=True, slots=True)
class Reference:
    """A manifest in a registry. ``tag`` is empty where only a digest is given; ``digest`` is empty where only a tag is."""

    scheme: str
    host: str
    repository: str
    tag: str
    digest: str

    @property
    def wanted(self) -> str:
        """What the registry is asked for."""
        return self.digest or self.tag

    @property
    def name(self) -> str:
        """As it is shown."""
        return self.repository_name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    @property
    def repository_name(self) -> str:
        return f"{self.host}/{self.repository}"

    @property
    def base_url(self) -> str:
        """The repository's own part of the registry's interface. Docker's hub has it at another host than its names tell."""
        return f"{self.scheme}://{'registry-1.docker.io' if self.host == 'docker.io' else self.host}/v2/{self.repository}"


def is_loopback(host: str) -> bool:
    """Whether a host, with or without a port, is this machine: there, as with Docker, registries speak plain HTTP."""
    return _LOOPBACK.fullmatch(host) is not None


def parse_reference(text: str, *, plain_http: bool = False) -> Reference:
    """A reference out of what a user gave. Without tag and digest the tag is ``latest``.

    Raises:
        InputError: it is none. The message does not quote it: it may hold a password.
    """
    rest = text.removeprefix("oci://")
    rest, at, digest = rest.partition("@")
    host, slash, path = rest.partition("/")
    name, colon, tag = path.partition(":")
    if "://" in rest or not slash or not _HOST.fullmatch(host):
        raise InputError(f"no registry: {_FORM}")
    if not _REPOSITORY.fullmatch(name) or len(name) > _REPOSITORY_LIMIT:
        raise InputError(f"no name of a repository: {_FORM}, in small letters")
    if (colon and not _TAG.fullmatch(tag)) or (at and not is_digest(digest)):
        raise InputError(f"no tag or no digest: {_FORM}")
    if not colon and not at:
        tag = "latest"
    scheme = "http" if plain_http or is_loopback(host) else "https"
    return Reference(scheme, host, name, tag, digest)
