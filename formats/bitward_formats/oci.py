"""Manifests, indexes and descriptors of OCI registries: hostile JSON to frozen values, and the manifest of a sidecar artefact.

Sources: the OCI image specification 1.1 (descriptor, manifest, image index, image layout, annotations, the guidance for the empty
descriptor) and the OCI distribution specification 1.1 (referrers, the referrers tag schema). Docker's image manifests, version 2 schema 2,
have the same fields, and so have Ollama's.

Only SHA-256 digests are known: a descriptor with another one is refused by name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bitward_formats.errors import OciError
from bitward_formats.frozen import dataclass

MANIFEST_LIMIT_BYTES = 4 << 20
"""Longest manifest or index that is read: what the distribution specification asks registries to take."""
LAYERS_LIMIT = 8192
"""Most descriptors of one manifest or index."""
NAME_LIMIT_BYTES = 4096
TITLE_PART_LIMIT_BYTES = 240
"""Longest file name that a title may ask for: file systems allow 255, and a sidecar's name and its journal's are longer."""

IMAGE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
IMAGE_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST_TYPES = (IMAGE_MANIFEST, DOCKER_MANIFEST)
INDEX_TYPES = (IMAGE_INDEX, DOCKER_LIST)
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY_BLOB = b"{}"
SIDECAR_ARTIFACT = "application/vnd.bitward.sidecar.v1"
"""``artifactType`` of the manifest that brings the sidecars of another one's layers."""
SIDECAR_LAYER = "application/vnd.bitward.sidecar.layer.v1"
MODEL_ARTIFACT = "application/vnd.bitward.model.v1"
"""``artifactType`` of what ``bitward oci push`` makes, unless it is told another."""
TITLE = "org.opencontainers.image.title"
FILE_PATH = "org.cncf.model.filepath"
"""How ModelPack names the file of a raw layer, or what is inside an archive."""
OF_LAYER = "dev.bitward.layer.digest"
"""Annotation of a sidecar: the digest of the layer that it protects."""

_ENDINGS = ((".tar", ".tar"), (".tar+gzip", ".tar.gz"), (".tar.gzip", ".tar.gz"), (".tar+zstd", ".tar.zst"), ("+json", ".json"))
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_SIZE_LIMIT = 1 << 63
_ANNOTATIONS_LIMIT = 1024
_TEXT_LIMIT_CHARACTERS = 65_536


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a manifest says of a blob or of another manifest. ``size`` in bytes; ``digest`` is ``sha256:`` and 64 digits."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str]
    artifact_type: str = ""

    @property
    def title(self) -> str:
        """The file name that its maker gave it; empty for none."""
        own = self.annotations.get(TITLE, "")
        return own or (self.annotations.get(FILE_PATH, "") if self.media_type.endswith(".raw") else "")

    @property
    def name(self) -> str:
        """The title, else the digest and an ending that tells an archive by its media type."""
        return self.title or f"sha256-{self.hex}" + next((end for kind, end in _ENDINGS if self.media_type.endswith(kind)), "")

    @property
    def hex(self) -> str:
        return self.digest[7:]

    def fields(self) -> dict[str, Any]:
        """As JSON has it."""
        said: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.annotations:
            said["annotations"] = dict(self.annotations)
        if self.artifact_type:
            said["artifactType"] = self.artifact_type
        return said


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image manifest, which is also how models and sidecars are stored. ``descriptor`` is its own."""

    descriptor: Descriptor
    artifact_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    subject: Descriptor | None
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Index:
    """An image index: descriptors of manifests, or of what refers to one."""

    descriptor: Descriptor
    manifests: tuple[Descriptor, ...]


def is_digest(text: str) -> bool:
    """Whether a text is a SHA-256 digest as OCI writes it."""
    return _DIGEST.fullmatch(text) is not None


def digest_of_bytes(data: bytes) -> str:
    """The digest of some bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def referrers_tag(digest: str) -> str:
    """The tag of the index that lists what refers to a manifest, where the registry has no referrers API (referrers tag schema)."""
    algorithm, _, encoded = digest.partition(":")
    return f"{algorithm[:32]}-{encoded[:64]}"


