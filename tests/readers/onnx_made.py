"""Writes small ONNX files of all that real ones may have; the ``onnx`` library does the writing."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

SMALL_BITS = {21: 4, 22: 4, 23: 4, 25: 2, 26: 2, 27: 6, 28: 6}
"""Element types whose elements are packed."""
ELEMENT_TYPES = tuple(number for number in range(1, 29) if number != 8)


def save(folder: Path, **parts: Any) -> Path:
    """A model of these parts of a graph, which is all the reader asks of it."""
    import onnx
    from onnx import helper

    extra = {key: parts.pop(key) for key in ("functions", "training_info") if key in parts}
    graph = helper.make_graph(parts.pop("nodes", []), "made", [], [], **parts)
    model = helper.make_model(graph, functions=extra.get("functions", []))
    model.training_info.extend(extra.get("training_info", []))
    onnx.save_model(model, folder / "made.onnx")
    return folder / "made.onnx"


def raw_tensor(name: str, data_type: int, dims: tuple[int, ...], seed: int = 1) -> Any:
    """A tensor of seeded random bytes in ``raw_data``; small exponents, so that floats are finite and print alike everywhere."""
    from onnx import TensorProto, helper

    bits = SMALL_BITS.get(data_type) or 8 * helper.tensor_dtype_to_np_dtype(data_type).itemsize
    length = -(-math.prod(dims) * bits // 8)
    data = bytes(byte & 0x3F for byte in random.Random(f"{seed}/{name}").randbytes(length))
    if data_type == TensorProto.BOOL:
        data = bytes(byte & 1 for byte in data)
    return TensorProto(name=name, data_type=data_type, dims=dims, raw_data=data)


def write_every_type(folder: Path) -> Path:
    """All element types, in shapes that fill whole bytes and whole records; a scalar and two empty tensors."""
    return save(
        folder,
        initializer=[
            *(raw_tensor(f"type {number}", number, (3, 8)) for number in ELEMENT_TYPES),
            *(raw_tensor(f"large {number}", number, (300, 512)) for number in (1, 10, 16, 17, 22)),
            raw_tensor("scalar", 1, ()),
            raw_tensor("empty", 1, (0, 4)),
            raw_tensor("é, naïve", 7, (2,)),
        ],
    )


def write_typed_fields(folder: Path) -> Path:
    """Elements in fields by their type: packed floats and doubles are arrays, variable-length integers are not."""
    import numpy as np
    from onnx import TensorProto, helper

    seeded = np.random.default_rng(1)
    floats = seeded.normal(size=20_000).astype(np.float32)
    return save(
        folder,
        initializer=[
            helper.make_tensor("floats", TensorProto.FLOAT, (100, 200), floats),
            helper.make_tensor("complex", TensorProto.COMPLEX64, (50,), [complex(x, -x) for x in floats[:50]]),
            helper.make_tensor("doubles", TensorProto.DOUBLE, (2, 500), floats[:1000].astype(np.float64)),
            helper.make_tensor("complex doubles", TensorProto.COMPLEX128, (50,), [complex(x, 2 * x) for x in floats[:50].tolist()]),
            helper.make_tensor("integers", TensorProto.INT64, (8000,), seeded.integers(-9, 1 << 40, 8000)),
            helper.make_tensor("halves", TensorProto.FLOAT16, (100,), floats[:100].astype(np.float16)),
            helper.make_tensor("unsigned", TensorProto.UINT64, (3,), [1, 2, 1 << 63]),
            helper.make_tensor("texts", TensorProto.STRING, (2,), [b"one", b"two"]),
            raw_tensor("raw", 1, (3,)),
        ],
    )


def write_nested(folder: Path) -> Path:
    """Constants, lists of tensors, sub-graphs in sub-graphs, functions, training, sparse tensors; a name that comes twice."""
    from onnx import TrainingInfoProto, helper

    def constant(output: str, seed: int, **more: Any) -> Any:
        return helper.make_node("Constant", [], [output], value=raw_tensor("inner name", 1, (5, 3), seed), **more)

    def graph(name: str, nodes: list[Any], *tensors: Any) -> Any:
        return helper.make_graph(nodes, name, [], [], initializer=list(tensors))

    def sparse(name: str) -> Any:
        return helper.make_sparse_tensor(raw_tensor(name, 1, (4,)), raw_tensor("", 7, (4,)), (100,))

    deepest = graph("deepest", [constant("c", 3)], raw_tensor("w", 10, (7,)))
    then_branch = graph("then", [helper.make_node("Loop", [], ["again"], name="loop", body=deepest)], raw_tensor("w", 1, (9,)))
    else_branch = graph("else", [constant("c", 5)], raw_tensor("w", 1, (11,)))
    body = helper.make_function("my", "Body", [], [], [constant("f", 6)], [], attribute_protos=[helper.make_attribute("d", sparse("s"))])
    training = TrainingInfoProto(initialization=graph("init", [constant("i", 7)]), algorithm=graph("step", [], raw_tensor("m", 11, (2, 2))))
    return save(
        folder,
        nodes=[
            constant("c", 1, name="named"),
            helper.make_node("If", ["c"], ["y"], name="choice", then_branch=then_branch, else_branch=else_branch),
            helper.make_node("Own", [], ["o"], domain="my", list=[raw_tensor("", 1, (2,)), raw_tensor("", 6, (3,))]),
            helper.make_node("Own", [], [], domain="my", graphs=[deepest, else_branch]),
            helper.make_node("Constant", [], ["sparse"], sparse_value=sparse("")),
            helper.make_node("Constant", [], ["number"], value_float=1.5),
        ],
        initializer=[raw_tensor("w", 1, (64, 64)), raw_tensor("c", 2, (10,)), raw_tensor("", 3, (6,))],
        sparse_initializer=[sparse("pruned")],
        functions=[body],
        training_info=[training],
    )


def external_tensor(name: str, data_type: int, dims: tuple[int, ...], **entries: object) -> Any:
    """A tensor whose data is elsewhere."""
    from onnx import StringStringEntryProto, TensorProto

    external = [StringStringEntryProto(key=key, value=str(value)) for key, value in entries.items()]
    return TensorProto(name=name, data_type=data_type, dims=dims, data_location=TensorProto.EXTERNAL, external_data=external)


def write_external(folder: Path) -> Path:
    """A file of external data with gaps, between and behind, and one tensor in another file."""
    data = bytes(range(1, 61)) * 1000
    (folder / "made.bin").write_bytes(data)
    save(
        folder,
        initializer=[
            external_tensor("first", 1, (25, 100), location="made.bin", offset=4096, length=10_000),
            external_tensor("second", 10, (30, 100), location="made.bin", offset=16_384, length=6000, checksum="unused"),
            external_tensor("elsewhere", 1, (2,), location="other.bin", offset=0, length=8),
            raw_tensor("inside", 1, (2, 2)),
        ],
    )
    return folder / "made.bin"


def write_large_external(folder: Path) -> Path:
    """3 GiB of external data, of which little takes room on the disk."""
    path = folder / "large.data"
    with path.open("wb") as file:
        file.truncate(3 << 30)
        for offset in (0, (1 << 31) - 4096, (3 << 30) - 4096):
            file.seek(offset)
            file.write(bytes(range(256)) * 16)
    save(
        folder,
        initializer=[
            external_tensor("low", 1, (32, 32), location=path.name, offset=0, length=4096),
            external_tensor("middle", 16, (64, 32), location=path.name, offset=(1 << 31) - 4096, length=4096),
            external_tensor("high", 1, (1024,), location=path.name, offset=(3 << 30) - 4096, length=4096),
        ],
    )
    return path
