"""``bitward ollama``: the blobs of an Ollama store."""

from __future__ import annotations

import click

from bitward.cli.options import Command, byte_count, ended_in_good_order, with_view
from bitward.cli.view import View


@click.group("ollama", short_help="Models in an Ollama store: verify, protect, repair.")
def command() -> None:
    """Models in an Ollama store: OLLAMA_MODELS, ~/.ollama/models or that of the service, unless --store names another.

    MODEL is as Ollama has it: [HOST/][NAMESPACE/]MODEL[:TAG]. Without one all models are meant.
    """


def _models(command: Command) -> Command:
    return click.argument("models", nargs=-1, metavar="[MODEL]...")(command)


def _store(command: Command) -> Command:
    text = "The directory of the sidecars.  [default: wards, in the store]"
    decorated = click.option("--sidecar-dir", metavar="DIR", help=text)(command)
    return click.option("--store", metavar="DIR", help="The store: the directory in which 'blobs' and 'manifests' are.")(decorated)


@command.command("verify", short_help="Check blobs by name and content.")
@_models
@_store
@with_view
def verify_command(models: tuple[str, ...], store: str | None, sidecar_dir: str | None, jobs: int | None, view: View) -> int:
    """Check that every blob that a model needs is there and is what its name says; where it is not, its sidecar tells what is wrong.

    Without MODEL blobs are checked too that no model needs, and begun downloads are told.
    """
    from bitward.registries.ollama import StoreRequest, verify_store
    from bitward.report.blobs_text import blobs_lines

    with view.progress() as sink:
        report = verify_store(StoreRequest(models, store, sidecar_dir, jobs=jobs, progress=sink))
    return view.finish(report, blobs_lines)


@command.command("protect", short_help="Make sidecars for blobs.")
@_models
@_store
@click.option("--preset", type=click.Choice(["lean", "standard", "strong"]), default="standard", show_default=True, help="How much parity.")
@click.option("--hash", "leaf_hash", type=click.Choice(["xxh3", "blake3"]), default="xxh3", show_default=True, help="Hash of the blocks.")
@click.option("--force", is_flag=True, help="Make sidecars also for blobs that have some.")
@with_view
def protect_command(
    models: tuple[str, ...],
    store: str | None,
    sidecar_dir: str | None,
    preset: str,
    leaf_hash: str,
    force: bool,
    jobs: int | None,
    view: View,
) -> int:
    """Make sidecars for the blobs that models need. A blob that is not what its name says is refused."""
    from bitward.registries.ollama import StoreRequest, protect_store
    from bitward.report.blobs_text import blobs_lines
    from bitward_formats.digest import LeafHash

    with view.progress() as sink:
        kind = LeafHash[leaf_hash.upper()]
        request = StoreRequest(models, store, sidecar_dir, preset=preset, leaf_hash=kind, force=force, jobs=jobs, progress=sink)
        report = protect_store(request)
    return view.finish(report, blobs_lines)


@command.command("repair", short_help="Put damaged blobs back.")
@_models
@_store
@click.option(
    "--from", "sources", multiple=True, metavar="SOURCE", help="'registry', the URL of another one, or another store; may be given again."
)
@click.option("--max-fetch", callback=byte_count, metavar="BYTES", help="Most bytes to fetch by ranges, such as 500M.  [default: 1 GiB]")
@click.option("--allow-full-download", is_flag=True, help="Fetch a blob whole from a registry if nothing less helps.")
@click.option("--dry-run", is_flag=True, help="Say what is damaged; write nothing, and ask nobody.")
@with_view
def repair_command(
    models: tuple[str, ...],
    store: str | None,
    sidecar_dir: str | None,
    sources: tuple[str, ...],
    max_fetch: int | None,
    allow_full_download: bool,
    dry_run: bool,
    jobs: int | None,
    view: View,
) -> int:
    """Put damaged blobs back in place: from parity, and what that lacks from each SOURCE in turn, by ranges.

    Without a sidecar pages of zeros and what is missing at the end are fetched, and written only if the blob then is what its name says.
    """
    from bitward.registries.ollama import StoreRequest, repair_store
    from bitward.report.blobs_text import blobs_lines
    from bitward_agent.sources.limits import DEFAULT_FETCH_BYTES, Limits

    with view.progress() as sink, ended_in_good_order():
        limits = Limits(DEFAULT_FETCH_BYTES if max_fetch is None else max_fetch, allow_full_download)
        request = StoreRequest(models, store, sidecar_dir, sources, limits, dry_run, jobs=jobs, progress=sink)
        report = repair_store(request)
    return view.finish(report, blobs_lines)
