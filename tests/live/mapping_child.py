"""A process that maps a checkpoint and computes with it, told what to do line by line on standard input. Run by the tests, not imported.

    mapping_child.py HOW PATH      HOW: shared | private | both | window | safe_open | load_file | torch_mmap

Answers each line with one line: ``sum`` the SHA-256 of all weights as they are now, ``flip NAME BYTE BIT``, ``scale NAME``.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import sys
from typing import Any

import numpy as np

# PR_SET_PTRACER, PR_SET_PTRACER_ANY: where kernel.yama.ptrace_scope is 1, processes that do not descend from one another may look too.
ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)
how, path = sys.argv[1:]
held: dict[str, Any] = {}
kept: list[Any] = []


def places() -> dict[str, tuple[int, int]]:
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    return {name: (8 + size + low, 8 + size + high) for name, one in header.items() for low, high in [one["data_offsets"]]}


if how in ("shared", "private"):
    whole = np.memmap(path, np.uint8, mode="r" if how == "shared" else "c")
    held = {name: whole[low:high] for name, (low, high) in places().items()}
elif how == "both":
    views = [np.memmap(path, np.uint8, mode=mode) for mode in "rcc"]
    held = {f"{index}.{name}": view[low:high] for index, view in enumerate(views) for name, (low, high) in places().items()}
elif how == "window":
    with open(path, "rb") as file:
        kept.append(mmap.mmap(file.fileno(), 40960, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE, offset=40960))
    held = {"window": np.frombuffer(kept[0], np.uint8)}
elif how == "safe_open":
    from safetensors import safe_open

    kept.append(safe_open(path, "numpy"))
elif how == "load_file":
    from safetensors.torch import load_file

    kept.append(load_file(path))
    held = {name: one.numpy().reshape(-1).view(np.uint8) for name, one in kept[0].items()}
elif how == "torch_mmap":
    import torch

    kept.append(torch.load(path, mmap=True, weights_only=True))
    held = {name: one.numpy().reshape(-1).view(np.uint8) for name, one in kept[0].items()}


def answer(words: list[str]) -> str:
    if words[0] == "sum":
        digest = hashlib.sha256()
        if how == "safe_open":
            for name in sorted(kept[0].keys()):
                digest.update(kept[0].get_tensor(name).tobytes())
        for name in sorted(held):
            digest.update(held[name].tobytes())
        return digest.hexdigest()
    if words[0] == "flip":
        held[words[1]][int(words[2])] ^= 1 << int(words[3])
    elif words[0] == "scale":
        held[words[1]].view(np.float32)[:] *= np.float32(1.01)
    return "done"


print("ready", flush=True)
for line in sys.stdin:
    print(answer(line.split()), flush=True)