def _json(data: bytes, what: str) -> dict[str, Any]:
    if len(data) > MANIFEST_LIMIT_BYTES:
        raise OciError(f"{what}: longer than {MANIFEST_LIMIT_BYTES >> 20} MiB")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise OciError(f"{what}: no JSON: {str(error)[:100]}") from None
    if not isinstance(value, dict):
        raise OciError(f"{what}: no JSON object")
    return value


def _text(value: Any, what: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > _TEXT_LIMIT_CHARACTERS:
        raise OciError(f"{what} is no text, or too long")
    return value


def _annotations(value: Any, what: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > _ANNOTATIONS_LIMIT:
        raise OciError(f"{what}: its annotations are no object, or more than {_ANNOTATIONS_LIMIT}")
    return {key: _text(text, f"{what}: an annotation") for key, text in value.items()}


def read_descriptor(value: Any, what: str) -> Descriptor:
    """A descriptor out of parsed JSON; ``what`` names it in errors.

    Raises:
        OciError: a field is missing, of another kind, or out of bounds.
    """
    if not isinstance(value, dict):
        raise OciError(f"{what} is no descriptor")
    digest, size = value.get("digest"), value.get("size")
    if not isinstance(digest, str) or not is_digest(digest):
        raise OciError(f"{what} has no SHA-256 digest, the only kind that is known here")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < _SIZE_LIMIT:
        raise OciError(f"{what} has no size that is a number of bytes")
    artifact_type = _text(value.get("artifactType"), f"{what}: its artifactType")
    media_type = _text(value.get("mediaType"), f"{what}: its mediaType")
    return Descriptor(media_type, digest, size, _annotations(value.get("annotations"), what), artifact_type)


def _descriptors(value: Any, what: str) -> tuple[Descriptor, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > LAYERS_LIMIT:
        raise OciError(f"{what} are no list, or more than {LAYERS_LIMIT}")
    return tuple(read_descriptor(one, f"{what}, number {number}") for number, one in enumerate(value, 1))


def _schema(value: dict[str, Any], what: str) -> str:
    """The media type that a document gives itself. Raises OciError for another schema than 2."""
    if value.get("schemaVersion") != 2:
        raise OciError(f"{what}: schemaVersion is not 2: an older or newer kind of manifest")
    return _text(value.get("mediaType"), f"{what}: its mediaType").partition(";")[0].strip()


def read_document(data: bytes, media_type: str, what: str) -> Manifest | Index:
    """A manifest or an index. ``media_type`` is what the server says it is, empty if it says nothing; ``what`` names it in errors.

    Raises:
        OciError: it is neither, or a field is not as the specification has it.
    """
    value = _json(data, what)
    own = _schema(value, what)
    said = media_type.partition(";")[0].strip()
    if own and said and own != said and said.endswith("+json"):
        raise OciError(f"{what}: the server says {said[:100]!r}, it says {own[:100]!r} of itself")
    kind = own or said
    if not own and kind not in (*MANIFEST_TYPES, *INDEX_TYPES):
        kind = IMAGE_INDEX if "manifests" in value else IMAGE_MANIFEST
    descriptor = Descriptor(kind, digest_of_bytes(data), len(data), {})
    if kind in INDEX_TYPES:
        return Index(descriptor, _descriptors(value.get("manifests"), f"{what}: its manifests"))
    if kind not in MANIFEST_TYPES:
        raise OciError(f"{what}: a document of the type {kind[:100]!r}, which is not known here")
    subject = value.get("subject")
    return Manifest(
        descriptor,
        _text(value.get("artifactType"), f"{what}: its artifactType"),
        read_descriptor(value.get("config"), f"{what}: its config"),
        _descriptors(value.get("layers"), f"{what}: its layers"),
        None if subject is None else read_descriptor(subject, f"{what}: its subject"),
        _annotations(value.get("annotations"), what),
    )


def read_manifest(data: bytes, media_type: str, what: str) -> Manifest:
    """As :func:`read_document`, for what must be a manifest. Raises OciError."""
    found = read_document(data, media_type, what)
    if isinstance(found, Index):
        listed = ", ".join(one.digest for one in found.manifests[:4])
        raise OciError(f"{what}: an index of {len(found.manifests)} manifests: name one of them by its digest ({listed or 'it is empty'})")
    return found


def read_index(data: bytes, media_type: str, what: str) -> Index:
    """As :func:`read_document`, for what must be an index. Raises OciError."""
    found = read_document(data, media_type, what)
    if isinstance(found, Manifest):
        raise OciError(f"{what}: a manifest where an index was expected")
    return found


def file_name(layer: Descriptor, what: str) -> str:
    """Where below a folder a layer's bytes belong: its title, or its digest if it has none.

    Raises:
        OciError: the title leads elsewhere, or is no name of a file.
    """
    title = layer.title
    if not title:
        return layer.name
    parts = title.split("/")
    wrong = any(part in ("", ".", "..") or len(part.encode("utf-8", "replace")) > TITLE_PART_LIMIT_BYTES for part in parts)
    unprintable = any(ord(one) < 32 or 0x7F <= ord(one) < 0xA0 or 0xD800 <= ord(one) < 0xE000 for one in title)
    if wrong or unprintable or "\\" in title or len(title.encode("utf-8", "replace")) > NAME_LIMIT_BYTES:
        raise OciError(f"{what}: the layer {layer.digest[:19]}… has the title {title[:100]!r}, which is no path of a file below a folder")
    return title


def file_names(layers: Sequence[Descriptor], what: str) -> list[str]:
    """The name of each layer, no two of which may be in each other's way. Raises OciError."""
    names = [file_name(layer, what) for layer in layers]
    seen: dict[str, str] = {}
    folders = {"/".join(name.split("/")[:depth]) for name in names for depth in range(1, name.count("/") + 1)}
    for name, layer in zip(names, layers, strict=True):
        if name in folders or seen.setdefault(name, layer.digest) != layer.digest:
            raise OciError(f"{what}: two layers want the name {name[:100]!r}")
    return names


def to_json(value: Mapping[str, Any]) -> bytes:
    """A document as it is stored; the same value always gives the same bytes, and so the same digest."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def empty_config() -> Descriptor:
    """The descriptor of no configuration (guidance for an empty descriptor)."""
    return Descriptor(EMPTY_TYPE, digest_of_bytes(EMPTY_BLOB), len(EMPTY_BLOB), {})


def artifact(artifact_type: str, layers: Sequence[Descriptor], subject: Descriptor | None = None) -> bytes:
    """An image manifest that holds files, and perhaps refers to another manifest."""
    value: dict[str, Any] = {"schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "artifactType": artifact_type}
    value |= {"config": empty_config().fields(), "layers": [layer.fields() for layer in layers]}
    if subject is not None:
        value["subject"] = Descriptor(subject.media_type, subject.digest, subject.size, {}).fields()
    return to_json(value)


def sidecar_descriptor(digest: str, size: int, layer: Descriptor, root_hex: str) -> Descriptor:
    """The descriptor of a sidecar of a layer."""
    annotations = {TITLE: f"{layer.name}.ward", OF_LAYER: layer.digest, "dev.bitward.root": root_hex}
    return Descriptor(SIDECAR_LAYER, digest, size, annotations)


def sidecars_by_layer(manifest: Manifest, subject_digest: str) -> dict[str, Descriptor]:
    """Of a sidecar artefact: which sidecar each layer of its subject has, by the layer's digest; empty if it is of something else."""
    if manifest.artifact_type != SIDECAR_ARTIFACT or manifest.subject is None or manifest.subject.digest != subject_digest:
        return {}
    return {one.annotations[OF_LAYER]: one for one in manifest.layers if is_digest(one.annotations.get(OF_LAYER, ""))}


def with_referrer(index: Index | None, referrer: Descriptor) -> bytes | None:
    """An index (of a referrers tag, of a layout) with one more referrer; ``None`` if it has it already."""
    known = index.manifests if index else ()
    if any(one.digest == referrer.digest for one in known):
        return None
    listed = [one.fields() for one in (*known, referrer)]
    return to_json({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": listed})
