"""``bitward diff``: two checkpoints, down to the bits."""

from __future__ import annotations

import click

from bitward.cli.options import with_view
from bitward.cli.view import View


@click.command("diff", short_help="Compare two checkpoints, down to the bits.")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@with_view
def command(a: str, b: str, jobs: int | None, view: View) -> int:
    """Compare the checkpoints A and B: which tensors differ, in how many bits, and by how much."""
    from bitward.api import diff
    from bitward.report.diff_text import diff_lines

    with view.progress() as sink:
        report = diff(a, b, jobs=jobs, progress=sink)
    return view.finish(report, diff_lines)
