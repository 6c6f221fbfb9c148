"""The artefacts of one model version as a tree of files, in whatever store they lie.

MLflow's own artefact repositories list, fetch and put; nothing here knows a store's protocol, but for reading by ranges, which MLflow does
not offer: those go to the same address through the sources that ``bitward repair --from`` uses. What a server lists is hostile: names and
numbers are bounded before they are used, and no name of it becomes a path on this machine unchecked.
"""

from __future__ import annotations

import logging
import os
import posixpath
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, cast
from urllib.parse import quote, urlsplit, urlunsplit

from bitward_agent.errors import BitwardError, InputError, SourceError, UnreadableError, WriteError
from bitward_agent.sources import Place, Source
from bitward_agent.sources.addresses import WebAddress, brief, scheme_of, without_secrets
from bitward_agent.sources.copies import CopySource
from bitward_agent.sources.limits import Budget, Limits, Meter
from bitward_formats.errors import FormatError, MissingExtraError

_log = logging.getLogger("bitward.mlflow")

FILES_LIMIT = 100_000
"""Most artefacts of one model version; the largest sharded models have a few hundred."""
DEPTH_LIMIT = 64
"""Deepest folder of a model version."""
_PACE = Limits()
"""A server that trickles is as good as silent; how long one may be silent is MLflow's own setting."""
_PIECE_BYTES = 1 << 20
_ROOM_SHARE = 0.9
"""How much of the free space an artefact may take whose size nobody tells."""
PREFIX = "bitward+"
"""What the plug-in's schemes begin with; behind it is the scheme of the store."""


class RegistryError(BitwardError):
    """The registry or its artefact store does not answer, or not as MLflow does. The message holds no credentials."""


class SizeError(RegistryError):
    """An artefact does not fit onto the disk, or is larger than its store says. Asking again does not help."""


def need_mlflow() -> Any:
    """The package ``mlflow``.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import mlflow
    except ImportError:
        raise MissingExtraError("MLflow registries need the extra 'mlflow': pip install 'bitward[mlflow]'") from None
    return mlflow


def told(error: BaseException) -> str:
    """What one of MLflow's exceptions says, in one line without credentials."""
    return f"{type(error).__name__}: {brief(error)}"


def no_room(what: str, wanted_bytes: int, place: str, free_bytes: int) -> str:
    """The message of a SizeError before anything is fetched."""
    return f"{what}: {wanted_bytes:,} bytes do not fit into {place} ({free_bytes:,} are free); set TMPDIR to a larger place"


