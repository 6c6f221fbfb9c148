"""``bitward drill``: copy, damage, find, repair, compare."""

from __future__ import annotations

import click

from bitward.cli.options import with_view
from bitward.cli.view import View

DEFAULT_SEED = 1


@click.command("drill", short_help="Damage a copy in several ways and show that it comes back.")
@click.argument("path", metavar="[PATH]", required=False)
@click.option("--seed", type=int, default=DEFAULT_SEED, show_default=True, metavar="S", help="The same seed does the same damage.")
@with_view
def command(path: str | None, seed: int, jobs: int | None, view: View) -> int:
    """Copy PATH, protect the copy, damage it, find the damage, repair it and compare: does every byte come back?

    PATH, a file or a directory, is only read. Without PATH the drill makes a small checkpoint itself.
    """
    from bitward.drill import drill
    from bitward.report.drill_text import DrillText

    text = DrillText(view.style())
    tell = (lambda event: view.write(text.lines(event))) if view.speaks else None
    report = drill(path, seed=seed, jobs=jobs, tell=tell, watch=view.progress)
    return view.finish(report, text.closing)
