"""The steps that run the model: what the ladder asks of a loaded ``Subject``. The only door from the ladder to torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from bitward_agent.diagnosis.facts import Step, Suspect, Unflip
from bitward_agent.diagnosis.profile import Found, Profile
from bitward_agent.diagnosis.subject import Subject, load_subject
from bitward_agent.diagnosis.tensor_bits import FORMS

_WORSE_SHARE = 0.001
"""A proposal of triage that makes the loss worse by this share is refused."""
_ONE_BY_ONE = 64
"""More proposals than this are tried all at once only."""


class ModelSteps:
    """A loaded model and what was done to it. Losses are means over the held-out items, in nats; ``None`` where not finite."""

    def __init__(self, source: str, text: str, device: str, stop: Callable[[], bool]) -> None:
        self.subject: Subject = load_subject(source, text, device=device)
        self.search = Profile(self.subject, stop=stop)
        self.architecture = self.subject.architecture
        self._parameter_of = {(place.path, place.tensor): name for name, place in self.subject.places.items()}

    def loss(self) -> float | None:
        """The mean loss of the held-out text for the model as it is now."""
        mean = float(self.search.held_out().mean())
        return mean if math.isfinite(mean) else None

    def try_proposals(self, proposals: Sequence[Suspect]) -> tuple[list[Unflip], list[Suspect]]:
        """Turn back all bits that triage proposes, then take back each one without which the model is better: (kept, refused).

        Bits of tensors that the model does not hold as they are in the file stay as proposed: nothing can be asked about them.
        """
        before = self.loss()
        asked = [(one, self._parameter_of.get((one.path, one.tensor))) for one in proposals]
        for one, name in asked:
            if name is not None:
                self._turn(one, name)
        with_all = self.loss()
        kept: list[Unflip] = []
        refused: list[Suspect] = []
        for one, name in asked:
            if name is not None and len(asked) <= _ONE_BY_ONE and with_all is not None:
                self._turn(one, name)
                without = self.loss()
                if without is not None and without < with_all * (1 - _WORSE_SHARE):
                    refused.append(one)
                    with_all = without
                    continue
                self._turn(one, name)
            kept.append(Unflip(one, before, None if name is None else with_all, None))
        return kept, refused

    def profile(self, candidates: Sequence[Suspect], tell: Callable[[str], None]) -> list[Unflip]:
        """The self-referential search. ``candidates`` are un-flips that triage could not justify; they are tried with the others."""
        extra = [(name, _element(one, self.search.parameters[name].shape), one.bit) for one, name in self._of_model(candidates)]
        found = self.search.run(extra=[one for one in extra if one[2] is not None], tell=tell)
        return [Unflip(self._suspect(one), one.loss_before, one.loss_after, one.gain_z) for one in found]

    def _of_model(self, suspects: Sequence[Suspect]) -> list[tuple[Suspect, str]]:
        return [(one, self._parameter_of[one.path, one.tensor]) for one in suspects if (one.path, one.tensor) in self._parameter_of]

    def _turn(self, one: Suspect, name: str) -> None:
        assert one.bit is not None
        parameter = self.search.parameters[name]
        self.search.turn(name, _element(one, parameter.shape), one.bit)

    def _suspect(self, found: Found) -> Suspect:
        parameter = self.search.parameters[found.parameter]
        form = FORMS[parameter.dtype]
        index = tuple(int(one) for one in torch.unravel_index(torch.tensor(found.element), parameter.shape))
        place = self.subject.places.get(found.parameter)
        offset = -1 if place is None else place.offset + found.element * form.bits // 8 + found.bit // 8
        path, tensor = ("", found.parameter) if place is None else (place.path, place.tensor)
        words = (
            f"{tensor}[{', '.join(map(str, index))}]: turning bit {found.bit} makes {found.before:.6g} to {found.after:.6g} and lowers the "
            f"held-out loss from {found.loss_before:.4f} to {found.loss_after:.4f} ({found.gain_z:.1f} standard errors)"
        )
        return Suspect(
            step=Step.PROFILE,
            kind="gradient",
            path=path,
            tensor=tensor,
            index=index,
            bit=found.bit,
            field=form.field_of(found.bit),
            offset=offset,
            length_bytes=form.bits // 8,
            found=_number(found.before),
            correct=_number(found.after),
            score_nats=found.evidence_nats,
            words=words,
        )


def _element(one: Suspect, shape: torch.Size) -> int:
    """The element's number in row-major order."""
    number = 0
    for at, length in zip(one.index, shape, strict=True):
        number = number * length + at
    return number


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
