"""NumPy's array files (``.npy``): a header, and the elements of one array.

An array has no name of its own; its span is called ``array``. Source: ``numpy.lib.format``, versions 1.0 to 3.0.
"""

from __future__ import annotations

from bitward_formats.readers.file_view import FileView
from bitward_formats.readers.npy_header import MAGIC, array_spans, read_header
from bitward_formats.spans import Layout

NAME = "npy"
SUFFIXES: tuple[str, ...] = (".npy",)
ARRAY_NAME = "array"


def looks_like(head: bytes, file_bytes: int, name: str) -> bool:  # noqa: ARG001 - the readers' common signature
    """Whether it begins with NumPy's magic bytes, or the name ends as it should."""
    return head.startswith(MAGIC) or name.lower().endswith(SUFFIXES)


def read_layout(view: FileView) -> Layout:
    """The header, the array, and what else may follow. Raises CheckpointError."""
    header = read_header(view.fetch, 0, view.size)
    spans = array_spans(header, 0, view.size, ARRAY_NAME)
    note = "" if header.dtype else f"the array holds {header.meaning}; it is protected as opaque bytes"
    return Layout(NAME, view.size, tuple(spans), note)
