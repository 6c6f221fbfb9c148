"""The sidecars of a manifest's layers in a registry: found among its referrers, fetched, made, and attached.

A sidecar that is found is not believed: the layer's own digest decides whether what it led to is right.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bitward.registries.blob_check import why_foreign
from bitward.registries.blob_reading import Wanted, hash_file
from bitward.registries.oci_client import Repository
from bitward.registries.oci_parts import save_blob
from bitward_agent.errors import BitwardError, UntrustedError
from bitward_agent.findings import Progress, ProgressSink
from bitward_agent.verify import open_sidecar
from bitward_formats.errors import FormatError, OciError
from bitward_formats.frozen import dataclass
from bitward_formats.oci import (
    EMPTY_BLOB,
    IMAGE_MANIFEST,
    SIDECAR_ARTIFACT,
    Descriptor,
    Manifest,
    artifact,
    digest_of_bytes,
    empty_config,
    file_name,
    read_manifest,
    sidecar_descriptor,
    sidecars_by_layer,
)

_ARTIFACTS_LIMIT = 64
"""Most sidecar artefacts of one manifest that are looked into."""
_CANDIDATES_LIMIT = 4
"""Most sidecars of one layer that are tried, the newest: who may push there must not make others fetch without end."""
_SIDECAR_FLOOR_BYTES = 64 << 20
"""A sidecar may be as long as its layer and this; no preset comes near it, and nothing longer is fetched."""


@dataclass(frozen=True, slots=True)
class Sidecars:
    """What refers to a manifest as its sidecars. ``by_layer`` has them by their layer's digest, the newest last."""

    artifacts: tuple[str, ...]
    by_layer: dict[str, tuple[Descriptor, ...]]
    how: str
    notes: tuple[str, ...]


def find_sidecars(repository: Repository, manifest: Manifest) -> Sidecars:
    """The sidecars of a manifest's layers. What cannot be read is told in a note and left out: without them digests still decide."""
    notes: list[str] = []
    used: list[str] = []
    by_layer: dict[str, tuple[Descriptor, ...]] = {}
    sizes = {layer.digest: layer.size for layer in manifest.layers}
    try:
        listed = repository.referrers(manifest.descriptor.digest)
    except (BitwardError, FormatError) as error:
        return Sidecars((), {}, "", (f"its referrers cannot be read: {error}",))
    for one in listed[-_ARTIFACTS_LIMIT:]:
        try:
            data, kind = repository.manifest(one.digest)
            found = sidecars_by_layer(read_manifest(data, kind, f"the sidecar artefact {one.digest[:19]}…"), manifest.descriptor.digest)
        except (BitwardError, FormatError) as error:
            notes.append(f"a sidecar artefact cannot be used: {error}")
            continue
        if found:
            used.append(one.digest)
        for layer, sidecar in found.items():
            if layer in sizes and sidecar.size <= sizes[layer] + _SIDECAR_FLOOR_BYTES:
                by_layer[layer] = (*by_layer.get(layer, ()), sidecar)[-_CANDIDATES_LIMIT:]
    how = {True: "api", False: "tag", None: ""}[repository.has_referrers_api]
    return Sidecars(tuple(used), by_layer, how if used else "", tuple(notes))


def save_sidecar(repository: Repository, candidates: Sequence[Descriptor], layer: Descriptor, path: str) -> str:
    """The newest sidecar of a layer that is whole, else the newest that can still be used: it bears damage of its own. What was wrong.

    Nothing is at ``path`` afterwards if there is none. One that says itself that it is of other contents is passed over: who may push there
    must not keep an older one from healing.
    """
    told, usable = "", f"{path}.usable"
    for descriptor in reversed(candidates):
        shown = f"its sidecar {descriptor.digest[:19]}…"
        try:
            if os.path.lexists(path):
                os.remove(path)
            if descriptor is not candidates[-1]:
                repository.budget.reserve(descriptor.size)  # a second try counts as fetched again
            is_whole = save_blob(repository, descriptor, path) == Wanted(descriptor.hex, descriptor.size)
        except (BitwardError, FormatError) as error:
            told = told or f"{shown} cannot be used: {error}"
            continue
        if wrong := why_foreign(path, Wanted(layer.hex, layer.size)):
            told = told or f"{shown} {wrong.removeprefix('its sidecar ')}"
        elif is_whole:
            return told
        elif not os.path.lexists(usable):
            told = told or f"{shown} is damaged in the registry"
            os.replace(path, usable)
    if os.path.lexists(path):
        os.remove(path)
    if os.path.lexists(usable):
        os.replace(usable, path)
    return told


