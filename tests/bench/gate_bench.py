"""What the gates cost: `python tests/bench/gate_bench.py [MODEL]`, as root for the kernel gate. Prints one table.

Opens are timed in a C-like loop of Python: the time of `open(2)` alone, from one process at full speed, and from five that together
keep to 10,000 opens a second, which is what a busy machine may ask for. MODEL is copied first; by default a file of 64 MiB is made.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / name) for name in ("formats", "agent", "tools", "tests")]

from gate.gate_process import gate, why_no_gate  # noqa: E402 - the path is set first

OPENS = 10_000
OPENS_PER_SECOND = 10_000
PROCESSES = 5
OPENER = """
import json, os, sys, time
path, count, per_second = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
clock, opened, shut = time.perf_counter_ns, os.open, os.close
took, begin = [], time.perf_counter_ns()
for number in range(count):
    if per_second:
        due = begin + int(number / per_second * 1e9)
        while clock() < due:
            time.sleep(0.0001)
    before = clock()
    fd = opened(path, os.O_RDONLY)
    took.append(clock() - before)
    shut(fd)
print(json.dumps([took, (clock() - begin) / 1e9]))
"""


def opens(path: Path, processes: int, per_second: float) -> tuple[str, float]:
    """(one line of figures, the median in microseconds) of opening a file many times."""
    share = OPENS // processes
    line = [sys.executable, "-S", "-c", OPENER, str(path), str(share), str(per_second / processes)]
    running = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    found = [json.loads(one.communicate(timeout=120)[0]) for one in running]
    took = sorted(nanoseconds / 1000 for times, _ in found for nanoseconds in times)
    reached = OPENS / max(seconds for _, seconds in found)
    median = statistics.median(took)
    return f"{median:8.2f} {took[len(took) * 99 // 100]:8.2f} {took[-1]:10.1f} {reached:12,.0f}", median


def table(title: str, path: Path) -> tuple[float, float]:
    """Both loads on one file; the medians."""
    lines = []
    medians = []
    for name, processes, pace in (("one process, full speed", 1, 0.0), ("five processes, 10,000 a second", PROCESSES, OPENS_PER_SECOND)):
        text, median = opens(path, processes, pace)
        lines.append(f"  {name:34s}{text}")
        medians.append(median)
    print(f"{title}\n" + "\n".join(lines), flush=True)
    return medians[0], medians[1]


def main() -> None:
    """Measure."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as place:
        folder = Path(place) / "models"
        folder.mkdir()
        model, cache = folder / "model.safetensors", Path(place) / "cache"
        if len(sys.argv) > 1:
            shutil.copy(sys.argv[1], model)
        else:
            model.write_bytes(os.urandom(64 << 20))
        import bitward
        from bitward_agent.gate.check import check_file
        from bitward_agent.gate.verdict_cache import VerdictCache

        bitward.protect(model, first_sight=False)
        plain = folder / "unprotected.bin"
        plain.write_bytes(b"x")
        time.sleep(0.3)
        own = VerdictCache(str(cache / "own"))
        full = check_file(model, cache=own)
        cached = min(check_file(model, cache=own).seconds for _ in range(20))
        print(f"check_file of {full.bytes / 1e6:.1f} MB: in full {full.seconds * 1000:.1f} ms, from the cache {cached * 1000:.3f} ms\n")
        why = why_no_gate()
        if why:
            print(f"kernel gate: {why}")
            return
        print(f"{'open(2), microseconds':36s}{'median':>8s} {'99 %':>8s} {'most':>10s} {'opens/s':>12s}")
        base = table("without a gate", model)
        with gate(folder, cache=cache):
            before = time.perf_counter()
            os.close(os.open(model, os.O_RDONLY))
            first = time.perf_counter() - before
            verified = table("verified, the kernel asks no more", model)
            table("unprotected, the gate answers each", plain)
        with gate(folder, cache=Path(place) / "cache-2", leases=False):
            os.close(os.open(model, os.O_RDONLY))
            table("verified, on a file system without leases", model)
        print(f"\nfirst open of a file that nobody has verified: {first * 1000:.1f} ms")
        print(f"added at the median: {verified[0] - base[0]:.2f} and {verified[1] - base[1]:.2f} microseconds")


if __name__ == "__main__":
    main()
