"""``bitward protect``: write sidecars."""

from __future__ import annotations

import re

import click

from bitward.cli.options import paths_argument, with_view
from bitward.cli.view import View

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.IGNORECASE)


def _digest(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:  # noqa: ARG001 - click's signature
    if value is not None and not _DIGEST.fullmatch(value):
        raise click.BadParameter("must be sha256: and 64 hexadecimal digits")
    return value.lower() if value else None


@click.command("protect", short_help="Write a sidecar with hashes and parity beside each file.")
@paths_argument
@click.option(
    "--preset",
    type=click.Choice(["lean", "standard", "strong"]),
    default="standard",
    show_default=True,
    help="How much parity: about 1.5, 4 or 10 per cent of a bf16 file.",
)
@click.option(
    "--hash",
    "leaf_hash",
    type=click.Choice(["xxh3", "blake3"]),
    default="xxh3",
    show_default=True,
    help="Hash of the blocks; blake3 also withstands tampering, and needs bitward[blake3].",
)
@click.option("--sidecar-dir", metavar="DIR", help="Where to put the sidecars, if not beside the files.")
@click.option("--expect", metavar="sha256:HEX", callback=_digest, help="Digest that the file must have; then its origin is trusted.")
@click.option("--force", is_flag=True, help="Protect what is there now even if a sidecar says otherwise.")
@click.option("--no-first-sight", is_flag=True, help="Do not look for values that seem damaged already.")
@with_view
def command(
    paths: tuple[str, ...],
    preset: str,
    leaf_hash: str,
    sidecar_dir: str | None,
    expect: str | None,
    force: bool,
    no_first_sight: bool,
    jobs: int | None,
    view: View,
) -> int:
    """Write a sidecar (FILE.ward) for each PATH, a file or a directory of files as one unit."""
    if expect is not None and len(paths) != 1:
        raise click.UsageError("--expect is the digest of one file: give one PATH")
    from bitward.api import protect
    from bitward.report.protect_text import protect_lines

    with view.progress() as sink:
        report = protect(
            *paths,
            preset=preset,
            leaf_hash=leaf_hash,
            sidecar_dir=sidecar_dir,
            expect=expect,
            force=force,
            first_sight=not no_first_sight,
            jobs=jobs,
            progress=sink,
        )
    return view.finish(report, protect_lines)
