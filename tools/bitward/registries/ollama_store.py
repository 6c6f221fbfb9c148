"""What is in an Ollama store: models by their manifests, the blobs that they need, and what lies beside them. Reads only.

The layout is described in ``bitward_formats.ollama``. Nothing in a store is believed: links are followed only from a manifest's place to a
blob of the same store, and a manifest that is one must have the digest that its blob is named by.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import field

from bitward_agent.errors import BitwardError, InputError, UnreadableError, UntrustedError
from bitward_agent.io import OpenFile, reason, resolve
from bitward_formats.errors import FormatError
from bitward_formats.frozen import dataclass
from bitward_formats.oci import Descriptor, digest_of_bytes
from bitward_formats.ollama import (
    MANIFEST_FOLDERS,
    MANIFEST_LIMIT_BYTES,
    ModelName,
    blob_digest,
    model_name,
    parse_model,
    partial_digest,
    read_store_manifest,
)

_MODELS_LIMIT = 65_536
"""Most manifests of one store that are read."""
_SERVICE_STORE = "/usr/share/ollama/.ollama/models"
"""Where Ollama's own installer for Linux lets its service keep models."""
MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"


@dataclass(frozen=True, slots=True)
class StoreBlob:
    """A blob that models need; ``size`` in bytes."""

    descriptor: Descriptor
    users: tuple[ModelName, ...]


@dataclass(frozen=True, slots=True)
class Store:
    """A store as its manifests tell of it.

    ``unread`` are manifests that cannot be used, with the reason. ``orphans`` are blobs that no manifest names, with their size, and
    ``leftovers`` other files among the blobs, most of them begun downloads.
    """

    folder: str
    blobs: tuple[StoreBlob, ...]
    unread: tuple[tuple[str, str], ...] = ()
    orphans: tuple[Descriptor, ...] = ()
    leftovers: tuple[str, ...] = ()

    def path_of(self, digest: str) -> str:
        """Where a blob lies, or belongs."""
        return os.path.join(self.folder, "blobs", digest.replace(":", "-", 1))

    def partial_of(self, digest: str) -> str:
        """The begun download of a blob, empty if there is none."""
        path = f"{self.path_of(digest)}-partial"
        return path if os.path.basename(path) in self.leftovers else ""


def store_folder(given: str | None) -> str:
    """The store that is meant: the given one, ``OLLAMA_MODELS``, the user's, or that of the service.

    Raises:
        InputError: there is none.
    """
    own = os.path.expanduser("~/.ollama/models")
    named = given or os.environ.get("OLLAMA_MODELS") or (own if os.path.isdir(own) or not os.path.isdir(_SERVICE_STORE) else _SERVICE_STORE)
    folder = resolve(named)
    if not os.path.isdir(os.path.join(folder, "blobs")):
        raise InputError(f"{named}: no Ollama store: there is no folder 'blobs' in it; --store or OLLAMA_MODELS names another")
    return folder


@dataclass(slots=True)
class _Gathering:
    blobs: dict[str, Descriptor] = field(default_factory=dict)
    users: dict[str, list[ModelName]] = field(default_factory=dict)
    unread: list[tuple[str, str]] = field(default_factory=list)

    def add(self, blob: Descriptor, user: ModelName) -> None:
        known = self.blobs.setdefault(blob.digest, blob)
        if known.size != blob.size:
            told = f"says that {blob.digest} has {blob.size} bytes; by {self.users[blob.digest][0].shortest} it has {known.size}"
            self.unread.append((user.shortest, told))
        users = self.users.setdefault(blob.digest, [])
        if user not in users:
            users.append(user)


def read_store(folder: str, models: Sequence[str] = ()) -> Store:
    """What the manifests of a store need; with ``models`` only of these.

    Raises:
        InputError: a model is not in the store, or is no name.
        UnreadableError: a folder of the store cannot be looked into.
        UntrustedError: there are more manifests than are read.
    """
    wanted = [(text, parse_model(text)) for text in models]
    for text, name in wanted:
        if name is None:
            raise InputError(f"{text!r}: no name of a model")
    found = dict(_manifests(folder))
    for text, name in wanted:
        if name is not None and not any(name.is_called(one) for one in found):
            raise InputError(f"{text!r}: no such model in {folder}")
    gathering = _Gathering()
    for name, path in found.items():
        if wanted and not any(one is not None and one.is_called(name) for _, one in wanted):
            continue
        try:
            _gather(folder, name, path, gathering)
        except (BitwardError, FormatError) as error:
            gathering.unread.append((name.shortest, str(error)))
    blobs = tuple(StoreBlob(blob, tuple(gathering.users[digest])) for digest, blob in gathering.blobs.items())
    orphans, leftovers = _others(folder, gathering.blobs, with_orphans=not wanted and not gathering.unread)
    return Store(folder, blobs, tuple(gathering.unread), orphans, leftovers)


