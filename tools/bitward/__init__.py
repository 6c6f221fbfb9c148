"""Bitward keeps model weights true: parity and hashes beside a checkpoint, flipped bits found and put back.

The functions are those of the command line and return frozen values of the same shape as its JSON documents. They load
on first use, so that ``import bitward`` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitward.api import diff, explain, guard, inspect, protect, repair, seal, verify

__version__ = "0.1.0"

__all__ = ["__version__", "diff", "explain", "guard", "inspect", "protect", "repair", "seal", "verify"]


def __getattr__(name: str) -> Any:
    """Load the public function ``name`` from ``bitward.api`` on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module("bitward.api"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
