"""Copies of weights with damage of a known kind at a known place."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from bitward_agent.diagnosis.series import Series, series_of
from bitward_agent.io import OpenFile
from bitward_agent.neighbours import layout_of_file
from checkpoints import Tensor


def series_in(path: Path) -> list[Series]:
    """The series of a file."""
    with OpenFile(str(path)) as file:
        return series_of(layout_of_file(file, file.state().size))


def flip(path: Path, series: Series, number: int, bit: int) -> int:
    """Flip a bit of a number; returns the offset of its byte."""
    at = series.offset(number, bit)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit % 8]))
    return at


def overwrite(path: Path, offset: int, data: bytes) -> None:
    """Put bytes into a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        assert file.write(data) == len(data)


def copy_of(source: Path, folder: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copyfile(source, folder / source.name))


def weights(shape: tuple[int, ...], dtype: str, seed: int, scale: float = 0.02) -> Tensor:
    """Normally distributed weights whose rows have scales of their own; the first and the last are usual ones."""
    draw = np.random.default_rng(seed)
    values = draw.normal(0, scale, shape) * np.exp2(draw.normal(0, 0.5, (*shape[:-1], 1)))
    values.flat[0] = values.flat[-1] = scale
    kinds = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
    if dtype == "BF16":
        bits = values.astype(np.float32).view(np.uint32) >> 16
        return dtype, shape, bits.astype(np.uint16).tobytes()
    return dtype, shape, values.astype(kinds[dtype]).tobytes()
