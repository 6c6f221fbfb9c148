"""A web server as a place of good bytes: range requests, checked answer by answer.

httpx does connections, time-outs, redirects, proxies, TLS and credentials; here is what a range means. An answer is used only if it is
exactly the range that was asked for, of the version that was seen first; whatever else a server says is an error with a name.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from bitward_agent.errors import SourceError
from bitward_agent.sources import Range
from bitward_agent.sources.addresses import WebAddress
from bitward_agent.sources.limits import Budget, Limits, Meter, Patience, TransientError
from bitward_agent.sources.remote import RemoteFile
from bitward_agent.sources.web_client import WebClient

if TYPE_CHECKING:
    import httpx

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", re.ASCII)
_EMPTY_RANGE = re.compile(r"bytes \*/0", re.ASCII)
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_GONE = frozenset({404, 410})
_CREDENTIALS = {401: "it wants credentials", 403: "forbidden", 407: "the proxy wants credentials"}


class RangesRefusedError(SourceError):
    """The server does not serve this file by ranges that can be relied on."""


class HttpPlace:
    """A URL: of a file, or of what files lie below. One client, with its connections, for all files of a command."""

    is_local = False

    def __init__(
        self, address: WebAddress, limits: Limits, budget: Budget, *, name: str = "", token: str = "", client: WebClient | None = None
    ) -> None:
        """``name`` is shown instead of the URL; ``token`` is sent as a bearer's to that server, and to no other.

        A ``client`` that is given is used instead of one of its own, and left open.

        Raises:
            MissingExtraError: httpx is not installed.
        """
        self.name = name or address.name
        self._address, self.limits, self.budget = address, limits, budget
        self.client = client or WebClient(address, limits, token)
        self._owns_client = client is None
        self._dead = ""

    def close(self) -> None:
        """Close all connections."""
        if self._owns_client:
            self.client.close()

    def open(self, relative: str, meter: Meter) -> HttpFile | None:
        """See ``Place.open``: one byte is asked for, which tells the size, the version and whether ranges are served."""
        if self._dead:
            raise SourceError(self._dead)
        meter.budget = self.budget
        file = HttpFile(self, self._address.url(relative), meter)
        try:
            return file if file.probe() else None
        except UnreachableError as error:
            self._dead = str(error)  # the other files of a directory need not wait for it again
            raise

    def download(self, limit_bytes: int, meter: Meter) -> bytes:
        """The place's own URL as a small document. Empty if it is not there, or is longer than the limit. Raises SourceError."""
        meter.budget = self.budget
        text = bytearray()
        try:
            meter.count_request()
            with self.client.get(self._address.url(), {}) as response:
                if response.status_code != 200 or response.headers.get("Content-Encoding", "identity").lower() != "identity":
                    return b""
                for chunk in response.iter_raw():
                    meter.reserve(len(chunk))
                    meter.count_bytes(len(chunk))
                    text += chunk
                    if len(text) > limit_bytes:
                        return b""
        except TransientError as error:
            raise SourceError(str(error)) from None
        return bytes(text)

    def names(self, folder: str, meter: Meter) -> list[str]:  # noqa: ARG002 - the protocol's signature
        """None: HTTP has no listing."""
        return []


class UnreachableError(SourceError):
    """The server does not answer at all."""


