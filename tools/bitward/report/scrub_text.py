"""The report of ``bitward scrub`` for people."""

from __future__ import annotations

from collections.abc import Iterator

from bitward.registries.scrub.facts import Finding, Row, ScrubReport
from bitward.report.damage_text import LineBudget, damage_lines
from bitward.report.file_text import pace
from bitward.report.names import printable, printable_text
from bitward.report.numbers import count, seconds, size
from bitward.report.style import Style

_ROWS_SHOWN = 30
_NAMES_SHOWN = 10
_QUIET = (Finding.UNPROTECTED, Finding.SIDECAR_ALONE, Finding.WAITING)
"""Kinds that are counted only: their names are in the files of the report."""


def finding_words(row: Row, style: Style) -> str:
    """What is known of an object, as a person would say it."""
    match row.finding:
        case Finding.INTACT:
            return style.good("intact")
        case Finding.DAMAGED:
            return style.bad("damaged, repairable" if row.repairable else "damaged, not repairable with what is at hand")
        case Finding.CHANGED:
            return style.warn("changed since it was protected")
        case Finding.GONE:
            return style.warn("gone")
        case Finding.UNCHECKED:
            return style.warn("cannot check")
        case Finding.UNPROTECTED:
            return style.warn("not protected")
        case Finding.SIDECAR_ALONE:
            return style.warn("a sidecar alone")
        case Finding.WAITING:
            return style.warn("not verified yet")


def scrub_lines(report: ScrubReport, style: Style) -> Iterator[str]:
    """What is wrong first, then the sum."""
    shown = [row for row in report.bad if row.finding not in _QUIET]
    budget = LineBudget()
    for row in shown[:_ROWS_SHOWN]:
        yield f"{style.strong(printable(row.url))}: {finding_words(row, style)}  {size(row.size)}"
        if row.message:
            yield f"  {printable_text(row.message)}"
        if row.damage:
            unlisted = max(0, row.damaged_blocks - len(row.damage))
            yield from (f"  {line}" for line in damage_lines(row.damage, budget, style, unlisted=unlisted))
    for unit in report.bad_units[:_ROWS_SHOWN]:
        yield f"{style.strong(printable(unit.url))}: {style.bad('directory not as its index says')}"
        yield f"  {printable_text(unit.message)}"
        for name in unit.missing[:_NAMES_SHOWN]:
            yield f"  {printable(name)}: {style.bad('missing')}"
    for problem in report.problems[:_ROWS_SHOWN]:
        yield f"{style.strong(printable(problem.place))}: {style.warn('cannot be listed')}  {printable_text(problem.message)}"
    totals = report.totals
    hidden = totals.damaged + totals.changed + totals.gone + totals.cannot_check - min(len(shown), _ROWS_SHOWN)
    if hidden > 0:
        yield style.dim(f"… and {count(hidden, 'object')} more; --report-dir DIR writes all of them")
    yield from _sums(report, style)


def _sums(report: ScrubReport, style: Style) -> Iterator[str]:
    totals = report.totals
    words = {
        "intact": totals.intact,
        "damaged": totals.damaged,
        "changed": totals.changed,
        "cannot check": totals.cannot_check,
        "not protected": totals.unprotected,
        "sidecar alone": totals.sidecar_alone,
        "gone": totals.gone,
        "not verified yet": totals.not_yet,
    }
    told = ", ".join(f"{number:,} {name}" for name, number in words.items() if number)
    yield f"{count(totals.objects, 'object')}: {told or 'nothing to verify'}"
    fast = f" ({totals.checked / report.seconds:,.1f} objects/s)" if report.seconds > 0 and totals.checked else ""
    skipped = f"; {totals.skipped:,} not again" if totals.skipped else ""
    yield f"verified now: {totals.checked:,}{skipped}  {pace(report.bytes, report.seconds)}{fast}"
    if report.units:
        yield f"{count(report.units, 'directory', 'directories')} with an index, {len(report.bad_units):,} not as it says"
    if report.workers:
        peak = max(worker.peak_rss_bytes for worker in report.workers)
        lost = f", {report.workers_lost:,} died" if report.workers_lost else ""
        yield f"{count(len(report.workers), 'worker')} ({report.engine}){lost}; at most {size(peak)} of memory each"
    for path in report.files:
        yield f"wrote {printable(path)}"
    yield from (printable_text(note) for note in report.notes)
    if report.interrupted:
        yield style.warn(f"interrupted after {seconds(report.seconds)}: the same command goes on where it stopped")
