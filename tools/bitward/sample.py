"""A small checkpoint made from a seed, for drills where there is no model at hand."""

from __future__ import annotations

import json
from pathlib import Path

_HIDDEN = 256
_VOCABULARY = 11_000
_LAYERS = 2
_ALIGNMENT = 8
"""The safetensors header is padded with spaces so that the tensors begin at a multiple of this."""


def _shapes() -> dict[str, tuple[str, tuple[int, ...]]]:
    """Element type and shape of each tensor: names and proportions of a small transformer."""
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {"model.embed_tokens.weight": ("BF16", (_VOCABULARY, _HIDDEN))}
    for layer in range(_LAYERS):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = ("F32", (_HIDDEN,))
        shapes[f"{prefix}.mlp.down_proj.weight"] = ("BF16", (_HIDDEN, 4 * _HIDDEN))
        shapes[f"{prefix}.mlp.up_proj.weight"] = ("BF16", (4 * _HIDDEN, _HIDDEN))
        shapes[f"{prefix}.self_attn.o_proj.weight"] = ("BF16", (_HIDDEN, _HIDDEN))
    shapes["model.norm.weight"] = ("F32", (_HIDDEN,))
    shapes["score.weight"] = ("F32", (_HIDDEN, _HIDDEN))
    return shapes


def write_sample(path: Path, seed: int) -> None:
    """Write a safetensors file of about 8 MB: BF16 and F32 tensors with normally distributed values."""
    import numpy as np

    rng = np.random.default_rng(seed)
    header: dict[str, object] = {"__metadata__": {"made-by": "bitward drill"}}
    parts = []
    offset = 0
    for name, (dtype, shape) in _shapes().items():
        values = (rng.standard_normal(shape) * 0.02).astype("<f4")
        # The upper half of a binary32 is a bfloat16, rounded towards zero.
        data = (values.view("<u4") >> 16).astype("<u2").tobytes() if dtype == "BF16" else values.tobytes()
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        parts.append(data)
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))
