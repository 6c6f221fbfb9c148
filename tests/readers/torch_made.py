"""Makes PyTorch files for the readers' tests, with torch itself, for what no small real file has."""

from __future__ import annotations

import functools
import sys
import types
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

STORAGE_DTYPES = (
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
    "complex128",
    "complex64",
)
NEW_DTYPES = (
    "float8_e5m2", "float8_e4m3fn", "float8_e5m2fnuz", "float8_e4m3fnuz", "float8_e8m0fnu", "uint16", "uint32", "uint64", "complex32",
)  # fmt: skip
WEIGHT_COUNT = 60


def quietly(function: Callable[P, R]) -> Callable[P, R]:
    """Torch warns of what is old or new in it, such as TorchScript and sparse tensors; that is no concern of these tests."""

    @functools.wraps(function)
    def silenced(*args: P.args, **kwargs: P.kwargs) -> R:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*args, **kwargs)

    return silenced


def element_bytes(dtype: str, seed: int, count: int = WEIGHT_COUNT) -> Any:
    """A flat tensor of ``count`` elements with random bytes (0 or 1 where it is bool)."""
    import torch

    made = torch.Generator().manual_seed(seed)
    item = torch.empty(0, dtype=getattr(torch, dtype)).element_size()
    raw = torch.randint(0, 2 if dtype == "bool" else 256, (count * item,), dtype=torch.uint8, generator=made)
    return raw.view(getattr(torch, dtype))


@quietly
def write_dtypes(folder: Path, *, is_zip: bool = True) -> Path:
    """One tensor of each element type; the old format has no place for the newer ones."""
    import torch

    dtypes = STORAGE_DTYPES + (NEW_DTYPES if is_zip else ())
    tensors = {dtype: element_bytes(dtype, seed).reshape(3, 4, 5) for seed, dtype in enumerate(dtypes)}
    torch.save(tensors, folder / "dtypes.pt", _use_new_zipfile_serialization=is_zip)
    return folder / "dtypes.pt"


@quietly
def write_legacy_dtypes(folder: Path) -> Path:
    return write_dtypes(folder, is_zip=False)


def shared() -> dict[str, Any]:
    """Tensors that share storages in every way that a span can and cannot say."""
    import torch

    base = torch.arange(120, dtype=torch.float32) + 0.5
    other = torch.arange(60, dtype=torch.float16).reshape(3, 4, 5)
    return {
        "tied": base,
        "tied_again": base,
        "as_matrix": base.view(10, 12),
        "part": base[30:50],
        "apart": {"low": other.reshape(-1)[:20], "high": other.reshape(-1)[40:].view(4, 5)},
        "transposed": torch.arange(30, dtype=torch.int32).reshape(5, 6).t(),
        "permuted": torch.arange(60, dtype=torch.bfloat16).reshape(3, 4, 5, 1).permute(2, 3, 0, 1),
        "channels_last": torch.arange(120, dtype=torch.float64).reshape(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "expanded": torch.arange(7, dtype=torch.int16).reshape(7, 1).expand(7, 9),
        "columns": torch.arange(100, dtype=torch.float32).reshape(10, 10)[:, 2:7],
        "empty": torch.empty(0, 5),
        "scalar": torch.tensor(3.25),
    }


FLAT = {"expanded", "columns"}
"""Those of ``shared`` that are flat runs of elements in the layout."""
WITHIN = {"part"}
"""Those that lie within another."""


@quietly
def write_shared(folder: Path, *, is_zip: bool = True) -> Path:
    import torch

    torch.save(shared(), folder / "shared.pth", _use_new_zipfile_serialization=is_zip)
    return folder / "shared.pth"


@quietly
def write_legacy_shared(folder: Path) -> Path:
    return write_shared(folder, is_zip=False)


def training_state() -> dict[str, Any]:
    """What a training loop saves: model, optimiser and numbers beside them."""
    import torch

    torch.manual_seed(7)
    model = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(4, 12)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "note": "x" * 100_000}


@quietly
def write_training(folder: Path, *, is_zip: bool = True, protocol: int = 2) -> Path:
    import torch

    torch.save(training_state(), folder / "last.ckpt", _use_new_zipfile_serialization=is_zip, pickle_protocol=protocol)
    return folder / "last.ckpt"


@quietly
def write_legacy_training(folder: Path) -> Path:
    return write_training(folder, is_zip=False)


@quietly
def write_protocol_5(folder: Path) -> Path:
    return write_training(folder, protocol=5)


@quietly
def write_sparse(folder: Path) -> Path:
    """Sparse, nested and quantised tensors, parameters with attributes, and a storage by itself."""
    import torch

    dense = torch.tensor([[0.0, 1.5, 0.0], [2.5, 0.0, 3.5]])
    parameter = torch.nn.Parameter(torch.ones(3, 4))
    parameter.extra = torch.full((2,), 5.0)
    torch.save(
        {
            "coo": dense.to_sparse(),
            "csr": dense.to_sparse_csr(),
            "csc": dense.to_sparse_csc(),
            "per_tensor": torch.quantize_per_tensor(torch.arange(20.0), 0.1, 10, torch.quint8),
            "per_channel": torch.quantize_per_channel(
                torch.ones(4, 5), torch.full((4,), 0.5).double(), torch.zeros(4).long(), 0, torch.qint8
            ),
            "parameter": parameter,
            "storage": torch.arange(6, dtype=torch.int32).storage(),
            "on_meta": torch.empty(100, 100, device="meta"),
        },
        folder / "kinds.pt",
    )
    return folder / "kinds.pt"


