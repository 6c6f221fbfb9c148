"""A file that is swapped or rewritten between check and use, by another process, is never loaded as verified.

Two kinds: at a moment that the test chooses, and by a process that swaps or rewrites all the time while models are loaded. A load may then
fail; what it hands out is what was protected, to the byte.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest

import bitward
from loaders.conftest import Model
from loaders.loading import Loader, flip

ROUNDS = 4

RENAMER = """
import os, sys
path, damaged, intact = sys.argv[1:]
print("ready", flush=True)
while True:
    for source in (damaged, intact):
        os.link(source, path + ".next")
        os.rename(path + ".next", path)
"""
WRITER = """
import os, sys
path, offset = sys.argv[1], int(sys.argv[2])
file = os.open(path, os.O_RDWR)
right = os.pread(file, 1, offset)[0]
print("ready", flush=True)
while True:
    for byte in (right ^ 0x40, right):
        os.pwrite(file, bytes([byte]), offset)
"""


@contextmanager
def at_work(script: str, *arguments: object) -> Iterator[None]:
    """Another process that changes a file all the time."""
    process = subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        yield
    finally:
        process.kill()
        process.communicate()


def damaged_twin(model: Model) -> tuple[Path, Path]:
    """A damaged and an intact file beside the model's, for renaming over it."""
    damaged, intact = (model.damaged.with_name(name) for name in ("twin.damaged", "twin.intact"))
    shutil.copy2(model.damaged, intact)
    shutil.copy2(model.damaged, damaged)
    flip(damaged, model.offset)
    return damaged, intact


@pytest.mark.parametrize("loader", ["safe_open", "torch mmap", "torch file", "gguf", "onnxruntime", "transformers"])
@pytest.mark.parametrize("how", ["renamed", "rewritten"])
def test_a_file_that_changes_all_the_time(process: Loader, model_of: Callable[[str], Model], loader: str, how: str) -> None:
    model = model_of(loader)
    right = process.load(loader, model.path).loaded
    damaged, intact = damaged_twin(model)
    changing = (RENAMER, model.damaged, damaged, intact) if how == "renamed" else (WRITER, model.damaged, model.offset)
    outcomes = []
    with at_work(*changing):
        for _ in range(ROUNDS):
            found = process.load(loader, model.path, "enforce")
            outcomes.append(found.error or "loaded")
            assert found.loaded in ("", right)
            assert found.error in ("", "DamagedModelError", "UnverifiableModelError", "ChangedModelError"), found
    print(outcomes)


@pytest.mark.parametrize("how", ["renamed", "rewritten"])
def test_between_opening_and_reading(process: Loader, model_of: Callable[[str], Model], how: str) -> None:
    model = model_of("safe_open")
    right = process.load("safe_open", model.path).loaded
    damaged, _ = damaged_twin(model)
    assert not process.load("open", model.path, "enforce").error
    if how == "renamed":
        os.replace(damaged, model.path)
    else:
        flip(model.path, model.offset)
    found = process.load("continue", policy="enforce")
    # The opened file is still what it was; the rewritten one is not, and is told as such.
    assert (found.loaded, found.error) == ((right, "") if how == "renamed" else ("", "DamagedModelError"))
    assert process.load("safe_open", model.path, "enforce").error == "DamagedModelError"


@pytest.mark.parametrize("loader", ["torch mmap", "gguf"])
def test_what_is_mapped_stays_what_was_verified(process: Loader, model_of: Callable[[str], Model], loader: str) -> None:
    """The libraries map the file; behind a gate they map a sealed copy, which nobody can write to."""
    model = model_of(loader)
    right = process.load("keep", model.path, "enforce").loaded
    assert right
    flip(model.path, model.offset)
    assert process.load("kept").loaded == right
    assert process.load("keep", model.path).loaded != right


