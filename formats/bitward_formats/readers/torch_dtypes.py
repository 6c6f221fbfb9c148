"""PyTorch's element types: what they are called in a pickle, and what Bitward calls them.

Old types have a storage class of their own, newer ones stand as ``torch.NAME`` beside an untyped storage (``_dtype_to_storage_type_map``
and ``_new_dtypes`` in ``torch/storage.py``). Packed types whose shape does not count bytes have no label: their bytes are shown flat.
"""

from __future__ import annotations

_STORAGES: dict[str, tuple[str | None, int]] = {
    "DoubleStorage": ("F64", 8),
    "FloatStorage": ("F32", 4),
    "HalfStorage": ("F16", 2),
    "BFloat16Storage": ("BF16", 2),
    "LongStorage": ("I64", 8),
    "IntStorage": ("I32", 4),
    "ShortStorage": ("I16", 2),
    "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1),
    "BoolStorage": ("BOOL", 1),
    "ComplexDoubleStorage": ("C128", 16),
    "ComplexFloatStorage": ("C64", 8),
    "QInt8Storage": ("I8", 1),
    "QUInt8Storage": ("U8", 1),
    "QInt32Storage": ("I32", 4),
    # Several elements to a byte: the shape counts elements, the storage bytes.
    "QUInt4x2Storage": (None, 1),
    "QUInt2x4Storage": (None, 1),
    "UntypedStorage": ("U8", 1),
}

_DTYPES: dict[str, tuple[str | None, int]] = {
    "float64": ("F64", 8),
    "float32": ("F32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "int64": ("I64", 8),
    "int32": ("I32", 4),
    "int16": ("I16", 2),
    "int8": ("I8", 1),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
    "complex128": ("C128", 16),
    "complex64": ("C64", 8),
    "complex32": ("C32", 4),
    "uint16": ("U16", 2),
    "uint32": ("U32", 4),
    "uint64": ("U64", 8),
    "float8_e5m2": ("F8_E5M2", 1),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2fnuz": ("F8_E5M2FNUZ", 1),
    "float8_e4m3fnuz": ("F8_E4M3FNUZ", 1),
    "float8_e8m0fnu": ("F8_E8M0", 1),
    # Bytes of several small elements; the shape counts the bytes.
    "float4_e2m1fn_x2": ("U8", 1),
    "bits8": ("U8", 1),
    "bits16": ("U16", 2),
    "bits1x8": ("U8", 1),
    "bits2x4": ("U8", 1),
    "bits4x2": ("U8", 1),
}


def storage_label(name: str) -> tuple[str | None, int]:
    """Label and bytes of the elements of a storage class; (None, 1) for one that is not known."""
    return _STORAGES.get(name, (None, 1))


def dtype_label(name: str) -> tuple[str | None, int]:
    """Label and bytes of the elements of ``torch.NAME``; (None, 1) for one that is not known."""
    return _DTYPES.get(name, (None, 1))
