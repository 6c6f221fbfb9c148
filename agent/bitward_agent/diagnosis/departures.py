"""What a trace tells, as suspects and scores of blocks; and trace files on disk."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch

from bitward_agent.diagnosis.facts import BlockScore, Step, Suspect
from bitward_agent.diagnosis.pieces import find_blocks
from bitward_agent.diagnosis.subject import Subject
from bitward_agent.diagnosis.tensor_bits import FORMS
from bitward_agent.diagnosis.trace import Departure, TraceFindings
from bitward_agent.diagnosis.trace_repairs import Change
from bitward_agent.durable import atomic_file, refuse_other_file
from bitward_agent.io import read_regular
from bitward_formats.trace_file import FILE_LIMIT_BYTES, MAGIC, Trace, read_trace, write_trace

TRACE_NAME = "bitward.trace"
"""What a model's trace is called in its directory."""
_UNEXPLAINED_NATS = 20.0
_LISTED_ROWS = 16
_MOST_NATS = 60.0


def load_trace(path: Path) -> Trace:
    """Read a trace file.

    Raises:
        UnreadableError: It cannot be read.
        InputError: It is too large to be one.
        TraceError: It is none, or damaged.
    """
    return read_trace(read_regular(str(path), FILE_LIMIT_BYTES, "no trace is so large"))


def save_trace(path: Path, trace: Trace) -> int:
    """Write a trace file whole or not at all; returns its bytes.

    Raises:
        WriteError: That is not possible.
        InputError: Something else than a trace lies there.
        TraceSyntaxError: The trace is too large.
    """
    data = write_trace(trace)
    refuse_other_file(str(path), MAGIC)
    with atomic_file(str(path)) as file:
        file.write_all(data, 0)
    return len(data)


def trace_suspects(subject: Subject, findings: TraceFindings) -> list[Suspect]:
    """Each weight that was put right, and of modules that could not be put right the first departing channels."""
    found: list[Suspect] = []
    for departure in findings.departures:
        if departure.changes:
            found += [_changed(subject, departure, one) for one in departure.changes]
        elif departure.clean_inputs:
            found += _unexplained(subject, departure)
    return found


def trace_blocks(subject: Subject, findings: TraceFindings) -> list[BlockScore]:
    """For each block that holds a departing module the largest difference, in usual sizes; other modules go by their own names."""
    names, _ = find_blocks(subject.model)
    scores: dict[str, float] = {}
    for departure in findings.departures:
        part = next((name for name in names if departure.module.startswith(f"{name}.")), departure.module)
        scores[part] = max(scores.get(part, 0.0), min(departure.relative, 1e30))
    return [BlockScore(part, "trace", score) for part, score in sorted(scores.items(), key=lambda one: -one[1])]


def _changed(subject: Subject, departure: Departure, change: Change) -> Suspect:
    others = f"; {change.rivals:,} other bits of it would explain that as well" if change.rivals else ""
    how = "a single bit explains it" if change.bit is not None else "one weight with several wrong bits explains it"
    words = f"{departure.module} is the first module whose output is not what was recorded; {how}{others}"
    nats = min(_MOST_NATS, max(0.0, change.evidence_nats - math.log(1 + change.rivals)))
    return suspect_at(subject, change.parameter, change.element, change.bit, (change.before, change.after), "trace", nats, words)


def _unexplained(subject: Subject, departure: Departure) -> Iterable[Suspect]:
    """The lines of a module that departs for a reason that was not found."""
    weight = next((name for name, _ in subject.model.named_parameters() if name in (f"{departure.module}.weight", departure.module)), None)
    if weight is None:
        weight = next((name for name, _ in subject.model.named_parameters() if name.startswith(f"{departure.module}.")), None)
    if weight is None:
        return
    parameter = subject.model.get_parameter(weight)
    place = subject.places.get(weight)
    for channel in departure.channels[:_LISTED_ROWS]:
        if channel >= parameter.shape[0]:
            break
        row = parameter[channel].numel()
        item = parameter.element_size()
        away = f"{departure.module}: {departure.channel_count:,} output channels are not what was recorded"
        words = f"{away}, and no one or two bits explain it"
        yield Suspect(
            Step.DIFFERENTIAL, "trace-row", "" if place is None else place.path, weight if place is None else place.tensor,
            (channel, *(0,) * (parameter.dim() - 1)), None, "", -1 if place is None else place.offset + channel * row * item, row * item,
            number_or_word(float(parameter[channel].reshape(-1)[0])), None, _UNEXPLAINED_NATS, words,
        )  # fmt: skip


def suspect_at(
    subject: Subject, name: str, element: int, bit: int | None, values: tuple[float, float], kind: str, score_nats: float, words: str
) -> Suspect:
    """A suspect of the differential step: the parameter ``name``, the element by its row-major number, (found, correct) values."""
    parameter = subject.model.get_parameter(name)
    form = FORMS[parameter.dtype]
    index = tuple(int(one) for one in torch.unravel_index(torch.tensor(element), parameter.shape))
    place = subject.places.get(name)
    item_bytes = form.bits // 8
    offset = -1 if place is None else place.offset + element * item_bytes + (0 if bit is None else bit // 8)
    path, tensor = ("", name) if place is None else (place.path, place.tensor)
    found, correct = values
    told = f"{tensor}[{', '.join(map(str, index))}] is {found:.6g} and should be {correct:.6g}: {words}"
    field = "" if bit is None else form.field_of(bit)
    return Suspect(
        Step.DIFFERENTIAL, kind, path, tensor, index, bit, field, offset, item_bytes, number_or_word(found),
        number_or_word(correct), score_nats, told,
    )  # fmt: skip


def number_or_word(value: float) -> float | str:
    """A value as facts have it."""
    return value if math.isfinite(value) else "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