def attach_sidecars(repository: Repository, manifest: Manifest, made: Sequence[tuple[Descriptor, str]]) -> tuple[str, str]:
    """Upload sidecars, each a layer with the path of its sidecar, and the artefact that binds them to the manifest.

    Returns:
        The artefact's digest, and how it can be found: by the ``api`` or by the ``tag``.

    Raises:
        SourceError, OciError: the registry does not take them.
    """
    layers = []
    for layer, path in made:
        ward, read, _ = open_sidecar(path)
        ward.close()
        word = hash_file(path)
        descriptor = sidecar_descriptor(f"sha256:{word.sha256}", word.size, layer, read.superblock.root.hex())
        repository.put_blob(descriptor, FileBody(path))
        layers.append(descriptor)
    repository.put_blob(empty_config(), EMPTY_BLOB)
    data = artifact(SIDECAR_ARTIFACT, layers, manifest.descriptor)
    own = Descriptor(IMAGE_MANIFEST, digest_of_bytes(data), len(data), {}, SIDECAR_ARTIFACT)
    return own.digest, repository.attach(data, own, manifest.descriptor.digest)


class FileBody:
    """A file's bytes as the body of a request, from the start each time that it is iterated."""

    def __init__(self, path: str, progress: ProgressSink | None = None) -> None:
        self._path, self._progress = path, progress

    def __iter__(self) -> Iterator[bytes]:
        size, done = os.path.getsize(self._path), 0
        with open(self._path, "rb") as file:
            while chunk := file.read(1 << 20):
                done += len(chunk)
                yield chunk
                if self._progress:
                    self._progress(Progress("push", self._path, done, size))


def wanted_manifest(repository: Repository) -> Manifest:
    """The manifest that the user's reference names.

    Raises:
        SourceError, UntrustedError, OciError: it cannot be had, is not what its digest says, or is none.
    """
    reference = repository.reference
    data, kind = repository.manifest(reference.wanted)
    manifest = read_manifest(data, kind, reference.name)
    if manifest.artifact_type == SIDECAR_ARTIFACT:
        raise OciError(f"{reference.name}: is itself a sidecar artefact, of {manifest.subject.digest if manifest.subject else 'nothing'}")
    return manifest


def scratch_name(layer: Descriptor) -> str:
    """A file name for a layer's copy that tells the readers of checkpoints what it is; a title that is no path tells nothing."""
    try:
        return os.path.basename(file_name(layer, ""))
    except OciError:
        return f"sha256-{layer.hex}"


def unique(layers: Sequence[Descriptor]) -> list[Descriptor]:
    """Each blob once, whatever the number of names that it has."""
    found: dict[str, Descriptor] = {}
    for layer in layers:
        if found.setdefault(layer.digest, layer).size != layer.size:
            raise UntrustedError(f"the blob {layer.digest} has two sizes by the same manifest: {found[layer.digest].size} and {layer.size}")
    return list(found.values())


@contextmanager
def scratch_folder(beside: str | None = None) -> Iterator[str]:
    """A folder for blobs on their way, gone afterwards; its path is a real one."""
    with tempfile.TemporaryDirectory(prefix=".bitward-", dir=beside) as folder:
        yield str(Path(folder).resolve())
