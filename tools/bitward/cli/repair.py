"""``bitward repair``: put damage back."""

from __future__ import annotations

import click

from bitward.cli.options import byte_count, live_option, sidecar_dir_option, with_view
from bitward.cli.view import View


@click.command("repair", short_help="Put damaged bytes back from parity or a good copy.")
@live_option
@click.option("--from", "sources", multiple=True, metavar="SOURCE", help="A good copy to take bytes from: path or URL; may be given again.")
@click.option("--max-fetch", callback=byte_count, metavar="BYTES", help="Most bytes that servers may send, such as 500M.  [default: 1 GiB]")
@click.option("--allow-full-download", is_flag=True, help="Read a file from its start where a server does not serve ranges.")
@click.option("--dry-run", is_flag=True, help="Say what would be written; write nothing.")
@click.option("--best-effort", is_flag=True, help="Where no digest can vouch for it, still write what parity says.")
@sidecar_dir_option
@with_view
def command(
    paths: tuple[str, ...],
    sources: tuple[str, ...],
    max_fetch: int | None,
    allow_full_download: bool,
    dry_run: bool,
    best_effort: bool,
    sidecar_dir: str | None,
    live: int | None,
    jobs: int | None,
    view: View,
) -> int:
    """Put the damaged blocks of each PATH back in place. Only bytes that a digest vouches for are written.

    What parity cannot restore is taken from each SOURCE in turn, block by block: a file or directory, http:// or https://,
    hf://ORG/MODEL[@REVISION][/FILE], or any URL that fsspec knows.
    """
    from bitward.api import repair
    from bitward.report.repair_text import repair_lines

    with view.progress() as sink:
        report = repair(
            *paths,
            sources=sources,
            dry_run=dry_run,
            best_effort=best_effort,
            sidecar_dir=sidecar_dir,
            max_fetch=max_fetch,
            allow_full_download=allow_full_download,
            live=live,
            jobs=jobs,
            progress=sink,
        )
    return view.finish(report, repair_lines)
