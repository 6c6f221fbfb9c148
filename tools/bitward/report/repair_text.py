"""The report of ``bitward repair`` for people: what was written, from where, and how the file stands now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from bitward.report.damage_text import LINE_LIMIT, LineBudget, damage_lines, memory_note
from bitward.report.file_text import head_line, live_lines, own_message, pace, sidecar_lines, unit_lines, verdict_words, with_live
from bitward.report.names import command, printable_tensor, printable_text
from bitward.report.numbers import count, exact_size
from bitward.report.style import Style
from bitward_agent.findings import FileRepair, RepairReport, SourceUse, Verdict, Write


def repair_lines(report: RepairReport, style: Style) -> Iterator[str]:
    """For each file what was written (or would be) and its state at the end; then directories and the sum."""
    alone = len(report.files) == 1
    budget = LineBudget()
    for file in report.files:
        yield head_line(file.path, _state_words(file, style), file.bytes, report.seconds if alone else None, style, file.live)
        yield from (f"  {line}" for line in _file_lines(file, budget, style))
    yield from unit_lines(report.units, style)
    if not alone:
        done = "would be repaired" if any(file.dry_run for file in report.files) else "repaired"
        mended, left = (sum(numbers) for numbers in zip(*map(_counts, report.files), strict=True)) if report.files else (0, 0)
        total = f"{count(mended, 'block')} {done}, {left:,} remaining"
        yield f"{count(len(report.files), 'file')}: {total}  {pace(report.bytes, report.seconds)}"


def _counts(file: FileRepair) -> tuple[int, int]:
    """Blocks that were repaired and that remain; after a dry run, those that would be and would."""
    if not file.dry_run:
        return file.repaired, file.remaining
    return file.remaining - len(file.damage), len(file.damage)


def _state_words(file: FileRepair, style: Style) -> str:
    if file.verdict is Verdict.INTACT:
        return style.good("intact again" if file.repaired else "intact")
    if file.verdict is Verdict.DAMAGED:
        if file.dry_run:
            return style.bad("damaged, would still be damaged") if file.damage else style.warn("damaged, would be intact again")
        return style.bad("still damaged")
    return verdict_words(file.verdict, False, style)


def _write_line(write: Write, dry_run: bool, style: Style) -> str:
    verb = "would write" if dry_run else "wrote"
    name = "" if write.tensor is None else f"{printable_tensor(write.tensor)} block {write.block:,}, "
    place = f"{name}bytes {write.offset:,} to {write.offset + write.length - 1:,}"
    bits = f", {count(write.flip_count, 'bit')} put right" if write.flip_count and not dry_run else ""
    bits = f", {count(write.flip_count, 'bit')} to put right" if write.flip_count and dry_run else bits
    doubt = "" if write.vouched else style.warn("  best effort: parity says so, no digest does")
    return f"{verb} {exact_size(write.length)} from {printable_text(write.source)}: {place}{bits}{doubt}"


def _source_line(source: SourceUse, style: Style) -> str:
    """What a source was good for."""
    line = f"{printable_text(source.name)}: {count(source.blocks, 'block')} taken"
    line += f", {exact_size(source.fetched_bytes)} read in {count(source.requests, 'request')}"
    if source.wrong_blocks:
        line += style.bad(f"; {count(source.wrong_blocks, 'block')} of it {'is' if source.wrong_blocks == 1 else 'are'} wrong")
    return line + (style.warn(f"; {printable_text(source.error)}") if source.error else "")


def _write_summary(file: FileRepair) -> str:
    sources = Counter(write.source for write in file.writes)
    parts = ", ".join(f"{number:,} from {printable_text(source)}" for source, number in sorted(sources.items()))
    verb = "would be repaired" if file.dry_run else "repaired"
    mended, left = _counts(file)
    return f"{count(mended, 'block')} {verb}" + (f" ({parts})" if parts else "") + f", {left:,} remaining"


def _file_lines(file: FileRepair, budget: LineBudget, style: Style) -> Iterator[str]:
    yield from own_message(file.message, file.sidecar)
    for shown, write in enumerate(sorted(file.writes, key=lambda write: write.offset)):
        if shown == LINE_LIMIT or not budget.take():
            yield style.dim(f"… and {len(file.writes) - shown:,} more (use --json)")
            break
        yield _write_line(write, file.dry_run, style)
    if file.repaired or file.remaining:
        yield _write_summary(file)
    yield from (_source_line(source, style) for source in file.sources if source.requests or source.error)
    yield from damage_lines(file.damage, LineBudget(), style)
    yield from live_lines(file.live)
    note = memory_note(file.damage) if file.live is None else ""
    if note:
        yield style.warn(note)
    yield from sidecar_lines(file.sidecar, style, usable=file.verdict is not Verdict.UNVERIFIABLE)
    yield from _what_next(file, style)


def _what_next(file: FileRepair, style: Style) -> Iterator[str]:
    mended, left = _counts(file)
    if file.dry_run and mended:
        yield f"nothing was written; {command(with_live('repair', file.live), file.path)} does it"
    if left:
        yield style.strong(f"{command('repair', file.path, ' --from GOOD_COPY')} takes the rest from another copy of the file")
    elif file.verdict is Verdict.CHANGED and file.live is None:
        yield f"nothing was touched; {command('protect', file.path)} protects what is there now"
