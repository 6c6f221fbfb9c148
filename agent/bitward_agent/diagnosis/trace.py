"""Traces: what every module of a right model gave on a few tokens, and finding by it what has changed since.

Recording keeps, for each module with parameters and in the order in which they run, the fingerprint of its output. Comparing runs the
model on the same tokens. The first module whose fingerprint departs has had right inputs, so what is wrong is its own: the departing
channels name the lines of its weight, and the three sums of a line name weight and bit (``weight_lines``). The bit is turned, the
module runs again and the pass goes on, so that faults behind it show just as clearly. One forward pass, no weights of reference.

Where a module cannot be put right (a stretch of zeros, say), what follows it is fed with wrong values and not judged, except modules
that get the very same input.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitward_agent.diagnosis.fingerprints import fingerprint, watched
from bitward_agent.diagnosis.objectives import TokenBatch
from bitward_agent.diagnosis.subject import ModelError, Subject
from bitward_agent.diagnosis.trace_repairs import Change, ModuleCall, mend
from bitward_agent.errors import InputError
from bitward_formats.trace_file import BINDING_BYTES, Trace, TraceEntry, TraceInput

TOKENS = 256
"""Tokens of a trace, in one row."""
RELATIVE_TOLERANCE = 2.0**-13
"""Of a sum's own size: four times what keeping it in 15 bits may change."""
SCALE_TOLERANCE = 1e-4
"""Of the usual size of the module's sums: several times what other machines and numbers of threads change (docs/diagnosis.md)."""
LISTED_CHANNELS = 64


@dataclass(frozen=True, slots=True)
class Departure:
    """A module whose output is not what it was. ``channels``: the first of those that depart, of ``channel_count``; ``relative`` is the
    largest difference, in usual sizes of the module's sums (infinite if not finite). ``clean_inputs``: nothing before it was left wrong.
    ``changes`` put it right; empty if nothing was found that does."""

    module: str
    channels: tuple[int, ...]
    channel_count: int
    relative: float
    clean_inputs: bool
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class TraceFindings:
    """``mended``: every departure was explained, so the model as changed gives what was recorded."""

    departures: tuple[Departure, ...]
    modules: int

    @property
    def mended(self) -> bool:
        return all(one.changes for one in self.departures)


