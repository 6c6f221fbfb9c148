"""S3 and what speaks its protocol, through s3fs's client: listings by pages, ranges that are tied to one version of an object.

``ListObjectsV2`` gives keys in the order of their UTF-8 bytes, up to 1,000 a page; ``GetObject`` takes ``Range`` and ``If-Match``, which
fails with 412 when the object has another entity tag by now (Amazon S3 API reference). Keys go to the server as they are: nothing in
them is a path here, whatever slashes, dots or newlines they have.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from bitward_agent.errors import SourceError, SourceMovedError
from bitward_agent.sources.addresses import brief, without_secrets
from bitward_agent.sources.limits import Limits, Meter, Patience, TransientError
from bitward_agent.sources.remote import RemoteFile
from bitward_agent.stores import TAG_LIMIT_CHARACTERS, Entry, ObjectState, order_of
from bitward_agent.stores.object_file import ObjectFile
from bitward_formats.errors import MissingExtraError

PAGE_KEYS = 1000
"""The most that S3 gives at once."""
_KEY_LIMIT_BYTES = 4096
"""S3 allows 1,024; a server that sends longer ones is not believed."""
_AMAZON = ".amazonaws.com"
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


class S3Store:
    """``s3://BUCKET/PREFIX``. Credentials and endpoint are what the AWS libraries find in settings and environment."""

    def __init__(self, url: str, limits: Limits) -> None:
        """
        Raises:
            MissingExtraError: s3fs is not installed.
            SourceError: it cannot be made ready.
        """
        try:
            import s3fs
        except ImportError:
            raise MissingExtraError("s3:// needs the extra 'remote': pip install 'bitward[remote]'") from None
        self.limits = limits
        scheme, _, path = url.partition("://")
        self._bucket, _, self._prefix = path.partition("/")
        self._scheme = scheme
        self.name = without_secrets(url)
        config = {
            "retries": {"max_attempts": 0},  # how often is Bitward's to say
            "connect_timeout": limits.connect_seconds,
            "read_timeout": limits.silence_seconds,
            "max_pool_connections": 64,
        }
        try:
            from botocore.config import Config

            if "response_checksum_validation" in Config.OPTION_DEFAULTS:  # since 1.36: what rotted would be refused, and not be looked at
                config["response_checksum_validation"] = "when_required"
            self._fs = s3fs.S3FileSystem(config_kwargs=config, use_listings_cache=False, skip_instance_cache=True)
        except Exception as error:  # noqa: BLE001 - the AWS libraries raise what they like, with the settings in it
            raise SourceError(f"{self.name}: cannot be used ({type(error).__name__})") from None
        self._fs.retries = 1

    @property
    def identity(self) -> str:
        """See ``Store.identity``: the endpoint counts unless it is Amazon's (but China's), where a bucket is the same everywhere."""
        from botocore.session import Session

        # Settings, profiles and services' sections name it in several ways: a client that asks nobody knows which of them counts.
        given = self._fs.endpoint_url or self._fs.client_kwargs.get("endpoint_url")
        try:
            keys = {"aws_access_key_id": "none", "aws_secret_access_key": "none"}  # else they would be looked for, elsewhere perhaps
            endpoint = str(Session().create_client("s3", endpoint_url=given, **keys).meta.endpoint_url)
        except Exception as error:  # noqa: BLE001 - likewise
            raise SourceError(f"{self.name}: cannot be used ({type(error).__name__})") from None
        is_amazon = (urlsplit(endpoint).hostname or "").endswith(_AMAZON)
        return self.name if is_amazon else f"{self.name} at {without_secrets(endpoint)}"

    def close(self) -> None:
        """Close the connections."""
        client = getattr(self._fs, "_s3", None)
        if client is not None:
            self._fs.close_session(self._fs.loop, client)

    def shown(self, key: str) -> str:
        return f"{self._scheme}://{self._bucket}/{key}"

    # ------------------------------------------------------------------------------------------------------------- asking

    def call(self, method: str, seconds: float, body_bytes: int = 0, **arguments: Any) -> dict[str, Any]:
        """One request; of a body at most one byte more than ``body_bytes`` is read, whatever the server sends.

        Raises:
            TransientError, SourceMovedError, FileNotFoundError, SourceError.
        """
        from fsspec.asyn import sync

        async def ask() -> dict[str, Any]:
            answer: dict[str, Any] = await self._fs._call_s3(method, Bucket=self._bucket, **arguments)  # noqa: SLF001 - call_s3 has no time-out
            body = answer.get("Body")
            if body is not None:
                try:
                    answer["Body"] = await _bounded(body, body_bytes + 1)
                finally:
                    body.close()
            return answer

        try:
            answer: dict[str, Any] = sync(self._fs.loop, ask, timeout=seconds)
        except Exception as error:  # noqa: BLE001 - sorted below; the libraries raise what they like
            raise _sorted(error) from None
        return answer

    def _asked(self, method: str, **arguments: Any) -> dict[str, Any]:
        """The same with patience. Raises SourceMovedError, FileNotFoundError, SourceError."""
        patience = Patience(self.limits)
        while True:
            try:
                return self.call(method, 2 * self.limits.silence_seconds, **arguments)
            except TransientError as error:
                patience.failed(error, progressed=False)

    # ------------------------------------------------------------------------------------------------------------ listing

    def entries(self) -> Iterator[Entry]:
        """See ``Store.entries``."""
        return self._listed(self._prefix)

    def entries_below(self, folder: str) -> Iterator[Entry]:
        """See ``Store.entries_below``."""
        return self._listed(folder)

    def _listed(self, prefix: str) -> Iterator[Entry]:
        token: dict[str, str] = {}
        last = b""
        while True:
            try:
                page = self._asked("list_objects_v2", Prefix=prefix, MaxKeys=PAGE_KEYS, **token)
            except FileNotFoundError:
                raise SourceError(f"{self._scheme}://{self._bucket}: there is no such bucket") from None
            contents = page.get("Contents") or []
            if len(contents) > PAGE_KEYS:
                raise SourceError(f"{self.name}: the server lists more objects at once than it was asked for")
            for one in contents:
                key = str(one.get("Key", ""))
                place = order_of(key)
                if not key.startswith(prefix) or len(place) > _KEY_LIMIT_BYTES or place <= last:
                    raise SourceError(f"{self.name}: the server's listing is not in order (directory buckets are not supported)")
                last = place
                state = _state(one, "Size")
                if not key.endswith("/") or state.size:  # an empty object with such a name is what consoles make of a folder
                    yield Entry(key, state)
            if not page.get("IsTruncated"):
                return
            following = page.get("NextContinuationToken")
            if not isinstance(following, str) or not following or not contents:
                raise SourceError(f"{self.name}: the server's listing does not go on where it says it does")
            token = {"ContinuationToken": following}

    # ------------------------------------------------------------------------------------------------------------ reading

    def state(self, key: str) -> ObjectState | None:
        """See ``Store.state``."""
        try:
            return _state(self._asked("head_object", Key=key), "ContentLength")
        except FileNotFoundError:
            return None

    def open(self, key: str, state: ObjectState, meter: Meter, ahead: int) -> ObjectFile:
        """See ``Store.open``."""
        return ObjectFile(self.shown(key), state.size, _S3Object(self, key, state, meter).get, ahead)


