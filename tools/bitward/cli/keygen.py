"""``bitward keygen``: make a key pair."""

from __future__ import annotations

import click

from bitward.cli.options import with_view
from bitward.cli.view import View


@click.command("keygen", short_help="Make a key pair for seals or manifests.")
@click.argument("folder", metavar="KEYDIR")
@click.option(
    "--kind",
    type=click.Choice(["ed25519", "p256"]),
    default="ed25519",
    show_default=True,
    help="Ed25519 for seals, P-256 for model-signing manifests.",
)
@with_view
def command(folder: str, kind: str, jobs: int | None, view: View) -> int:  # noqa: ARG001 - every command takes --jobs
    """Make bitward.key, which only you can read and which has no password, and bitward.pub in KEYDIR. Nothing is overwritten."""
    from bitward.report.seal_text import key_lines
    from bitward_agent.keys import make_keys
    from bitward_agent.trust_reports import KeyReport

    private, public = make_keys(folder, kind)
    report = KeyReport("bitward.keygen/1", kind, private, public)
    return view.finish(report, key_lines)
