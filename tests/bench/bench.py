"""Measure Bitward on this machine, next to the machine's own limit and to other tools, and write docs/benchmarks.md.

    python tests/bench/bench.py [--quick] [--rounds N] [--output PATH]

Files go to TMPDIR and are removed; the other tools go to a cache folder outside the repository. ``BITWARD_BENCH_FILE`` names a
checkpoint to use instead of the made one for all that is measured side by side; it is copied. ``--quick`` runs small sizes and, without
``--output``, only prints: to see that the benchmark works, not what Bitward can do.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import machine
import rounds
from page import Results, render
from peers import find_peers
from processes import warm

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
SEED = 20
HIDDEN, QUICK_HIDDEN = 1024, 512
LAYERS = (1, 7, 31, 127)
"""64 MiB, 256 MiB, 1 GiB and 4 GiB of weights, a fourth of it in quick runs of half the hidden size (which also stop one size earlier)."""
SIDE, LARGE = 1, 2
"""Which of the sizes is measured side by side with all tools, and from which on against par2's create alone."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure Bitward on this machine.")
    parser.add_argument("--quick", action="store_true", help="small sizes, two rounds; prints only")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of each measurement (5, or 2 when quick)")
    parser.add_argument("--output", type=Path, help=f"where to write the page ({PAGE.name} in docs/, unless quick)")
    return parser.parse_args()


def tell(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def fits(folder: Path, file_bytes: int) -> bool:
    """Whether a file and its company have room in the page cache and on the disk."""
    return machine.memory_bytes("MemAvailable") > 1.6 * file_bytes and shutil.disk_usage(folder).free > 3 * file_bytes


def measure_side(folder: Path, results: Results, count: int, hidden: int) -> None:
    """Everything on one file, with all tools."""
    path = folder / "model.safetensors"
    given = os.environ.get("BITWARD_BENCH_FILE")
    if given:
        shutil.copyfile(given, path)
        warm(path)
        results.side_bytes = path.stat().st_size
    else:
        results.side_bytes = rounds.build(path, hidden, LAYERS[SIDE], SEED)
    tell(f"within one process, {results.side_bytes:,} bytes")
    results.inside = rounds.inside(path, 2 * count)
    tell("side by side")
    results.side = rounds.side_by_side(path, find_peers(), SEED, count)
    folders = {"lean": folder / "lean", "standard": folder, "strong": folder / "strong"}
    results.kept_bytes = {f"sidecar, {preset}": (where / f"{path.name}.ward").stat().st_size for preset, where in folders.items()}
    par2s = list((folder / f"{path.name}.par2s").glob("*"))
    if par2s:
        results.kept_bytes[f"par2 set, {rounds.PAR2_PER_CENT} %"] = sum(file.stat().st_size for file in par2s)


def measure_growth(folder: Path, results: Results, count: int, hidden: int, layers: tuple[int, ...]) -> None:
    """protect and verify at each size; par2's create beside it at the large ones, repair at the largest."""
    sizes = [32 * hidden * hidden * (number + 1) for number in layers]
    fitting = sum(fits(folder, size) for size in sizes)
    results.left_out += [f"{size / 1e9:.1f} GB: too little memory or disk" for size in sizes[fitting:]]
    for index, (number, expected) in enumerate(zip(layers[:fitting], sizes, strict=False)):
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            path = Path(scratch) / "model.safetensors"
            tell(f"growth, {expected / 1e6:,.0f} MB")
            size = rounds.build(path, hidden, number, SEED + index)
            runs = rounds.plain(path, count)
            if index >= LARGE:
                results.large.append((size, rounds.protect_against_par2(path, find_peers(), count)))
            if index == fitting - 1:
                runs |= rounds.repair(path, SEED, count)
            results.growth.append((size, runs))


def main() -> int:
    asked = arguments()
    count = asked.rounds or (2 if asked.quick else 5)
    hidden, layers = (QUICK_HIDDEN, LAYERS[:3]) if asked.quick else (HIDDEN, LAYERS)
    tell("other tools")
    peers = find_peers()
    with tempfile.TemporaryDirectory(prefix="bitward-bench-") as scratch:
        folder = Path(scratch)
        results = Results(machine.describe(scratch), peers.versions, time.strftime("%Y-%m-%d"), count, asked.quick)
        tell("start-up")
        results.start_up = rounds.start_up(folder, 4 * count)
        (folder / "side").mkdir()
        measure_side(folder / "side", results, count, hidden)
        shutil.rmtree(folder / "side")
        measure_growth(folder, results, count, hidden, layers)
    text = render(results)
    print(text)
    output = asked.output or (None if asked.quick else PAGE)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
        tell(f"written to {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
