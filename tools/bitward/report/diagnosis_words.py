"""What a diagnosis says, in sentences: the verdict, how a step went, what to do next. The terminal and the page share them."""

from __future__ import annotations

import math

from bitward.report.names import command
from bitward.report.numbers import count
from bitward_agent.diagnosis.facts import Attempt, DiagnosisReport, DiagnosisVerdict, Step, StepState, Suspect

STEP_NAMES = {
    Step.TRIAGE: ("Triage", "the weights by themselves, with no model run"),
    Step.DIFFERENTIAL: ("Differential", "against a reference model or a recorded trace"),
    Step.PERTURBATION: ("Perturbation", "each block's branches scaled, the loss watched"),
    Step.PROFILE: ("Profile", "gradients propose un-flips, trials decide"),
    Step.RECOVERY: ("Recovery", "clamp, restore from donors, attenuate"),
}
"""Each step's name and what it looks at."""
STATE_WORDS = {StepState.DONE: "done", StepState.SKIPPED: "skipped", StepState.FAILED: "could not be done"}
VERDICT_WORDS = {
    DiagnosisVerdict.CLEAN: "no fault found",
    DiagnosisVerdict.FAULT_FOUND: "fault found",
    DiagnosisVerdict.SUSPICIOUS: "suspicious",
    DiagnosisVerdict.INCONCLUSIVE: "cannot tell",
}


def verdict_reason(report: DiagnosisReport) -> str:
    """One sentence beside the verdict."""
    match report.verdict:
        case DiagnosisVerdict.CLEAN:
            return "Every step that was asked for was done, and none found anything."
        case DiagnosisVerdict.FAULT_FOUND:
            told = [f"{count(len(report.unflips), 'bit')} should be turned back"] if report.unflips else []
            told += [f"{count(len(accepted(report)), 'part')} of it can be recovered by other means"] if accepted(report) else []
            return f"{'; '.join(told) or 'Something is wrong'}."
        case DiagnosisVerdict.SUSPICIOUS:
            places = count(len(report.suspects), "place")
            return f"{places} {'looks' if len(report.suspects) == 1 else 'look'} damaged, and no single bit explains it."
        case DiagnosisVerdict.INCONCLUSIVE:
            if all(one.state is StepState.DONE for one in report.steps):
                return "Nothing was found, but what was looked at does not stand for the model."
            return "Nothing was found, but not every step could be done."


def loss(value: float | None) -> str:
    """A loss in nats."""
    return "not a number" if value is None or not math.isfinite(value) else f"{value:.4f}"


def perplexity(value: float | None) -> str:
    """exp(loss), where that is a number worth showing."""
    if value is None or not math.isfinite(value) or value > 30:
        return "–"
    return f"{math.exp(value):,.0f}" if value > 5 else f"{math.exp(value):.3g}"


def loss_change(before: float | None, after: float | None) -> str:
    """``2.9143 → 2.8012 (−3.9 %)``."""
    if before is None and after is None:
        return "not measured"
    told = f"{loss(before)} → {loss(after)}"
    if before is None or after is None or not before:
        return told
    change = 100 * (after - before) / abs(before)
    return f"{told} ({'+' if change > 0 else '−'}{abs(change):.3g} %)" if change else f"{told} (no change)"


def bit_words(one: Suspect) -> str:
    """``bit 14 (exponent)``, or how many bytes are meant."""
    if one.bit is None:
        return f"{count(one.length_bytes, 'byte')} from here"
    return f"bit {one.bit} ({one.field})" if one.field else f"bit {one.bit}"


def turned_apart(report: DiagnosisReport) -> list[Suspect]:
    """Suspects that are no part of what was turned back."""
    turned = {(one.suspect.path, one.suspect.tensor, one.suspect.index, one.suspect.bit) for one in report.unflips}
    return [one for one in report.suspects if (one.path, one.tensor, one.index, one.bit) not in turned]


def accepted(report: DiagnosisReport) -> list[Attempt]:
    """The ways of recovery that are part of the result."""
    return [one for one in report.attempts if one.accepted]


def what_next(report: DiagnosisReport) -> list[str]:
    """What to do now, in order. File names are made printable; commands can be pasted."""
    lines: list[str] = []
    found = bool(report.unflips or accepted(report))
    if report.output:
        lines.append(
            "The repaired copy is written and protected, as first-seen: nobody but this diagnosis vouches for it. Try it, then serve it."
        )
        lines.append("The model that was diagnosed is as it was. Keep it until the copy has proved itself.")
    elif found and not any(one.suspect.path for one in report.unflips) and not accepted(report):
        lines.append("No file holds these weights as the model does, so that no repaired copy can be written.")
    elif found:
        lines.append(
            f"{command('diagnose', report.model, ' --apply --output NEW_DIR')} writes a repaired copy; the model itself is never written."
        )
    match report.verdict:
        case DiagnosisVerdict.FAULT_FOUND:
            lines.append("A copy from where the model came from is better than any diagnosis: fetch it again if you can, and compare.")
        case DiagnosisVerdict.SUSPICIOUS:
            lines.append("Get a good copy; or give an older checkpoint with --donor DIR, from which a block may be taken.")
            lines.append("Do not serve it before that.")
        case DiagnosisVerdict.INCONCLUSIVE:
            failed = [STEP_NAMES[one.step][0].lower() for one in report.steps if one.state is not StepState.DONE]
            if failed:
                lines.append(f"See above why {' and '.join(failed)} could not be done; what is missing there may tell more.")
            else:
                lines.append("See above what does not fit together, and diagnose again when it does.")
        case DiagnosisVerdict.CLEAN:
            lines.append(
                f"{command('protect', report.model)} keeps it as it is: the next flip is then found and repaired without a diagnosis."
            )
    if report.verdict in (DiagnosisVerdict.FAULT_FOUND, DiagnosisVerdict.SUSPICIOUS):
        lines.append("A bit that flipped once had a cause: check this machine's memory (memtest86+, EDAC counters) and its disk (SMART).")
    return lines
