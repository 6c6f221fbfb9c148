"""Under PyTorch: ``torch.load`` and ``torch.jit.load``."""

from __future__ import annotations

import functools
import io
import os
from types import ModuleType
from typing import Any

from bitward.loaders.gated import charge_of
from bitward.loaders.loading import NAMELESS_TOLD, name_of, verified_path
from bitward.loaders.patching import Patches
from bitward.loaders.policy import Gate, Policy, current_gate, gated_off


def install(module: ModuleType, patches: Patches) -> None:
    """Replace both functions wherever they are known by name."""
    patches.set_everywhere(module.load, gated_load(module.load, "torch.load"))
    patches.set_everywhere(module.jit.load, gated_load(module.jit.load, "torch.jit.load"))


def gated_load(original: Any, loader: str) -> Any:
    """A stand-in for a function whose first argument is a path or an open file."""

    @functools.wraps(original)
    def load(f: Any, *args: Any, **options: Any) -> Any:
        gate = current_gate()
        if gate is None or gate.policy is Policy.OFF:
            return original(f, *args, **options)
        if isinstance(f, (str, os.PathLike)):
            name = os.fspath(f)
            if name.endswith(".safetensors"):
                return original(f, *args, **options)  # it asks safetensors, which is gated itself
            with verified_path(name, gate, loader) as path, gated_off():
                return original(path, *args, **options)
        return _from_open_file(original, loader, gate, f, *args, **options)

    return load


def _from_open_file(original: Any, loader: str, gate: Gate, f: Any, *args: Any, **options: Any) -> Any:
    """An open file gives way to a verified copy of the file of its name; bytes in memory are what the program made them."""
    plain = getattr(f, "file", f)  # the wrapper of tempfile
    if isinstance(plain, io.BytesIO):
        return original(f, *args, **options)
    if not _is_whole_file(plain):
        charge_of(gate, repr(type(f).__name__), loader).unverifiable("a stream that is no plain file", is_absent=True)
        return original(f, *args, **options)
    name = name_of(plain.fileno())
    if name is None:
        charge_of(gate, str(plain.name), loader).unverifiable(NAMELESS_TOLD, is_absent=True)
        return original(f, *args, **options)
    with verified_path(name, gate, loader) as path:
        if path == name:
            return original(f, *args, **options)
        with open(path, "rb") as copy, gated_off():
            copy.seek(plain.tell())
            loaded = original(copy, *args, **options)
            plain.seek(copy.tell())
    return loaded


def _is_whole_file(f: Any) -> bool:
    """Whether reading it gives the bytes of the file behind its descriptor; those of gzip and tar have one too and give others."""
    raw = f.raw if isinstance(f, (io.BufferedReader, io.BufferedRandom)) else f
    return isinstance(raw, io.FileIO)
