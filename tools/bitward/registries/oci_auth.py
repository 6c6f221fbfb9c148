"""Who may what in a registry: anonymous, basic, and the bearer tokens of the distribution project's token specification.

Credentials go to the registry that the user named and to the token server that this registry names, to nobody else: not where a redirect
leads, not to a token server without TLS unless the registry itself has none, and into no message.

Sources: "Docker Registry v2 authentication via central service" and "… using OAuth2" of the distribution project; RFC 9110, section 11.6.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit, urlunsplit

from bitward.registries.oci_credentials import Credentials
from bitward.registries.oci_reference import Reference
from bitward_agent.errors import InputError, SourceError
from bitward_agent.sources.addresses import WebAddress
from bitward_agent.sources.http import paced_chunks
from bitward_agent.sources.limits import Limits, TransientError
from bitward_agent.sources.web_client import WebClient

if TYPE_CHECKING:
    import httpx

_PARAMETER = re.compile(r'([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))')
_SCHEME = re.compile(r"(?:^|,)\s*(Basic|Bearer)(?=\s|,|$)", re.IGNORECASE)
_CHALLENGE_LIMIT_CHARACTERS = 16_384
_ANSWER_LIMIT_BYTES = 1 << 20
_TOKEN_LIMIT_CHARACTERS = 65_536
_PORTS = {"http": 80, "https": 443}


def read_challenges(headers: Sequence[str]) -> dict[str, dict[str, str]]:
    """The parameters of each scheme that a server offers, by the scheme's name in small letters."""
    found: dict[str, dict[str, str]] = {}
    text = ", ".join(headers)
    if len(text) > _CHALLENGE_LIMIT_CHARACTERS:
        return found
    marks = list(_SCHEME.finditer(text))
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    for mark, end in zip(marks, ends[: len(marks)], strict=True):
        part = text[mark.end() : end]
        values = {one[1].lower(): re.sub(r"\\(.)", r"\1", one[2]) if one[2] is not None else one[3] for one in _PARAMETER.finditer(part)}
        found.setdefault(mark[1].lower(), values)
    return found


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of a URL; empty where it is none."""
    try:
        parts = urlsplit(url)
        scheme = parts.scheme.lower()
        return scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(scheme, 0)
    except ValueError:
        return "", "", 0


class TokenDesk:
    """What to tell a registry of who asks, and a new token when it does not take that any more."""

    def __init__(self, reference: Reference, credentials: Credentials, limits: Limits) -> None:
        self._reference, self._credentials, self._limits = reference, credentials, limits
        self._origin = origin_of(reference.base_url)
        self._header = ""

    def is_own(self, url: str) -> bool:
        """Whether a URL is the registry's own."""
        return origin_of(url) == self._origin

    def headers(self, url: str) -> dict[str, str]:
        """The header that authorises a request to ``url``; none for any other server than the registry."""
        return {"Authorization": self._header} if self._header and self.is_own(url) else {}

    def answer(self, challenges: Sequence[str]) -> None:
        """Get what the registry wants.

        Raises:
            SourceError: it is not to be had. The message names the registry, and no credential.
        """
        offered = read_challenges(challenges)
        before, self._header = self._header, ""
        if "bearer" in offered:
            self._header = f"Bearer {self._token(offered['bearer'])}"
        elif "basic" in offered and self._credentials.basic and before != self._credentials.basic:
            self._header = self._credentials.basic
        else:
            raise self._refused()

    def _refused(self) -> SourceError:
        host = self._reference.host
        if self._credentials.helper:
            told = f"those of {host} are kept by a credential helper, which is not run here: put them into 'auths' of Docker's config.json"
        elif self._credentials.user or self._credentials.identity_token:
            told = f"those of Docker's config.json are not taken: 'docker login {host}' renews them"
        else:
            told = f"'docker login {host}' leaves them where they are looked for"
        return SourceError(f"{host} wants credentials; {told}")

    def _token(self, asked: dict[str, str]) -> str:
        try:
            address = WebAddress(asked.get("realm", ""))
        except InputError:
            raise SourceError(f"{self._reference.host}: the token server that it names is no http:// or https:// URL") from None
        url = address.url()
        if origin_of(url)[0] != "https" and self._reference.scheme == "https":
            raise SourceError(f"{self._reference.host}: the token server that it names speaks plain HTTP: it gets no credentials")
        client = WebClient(address, self._limits, anonymous=True, redirects=False)
        try:
            return self._ask(client, url, {key: asked[key] for key in ("service", "scope") if key in asked})
        except TransientError as error:
            raise SourceError(f"{self._reference.host}: its token server: {error}") from None
        finally:
            client.close()

    def _ask(self, client: WebClient, url: str, fields: dict[str, str]) -> str:
        fields = {**fields, "client_id": "bitward"}
        if self._credentials.identity_token:
            form = fields | {"grant_type": "refresh_token", "refresh_token": self._credentials.identity_token}
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            request = client.send("POST", url, headers, urlencode(form).encode())
        else:
            parts = urlsplit(url)
            query = "&".join(filter(None, (parts.query, urlencode(fields))))
            headers = {"Authorization": self._credentials.basic} if self._credentials.basic else {}
            request = client.send("GET", urlunsplit(parts._replace(query=query)), headers)
        with request as response:
            if response.status_code in (401, 403):
                raise self._refused()
            if response.status_code != 200:
                raise SourceError(f"{self._reference.host}: its token server answers {response.status_code}")
            text = bounded_body(response, _ANSWER_LIMIT_BYTES, f"{self._reference.host}: its token server", self._limits)
        return self._token_in(text)

    def _token_in(self, text: bytes) -> str:
        try:
            answer: Any = json.loads(text)
        except (ValueError, RecursionError):
            answer = None
        token = (answer.get("token") or answer.get("access_token")) if isinstance(answer, dict) else None
        if isinstance(token, str) and 0 < len(token) <= _TOKEN_LIMIT_CHARACTERS and re.fullmatch(r"[!-~]+", token):
            return token
        raise SourceError(f"{self._reference.host}: its token server gives no token")


