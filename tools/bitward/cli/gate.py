"""``bitward gate``: let a program load only models that are intact."""

from __future__ import annotations

import sys
from typing import Any

import click

from bitward.cli.options import sidecar_dir_option, with_view
from bitward.cli.view import View
from bitward_agent.findings import ExitCode

_RUN = "bitward.gate.command"


class GateCommand(click.Command):
    """What follows ``--`` is a command's line and is left alone; click would mix it with the paths before it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = args.index("--") if "--" in args else len(args)
        ctx.meta[_RUN] = tuple(args[given + 1 :])
        return super().parse_args(ctx, args[:given])


def max_age(context: click.Context, parameter: click.Parameter, value: str) -> int:  # noqa: ARG001 - click's signature
    """Callback of an option that takes a time such as ``1d``; ``0`` for none."""
    from bitward_agent.daemon.config_values import parse_duration

    seconds = 0 if value == "0" else parse_duration(value)
    if seconds is None:
        raise click.BadParameter(f"{value!r} is no time such as 90s, 10m, 12h, 7d, or 0")
    return seconds


@click.command("gate", cls=GateCommand, short_help="Let programs load only models that are intact.")
@click.argument("paths", nargs=-1, metavar="[PATH]... [-- CMD...]")
@click.option(
    "--policy",
    type=click.Choice(["enforce", "heal", "warn"]),
    default="enforce",
    show_default=True,
    help="Stop what is not intact; heal it first; or only tell.",
)
@click.option("--max-age", default="1d", callback=max_age, metavar="TIME", help="How old a remembered verdict may be.  [default: 1d]")
@click.option("--force", is_flag=True, help="Read every byte, whatever is remembered.")
@click.option("--allow-unprotected", is_flag=True, help="Let files pass that have no sidecar.")
@sidecar_dir_option
@click.option(
    "--watch", "folders", multiple=True, metavar="DIR", help="As root: let nobody open a damaged file below DIR. May be given again."
)
@click.option(
    "--fail", type=click.Choice(["open", "closed"]), help="With --watch: what becomes of opens when the gate is overloaded or dies."
)
@click.option("--timeout", default="5m", callback=max_age, metavar="TIME", help="With --watch: how long an open may wait.  [default: 5m]")
@click.option("--deny-unprotected", is_flag=True, help="With --watch: files without a sidecar may not be opened either.")
@with_view
@click.pass_context
def command(
    context: click.Context,
    paths: tuple[str, ...],
    policy: str,
    max_age: int,
    force: bool,
    allow_unprotected: bool,
    sidecar_dir: str | None,
    folders: tuple[str, ...],
    fail: str | None,
    timeout: int,
    deny_unprotected: bool,
    jobs: int | None,
    view: View,
) -> int:
    """Check the files of each PATH and of the models that CMD's line names, then become CMD.

    A model is a file, a directory, one of several shards, or ORG/MODEL in the hub's local cache. CMD does not run when one is damaged
    or, unless --allow-unprotected, has no sidecar. Without CMD the gate only checks. With CMD the report goes to standard error.

    With --watch it stays, and the kernel asks it before any program opens a file below DIR.
    """
    line: tuple[str, ...] = context.meta[_RUN]
    if folders:
        if paths or line or force or allow_unprotected:
            raise click.UsageError("--watch takes no PATH, CMD, --force or --allow-unprotected.", context)
        return _watch(folders, policy, fail, (max_age, timeout), deny_unprotected, sidecar_dir, jobs, view)
    if fail or deny_unprotected:
        raise click.UsageError("--fail and --deny-unprotected go with --watch.", context)
    from bitward.gating import GateRequest, gate, run
    from bitward.report.gate_text import gate_lines, trouble_lines
    from bitward_agent.gate.facts import Policy

    if not paths and not line:
        raise click.UsageError("Missing argument 'PATH...' or '-- CMD...'.", context)
    with view.progress() as sink:
        request = GateRequest(Policy(policy), max_age, force, allow_unprotected, sidecar_dir, jobs, sink)
        report = gate(paths, line, request)
    if not line:
        return view.finish(report, gate_lines)
    _tell(report, view, trouble_lines)
    if not report.runs:
        return report.exit_code or ExitCode.CANNOT_TELL
    return run(line, lambda: (sys.stdout.flush(), sys.stderr.flush()))


def _tell(report: Any, view: View, lines: Any) -> None:
    """The report on standard error: standard output belongs to the command."""
    from contextlib import suppress

    from bitward.report.document import document
    from bitward.report.style import Style

    if view.quiet and not view.as_json:
        return
    with suppress(OSError):
        for one in [document(report)] if view.as_json else lines(report, Style.of(sys.stderr)):
            sys.stderr.write(one.encode(sys.stderr.encoding or "utf-8", "backslashreplace").decode(sys.stderr.encoding or "utf-8") + "\n")
        sys.stderr.flush()


def _watch(
    folders: tuple[str, ...],
    policy: str,
    fail: str | None,
    times: tuple[int, int],
    deny_unprotected: bool,
    sidecar_dir: str | None,
    jobs: int | None,
    view: View,
) -> int:
    import time

    from bitward.gate_watch import watch
    from bitward.report.document import document
    from bitward.report.gate_text import event_document, event_line
    from bitward_agent.gate.facts import Policy
    from bitward_agent.gate.kernel.facts import GateEvent, WatchRequest

    style = view.style()

    def show(event: GateEvent) -> None:
        if view.as_json:
            view.write([document(event_document(event, time.time()))])
        elif not view.quiet:
            view.write([event_line(event, style)])

    request = WatchRequest(
        folders,
        Policy(policy),
        max_age_seconds=times[0],
        timeout_seconds=max(1, times[1]),
        unprotected_pass=not deny_unprotected,
        sidecar_dir=sidecar_dir,
        jobs=jobs,
    )
    return watch(folders, request, fail, show)
