"""Ollama stores as Ollama lays them out (its ``manifest`` and ``types/model`` packages): manifests, blobs, links."""

from __future__ import annotations

import json
import os
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"


def digest_of(data: bytes) -> str:
    return f"sha256:{sha256(data).hexdigest()}"


class OllamaStore:
    """A store below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "blobs").mkdir(parents=True)
        (folder / "manifests").mkdir()

    def blob(self, digest: str) -> Path:
        return self.folder / "blobs" / digest.replace(":", "-")

    def add_blob(self, content: bytes | Path) -> tuple[str, int]:
        """A blob's digest and size."""
        if isinstance(content, Path):
            digest = digest_of(content.read_bytes())
            shutil.copyfile(content, self.blob(digest))
        else:
            digest = digest_of(content)
            self.blob(digest).write_bytes(content)
        return digest, self.blob(digest).stat().st_size

    def add_model(self, name: str, model: bytes | Path, *, linked: bool = False, host: str = "registry.ollama.ai") -> dict[str, Any]:
        """A model with a template and a configuration; ``linked``: as newer versions keep it, its manifest a link to a blob."""
        parts = [("model", model), ("template", b"{{ .Prompt }}")]
        layers = []
        for kind, content in parts:
            digest, size = self.add_blob(content)
            layers.append({"mediaType": f"application/vnd.ollama.image.{kind}", "digest": digest, "size": size})
        digest, size = self.add_blob(json.dumps({"model_format": "gguf"}).encode())
        config = {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": digest, "size": size}
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers}
        self.write_manifest(name, json.dumps(manifest).encode(), linked=linked, host=host)
        return manifest

    def write_manifest(self, name: str, data: bytes, *, linked: bool = False, host: str = "registry.ollama.ai") -> Path:
        """``name`` is MODEL:TAG."""
        model, _, tag = name.partition(":")
        path = self.folder / ("manifests-v2" if linked else "manifests") / host / "library" / model / tag
        path.parent.mkdir(parents=True, exist_ok=True)
        if linked:
            digest, _ = self.add_blob(data)
            path.symlink_to(os.path.relpath(self.blob(digest), path.parent))
        else:
            path.write_bytes(data)
        return path
