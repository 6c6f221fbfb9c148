"""Tensors in this process's memory, element by element in the order in which a file has them: NumPy arrays and PyTorch tensors.

PyTorch is not imported here: whoever has one of its tensors has imported it. A tensor on another device is copied in pieces.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bitward_agent.errors import InputError
from bitward_formats.frozen import dataclass

Bytes = npt.NDArray[np.uint8]

_NUMPY_LABELS = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "complex64": "C64",
    "complex128": "C128",
    "int64": "I64",
    "uint64": "U64",
    "int32": "I32",
    "uint32": "U32",
    "int16": "I16",
    "uint16": "U16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
"""Element types by their names in NumPy (those of ml_dtypes included); PyTorch calls them the same."""
_TORCH_LABELS = {**_NUMPY_LABELS, "complex32": "C32"}


class Elements(Protocol):
    """The elements of one tensor, numbered as they lie in the file."""

    item_bytes: int

    def read(self, first: int, count: int) -> Bytes:
        """The bytes of some elements, u8 ``(count * item_bytes,)``."""

    def write(self, at: int, data: bytes) -> None:
        """Put one element in place. Raises ValueError or RuntimeError where the array is read-only."""


@dataclass(frozen=True, slots=True)
class HeldTensor:
    """A tensor in memory. ``label`` is its element type without axes, ``dims`` its shape; ``reason`` why its bytes cannot be read, or "".

    ``memory`` is the same for two names of the same elements.
    """

    name: str
    label: str
    dims: tuple[int, ...]
    array: Any
    memory: tuple[Any, ...]
    reason: str = ""

    def elements(self, axes: tuple[int, ...]) -> Elements:
        """Its elements with the axes in this order, outermost first; as in the shape if empty."""
        if isinstance(self.array, np.ndarray):
            return _NumpyElements(self.array, axes)
        return _TorchElements(self.array, axes)


def held_tensors(target: Any) -> Iterator[HeldTensor]:
    """What a module or mapping holds.

    Raises:
        InputError: it is neither.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(target, torch.nn.Module):
        target = _unwrapped(torch, target).state_dict(keep_vars=True)
    if not isinstance(target, Mapping):
        raise InputError(f"a PyTorch module or a mapping of names to tensors is guarded, not {type(target).__name__}")
    for name, value in target.items():
        if torch is not None and isinstance(value, torch.Tensor):
            yield _held_torch(str(name), value)
        elif isinstance(value, np.ndarray):
            yield _held_numpy(str(name), value)
        else:
            yield HeldTensor(str(name), "", (), None, (id(value),), f"is a {type(value).__name__}, not a tensor")


def _unwrapped(torch: Any, module: Any) -> Any:
    """The module as it was saved: ``torch.compile`` and data parallelism put a name of theirs before all others."""
    while True:
        inner = getattr(module, "_orig_mod", None)  # of torch.compile
        if isinstance(inner, torch.nn.Module):
            module = inner
        elif isinstance(module, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
            module = module.module
        else:
            return module


def _held_numpy(name: str, array: npt.NDArray[Any]) -> HeldTensor:
    label = _NUMPY_LABELS.get(array.dtype.name, "")
    if label and array.dtype.itemsize > 1 and not array.dtype.isnative:
        label += ".BE"
    memory = (array.__array_interface__["data"][0], array.shape, array.strides, label)
    return HeldTensor(name, label, array.shape, array, memory, "" if label else f"has elements of type {array.dtype.name}")


class _NumpyElements:
    def __init__(self, array: npt.NDArray[Any], axes: tuple[int, ...]) -> None:
        ordered = np.asarray(array).transpose(axes) if axes else np.asarray(array)
        self._flat: Any = ordered.reshape(-1) if ordered.flags.c_contiguous else ordered.flat
        self._dtype, self._writeable = array.dtype, array.flags.writeable
        self.item_bytes = array.dtype.itemsize

    def read(self, first: int, count: int) -> Bytes:
        data: Bytes = np.ascontiguousarray(self._flat[first : first + count]).view(np.uint8)
        return data

    def write(self, at: int, data: bytes) -> None:
        if not self._writeable:
            raise ValueError("the array is read-only")
        self._flat[at : at + 1] = np.frombuffer(data, self._dtype)


def _held_torch(name: str, tensor: Any) -> HeldTensor:
    torch = sys.modules["torch"]
    label = _TORCH_LABELS.get(str(tensor.dtype).removeprefix("torch."), "")
    dims = tuple(int(dim) for dim in tensor.shape)
    reason = ""
    if not label:
        reason = f"has elements of type {tensor.dtype}"
    elif tensor.layout != torch.strided or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
        reason = "is sparse, quantised or a view that computes"
    elif tensor.device.type == "meta":
        reason = "has no memory (meta device)"
    elif type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        reason = f"is a {type(tensor).__name__}, whose memory is its own affair"
    if reason:
        return HeldTensor(name, label, dims, tensor, (id(tensor),), reason)
    return HeldTensor(name, label, dims, tensor, (str(tensor.device), tensor.data_ptr(), dims, tensor.stride(), label))


class _TorchElements:
    """Elements of a strided tensor on any device, whatever its strides.

    Goes through ``Tensor.data``: what is put right must not count as a change for a backward pass that is under way.
    """

    def __init__(self, tensor: Any, axes: tuple[int, ...]) -> None:
        self._torch = sys.modules["torch"]
        self._mode = self._torch.inference_mode if tensor.is_inference() else self._torch.no_grad
        self._dtype, self._device = tensor.dtype, tensor.device
        self.item_bytes = tensor.element_size()
        with self._mode():
            ordered = tensor.data.permute(axes) if axes else tensor.data
            self._steps = list(zip(ordered.shape, ordered.stride(), strict=True))
            reach = 1 + sum((dim - 1) * stride for dim, stride in self._steps) if math.prod(ordered.shape) else 0
            self._memory = ordered.as_strided((reach,), (1,), ordered.storage_offset())
            self._in_order = ordered.is_contiguous()

    def _select(self, first: int, count: int) -> Any:
        """What finds the elements in memory: a slice, or their places."""
        if self._in_order:
            return slice(first, first + count)
        left = self._torch.arange(first, first + count, device=self._device)
        places = self._torch.zeros_like(left)
        for dim, stride in reversed(self._steps):
            places += left.remainder(dim) * stride
            left = left.div(dim, rounding_mode="floor")
        return places

    def read(self, first: int, count: int) -> Bytes:
        with self._mode():
            data: Bytes = self._memory[self._select(first, count)].contiguous().view(self._torch.uint8).cpu().numpy()
        return data

    def write(self, at: int, data: bytes) -> None:
        with self._mode():
            value = self._torch.tensor(list(data), dtype=self._torch.uint8).view(self._dtype).to(self._device)
            self._memory[self._select(at, 1)] = value
