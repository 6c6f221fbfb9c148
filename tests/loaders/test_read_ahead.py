"""Tensors that are read ahead are the right ones, and what is wrong with them is told when they are asked for, not before."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

import bitward
import checkpoints
from bitward.loaders.read_ahead import WINDOW_BYTES, ReadAhead
from bitward_agent.scan import default_jobs

KIB = 1 << 10
SIZES_KIB = [64, 3, 700, 700, 0, 5000, 1, 4096, 4096, 9000, 64, 64, 2500, 2500, 2500, 2500, 128, 1]
"""Small ones, an empty one, such as fill a window, and one that is too large for any."""
NAMES = [f"t{number:02}" for number in range(len(SIZES_KIB))]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    random = np.random.default_rng(5)
    tensors = {
        name: ("F32", (size * KIB // 4,), random.standard_normal(size * KIB // 4, np.float32).tobytes())
        for name, size in zip(NAMES, SIZES_KIB, strict=True)
    }
    path = checkpoints.write_safetensors(tmp_path / "model.safetensors", tensors)
    assert bitward.protect(path).exit_code == 0
    return path


@pytest.fixture
def right(model: Path) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in bitward.load_safetensors(model, "np").items()}


@pytest.fixture(autouse=True)
def two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitward.loaders.safetensors_file.default_jobs", lambda: max(2, default_jobs()))


def flip(path: Path, name: str) -> bytes:
    """A bit in the middle of a tensor flips, and no time moves; returns the right bytes."""
    state = path.stat()
    with bitward.safe_open(path, "np") as file:
        span = file.span(name)
    with path.open("r+b") as file:
        right = file.read()
        file.seek(span.offset + span.length // 2)
        file.write(bytes([right[span.offset + span.length // 2] ^ 0x40]))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    return right


@pytest.mark.parametrize("framework", ["np", "pt"])
def test_whoever_asks_in_the_order_of_the_file_gets_what_was_protected(model: Path, right: dict[str, np.ndarray], framework: str) -> None:
    with bitward.safe_open(model, framework) as file:
        found = {name: file.get_tensor(name) for name in file.offset_keys()}
    assert {name for name in NAMES if np.array_equal(np.asarray(found[name]), right[name])} == set(NAMES)


def test_in_whatever_order_and_as_often_as_they_are_asked_for(model: Path, right: dict[str, np.ndarray]) -> None:
    random = np.random.default_rng(6)
    with bitward.safe_open(model, "np") as file:
        for _ in range(40):
            low = int(random.integers(len(NAMES)))
            for name in NAMES[low : low + int(random.integers(1, 9))]:
                assert np.array_equal(file.get_tensor(name), right[name])
                if random.random() < 0.2:
                    assert np.array_equal(file.get_tensor(name), right[name])


@pytest.mark.parametrize("bad", ["t02", "t06", "t08", "t09", "t14", "t17"])
def test_damage_is_refused_where_it_is_asked_for(model: Path, right: dict[str, np.ndarray], bad: str) -> None:
    flip(model, bad)
    with bitward.safe_open(model, "np") as file:
        for name in NAMES:
            if name != bad:
                assert np.array_equal(file.get_tensor(name), right[name])
                continue
            with pytest.raises(bitward.DamagedModelError, match=bad):
                file.get_tensor(name)


def test_damage_that_is_not_asked_for_is_not_told(model: Path, right: dict[str, np.ndarray], recwarn: pytest.WarningsRecorder) -> None:
    flip(model, "t08")
    damaged = model.read_bytes()
    for policy in ("enforce", "heal", "warn"):
        with bitward.safe_open(model, "np", policy=policy) as file:
            for name in NAMES[:8]:
                assert np.array_equal(file.get_tensor(name), right[name])
    assert model.read_bytes() == damaged
    assert not recwarn.list


def test_damage_is_healed_where_it_is_asked_for(model: Path, right: dict[str, np.ndarray]) -> None:
    whole = flip(model, "t08")
    with bitward.safe_open(model, "np", policy="heal") as file:
        before = [file.get_tensor(name) for name in NAMES[:8]]
        with pytest.warns(bitward.ModelWarning, match="put back from parity"):
            healed = file.get_tensor("t08")
        after = [file.get_tensor(name) for name in NAMES[9:]]
    assert all(np.array_equal(one, right[name]) for name, one in zip(NAMES, [*before, healed, *after], strict=True))
    assert model.read_bytes() == whole


def test_in_warn_it_is_loaded_as_it_is_and_told(model: Path, right: dict[str, np.ndarray]) -> None:
    flip(model, "t08")
    with bitward.safe_open(model, "np", policy="warn") as file:
        before = [file.get_tensor(name) for name in NAMES[:8]]
        with pytest.warns(bitward.ModelWarning, match="t08"):
            damaged = file.get_tensor("t08")
        after = [file.get_tensor(name) for name in NAMES[9:]]
    found = zip(NAMES, [*before, damaged, *after], strict=True)
    assert [name for name, one in found if not np.array_equal(one, right[name])] == ["t08"]


def test_a_file_that_is_closed_or_forgotten_reads_no_more(model: Path) -> None:
    def open_files() -> int:
        return sum(os.path.realpath(f"/proc/self/fd/{fd}") == str(model) for fd in os.listdir("/proc/self/fd"))

    file = bitward.safe_open(model, "np")
    for name in NAMES[:7]:
        file.get_tensor(name)
    del file
    with bitward.safe_open(model, "np") as file:
        for name in NAMES[:7]:
            file.get_tensor(name)
    assert not [thread for thread in threading.enumerate() if thread.name == "bitward-read-ahead"]
    assert open_files() == 0


def test_several_threads_get_what_they_ask_for(model: Path, right: dict[str, np.ndarray]) -> None:
    wrong: list[str] = []
    with bitward.safe_open(model, "np") as file:

        def read() -> None:
            wrong.extend(name for name in NAMES * 5 if not np.array_equal(file.get_tensor(name), right[name]))

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_who_picks_a_few_pays_for_no_others(model: Path) -> None:
    asked: list[tuple[int, int]] = []
    with bitward.safe_open(model, "np") as file:
        spans = [file.span(name) for name in NAMES]
    ahead = ReadAhead(spans, lambda low, high: asked.append((low, high)))
    for name in ("t03", "t02", "t07", "t08", "t12", "t01"):
        assert ahead.take(name) is None
    ahead.end()
    assert asked == []


def test_no_more_is_read_ahead_than_two_windows(model: Path) -> None:
    asked: list[tuple[int, int]] = []
    with bitward.safe_open(model, "np") as file:
        spans = [file.span(name) for name in NAMES]

    def read(low: int, high: int) -> np.ndarray:
        asked.append((low, high))
        return np.zeros(high - low, np.uint8)

    ahead = ReadAhead(spans, read)
    for number, name in enumerate(NAMES):
        ahead.take(name)
        beyond = sum(high - low for low, high in asked if low >= spans[number].offset + spans[number].length)
        assert beyond <= 2 * WINDOW_BYTES
        assert all(high - low <= WINDOW_BYTES for low, high in asked)
    ahead.end()
    assert len(asked) == len(set(asked)) > 10
