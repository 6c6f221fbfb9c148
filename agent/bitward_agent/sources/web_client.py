"""The one client of a web server, its credentials, and what httpx raises turned into our errors.

Nothing that is raised or logged from here holds a credential: httpx and httpcore log URLs and headers, so what they would log of our
requests is held back.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from bitward_agent.errors import SourceError
from bitward_agent.sources.addresses import WebAddress, brief
from bitward_agent.sources.limits import Limits, TransientError
from bitward_formats.errors import MissingExtraError

if TYPE_CHECKING:
    import httpx

REDIRECTS_LIMIT = 10
_LOGGERS = ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.http2", "httpcore.proxy", "httpcore.socks")
_inside = threading.local()


def _is_foreign(record: logging.LogRecord) -> bool:  # noqa: ARG001 - a filter's signature
    """Whether a record comes from somebody else's request."""
    return not getattr(_inside, "depth", 0)


@contextmanager
def _quiet() -> Iterator[None]:
    _inside.depth = getattr(_inside, "depth", 0) + 1
    try:
        yield
    finally:
        _inside.depth -= 1


class WebClient:
    """httpx, for one address. It follows redirects, and takes credentials to the address's own server only."""

    def __init__(self, address: WebAddress, limits: Limits, token: str = "", *, anonymous: bool = False, redirects: bool = True) -> None:
        """With ``anonymous`` neither the address's user nor netrc count: who calls sends what is needed. ``redirects``: follow them.

        Raises:
            MissingExtraError: httpx is not installed.
            SourceError: the netrc file cannot be used.
        """
        try:
            import httpx
        except ImportError:
            raise MissingExtraError("http:// sources need the extra 'remote': pip install 'bitward[remote]'") from None
        self._limits = limits
        for name in _LOGGERS:
            logger = logging.getLogger(name)
            logger.removeFilter(_is_foreign)
            logger.addFilter(_is_foreign)
        headers = {"User-Agent": "bitward", "Accept-Encoding": "identity"}
        auth: httpx.Auth | None = None
        if token:
            headers["Authorization"] = f"Bearer {token}"  # httpx drops it where a redirect leads to another server
        elif address.user is not None and not anonymous:
            auth = httpx.BasicAuth(address.user, address.password)
        elif not anonymous:
            auth = _netrc()
        with _quiet():
            self._client = httpx.Client(
                auth=auth,
                headers=headers,
                follow_redirects=redirects,
                max_redirects=REDIRECTS_LIMIT,
                timeout=httpx.Timeout(limits.silence_seconds, connect=limits.connect_seconds),
                limits=httpx.Limits(max_connections=limits.parallel + 1),
            )

    def close(self) -> None:
        """Close all connections."""
        with _quiet():
            self._client.close()

    def get(self, url: str, headers: dict[str, str]) -> AbstractContextManager[httpx.Response]:
        """See :meth:`send`."""
        return self.send("GET", url, headers)

    @contextmanager
    def send(
        self, method: str, url: str, headers: dict[str, str], content: bytes | Iterable[bytes] | None = None
    ) -> Iterator[httpx.Response]:
        """The answer to a request, its body not yet read. A ``content`` that is iterated is not sent again where a redirect asks for it.

        Raises:
            TransientError: no connection, no answer, or it broke, also while the body is read.
            SourceError: too many redirects, or one to where nobody can go.
        """
        import httpx

        with _quiet():
            try:
                with self._client.stream(method, url, headers=headers, content=content) as response:
                    yield response
            except httpx.ConnectTimeout:
                raise TransientError(f"no connection within {self._limits.connect_seconds:g} s") from None
            except httpx.TimeoutException:
                raise TransientError(f"no answer for {self._limits.silence_seconds:g} s") from None
            except (httpx.TooManyRedirects, httpx.UnsupportedProtocol) as error:
                raise SourceError(f"cannot follow the server's redirect ({type(error).__name__})") from None
            except httpx.ConnectError as error:
                raise TransientError(f"cannot connect: {brief(error)}") from None
            except httpx.TransportError as error:
                raise TransientError(f"the connection broke ({type(error).__name__})") from None
            except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
                raise SourceError(f"the server cannot be used ({type(error).__name__})") from None


def _netrc() -> httpx.Auth | None:
    """Credentials of ``~/.netrc`` or ``$NETRC``, if there is such a file."""
    from netrc import NetrcParseError

    import httpx

    try:
        return httpx.NetRCAuth(os.environ.get("NETRC"))
    except FileNotFoundError:
        return None
    except (NetrcParseError, OSError, UnicodeError):
        raise SourceError("the netrc file cannot be used: its form or its permissions are wrong") from None
