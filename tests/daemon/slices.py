"""Small checkpoints of real weights: pieces of MiniLM's tensors, under their own names."""

from __future__ import annotations

import json
import random
from pathlib import Path

import checkpoints


def write_slices(folder: Path, minilm: Path, count: int, *, kib: int = 256, seed: int = 1) -> list[Path]:
    """``count`` files of about ``kib`` KiB, each with pieces of a few F32 tensors of MiniLM. The same seed gives the same files."""
    folder.mkdir(parents=True, exist_ok=True)
    seeded = random.Random(seed)
    data = minilm.read_bytes()
    header_bytes = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_bytes])
    large = [(name, one["data_offsets"][0]) for name, one in header.items() if one.get("dtype") == "F32" and _size(one) >= 1 << 19]
    paths = []
    for index in range(count):
        tensors: dict[str, checkpoints.Tensor] = {}
        for name, start in sorted(seeded.sample(large, 3)):
            rows = kib * 1024 // 3 // 4 // 384 + seeded.randrange(3)
            at = 8 + header_bytes + start + 4 * seeded.randrange(64)
            tensors[name] = ("F32", (rows, 384), data[at : at + rows * 384 * 4])
        paths.append(checkpoints.write_safetensors(folder / f"slice-{index:02d}.safetensors", tensors, {"format": "pt"}))
    return paths


def _size(tensor: dict[str, list[int]]) -> int:
    return tensor["data_offsets"][1] - tensor["data_offsets"][0]
