"""The command group: knows the commands' names, and loads a command's module only when that command is asked for."""

from __future__ import annotations

from importlib import import_module

import click

from bitward import __version__

COMMANDS = (
    "protect",
    "verify",
    "gate",
    "repair",
    "explain",
    "inspect",
    "diff",
    "keygen",
    "seal",
    "manifest",
    "inject",
    "drill",
    "harden",
    "campaign",
    "agent",
    "trace",
    "diagnose",
    "hf",
    "mlflow",
    "oci",
    "ollama",
    "scrub",
)


class LazyGroup(click.Group):
    """Start-up counts: a command's module is imported when it runs, or for the list of commands in the help."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"bitward.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command


@click.group(cls=LazyGroup, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="bitward", message="%(prog)s %(version)s")
def bitward() -> None:
    """Keep model weights true: parity and hashes beside a checkpoint, flipped bits found and put back.

    \b
    Exit codes: 0 intact or done   1 damaged, repairable    2 wrong usage
                3 cannot tell      4 damaged beyond repair  5 changed      70 a fault of ours
    """
