"""A campaign as one self-contained page: plot, table, how it was done. No script; nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from bitward.report.campaign_plot import campaign_svg
from bitward.report.campaign_text import amount_text, cells_of, levels_of, metric_text
from bitward.report.names import printable
from bitward_agent.hardening.campaign_facts import CampaignReport

_STYLE = """
:root{color-scheme:light dark;--ink:#1d2430;--dim:#667085;--line:#e4e7ec;--paper:#ffffff}
@media (prefers-color-scheme: dark){:root{--ink:#e6e9ef;--dim:#98a2b3;--line:#2b3342;--paper:#141922}}
body{margin:2rem auto;max-width:60rem;padding:0 1rem;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.4rem} svg{max-width:100%;height:auto} .dim{color:var(--dim)} .wide{overflow-x:auto}
table{border-collapse:collapse;width:100%} th,td{padding:.35rem .6rem;border-bottom:1px solid var(--line);text-align:left}
th{color:var(--dim);font-weight:500} td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
"""
_DEFENCES = {
    "none": "the damaged model as it is",
    "flipguard": "mask and clip: the top exponent bit set back and values clipped to their range before the damage",
    "strong": "Bitward's sidecar of preset strong, best effort, no other copy",
    "repair": "the same sidecar and a clean copy: every block is held against its digest",
}


def campaign_page(report: CampaignReport) -> str:
    """The page as HTML."""
    return "".join(_parts(report))


def _parts(report: CampaignReport) -> Iterator[str]:
    title = f"Fault campaign on {printable(report.model)}"
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
    yield f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>'
    yield f"<p>{escape(report.architecture)}, {report.parameters:,} parameters in {report.tensors:,} tensors could be hit"
    yield f"{escape(f' (those that match {report.component})') if report.component else ''}. Clean {report.metric}: "
    yield f"<b>{metric_text(report.clean, report.metric)}</b> on {escape(printable(report.text))}, {report.items:,} items."
    yield " Every defence met the same flips.</p>"
    yield f'<div class="wide">{campaign_svg(report)}</div>'
    yield '<p class="dim">A hollow mark lies at the edge: the median was not a finite number.</p>'
    yield f'<div class="wide"><table><thead><tr><th>fault</th><th>defence</th><th class="n">{report.metric}</th><th class="n">range</th>'
    yield '<th class="n">not finite</th><th class="n">bits flipped</th><th class="n">bits wrong after</th></tr></thead><tbody>'
    for level in levels_of(report):
        for cell in cells_of(report, level):
            span = "–"
            if cell.trials > 1 and cell.lowest is not None:
                span = f"{metric_text(cell.lowest, report.metric)} to {metric_text(cell.highest, report.metric)}"
            yield f"<tr><td>{escape(amount_text(*level))}</td><td>{escape(cell.defence)}</td>"
            yield f'<td class="n">{metric_text(cell.median, report.metric)}</td><td class="n">{span}</td>'
            yield f'<td class="n">{cell.not_finite} of {cell.trials}</td>'
            yield f'<td class="n">{cell.flips:,}</td><td class="n">{cell.wrong_bits:,}</td></tr>'
    yield "</tbody></table></div><ul>"
    for defence in dict.fromkeys(cell.defence for cell in report.cells):
        yield f"<li><b>{escape(defence)}</b>: {escape(_DEFENCES.get(defence, ''))}</li>"
    yield f'</ul><p class="dim">Seed {report.seed}; medians of {report.cells[0].trials} trial(s) per cell.</p></body></html>'
