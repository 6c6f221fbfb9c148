"""``bitward manifest``: export and import of OpenSSF Model Signing manifests."""

from __future__ import annotations

import click

from bitward.cli.options import with_view
from bitward.cli.view import View


@click.group("manifest", short_help="Export or import an OpenSSF model-signing manifest.")
def command() -> None:
    """Signed manifests that model_signing verifies, and that 'model_signing sign key' makes."""


@command.command("export", short_help="Sign a directory's files for model_signing.")
@click.argument("key", metavar="KEY")
@click.argument("folder", metavar="DIR")
@click.option("--out", metavar="FILE", help="Where to write the bundle; model.sig in DIR by default.")
@click.option(
    "--method",
    type=click.Choice(["shards", "files"]),
    default="shards",
    show_default=True,
    help="Shards of 1 GB, or whole files: the command line of model_signing verifies only those.",
)
@with_view
def export_command(key: str, folder: str, out: str | None, method: str, jobs: int | None, view: View) -> int:
    """Hash the files of DIR and sign the manifest with KEY, a private key on a NIST curve ('bitward keygen --kind p256')."""
    from bitward.manifests import export_manifest
    from bitward.report.seal_text import manifest_lines

    return view.finish(export_manifest(key, folder, out, method=method, jobs=jobs), manifest_lines)


@command.command("import", short_help="Protect a directory that a signed manifest vouches for.")
@click.argument("key", metavar="KEY")
@click.argument("folder", metavar="DIR")
@click.option("--signature", metavar="FILE", help="The bundle; model.sig in DIR by default.")
@click.option("--preset", type=click.Choice(["lean", "standard", "strong"]), default="standard", show_default=True, help="How much parity.")
@click.option("--hash", "leaf_hash", type=click.Choice(["xxh3", "blake3"]), default="xxh3", show_default=True, help="Hash of the blocks.")
@click.option("--sidecar-dir", metavar="DIR", help="Where to put the sidecars, if not beside the files.")
@with_view
def import_command(
    key: str,
    folder: str,
    signature: str | None,
    preset: str,
    leaf_hash: str,
    sidecar_dir: str | None,
    jobs: int | None,
    view: View,
) -> int:
    """Check the signature with KEY, a public key, and protect DIR if it holds just the files that the manifest lists, as it lists them."""
    from bitward.manifests import import_manifest
    from bitward.protecting import Request
    from bitward.report.protect_text import protect_lines
    from bitward_formats.digest import LeafHash

    with view.progress() as sink:
        request = Request(preset, LeafHash[leaf_hash.upper()], None, False, jobs, sink)
        report = import_manifest(key, folder, request, signature, sidecar_dir)
    return view.finish(report, protect_lines)