def bounded_body(response: httpx.Response, limit_bytes: int, what: str, limits: Limits) -> bytes:
    """The body of an answer.

    Raises:
        SourceError: it is longer than ``limit_bytes``, or encoded in a way that was not asked for.
        TransientError: it breaks off, or comes too slowly.
    """
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise SourceError(f"{what} sends a compressed form, which was not asked for")
    body = bytearray()
    for chunk in paced_chunks(response, limits):
        body += chunk
        if len(body) > limit_bytes:
            raise SourceError(f"{what} sends more than {limit_bytes} bytes")
    return bytes(body)


class RegistryWeb(WebClient):
    """The web client of one repository: it answers the registry's wish for credentials, and asks again once."""

    def __init__(self, reference: Reference, credentials: Credentials, limits: Limits) -> None:
        """
        Raises:
            MissingExtraError: httpx is not installed.
        """
        super().__init__(WebAddress(reference.base_url), limits, anonymous=True)
        self._desk = TokenDesk(reference, credentials, limits)

    @contextmanager
    def send(
        self, method: str, url: str, headers: dict[str, str], content: bytes | Iterable[bytes] | None = None
    ) -> Iterator[httpx.Response]:
        """See ``WebClient.send``; ``content`` may be iterated twice.

        Raises:
            SourceError: also where the registry wants credentials that are not at hand.
        """
        for is_last in (False, True):
            with super().send(method, url, headers | self._desk.headers(url), content) as response:
                if response.status_code != 401 or is_last or not self._desk.is_own(str(response.url)):
                    yield response
                    return
                challenges = response.headers.get_list("WWW-Authenticate")
            self._desk.answer(challenges)
