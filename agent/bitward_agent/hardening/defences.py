"""The defences that a campaign compares, each on its own copy of the same damaged files.

- *none*: the files as they are;
- *flipguard*: mask and clip, with the guard that was measured on the clean files;
- *strong*: a sidecar of preset ``strong`` and a repair with best effort, no other copy; what parity cannot restore stays damaged;
- *repair*: the same sidecar, and a clean copy as source: every block is held against its digest, so that all comes back.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from enum import StrEnum

import numpy as np

from bitward_agent.errors import BitwardError
from bitward_agent.findings import Verdict
from bitward_agent.flips import count_flips
from bitward_agent.hardening.exponent_guard import FileGuard, apply, measure
from bitward_agent.io import OpenFile
from bitward_agent.protect import Protection, preset_groups, protect_file
from bitward_agent.repair import RepairRequest, repair_file
from bitward_agent.sources.local import LocalSource
from bitward_formats.digest import LeafHash
from bitward_formats.frozen import dataclass

_WINDOW_BYTES = 16 << 20


class Defence(StrEnum):
    NONE = "none"
    FLIPGUARD = "flipguard"
    STRONG = "strong"
    REPAIR = "repair"


@dataclass(frozen=True, slots=True)
class Prepared:
    """Clean files with what each defence needs, in one folder: ``clean`` paths, ``sidecars`` and ``guards`` in the same order."""

    folder: str
    clean: tuple[str, ...]
    sidecars: tuple[str, ...]
    guards: tuple[FileGuard, ...]


def prepare(originals: Sequence[str], folder: str) -> Prepared:
    """Copy the files into ``folder/clean``, protect the copies with preset ``strong``, and measure their guard.

    Raises:
        UnreadableError, WriteError: A file cannot be read or written.
    """
    clean_folder = os.path.join(folder, "clean")
    os.mkdir(clean_folder)
    clean, sidecars, guards = [], [], []
    for original in originals:
        copy = os.path.join(clean_folder, os.path.basename(original))
        shutil.copyfile(original, copy)
        sidecar = os.path.join(folder, os.path.basename(original) + ".ward")
        protect_file(copy, sidecar, Protection(preset_groups("strong"), "strong", LeafHash.XXH3))
        clean.append(copy)
        sidecars.append(sidecar)
        guards.append(measure(copy, os.path.basename(original)))
    return Prepared(folder, tuple(clean), tuple(sidecars), tuple(guards))


def copy_files(paths: Sequence[str], folder: str) -> list[str]:
    """Copies in a fresh folder, with their times."""
    shutil.rmtree(folder, ignore_errors=True)
    os.mkdir(folder)
    copies = []
    for path in paths:
        copies.append(os.path.join(folder, os.path.basename(path)))
        shutil.copyfile(path, copies[-1])
        times = os.stat(path)
        os.utime(copies[-1], ns=(times.st_atime_ns, times.st_mtime_ns))
    return copies


def defend(defence: Defence, damaged: Sequence[str], prepared: Prepared, folder: str) -> list[str]:
    """Copies of the damaged files in ``folder``, after the defence did what it can.

    Raises:
        BitwardError: A repair could not be tried at all; that is no result of a defence.
    """
    copies = copy_files(damaged, folder)
    for number, copy in enumerate(copies):
        match defence:
            case Defence.NONE:
                pass
            case Defence.FLIPGUARD:
                apply(copy, prepared.guards[number])
            case Defence.STRONG:
                _repair(copy, prepared.sidecars[number], RepairRequest(best_effort=True))
            case Defence.REPAIR:
                source = LocalSource(prepared.clean[number], copy)
                _repair(copy, prepared.sidecars[number], RepairRequest(sources=(source,)))
    return copies


def _repair(path: str, sidecar: str, request: RepairRequest) -> None:
    own = f"{path}.ward"
    shutil.copyfile(sidecar, own)
    done = repair_file(path, own, request)
    if done.verdict is Verdict.UNVERIFIABLE or done.verdict is Verdict.CHANGED:
        raise BitwardError(f"{os.path.basename(path)}: the repair could not be tried: {done.verdict.value} {done.message}")


def wrong_bits(paths: Sequence[str], clean: Sequence[str]) -> int:
    """How many bits of the files differ from the clean ones."""
    count = 0
    for path, right in zip(paths, clean, strict=True):
        with OpenFile(path) as one, OpenFile(right) as other:
            for offset in range(0, other.state().size, _WINDOW_BYTES):
                a, b = (np.frombuffer(file.read(offset, _WINDOW_BYTES), np.uint8) for file in (one, other))
                count += count_flips(a, b)
    return count
