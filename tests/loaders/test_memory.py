"""Memory of tensors that are gone is filled again, and never memory that somebody still holds, however he holds it."""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bitward
import checkpoints
from bitward.loaders.memory import KEPT_BYTES, TensorMemory

COUNT, SHAPE = 9, (256, 128)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    random = np.random.default_rng(11)
    tensors = {f"t{number}": ("F32", SHAPE, random.standard_normal(SHAPE, np.float32).tobytes()) for number in range(COUNT)}
    path = checkpoints.write_safetensors(tmp_path / "model.safetensors", tensors)
    assert bitward.protect(path).exit_code == 0
    return path


HELD: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "a tensor": ("pt", lambda tensor: tensor),
    "a part of a tensor": ("pt", lambda tensor: tensor[3:5]),
    "a tensor of another type": ("pt", lambda tensor: tensor.view(torch.int32)),
    "an array of a tensor": ("pt", lambda tensor: tensor.numpy()),
    "the storage of a tensor": ("pt", lambda tensor: torch.tensor([], dtype=torch.float32).set_(tensor.untyped_storage())),
    "a parameter": ("pt", lambda tensor: torch.nn.Parameter(tensor, requires_grad=False)),
    "what was given by dlpack": ("pt", np.from_dlpack),
    "an array": ("np", lambda array: array),
    "a part of an array": ("np", lambda array: array[7, 1:]),
    "a view of the memory": ("np", memoryview),
    "a tensor of an array": ("np", torch.from_numpy),
    "a cycle": ("np", lambda array: (cycle := [array], cycle.append(cycle))[0]),
}


@pytest.mark.parametrize("how", HELD)
def test_what_is_held_stays_what_was_verified(model: Path, how: str) -> None:
    framework, hold = HELD[how]
    with bitward.safe_open(model, framework) as file:
        held = [hold(file.get_tensor(f"t{number}")) for number in range(COUNT)]
        for number in range(COUNT):
            right = hold(bitward.load_safetensors(model, framework)[f"t{number}"])
            one = (held[number], right) if how != "a cycle" else (held[number][0], right[0])
            assert np.array_equal(*(np.asarray(each) for each in one))


@pytest.mark.parametrize("framework", ["pt", "np"])
def test_the_memory_of_what_is_gone_is_used_again(model: Path, framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitward.loaders.safetensors_file.default_jobs", lambda: 1)  # nothing is read ahead, which needs more
    places = set()
    tensor = None
    with bitward.safe_open(model, framework) as file:
        for number in range(COUNT):
            tensor = file.get_tensor(f"t{number}")  # the last one goes when this one is there
            places.add(tensor.data_ptr() if framework == "pt" else tensor.ctypes.data)
    assert len(places) == 2
    assert tensor is not None


def test_memory_that_was_refused_has_no_right_bytes_of_another_tensor_in_it(model: Path) -> None:
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    with bitward.safe_open(model, "np") as file:
        first = file.get_tensor("t0").copy()
        for _ in range(3):
            with pytest.raises(bitward.DamagedModelError):
                file.get_tensor(f"t{COUNT - 1}")
            assert np.array_equal(file.get_tensor("t0"), first)


def test_many_threads(model: Path) -> None:
    right = bitward.load_safetensors(model, "np")
    wrong: list[str] = []

    def load(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, COUNT, 200):
            name = f"t{number}"
            if not np.array_equal(file.get_tensor(name), right[name]):
                wrong.append(name)

    with bitward.safe_open(model, "np") as file:
        threads = [threading.Thread(target=load, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_what_is_kept_is_bounded() -> None:
    memory = TensorMemory()
    taken = [memory.take(size) for size in range(1 << 20, 9 << 20, 1 << 19) for _ in range(3)]
    assert all(first.base is None and not np.shares_memory(first, second) for first, second in itertools.pairwise(taken))
    assert 0 < memory._kept_bytes <= KEPT_BYTES
    assert memory._kept_bytes == sum(size * len(arrays) for size, arrays in memory._kept.items())
    del taken
    gc.collect()
    again = memory.take(1 << 16)
    place = again.ctypes.data
    del again
    assert memory.take(1 << 16).ctypes.data == place