def is_plain_path(path: str) -> bool:
    """Whether a listed path stays below the model, is one that this machine can have, and is no trick."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:  # JSON can say half of a surrogate pair
        return False
    parts = path.split("/")
    return len(path) <= 4096 and len(parts) <= DEPTH_LIMIT and "\0" not in path and not any(part in ("", ".", "..") for part in parts)


class ArtifactTree:
    """One model version's artefacts. Paths are relative to the model, with ``/``."""

    def __init__(self, uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        """``uri`` is of any scheme that MLflow knows; behind the plug-in's prefix the store itself is meant.

        Raises:
            RegistryError: MLflow knows no store for it.
        """
        need_mlflow()
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        uri = uri[len(PREFIX) :] if uri.lower().startswith(PREFIX) else uri
        self.uri = uri
        self.name = without_secrets(uri)
        self._listed_bytes: dict[str, int | None] = {}
        try:
            self.repository = _innermost(get_artifact_repository(uri, tracking_uri, registry_uri))
        except Exception as error:  # noqa: BLE001 - plug-ins raise what they like
            raise RegistryError(f"{self.name}: no artefact store for it: {told(error)}") from None

    @property
    def folder(self) -> str | None:
        """The folder on this machine, if the artefacts lie in one."""
        if scheme_of(self.uri) not in ("", "file"):
            return None
        path = getattr(self.repository, "artifact_dir", None)
        return os.path.realpath(path) if isinstance(path, str) else None

    def files(self) -> dict[str, int | None]:
        """Every artefact with its size in bytes, where the store tells it.

        Raises:
            RegistryError: the store cannot be listed, or lists what cannot be.
        """
        found: dict[str, int | None] = {}
        for path, size in self._walk(""):
            if path in found:
                raise RegistryError(f"{self.name}: the store lists an artefact twice: {path[:200]!r}")
            found[path] = size
        return dict(sorted(found.items(), key=lambda one: one[0]))

    def _walk(self, top: str) -> Iterator[tuple[str, int | None]]:
        waiting, count = [top], 0
        while waiting:
            folder = waiting.pop()
            for path, is_folder, size in self.listing(folder):
                count += 1
                if count > FILES_LIMIT:
                    raise RegistryError(f"{self.name}: holds more than {FILES_LIMIT:,} artefacts")
                if not is_folder:
                    yield path, size
                elif path != folder:
                    waiting.append(path)

    def listing(self, folder: str) -> list[tuple[str, bool, int | None]]:
        """What lies directly in a folder: (path, whether it is a folder, bytes).

        Raises:
            RegistryError: as above.
        """
        try:
            entries = list(self.repository.list_artifacts(folder or None))
        except Exception as error:  # noqa: BLE001 - likewise
            raise RegistryError(f"{self.name}: cannot be listed: {told(error)}") from None
        found = []
        for entry in entries:
            path = str(entry.path).rstrip("/")
            if not is_plain_path(path) or posixpath.dirname(path) != folder:
                raise RegistryError(f"{self.name}: the store lists an artefact outside of its folder, or what is none: {path[:200]!r}")
            size = entry.file_size
            found.append((path, bool(entry.is_dir), size if isinstance(size, int) and size >= 0 else None))
        self._listed_bytes.update((path, size) for path, is_folder, size in found if not is_folder)
        return found

    def forget_sizes(self) -> None:
        """What was listed is long ago: others may have stored something else since."""
        self._listed_bytes.clear()

    def fetch(self, path: str, target: str) -> None:
        """Write an artefact to the file ``target``: no more bytes than the store lists of it, and only where there is room for them.

        What a tracking server sends is stopped at the first byte beyond. The clients of other stores write files by themselves: there what
        is too large is found, and removed, when it has come.

        Raises:
            SizeError: it is larger, or does not fit; nothing of it is left.
            RegistryError: it cannot be had; what came is in ``target``, or nothing.
        """
        place = os.path.dirname(os.path.abspath(target))
        free = shutil.disk_usage(place).free
        limit = self._listed_bytes.get(path)
        if limit is None:
            limit = int(free * _ROOM_SHARE)
        elif limit > free:
            raise SizeError(no_room(f"{self.name}/{path}", limit, place, free))
        try:
            if _is_streamed(self.repository):
                self._stream(path, target, limit)
            else:
                self.repository._download_file(path, target)  # noqa: SLF001 - the method that MLflow's plug-ins must give
            if os.path.getsize(target) > limit:
                raise _TooLargeError
        except _TooLargeError:
            with suppress(FileNotFoundError):
                os.unlink(target)
            raise SizeError(f"{self.name}/{path}: the store sends more than the {limit:,} bytes that it lists or that fit here") from None
        except Exception as error:  # noqa: BLE001 - likewise
            raise RegistryError(f"{self.name}/{path}: cannot be fetched: {told(error)}") from None

    def _stream(self, path: str, target: str, limit_bytes: int) -> None:
        """As ``HttpArtifactRepository._download_file``, with a limit. Raises what MLflow and its libraries do, and _TooLargeError."""
        from mlflow.utils.rest_utils import augmented_raise_for_status, http_request

        started, done = time.monotonic(), 0
        creds = self.repository._host_creds  # noqa: SLF001 - what this class of MLflow's asks with
        with closing(http_request(creds, posixpath.join("/", path), "GET", stream=True)) as answer, open(target, "wb") as file:
            augmented_raise_for_status(answer)
            # read1 gives what is there; without it (urllib3 before 2.1) pieces come whole, however slowly.
            pieces = answer.iter_content(_PIECE_BYTES)
            if hasattr(answer.raw, "read1"):
                pieces = iter(lambda: answer.raw.read1(_PIECE_BYTES, decode_content=True), b"")
            for piece in pieces:
                done += len(piece)
                if done > limit_bytes:
                    raise _TooLargeError
                file.write(piece)
                if time.monotonic() - started > _PACE.silence_seconds + done / _PACE.slowest_bytes_per_second:
                    raise TimeoutError(f"less than {_PACE.slowest_bytes_per_second} bytes a second come")

    def put(self, local: str, path: str) -> None:
        """Store a file as the artefact ``path``, whose name it must have already. Stores replace an artefact as a whole.

        Raises:
            WriteError: the store does not take it.
        """
        assert os.path.basename(local) == posixpath.basename(path)
        try:
            self.repository.log_artifact(local, posixpath.dirname(path) or None)
        except Exception as error:  # noqa: BLE001 - likewise
            raise WriteError(f"{self.name}/{path}: the store does not take it: {told(error)}") from None
        finally:
            self._listed_bytes.pop(path, None)

    def place(self, limits: Limits, budget: Budget) -> Place:
        """The tree as a place of good bytes that are read by ranges.

        Raises:
            InputError, MissingExtraError, SourceError: there is no such way to its store.
        """
        address = getattr(self.repository, "artifact_uri", self.uri)
        match scheme_of(address):
            case "http" | "https":
                return _web_place(address, limits, budget)
            case "" | "file":
                from bitward_agent.sources.local import LocalPlace

                return LocalPlace(self.folder or "", os.devnull)
            case _:
                from bitward_agent.sources.filesystem import FilesystemPlace

                return FilesystemPlace(address, limits, budget)

    @contextmanager
    def sources(self, path: str, limits: Limits) -> Iterator[tuple[Source, ...]]:
        """One artefact as a source of blocks, read by ranges; nothing where there is no way to do that."""
        try:
            place = self.place(limits, Budget(limits.max_fetch_bytes))
        except (InputError, SourceError, UnreadableError, FormatError) as error:
            _log.info("%s: no ranges of it can be read: %s", self.name, error)
            yield ()
            return
        source = CopySource(place, [path], posixpath.basename(path), Meter())
        try:
            yield (source,)
        finally:
            source.close()
            place.close()


class _TooLargeError(Exception):
    """More came than may come."""


def _is_streamed(repository: Any) -> bool:
    """Whether MLflow would fetch from a tracking server in one answer, rather than by parts from the store behind it or otherwise."""
    from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

    if type(repository) is MlflowArtifactsRepository:
        by_parts = getattr(repository, "_is_multipart_download_enabled", None)
        return by_parts is None or not by_parts()
    return type(repository) is HttpArtifactRepository


def _innermost(repository: Any) -> Any:
    """The store behind repositories that only look another one up (``models:``, ``runs:``)."""
    for _ in range(4):
        inner = getattr(repository, "repo", None)
        if inner is None:
            break
        repository = inner
    return repository


def origin_of(address: str) -> tuple[str, str, int | None]:
    """Scheme, host and port; the port of the scheme where none is named."""
    parts = urlsplit(address)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _web_place(address: str, limits: Limits, budget: Budget) -> Place:
    """A tracking server's artefacts, with the credentials that MLflow itself would send (``MLFLOW_TRACKING_USERNAME`` …).

    They go to the tracking server alone: where a version's artefacts lie says whoever registered it.
    """
    from mlflow.tracking import get_tracking_uri
    from mlflow.utils.credentials import get_default_host_creds

    from bitward_agent.sources.http import HttpPlace

    parts = urlsplit(address)
    if origin_of(address) != origin_of(get_tracking_uri()):
        return cast(Place, HttpPlace(WebAddress(address), limits, budget))
    creds = get_default_host_creds(address)
    netloc, token = parts.netloc, ""
    if creds.token:
        token = creds.token
    elif creds.username and "@" not in netloc:
        netloc = f"{quote(creds.username, safe='')}:{quote(creds.password or '', safe='')}@{netloc}"
    return cast(Place, HttpPlace(WebAddress(urlunsplit(parts._replace(netloc=netloc))), limits, budget, token=token))