def record(subject: Subject) -> Trace:
    """Run the model on the first tokens of its calibration text and keep the fingerprints.

    Raises:
        ModelError: Some output is not finite: such a model is not right, and a trace of it worth nothing.
    """
    inputs = run_inputs(subject)
    entries: list[TraceEntry] = []

    def note(name: str, _: nn.Module, __: Tensor | None, output: Tensor, ___: Callable[[], Tensor]) -> Tensor:
        values = fingerprint(output).numpy()
        if not np.isfinite(values).all():
            raise ModelError(f"{subject.source}: {name or 'the model'} gives values that are not finite; the model is damaged")
        entries.append(TraceEntry(name, output.numel() // output.shape[-1], values))
        return output

    with watched(subject.model, note):
        run_model(subject, subject.model, inputs)
    kept = tuple(TraceInput(name, one.cpu().numpy().astype(np.int32)) for name, one in inputs.items())
    return Trace(binding(subject.model), kept, tuple(entries))


def binding(model: nn.Module) -> bytes:
    """What ties a trace to a model: the names and shapes of its tensors, digested."""
    listed = "\n".join(f"{name} {tuple(one.shape)}" for name, one in model.named_parameters())
    return hashlib.sha256(listed.encode("utf-8", "surrogatepass")).digest()[:BINDING_BYTES]


def compare(subject: Subject, trace: Trace, *, keep: bool = False) -> TraceFindings:
    """Find what departs from the trace. With ``keep`` the model stays as changed, else each change is taken back at the end.

    Raises:
        InputError: The trace is of another model, or of other inputs.
    """
    if trace.binding != binding(subject.model):
        raise InputError("the trace was recorded from another model: names or shapes of the tensors differ")
    judge = _Judge(subject.model, trace)
    inputs = {one.name: torch.from_numpy(one.values).long().to(subject.device()) for one in trace.inputs}
    with watched(subject.model, judge.see):
        try:
            run_model(subject, subject.model, inputs)
        except _OutOfStepError as error:
            raise InputError(f"the trace does not fit the model: {error}") from error
        except (RuntimeError, ValueError, IndexError) as error:
            if not judge.departures:
                raise ModelError(f"{subject.source}: the model cannot be run on the trace's tokens: {error}") from error
        finally:
            if not keep:
                judge.take_back()
    return TraceFindings(tuple(judge.departures), judge.position)


class _OutOfStepError(Exception):
    """A module ran that the trace does not have there."""


class _Judge:
    """Holds each module's output against the trace while the model runs, and mends."""

    def __init__(self, model: nn.Module, trace: Trace) -> None:
        self._entries = trace.entries
        self._names = {id(one): name for name, one in model.named_parameters()}
        self._undo: list[Callable[[], None]] = []
        self._wrong_since: int | None = None
        self.position = 0
        self.departures: list[Departure] = []

    def see(self, name: str, module: nn.Module, inputs: Tensor | None, output: Tensor, again: Callable[[], Tensor]) -> Tensor:
        if self.position >= len(self._entries):
            raise _OutOfStepError(f"{name} is not in it")
        entry = self._entries[self.position]
        tokens = output.numel() // output.shape[-1]
        if entry.name != name or len(entry.values) != output.shape[-1] or (entry.tokens != tokens and self._wrong_since is None):
            if self._wrong_since is not None:
                return output
            raise _OutOfStepError(f"{name} ran where {entry.name!r} was recorded")
        self.position += 1
        clean = self._wrong_since is None or (inputs is not None and self._wrong_since == inputs.data_ptr())
        if not clean:
            return output
        right = torch.from_numpy(entry.values)
        call = ModuleCall(name, module, inputs, output, again, right, tolerance(right), self._names)
        departing = call.departing(fingerprint(output))
        if not departing:
            return output
        mended = mend(call, departing)
        self._undo += mended.undo
        self.departures.append(self._departure(call, departing, mended.changes if mended.whole else (), clean=self._wrong_since is None))
        if not mended.whole:
            self._wrong_since = -1 if inputs is None else inputs.data_ptr()
        return mended.output

    def take_back(self) -> None:
        """Undo the changes, the last first."""
        while self._undo:
            self._undo.pop()()

    def _departure(self, call: ModuleCall, departing: list[int], changes: tuple[Change, ...], *, clean: bool) -> Departure:
        away = (fingerprint(call.output)[departing] - call.right[departing]).abs() / usual_size(call.right)
        relative = float(away.nan_to_num(float("inf")).max())
        return Departure(call.name, tuple(departing[:LISTED_CHANNELS]), len(departing), relative, clean, changes)


def usual_size(sums: Tensor) -> float:
    """The median, over the channels, of the root mean square of their sums."""
    return max(float(sums.square().mean(1).sqrt().median()), 1e-30)


def tolerance(right: Tensor) -> Tensor:
    """How far each sum may be from what was recorded: float64, of the same shape."""
    own = right.abs().amax(1, keepdim=True) * RELATIVE_TOLERANCE
    return (own + SCALE_TOLERANCE * usual_size(right)).expand_as(right)


def run_inputs(subject: Subject) -> dict[str, Tensor]:
    """The tokens of the choosing batch in one row; nothing for a factory's model, which is run as its factory wants it."""
    batch = subject.choosing
    if not isinstance(batch, TokenBatch):
        return {}
    longest = getattr(getattr(subject.model, "config", None), "max_position_embeddings", None) or TOKENS
    tokens = batch.inputs["input_ids"].reshape(1, -1)[:, : min(TOKENS, int(longest))]
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def run_model(subject: Subject, model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Run a model on the inputs; without any as the subject's loss runs it."""
    extra: dict[str, Any] = {"use_cache": False} if hasattr(getattr(model, "config", None), "use_cache") else {}
    with torch.no_grad():
        if inputs:
            model(**inputs, **extra)
        else:
            subject.loss(model, subject.choosing)