class HttpFile(RemoteFile):
    """One URL. Every request asks for the version that the first answer named."""

    def __init__(self, place: HttpPlace, url: str, meter: Meter) -> None:
        super().__init__(place.limits, meter)
        self._client, self._url = place.client, url
        self._etag = self._modified = ""
        self._whole = False
        self._lock = threading.Lock()

    def probe(self) -> bool:
        """Ask for the first byte. Whether the file is there. Raises SourceError."""
        patience = Patience(self.limits)
        while True:
            try:
                self.meter.count_request()
                return self._probe_once()
            except TransientError as error:
                try:
                    patience.failed(error, progressed=False)
                except SourceError as gave_up:
                    raise UnreachableError(str(gave_up)) from None

    def _probe_once(self) -> bool:
        with self._client.get(self._url, {"Range": "bytes=0-0"}) as response:
            if response.status_code in _GONE:
                return False
            if response.status_code == 416 and _EMPTY_RANGE.fullmatch(response.headers.get("Content-Range", "")):
                self.size = 0
                return True
            try:
                self._check_status(response)
                self._check_range(response, 0, 1)
            except RangesRefusedError:
                if not self.limits.allow_full_download:
                    raise
                self._use_whole(response)
            if response.status_code == 206:
                self.meter.count_bytes(len(_take(response, 1)))
        return True

    def read(self, ranges: Sequence[Range]) -> Iterator[tuple[Range, bytes]]:
        """See ``RangedFile.read``. Without ranges, and only if that is allowed, the file goes past in one stream."""
        left = dict.fromkeys(ranges)
        if not self._whole:
            try:
                for place, data in super().read(ranges):
                    left.pop(place, None)
                    yield place, data
                return
            except RangesRefusedError:
                if not self.limits.allow_full_download:
                    raise
                self._whole, self.size = True, None
        yield from self._stream(sorted(left))

    def read_part(self, first: int, end: int, buffer: bytearray) -> None:
        """See ``RemoteFile.read_part``."""
        headers = {"Range": f"bytes={first}-{end - 1}"}
        if self._etag or self._modified:
            headers["If-Range"] = self._etag or self._modified
        with self._client.get(self._url, headers) as response:
            self._check_status(response)
            wanted = self._check_range(response, first, end)
            for chunk in paced_chunks(response, self.limits):
                self.meter.count_bytes(len(chunk))
                buffer += chunk[:wanted]
                wanted -= len(chunk)
                if wanted < 0:
                    return  # more than it promised: the connection is dropped with the rest of it

    def _check_status(self, response: httpx.Response) -> None:
        """Raises TransientError, RangesRefusedError or SourceError for all but 206."""
        code = response.status_code
        if code in _BUSY:
            raise TransientError(f"the server answers {code}", _retry_after(response))
        if code == 200:
            seen = "it changed since the first request" if self.size is not None else "the server does not serve ranges"
            raise RangesRefusedError(f"{seen}; --allow-full-download reads the whole file")
        if code == 416:
            raise RangesRefusedError("the server has no such range, though it told of one; --allow-full-download reads the whole file")
        if code != 206:
            raise SourceError(f"the server answers {code}" + (f": {_CREDENTIALS[code]}" if code in _CREDENTIALS else ""))

    def _check_range(self, response: httpx.Response, first: int, end: int) -> int:
        """How many bytes of the wanted range the answer has.

        Raises:
            RangesRefusedError: it does not begin as asked, or is not the version first seen.
        """
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise RangesRefusedError("the server serves ranges of a compressed form; --allow-full-download does not help with that")
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        low, high, size = (int(number) for number in match.groups()) if match else (-1, -1, -1)
        if low != first or not first < high + 1 <= min(end, size):
            raise RangesRefusedError("the server answers with another range than asked for; --allow-full-download reads the whole file")
        etag = response.headers.get("ETag", "")
        etag = "" if etag.startswith("W/") else etag  # a weak one does not vouch for the bytes
        modified = response.headers.get("Last-Modified", "")
        with self._lock:
            if self.size is None:
                self.size, self._etag, self._modified = size, etag, modified
            elif (size, etag, modified) != (self.size, self._etag, self._modified):
                raise RangesRefusedError("it changed since the first request; --allow-full-download reads the whole file")
        return high + 1 - first

    # ------------------------------------------------------------------------------------------------- without range support

    def _use_whole(self, response: httpx.Response) -> None:
        """From now on the file is read in whole streams."""
        if response.status_code not in (200, 206):
            raise SourceError(f"the server answers {response.status_code}")
        self._whole = True
        length = response.headers.get("Content-Length", "")
        known = response.status_code == 200 and "Content-Encoding" not in response.headers and re.fullmatch(r"[0-9]{1,19}", length)
        self.size = int(length) if known else None

    def _stream(self, ranges: list[Range]) -> Iterator[tuple[Range, bytes]]:
        """One download, of which only the wanted ranges are kept, one at a time; it ends with the last of them."""
        patience = Patience(self.limits)
        todo = list(reversed([one for one in ranges if self.size is None or one[1] <= self.size]))
        while todo:
            before = len(todo)
            end = todo[0][1]
            self.meter.reserve(end)
            start = self.meter.fetched_bytes
            try:
                self.meter.count_request()
                yield from self._stream_once(todo)
                return
            except TransientError as error:
                patience.failed(error, progressed=len(todo) < before)
            finally:
                self.meter.give_back(end - (self.meter.fetched_bytes - start))

    def _stream_once(self, todo: list[Range]) -> Iterator[tuple[Range, bytes]]:
        """Takes what it yields off the end of ``todo``."""
        with self._client.get(self._url, {}) as response:
            if response.status_code != 200:
                self._check_status(response)
                raise SourceError(f"the server answers {response.status_code}")
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise SourceError("the server serves a compressed form only")
            kept, at = bytearray(), 0
            for chunk in paced_chunks(response, self.limits):
                self.meter.count_bytes(len(chunk))
                chunk_at, at = at, at + len(chunk)
                while todo and todo[-1][0] < at:
                    low, high = todo[-1]
                    kept += chunk[max(0, low + len(kept) - chunk_at) : high - chunk_at]
                    if len(kept) < high - low:
                        break
                    todo.pop()
                    yield (low, high), bytes(kept)
                    kept = bytearray()
                if not todo:
                    return


def paced_chunks(response: httpx.Response, limits: Limits) -> Iterator[bytes]:
    """The body as it comes. Raises TransientError if it comes too slowly; time that the taker needs is not counted."""
    taken, waited = 0, 0.0
    stream = response.iter_raw()
    while True:
        started = time.monotonic()
        chunk = next(stream, None)
        if chunk is None:
            return
        waited += time.monotonic() - started
        taken += len(chunk)
        yield chunk
        if waited > limits.silence_seconds + taken / limits.slowest_bytes_per_second:
            raise TransientError(f"fewer than {limits.slowest_bytes_per_second} bytes per second come")


def _take(response: httpx.Response, limit: int) -> bytes:
    """The first bytes of a body, and no more."""
    for chunk in response.iter_raw():
        return bytes(chunk[:limit])
    return b""


def _retry_after(response: httpx.Response) -> float:
    """Seconds that a busy server asks to wait; its other form, a date, is not heeded."""
    value: Any = response.headers.get("Retry-After", "")
    with contextlib.suppress(ValueError, OverflowError):
        return float(int(value)) if len(value) < 6 else 0.0
    return 0.0
