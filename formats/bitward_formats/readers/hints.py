"""Which readers a file may be for, by a few bytes and its name: a reader is loaded only for a file that may be its own.

A hint allows more than its reader's ``looks_like`` does, never less; loading all readers would take longer than verifying a small file.
"""

from __future__ import annotations

from bitward_formats.frozen import dataclass

_ZIP = b"PK\x03\x04"
_HDF5 = b"\x89HDF\r\n\x1a\n"
_CHECKPOINT = (".pt", ".pth", ".bin", ".ckpt", ".pth.tar", ".tar", ".jit", ".ptl")


@dataclass(frozen=True, slots=True)
class Hint:
    """A reader's module, the endings of its files' names in lower case, and ``marks``: (offset, bytes), one of which a file may have."""

    module: str
    suffixes: tuple[str, ...]
    marks: tuple[tuple[int, bytes], ...] = ()

    def is_possible(self, head: bytes, name: str) -> bool:
        """Whether a file with these first bytes and this name may be the reader's."""
        return name.lower().endswith(self.suffixes) or any(head.startswith(mark, offset) for offset, mark in self.marks)


READERS: tuple[Hint, ...] = (
    Hint("gguf", (".gguf",), ((0, b"GGUF"),)),
    Hint("safetensors", (".safetensors",), ((8, b"{"),)),
    Hint("npy", (".npy",), ((0, b"\x93NUMPY"),)),
    Hint("npz", (".npz",), ((0, _ZIP),)),
    Hint("hdf5", (".h5", ".hdf5"), tuple((place, _HDF5) for place in (0, 512, 1024, 2048))),
    Hint("onnx", (".onnx",), ((0, b"\x08"),)),
    Hint("tflite", (".tflite",), ((4, b"TFL3"),)),
    Hint("torch_dcp", (".distcp",)),
    Hint("torch_legacy", _CHECKPOINT, ((0, b"\x80"), (0, b"L"), (257, b"ustar"))),
    Hint("torch_zip", _CHECKPOINT, ((0, _ZIP),)),
)
"""In the order in which they are tried; what is left is shown to the companions, and what they leave is opaque."""

COMPANIONS: tuple[Hint, ...] = (Hint("onnx_data", (".onnx",)),)
"""Readers of files that have no header and any name; here ``suffixes`` are those of a file beside them that may explain them."""
