"""A tiny language model for the tests that run one, trained once per session."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory of 100,000 bf16 weights. Tests copy what they damage."""
    import torch

    torch.set_num_threads(1)  # matrices this small gain nothing from a second thread, and lose all where threads must wait for a core
    return _tiny_models().train_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


def _tiny_models():
    """The module beside this one: tests are imported by path."""
    name = "bitward_tests_tiny_models"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("tiny_models.py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture
def flip_in_file() -> Callable[[Path, str, int, int], None]:
    """Turn a bit of an element (row-major number) of a tensor of a safetensors file."""
    from bitward_agent.inspection import inspect_file

    def flip(path: Path, tensor: str, element: int, bit: int) -> None:
        span = next(one for one in inspect_file(str(path)).spans if one.tensor == tensor)
        width = {"BF16": 2, "F16": 2, "F32": 4}[span.dtype]
        with path.open("r+b") as file:
            file.seek(span.offset + element * width + bit // 8)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1 << bit % 8]))

    return flip
