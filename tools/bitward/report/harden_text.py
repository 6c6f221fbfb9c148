"""The report of ``bitward harden`` for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bitward.hardening import GuardReport, HardenReport
from bitward.report.names import printable
from bitward.report.numbers import count, seconds, share, size
from bitward.report.style import Style

if TYPE_CHECKING:
    from bitward_agent.hardening.self_correction import TuningReport

_LISTED = 5


def step_line(step: int, loss: float, style: Style) -> str:
    """A step of the fine-tuning."""
    return style.dim(f"  step {step + 1}: loss {loss:.4f}")


def harden_lines(report: HardenReport, style: Style) -> Iterator[str]:
    """What lies in the new directory."""
    told = f"{count(report.files, 'file')}, {size(report.bytes)} in {seconds(report.seconds)}"
    yield f"{style.strong(printable(report.output))}: {style.good('made')} from {printable(report.model)}  {told}"
    if report.tuning is not None:
        yield from _tuning_lines(report.tuning, style)
    if report.guard is not None:
        yield from _guard_lines(report.guard, style)
        yield f"  protected: sidecars {size(report.sidecar_bytes)} ({share(report.sidecar_bytes, report.bytes)})"
    for one in report.applied:
        done = f"{count(one.masked, 'top exponent bit')} set back, {count(one.clipped, 'value')} clipped"
        yield f"  {printable(one.file)}: {done}"
        if one.missing:
            missing = f"{count(len(one.missing), 'tensor')} of the guard not there as they were"
            yield style.warn(f"    {missing}, such as {printable(one.missing[0])}")
    for finding in report.findings:
        yield style.warn(f"  {finding}")
    yield from (f"  {note}" for note in report.notes)


def _guard_lines(guard: GuardReport, style: Style) -> Iterator[str]:
    yield f"  {guard.file}: {count(guard.tensors, 'tensor')}, {count(guard.elements, 'weight')}; on this model it changes none of them"
    yield f"    top exponent bit guarded in {share(guard.bit_guarded, guard.elements)}, {count(guard.exceptions, 'exception')} by number"
    if guard.unguarded:
        names = ", ".join(printable(name) for name in guard.unguarded[:_LISTED])
        yield style.warn(f"    not guarded, as they hold values that are not finite: {names}")


def _tuning_lines(tuning: TuningReport, style: Style) -> Iterator[str]:
    what = f"{count(tuning.steps, 'step')} of {tuning.way}, {100 * tuning.rate:g} % of the weights hurt in each, seed {tuning.seed}"
    verdict = style.good("accepted") if tuning.accepted else style.warn("not accepted, the weights stay as they were")
    yield f"  self-correction: {what}: {verdict}"
    yield f"    divergence under flips {tuning.divergence_before:.4g} -> {tuning.divergence_after:.4g}"
    yield f"    loss without flips {tuning.loss_before:.4f} -> {tuning.loss_after:.4f}; {count(tuning.changed_elements, 'weight')} changed"
    if tuning.skipped:
        yield style.warn(f"    {count(tuning.skipped, 'step')} skipped: their loss was not finite")
