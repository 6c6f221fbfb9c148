"""``bitward explain``: what a sidecar can repair, in numbers."""

from __future__ import annotations

import click

from bitward.cli.options import paths_argument, sidecar_dir_option, with_view
from bitward.cli.view import View


@click.command("explain", short_help="What the sidecar can repair, its overhead, its origin.")
@paths_argument
@sidecar_dir_option
@with_view
def command(paths: tuple[str, ...], sidecar_dir: str | None, jobs: int | None, view: View) -> int:  # noqa: ARG001 - every command takes --jobs
    """Say in numbers what the sidecar of each PATH is sure to repair, what it costs and what it was made from."""
    from bitward.api import explain
    from bitward.report.explain_text import explain_lines

    return view.finish(explain(*paths, sidecar_dir=sidecar_dir), explain_lines)
