"""Under gguf: ``GGUFReader``, which maps its file (``numpy.memmap``); transformers reads GGUF files with it."""

from __future__ import annotations

import functools
import os
from types import ModuleType
from typing import Any

from bitward.loaders.gated import charge_of
from bitward.loaders.loading import verified_path
from bitward.loaders.patching import Patches
from bitward.loaders.policy import Policy, current_gate, gated_off

_LOADER = "gguf.GGUFReader"


def install(module: ModuleType, patches: Patches) -> None:
    """Replace the class's ``__init__``."""
    original = module.GGUFReader.__init__

    @functools.wraps(original)
    def init(self: Any, path: Any, mode: str = "r") -> None:
        gate = current_gate()
        if gate is None or gate.policy is Policy.OFF or not isinstance(path, (str, os.PathLike)):
            original(self, path, mode)
            return
        if mode not in ("r", "c"):
            told = f"opened with mode {mode!r}, which writes to the file itself; put bitward.enforce('off') around an editor"
            charge_of(gate, os.fspath(path), _LOADER).unverifiable(told)
            original(self, path, mode)
            return
        with verified_path(os.fspath(path), gate, _LOADER) as verified, gated_off():
            original(self, verified, mode)

    patches.set(module.GGUFReader, "__init__", init)
