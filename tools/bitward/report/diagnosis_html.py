"""The report of a diagnosis as one HTML page: the verdict, what to do, how it is known, and pictures of where and how much."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bitward.report.diagnosis_words import (
    STATE_WORDS,
    STEP_NAMES,
    VERDICT_WORDS,
    accepted,
    bit_words,
    loss,
    loss_change,
    perplexity,
    turned_apart,
    verdict_reason,
    what_next,
)
from bitward.report.html_histograms import histogram
from bitward.report.html_maps import damage_map, heat_map
from bitward.report.html_page import name, page, section, table, text
from bitward.report.numbers import count, seconds, value_pair
from bitward_agent.diagnosis.facts import DiagnosisReport, DiagnosisVerdict, StepReport, StepState, Suspect

if TYPE_CHECKING:
    from bitward_agent.diagnosis.serving_facts import ServingReport
    from bitward_agent.diagnosis.triage import ExponentHistogram

ROWS_LIMIT = 200
HISTOGRAMS_LIMIT = 12
MAPS_LIMIT = 8
_TONES = {
    DiagnosisVerdict.CLEAN: ("is-good", "✓"),
    DiagnosisVerdict.FAULT_FOUND: ("is-bad", "●"),
    DiagnosisVerdict.SUSPICIOUS: ("is-bad", "●"),
    DiagnosisVerdict.INCONCLUSIVE: ("is-warn", "?"),
}
_MARKS = {StepState.DONE: "✓", StepState.SKIPPED: "–", StepState.FAILED: "!"}


@dataclass(frozen=True, slots=True)
class Pictures:
    """What the page shows beside the report. ``tensors`` are the names of all tensors, for the map; those of the histograms are known.

    ``sensitivity`` is what a part or tensor matters for the loss, by its name; ``changed`` are tensors that recovery changed.
    """

    histograms: tuple[ExponentHistogram, ...] = ()
    tensors: tuple[str, ...] = ()
    sensitivity: Mapping[str, float] = field(default_factory=dict)
    changed: tuple[str, ...] = ()
    serving: ServingReport | None = None


def diagnosis_html(report: DiagnosisReport, pictures: Pictures | None = None) -> str:
    """The page. Needs nothing from elsewhere, and believes no name in a file."""
    shown = pictures or Pictures()
    body = [
        *_head(report),
        section("What to do next", _next_list(report)),
        section("How it is known", [f'<ol class="steps">{"".join(map(_step, report.steps))}</ol>'] if report.steps else []),
        section("Where the damage is", damage_map(_states(report, shown)), "Each column is a layer, each row a kind of module."),
        section("Bits turned back", _unflip_table(report)),
        section("Other suspects" if report.unflips else "Suspects", _suspect_table(report), _SUSPECT_WORDS),
        section("Exponents", _histograms(report, shown), "A flipped exponent bit puts a weight where its tensor has few others or none."),
        section("Evidence by block", _block_maps(report)),
        section("What the loss is sensitive to", heat_map(shown.sensitivity, "Loss sensitivity", logarithmic=True), _SENSITIVITY_WORDS),
        section("Recovery", _attempt_table(report), "Each way was tried in memory; the held-out text decided."),
        section("May it be served?", _serving(shown.serving)),
        f"<footer>{text(report.schema)} · losses are means in nats per item of text that took no part in choosing</footer>",
    ]
    return page(f"Diagnosis of {report.model}", [one for one in body if one])


_SUSPECT_WORDS = "What looks damaged. More nats: likelier damage than training."
_SENSITIVITY_WORDS = "How much a small change of the weights changes the loss: damage costs more where the colour is stronger."


def _head(report: DiagnosisReport) -> Iterator[str]:
    tone, mark = _TONES[report.verdict]
    yield f'<p class="eyebrow">Bitward diagnosis</p><h1>{name(report.model)}</h1>'
    words = VERDICT_WORDS[report.verdict]
    yield f'<div class="verdict {tone}"><b>{mark} {words[0].upper()}{words[1:]}</b><span>{text(verdict_reason(report))}</span></div>'
    facts = []
    if report.loss_before is not None or report.loss_after is not None:
        facts.append(("Loss", f"{loss(report.loss_before)} → {loss(report.loss_after)}", "nats per item, before and after"))
        facts.append(("Perplexity", f"{perplexity(report.loss_before)} → {perplexity(report.loss_after)}", "before and after"))
    confirmed = sum(one.loss_after is not None for one in report.unflips)
    told = f"{confirmed:,} confirmed by the loss" if report.unflips else "nothing to turn back"
    facts.append(("Turned back", count(len(report.unflips), "bit"), told))
    facts.append(("Suspect", count(len(report.suspects), "place"), "bits and ranges that look damaged"))
    facts.append(("Time", seconds(report.seconds), f"{count(sum(one.state is StepState.DONE for one in report.steps), 'step')} done"))
    cells = "".join(f"<div><dt>{title}</dt><dd>{text(value)}<small>{text(small)}</small></dd></div>" for title, value, small in facts)
    yield f'<dl class="facts">{cells}</dl>'
    about = [f"Calibration: {text(report.calibration, 200)}"]
    if report.architecture:
        about.insert(0, f"Architecture: {text(report.architecture, 200)}")
    if report.failure:
        about.append(f"Not written: {text(report.failure)}")
    if report.output:
        about.append(f"Repaired copy: <code>{name(report.output)}</code>")
    yield f'<p class="meta" style="margin-top:.9rem">{" · ".join(about)}</p>'


def _next_list(report: DiagnosisReport) -> list[str]:
    items = "".join(f"<li>{text(line)}</li>" for line in what_next(report))
    return [f'<ol class="next">{items}</ol>'] if items else []


def _step(one: StepReport) -> str:
    title, about = STEP_NAMES[one.step]
    took = f", {seconds(one.seconds)}" if one.state is not StepState.SKIPPED else ""
    words = "".join(f"<p>{text(line)}</p>" for line in one.words)
    head = f'<b>{title}</b> <span class="soft">– {about}; {STATE_WORDS[one.state]}{took}</span>'
    return f'<li class="{one.state.value}" data-mark="{_MARKS[one.state]}">{head}{words}</li>'


def _states(report: DiagnosisReport, shown: Pictures) -> dict[str, str]:
    """The state of each tensor on the damage map."""
    states = dict.fromkeys((*shown.tensors, *(one.tensor for one in shown.histograms)), "ok")
    states |= dict.fromkeys((one.tensor for one in report.suspects), "suspect")
    states |= dict.fromkeys((one.suspect.tensor for one in report.unflips), "fixed")
    return states | dict.fromkeys(shown.changed, "changed")


def _element(one: Suspect) -> str:
    index = f"[{', '.join(map(str, one.index))}]" if one.index else ""
    return f'<span class="mono">{name(one.tensor)}<wbr><span class="whole">{text(index)}</span></span>'


def _words(one: Suspect) -> str:
    """What is said of a suspect, without its name, which stands above."""
    index = f"[{', '.join(map(str, one.index))}]" if one.index else ""
    return text(one.words.removeprefix(f"{one.tensor}{index}").lstrip())


def _values(one: Suspect) -> tuple[str, str]:
    if one.correct is None:
        return text(value_pair(one.found, "")[0], 60), "–"
    found, correct = value_pair(one.found, one.correct)
    return text(found, 60), text(correct, 60)


def _changed_loss(before: float | None, after: float | None) -> str:
    told = text(loss_change(before, after))
    if after is None or (before is not None and before == after):
        return told
    return f'<span class="{"fell" if before is None or after < before else "rose"}">{told}</span>'


def _unflip_table(report: DiagnosisReport) -> list[str]:
    if not report.unflips:
        return []
    rows = []
    for one in report.unflips[:ROWS_LIMIT]:
        sure = "–" if one.gain_z is None else f"{one.gain_z:.1f} σ"
        about = f'{_element(one.suspect)}<br><span class="soft">{_words(one.suspect)}</span>'
        rows.append((about, bit_words(one.suspect), *_values(one.suspect), _changed_loss(one.loss_before, one.loss_after), sure))
    head = ("Weight", "Bit", "Found", "Belongs", "Loss", "Sure")
    return [table(head, rows, frozenset({2, 3, 4, 5})), *_more(len(report.unflips))]


def _suspect_table(report: DiagnosisReport) -> list[str]:
    suspects = turned_apart(report)
    if not suspects:
        return []
    rows = []
    for one in suspects[:ROWS_LIMIT]:
        about = f'{_element(one)}<br><span class="soft">{_words(one)}</span>'
        rows.append((about, text(bit_words(one)), text(one.kind, 60), *_values(one), f"{one.score_nats:.1f}"))
    head = ("Where", "What", "Evidence", "Found", "Belongs", "Nats")
    return [table(head, rows, frozenset({3, 4, 5})), *_more(len(suspects))]


def _more(number: int) -> list[str]:
    return [f'<p class="meta">… and {number - ROWS_LIMIT:,} more in the JSON document</p>'] if number > ROWS_LIMIT else []


def _histograms(report: DiagnosisReport, shown: Pictures) -> list[str]:
    """Of the tensors that are suspect, the likeliest first."""
    of: dict[tuple[str, str], list[Suspect]] = {}
    for one in (*(unflip.suspect for unflip in report.unflips), *report.suspects):
        of.setdefault((one.path, one.tensor), []).append(one)
    known = {(one.path, one.tensor): one for one in reversed(shown.histograms) if not one.part}
    lines: list[str] = []
    wanted = [place for place in of if place in known]
    for place in wanted[:HISTOGRAMS_LIMIT]:
        lines += histogram(known[place], of[place][:ROWS_LIMIT])
    if len(wanted) > HISTOGRAMS_LIMIT:
        lines.append(f'<p class="meta">… and {len(wanted) - HISTOGRAMS_LIMIT:,} more tensors</p>')
    return lines


def _block_maps(report: DiagnosisReport) -> list[str]:
    of: dict[str, dict[str, float]] = {}
    for one in report.blocks:
        of.setdefault(one.evidence, {})[one.part] = one.score
    lines: list[str] = []
    for evidence, scores in list(of.items())[:MAPS_LIMIT]:
        lines += [f"<h3>{text(evidence, 80)}</h3>", *heat_map(scores, f"Evidence of {evidence}")]
    return lines


def _attempt_table(report: DiagnosisReport) -> list[str]:
    if not report.attempts:
        return []
    kept = accepted(report)
    rows = [
        (
            text(one.way, 40),
            f'{text(one.what)}<br><span class="soft">{text(one.words)}</span>',
            _changed_loss(one.loss_before, one.loss_after),
            '<span class="kept whole">✓ kept</span>' if one in kept else '<span class="whole">not kept</span>',
        )
        for one in report.attempts[:ROWS_LIMIT]
    ]
    return [table(("Way", "What", "Loss", ""), rows, frozenset({2})), *_more(len(report.attempts))]


def _serving(report: ServingReport | None) -> list[str]:
    if report is None:
        return []
    tone = {"negligible": "is-good", "degraded": "is-warn", "stop": "is-bad"}[report.verdict.value]
    words = " ".join(f"<span>{text(line[:1].upper() + line[1:])}.</span>" for line in report.words)
    numbers = (
        ("As it is", report.loss_now, report.expected_change),
        ("Lost contents neutral", report.loss_neutral, report.neutral_change),
        ("Worst contents tried", None, report.worst_change),
    )
    rows = [
        (title, loss(value) if value is not None else "–", "–" if change is None else f"{change:+.4f}") for title, value, change in numbers
    ]
    blocks = [
        (f'<span class="mono">{name(one.tensor) or "–"}</span>', f"{one.offset:,}", f"{one.elements:,}", text(one.message) or "judged")
        for one in report.blocks[:ROWS_LIMIT]
    ]
    limits = f"Negligible up to {report.negligible_share:.1%} of the loss, degraded up to {report.degraded_share:.0%}, stop beyond"
    return [
        f'<div class="verdict {tone}"><b>{text(report.verdict.value.capitalize())}</b>{words}</div>',
        table(("Contents", "Loss", "Above the right contents"), rows, frozenset({1, 2})),
        f'<p class="meta">{limits}; {report.samples} plausible contents tried.</p>',
        table(("Lost block of", "Byte", "Elements", ""), blocks, frozenset({1, 2})),
    ]
