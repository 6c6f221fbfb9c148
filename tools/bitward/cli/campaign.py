"""``bitward campaign``: what faults do to a model, and what each defence leaves of them."""

from __future__ import annotations

import sys
from typing import Any

import click

from bitward.cli.options import ended_in_good_order, with_view
from bitward.cli.view import View
from bitward.report.names import printable_text
from bitward_agent.errors import WriteError
from bitward_agent.findings import ExitCode

_DEFENCES = ("none", "flipguard", "strong", "repair")


@click.command("campaign", short_help="Flip bits of a copy of a model, and compare what defences leave.")
@click.argument("model", metavar="MODEL")
@click.option("--rate", "rates", type=float, multiple=True, metavar="P", help="Share of parameters with a flipped bit; may be given again.")
@click.option("--ber", "bers", type=float, multiple=True, metavar="P", help="Bit-error rate: share of all bits that are flipped.")
@click.option("--targeted", type=click.IntRange(1), multiple=True, metavar="N", help="The N flips that should raise the loss most.")
@click.option("--defence", "defences", type=click.Choice(_DEFENCES), multiple=True, help="What to compare; all, unless given.")
@click.option("--component", default="", metavar="REGEX", help="Hit only tensors whose name matches.")
@click.option("--trials", type=click.IntRange(1, 10_000), default=3, show_default=True, metavar="N", help="Trials per fault level.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, metavar="S", help="The same seed flips the same bits.")
@click.option("--metric", type=click.Choice(["perplexity", "accuracy"]), default="perplexity", show_default=True, help="What is measured.")
@click.option("--calibration", metavar="TEXT", help="UTF-8 text to measure on, instead of the built-in one.")
@click.option("--labels", metavar="FILE", help="Labelled texts (0 or 1, tab, text) for the accuracy of an encoder.")
@click.option("--max-tokens", type=click.IntRange(512, 1 << 20), default=1024, show_default=True, metavar="N", help="Tokens of the text.")
@click.option("--svg", metavar="FILE", help="Write the plot there.")
@click.option("--html", metavar="FILE", help="Write table and plot there, as one self-contained page.")
@with_view
def command(
    model: str,
    rates: tuple[float, ...],
    bers: tuple[float, ...],
    targeted: tuple[int, ...],
    defences: tuple[str, ...],
    svg: str | None,
    html: str | None,
    view: View,
    **rest: Any,
) -> int:
    """Flip bits in copies of MODEL, a Hugging Face directory, let each defence do what it can, and measure what is left.

    Without --rate, --ber or --targeted, 0.1, 1, 5 and 10 per cent of the parameters get a flipped bit. MODEL is only read.
    The defences: none; flipguard (mask and clip by the exponent guard); strong (the sidecar's best effort without another copy);
    repair (the sidecar and a clean copy).
    """
    from bitward.campaigning import CampaignOrder, campaign
    from bitward.report.campaign_text import campaign_lines, trial_line

    if not (rates or bers or targeted):
        rates = (0.001, 0.01, 0.05, 0.1)
    order = CampaignOrder(model, rates, bers, targeted, defences or _DEFENCES, **rest)
    from bitward_agent.durable import atomic_file, refuse_other_file

    for path, beginning in ((svg, b"<svg"), (html, b"<!doctype html>")):
        if path:
            refuse_other_file(path, beginning)
    tell = (lambda result: view.write([trial_line(result, order.metric, view.style())])) if view.speaks else None
    with ended_in_good_order():
        report = campaign(order, tell)
    failed: list[WriteError] = []
    if svg or html:
        from bitward.report.campaign_page import campaign_page
        from bitward.report.campaign_plot import campaign_svg

        for path, text in ((svg, campaign_svg), (html, campaign_page)):
            if path:
                try:
                    with atomic_file(path) as file:
                        file.write_all(text(report).encode("utf-8"), 0)
                except WriteError as error:  # what was measured for minutes is not to be lost because a disk is full
                    failed.append(error)
    code = view.finish(report, campaign_lines)
    for one in failed:
        sys.stderr.write(f"bitward: {printable_text(str(one))}\n")
    return ExitCode.worst([code, ExitCode.CANNOT_TELL]) if failed else code
