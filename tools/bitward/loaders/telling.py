"""Telling people what a gate let through, at the line of their own program that loads."""

from __future__ import annotations

import sys
import warnings

from bitward.loaders.refusals import ModelWarning

_LIBRARIES = ("accelerate", "gguf", "llama_cpp", "onnxruntime", "safetensors", "torch", "transformers")
_NOT_THEIRS = ("bitward", "concurrent", "threading", *_LIBRARIES)


def tell(message: str) -> None:
    """Warn, each time anew: the usual once for each line would hide the second damaged model."""
    frame = sys._getframe(1)  # noqa: SLF001  # the documented way to walk the stack without taking it apart
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _NOT_THEIRS:
        frame = frame.f_back
    warnings.warn_explicit(message, ModelWarning, frame.f_code.co_filename, frame.f_lineno, registry={})
