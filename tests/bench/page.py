"""The results as a page: ratios first, since a noisy machine is unkind to all alike; then seconds and bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from processes import Run

Row = Sequence[str]

MAKING = ("bitward protect", "bitward protect, lean", "bitward protect, strong", "par2 create, 5 %", "model_signing sign")
CHECKING = ("bitward verify", "par2 verify", "model_signing verify", "b3sum", "xxhsum -H2", "sha256sum")
REPAIRING = ("bitward repair", "par2 repair")
_TASKS = {
    "xor": "XOR in NumPy (memory alone)",
    "read": "positioned reads (page cache to buffer)",
    "verify": "bitward verify",
    "protect": "bitward protect",
}
_INTRODUCTION = """\
# Benchmarks

`make bench` writes this page. All files are bf16 safetensors checkpoints of seeded values that lie in the page cache; each figure is
the best of {rounds} rounds, in which the tools take turns. Ratios come first: they compare what ran side by side, while seconds change
from machine to machine and, on a shared one, from hour to hour. GB and MB are 10⁹ and 10⁶ bytes.

Measured on {date}.
"""
_LIMIT = """\
Within one process, {size}. The limit is a plain XOR over the same bytes in NumPy, which reads memory once; a verify has to copy the
bytes out of the page cache and hash them. A share is the task's rate over that of the XOR with as many threads.
"""
_MEMORY = """\
Whole processes, start-up included. Peak memory is the kernel's count and includes pages of mapped files; {floor} is its floor, since a
process starts with the peak of the one that started it.
"""


@dataclass(slots=True)
class Results:
    """All that was measured. ``growth`` has (bytes of the file, runs) of each size; ``kept_bytes`` what lies beside the file."""

    machine: dict[str, str]
    peers: dict[str, str]
    date: str
    rounds: int
    quick: bool
    side_bytes: int = 0
    kept_bytes: dict[str, int] = field(default_factory=dict)
    inside: dict[str, float] = field(default_factory=dict)
    start_up: dict[str, Run] = field(default_factory=dict)
    side: dict[str, Run] = field(default_factory=dict)
    large: list[tuple[int, dict[str, Run]]] = field(default_factory=list)
    growth: list[tuple[int, dict[str, Run]]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def table(head: Row, rows: Iterable[Row]) -> list[str]:
    """A Markdown table with columns as wide as their widest cell, and an empty line."""
    cells = [list(head), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:], ""]


def size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms" if value >= 0.01 else f"{value * 1000:.1f} ms"


def rate(count: int, value: float) -> str:
    return f"{count / value / 1e9:.2f} GB/s"


def times(ratio: float) -> str:
    return f"{ratio:.2f} ×" if ratio < 10 else f"{ratio:.1f} ×"


class Targets:
    """What Bitward set out to reach, what was measured, and whether it holds. A quick run says nothing of that."""

    def __init__(self, results: Results) -> None:
        self.rows: list[Row] = []
        self._quick = results.quick
        self._fill(results)

    def _row(self, what: str, target: str, measured: str, *, holds: bool) -> None:
        self.rows.append((what, target, measured, "–" if self._quick else "yes" if holds else "no"))

    def _most(self, what: str, run: Run, limit: float) -> None:
        self._row(f"{what}, whole process", f"≤ {limit} s", seconds(run.best), holds=run.best <= limit)

    def _fill(self, results: Results) -> None:
        for threads, words in ((1, "one plain XOR over the bytes"), (2, "XOR by two threads")):
            share = results.inside[f"xor-{threads}"] / results.inside["verify-2"]
            what = f"rate of verify (two threads) over that of {words}, {size(results.side_bytes)}, in one process"
            self._row(what, "≥ 0.5 ×", times(share), holds=share >= 0.5)
        for file_bytes, runs in results.large:
            par2 = runs.get("par2 create, 5 %")
            if par2:
                ratio = par2.best / runs["bitward protect"].best
                what = f"time of par2 create at 5 % over that of protect, {size(file_bytes)}, whole processes"
                self._row(what, "≥ 8 ×", times(ratio), holds=ratio >= 8)
        self._most(f"verify of {size(results.side_bytes)}", results.side["bitward verify"], 0.35)
        self._most(f"repair of 20 scattered flips in {size(results.side_bytes)}", results.side["bitward repair"], 0.6)
        largest, runs = results.growth[-1]
        for name in ("protect", "verify", "repair"):
            peak = runs[f"bitward {name}"].peak_bytes
            self._row(f"peak memory of {name}, {size(largest)}", "≤ 200 MB", f"{peak / 1e6:.0f} MB", holds=peak <= 200e6)
        self._most("bitward --version", results.start_up["bitward --version"], 0.15)
        self._most("verify of a 1 MB file", results.start_up["bitward verify, 1 MB"], 0.25)


def _large_tables(results: Results) -> list[str]:
    lines: list[str] = []
    for file_bytes, runs in results.large:
        lines += [f"## Protecting {size(file_bytes)}", "", *_race_table(runs, MAKING, file_bytes)]
    return lines


def _inside_table(results: Results) -> list[str]:
    rows = []
    for name, label in _TASKS.items():
        taken = [results.inside[f"{name}-{threads}"] for threads in (1, 2)]
        shares = [times(results.inside[f"xor-{threads}"] / value) for threads, value in enumerate(taken, start=1)]
        rows.append((label, *shares, *(rate(results.side_bytes, value) for value in taken)))
    return table(("task", "share, 1 thread", "2 threads", "rate, 1 thread", "2 threads"), rows)


def _race_table(runs: Mapping[str, Run], names: Iterable[str], count: int) -> list[str]:
    """Runs of one task; the first is Bitward's."""
    found = [runs[name] for name in names if name in runs]
    rows = [(run.name, times(run.best / found[0].best), seconds(run.best), rate(count, run.best), size(run.peak_bytes)) for run in found]
    return table(("process", "time against Bitward", "best time", "rate", "peak memory"), rows)


