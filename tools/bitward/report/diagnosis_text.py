"""The report of ``bitward diagnose`` for people: verdict first, then how it is known, then what to do."""

from __future__ import annotations

from collections.abc import Iterator

from bitward.report.damage_text import LINE_LIMIT, element_name
from bitward.report.diagnosis_words import (
    STATE_WORDS,
    STEP_NAMES,
    VERDICT_WORDS,
    bit_words,
    loss_change,
    perplexity,
    turned_apart,
    verdict_reason,
    what_next,
)
from bitward.report.names import printable, printable_text
from bitward.report.numbers import count, seconds, value_pair
from bitward.report.style import Style
from bitward.report.table import table
from bitward_agent.diagnosis.facts import Attempt, DiagnosisReport, DiagnosisVerdict, StepReport, StepState, Suspect, Unflip
from bitward_agent.diagnosis.serving_facts import ServingReport, ServingVerdict

_WRAP_NAME = 60
"""Most characters of a tensor's name in a table; the element stays whole."""


_LINE_CHARACTERS = 600


def diagnosis_lines(report: DiagnosisReport, style: Style) -> Iterator[str]:
    """Verdict, steps, bits turned back, other suspects, recovery, what next."""
    paint = {
        DiagnosisVerdict.CLEAN: style.good,
        DiagnosisVerdict.FAULT_FOUND: style.bad,
        DiagnosisVerdict.SUSPICIOUS: style.bad,
        DiagnosisVerdict.INCONCLUSIVE: style.warn,
    }[report.verdict]
    kind = f" ({printable_text(report.architecture)})" if report.architecture else ""
    yield f"{style.strong(printable(report.model))}{kind}: {paint(VERDICT_WORDS[report.verdict])}  {seconds(report.seconds)}"
    yield f"  {verdict_reason(report)}"
    if report.loss_before is not None or report.loss_after is not None:
        yield f"  {_loss_line(report)}"
    for step in report.steps:
        yield from (f"  {line}" for line in _step_lines(step, style))
    yield from _unflip_lines(report.unflips, style)
    yield from _suspect_lines(turned_apart(report), style, also=bool(report.unflips))
    yield from _attempt_lines(report.attempts, style)
    if report.failure:
        yield f"  {style.bad('not written')}: {printable_text(report.failure)}"
    if report.output:
        yield f"  repaired copy: {style.strong(printable(report.output))}"
    yield from (f"  {style.strong('→')} {line}" for line in what_next(report))


def serving_lines(report: ServingReport, style: Style) -> Iterator[str]:
    """The report of ``--serving``: may the model be served although blocks are lost?"""
    paint = {ServingVerdict.NEGLIGIBLE: style.good, ServingVerdict.DEGRADED: style.warn, ServingVerdict.STOP: style.bad}[report.verdict]
    lost = count(len(report.blocks), "lost block")
    yield f"{style.strong(printable(report.model))}, {lost}: {paint(report.verdict.value)}  {seconds(report.seconds)}"
    yield from (f"  {printable_text(line)}" for line in report.words)
    numbers = (
        ("as it is", report.loss_now, report.expected_change),
        ("lost contents neutral", report.loss_neutral, report.neutral_change),
        ("worst contents tried", None, report.worst_change),
    )
    rows = [(name, _nats(value), _change(change, report.loss_clean)) for name, value, change in numbers]
    yield from table(("", "loss", "above the right contents"), rows, right=frozenset({1, 2}), style=style)
    error = "" if report.standard_error is None else f", ± {report.standard_error:.2g}"
    yield style.dim(f"  the right contents would give about {_nats(report.loss_clean)} nats{error}; {report.samples} contents tried")
    limits = f"negligible up to {report.negligible_share:.1%} of the loss, degraded up to {report.degraded_share:.0%}"
    yield style.dim(f"  {limits}, stop beyond")
    blocks = [
        (_cut(element_name(one.tensor, ()) if one.tensor else "–"), f"{one.offset:,}", f"{one.elements:,}", printable_text(one.message))
        for one in report.blocks[:LINE_LIMIT]
    ]
    yield from table(("block of", "byte", "elements", ""), blocks, right=frozenset({1, 2}), style=style)
    if len(report.blocks) > LINE_LIMIT:
        yield style.dim(f"  … and {len(report.blocks) - LINE_LIMIT:,} more (use --json)")