def test_a_sealed_copy_cannot_be_written_to(model_of: Callable[[str], Model]) -> None:
    from bitward.loaders.loading import gate_for, verified_path

    model = model_of("torch")
    with verified_path(str(model.path), gate_for("enforce", None), "test") as path:
        assert Path(path).read_bytes() == model.path.read_bytes()
        assert Path(path).name == model.path.name
        assert Path(path).parent.stat().st_mode & 0o777 == 0o700
        with pytest.raises(PermissionError):
            os.open(path, os.O_RDWR | os.O_TRUNC)
        file = os.open(path, os.O_RDWR)
        with pytest.raises(PermissionError):
            os.pwrite(file, b"x", 0)
        os.close(file)
    assert not os.path.lexists(path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_small_files_that_transformers_reads_itself(process: Loader, model_of: Callable[[str], Model], name: str) -> None:
    """They are held: damaged before, or swapped meanwhile, they stop the load."""
    model = model_of("transformers")
    small = model.path / name
    right = process.load("transformers", model.path).loaded
    text = small.read_bytes()
    flip(small, text.index(b"4"))
    stopped = process.load("transformers", model.path, "enforce")
    assert stopped.error == "DamagedModelError"
    assert name in stopped.message
    healed = process.load("transformers", model.path, "heal")
    assert healed.loaded == right
    assert small.read_bytes() == text
    edited = text.replace(b"4", b"5", 1)
    small.write_bytes(edited)  # by somebody: it is not taken back, and what the library would read is not what was protected
    stopped = process.load("transformers", model.path, "heal")
    assert (stopped.error, small.read_bytes()) == ("DamagedModelError", edited)
    Path(f"{small}.ward").unlink()
    stopped = process.load("transformers", model.path, "enforce")
    assert stopped.error == "UnverifiableModelError"


def test_a_small_file_that_cannot_be_written_is_refused_outside_a_load_too(model_of: Callable[[str], Model]) -> None:
    """Right bytes in memory are of no use to a library that reads the disk."""
    from transformers.utils import cached_file

    model = model_of("transformers")
    config = model.path / "config.json"
    flip(config, 40)
    (model.path / "config.json.ward-journal").mkdir()
    hub = import_module("transformers.utils.hub")
    with bitward.enforce("heal"), pytest.raises(bitward.DamagedModelError, match=r"config\.json"), pytest.warns(bitward.ModelWarning):
        hub.cached_files(model.path, ["config.json"])
    assert cached_file(model.path, "config.json") == str(config)


def test_a_configuration_swapped_during_the_load_is_noticed_at_its_end(model_of: Callable[[str], Model]) -> None:
    """The moment is chosen by a hook of our own: when the first tensor is asked for, the configuration has been read."""
    import transformers

    from bitward.loaders.safetensors_file import VerifiedFile

    model = model_of("transformers")
    config = model.path / "config.json"
    original = VerifiedFile.get_slice

    def swap(self: VerifiedFile, name: str) -> object:
        if not config.with_suffix(".old").exists():
            shutil.copy2(config, config.with_suffix(".old"))
            os.replace(shutil.copy2(config, config.with_suffix(".new")), config)
        return original(self, name)

    VerifiedFile.get_slice = swap  # type: ignore[method-assign]
    try:
        with bitward.enforce("enforce"), pytest.raises(bitward.ChangedModelError, match="swapped or rewritten while"):
            transformers.AutoModel.from_pretrained(model.path)
    finally:
        VerifiedFile.get_slice = original  # type: ignore[method-assign]


def test_weights_are_not_read_past_the_gate(model_of: Callable[[str], Model]) -> None:
    """``disable_mmap`` has transformers read whole files by itself."""
    import transformers

    model = model_of("transformers")
    with bitward.enforce("enforce") as gate:
        transformers.AutoModel.from_pretrained(model.path, disable_mmap=True)
        assert gate.verified[str(model.damaged)] >= model.damaged.stat().st_size
        flip(model.damaged, model.offset)
        with pytest.raises(bitward.DamagedModelError):
            transformers.AutoModel.from_pretrained(model.path, disable_mmap=True)
        with pytest.raises(bitward.UnverifiableModelError, match="past the gate"):
            transformers.modeling_utils.load_state_dict(model.damaged, disable_mmap=True)
