"""``bitward hf``: the cache of the Hugging Face hub, verified, protected and healed."""

from __future__ import annotations

import click

from bitward.cli.options import Command, byte_count, ended_in_good_order, with_view
from bitward.cli.view import View


def _cache_options(command: Command) -> Command:
    cache = "The cache's folder; by default where huggingface_hub has it (HF_HUB_CACHE, HF_HOME)."
    wards = "The folder of the cache's sidecars; by default $BITWARD_HOME/hf/…, or CACHE-wards beside the cache."
    inner = click.option("--sidecar-dir", metavar="DIR", help=wards)(command)
    return click.option("--cache-dir", metavar="DIR", help=cache)(inner)


@click.group("hf", short_help="Verify, protect and heal the cache of the Hugging Face hub.")
def command() -> None:
    """The local cache of the Hugging Face hub: blobs against their digests, sidecars beside the cache, downloads healed by range."""


@command.command("verify", short_help="Hold every blob of the cache against its digest.")
@click.argument("repos", nargs=-1, metavar="[REPO]...")
@_cache_options
@click.option("--online", is_flag=True, help="Ask the hub which digests the files of each revision have.")
@with_view
def verify_command(
    repos: tuple[str, ...], cache_dir: str | None, sidecar_dir: str | None, online: bool, jobs: int | None, view: View
) -> int:
    """Check each REPO (ORG/NAME, datasets/ORG/NAME; all by default): every blob once, all revisions, refs and links."""
    from bitward.registries.hf_verify import VerifyRequest, verify_cache
    from bitward.report.hf_text import verify_lines

    with view.progress() as sink:
        report = verify_cache(VerifyRequest(repos, cache_dir, sidecar_dir, online, jobs, sink))
    return view.finish(report, verify_lines)


@command.command("protect", short_help="Write sidecars for the cache, in a folder beside it.")
@click.argument("repos", nargs=-1, metavar="[REPO]...")
@_cache_options
@click.option("--preset", type=click.Choice(["lean", "standard", "strong"]), default="standard", show_default=True, help="How much parity.")
@click.option("--hash", "leaf_hash", type=click.Choice(["xxh3", "blake3"]), default="xxh3", show_default=True, help="Hash of the blocks.")
@with_view
def protect_command(
    repos: tuple[str, ...],
    cache_dir: str | None,
    sidecar_dir: str | None,
    preset: str,
    leaf_hash: str,
    jobs: int | None,
    view: View,
) -> int:
    """Protect the blobs of each REPO (all by default). Only what has its digest is protected; the cache stays as it is."""
    from bitward.registries.hf_protect import ProtectRequest, protect_cache
    from bitward.report.protect_text import protect_lines
    from bitward_formats.digest import LeafHash

    with view.progress() as sink:
        report = protect_cache(ProtectRequest(repos, cache_dir, sidecar_dir, preset, LeafHash[leaf_hash.upper()], jobs, sink))
    return view.finish(report, protect_lines)


@command.command("pull", short_help="Fetch what is missing of a revision, heal what is damaged.")
@click.argument("repo", metavar="REPO")
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option("--revision", default="main", show_default=True, metavar="REV", help="Branch, tag or commit.")
@_cache_options
@click.option("--no-sidecars", is_flag=True, help="Leave the repository's own sidecars (*.ward) where they are.")
@click.option("--max-fetch", callback=byte_count, metavar="BYTES", help="Most bytes that servers may send, such as 500M.")
@with_view
def pull_command(
    repo: str,
    files: tuple[str, ...],
    revision: str,
    cache_dir: str | None,
    sidecar_dir: str | None,
    no_sidecars: bool,
    max_fetch: int | None,
    jobs: int | None,  # noqa: ARG001 - every command takes it; one file at a time is fetched, by four requests
    view: View,
) -> int:
    """Bring the FILEs (names or patterns; all by default) of REPO's revision into the cache, each with its digest.

    Of a damaged file only what parity cannot restore is fetched, or what looks lost; nothing takes a file's place whose digest is wrong.
    """
    from bitward.registries.hf_pull import PullRequest, pull
    from bitward.report.hf_text import pull_lines

    with ended_in_good_order(), view.progress() as sink:
        report = pull(PullRequest(repo, files, revision, cache_dir, sidecar_dir, not no_sidecars, max_fetch, sink))
    return view.finish(report, pull_lines)


@command.command("push", short_help="Push sidecars into a repository, beside their files.")
@click.argument("repo", metavar="REPO")
@click.argument("folder", required=False, metavar="[DIR]")
@click.option("--revision", default="main", show_default=True, metavar="REV", help="The branch to push to.")
@_cache_options
@click.option("--create-pr", is_flag=True, help="Open a pull request instead.")
@click.option("--message", metavar="TEXT", help="The commit's message.")
@click.option("--dry-run", is_flag=True, help="Say what would be pushed; push nothing.")
@with_view
def push_command(
    repo: str,
    folder: str | None,
    revision: str,
    cache_dir: str | None,
    sidecar_dir: str | None,
    create_pr: bool,
    message: str | None,
    dry_run: bool,
    jobs: int | None,  # noqa: ARG001 - every command takes it
    view: View,
) -> int:
    """Push the sidecars of REPO's files, from the cache or from DIR, as FILE.ward beside each FILE. Needs bitward[hf] and a token.

    Only a sidecar goes there that is whole and fits the file that the repository has now, byte for byte.
    """
    from bitward.registries.hf_push import MESSAGE, PushRequest, push
    from bitward.report.hf_text import push_lines

    with view.progress() as sink:
        request = PushRequest(repo, folder, revision, cache_dir, sidecar_dir, create_pr, message or MESSAGE, dry_run, sink)
        report = push(request)
    return view.finish(report, push_lines)


@command.command("card", short_help="Text about the sidecars, for a model card.")
@click.argument("repo", metavar="REPO")
@_cache_options
@with_view
def card_command(repo: str, cache_dir: str | None, sidecar_dir: str | None, jobs: int | None, view: View) -> int:  # noqa: ARG001
    """Print Markdown for REPO's model card: what its sidecars are, what they can repair, and what they are not."""
    from bitward.registries.hf_card import card
    from bitward.report.hf_text import card_lines

    return view.finish(card(repo, cache_dir, sidecar_dir), card_lines)
