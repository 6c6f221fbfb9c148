"""The report of ``bitward campaign`` for people: one line a trial as it comes, and a table at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bitward.report.names import printable
from bitward.report.numbers import count, seconds
from bitward.report.style import Style
from bitward.report.table import table
from bitward_agent.hardening.campaign_facts import CampaignCell, CampaignReport, TrialResult

WORDS = {"rate": "of the parameters with a flipped bit", "ber": "of the bits flipped", "targeted": "flips chosen by gradient"}


def metric_text(value: float | None, metric: str) -> str:
    """A perplexity or an accuracy, short."""
    if value is None:
        return "not finite"
    if metric == "accuracy":
        return f"{100 * value:.2f} %"
    return f"{value:.2f}" if value < 100_000 else f"{value:.2e}"


def amount_text(fault: str, amount: float) -> str:
    """``0.1 % of the parameters …``, ``1e-06 of the bits …``, ``12 flips …``."""
    if fault == "targeted":
        return f"{amount:g} {WORDS[fault]}"
    return f"{100 * amount:g} % {WORDS[fault]}" if amount >= 1e-5 else f"{amount:g} {WORDS[fault]}"


def trial_line(result: TrialResult, metric: str, style: Style) -> str:
    """What a defence left in one trial."""
    left = "every bit right" if not result.wrong_bits else f"{count(result.wrong_bits, 'bit')} wrong"
    value = metric_text(result.value, metric)
    which = f"{amount_text(result.fault, result.amount)}, trial {result.trial + 1}, {result.defence}"
    return style.dim(f"  {which}: {value}, {left} ({seconds(result.seconds)})")


def levels_of(report: CampaignReport) -> list[tuple[str, float]]:
    """The levels in their order, as (fault, amount)."""
    return list(dict.fromkeys((cell.fault, cell.amount) for cell in report.cells))


def cells_of(report: CampaignReport, level: tuple[str, float]) -> Sequence[CampaignCell]:
    """The cells of one level, a defence each."""
    return [cell for cell in report.cells if (cell.fault, cell.amount) == level]


def campaign_lines(report: CampaignReport, style: Style) -> Iterator[str]:
    """The table."""
    metric = report.metric
    yield ""
    where = f"on {printable(report.text)}, {count(report.items, 'item')}"
    yield f"{style.strong(printable(report.model))}: {metric} {metric_text(report.clean, metric)} {where}"
    yield f"  {count(report.parameters, 'parameter')} in {count(report.tensors, 'tensor')} could be hit; seed {report.seed}"
    yield ""
    head = ("fault", "defence", metric, "range", "not finite", "bits flipped", "bits wrong")
    rows = []
    for level in levels_of(report):
        for cell in cells_of(report, level):
            span = "–"
            if cell.trials > 1 and cell.lowest is not None:
                span = f"{metric_text(cell.lowest, metric)} to {metric_text(cell.highest, metric)}"
            not_finite = f"{cell.not_finite} of {cell.trials}" if cell.not_finite else "–"
            value = metric_text(cell.median, metric)
            rows.append((amount_text(*level), cell.defence, value, span, not_finite, count(cell.flips), count(cell.wrong_bits)))
    yield from table(head, rows, right=frozenset({2, 5, 6}), style=style)
    yield ""
    yield style.dim(f"  {count(report.cells[0].trials, 'trial')} per cell, the median is shown; {seconds(report.seconds)}")
    yield from (f"  {note}" for note in report.notes)
