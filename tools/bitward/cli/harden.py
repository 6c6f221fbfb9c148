"""``bitward harden``: a copy of a model that bears bit flips better."""

from __future__ import annotations

import click

from bitward.cli.options import ended_in_good_order, with_view
from bitward.cli.view import View


@click.command("harden", short_help="Make a copy of a model that bears bit flips better.")
@click.argument("model", metavar="MODEL")
@click.option("--output", required=True, metavar="DIR", help="The new directory; MODEL itself is only read.")
@click.option("--finetune", type=click.IntRange(1), metavar="STEPS", help="Also fine-tune for agreement with itself under flips.")
@click.option("--way", type=click.Choice(["lora", "full"]), default="lora", show_default=True, help="What is fine-tuned.")
@click.option("--rate", type=float, default=0.001, show_default=True, metavar="P", help="Share of weights that a step of it hurts.")
@click.option("--rank", type=click.IntRange(1, 1024), default=8, show_default=True, metavar="N", help="Rank of the low-rank additions.")
@click.option("--learning-rate", type=float, default=0.0, metavar="X", help="Instead of the usual 1e-4 (lora) or 1e-5 (full).")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, metavar="S", help="The same seed trains the same.")
@click.option("--calibration", metavar="TEXT", help="UTF-8 text to fine-tune on, instead of the built-in one.")
@click.option("--apply-guard", is_flag=True, help="Instead: apply the guard beside MODEL to a copy of it, after damage.")
@click.option("--preset", type=click.Choice(["lean", "standard", "strong"]), default="standard", show_default=True, help="Of the sidecars.")
@with_view
def command(
    model: str,
    output: str,
    finetune: int | None,
    way: str,
    rate: float,
    rank: int,
    learning_rate: float,
    seed: int,
    calibration: str | None,
    apply_guard: bool,
    preset: str,
    jobs: int | None,
    view: View,
) -> int:
    """Copy MODEL, a directory, to --output, with an exponent guard (bitward.guard.json) and sidecars.

    The guard notes what the top exponent bit of each tensor's weights is and in which range they lie; on the model as it is it changes
    nothing. After damage, --apply-guard sets the bits back and clips the values. --finetune STEPS changes the weights: it makes the
    model agree with itself under random flips, and is kept only if that helped and did the task no harm.
    """
    from bitward.hardening import HardenOrder, harden
    from bitward.report.harden_text import harden_lines, step_line

    if apply_guard and finetune:
        raise click.UsageError("--apply-guard is for a damaged model; it is not fine-tuned")
    tuning = None
    if finetune:
        try:
            from bitward_agent.hardening.self_correction import TuningRequest
        except ImportError as error:
            from bitward_agent.errors import BitwardError

            raise BitwardError("fine-tuning runs the model: pip install 'bitward[diagnose]'") from error
        tuning = TuningRequest(finetune, way, rate, rank, learning_rate, seed)
    tell = (lambda step, loss: view.write([step_line(step, loss, view.style())])) if view.speaks and view.progress_wanted else None
    with view.progress() as sink, ended_in_good_order():
        order = HardenOrder(model, output, preset, apply_guard, tuning, calibration, jobs=jobs, progress=sink)
        report = harden(order, tell)
    return view.finish(report, harden_lines)
