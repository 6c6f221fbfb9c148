"""The results as a page: ratios first, since a noisy machine is unkind to all alike; then seconds and bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from processes import Run

Row = Sequence[str]


@dataclass(slots=True)
class Results:
    """All that was measured. ``sizes`` are bytes of files; ``growth`` has (bytes, runs) of each size."""

    machine: dict[str, str]
    peers: dict[str, str]
    date: str
    rounds: int
    quick: bool
    side_bytes: int = 0
    sidecar_bytes: dict[str, int] = field(default_factory=dict)
    large_bytes: int = 0
    inside: dict[str, float] = field(default_factory=dict)
    start_up: dict[str, Run] = field(default_factory=dict)
    side: dict[str, Run] = field(default_factory=dict)
    large: dict[str, Run] = field(default_factory=dict)
    growth: list[tuple[int, dict[str, Run]]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def table(head: Row, rows: Iterable[Row]) -> list[str]:
    """A Markdown table with columns as wide as their widest cell."""
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


def targets(results: Results) -> list[Row]:
    """What Bitward set out to reach, what was measured, and whether it holds."""
    rows: list[Row] = []

    def row(what: str, target: str, measured: str, *, holds: bool) -> None:
        rows.append((what, target, measured, ("yes" if holds else "no") if not results.quick else "–"))

    inside, side, start = results.inside, results.side, results.start_up
    share = inside["xor-2"] / inside["verify-2"]
    row("verify against XOR of the same bytes, two threads each, in one process", "≥ 0.5 ×", times(share), holds=share >= 0.5)
    par2 = results.large.get("par2 create, 5 %")
    if par2:
        faster = par2.best / results.large["bitward protect"].best
        row(f"protect of {size(results.large_bytes)} against par2 create at 5 %, whole processes", "≥ 8 × faster", times(faster), holds=faster >= 8)
    verify, repair, version = side["bitward verify"], side["bitward repair"], start["bitward --version"]
    row(f"verify of {size(results.side_bytes)}, whole process", "≤ 0.35 s", seconds(verify.best), holds=verify.best <= 0.35)
    row(f"repair of 20 scattered flips in {size(results.side_bytes)}, whole process", "≤ 0.6 s", seconds(repair.best), holds=repair.best <= 0.6)
    largest, runs = results.growth[-1]
    for name in ("bitward protect", "bitward verify", "bitward repair"):
        peak = runs[name].peak_bytes
        row(f"peak memory of {name.split()[1]}, {size(largest)}", "≤ 200 MB", f"{peak / 1e6:.0f} MB", holds=peak <= 200e6)
    row("bitward --version, whole process", "≤ 0.15 s", seconds(version.best), holds=version.best <= 0.15)
    small = start["bitward verify, 1 MB"].best
    row("verify of a 1 MB file, whole process", "< 0.25 s", seconds(small), holds=small < 0.25)
    return rows


def _inside_rows(results: Results) -> list[Row]:
    labels = {
        "xor": "XOR in NumPy (memory alone)",
        "read": "positioned reads (page cache to buffer)",
        "verify": "bitward verify",
        "protect": "bitward protect",
    }
    rows = []
    for name, label in labels.items():
        one, two = results.inside[f"{name}-1"], results.inside[f"{name}-2"]
        shares = [times(results.inside[f"xor-{threads}"] / value) for threads, value in ((1, one), (2, two))]
        rows.append((label, shares[0], shares[1], rate(results.side_bytes, one), rate(results.side_bytes, two)))
    return rows


def _side_rows(results: Results, names: Sequence[str], base: str) -> list[Row]:
    reference = results.side[base].best
    return [
        (name, times(run.best / reference), seconds(run.best), rate(results.side_bytes, run.best), size(run.peak_bytes))
        for name in names
        if (run := results.side.get(name)) is not None
    ]


def _growth_rows(results: Results) -> list[Row]:
    rows = []
    for count, runs in results.growth:
        for name, run in runs.items():
            rows.append((size(count), name.removeprefix("bitward "), seconds(run.best), rate(count, run.best), size(run.peak_bytes)))
    return rows


def render(results: Results) -> str:
    """The page as Markdown."""
    side_head = ("process", "time against Bitward", "best time", "rate", "peak memory")
    lines = [
        "# Benchmarks",
        "",
        "`make bench` writes this page. All files are bf16 safetensors checkpoints of seeded values that lie in the page cache; each figure is the",
        f"best of {results.rounds} rounds, in which the tools take turns. Ratios come first: they compare what ran side by side, while seconds change from",
        "machine to machine and, on a shared one, from hour to hour. GB and MB are 10⁹ and 10⁶ bytes.",
        "",
        f"Measured on {results.date}.",
        "",
        *table(("machine", ""), results.machine.items()),
        "## Targets",
        "",
        *table(("what", "target", "measured", "holds"), targets(results)),
        "## Against the machine's own limit",
        "",
        f"Within one process, {size(results.side_bytes)}. The limit is a plain XOR over the same bytes in NumPy. It reads memory once; a verify has to copy the bytes",
        "out of the page cache first and then hash them. The middle columns give each task's rate as a share of the XOR with as many threads.",
        "",
        *table(("task", "1 thread", "2 threads", "rate, 1 thread", "rate, 2 threads"), _inside_rows(results)),
        f"## Side by side on {size(results.side_bytes)}",
        "",
        "Whole processes, start-up included. Peak memory counts the pages of mapped files (b3sum, par2) as well.",
        "",
        "Making hashes and parity; of the signing tool, a signature:",
        "",
        *table(side_head, _side_rows(results, [name for name in results.side if "protect" in name or "create" in name or "sign sign" in name or name.endswith("signing sign")], "bitward protect")),
        "Checking. The plain hash programs name no place and repair nothing; they show what reading and hashing alone cost:",
        "",
        *table(side_head, _side_rows(results, ["bitward verify", "par2 verify", "model_signing verify", "b3sum", "xxhsum -H2", "sha256sum"], "bitward verify")),
        "Repairing 20 scattered flips:",
        "",
        *table(side_head, _side_rows(results, ["bitward repair", "par2 repair"], "bitward repair")),
        "Size of what is kept:",
        "",
        *table(("kept", "bytes", "of the file"), [(name, f"{count:,}", f"{100 * count / results.side_bytes:.2f} %") for name, count in results.sidecar_bytes.items()]),
        f"## Protecting {size(results.large_bytes)}",
        "",
        *table(
            ("process", "time against Bitward", "best time", "rate", "peak memory"),
            [
                (name, times(run.best / results.large["bitward protect"].best), seconds(run.best), rate(results.large_bytes, run.best), size(run.peak_bytes))
                for name, run in results.large.items()
            ],
        ),
        "## Growth",
        "",
        "Whole processes. Time should grow with the file, memory should not.",
        "",
        *table(("file", "command", "best time", "rate", "peak memory"), _growth_rows(results)),
        "## Start-up",
        "",
        *table(("process", "best time", "peak memory"), [(name, seconds(run.best), size(run.peak_bytes)) for name, run in results.start_up.items()]),
        "## The other tools",
        "",
        *table(("tool", "version"), results.peers.items()),
    ]
    if results.left_out:
        lines += ["Left out:", "", *[f"- {reason}" for reason in results.left_out], ""]
    return "\n".join(lines)