def _names_in(folder: str) -> list[str]:
    """What lies in a folder; nothing where there is none, or a file in its place.

    Raises:
        UnreadableError: it cannot be looked into, so what lies there is not known.
    """
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UnreadableError(f"{folder}: cannot be listed: {reason(error)}") from error


def _manifests(folder: str) -> Iterator[tuple[ModelName, str]]:
    """Each model with the path of its manifest."""
    seen: set[tuple[str, ...]] = set()
    for top in MANIFEST_FOLDERS:
        base = os.path.join(folder, top)
        for host in _names_in(base):
            for namespace in _names_in(os.path.join(base, host)):
                for model in _names_in(os.path.join(base, host, namespace)):
                    for tag in _names_in(os.path.join(base, host, namespace, model)):
                        name = model_name(host, namespace, model, tag)
                        key = tuple(part.lower() for part in (host, namespace, model, tag))
                        if name is not None and key not in seen:
                            seen.add(key)
                            if len(seen) > _MODELS_LIMIT:
                                raise UntrustedError(f"{folder}: holds more than {_MODELS_LIMIT:,} manifests")
                            yield name, os.path.join(base, host, namespace, model, tag)


def _gather(folder: str, name: ModelName, path: str, gathering: _Gathering) -> None:
    """Take in the blobs of a model, and its manifests that are blobs. Raises BitwardError, OciError."""
    data, own = _read_manifest(folder, path)
    if own is not None:
        gathering.add(own, name)
    manifest = read_store_manifest(data, f"the manifest of {name.shortest}")
    for blob in manifest.blobs:
        gathering.add(blob, name)
    for digest in manifest.manifests:
        blob_path = os.path.join(folder, "blobs", digest.replace(":", "-", 1))
        child, blob = _read_blob_manifest(blob_path, digest)
        gathering.add(blob, name)
        for one in read_store_manifest(child, f"the manifest {digest[:19]}… of {name.shortest}").blobs:
            gathering.add(one, name)


def _read_manifest(folder: str, path: str) -> tuple[bytes, Descriptor | None]:
    """A manifest's bytes, and its own blob if it is one. Raises BitwardError."""
    if not os.path.islink(path):
        return _small(path), None
    blob = os.path.realpath(path)
    digest = blob_digest(os.path.basename(blob))
    if not digest or os.path.dirname(blob) != os.path.join(folder, "blobs"):
        raise UntrustedError(f"{path}: is a link that leads to no blob of this store")
    return _read_blob_manifest(blob, digest)


def _read_blob_manifest(path: str, digest: str) -> tuple[bytes, Descriptor]:
    data = _small(path)
    if digest_of_bytes(data) != digest:
        raise UntrustedError(f"{path}: a manifest that is damaged: it is not what its name says")
    return data, Descriptor(MANIFEST_TYPE, digest, len(data), {})


def _small(path: str) -> bytes:
    with OpenFile(path) as file:
        size = file.state().size
        if size > MANIFEST_LIMIT_BYTES:
            raise UntrustedError(f"{path}: {size} bytes: too long for a manifest")
        return file.read(0, size)


def _others(folder: str, known: dict[str, Descriptor], *, with_orphans: bool) -> tuple[tuple[Descriptor, ...], tuple[str, ...]]:
    """Blobs that no manifest names, and other files among the blobs."""
    orphans, leftovers = [], []
    for name in _names_in(os.path.join(folder, "blobs")):
        digest = blob_digest(name)
        if not digest and os.path.isdir(os.path.join(folder, "blobs", name)):
            continue  # newer versions keep links to split models in one
        if not digest:
            leftovers.append(name)
        elif digest not in known and with_orphans:
            try:
                size = os.lstat(os.path.join(folder, "blobs", name)).st_size
            except OSError:
                continue
            orphans.append(Descriptor("", digest, size, {}))
    return tuple(orphans), tuple(sorted(leftovers, key=lambda name: (not partial_digest(name), name)))
