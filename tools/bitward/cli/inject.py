"""``bitward inject``: damage a file on purpose."""

from __future__ import annotations

import click

from bitward.cli.options import with_view
from bitward.cli.view import View


@click.command("inject", short_help="Damage a file on purpose, for drills and research.")
@click.argument("path", metavar="PATH")
@click.option("--flips", type=click.IntRange(min=1), metavar="N", help="Flip N distinct bits.")
@click.option("--rate", type=float, metavar="P", help="Instead: flip one bit in this share of the tensors' elements.")
@click.option(
    "--lanes",
    default="all",
    show_default=True,
    metavar="critical|all|BIT",
    help="Which bits: sign and exponent and the like, any bit of the file, or that bit of each element.",
)
@click.option("--burst", type=click.IntRange(min=1), metavar="BYTES", help="Overwrite so many bytes with noise.")
@click.option("--zero", type=click.IntRange(min=1), metavar="BYTES", help="Overwrite so many bytes with zeros.")
@click.option("--seed", type=int, required=True, metavar="S", help="The same seed on the same file does the same damage.")
@click.option("--keep-mtime", is_flag=True, help="Leave the file's times as they were, as rot would.")
@with_view
def command(
    path: str,
    flips: int | None,
    rate: float | None,
    lanes: str,
    burst: int | None,
    zero: int | None,
    seed: int,
    keep_mtime: bool,
    jobs: int | None,  # noqa: ARG001 - every command takes --jobs
    view: View,
) -> int:
    """Damage the file PATH in place and say what was done. There is no way back but a repair or another copy."""
    from bitward.inject import inject
    from bitward.inject_places import InjectRefusedError
    from bitward.report.inject_text import inject_lines

    try:
        report = inject(
            path,
            flips=flips or 0,
            lanes=lanes,
            rate=rate,
            burst_bytes=burst or 0,
            zero_bytes=zero or 0,
            seed=seed,
            keep_mtime=keep_mtime,
        )
    except InjectRefusedError as refusal:
        raise click.UsageError(str(refusal)) from refusal
    return view.finish(report, inject_lines)