def _growth_table(results: Results) -> list[str]:
    rows = [
        (size(count), run.name.removeprefix("bitward "), seconds(run.best), rate(count, run.best), size(run.peak_bytes))
        for count, runs in results.growth
        for run in runs.values()
    ]
    return table(("file", "command", "best time", "rate", "peak memory"), rows)


def _side_sections(results: Results) -> list[str]:
    count = results.side_bytes
    kept = [(name, f"{found:,}", f"{100 * found / count:.2f} %") for name, found in results.kept_bytes.items()]
    floor = size(results.start_up["python -c pass"].peak_bytes)
    return [
        f"## Side by side on {size(count)}",
        "",
        _MEMORY.format(floor=floor),
        "Making hashes and parity (the signing tool: a signature):",
        "",
        *_race_table(results.side, MAKING, count),
        "Checking. The plain hash programs name no place and repair nothing; they show what reading and hashing alone cost:",
        "",
        *_race_table(results.side, CHECKING, count),
        "Repairing 20 scattered flips, synced to the disk:",
        "",
        *_race_table(results.side, REPAIRING, count),
        "What is kept beside the file:",
        "",
        *table(("what", "bytes", "of the file"), kept),
    ]


def render(results: Results) -> str:
    """The page as Markdown."""
    start_up = [(run.name, seconds(run.best), size(run.peak_bytes)) for run in results.start_up.values()]
    lines = [
        _INTRODUCTION.format(rounds=results.rounds, date=results.date),
        *table(("machine", ""), results.machine.items()),
        *("## Targets", "", *table(("what", "target", "measured", "holds"), Targets(results).rows)),
        *("## Against the machine's own limit", "", _LIMIT.format(size=size(results.side_bytes)), *_inside_table(results)),
        *_side_sections(results),
        *_large_tables(results),
        *("## Growth", "", "Whole processes. Time should grow with the file, memory should not.", "", *_growth_table(results)),
        *("## Start-up", "", *table(("process", "best time", "peak memory"), start_up)),
        *("## The other tools", "", *table(("tool", "version"), results.peers.items())),
    ]
    if results.left_out:
        lines += ["Left out:", "", *[f"- {reason}" for reason in results.left_out], ""]
    return "\n".join(lines)
