"""Under llama-cpp-python: ``Llama``, which hands paths to llama.cpp, which opens and maps them itself.

Names of the parameters are those of its API reference; names of split models those of llama.cpp (``llama_split_path``:
``PREFIX-%05d-of-%05d.gguf``), all parts in one folder.
"""

from __future__ import annotations

import functools
import os
import re
from contextlib import ExitStack
from types import ModuleType
from typing import Any

from bitward.loaders.gated import charge_of, open_gated
from bitward.loaders.patching import Patches
from bitward.loaders.policy import Gate, Policy, current_gate, gated_off
from bitward.loaders.sealed import SealedFolder, copy_into

_LOADER = "llama_cpp.Llama"
_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.ASCII | re.DOTALL)
_LORA = ("lora_path", "lora_base")


def install(module: ModuleType, patches: Patches) -> None:
    """Replace the class's ``__init__``."""
    original = module.Llama.__init__

    @functools.wraps(original)
    def init(self: Any, model_path: str, **options: Any) -> None:
        gate = current_gate()
        if gate is None or gate.policy is Policy.OFF:
            original(self, model_path, **options)
            return
        with ExitStack() as stack:
            verified = _verified(stack, gate, os.fspath(model_path))
            changed = {name: _verified(stack, gate, os.fspath(options[name])) for name in _LORA if options.get(name)}
            with gated_off():
                original(self, verified, **{**options, **changed})
        # Pickling and copying make the model anew from its path.
        self.model_path = model_path

    patches.set(module.Llama, "__init__", init)


def parts_of(path: str) -> list[str]:
    """All files of a split model of which this is one; the file alone, if it is none."""
    folder, name = os.path.split(path)
    match = _SPLIT.fullmatch(name)
    if match is None or not 1 <= int(match[2]) <= int(match[3]):
        return [path]
    return [os.path.join(folder, f"{match[1]}-{number:05d}-of-{match[3]}.gguf") for number in range(1, int(match[3]) + 1)]


def _verified(stack: ExitStack, gate: Gate, path: str) -> str:
    """The path of a verified copy, beside those of the other parts; the path itself where the policy lets all of them be as they are.

    A part that the policy lets be loaded unverified (that was told) stands beside the copies by a link: the others are verified no less.
    """
    folder = stack.enter_context(SealedFolder())
    found, is_any_verified = path, False
    for part in parts_of(path):
        gated = open_gated(charge_of(gate, part, _LOADER))
        is_any_verified = is_any_verified or gated is not None
        place = folder.link(part) if gated is None else copy_into(folder, [(part, gated)])[0]
        found = place if part == path else found
    return found if is_any_verified else path