def _loss_line(report: DiagnosisReport) -> str:
    told = f"loss {loss_change(report.loss_before, report.loss_after)} nats on {printable_text(report.calibration)}"
    return f"{told}, perplexity {perplexity(report.loss_before)} → {perplexity(report.loss_after)}"


def _step_lines(step: StepReport, style: Style) -> Iterator[str]:
    name = STEP_NAMES[step.step][0].lower()
    paint = {StepState.DONE: style.good, StepState.SKIPPED: style.dim, StepState.FAILED: style.warn}[step.state]
    took = f"  {style.dim(seconds(step.seconds))}" if step.state is not StepState.SKIPPED else ""
    yield f"{style.strong(name)}: {paint(STATE_WORDS[step.state])}{took}"
    yield from (f"  {_said(line)}" for line in step.words)


def _cut(name: str) -> str:
    """A name for a table, without its middle if it is long."""
    return name if len(name) <= _WRAP_NAME else f"{name[: _WRAP_NAME // 2]}…{name[-(_WRAP_NAME // 2 - 1) :]}"


def _place(one: Suspect) -> str:
    return _cut(element_name(one.tensor, one.index))


def _values(one: Suspect) -> tuple[str, str]:
    if one.correct is None:
        return printable_text(value_pair(one.found, "")[0]), "–"
    found, correct = value_pair(one.found, one.correct)
    return printable_text(found), printable_text(correct)


def _said(words: str) -> str:
    """What is said, printable; names of files may make it as long as they like."""
    shown = printable_text(words)
    return shown if len(shown) <= _LINE_CHARACTERS else f"{shown[: _LINE_CHARACTERS - 200]}…{shown[-199:]}"


def _unflip_lines(unflips: tuple[Unflip, ...], style: Style) -> Iterator[str]:
    if not unflips:
        return
    yield f"  {style.strong('turned back')}:"
    rows = []
    for one in unflips[:LINE_LIMIT]:
        found, correct = _values(one.suspect)
        sure = "" if one.gain_z is None else f"{one.gain_z:.1f} σ"
        rows.append((_place(one.suspect), bit_words(one.suspect), found, correct, loss_change(one.loss_before, one.loss_after), sure))
    yield from table(("weight", "bit", "found", "right", "loss", ""), rows, right=frozenset({2, 3, 5}), indent=4, style=style)
    yield from (f"    {_said(one.suspect.words)}" for one in unflips[:3] if one.suspect.words)
    if len(unflips) > LINE_LIMIT:
        yield style.dim(f"    … and {len(unflips) - LINE_LIMIT:,} more (use --json)")


def _suspect_lines(suspects: list[Suspect], style: Style, *, also: bool) -> Iterator[str]:
    if not suspects:
        return
    yield f"  {style.strong('also suspect' if also else 'suspect')}:"
    rows = []
    for one in suspects[:LINE_LIMIT]:
        found, correct = _values(one)
        rows.append((_place(one), bit_words(one), printable_text(one.kind), found, correct, f"{one.score_nats:.1f}"))
    yield from table(("where", "what", "evidence", "found", "right", "nats"), rows, right=frozenset({3, 4, 5}), indent=4, style=style)
    if len(suspects) > LINE_LIMIT:
        yield style.dim(f"    … and {len(suspects) - LINE_LIMIT:,} more (use --json)")


def _attempt_lines(attempts: tuple[Attempt, ...], style: Style) -> Iterator[str]:
    if not attempts:
        return
    yield f"  {style.strong('recovery')}:"
    for one in attempts[:LINE_LIMIT]:
        mark = style.good("kept") if one.accepted else style.dim("not kept")
        yield f"    {printable_text(one.way)} {_said(one.what)}: loss {loss_change(one.loss_before, one.loss_after)}, {mark}"
        if one.words:
            yield style.dim(f"      {_said(one.words)}")
    if len(attempts) > LINE_LIMIT:
        yield style.dim(f"    … and {len(attempts) - LINE_LIMIT:,} more (use --json)")


def _nats(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _change(change: float | None, clean: float | None) -> str:
    if change is None:
        return "no number"
    return f"{change:+.4f}" + (f" ({change / clean:+.2%})" if clean else "")
