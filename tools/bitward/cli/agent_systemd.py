"""``bitward agent install``, ``heal`` and ``verify``: what systemd needs, and what its units call."""

from __future__ import annotations

import click

from bitward.cli.options import with_view
from bitward.cli.view import View

_config_option = click.option("--config", metavar="FILE", help="The agent's configuration; /etc/bitward/agent.toml by default.")


@click.command("install", short_help="Lay down what systemd needs.")
@click.option("--user", is_flag=True, help="An agent of your own, in your own service manager.")
@click.option("--heal", is_flag=True, help="Also let the system's agent start the unit that heals.")
@click.option("--prefix", metavar="DIR", help="Put before every path: the root of an image, say.")
@click.option("--command", "called", metavar="COMMAND", help="How the units call Bitward, if not as it is called now.")
@click.option("--force", is_flag=True, help="Replace files that somebody changed, too.")
@click.option("--dry-run", is_flag=True, help="Write nothing; say what would be written.")
@with_view
def install_command(
    user: bool,
    heal: bool,
    prefix: str | None,
    called: str | None,
    force: bool,
    dry_run: bool,
    jobs: int | None,  # noqa: ARG001 - every command takes --jobs
    view: View,
) -> int:
    """Write units, user, folders and an example configuration, and say which commands come next. Nothing is started."""
    from bitward.agent_install import install
    from bitward.report.install_text import install_lines

    report = install(user=user, prefix=prefix, heal=heal, force=force, dry_run=dry_run, command=called)
    return view.finish(report, install_lines)


@click.command("heal", short_help="Repair one watched file, if its policy says so.")
@click.argument("path", metavar="PATH")
@_config_option
@with_view
def heal_command(path: str, config: str | None, jobs: int | None, view: View) -> int:
    """Repair PATH as the agent would: only if its [[watch]] says on_damage = "heal", and only if it was not modified."""
    from bitward.agent_files import heal_watched
    from bitward.report.repair_text import repair_lines
    from bitward_agent.daemon.config import DEFAULT_CONFIG, read_config

    return view.finish(heal_watched(read_config(config or DEFAULT_CONFIG), path, jobs=jobs), repair_lines)


@click.command("verify", short_help="Verify what the agent watches.")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@_config_option
@with_view
def verify_command(paths: tuple[str, ...], config: str | None, jobs: int | None, view: View) -> int:
    """Verify each PATH with the sidecars where the configuration has them; beside the files where there is no configuration."""
    from bitward.agent_files import configured, verify_watched
    from bitward.report.verify_text import verify_lines

    return view.finish(verify_watched(configured(config), paths, jobs=jobs), verify_lines)
