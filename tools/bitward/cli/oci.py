"""``bitward oci``: models in OCI registries, with their sidecars beside them."""

from __future__ import annotations

import os

import click

from bitward.cli.options import Command, byte_count, ended_in_good_order, with_view
from bitward.cli.view import View

PUSH_SILENCE_SECONDS = 600.0
"""Registries over object stores answer an upload when they have copied it."""
_PULL_MAX_FETCH = "Most bytes to be fetched, such as 20G.  [default: what the manifest says, and 1 GiB again for healing]"


@click.group("oci", short_help="Models in OCI registries: push, pull, verify, repair.")
def command() -> None:
    """Models in OCI registries and layouts. A sidecar is a referrer of the model's manifest (OCI 1.1), so the model stays as it is.

    A reference is HOST[:PORT]/REPOSITORY[:TAG][@sha256:HEX]. Credentials are those of 'docker login'.
    """


def _plain_http(command: Command) -> Command:
    text = "Speak HTTP without TLS; with registries on this machine that is the default."
    return click.option("--plain-http", is_flag=True, help=text)(command)


def _max_fetch(command: Command) -> Command:
    text = "Most bytes to be fetched again for healing, such as 500M.  [default: 1 GiB]"
    return click.option("--max-fetch", callback=byte_count, metavar="BYTES", help=text)(command)


def _parity(command: Command) -> Command:
    presets = click.Choice(["lean", "standard", "strong"])
    decorated = click.option("--preset", type=presets, default="standard", show_default=True, help="How much parity.")(command)
    hashes = click.Choice(["xxh3", "blake3"])
    return click.option("--hash", "leaf_hash", type=hashes, default="xxh3", show_default=True, help="Hash of the blocks.")(decorated)


@command.command("push", short_help="Push files and their sidecars.")
@click.argument("reference", metavar="REF")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--artifact-type", metavar="TYPE", help="Type of the artefact.  [default: application/vnd.bitward.model.v1]")
@click.option("--no-sidecars", is_flag=True, help="Push the files alone.")
@_parity
@_plain_http
@with_view
def push_command(
    reference: str,
    paths: tuple[str, ...],
    artifact_type: str | None,
    no_sidecars: bool,
    preset: str,
    leaf_hash: str,
    plain_http: bool,
    jobs: int | None,
    view: View,
) -> int:
    """Push files, or a directory's files, as one artefact with a layer for each, as ORAS does, and their sidecars as its referrer.

    A file that is not what its sidecar knows is not pushed, and then nothing is.
    """
    from bitward.registries.oci_push import PushRequest, push
    from bitward.report.blobs_text import blobs_lines
    from bitward_agent.sources.limits import Limits
    from bitward_formats.digest import LeafHash
    from bitward_formats.oci import MODEL_ARTIFACT

    with view.progress() as sink, ended_in_good_order():
        kind = artifact_type or MODEL_ARTIFACT
        request = PushRequest(
            Limits(silence_seconds=PUSH_SILENCE_SECONDS), kind, preset, LeafHash[leaf_hash.upper()], not no_sidecars, plain_http, jobs, sink
        )
        report = push(reference, paths, request)
    return view.finish(report, blobs_lines)


@command.command("pull", short_help="Pull files, verified and healed.")
@click.argument("reference", metavar="REF")
@click.argument("folder", metavar="DIR")
@click.option("--force", is_flag=True, help="Replace files that are in the way and hold something else.")
@click.option("--max-fetch", callback=byte_count, metavar="BYTES", help=_PULL_MAX_FETCH)
@_plain_http
@with_view
def pull_command(reference: str, folder: str, force: bool, max_fetch: int | None, plain_http: bool, jobs: int | None, view: View) -> int:
    """Pull a manifest's layers into DIR with their sidecars. A file appears under its name only when its digest is right.

    A layer that comes damaged is healed from its sidecar, and by asking the registry again for what parity lacks. Files that are there
    already are verified, and healed the same way.
    """
    from bitward.registries.oci_pull import PullRequest, pull
    from bitward.report.blobs_text import blobs_lines
    from bitward_agent.sources.limits import DEFAULT_FETCH_BYTES, Limits

    with view.progress() as sink, ended_in_good_order():
        limits = Limits(DEFAULT_FETCH_BYTES if max_fetch is None else max_fetch)
        report = pull(reference, folder, PullRequest(limits, plain_http, force, jobs, sink, max_fetch is not None))
    return view.finish(report, blobs_lines)


