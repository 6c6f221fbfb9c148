"""``bitward agent``: run the daemon, and talk to one that runs."""

from __future__ import annotations

import os
from importlib import import_module

import click

from bitward import __version__
from bitward.cli.options import Command, with_view
from bitward.cli.view import View

DEFAULT_CONFIG = "/etc/bitward/agent.toml"


def _config_option(command: Command) -> Command:
    text = f"The agent's configuration; by default the one of the user, then {DEFAULT_CONFIG}."
    return click.option("--config", "config_path", metavar="FILE", help=text)(command)


def _config_path(given: str | None) -> str:
    """The configuration that is meant: of the command line, of the user, of the machine."""
    if given is not None:
        return given
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    own = os.path.join(home, "bitward", "agent.toml")
    return own if os.geteuid() != 0 and os.path.exists(own) else DEFAULT_CONFIG


def _ask(config_path: str | None, request: dict[str, object]) -> dict[str, object]:
    from bitward_agent.daemon.config import read_config
    from bitward_agent.daemon.control import ask

    return ask(read_config(_config_path(config_path)).runtime_dir, request)


def _seconds(context: click.Context, parameter: click.Parameter, value: str | None) -> int:  # noqa: ARG001 - click's signature
    """Callback of an option that takes a time such as ``10m``; 0 for none."""
    from bitward_agent.daemon.config_values import parse_duration

    if value is None:
        return 0
    seconds = parse_duration(value)
    if not seconds:
        raise click.BadParameter(f"{value!r} is no time such as 90s, 10m, 12h or 7d")
    return seconds


_FOR_SYSTEMD = ("install", "heal", "verify")
"""Commands of ``cli.agent_systemd``, which is loaded when one of them is meant."""


class _AgentGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *_FOR_SYSTEMD]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _FOR_SYSTEMD:
            return super().get_command(ctx, cmd_name)
        found = getattr(import_module("bitward.cli.agent_systemd"), f"{cmd_name}_command")
        assert isinstance(found, click.Command)
        return found


@click.group("agent", cls=_AgentGroup, short_help="The daemon that watches, scrubs and heals.")
def command() -> None:
    """A process that knows every model below the watched folders, verifies each on a schedule, and heals what it may."""


@command.command("run", short_help="Run in the foreground until a signal ends it.")
@_config_option
def run_command(config_path: str | None) -> int:
    """Run the agent in the foreground. SIGTERM ends it, SIGHUP makes it read its configuration again."""
    from bitward_agent.daemon.run import run_agent

    return run_agent(_config_path(config_path), version=__version__)


@command.command("check-config", short_help="Check a configuration and say what it means.")
@_config_option
@with_view
def check_config_command(config_path: str | None, jobs: int | None, view: View) -> int:  # noqa: ARG001 - every command has it
    """Read the configuration as the agent would. A mistake is told with its line and key, and ends with code 2."""
    from bitward.agent_reports import config_report
    from bitward.report.agent_text import config_lines

    return view.finish(config_report(_config_path(config_path)), config_lines)


@command.command("status", short_help="What the agent knows and does.")
@_config_option
@with_view
def status_command(config_path: str | None, jobs: int | None, view: View) -> int:  # noqa: ARG001 - every command has it
    """Every file with its verdict, when it was last verified whole, and what is open.

    Ends with the code of the worst verdict, as 'verify' does.
    """
    from bitward.agent_reports import Answer, status_exit_code
    from bitward.report.agent_text import status_lines

    answer = _ask(config_path, {"command": "status"})
    return view.finish_answer(Answer(answer, status_exit_code(answer)), status_lines)


@command.command("log", short_help="What has happened.")
@_config_option
@click.option("--limit", type=click.IntRange(1, 5000), default=50, show_default=True, help="How many events, the newest.")
@with_view
def log_command(config_path: str | None, limit: int, jobs: int | None, view: View) -> int:  # noqa: ARG001 - every command has it
    """The newest events, oldest first."""
    from bitward.agent_reports import Answer
    from bitward.report.agent_text import log_lines

    return view.finish_answer(Answer(_ask(config_path, {"command": "log", "limit": limit})), log_lines)


@command.command("scrub", short_help="Verify files now.")
@click.argument("path", metavar="PATH")
@_config_option
@click.option("--now", is_flag=True, help="As it is always meant: before all else, paused or not.")
@with_view
def scrub_command(path: str, config_path: str | None, now: bool, jobs: int | None, view: View) -> int:  # noqa: ARG001
    """Have a file, or all that is known below a folder, verified before all else. 'status' tells the result."""
    from bitward.agent_reports import Answer
    from bitward.report.agent_text import scrub_lines

    return view.finish_answer(Answer(_ask(config_path, {"command": "scrub", "path": os.path.abspath(path)})), scrub_lines)


@command.command("pause", short_help="Pause scrubbing.")
@_config_option
@click.option("--for", "seconds", callback=_seconds, metavar="TIME", help="How long, such as 2h; by default until 'resume'.")
@with_view
def pause_command(config_path: str | None, seconds: int, jobs: int | None, view: View) -> int:  # noqa: ARG001 - every command has it
    """Pause scrubbing, over restarts too. New and changed files are looked at all the same."""
    from bitward.agent_reports import Answer
    from bitward.report.agent_text import pause_lines

    return view.finish_answer(Answer(_ask(config_path, {"command": "pause", "seconds": seconds})), pause_lines)


@command.command("resume", short_help="Go on scrubbing.")
@_config_option
@with_view
def resume_command(config_path: str | None, jobs: int | None, view: View) -> int:  # noqa: ARG001 - every command has it
    """End a pause."""
    from bitward.agent_reports import Answer
    from bitward.report.agent_text import pause_lines

    return view.finish_answer(Answer(_ask(config_path, {"command": "resume"})), pause_lines)


@command.command("expect", short_help="Announce that a file will be rewritten.")
@click.argument("path", metavar="PATH")
@_config_option
@click.option("--for", "seconds", callback=_seconds, metavar="TIME", default="10m", show_default=True, help="How long it may take.")
@with_view
def expect_command(path: str, config_path: str | None, seconds: int, jobs: int | None, view: View) -> int:  # noqa: ARG001
    """Until the time is over the file, or all below a folder, is left alone; then what is there is judged as ever."""
    from bitward.agent_reports import Answer
    from bitward.report.agent_text import expect_lines

    request = {"command": "expect", "path": os.path.abspath(path), "seconds": seconds}
    return view.finish_answer(Answer(_ask(config_path, request)), expect_lines)
