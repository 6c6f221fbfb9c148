"""In one process: verify and protect next to the machine's own limit, which is a plain XOR over the same bytes in NumPy.

Run as a program: ``python inside.py FILE ROUNDS`` prints one JSON object of best seconds. Rounds alternate between all of them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import bitward

_READ_BYTES = 1 << 20


def _read(path: str, start: int, end: int) -> None:
    buffer = bytearray(_READ_BYTES)
    fd = os.open(path, os.O_RDONLY)
    for at in range(start, end, _READ_BYTES):
        os.preadv(fd, [buffer], at)
    os.close(fd)


def _halves(size: int, parts: int) -> list[tuple[int, int]]:
    return [(size * part // parts, size * (part + 1) // parts) for part in range(parts)]


def measure(path: str, rounds: int) -> dict[str, float]:
    """Best seconds of each, by name."""
    words = np.fromfile(path, np.uint64)  # the flat reduction is the fastest plain XOR that NumPy has (tried: rows of 1 to 128 KiB)
    size = os.path.getsize(path)
    with ThreadPoolExecutor(2) as pool:

        def xor(threads: int) -> None:
            list(pool.map(lambda cut: np.bitwise_xor.reduce(words[cut[0] : cut[1]]), _halves(words.size, threads)))

        def read(threads: int) -> None:
            list(pool.map(lambda cut: _read(path, *cut), _halves(size, threads)))

        def verify(jobs: int) -> None:
            assert bitward.verify(path, jobs=jobs).exit_code == 0

        def protect(jobs: int) -> None:
            assert bitward.protect(path, jobs=jobs, force=True).exit_code == 0

        tasks: dict[str, Callable[[int], None]] = {"xor": xor, "read": read, "verify": verify, "protect": protect}
        protect(1)
        best: dict[str, float] = {}
        for _ in range(rounds):
            for name, task in tasks.items():
                for threads in (1, 2):
                    started = time.perf_counter()
                    task(threads)
                    seconds = time.perf_counter() - started
                    best[f"{name}-{threads}"] = min(seconds, best.get(f"{name}-{threads}", seconds))
    return best


if __name__ == "__main__":
    json.dump(measure(sys.argv[1], int(sys.argv[2])), sys.stdout)
