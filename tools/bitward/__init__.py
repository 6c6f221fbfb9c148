"""Bitward keeps model weights true: parity and hashes beside a checkpoint, flipped bits found and put back.

The functions are those of the command line and return frozen values of the same shape as its JSON documents. They load
on first use, so that ``import bitward`` costs next to nothing.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitward.api import (
        diff,
        enforce,
        explain,
        guard,
        inspect,
        load_safetensors,
        protect,
        repair,
        safe_open,
        seal,
        torch_load,
        verify,
    )
    from bitward.loaders.refusals import ChangedModelError, DamagedModelError, LoadRefusedError, ModelWarning, UnverifiableModelError

__version__ = "0.1.0"

__all__ = [
    "ChangedModelError",
    "DamagedModelError",
    "LoadRefusedError",
    "ModelWarning",
    "UnverifiableModelError",
    "__version__",
    "diff",
    "enforce",
    "explain",
    "guard",
    "inspect",
    "load_safetensors",
    "protect",
    "repair",
    "safe_open",
    "seal",
    "torch_load",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Load the public function ``name`` from ``bitward.api`` on first use, and the gates' errors from where they are."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    home = "bitward.loaders.refusals" if name.endswith(("Error", "Warning")) else "bitward.api"
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _enforce_if_asked() -> None:
    """``BITWARD_ENFORCE`` gates the loaders of every program that imports Bitward. A program that asks for a gate never runs without."""
    if not os.environ.get("BITWARD_ENFORCE"):
        return
    from bitward.loaders.enforcing import enforce_from_environment
    from bitward_agent.errors import InputError

    try:
        enforce_from_environment()
    except InputError as error:
        sys.stderr.write(f"bitward: {error}\n")
        raise SystemExit(2) from None


_enforce_if_asked()
