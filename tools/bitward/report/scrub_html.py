"""A scrub as one self-contained page: totals, ages, what is damaged, what could not be checked, what was slow."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from bitward.registries.scrub.facts import Finding, Row, ScrubReport
from bitward.report.html_page import name, page, section, table, text
from bitward.report.numbers import count, rate, seconds, size
from bitward.report.scrub_text import finding_words
from bitward.report.style import PLAIN
from bitward_agent.findings import Damage

_PLACES_SHOWN = 4
_BAR_WIDTH, _BAR_HEIGHT, _LABEL_WIDTH = 420, 18, 150


def scrub_page(report: ScrubReport) -> str:
    """The page as HTML."""
    return page("Scrub of " + ", ".join(report.prefixes[:3]), _body(report))


def _body(report: ScrubReport) -> Iterator[str]:
    moment = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    yield f'<p class="eyebrow">bitward scrub, run {report.run}, {moment}</p>'
    yield f"<h1>{' · '.join(name(prefix) for prefix in report.prefixes[:10])}</h1>"
    yield _verdict(report)
    yield _facts(report)
    yield section("Last known intact", _ages(report), "How long ago each protected object was last verified whole and found intact.")
    damaged = [row for row in report.bad if row.finding is Finding.DAMAGED]
    yield section("Damage", _rows(damaged, report.totals.damaged, with_damage=True))
    changed = [row for row in report.bad if row.finding in (Finding.CHANGED, Finding.GONE)]
    yield section("Changed or gone", _rows(changed, report.totals.changed + report.totals.gone))
    failed = [row for row in report.bad if row.finding in (Finding.UNCHECKED, Finding.WAITING)]
    yield section("Could not be checked", _rows(failed, report.totals.cannot_check + report.totals.not_yet))
    bare = [row for row in report.bad if row.finding in (Finding.UNPROTECTED, Finding.SIDECAR_ALONE)]
    yield section("Without a sidecar, or a sidecar alone", _rows(bare, report.totals.unprotected + report.totals.sidecar_alone))
    yield section("Directories that are not as their index says", _units(report))
    yield section("Places that could not be listed", _problems(report))
    yield section("What took longest", _slow(report.slow))
    yield section("Workers", _workers(report))
    yield "<footer>Written by bitward. Nothing in this page is fetched from elsewhere.</footer>"


def _verdict(report: ScrubReport) -> str:
    totals = report.totals
    kind, words = "good", "Everything that is protected is intact"
    if totals.damaged or any(unit.finding is Finding.DAMAGED for unit in report.bad_units):
        kind, words = "bad", f"{count(totals.damaged, 'object')} damaged, {totals.repairable:,} of them repairable from their sidecars"
    elif report.interrupted or totals.not_yet:
        kind, words = "warn", "Interrupted: not everything was verified"
    elif report.exit_code:
        kind, words = "warn", "No damage was found, but not everything could be verified"
    elif not totals.objects:
        kind, words = "warn", "Nothing was found"
    more = " The scrub was interrupted." if report.interrupted and kind == "bad" else ""
    told = f"{totals.intact:,} of {totals.objects:,} objects intact.{more}"
    return f'<div class="verdict is-{kind}"><b>{text(words)}</b><span>{told}</span></div>'


def _facts(report: ScrubReport) -> str:
    totals = report.totals
    facts = (
        ("objects", f"{totals.objects:,}", f"{totals.checked:,} verified now, {totals.skipped:,} not again"),
        ("intact", f"{totals.intact:,}", ""),
        ("damaged", f"{totals.damaged:,}", f"{totals.repairable:,} repairable"),
        ("changed, gone", f"{totals.changed:,}, {totals.gone:,}", ""),
        ("cannot check", f"{totals.cannot_check:,}", f"{totals.not_yet:,} not looked at yet"),
        ("not protected", f"{totals.unprotected:,}", f"{count(totals.sidecar_alone, 'sidecar')} alone"),
        ("verified", size(report.bytes), f"{rate(report.bytes, report.seconds)} in {seconds(report.seconds)}"),
        ("workers", f"{len(report.workers):,}", f"{report.engine}; {report.workers_lost:,} died"),
    )
    cells = (f"<div><dt>{text(term)}</dt><dd>{text(value)}<small>{text(more)}</small></dd></div>" for term, value, more in facts)
    return f'<dl class="facts">{"".join(cells)}</dl>'


def _ages(report: ScrubReport) -> Iterator[str]:
    largest = max((number for _, number in report.ages), default=0)
    if not largest:
        return
    height = (_BAR_HEIGHT + 6) * len(report.ages)
    width = _LABEL_WIDTH + _BAR_WIDTH + 80
    yield f'<figure class="scroll" tabindex="0"><svg width="{width}" height="{height}" role="img" aria-label="ages">'
    for at, (words, number) in enumerate(report.ages):
        y = at * (_BAR_HEIGHT + 6)
        length = max(1 if number else 0, round(_BAR_WIDTH * number / largest))
        yield f'<text x="{_LABEL_WIDTH - 8}" y="{y + 13}" text-anchor="end">{text(words)}</text>'
        yield f'<rect class="bar" x="{_LABEL_WIDTH}" y="{y}" width="{length}" height="{_BAR_HEIGHT}" rx="2"/>'
        yield f'<text x="{_LABEL_WIDTH + length + 6}" y="{y + 13}">{number:,}</text>'
    yield "</svg></figure>"


def _rows(rows: Sequence[Row], total: int, *, with_damage: bool = False) -> Iterator[str]:
    if not rows:
        return
    head = ("object", "finding", "size", "where" if with_damage else "why")
    yield table(head, ((name(row.url), text(finding_words(row, PLAIN)), text(size(row.size)), _why(row)) for row in rows), frozenset({2}))
    if total > len(rows):
        yield f'<p class="meta">{total - len(rows):,} more are in the other files of this report.</p>'


def _why(row: Row) -> str:
    parts = [text(row.message, 400)] if row.message else []
    parts += [_place(one) for one in row.damage[:_PLACES_SHOWN]]
    hidden = row.damaged_blocks - min(len(row.damage), _PLACES_SHOWN)
    if hidden > 0 and row.damage:
        parts.append(f"and {hidden:,} more blocks")
    return "<br>".join(parts)


def _place(damage: Damage) -> str:
    where = "" if damage.tensor is None else f"{name(damage.tensor)} "
    if damage.missing:
        told = "missing"
    elif damage.flips:
        one = damage.flips[0]
        index = f"[{', '.join(str(number) for number in one.index)}]" if one.index else ""
        told = f"{index} bit {one.bit} ({text(one.field)})" + (f" and {damage.flip_count - 1:,} more bits" if damage.flip_count > 1 else "")
    else:
        told = "lost" if not damage.repairable else "wrong"
    return f"{where}<span class=soft>block {damage.block:,}, byte {damage.offset:,}</span> {told}"


def _units(report: ScrubReport) -> Iterator[str]:
    if report.bad_units:
        rows = ((name(unit.url), text(unit.message, 400), "<br>".join(name(one) for one in unit.missing[:10])) for unit in report.bad_units)
        yield table(("index", "what", "missing"), rows)


def _problems(report: ScrubReport) -> Iterator[str]:
    if report.problems:
        yield table(("place", "why"), ((name(one.place), text(one.message, 400)) for one in report.problems[:200]))


def _slow(rows: Sequence[Row]) -> Iterator[str]:
    if rows:
        cells = (
            (name(row.url), text(seconds(row.seconds)), text(size(row.size)), f"{row.requests:,}", f"{row.attempts:,}") for row in rows
        )
        yield table(("object", "time", "size", "requests", "attempts"), cells, frozenset({1, 2, 3, 4}))


def _workers(report: ScrubReport) -> Iterator[str]:
    if report.workers:
        cells = ((name(one.worker), f"{one.tasks:,}", text(size(one.peak_rss_bytes))) for one in report.workers)
        yield table(("worker", "tasks", "highest memory"), cells, frozenset({1, 2}))
