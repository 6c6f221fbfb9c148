"""What a user gives as a source, told apart by its form, and how it may be shown: without credentials."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from bitward_agent.errors import InputError

_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)(?:::[A-Za-z0-9+.:-]*)?://")
_USERINFO = re.compile(r"(?<=://)[^/?#\s]*@")
_QUERY = re.compile(r"[?#][^\s'\"]*")
_MESSAGE_CHARACTERS = 300


def scheme_of(source: str) -> str:
    """``https`` of ``https://…``, in lower case; empty for a path."""
    match = _SCHEME.match(source)
    return match["scheme"].lower() if match else ""


def without_secrets(text: str) -> str:
    """A URL, or a message with URLs in it, without user names, passwords and queries."""
    return _QUERY.sub("", _USERINFO.sub("", text))


def brief(error: object) -> str:
    """What an exception of a library says, in one line of bounded length without credentials."""
    line = " ".join(without_secrets(str(error)[: 8 * _MESSAGE_CHARACTERS]).split())
    return line if len(line) <= _MESSAGE_CHARACTERS else f"{line[:_MESSAGE_CHARACTERS]}…"


class WebAddress:
    """An ``http`` or ``https`` URL, taken apart. Names below it keep its query, where some servers have their credentials."""

    def __init__(self, url: str) -> None:
        """
        Raises:
            InputError: it is no such URL. The message does not quote it: nobody knows which part is the password.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port, parts = None, None, urlsplit("")
        if not host or parts.scheme.lower() not in ("http", "https") or any(ord(one) <= 32 for one in url):
            raise InputError("a source begins with http:// or https:// and is no valid URL (is a character of its password not escaped?)")
        self.user = unquote(parts.username) if parts.username is not None else None
        self.password = unquote(parts.password or "")
        shown_host = f"[{host}]" if ":" in host else host
        self._scheme, self._authority = parts.scheme.lower(), shown_host if port is None else f"{shown_host}:{port}"
        self._path, self._query = parts.path, parts.query

    @property
    def name(self) -> str:
        """As it may be shown."""
        return urlunsplit((self._scheme, self._authority, self._path, "", ""))

    def url(self, relative: str = "") -> str:
        """The URL of a path below it, without user and password."""
        path = f"{self._path.rstrip('/')}/{quote(relative.encode('utf-8', 'surrogateescape'))}" if relative else self._path
        return urlunsplit((self._scheme, self._authority, path, self._query, ""))
