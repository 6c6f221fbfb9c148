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
@click.option("--sarif", metavar="FILE", help="Write a SARIF 2.1.0 report, too.")
@click.option("--junit", metavar="FILE", help="Write a JUnit XML report, too.")
@click.option(
    "--policy",
    type=click.Choice(["all", "protected"]),
    help="For pipelines: a sidecar stands for its file; 'protected' leaves out what has none.",
)
@with_view
def command(
    paths: tuple[str, ...],
    tensor: str | None,
    sidecar_only: bool,
    sidecar_dir: str | None,
    live: int | None,
    sealed_by: str | None,
    sarif: str | None,
    junit: str | None,
    policy: str | None,
    jobs: int | None,
    view: View,
) -> int:
    """Compare each PATH with its sidecar and name every bit that differs: tensor, element, bit, value."""
    from bitward.api import verify
    from bitward.report.verify_text import sidecar_only_lines, verify_lines

    files = None
    if sarif is not None or junit is not None:
        if sidecar_only:
            raise click.UsageError("--sarif and --junit tell of the files: they do not go with --sidecar-only")
        from bitward.report.pipeline_files import PipelineFiles

        files = PipelineFiles(sarif, junit)
        files.make_ready()
    if policy is not None:
        if live is not None or sidecar_dir is not None:
            raise click.UsageError("--policy is about sidecars beside their files: neither --live nor --sidecar-dir goes with it")
        from bitward.chosen import Policy, chosen

        paths = tuple(chosen(paths, Policy(policy)))
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
    if files is not None:
        files.write(report)
    return view.finish(report, sidecar_only_lines if sidecar_only else verify_lines)
