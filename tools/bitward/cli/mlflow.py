"""``bitward mlflow``: an MLflow model registry protected, verified and scrubbed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from bitward.cli.options import ended_in_good_order, with_view
from bitward.cli.view import View

Command = Callable[..., int]


@click.group("mlflow", short_help="Protect, verify and scrub a model registry of MLflow.")
def command() -> None:
    """Sidecars beside the artefacts of registered models. MODEL is NAME, NAME/VERSION or NAME@ALIAS."""


def _registry_options(decorated: Command) -> Command:
    decorated = click.option("--registry-uri", metavar="URI", help="The model registry, if it is not the tracking server.")(decorated)
    help_text = "The tracking server; else as MLflow finds it (MLFLOW_TRACKING_URI)."
    return click.option("--tracking-uri", metavar="URI", help=help_text)(decorated)


@command.command("protect", short_help="Log sidecars beside a model version's artefacts.")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@_registry_options
@click.option("--preset", type=click.Choice(["lean", "standard", "strong"]), default="standard", show_default=True, help="How much parity.")
@click.option("--hash", "leaf_hash", type=click.Choice(["xxh3", "blake3"]), default="xxh3", show_default=True, help="Hash of the blocks.")
@click.option("--force", is_flag=True, help="Replace sidecars that say that an artefact is damaged.")
@click.option("--no-tags", is_flag=True, help="Write no tags.")
@with_view
def protect_command(models: tuple[str, ...], view: View, jobs: int | None, **asked: Any) -> int:
    """Fetch each MODEL's artefacts, store sidecars beside them, and write their root to the version's tag bitward.root."""
    from bitward.registries.mlflow import protect_registry
    from bitward.report.mlflow_text import registry_lines

    with ended_in_good_order(), view.progress() as sink:
        report = protect_registry(models, _options(asked, jobs, sink))
    return view.finish(report, registry_lines)


@command.command("verify", short_help="Verify model versions; writes nothing.")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@_registry_options
@with_view
def verify_command(models: tuple[str, ...], view: View, jobs: int | None, **asked: Any) -> int:
    """Compare each MODEL's artefacts with the sidecars beside them."""
    from bitward.registries.mlflow import verify_registry
    from bitward.report.mlflow_text import registry_lines

    with ended_in_good_order(), view.progress() as sink:
        report = verify_registry(models, _options(asked, jobs, sink))
    return view.finish(report, registry_lines)


@command.command("scrub", short_help="Verify every version of every registered model.")
@click.argument("models", nargs=-1, metavar="[MODEL...]")
@_registry_options
@click.option("--heal", is_flag=True, help="Repair damaged artefacts in their store.")
@click.option("--from", "sources", multiple=True, metavar="SOURCE", help="With --heal: another copy, for what parity cannot restore.")
@click.option("--state", metavar="FILE", help="Where to remember what was intact, to go on from after any end.")
@click.option("--no-tags", is_flag=True, help="Write no tags.")
@with_view
def scrub_command(models: tuple[str, ...], view: View, jobs: int | None, **asked: Any) -> int:
    """Verify all model versions, or those of each MODEL, and write verdict and time to their tags."""
    from bitward.registries.mlflow import scrub_registry
    from bitward.report.mlflow_text import registry_lines

    with ended_in_good_order(), view.progress() as sink:
        report = scrub_registry(models, _options(asked, jobs, sink))
    return view.finish(report, registry_lines)


def _options(asked: dict[str, Any], jobs: int | None, sink: Any) -> Any:
    from bitward.registries.mlflow import Options

    tags = not asked.pop("no_tags", False)
    return Options(tags=tags, jobs=jobs, progress=sink, **asked)
