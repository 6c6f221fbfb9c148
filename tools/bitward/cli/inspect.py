"""``bitward inspect``: what files are made of."""

from __future__ import annotations

from functools import partial

import click

from bitward.cli.options import paths_argument, with_view
from bitward.cli.view import View


@click.command("inspect", short_help="What a file is made of: tensors, record kinds, critical bits.")
@paths_argument
@click.option("--all", "everything", is_flag=True, help="List every span, not only the first.")
@with_view
def command(paths: tuple[str, ...], everything: bool, jobs: int | None, view: View) -> int:  # noqa: ARG001 - every command takes --jobs
    """List the tensors of each PATH and the other bytes around them, how their elements are laid out and which bits of them are
    critical. Only headers are read, and no sidecar is needed."""
    from bitward.api import inspect
    from bitward.report.inspect_text import inspect_lines

    return view.finish(inspect(*paths), partial(inspect_lines, everything=everything))
