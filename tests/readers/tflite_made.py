"""Writes small TFLite files with the ``flatbuffers`` builder; field numbers are those of the format's schema.

Not by the ``tflite`` package's own builders, since the same package reads the files to say what is expected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Tensor:
    """A tensor of a made model; ``buffer`` is the number of its buffer, 0 for none."""

    name: str
    type: int
    shape: tuple[int, ...]
    buffer: int
    sparse: bool = False
    external: int = 0


@dataclass(frozen=True)
class Model:
    """Buffers (the first is empty by convention) as bytes, or as (offset, size) behind the FlatBuffer; tensors for each subgraph."""

    buffers: Sequence[bytes | tuple[int, int]]
    subgraphs: Sequence[tuple[str, Sequence[Tensor]]] = field(default_factory=list)


def build(model: Model) -> bytes:
    """The FlatBuffer."""
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    buffers = _tables(builder, [_buffer(builder, data) for data in model.buffers])
    subgraphs = _tables(builder, [_subgraph(builder, name, tensors) for name, tensors in model.subgraphs])
    description = builder.CreateString("made")
    builder.StartObject(8)
    builder.PrependUint32Slot(0, 3, 0)
    builder.PrependUOffsetTRelativeSlot(2, subgraphs, 0)
    builder.PrependUOffsetTRelativeSlot(3, description, 0)
    builder.PrependUOffsetTRelativeSlot(4, buffers, 0)
    builder.Finish(builder.EndObject(), b"TFL3")
    return bytes(builder.Output())


def _tables(builder: Any, tables: list[int]) -> int:
    builder.StartVector(4, len(tables), 4)
    for table in reversed(tables):
        builder.PrependUOffsetTRelative(table)
    return int(builder.EndVector())


def _buffer(builder: Any, data: bytes | tuple[int, int]) -> int:
    vector = 0
    if isinstance(data, bytes) and data:
        builder.StartVector(1, len(data), 16)
        builder.head -= len(data)
        builder.Bytes[builder.head : builder.head + len(data)] = data
        vector = builder.EndVector()
    builder.StartObject(3)
    if vector:
        builder.PrependUOffsetTRelativeSlot(0, vector, 0)
    if isinstance(data, tuple):
        builder.PrependUint64Slot(1, data[0], 0)
        builder.PrependUint64Slot(2, data[1], 0)
    return int(builder.EndObject())


def _subgraph(builder: Any, name: str, tensors: Sequence[Tensor]) -> int:
    vector = _tables(builder, [_tensor(builder, tensor) for tensor in tensors])
    text = builder.CreateString(name)
    builder.StartObject(6)
    builder.PrependUOffsetTRelativeSlot(0, vector, 0)
    if name:
        builder.PrependUOffsetTRelativeSlot(4, text, 0)
    return int(builder.EndObject())


def _tensor(builder: Any, tensor: Tensor) -> int:
    name = builder.CreateString(tensor.name)
    builder.StartVector(4, len(tensor.shape), 4)
    for dim in reversed(tensor.shape):
        builder.PrependInt32(dim)
    shape = builder.EndVector()
    builder.StartObject(0)
    sparsity = builder.EndObject()
    builder.StartObject(11)
    builder.PrependUOffsetTRelativeSlot(0, shape, 0)
    builder.PrependInt8Slot(1, tensor.type, 0)
    builder.PrependUint32Slot(2, tensor.buffer, 0)
    builder.PrependUOffsetTRelativeSlot(3, name, 0)
    if tensor.sparse:
        builder.PrependUOffsetTRelativeSlot(6, sparsity, 0)
    builder.PrependUint32Slot(10, tensor.external, 0)
    return int(builder.EndObject())


BITS = {0: 32, 1: 16, 2: 32, 3: 8, 4: 64, 6: 8, 7: 16, 8: 64, 9: 8, 10: 64, 11: 128, 12: 64, 15: 32, 16: 16, 17: 4, 18: 16, 19: 2, 20: 4,
        21: 8, 22: 8}  # fmt: skip
"""Width of the elements of each TensorType that has any."""


def _data(length: int, seed: int) -> bytes:
    import random

    return bytes(byte & 0x3F for byte in random.Random(seed).randbytes(length))


def write_every_type(folder: Path) -> Path:
    """One tensor of each element type, and a large one."""
    buffers = [b"", *(_data(24 * bits // 8, number) for number, bits in BITS.items()), _data(300_000, 99)]
    tensors = [Tensor(f"type {number}", number, (4, 6), index) for index, number in enumerate(BITS, start=1)]
    path = folder / "types.tflite"
    path.write_bytes(build(Model(buffers, [("", [*tensors, Tensor("large", 0, (250, 300), len(buffers) - 1)])])))
    return path


def write_shared(folder: Path) -> Path:
    """Two subgraphs with equal names, shared buffers, sparse and odd tensors, buffers of nobody."""
    buffers = [b"", _data(4000, 1), _data(8000, 2), _data(400, 3), _data(9000, 4), _data(10, 5), _data(5000, 6)]
    main = [
        Tensor("input", 0, (1, 8), 0),
        Tensor("w", 0, (10, 100), 1),
        Tensor("tied", 0, (1000,), 1),
        Tensor("sparse", 0, (100, 100), 3, sparse=True),
        Tensor("wrong size", 0, (7, 7), 4),
        Tensor("text", 5, (2,), 5),
    ]
    body = [Tensor("w", 1, (40, 100), 2), Tensor("w", 0, (10, 100), 1)]
    path = folder / "shared.tflite"
    path.write_bytes(build(Model(buffers, [("main", main), ("body", body), ("", body[:1])])))
    return path


def write_large(folder: Path) -> Path:
    """3 GiB, of which little takes room on the disk: buffers behind the FlatBuffer."""
    path = folder / "large.tflite"
    places = [(1 << 20, 4096), ((1 << 31) - 2048, 4096), ((3 << 30) - 8192, 4096)]
    tensors = [Tensor(name, 0, (32, 32), index) for index, name in enumerate(("low", "middle", "high"), start=1)]
    with path.open("wb") as file:
        file.write(build(Model([b"", *places, _data(400, 1)], [("main", [*tensors, Tensor("inside", 0, (100,), 4)])])))
        file.truncate(3 << 30)
        for index, (offset, size) in enumerate(places):
            file.seek(offset)
            file.write(_data(size, index))
    return path


MADE: tuple[tuple[str, Callable[[Path], Path]], ...] = (
    ("TFLite of every element type", write_every_type),
    ("TFLite of shared buffers and subgraphs", write_shared),
    ("TFLite of 3 GB, sparse", write_large),
)
