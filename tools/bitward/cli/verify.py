"""``bitward verify``: find damage and name it."""

from __future__ import annotations

import click

from bitward.cli.options import live_option, sidecar_dir_option, with_view
from bitward.cli.view import View


@click.command("verify", short_help="Find flipped bits and name them.")
@live_option
@click.option("--tensor", metavar="GLOB", help="Only the tensors whose name matches.")
@click.option("--sidecar-only", is_flag=True, help="Check the sidecar itself; do not read the file.")
@sidecar_dir_option
@click.option("--sealed-by", metavar="KEY", help="Public key (PEM, or a folder of keygen): what it did not seal is never intact.")
@with_view
def command(
    paths: tuple[str, ...],
    tensor: str | None,
    sidecar_only: bool,
    sidecar_dir: str | None,
    live: int | None,
    sealed_by: str | None,
    jobs: int | None,
    view: View,
) -> int:
    """Compare each PATH with its sidecar and name every bit that differs: tensor, element, bit, value."""
    from bitward.api import verify
    from bitward.report.verify_text import sidecar_only_lines, verify_lines

    with view.progress() as sink:
        report = verify(
            *paths,
            tensor=tensor,
            sidecar_only=sidecar_only,
            sidecar_dir=sidecar_dir,
            sealed_by=sealed_by,
            live=live,
            jobs=jobs,
            progress=sink,
        )
    return view.finish(report, sidecar_only_lines if sidecar_only else verify_lines)
