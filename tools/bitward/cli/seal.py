"""``bitward seal``: sign what files and directories hold."""

from __future__ import annotations

import click

from bitward.cli.options import paths_argument, sidecar_dir_option, with_view
from bitward.cli.view import View


@click.command("seal", short_help="Sign a file's or directory's root with a key.")
@click.argument("key", metavar="KEY")
@paths_argument
@sidecar_dir_option
@with_view
def command(key: str, paths: tuple[str, ...], sidecar_dir: str | None, jobs: int | None, view: View) -> int:
    """Verify each PATH, protected with --hash blake3, and sign its root with KEY: a private key, or a folder of 'bitward keygen'."""
    from bitward.api import seal
    from bitward.report.seal_text import seal_lines

    with view.progress() as sink:
        report = seal(key, *paths, sidecar_dir=sidecar_dir, jobs=jobs, progress=sink)
    return view.finish(report, seal_lines)
