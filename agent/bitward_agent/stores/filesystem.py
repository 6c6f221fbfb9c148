"""Any file system that fsspec knows (``gs://``, ``abfs://``, ``sftp://`` …) as a store. S3 has a module of its own.

fsspec lists by folders, not by pages: memory is that of the largest folder. An object is held to be the same as long as size, time and
the store's own mark of it are the same before and after it was read. A size that the listing leaves out is asked for, one object at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from bitward_agent.errors import SourceError, SourceMovedError
from bitward_agent.sources.addresses import brief, scheme_of, without_secrets
from bitward_agent.sources.filesystem import FilesystemFile, FilesystemPlace
from bitward_agent.sources.limits import Budget, Limits, Meter, Patience, TransientError
from bitward_agent.stores import TAG_LIMIT_CHARACTERS, Entry, ObjectState, Unlisted, order_of
from bitward_agent.stores.object_file import ObjectFile

_DEPTH_LIMIT = 256
"""Folders within folders: what goes deeper leads in a circle."""
_NO_SIZE = "the store does not tell its size, so it cannot be checked"
_TAGS = ("ETag", "etag", "generation", "VersionId", "version_id", "md5Hash", "content_md5", "ino", "uid")
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")


_Listed = tuple[str, bool, ObjectState | None]
"""Of one entry of a folder: its key, whether it is a folder, and what the listing tells of it."""


class FilesystemStore:
    """A URL of fsspec, and all that lies below. Credentials are what fsspec's back end finds by itself."""

    def __init__(self, url: str, limits: Limits) -> None:
        """
        Raises:
            MissingExtraError, InputError: see ``FilesystemPlace``.
        """
        self.limits = limits
        self._place = FilesystemPlace(url, limits, Budget(1 << 62))
        self._place.fs.use_listings_cache = False
        self.name = self.identity = without_secrets(url)
        self._scheme = scheme_of(url)
        self._root = self._place.root.rstrip("/")

    def close(self) -> None:
        """fsspec keeps its connections itself."""

    def shown(self, key: str) -> str:
        return f"{self._scheme}://{without_secrets(key)}"

    def _asked(self, what: Callable[[], Any]) -> Any:
        patience = Patience(self.limits)
        while True:
            try:
                return what()
            except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
                raise error from None
            except (OSError, TimeoutError) as error:
                patience.failed(TransientError(f"{type(error).__name__}: {brief(error)}"), progressed=False)
            except Exception as error:  # noqa: BLE001 - back ends raise what they like
                raise SourceError(f"{type(error).__name__}: {brief(error)}") from None

    def entries(self) -> Iterator[Entry | Unlisted]:
        """See ``Store.entries``."""
        return self._walk(self._root)

    def entries_below(self, folder: str) -> Iterator[Entry | Unlisted]:
        """See ``Store.entries_below``."""
        return self._walk(folder.rstrip("/"))

    def _walk(self, top: str) -> Iterator[Entry | Unlisted]:
        open_folders: list[Iterator[_Listed]] = []
        pending: str | None = top
        while True:
            if pending is not None:
                try:
                    if len(open_folders) >= _DEPTH_LIMIT:
                        raise SourceError(f"more than {_DEPTH_LIMIT} folders within each other")
                    open_folders.append(iter(self._folder(pending)))
                except (SourceError, OSError) as error:
                    if not open_folders:
                        raise SourceError(f"{self.shown(pending)}: cannot be listed: {brief(error)}") from None
                    yield Unlisted(pending, brief(error))
                pending = None
            elif not open_folders:
                return
            else:
                found = next(open_folders[-1], None)
                if found is None:
                    open_folders.pop()
                elif found[1]:
                    pending = found[0]
                else:
                    yield self._entry(found[0], found[2])

    def _entry(self, key: str, listed: ObjectState | None) -> Entry | Unlisted:
        """An object of a listing; its state is asked for where the listing does not have it."""
        if listed is None:
            try:
                listed = self.state(key)
            except SourceError as error:
                return Unlisted(key, brief(error))
        return Unlisted(key, _NO_SIZE) if listed is None else Entry(key, listed)

    def _folder(self, path: str) -> list[_Listed]:
        """Objects and folders of one folder, in order; folders sort as if their names ended with a slash."""
        found: list[tuple[bytes, _Listed]] = []
        for info in self._asked(lambda: self._place.fs.ls(path, detail=True)):
            name, kind = str(info.get("name", "")).rstrip("/"), info.get("type")
            if kind not in ("file", "directory") or info.get("islink") or (kind == "directory" and name == path.rstrip("/")):
                continue
            if not _is_key(name):
                raise SourceError(f"the store lists there what is no name: {ascii(name)[:200]}")
            if path and not name.startswith(f"{path}/") and name != path:
                raise SourceError(f"the store lists there what lies elsewhere: {without_secrets(name)[:200]!r}")
            if kind == "directory":
                found.append((order_of(f"{name}/"), (name, True, None)))
            else:
                found.append((order_of(name), (name, False, _state(info))))
        return [one for _, one in sorted(found, key=lambda one: one[0])]

    def state(self, key: str) -> ObjectState | None:
        """See ``Store.state``."""
        try:
            info = self._asked(lambda: self._place.fs.info(key))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError as error:
            raise SourceError(f"PermissionError: {brief(error)}") from None
        if info.get("type") != "file":
            return None
        state = _state(info)
        if state is None:
            raise SourceError(_NO_SIZE)  # it is there, so that it must not pass for gone
        return state

    def open(self, key: str, state: ObjectState, meter: Meter, ahead: int) -> ObjectFile:
        """See ``Store.open``. That it is still the same is told by ``state`` afterwards."""
        file = FilesystemFile(self._place, key, state.size, meter)

        def get(low: int, high: int) -> bytes:
            try:
                return file.get(low, high)
            except SourceError:
                if self.state(key) != state:
                    raise SourceMovedError("it was exchanged or removed while it was read") from None
                raise

        return ObjectFile(self.shown(key), state.size, get, ahead)


def _is_key(name: str) -> bool:
    """Whether a name is text, or bytes of a path as Python has them: a listing in JSON can say what is neither."""
    try:
        order_of(name)
    except UnicodeEncodeError:
        return False
    return True


def _state(info: dict[str, Any]) -> ObjectState | None:
    size = info.get("size")
    if not isinstance(size, int) or size < 0:
        return None
    tag = next((str(info[name]) for name in _TAGS if info.get(name)), "")
    time = next((info[name] for name in _TIMES if info.get(name)), None)
    return ObjectState(size, tag[:TAG_LIMIT_CHARACTERS], _nanoseconds(time))


def _nanoseconds(time: object) -> int:
    """A time as back ends give it: a datetime, an ISO text, seconds; 0 for anything else."""
    try:
        if isinstance(time, str):
            time = datetime.fromisoformat(time)
        if isinstance(time, datetime):
            return int(time.timestamp()) * 10**9
        if isinstance(time, (int, float)):
            return int(time * 10**9)
    except (ValueError, OverflowError, OSError):
        pass
    return 0
