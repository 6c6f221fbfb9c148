"""Any file system that fsspec knows (``s3://``, ``gs://``, ``memory://`` …) as a place of good bytes.

Credentials and endpoints are what fsspec and its back ends find in their own settings and environment.
"""

from __future__ import annotations

import posixpath
from typing import Any

from bitward_agent.errors import InputError, SourceError
from bitward_agent.sources.addresses import brief, scheme_of, without_secrets
from bitward_agent.sources.limits import Budget, Limits, Meter, TransientError
from bitward_agent.sources.remote import RemoteFile
from bitward_formats.errors import MissingExtraError


class FilesystemPlace:
    """A URL of fsspec: of a file, or of what files lie below."""

    is_local = False

    def __init__(self, url: str, limits: Limits, budget: Budget) -> None:
        """
        Raises:
            MissingExtraError: fsspec, or what it needs for this kind of URL, is not installed.
            InputError: no such kind of URL is known.
        """
        self.name, self.limits, self.budget = without_secrets(url), limits, budget
        scheme = scheme_of(url)
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise MissingExtraError(f"{scheme}:// sources need the extra 'remote': pip install 'bitward[remote]'") from None
        try:
            self.fs, self.root = url_to_fs(url)
        except ImportError as error:
            raise MissingExtraError(f"{scheme}:// sources need one more package: {brief(error)}") from None
        except Exception as error:  # noqa: BLE001 - back ends raise what they like, with the URL in it
            raise InputError(f"{self.name}: cannot be used as a source ({type(error).__name__})") from None

    def close(self) -> None:
        """fsspec keeps its file systems itself."""

    def open(self, relative: str, meter: Meter) -> FilesystemFile | None:
        """See ``Place.open``."""
        meter.budget = self.budget
        path = f"{self.root.rstrip('/')}/{relative}" if relative else self.root
        try:
            meter.count_request()
            info: dict[str, Any] = self.fs.info(path)
        except FileNotFoundError:
            return None
        except Exception as error:  # noqa: BLE001 - likewise
            raise SourceError(_told(error)) from None
        if info.get("type") == "directory":
            return None
        size = info.get("size")
        if not isinstance(size, int):
            raise SourceError("it does not tell the file's size")
        return FilesystemFile(self, path, size, meter)

    def names(self, folder: str, meter: Meter) -> list[str]:
        """See ``Place.names``."""
        try:
            meter.count_request()
            entries = self.fs.ls(f"{self.root.rstrip('/')}/{folder}" if folder else self.root, detail=True)
        except FileNotFoundError:
            return []
        except Exception as error:  # noqa: BLE001 - likewise
            raise SourceError(_told(error)) from None
        return sorted(posixpath.basename(entry["name"]) for entry in entries if entry["type"] == "file")


class FilesystemFile(RemoteFile):
    """One file of a file system."""

    def __init__(self, place: FilesystemPlace, path: str, size: int, meter: Meter) -> None:
        super().__init__(place.limits, meter)
        self._fs, self._path, self.size = place.fs, path, size

    def read_part(self, first: int, end: int, buffer: bytearray) -> None:
        """See ``RemoteFile.read_part``."""
        try:
            data = self._cat(first, end)
        except (FileNotFoundError, PermissionError) as error:
            raise SourceError(_told(error)) from None
        except (OSError, TimeoutError) as error:
            raise TransientError(_told(error)) from None
        except Exception as error:  # noqa: BLE001 - likewise
            raise SourceError(_told(error)) from None
        self.meter.count_bytes(len(data))
        if len(data) > end - first:
            raise SourceError("it gives more bytes than were asked for")
        buffer += data

    def _cat(self, first: int, end: int) -> bytes:
        from fsspec.asyn import AsyncFileSystem, sync
        from fsspec.spec import AbstractFileSystem

        data: bytes
        if isinstance(self._fs, AsyncFileSystem):
            longest = self.limits.silence_seconds + (end - first) / self.limits.slowest_bytes_per_second
            data = sync(self._fs.loop, self._fs._cat_file, self._path, start=first, end=end, timeout=longest)  # noqa: SLF001 - fsspec's own way
        elif type(self._fs).cat_file is AbstractFileSystem.cat_file:
            # The general way opens a file with a cache, which would read megabytes for each block.
            data = self._fs.cat_file(self._path, start=first, end=end, cache_type="none")
        else:
            data = self._fs.cat_file(self._path, start=first, end=end)
        return data


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {brief(error)}"
