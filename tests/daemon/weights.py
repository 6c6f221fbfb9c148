"""Small files of weight-like numbers with sidecars, and ways to hurt them, for the tests of the agent."""

from __future__ import annotations

import os
import random
from pathlib import Path

import checkpoints
from bitward_agent.daemon.config import OnChange, OnDamage, WatchConfig
from bitward_agent.findings import FileVerification
from bitward_agent.protect import Protection, preset_groups, protect_file
from bitward_agent.verify import verify_file

XXH3 = 1


def write_weights(path: Path, *, seed: int = 1, kilobytes: int = 5000) -> Path:
    """A safetensors file of one BF16 tensor of about that size: several chunks of a scrub, no two sectors alike."""
    seeded = random.Random(seed)
    rows = kilobytes * 1024 // 1024
    data = bytearray(seeded.randbytes(rows * 1024))
    data[1::2] = bytes(0x3A + (byte & 3) + (byte & 0x80) for byte in data[1::2])
    return checkpoints.write_safetensors(path, {"model.weight": ("BF16", (rows, 512), bytes(data))})


def protect(path: Path, *, sidecar: Path | None = None, preset: str = "standard") -> Path:
    """Protect a file; returns its sidecar."""
    ward = sidecar or Path(f"{path}.ward")
    protect_file(str(path), str(ward), Protection(preset_groups(preset), preset, XXH3), jobs=1)
    return ward


def verify(path: Path) -> FileVerification:
    return verify_file(str(path), f"{path}.ward", jobs=1)


def flip(path: Path, *places: tuple[int, int], keep_mtime: bool = True) -> None:
    """Flip bits: (offset, bit) each. The time stays unless somebody is to have written the file."""
    state = path.stat()
    with path.open("r+b") as file:
        for offset, bit in places:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1 << bit]))
    if keep_mtime:
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def watch_of(
    folder: Path, *, on_damage: OnDamage = OnDamage.HEAL, on_change: OnChange = OnChange.PROTECT, sources: tuple[str, ...] = ()
) -> WatchConfig:
    return WatchConfig(str(folder), on_damage=on_damage, on_change=on_change, sources=sources)