async def _bounded(body: Any, limit_bytes: int) -> bytes:
    """What a body holds, up to a limit: a server that sends all of an object when a range was asked for fills no memory."""
    data = bytearray()
    while len(data) < limit_bytes:
        piece = await body.read(limit_bytes - len(data))
        if not piece:
            break
        data += piece
    return bytes(data)


class _S3Object(RemoteFile):
    """One version of an object."""

    def __init__(self, store: S3Store, key: str, state: ObjectState, meter: Meter) -> None:
        super().__init__(store.limits, meter)
        self._store, self._key, self._state, self.size = store, key, state, state.size

    def read_part(self, first: int, end: int, buffer: bytearray) -> None:
        """See ``RemoteFile.read_part``. Raises SourceMovedError as well."""
        longest = self.limits.silence_seconds + (end - first) / self.limits.slowest_bytes_per_second
        only = {"IfMatch": self._state.tag} if self._state.tag else {}
        try:
            answer = self._store.call("get_object", longest, end - first, Key=self._key, Range=f"bytes={first}-{end - 1}", **only)
        except FileNotFoundError:
            raise SourceMovedError("it was removed while it was read") from None
        data = answer["Body"]
        self.meter.count_bytes(len(data))
        told = _state(answer, "ContentLength")
        if (told.tag, told.mtime_ns) != (self._state.tag, self._state.mtime_ns):
            raise SourceMovedError("it was exchanged while it was read")
        if not str(answer.get("ContentRange", "")).startswith(f"bytes {first}-") or len(data) > end - first:
            raise SourceError("the server sends other bytes than were asked for")
        buffer += data


def _state(answer: dict[str, Any], size_field: str) -> ObjectState:
    size = answer.get(size_field)
    time = answer.get("LastModified")
    if not isinstance(size, int) or size < 0:
        raise SourceError("the server does not tell an object's size")
    mtime_ns = int(time.timestamp()) * 10**9 if isinstance(time, datetime) else 0  # some answers have parts of seconds, others not
    return ObjectState(size, str(answer.get("ETag") or "")[:TAG_LIMIT_CHARACTERS], mtime_ns)


def _sorted(error: Exception) -> Exception:
    """What a failed request means for the next one."""
    told = f"{type(error).__name__}: {brief(error)}"
    answer = getattr(error.__cause__, "response", None) or getattr(error, "response", None)
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(answer, dict) else None
    if status == 412 or status == 416:
        return SourceMovedError("it was exchanged while it was read")
    if status in _PASSING:
        return TransientError(told)
    if status == 404 or isinstance(error, FileNotFoundError):
        return FileNotFoundError(told)
    if status is None and not isinstance(error, PermissionError) and isinstance(error, (OSError, TimeoutError)):
        return TransientError(told)
    name = type(error).__name__
    if status is None and name in _PASSING_NAMES:
        return TransientError(told)
    return SourceError(told)


_PASSING_NAMES = frozenset(
    {
        "ClientPayloadError",
        "ConnectionClosedError",
        "ConnectTimeoutError",
        "EndpointConnectionError",
        "FSTimeoutError",
        "HTTPClientError",
        "IncompleteRead",
        "IncompleteReadError",
        "ReadTimeoutError",
        "ResponseParserError",
        "ResponseStreamingError",
    }
)
"""Errors of botocore, aiohttp and fsspec that tell of a connection and not of an answer, by name: their modules are not loaded for it."""