@quietly
def write_foreign(folder: Path, *, is_zip: bool = True) -> Path:
    """A module and objects of a class that nobody can import any more when the file is read."""
    import torch

    module = types.ModuleType("bitward_foreign")
    for name in ("Config", "Wrapped"):
        setattr(module, name, type(name, (), {"__module__": module.__name__}))
    net = type("Net", (torch.nn.Module,), {"__module__": module.__name__})
    module.Net = net
    sys.modules[module.__name__] = module
    try:
        model = net()
        model.body = torch.nn.Sequential(torch.nn.Linear(4, 3, bias=False))
        model.register_buffer("steps", torch.arange(5))
        wrapped = module.Wrapped()
        wrapped.ema = {"body.0.weight": torch.zeros(3, 4)}
        torch.save(
            {"net": model, "config": module.Config(), "more": [wrapped, (torch.ones(2),)]},
            folder / "foreign.pt",
            _use_new_zipfile_serialization=is_zip,
        )
    finally:
        del sys.modules[module.__name__]
    return folder / "foreign.pt"


@quietly
def write_legacy_foreign(folder: Path) -> Path:
    return write_foreign(folder, is_zip=False)


@quietly
def write_big_endian(folder: Path) -> Path:
    """What a big-endian machine writes: swapped storages, and an entry that says so."""
    import torch

    names = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "bool", "complex64")
    tensors = {name: element_bytes(name, seed).reshape(6, 10) for seed, name in enumerate(names)}
    tensors["turned"] = element_bytes("float32", 99).reshape(6, 10).t()
    for tensor in tensors.values():
        tensor.untyped_storage().byteswap(tensor.dtype)
    torch.save(tensors, folder / "little.pt")
    with zipfile.ZipFile(folder / "little.pt") as little, zipfile.ZipFile(folder / "big.pt", "w") as big:
        for entry in little.infolist():
            big.writestr(entry.filename, b"big" if entry.filename.endswith("/byteorder") else little.read(entry))
    (folder / "little.pt").unlink()
    return folder / "big.pt"


@quietly
def write_deflated(folder: Path) -> Path:
    """A file that somebody packed anew: the pickle and one storage deflated, the others stored."""
    import torch

    torch.save({"packed": torch.zeros(1000), "plain": torch.arange(10.0)}, folder / "first.pt")
    with zipfile.ZipFile(folder / "first.pt") as first, zipfile.ZipFile(folder / "packed.pt", "w") as packed:
        for entry in first.infolist():
            method = zipfile.ZIP_DEFLATED if entry.filename.endswith(("data.pkl", "data/0")) else zipfile.ZIP_STORED
            packed.writestr(entry.filename, first.read(entry), method)
    (folder / "first.pt").unlink()
    return folder / "packed.pt"


@quietly
def write_script(folder: Path) -> Path:
    """TorchScript with parameters, an attribute and a constant tensor."""
    import torch

    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(3, 2)
            self.register_buffer("count", torch.arange(4))

        def forward(self, x: Any) -> Any:
            return self.inner(x) + torch.tensor([[5.0, 6.0]])

    module = Scaled()
    torch.jit.trace(module, torch.ones(1, 3)).save(str(folder / "script.pt"))
    return folder / "script.pt"


@quietly
def write_dcp(folder: Path, *, as_safetensors: bool = False) -> Path:
    """A distributed checkpoint of one process."""
    import torch.distributed.checkpoint as checkpoint
    from torch.distributed.checkpoint.filesystem import FileSystemWriter, SerializationFormat

    form = SerializationFormat.SAFETENSORS if as_safetensors else SerializationFormat.TORCH_SAVE
    state = training_state()
    checkpoint.save(state, storage_writer=FileSystemWriter(folder / "dcp", serialization_format=form), no_dist=True)
    return folder / "dcp" / "__0_0.distcp"


@quietly
def write_dcp_safetensors(folder: Path) -> Path:
    return write_dcp(folder, as_safetensors=True)


@quietly
def write_sharded_dcp(folder: Path) -> Path:
    """One tensor in four shards, two in each of two files; the second file."""
    import torch
    import torch.distributed.checkpoint as checkpoint
    from torch.distributed.checkpoint import metadata as about
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

    whole = whole_of_shards()

    class Planner(DefaultSavePlanner):
        """Writes the quarters of a matrix as if each came from another process."""

        def create_local_plan(self) -> Any:
            items = []
            for number, (row, column) in enumerate((row, column) for row in (0, 4) for column in (0, 6)):
                chunk = about.ChunkStorageMetadata(torch.Size((row, column)), torch.Size((4, 6)))
                properties = about.TensorProperties.create_from_tensor(whole)
                index = about.MetadataIndex("layer.weight", torch.Size((row, column)), number)
                items.append(WriteItem(index, WriteItemType.SHARD, None, TensorWriteData(chunk, properties, whole.size())))
            self.plan = SavePlan(items)
            return self.plan

        def create_global_plan(self, all_plans: Any) -> Any:
            chunks = [item.tensor_data.chunk for item in all_plans[0].items]
            properties = about.TensorProperties.create_from_tensor(whole)
            listed = about.Metadata({"layer.weight": about.TensorStorageMetadata(properties, whole.size(), chunks)})
            return all_plans, listed

        def finish_plan(self, new_plan: Any) -> Any:
            return new_plan

        def resolve_data(self, write_item: Any) -> Any:
            row, column = write_item.index.offset
            return whole[row : row + 4, column : column + 6].clone()

    writer = FileSystemWriter(folder / "dcp", single_file_per_rank=True, thread_count=2)
    checkpoint.save({"layer.weight": whole}, storage_writer=writer, planner=Planner(), no_dist=True)
    return folder / "dcp" / "__0_1.distcp"


def whole_of_shards() -> Any:
    """The tensor that ``write_sharded_dcp`` saves."""
    import torch

    return torch.arange(96, dtype=torch.float32).reshape(8, 12)
