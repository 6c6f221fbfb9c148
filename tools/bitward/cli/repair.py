"""``bitward repair``: put damage back."""

from __future__ import annotations

import click

from bitward.cli.options import paths_argument, sidecar_dir_option, with_view
from bitward.cli.view import View


@click.command("repair", short_help="Put damaged bytes back from parity or a good copy.")
@paths_argument
@click.option("--from", "sources", multiple=True, metavar="SOURCE", help="A good copy to take bytes from; may be given again.")
@click.option("--dry-run", is_flag=True, help="Say what would be written; write nothing.")
@click.option("--best-effort", is_flag=True, help="Where no digest can vouch for it, still write what parity says.")
@sidecar_dir_option
@with_view
def command(
    paths: tuple[str, ...],
    sources: tuple[str, ...],
    dry_run: bool,
    best_effort: bool,
    sidecar_dir: str | None,
    jobs: int | None,
    view: View,
) -> int:
    """Put the damaged blocks of each PATH back in place. Only bytes that a digest vouches for are written."""
    from bitward.api import repair
    from bitward.report.repair_text import repair_lines

    with view.progress() as sink:
        report = repair(
            *paths, sources=sources, dry_run=dry_run, best_effort=best_effort, sidecar_dir=sidecar_dir, jobs=jobs, progress=sink
        )
    return view.finish(report, repair_lines)
