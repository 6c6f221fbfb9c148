"""Makes small safetensors files, with nothing but the standard library, so that tests do not lean on what they compare with."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

Tensor = tuple[str, tuple[int, ...], bytes]
"""dtype, shape, bytes."""


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, *, align: int = 8) -> bytes:
    """A safetensors file: the tensors in their order, the header padded with spaces so that the data begins at a multiple of ``align``."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    position = 0
    for name, (dtype, dims, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(dims), "data_offsets": [position, position + len(data)]}
        position += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % align)
    return b"".join([len(text).to_bytes(8, "little"), text, *(data for _, _, data in tensors.values())])


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """Writes ``safetensors_bytes`` to a file and returns its path."""
    path.write_bytes(safetensors_bytes(tensors, metadata))
    return path


def many_dtypes(seed: int = 1) -> dict[str, Tensor]:
    """Tensors of ten element types in odd sizes: none fills whole blocks, one has no dimensions, one no elements.

    Floats get weight-like bits (finite, small), so that a flipped exponent stands out.
    """
    seeded = random.Random(seed)

    def weights(count: int, element_bytes: int, exponent: tuple[int, int]) -> bytes:
        """Random elements whose top two bytes lie in a range: sign and exponent as weights have them."""
        out = bytearray(seeded.randbytes(count * element_bytes))
        for index in range(count):
            top = seeded.randrange(*exponent) | seeded.getrandbits(1) << 15
            out[(index + 1) * element_bytes - 2 : (index + 1) * element_bytes] = top.to_bytes(2, "little")
        return bytes(out)

    def small_weights(count: int, magnitude: tuple[int, int]) -> bytes:
        """Random one-byte floats whose bits below the sign lie in a range."""
        return bytes(seeded.randrange(*magnitude) | seeded.getrandbits(1) << 7 for _ in range(count))

    return {
        "model.embed.weight": ("BF16", (129, 257), weights(129 * 257, 2, (0x3A00, 0x3E00))),
        "model.layers.0.mlp.weight": ("F32", (61, 67), weights(61 * 67, 4, (0x3A00, 0x3E00))),
        "model.layers.0.attn.weight": ("F16", (33, 5, 7), weights(33 * 5 * 7, 2, (0x1400, 0x3000))),
        "model.rotary": ("F64", (13,), weights(13, 8, (0x3F00, 0x3FE0))),
        "model.position_ids": ("I64", (1, 511), b"".join(index.to_bytes(8, "little") for index in range(511))),
        "model.layers.1.mlp.qweight": ("I8", (3, 1001), seeded.randbytes(3003)),
        "model.layers.1.mlp.zeros": ("U8", (77,), seeded.randbytes(77)),
        "model.mask": ("BOOL", (9, 11), bytes(seeded.getrandbits(1) for _ in range(99))),
        "model.layers.2.mlp.weight": ("F8_E4M3", (19, 53), small_weights(1007, (0x10, 0x40))),
        "model.layers.2.attn.weight": ("F8_E5M2", (1023,), small_weights(1023, (0x20, 0x3C))),
        "model.empty": ("F32", (0, 5), b""),
        "model.scale": ("F32", (), weights(1, 4, (0x3F80, 0x3F81))),
    }
