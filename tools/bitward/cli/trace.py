"""``bitward trace``: record what a model's modules give, while it is right."""

from __future__ import annotations

import click

from bitward.cli.options import with_view
from bitward.cli.view import View


@click.command("trace", short_help="Record fingerprints of a model's hidden states, for a later diagnosis.")
@click.argument("model", metavar="MODEL")
@click.option("-o", "--output", metavar="FILE", help="The trace file; without it bitward.trace in MODEL.")
@click.option("--calibration", metavar="TEXT", help="A UTF-8 text whose first tokens the model is run on; without it a built-in one.")
@click.option("--device", metavar="DEVICE", default="cpu", show_default=True, help="Where torch runs the model.")
@with_view
def command(
    model: str,
    output: str | None,
    calibration: str | None,
    device: str,
    jobs: int | None,  # noqa: ARG001 - every command takes --jobs
    view: View,
) -> int:
    """Run MODEL (a Hugging Face directory, or module:factory) on a few fixed tokens and keep three numbers for each output channel of each
    module: some 2 MB for 135 million weights.

    With it 'bitward diagnose --trace' names the weights and bits that have changed since, by one run of the model and without a copy of its
    weights. Record it while the model is known to be right.
    """
    from bitward.report.trace_text import trace_lines
    from bitward.tracing import record_trace

    return view.finish(record_trace(model, output, calibration=calibration, device=device), trace_lines)
