"""A program that loads models, as any program does: it knows nothing of Bitward but what its environment or ``bitward.enforce`` does.

It reads requests from its standard input, one JSON document a line, and answers each with one. Run by ``loading.py``.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from contextlib import nullcontext
from typing import Any

KEPT: dict[str, Any] = {}
"""What stays open between two requests."""


def digest(tensors: dict[str, Any]) -> str:
    """One digest over the names and the bytes of tensors, whichever library they are of."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        if type(value).__module__.startswith("torch"):
            import torch

            value = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy() if value.numel() else b""
        whole.update(name.encode())
        whole.update(value if isinstance(value, bytes) else value.tobytes())
    return whole.hexdigest()


def load_safetensors_torch(path: str) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path)


def load_safetensors_numpy(path: str) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(path)


def load_lazily(path: str) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.offset_keys()}


def load_torch(path: str) -> dict[str, Any]:
    import torch

    return torch.load(path)


def load_torch_mapped(path: str) -> dict[str, Any]:
    import torch

    return torch.load(path, mmap=True)


def load_torch_file(path: str) -> dict[str, Any]:
    import torch

    with open(path, "rb") as file:
        return torch.load(file)


def load_gguf(path: str) -> dict[str, Any]:
    from gguf import GGUFReader

    return {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}


def load_onnxruntime(path: str) -> dict[str, Any]:
    import numpy
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ids = (numpy.arange(24, dtype=numpy.int64) * 997 % 30_000).reshape(1, -1)
    feed = {one.name: ids if "ids" in one.name and "type" not in one.name else numpy.ones_like(ids) for one in session.get_inputs()}
    return {f"output {number}": array for number, array in enumerate(session.run(None, feed))}


def load_transformers(path: str) -> dict[str, Any]:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers.AutoModel.from_pretrained(path).state_dict()


def open_lazily(path: str) -> dict[str, Any]:
    """Opens and keeps open; the tensors come with ``continue``."""
    from safetensors import safe_open

    KEPT["file"] = safe_open(path, framework="pt")
    return {}


def go_on(_path: str) -> dict[str, Any]:
    file = KEPT["file"]
    return {name: file.get_tensor(name) for name in file.offset_keys()}


def keep(path: str) -> dict[str, Any]:
    """Loads and keeps what was loaded, mapped where the library maps."""
    KEPT["tensors"] = (load_gguf if path.endswith(".gguf") else load_torch_mapped)(path)
    return KEPT["tensors"]


def kept(_path: str) -> dict[str, Any]:
    return KEPT["tensors"]


LOADERS = {
    "safetensors.torch": load_safetensors_torch,
    "safetensors.numpy": load_safetensors_numpy,
    "safe_open": load_lazily,
    "torch": load_torch,
    "torch mmap": load_torch_mapped,
    "torch file": load_torch_file,
    "gguf": load_gguf,
    "onnxruntime": load_onnxruntime,
    "transformers": load_transformers,
    "open": open_lazily,
    "continue": go_on,
    "keep": keep,
    "kept": kept,
}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    policy = request["policy"]
    gate: Any = nullcontext()
    if policy is not None:
        import bitward

        gate = bitward.enforce(policy)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            with gate as entered:
                found = digest(LOADERS[request["loader"]](request["path"]))
                verified = sum(entered.verified.values()) if entered is not None else 0
            outcome = {"loaded": found, "verified": verified}
        except Exception as error:  # noqa: BLE001  # whatever it is, the test is told
            outcome = {"error": type(error).__name__, "message": str(error)}
    return outcome | {"told": [str(one.message) for one in told if one.category.__name__ == "ModelWarning"]}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