@command.command("verify", short_help="Verify what a registry serves, or a layout.")
@click.argument("target", metavar="REF|DIR")
@_plain_http
@with_view
def verify_command(target: str, plain_http: bool, jobs: int | None, view: View) -> int:
    """Hold every blob of a manifest against its digest, as the registry serves it; damage is located by the sidecar.

    With the directory of an OCI image layout, every blob that its index leads to.
    """
    from bitward.registries.oci_layout import LayoutRequest, verify_layout
    from bitward.registries.oci_verify import VerifyRequest, verify
    from bitward.report.blobs_text import blobs_lines
    from bitward_agent.sources.limits import Limits

    with view.progress() as sink, ended_in_good_order():
        if os.path.isdir(target):
            report = verify_layout(target, LayoutRequest(jobs=jobs, progress=sink))
        else:
            report = verify(target, VerifyRequest(Limits(), plain_http, jobs, sink))
    return view.finish(report, blobs_lines)


@command.command("protect", short_help="Make sidecars for what is in a registry or a layout.")
@click.argument("target", metavar="REF|DIR")
@click.option("--force", is_flag=True, help="Make sidecars also for layers that have some.")
@_parity
@_plain_http
@with_view
def protect_command(target: str, force: bool, preset: str, leaf_hash: str, plain_http: bool, jobs: int | None, view: View) -> int:
    """Make sidecars for the layers of a manifest, whoever pushed it, and attach them as its referrer. The manifest stays as it is.

    What is protected is the blob as it is stored: a compressed or archived layer as a run of bytes. With the directory of an OCI image
    layout the sidecars become blobs of it.
    """
    from bitward.registries.oci_layout import LayoutRequest, protect_layout
    from bitward.registries.oci_protect import ProtectRequest, protect
    from bitward.report.blobs_text import blobs_lines
    from bitward_agent.sources.limits import Limits
    from bitward_formats.digest import LeafHash

    kind = LeafHash[leaf_hash.upper()]
    with view.progress() as sink, ended_in_good_order():
        if os.path.isdir(target):
            report = protect_layout(target, LayoutRequest((), preset, kind, force, jobs=jobs, progress=sink))
        else:
            report = protect(target, ProtectRequest(Limits(), preset, kind, force, plain_http, jobs, sink))
    return view.finish(report, blobs_lines)


@command.command("repair", short_help="Put blobs back in a layout, or in a registry's storage.")
@click.argument("target", metavar="REF|DIR")
@click.option("--storage", metavar="DIR", help="Where the registry of REF keeps its files, such as /var/lib/registry.")
@click.option("--from", "others", multiple=True, metavar="REF|DIR", help="The same blobs elsewhere; may be given again.")
@click.option("--dry-run", is_flag=True, help="Say what is damaged; write nothing.")
@_max_fetch
@_plain_http
@with_view
def repair_command(
    target: str,
    storage: str | None,
    others: tuple[str, ...],
    dry_run: bool,
    max_fetch: int | None,
    plain_http: bool,
    jobs: int | None,
    view: View,
) -> int:
    """Put damaged blobs back in place: in an OCI image layout, or in the files of a registry of the distribution project.

    The interface of registries knows no way to replace a blob, so this is for whoever keeps one. With REF the blobs elsewhere are
    references too, asked for ranges; with DIR they are other layouts.
    """
    from bitward.registries.oci_layout import LayoutRequest, repair_layout
    from bitward.registries.oci_repair import RepairRequest, repair
    from bitward.report.blobs_text import blobs_lines
    from bitward_agent.sources.limits import DEFAULT_FETCH_BYTES, Limits

    with view.progress() as sink, ended_in_good_order():
        if os.path.isdir(target):
            report = repair_layout(target, LayoutRequest(others, dry_run=dry_run, jobs=jobs, progress=sink))
        elif storage is None:
            raise click.UsageError(
                "--storage says where the registry keeps its files; from elsewhere a registry's blobs cannot be replaced"
            )
        else:
            limits = Limits(DEFAULT_FETCH_BYTES if max_fetch is None else max_fetch)
            report = repair(target, RepairRequest(storage, limits, others, dry_run, plain_http, jobs, sink))
    return view.finish(report, blobs_lines)
