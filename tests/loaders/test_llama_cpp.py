"""The hook under llama-cpp-python, with a stand-in for it: there is no wheel of it, and its build takes longer than all tests together.

The stand-in has the documented interface of ``llama_cpp.Llama`` and does what llama.cpp does with the paths that it gets: it opens and maps
them, and the other parts of a split model beside them.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import bitward
from bitward.loaders.hooks.llama_cpp_hook import parts_of
from loaders.loading import flip

STAND_IN = """
import mmap, os

class Llama:
    def __init__(self, model_path, *, n_gpu_layers=0, lora_path=None, verbose=True, **kwargs):
        self.model_path = model_path
        folder, name = os.path.split(model_path)
        parts = [model_path]
        if "-of-" in name:
            prefix, count = name[:-20], int(name[-10:-5])
            parts = [os.path.join(folder, f"{prefix}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
        self.maps = []
        for part in parts + ([lora_path] if lora_path else []):
            with open(part, "rb") as file:
                self.maps.append(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED))
"""


@pytest.fixture
def llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package of that name that can be imported."""
    package = tmp_path / "site" / "llama_cpp"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from .llama import Llama\n")
    (package / "llama.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(package.parent)
    yield
    for name in ("llama_cpp", "llama_cpp.llama"):
        sys.modules.pop(name, None)


def protected(path: Path, seed: int) -> Path:
    path.write_bytes(b"GGUF" + np.random.default_rng(seed).bytes(300_000))
    assert bitward.protect(path).exit_code == 0
    return path


def contents(maps: list[mmap.mmap]) -> list[bytes]:
    return [bytes(one) for one in maps]


@pytest.mark.usefixtures("llama_cpp")
def test_a_model_and_its_adapter(tmp_path: Path) -> None:
    model, lora = protected(tmp_path / "m.gguf", 1), protected(tmp_path / "l.gguf", 2)
    right = [model.read_bytes(), lora.read_bytes()]
    with bitward.enforce():
        from llama_cpp import Llama  # type: ignore[import-not-found]

        loaded = Llama(str(model), lora_path=str(lora), verbose=False)
    assert loaded.model_path == str(model)
    flip(model, 1000)
    assert contents(loaded.maps) == right
    flip(model, 1000)
    flip(lora, 1000)
    with bitward.enforce(), pytest.raises(bitward.DamagedModelError, match=r"l\.gguf"):
        Llama(str(model), lora_path=str(lora))
    with bitward.enforce("warn"), pytest.warns(bitward.ModelWarning, match=r"l\.gguf"):
        assert contents(Llama(str(model), lora_path=str(lora)).maps) != right
    with bitward.enforce("heal"), pytest.warns(bitward.ModelWarning, match="put back from parity"):
        assert contents(Llama(str(model), lora_path=str(lora)).maps) == right
    assert lora.read_bytes() == right[1]
    assert contents(Llama(str(model)).maps) == right[:1]


@pytest.mark.usefixtures("llama_cpp")
def test_all_parts_of_a_split_model(tmp_path: Path) -> None:
    parts = [protected(tmp_path / f"m-{number:05d}-of-00003.gguf", number) for number in (1, 2, 3)]
    right = [part.read_bytes() for part in parts]
    with bitward.enforce():
        from llama_cpp import Llama

        assert contents(Llama(str(parts[0])).maps) == right
        flip(parts[2], 77_777)
        with pytest.raises(bitward.DamagedModelError, match="00003-of-00003"):
            Llama(str(parts[0]))
        flip(parts[2], 77_777)
        Path(f"{parts[1]}.ward").unlink()
        with pytest.raises(bitward.UnverifiableModelError, match="00002-of-00003"):
            Llama(str(parts[0]))
    with bitward.enforce("warn"), pytest.warns(bitward.ModelWarning, match="no sidecar"):
        assert contents(Llama(str(parts[0])).maps) == right


@pytest.mark.usefixtures("llama_cpp")
@pytest.mark.parametrize("bare", [0, 1, 2])
def test_a_part_without_evidence_vouches_for_no_other(tmp_path: Path, bare: int) -> None:
    """It is told and loaded; a damaged part that has a sidecar is told, or right, all the same."""
    parts = [protected(tmp_path / f"m-{number:05d}-of-00003.gguf", number) for number in (1, 2, 3)]
    right = [part.read_bytes() for part in parts]
    Path(f"{parts[bare]}.ward").unlink()
    hurt = (bare + 1) % 3
    flip(parts[hurt], 77_777)
    Path(f"{parts[hurt]}.ward-journal").mkdir()  # so that it cannot be healed on the disk
    from llama_cpp import Llama

    with bitward.enforce("warn") as gate, pytest.warns(bitward.ModelWarning):
        assert contents(Llama(str(parts[0])).maps) != right
    assert {(one.kind, one.path) for one in gate.findings} == {("unverifiable", str(parts[bare])), ("damaged", str(parts[hurt]))}
    with bitward.enforce("heal") as gate, pytest.warns(bitward.ModelWarning):
        assert contents(Llama(str(parts[0])).maps) == right
    assert {(one.kind, one.path) for one in gate.findings} == {("unverifiable", str(parts[bare])), ("healed", str(parts[hurt]))}


@pytest.mark.parametrize(
    ("name", "count"),
    [("m.gguf", 1), ("m-00001-of-00002.gguf", 2), ("m-00002-of-00002.gguf", 2), ("m-00003-of-00002.gguf", 1), ("m-00000-of-00002.gguf", 1)],
)
def test_names_of_parts(name: str, count: int) -> None:
    found = parts_of(f"/a/{name}")
    assert len(found) == count
    assert f"/a/{name}" in found
