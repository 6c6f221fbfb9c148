"""Files that look damaged already are protected with a finding; files that are well give none."""

from __future__ import annotations

import math
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

import bitward
from bitward.inject import inject
from bitward_agent.first_sight import FINDINGS_LIMIT, Finding, in_words
from checkpoints import Tensor, write_safetensors


def findings(path: Path, **more: bool) -> tuple[str, ...]:
    (file,) = bitward.protect(path, force=True, **more).files
    assert file.exit_code == 0, file.message
    return file.findings


def weights(count: int, seed: int, scale: float = 0.02) -> np.ndarray:
    print(f"seed {seed}")
    return np.random.default_rng(seed).normal(0, scale, count).astype(np.float32)


def as_dtype(values: np.ndarray, dtype: str) -> bytes:
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return values.astype({"F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype]).tobytes()


def model(folder: Path, values: np.ndarray, dtype: str = "F32", dims: tuple[int, ...] | None = None, **others: Tensor) -> Path:
    tensor = (dtype, dims or values.shape, as_dtype(values.reshape(-1), dtype))
    return write_safetensors(folder / "m.safetensors", {"w": tensor, **others})


def test_real_weights_look_well(minilm: Path, fracast_files: list[Path], tmp_path: Path) -> None:
    for index, source in enumerate([minilm, *fracast_files]):
        copy = Path(shutil.copyfile(source, tmp_path / f"{index}.safetensors"))
        assert findings(copy) == ()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_flipped_top_exponent_bit_of_a_real_weight_is_told(seed: int, minilm: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copyfile(minilm, tmp_path / "m.safetensors"))
    done = inject(str(copy), flips=1, lanes="30", seed=seed)
    (flip,) = done.flips
    (told,) = findings(copy)
    assert told.startswith(f"{flip.tensor}: 1 ")
    if "NaN" not in told and "infinite" not in told:
        assert f"[{', '.join(map(str, flip.index))}]" in told
    assert findings(copy, first_sight=False) == ()


@pytest.mark.parametrize("seed", [4, 5])
def test_zeroed_bytes_of_real_weights_are_told(seed: int, minilm: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copyfile(minilm, tmp_path / "m.safetensors"))
    inject(str(copy), zero_bytes=65536, seed=seed)
    assert any("zero bytes from byte" in told for told in findings(copy))


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
@pytest.mark.parametrize("count", [65, 1000, 16_384, 16_385, 200_003])
def test_one_flip_anywhere_in_any_dtype(dtype: str, count: int, tmp_path: Path) -> None:
    values = weights(count, count).clip(-0.5, 0.5)
    values[:] = np.where(np.abs(values) < 0.005, 0.005, values)
    path = model(tmp_path, values, dtype)
    assert findings(path) == ()
    item = {"F64": 8, "F32": 4}.get(dtype, 2)
    at = random.Random(count).randrange(count)
    data = bytearray(path.read_bytes())
    data[len(data) - (count - at) * item + item - 1] ^= 0x40
    path.write_bytes(data)
    (told,) = findings(path)
    assert told.startswith("w: 1 value far outside all others")
    assert f"[{at}]" in told


def test_not_finite_where_others_are(tmp_path: Path) -> None:
    values = weights(50_000, 9)
    values[4321] = math.nan
    values[77] = math.inf
    path = model(tmp_path, values, other=("F32", (100,), as_dtype(weights(100, 10), "F32")))
    assert findings(path) == ("w: 1 NaN and 1 infinite of 50,000 values",)


def test_masks_of_minus_infinity_and_wide_constants_are_no_damage(tmp_path: Path) -> None:
    mask = np.triu(np.full((128, 128), -np.inf, np.float32), 1)
    wide = np.zeros(4096, np.float32)
    wide[::7] = np.finfo(np.float32).min
    others: dict[str, Tensor] = {
        "mask": ("F32", (128, 128), mask.tobytes()),
        "wide": ("F32", (4096,), wide.tobytes()),
        "scalar": ("F32", (), np.float32(-1e9).tobytes()),
        "theta": ("F32", (64,), (1e4 ** -np.linspace(0, 1, 64)).astype(np.float32).tobytes()),
    }
    assert findings(model(tmp_path, weights(50_000, 11), **others)) == ()


@pytest.mark.parametrize("rows", [(0, 1), (999, 1000), (400, 450), (900, 1000)])
def test_rows_of_zeros_are_no_damage(rows: tuple[int, int], tmp_path: Path) -> None:
    values = weights(1000 * 1100, 12).reshape(1000, 1100)
    values[slice(*rows)] = 0
    assert findings(model(tmp_path, values, dims=(1000, 1100))) == ()


@pytest.mark.parametrize("low", [0, 4096 * 3, 4096 * 40 + 1024, 1_000_000])
def test_a_page_of_zeros_is(low: int, tmp_path: Path) -> None:
    path = model(tmp_path, weights(1000 * 1100, 13), dims=(1000, 1100))
    data = bytearray(path.read_bytes())
    at = len(data) - 4_400_000 + low
    data[at : at + 4096] = bytes(4096)
    path.write_bytes(data)
    (told,) = findings(path)
    assert told.startswith("w: 4,09")


def test_sparse_and_zero_tensors_are_no_damage(tmp_path: Path) -> None:
    values = weights(200_000, 14)
    values[np.random.default_rng(15).random(200_000) < 0.9] = 0
    values[60_000:100_000] = 0
    assert findings(model(tmp_path, values, zero=("F32", (50_000,), bytes(200_000)))) == ()


def test_many_findings_are_cut() -> None:
    many = tuple(Finding("zeroed-page", "w", 1, index, f"{index}") for index in range(FINDINGS_LIMIT + 5))
    told = in_words(many)
    assert len(told) == FINDINGS_LIMIT + 1
    assert told[-1] == "and 5 more tensors or ranges"
