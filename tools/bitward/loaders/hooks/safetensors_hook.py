"""Under safetensors: ``safe_open``, on which its ``load_file`` for every framework is built, and transformers and accelerate as well."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

from bitward.loaders.gated import charge_of
from bitward.loaders.loading import NAMELESS_TOLD, name_of, open_safetensors, verified_path
from bitward.loaders.patching import Patches
from bitward.loaders.policy import Policy, current_gate, gated_off
from bitward.loaders.safetensors_file import VerifiedFile
from bitward.loaders.tensors import FRAMEWORKS

_LOADER = "safetensors.safe_open"


def install(module: ModuleType, patches: Patches) -> None:
    """Replace the class wherever it is known by name; a class of the package's own compiled module cannot be changed itself."""
    patches.set_everywhere(module.safe_open, gated_class(module.safe_open))
    handle = getattr(module, "_safe_open_handle", None)
    if handle is not None:
        patches.set_everywhere(handle, _gated_handle(handle))


def gated_class(original: Any) -> Any:
    """A stand-in for the class ``safe_open``: called, it gives a verified file where a gate is in force, else the original's instance."""

    class Meta(type):
        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, (original, VerifiedFile))

        def __call__(cls, filename: Any, framework: Any = None, device: Any = "cpu", **options: Any) -> Any:
            gate = current_gate()
            if gate is None or gate.policy is Policy.OFF or not isinstance(filename, (str, os.PathLike)) or not isinstance(framework, str):
                return original(filename, framework, device, **options)
            name = os.fspath(filename)
            if framework not in FRAMEWORKS:
                with verified_path(name, gate, _LOADER) as path, gated_off():
                    return original(path, framework, device, **options)
            file = open_safetensors(name, framework, device, gate, _LOADER)
            return original(filename, framework, device, **options) if file is None else file

    return Meta("safe_open", (), {"__doc__": original.__doc__, "__module__": original.__module__})


def _gated_handle(original: Any) -> Any:
    """A stand-in for what opens a file that is open already: it gets the file of that name, verified."""

    def safe_open_handle(handle: Any, *args: Any, **options: Any) -> Any:
        gate = current_gate()
        if gate is None or gate.policy is Policy.OFF:
            return original(handle, *args, **options)
        name = name_of(handle.fileno())
        if name is None:
            charge_of(gate, repr(type(handle).__name__), _LOADER).unverifiable(NAMELESS_TOLD, is_absent=True)
            return original(handle, *args, **options)
        with verified_path(name, gate, _LOADER) as path, open(path, "rb") as copy, gated_off():
            return original(copy, *args, **options)

    return safe_open_handle
