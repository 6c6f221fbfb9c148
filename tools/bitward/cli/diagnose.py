"""``bitward diagnose``: find the fault from the model itself."""

from __future__ import annotations

import re
import sys

import click

from bitward.cli.options import ended_in_good_order, with_view
from bitward.cli.view import View

_DURATION = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)([smh]?)", re.ASCII)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


def _duration(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:  # noqa: ARG001 - click's signature
    if value is None:
        return None
    match = _DURATION.fullmatch(value)
    if match is None or float(match[1]) == 0:
        raise click.BadParameter(f"{value!r} is no time, such as 90s or 5m")
    return float(match[1]) * _SECONDS[match[2]]


@click.command("diagnose", short_help="Find a fault from the model itself, and undo it.")
@click.argument("model", metavar="MODEL")
@click.option("--calibration", metavar="TEXT", help="A UTF-8 text that the model should be good at; without it a built-in one.")
@click.option("--reference", metavar="MODEL2", help="A model of the same architecture, of whatever element type or quantisation.")
@click.option("--trace", metavar="FILE", help="What `bitward trace` recorded when the model was good.")
@click.option("--donor", "donors", metavar="DIR", multiple=True, help="A sibling or older checkpoint that blocks may be taken from.")
@click.option("--steps", metavar="LIST", help="triage, differential, profile, perturbation, recovery; without it all that make sense.")
@click.option("--budget", metavar="TIME", callback=_duration, help="Stop after about this long, such as 5m.")
@click.option("--device", metavar="DEVICE", default="cpu", show_default=True, help="Where torch runs the model.")
@click.option("--apply", "is_applied", is_flag=True, help="Write a repaired copy to --output, and protect it.")
@click.option("--output", metavar="DIR", help="A new directory for the repaired copy.")
@click.option("--serving", "is_serving", is_flag=True, help="May it be served? For damage that a sidecar located and nothing restores.")
@click.option("--html", metavar="FILE", help="Write a report with pictures.")
@with_view
def command(
    model: str,
    calibration: str | None,
    reference: str | None,
    trace: str | None,
    donors: tuple[str, ...],
    steps: str | None,
    budget: float | None,
    device: str,
    is_applied: bool,
    output: str | None,
    is_serving: bool,
    html: str | None,
    jobs: int | None,
    view: View,
) -> int:
    """Find what is wrong with MODEL when there is no sidecar to ask: which weight, which bit, and how we know.

    MODEL is a Hugging Face directory, one file of weights (triage only), or module:factory for any torch module with a loss. Nothing is
    written to MODEL.
    """
    from bitward.diagnosing import Wish, diagnose_model, serving_report
    from bitward.report.diagnosis_text import diagnosis_lines, serving_lines

    if is_serving and (is_applied or output or steps or reference or trace or donors or html or budget):
        raise click.UsageError("--serving goes with --calibration and --device only.", click.get_current_context())
    if is_serving:
        return view.finish(serving_report(model, calibration=calibration, device=device, jobs=jobs), serving_lines)
    wish = Wish(model, calibration, reference, trace, donors, steps, budget, device, output if is_applied else None, html, jobs)
    if is_applied != (output is not None):
        raise click.UsageError("--apply and --output DIR go together.", click.get_current_context())
    with view.progress() as sink, ended_in_good_order():
        speaks = view.speaks and view.progress_wanted and sys.stderr.isatty()
        report = diagnose_model(wish, progress=sink, tell=_tell if speaks else lambda _: None)
    return view.finish(report, diagnosis_lines)


def _tell(words: str) -> None:
    sys.stderr.write(f"\r\x1b[K{words}")
    sys.stderr.flush()
