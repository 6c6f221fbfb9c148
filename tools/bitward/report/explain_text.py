"""The report of ``bitward explain`` for people: the guarantee in numbers."""

from __future__ import annotations

import time
from collections.abc import Iterator

from bitward.report.names import printable, printable_text
from bitward.report.numbers import count, exact_size, share, size
from bitward.report.style import Style
from bitward.report.table import table
from bitward_agent.findings import ExitCode
from bitward_agent.guarantees import ExplainReport, FileGuarantee, LaneGuarantee

_HEAD = ("bits", "of", "scattered flips put back", "lost blocks put back")


def explain_lines(report: ExplainReport, style: Style) -> Iterator[str]:
    """One paragraph and one table for each file."""
    for number, file in enumerate(report.files):
        if number:
            yield ""
        yield from _file_lines(file, style)


def _row(one: LaneGuarantee) -> tuple[str, str, str, str]:
    kinds = ", ".join(printable_text(name) or "bytes" for name in one.dtypes) or "bytes"
    flips = f"{one.flips_per_cell_and_lane:,} per bit position in {count(one.cell_records, 'element')} ({exact_size(one.cell_bytes)})"
    if one.blocks_per_stripe:
        blocks = f"{one.blocks_per_stripe:,} of each {one.stripe_slots:,} blocks"
    else:
        blocks = "none"
    return f"{printable_text(one.lanes)} ({one.lane_count:,})", kinds, flips, blocks


def _file_lines(file: FileGuarantee, style: Style) -> Iterator[str]:
    path = style.strong(printable(file.path))
    if file.exit_code != ExitCode.OK:
        yield f"{path}: {style.warn('cannot tell')}  {printable_text(file.message)}".rstrip()
        return
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(file.protected_ns / 1e9)) if file.protected_ns else "at an unknown time"
    contents = f"{count(file.tensors, 'tensor')} in " if file.tensors else ""
    yield f"{path}: {size(file.bytes)}, {printable_text(file.format)}, {contents}{count(file.blocks, 'block')}"
    yield f"  sidecar   {printable(file.sidecar)}"
    yield (
        f"  overhead  {size(file.sidecar_bytes)}, {share(file.sidecar_bytes, file.bytes)} of the file "
        f"(parity {size(file.parity_bytes)}, digests {size(file.digest_bytes)})"
    )
    yield f"  made      {made}, preset {printable_text(file.preset)}, hash {printable_text(file.leaf_hash)}, {printable_text(file.origin)}"
    yield f"  root      {printable_text(file.root)}"
    if file.message:
        yield f"  {printable_text(file.message)}"
    yield "  what is sure to come back:"
    yield from table(_HEAD, [_row(one) for one in file.guarantees], indent=4, style=style)
    burst = exact_size(file.longest_burst_bytes) if file.longest_burst_bytes else "none is sure"
    yield f"    longest run of lost bytes, wherever it lies: {style.strong(burst)}"
    yield "    any other damage is found, and is repaired as far as the parity reaches or from a good copy (repair --from)"
