"""Ollama's names and manifests: what a model is called, and which blobs it needs.

Source: Ollama's own code (``types/model/name.go``, ``manifest/manifest.go``, ``manifest/paths.go``, ``server/download.go``). A model is
``[HOST/][NAMESPACE/]MODEL[:TAG]``, and its manifest lies at ``manifests/HOST/NAMESPACE/MODEL/TAG``, in newer stores as a link at
``manifests-v2/HOST/NAMESPACE/MODEL/TAG`` to a blob. Blobs are ``blobs/sha256-HEX``. A download that has begun is ``sha256-HEX-partial``
(its length is the blob's from the start) with notes ``sha256-HEX-partial-N`` beside it.
"""

from __future__ import annotations

import json
import re
from typing import Any

from bitward_formats.errors import OciError
from bitward_formats.frozen import dataclass
from bitward_formats.oci import LAYERS_LIMIT, Descriptor, is_digest

MANIFEST_LIMIT_BYTES = 1 << 20
"""Longest manifest that Ollama itself reads."""
DEFAULT_HOST = "registry.ollama.ai"
MANIFEST_FOLDERS = ("manifests-v2", "manifests")
"""Where manifests lie below a store; of a model that has two the first counts."""
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}", re.ASCII)
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}", re.ASCII)
_BLOB = re.compile(r"sha256-([0-9a-fA-F]{64})", re.ASCII)
_PARTIAL = re.compile(r"sha256-([0-9a-fA-F]{64})-partial(-[0-9]+)?", re.ASCII)
_SIZE_LIMIT = 1 << 63


@dataclass(frozen=True, slots=True)
class ModelName:
    """A model's name in full."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def shortest(self) -> str:
        """As ``ollama list`` shows it."""
        front = f"{self.namespace}/" if self.namespace != "library" or self.host != DEFAULT_HOST else ""
        return f"{self.host if self.host != DEFAULT_HOST else ''}{'/' if self.host != DEFAULT_HOST else ''}{front}{self.model}:{self.tag}"

    def is_called(self, other: ModelName) -> bool:
        """Whether both are the same model: Ollama minds no capitals."""
        mine, others = ((one.host, one.namespace, one.model, one.tag) for one in (self, other))
        return [part.lower() for part in mine] == [part.lower() for part in others]


@dataclass(frozen=True, slots=True)
class StoreManifest:
    """The blobs that a manifest names: its layers with what they are, and manifests of its own (a list has some) by digest."""

    blobs: tuple[Descriptor, ...]
    manifests: tuple[str, ...]


def model_name(host: str, namespace: str, model: str, tag: str) -> ModelName | None:
    """A name out of its parts, or None where one of them is no part of a name."""
    fits = _HOST.fullmatch(host) and all(_PART.fullmatch(part) for part in (namespace, model, tag))
    return ModelName(host, namespace, model, tag) if fits and ".." not in host else None


def parse_model(text: str) -> ModelName | None:
    """A name as a user gives it, filled up as Ollama does, or None where it is none."""
    rest = text.partition("://")[2] or text
    front, slash, last = rest.rpartition("/")
    model, colon, tag = last.partition(":")
    host, _, namespace = front.rpartition("/")
    return model_name(host or DEFAULT_HOST, namespace if slash else "library", model, tag if colon else "latest")


def blob_digest(name: str) -> str:
    """The digest in a blob's file name, as OCI writes it; empty where it is none."""
    match = _BLOB.fullmatch(name)
    return f"sha256:{match[1].lower()}" if match else ""


def partial_digest(name: str) -> str:
    """The digest in the name of a begun download or of a note about one; empty where it is none."""
    match = _PARTIAL.fullmatch(name)
    return f"sha256:{match[1].lower()}" if match else ""


def _digest(value: Any, what: str) -> str:
    text = value.replace("sha256-", "sha256:", 1).lower() if isinstance(value, str) else ""
    if not is_digest(text):
        raise OciError(f"{what} names a blob by something that is no SHA-256 digest")
    return text


def _layer(value: Any, what: str) -> Descriptor | None:
    if not isinstance(value, dict):
        raise OciError(f"{what} has a layer that is no object")
    if not value.get("digest"):
        return None  # Ollama passes over a configuration that is not there
    size, media_type = value.get("size"), value.get("mediaType", "")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < _SIZE_LIMIT or not isinstance(media_type, str):
        raise OciError(f"{what} has a layer whose size or mediaType is none")
    return Descriptor(media_type[:255], _digest(value["digest"], what), size, {})


def read_store_manifest(data: bytes, what: str) -> StoreManifest:
    """The blobs that a manifest of a store needs; ``what`` names it in errors.

    Raises:
        OciError: it is none, or a field of it is not what it should be.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise OciError(f"{what} is no JSON: {str(error)[:100]}") from None
    if not isinstance(value, dict):
        raise OciError(f"{what} is no JSON object")
    children = value.get("manifests") or []
    if not isinstance(children, list) or len(children) > LAYERS_LIMIT:
        raise OciError(f"{what} has manifests that are no list, or too many")
    blobs: dict[str, Descriptor] = {}
    manifests: list[str] = []
    for one in (value, *children):
        if not isinstance(one, dict):
            raise OciError(f"{what} has a manifest that is no object")
        if one is not value and one.get("digest"):
            manifests.append(_digest(one["digest"], what))
        layers = one.get("layers") or []
        if not isinstance(layers, list) or len(layers) > LAYERS_LIMIT:
            raise OciError(f"{what} has layers that are no list, or too many")
        for layer in (*layers, *filter(None, [one.get("config")])):
            found = _layer(layer, what)
            if found is not None and blobs.setdefault(found.digest, found).size != found.size:
                raise OciError(f"{what} names the blob {found.digest} with two sizes")
    return StoreManifest(tuple(blobs.values()), tuple(manifests))
