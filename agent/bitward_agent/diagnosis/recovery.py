"""Recovery of a part of the model that no single bit explains: clamp, restore from donors, attenuate; the loss decides.

All act on the model in memory. The choosing batch picks the best of each way; what it picks is measured on the held-out text, and the
best of these is kept if it wins enough there. Nothing is written to files.

Donors are ranked by the uncertainty of the model with their block in it (``uncertainty``), the surest first; each next one is averaged in
as long as the merged model's loss falls. A model that another's block does not fit into is unsure, whatever the block is worth at home. A
model that is broken outright may be sure of one and the same answer: donors with which the loss is far above the best are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from bitward_agent.diagnosis.bars import LEAST_GAIN_SHARE, LEAST_GAIN_Z
from bitward_agent.diagnosis.changes import Change, ChangeTrials, apply_changes, gain_z, mean_loss, replaced
from bitward_agent.diagnosis.donors import Donor, donated
from bitward_agent.diagnosis.facts import Attempt
from bitward_agent.diagnosis.pieces import Pieces
from bitward_agent.diagnosis.remedies import Option, attenuation_options, clamp_options
from bitward_agent.diagnosis.subject import Subject
from bitward_agent.diagnosis.uncertainty import predictor_of, uncertainty
from bitward_agent.errors import BitwardError
from bitward_formats.frozen import dataclass

LARGE_GAIN_SHARE = 0.05
LARGE_GAIN_Z = 1.645
"""A recovery must win what an un-flip must (``profile``). Of a gain as large as this, 95 % of certainty is enough: an encoder's loss has
few items, one for each pair of passages."""
NEAR_TIE_SHARE = 0.01
"""Losses closer than this share are equal, as another text would order them otherwise: then the way that changes less is taken."""

_BROKEN_TIMES = 1.5
"""A donor is left out if the model with its block has a loss of so many times that with the best donor's."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part to be recovered: ``parameters`` by torch's names; ``rows`` confine a clamp where these are known."""

    name: str
    parameters: tuple[str, ...]
    rows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Ranked:
    """A donor for one part. ``mutual_information`` is that of the merged model, in nats; ``None`` where the model has no predictions."""

    donor: str
    mutual_information: float | None
    loss: float | None
    used: bool


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """``changed`` are the parameters that have other values now, by torch's names; ``notes`` tell what could not be tried."""

    attempts: tuple[Attempt, ...]
    changed: tuple[str, ...]
    ranking: tuple[Ranked, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Tried:
    way: str
    option: Option
    words: str


class Recovery:
    """The ways of recovery on one model, whose weights are changed by what is accepted."""

    def __init__(
        self, subject: Subject, pieces: Pieces, donors: Sequence[Donor] = (), *, seed: int = 0, stop: Callable[[], bool] = lambda: False
    ) -> None:
        self.subject, self.pieces, self.donors = subject, pieces, tuple(donors)
        self.parameters = dict(subject.model.named_parameters())
        self._names = {id(one): name for name, one in self.parameters.items()}
        self._seed, self._stop = seed, stop
        self._notes: list[str] = []
        self._ranking: list[Ranked] = []

    def part_of_block(self, number: int) -> Part:
        """A whole block as a part."""
        own = tuple(name for name, one in self.parameters.items() if self.pieces.block_of(one) == number)
        return Part(self.pieces.block_names[number], own)

    def recover(self, part: Part) -> RecoveryReport:
        """Try every way on a part and keep the best, if it is good enough.

        A part of a block is also restored as the whole block, and the block's branches are attenuated.
        """
        self._notes, self._ranking = [], []
        trials = ChangeTrials(self.pieces, self.parameters, [self.subject.choosing])
        tried = [one for way in (self._clamped, self._restored, self._attenuated) for one in way(part, trials) if not self._stop()]
        return self._keep_best(tried)

    def _clamped(self, part: Part, trials: ChangeTrials) -> Iterator[_Tried]:
        options = [option for name in part.parameters for option in clamp_options(name, self.parameters[name], part.rows)]
        if not part.rows and len(part.parameters) > 1:
            options += _together([clamp_options(name, self.parameters[name]) for name in part.parameters])
        best = self._best_option(options, trials)
        if best is not None:
            yield _Tried("clamp", best, f"the best of {len(options)} ranges")

    def _attenuated(self, part: Part, trials: ChangeTrials) -> Iterator[_Tried]:
        options: list[Option] = []
        for number in self._blocks_of(part):
            hidden = self._hidden_size()
            options += attenuation_options(self.pieces.block_names[number], self.pieces.blocks[number], hidden, self._names)
        best = self._best_option(options, trials)
        if best is not None:
            yield _Tried("attenuate", best, f"the best of {len(options)} branches and strengths")

    def _restored(self, part: Part, trials: ChangeTrials) -> Iterator[_Tried]:
        scopes = {part.name: part.parameters}
        for number in self._blocks_of(part):
            whole = self.part_of_block(number)
            if set(whole.parameters) > set(part.parameters):
                scopes[whole.name] = whole.parameters
        for scope, names in scopes.items():
            found = self._merge(scope, names, trials)
            if found is not None:
                yield found

    def _merge(self, scope: str, names: Sequence[str], trials: ChangeTrials) -> _Tried | None:
        """The average of the first donors by rank, as many as make the merged model better."""
        ranked = sorted(self._ranked(names, trials), key=lambda one: (one[1], one[2]))
        sums: dict[str, Tensor] = {}
        taken: list[tuple[Donor, float, float]] = []
        best = math.inf
        limit = _BROKEN_TIMES * min((alone for _, _, alone in ranked), default=math.inf)
        for donor, unsure, alone in ranked:
            if self._stop():
                break
            if alone > limit:
                continue
            values = {name: donated(donor, name, self.parameters[name]).double() for name in names}
            total = {name: values[name] + sums[name] if sums else values[name] for name in names}
            merged = _averaged(total, len(taken) + 1, self.parameters)
            loss = _number(mean_loss(trials.with_changes(merged))) if taken else alone
            if loss < best:
                best, sums = loss, total
                taken.append((donor, unsure, alone))
        used = {donor.path for donor, _, _ in taken}
        for donor, unsure, alone in ranked:
            self._ranking.append(Ranked(donor.path, _or_none(unsure), _or_none(alone), donor.path in used))
        if not taken:
            return None
        names_of = ", ".join(donor.name for donor, _, _ in taken)
        changes = tuple(_averaged(sums, len(taken), self.parameters))
        words = f"{len(taken)} of {len(ranked)} donors, the surest first"
        if math.isfinite(taken[0][1]):
            words += f" (mutual information {taken[0][1]:.4g} nats)"
        return _Tried("restore", Option(f"{scope} from {names_of}", changes, sum(one.values.numel() for one in changes)), words)

    def _ranked(self, names: Sequence[str], trials: ChangeTrials) -> Iterator[tuple[Donor, float, float]]:
        """Each donor with the uncertainty and the choosing loss of the model that has its values."""
        predict = predictor_of(self.subject)
        for donor in self.donors:
            if self._stop():
                return
            try:
                changes = [Change(name, donated(donor, name, self.parameters[name])) for name in names]
            except BitwardError as error:
                self._notes.append(str(error))
                continue
            with replaced(self.parameters, changes):
                loss = _number(mean_loss(trials.now(names)))
                unsure = math.inf
                if predict is not None:
                    found = uncertainty(self.subject.model, self.pieces.blocks, predict, self.subject.quick, seed=self._seed)
                    unsure = found.mutual_information
            yield donor, unsure, loss

    def _best_option(self, options: Sequence[Option], trials: ChangeTrials) -> Option | None:
        """The option of the least loss on the choosing batch; of near ties the one that changes the fewest numbers."""
        losses: list[float] = []
        for option in options:
            if self._stop():
                break
            losses.append(_number(mean_loss(trials.with_changes(option.changes))))
        least = min(losses, default=math.inf)
        if not math.isfinite(least):
            return None
        near = [option for option, loss in zip(options, losses, strict=False) if loss <= least * (1 + NEAR_TIE_SHARE)]
        return min(near, key=lambda option: option.touched)

    def _keep_best(self, tried: Sequence[_Tried]) -> RecoveryReport:
        """Measure what was chosen on text that took no part in it, and keep the best for good."""
        if not tried:
            return RecoveryReport((), (), tuple(self._ranking), tuple(self._notes))
        held_out = ChangeTrials(self.pieces, self.parameters, self.subject.holdout)
        before = mean_loss(held_out.before)
        after = [held_out.with_changes(one.option.changes) for one in tried]
        passed = [at for at, losses in enumerate(after) if wins(held_out.before, losses)]
        chosen = self._least_invasive(tried, after, passed)
        attempts = tuple(
            Attempt(one.way, one.option.what, before, mean_loss(losses), at == chosen, _words(one, at in passed, at == chosen))
            for at, (one, losses) in enumerate(zip(tried, after, strict=True))
        )
        if chosen is None:
            return RecoveryReport(attempts, (), tuple(self._ranking), tuple(self._notes))
        changes = tried[chosen].option.changes
        apply_changes(self.parameters, changes)
        return RecoveryReport(attempts, tuple(one.parameter for one in changes), tuple(self._ranking), tuple(self._notes))

    @staticmethod
    def _least_invasive(tried: Sequence[_Tried], after: Sequence[Tensor], passed: Sequence[int]) -> int | None:
        """Of those that pass, the one of least loss; among near ties the one that touches the fewest elements."""
        if not passed:
            return None
        least = min(_number(mean_loss(after[at])) for at in passed)
        near = [at for at in passed if _number(mean_loss(after[at])) <= least * (1 + NEAR_TIE_SHARE)]
        return min(near, key=lambda at: tried[at].option.touched)

    def _blocks_of(self, part: Part) -> list[int]:
        numbers = {self.pieces.block_of(self.parameters[name]) for name in part.parameters}
        return sorted(one for one in numbers if one is not None)

    def _hidden_size(self) -> int:
        calls, _ = self.pieces.calls(self.subject.quick)
        return int(calls[0].hidden.shape[-1])


def wins(before: Tensor, after: Tensor) -> bool:
    """Whether losses by item fell by enough, in size and in standard errors; any number is better than none."""
    old, new = mean_loss(before), mean_loss(after)
    if new is None:
        return False
    if old is None:
        return True
    z, share = gain_z(before, after), (old - new) / max(new, 1e-9)
    if z is None:
        return False
    return (share >= LEAST_GAIN_SHARE and z >= LEAST_GAIN_Z) or (share >= LARGE_GAIN_SHARE and z >= LARGE_GAIN_Z)


def _together(options_of: Sequence[Sequence[Option]]) -> list[Option]:
    """The first, second … option of every tensor at once: for a block in which several tensors are hit."""
    have = [options for options in options_of if options]
    if len(have) < 2:
        return []
    joined = []
    for at in range(max(map(len, have))):
        own = [options[min(at, len(options) - 1)] for options in have]
        touched = sum(one.touched for one in own)
        changes = tuple(change for one in own for change in one.changes)
        joined.append(Option(f"{touched:,} outliers of {len(own)} tensors at once", changes, touched))
    return joined


def _averaged(total: dict[str, Tensor], count: int, parameters: dict[str, torch.nn.Parameter]) -> list[Change]:
    return [Change(name, (values / count).to(parameters[name].dtype)) for name, values in total.items()]


def _number(loss: float | None) -> float:
    return math.inf if loss is None else loss


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _words(one: _Tried, passed: bool, chosen: bool) -> str:
    if chosen:
        return f"{one.words}; kept: it wins most on text that took no part in choosing it"
    return f"{one.words}; " + ("another way wins more, or as much by changing less" if passed else "it does not win enough on other text")
