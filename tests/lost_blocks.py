"""A protected file of which more blocks of one stripe are lost than its parity can restore, and its repair from sources."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import bitward
import checkpoints
from bitward_agent.findings import FileRepair
from bitward_agent.repair import RepairRequest, repair_file
from bitward_agent.sources.limits import Limits
from bitward_agent.sources.opening import Places
from bitward_agent.verify import open_sidecar
from bitward_formats.blocks import Block

HASTE = Limits(connect_seconds=5, silence_seconds=5, first_pause_seconds=0.0, longest_pause_seconds=0.0)
"""No pauses between attempts."""


def made_checkpoint(mebibytes: int, seed: int = 1) -> dict[str, checkpoints.Tensor]:
    """Tensors of 1 MiB and a bit, so that no block of two copies with another order lies at the same offset."""
    made = np.random.default_rng(seed)
    sizes = [(1 << 20) + 96 * index for index in range(mebibytes)]
    return {f"layers.{index}.weight": ("BF16", (size // 2,), made.bytes(size)) for index, size in enumerate(sizes)}


class LostBlocks:
    """``file`` is protected; ``clean`` are its right bytes; ``blocks`` are the lost ones, sorted."""

    def __init__(self, file: Path, count: int = 3, *, seed: int = 0) -> None:
        self.file, self.clean = file, file.read_bytes()
        assert bitward.protect(file).exit_code == 0
        ward, sidecar, _ = open_sidecar(f"{file}.ward")
        ward.close()
        zone = sidecar.plan.geometry.zones[0]
        pieces = [piece for position in range(count) for piece in zone.code_class.pieces(zone.slot(seed % zone.stripe_count, position))]
        self.blocks: list[Block] = sorted((piece.block for piece in pieces), key=lambda one: one.offset)
        self.mtime_ns = sidecar.superblock.mtime_ns
        self.lose()

    def lose(self) -> None:
        """Overwrite the blocks with noise; the file's time stays."""
        with self.file.open("r+b") as file:
            for block in self.blocks:
                file.seek(block.offset)
                file.write(random.Random(block.number).randbytes(block.length))
        os.utime(self.file, ns=(self.mtime_ns, self.mtime_ns))

    @property
    def lost_bytes(self) -> int:
        return sum(block.length for block in self.blocks)

    @property
    def is_whole(self) -> bool:
        return self.file.read_bytes() == self.clean

    def repair(self, sources: Sequence[str], limits: Limits = HASTE, *, dry_run: bool = False) -> FileRepair:
        """Repair the file from sources within limits that only tests need to set."""
        with Places(sources, limits) as places:
            opened = places.of_file(str(self.file), self.file.name, alone=True)
            try:
                return repair_file(str(self.file), f"{self.file}.ward", RepairRequest(tuple(opened), dry_run=dry_run))
            finally:
                for source in opened:
                    source.close()
