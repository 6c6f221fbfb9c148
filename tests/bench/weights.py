"""Checkpoints to measure on: bf16 safetensors files of any size, made from a seed a piece at a time.

Run as a program, so that the process that measures stays small: ``python weights.py PATH HIDDEN LAYERS SEED``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

_PIECE_BYTES = 32 << 20
BF16_BYTES = 2


def shapes(hidden: int, layers: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a decoder whose embedding and layers have the same size: 16 · hidden² weights each, but for the norms."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (16 * hidden, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        found[f"{prefix}.input_layernorm.weight"] = (hidden,)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            found[f"{prefix}.self_attn.{name}.weight"] = (hidden, hidden)
        for name, rows in (("up_proj", 4 * hidden), ("gate_proj", 4 * hidden), ("down_proj", 4 * hidden)):
            found[f"{prefix}.mlp.{name}.weight"] = (rows, hidden)
    found["model.norm.weight"] = (hidden,)
    return found


def write_checkpoint(path: Path, hidden: int, layers: int, seed: int) -> None:
    """Write the file. Weights are normally distributed; every piece repeats the first with other low mantissa bits."""
    import numpy as np

    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes(hidden, layers).items():
        start, size = end, BF16_BYTES
        for dim in shape:
            size *= dim
        end = start + size
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    values = np.random.default_rng(seed).standard_normal(_PIECE_BYTES // BF16_BYTES, np.float32) * np.float32(0.02)
    piece = (values.view(np.uint32) >> np.uint32(16)).astype("<u2")
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number, at in enumerate(range(0, end, _PIECE_BYTES)):
            turned = np.roll(piece, 257 * number) ^ np.uint16(number & 7)
            file.write(turned.tobytes()[: end - at])


if __name__ == "__main__":
    write_checkpoint(Path(sys.argv[1]), *(int(word) for word in sys.argv[2:5]))
