"""Tensors of PyTorch or NumPy on memory that was hashed: views of it, no copies. But for those whose elements lie where they may not, as a
header of odd length makes them lie: those are copied.

Element types are those of the safetensors format (its README and the tables of its Python package); PyTorch and NumPy are asked for their
own by name, so that a type which an installed version lacks is told.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from bitward_agent.errors import InputError
from bitward_formats.spans import Span

Bytes = npt.NDArray[np.uint8]
Build = Callable[[Bytes, str, tuple[int, ...]], Any]
"""(bytes, label of the element type, shape) -> tensor."""

_TORCH = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
    "C64": "complex64",
    "I64": "int64",
    "U64": "uint64",
    "I32": "int32",
    "U32": "uint32",
    "I16": "int16",
    "U16": "uint16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_NUMPY = {label: name for label, name in _TORCH.items() if label != "F4"}
FRAMEWORKS = {"pt": "pt", "torch": "pt", "pytorch": "pt", "np": "np", "numpy": "np"}
"""What ``framework`` may be, as safetensors calls them, and which of the two is meant."""


def builder(framework: str, device: Any) -> Build:
    """What makes tensors of ``framework`` ("pt" or "np") on ``device``.

    Raises:
        InputError: PyTorch is not installed, or a device was given for NumPy.
    """
    if framework == "np":
        if str(device) != "cpu":
            raise InputError(f"NumPy has no device {device!r}")
        return _numpy_array
    try:
        torch = import_module("torch")
    except ImportError:
        raise InputError("tensors of PyTorch need torch: pip install 'bitward[torch]', or framework='np'") from None
    where = torch.device(f"cuda:{device}" if isinstance(device, int) else device)
    if where.type == "cpu":
        return partial(_torch_tensor, torch)
    return lambda data, label, shape: _torch_tensor(torch, data, label, shape).to(where)


def _torch_tensor(torch: Any, data: Bytes, label: str, shape: tuple[int, ...]) -> Any:
    dtype = getattr(torch, _TORCH.get(label, ""), None)
    if dtype is None:
        raise InputError(f"this PyTorch ({torch.__version__}) has no element type for {label}")
    if label == "F4":  # one element of PyTorch's type holds two of the file's
        shape = (*shape[:-1], shape[-1] // 2) if shape else shape
    if not len(data):  # which torch.frombuffer does not take
        return torch.empty(shape, dtype=dtype)
    tensor = torch.frombuffer(data, dtype=dtype)
    if tensor.data_ptr() % dtype.itemsize:
        tensor = torch.frombuffer(data.copy(), dtype=dtype)
    return tensor if len(shape) == 1 else tensor.view(shape)


def _numpy_array(data: Bytes, label: str, shape: tuple[int, ...]) -> Any:
    try:
        dtype = np.dtype(_NUMPY.get(label, label))
    except TypeError:
        raise InputError(f"NumPy has no element type for {label}: import ml_dtypes, or framework='pt'") from None
    array = data.view(dtype)
    return (array if array.flags.aligned else data.copy().view(dtype)).reshape(shape)


def rows_between(span: Span, low: int, high: int) -> tuple[int, int]:
    """The bytes of the file that hold rows ``low`` to ``high`` of a tensor's outermost dimension."""
    row_bytes = span.length // span.dims[0]
    return span.offset + low * row_bytes, span.offset + high * row_bytes
