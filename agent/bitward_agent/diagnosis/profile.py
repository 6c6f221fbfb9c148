"""The self-referential search: gradients propose un-flips, trials decide, text that took no part in choosing confirms.

One round: a backward pass over the choosing batch ranks candidates (``candidates``). They are tried for real, on a small part of the
batch, the better ones on all of it, the best weights with every bit that matters, near ties on more text. What the text says (nats won
over all its items) and what the tensor says (how usual the value would be) are added. What then wins on the held-out text by enough, in
size and in standard errors, is turned for good, and another round looks for the next fault. In a model without a fault the first round
confirms nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from bitward_agent.diagnosis.bars import BEYOND, LEAST_GAIN_SHARE, PRIOR_LIMIT_NATS, TEXT_WEIGHT, bars_for
from bitward_agent.diagnosis.candidates import Candidate, Ranking
from bitward_agent.diagnosis.found import Found
from bitward_agent.diagnosis.objectives import passage_loss
from bitward_agent.diagnosis.pieces import Pieces
from bitward_agent.diagnosis.rivals import settled
from bitward_agent.diagnosis.subject import Subject
from bitward_agent.diagnosis.tensor_bits import FORMS, element_view, flip_in_place, flipped
from bitward_agent.diagnosis.trials import Trials, turned
from bitward_agent.diagnosis.weight_prior import WeightPrior, neighbours_of

WEIGHTS_TRIED = 28
"""Weights of each ranking that are tried for real."""
_WEIGHTS_TRIED_IN_BLOCK = 10
_WEIGHTS_REFINED_IN_BLOCK = 1
_WEIGHTS_SIEVED = 16
_WEIGHTS_COMPARED = 10
_WEIGHTS_REFINED = 4
_BITS_CONFIRMED = 3
_OPTIONS_LIMIT = 3
_BEYOND_NATS = 8.0
_BEYOND_NEIGHBOURS = 4.0
_BITS_COMPARED = 6
_COMPARING_BATCHES = 3
_NEAR_NATS = 12.0
_CHOOSING_ITEMS = 256
_LEAST_PRIOR_NATS = -12.0
_NEGLIGIBLE = 2.0**-10
_SETTLED_TIMES = 2
FOUND_LIMIT = 16
"""Un-flips after which the search ends: a model with more faults than that is better fetched anew."""


Bit = tuple[str, int, int]
"""A bit of the model: the parameter's name, the element in row-major order, the bit."""


class Profile:
    """The search on one model. ``names`` of parameters are torch's; the model's weights are changed by what is confirmed."""

    def __init__(self, subject: Subject, *, stop: Callable[[], bool] = lambda: False) -> None:
        self.subject, self._stop = subject, stop
        self.pieces = Pieces(subject.model, subject.loss, subject.choosing)
        self.parameters: Mapping[str, nn.Parameter] = dict(subject.model.named_parameters())
        self._names = {id(one): name for name, one in self.parameters.items()}
        self._priors: dict[str, WeightPrior] = {}
        self._held_out: Tensor | None = None
        self.sensitivity: dict[str, float] = {}
        self.is_blind = False
        """Whether the last round could weigh nothing, as losses of the choosing batch were no numbers."""

    def prior_of(self, name: str) -> WeightPrior:
        """The prior of a parameter's values, made when first asked for and again after a change."""
        if name not in self._priors:
            around = neighbours_of(name, self.parameters) if self.parameters[name].dim() == 1 else []
            self._priors[name] = WeightPrior(self.parameters[name], [self.parameters[one] for one in around])
        return self._priors[name]

    def run(self, *, extra: Sequence[Bit] = (), tell: Callable[[str], None] = lambda _: None) -> list[Found]:
        """Rounds until nothing more is confirmed, ``FOUND_LIMIT`` un-flips are made or ``stop`` says so; then each un-flip is doubted.

        ``extra``: bits that other evidence points at; they are tried with those that the gradients propose.
        """
        found = self._rounds([], extra, tell)
        for _ in range(_SETTLED_TIMES if found else 0):
            tell("profile: looking for what else could explain it …")
            better = settled(self, found, self._stop)
            if better is found:
                break
            found = self._rounds(better, extra, tell)
        return self._without_needless(found) if len(found) > 1 else found

    def _rounds(self, begun: Sequence[Found], extra: Sequence[Bit], tell: Callable[[str], None]) -> list[Found]:
        found = list(begun)
        while len(found) < FOUND_LIMIT and not self._stop():
            tell(f"profile: looking for fault {len(found) + 1} …")
            new = self.round(extra)
            if not new:
                break
            found += new
        return found

    def round(self, extra: Sequence[Bit] = ()) -> list[Found]:
        """Look for a fault; what is confirmed is turned in the model. Further faults may come to light with it: the best is the first."""
        ranking = Ranking(self._names, self.prior_of)
        self.is_blind = not bool(self.pieces.backward(self.subject.choosing, ranking.see).isfinite().all())
        self.sensitivity = ranking.sensitivity
        return self._tried_for_real([*ranking.best(WEIGHTS_TRIED), *map(self._candidate, extra)])

    def block_round(self, beside: Found) -> list[Found]:
        """A round in the block of a weight, which is not to be turned itself; nothing where the weight is in none."""
        number = self.pieces.block_of(self.parameters[beside.parameter])
        if number is None:
            return []
        ranking = Ranking(self._names, self.prior_of)
        self.pieces.backward(self.subject.choosing, ranking.see, lambda one: self.pieces.block_of(one) == number)
        others = [one for one in ranking.best(_WEIGHTS_TRIED_IN_BLOCK) if one.weight != (beside.parameter, beside.element)]
        return self._tried_for_real(others, _WEIGHTS_REFINED_IN_BLOCK)

    def weight_round(self, one: Found) -> list[Found]:
        """Weigh all bits of a weight; the one that is confirmed is turned in the model."""
        trials = Trials(self.pieces, self.parameters, self.subject.choosing)
        confirmed = self._confirmed_bit((one.parameter, one.element), trials)
        return self._turned_for_good([confirmed] if confirmed else [])

    def _tried_for_real(self, candidates: list[Candidate], refined: int = _WEIGHTS_REFINED) -> list[Found]:
        sieved = self._sieve(candidates)
        if not sieved or self._stop():
            return []
        trials = Trials(self.pieces, self.parameters, self.subject.choosing)
        weights = self._on_more_text([_tried(one, trials) for one in sieved], refined)
        confirmed: list[tuple[Found, Candidate]] = []
        for weight in weights:
            one = self._confirmed_bit(weight, trials)
            confirmed += [one] if one else []
            if self._stop():
                break
        return self._turned_for_good(confirmed)

    def _confirmed_bit(self, weight: tuple[str, int], trials: Trials) -> tuple[Found, Candidate] | None:
        """The best bit of a weight that held-out text confirms."""
        for chosen in self._compared(self._bits_of(weight, trials))[:_BITS_CONFIRMED]:
            found = self.confirmed(chosen)
            if found is not None:
                return found, chosen
        return None

    def _on_more_text(self, tried: list[Candidate], count: int) -> list[tuple[str, int]]:
        """The best weights: what the choosing batch likes best may be best for this batch alone, so another one is asked as well."""
        best = _best_weights(tried, _WEIGHTS_COMPARED)
        bits = [max((one for one in tried if one.weight == weight), key=_evidence) for weight in best]
        trials = Trials(self.pieces, self.parameters, self.subject.holdout[0])
        return _best_weights([replace(one, gain=one.gain + _gain(trials, *one.weight, one.bit)) for one in bits], count)

    def _turned_for_good(self, confirmed: list[tuple[Found, Candidate]]) -> list[Found]:
        """The best is turned; each of the others if it is confirmed once more beside those before it.

        For most faults there are other weights of the same neuron or channel that make up for them when they are turned, and a little more
        than that, as there are many to choose from. So the text is taken at a discount here, too.
        """
        kept: list[Found] = []
        items = self.held_out().numel()
        strength = {id(one): TEXT_WEIGHT * (one.loss_before - one.loss_after) * items + chosen.prior_nats for one, chosen in confirmed}
        for found, chosen in sorted(confirmed, key=lambda one: -strength[id(one[0])]):
            again = self.confirmed(chosen) if kept else found
            if again is not None:
                self.turn(again.parameter, again.element, again.bit)
                kept.append(again)
        return kept

    def _candidate(self, bit: Bit) -> Candidate:
        name, element, number = bit
        return Candidate(name, element, number, "other", 0.0, self._likelier(name, element, (number,))[0])

    def _usual(self, name: str, element: int) -> float:
        """The usual magnitude at a place."""
        prior = self.prior_of(name)
        place, columns = torch.tensor([element]), prior.column_sums.numel()
        magnitude = element_view(self.parameters[name], element).cpu().float().abs()
        return float(prior.scale(torch.div(place, columns, rounding_mode="floor"), place % columns, magnitude))

    def _likelier(self, name: str, element: int, bits: Sequence[int]) -> list[float]:
        """For each bit how much likelier, in nats, its turning makes the weight for its place."""
        prior = self.prior_of(name)
        place = torch.tensor([element])
        value = element_view(self.parameters[name], element).cpu()
        columns = prior.column_sums.numel()
        scale = prior.scale(torch.div(place, columns, rounding_mode="floor"), place % columns, value.float().abs())
        now = prior.log_prior(value.float().abs(), scale, present=True) + prior.recurrence_nats(place, value)
        options = [flipped(value, bit) for bit in bits]
        likelier = [float(prior.log_prior(one.float().abs(), scale) + prior.recurrence_nats(place, one) - now) for one in options]
        beyond = [self._is_beyond(name, element, float(value), float(one)) for one in options]
        return [more - _BEYOND_NATS if far else more for more, far in zip(likelier, beyond, strict=True)]

    def _is_beyond(self, name: str, element: int, before: float, after: float) -> bool:
        """Whether a weight would be larger than it was, and than all others of its tensor; for vectors, than around them."""
        prior = self.prior_of(name)
        if prior.shape_of_neighbours is not None:
            return abs(after) > max(abs(before), _BEYOND_NEIGHBOURS * self._usual(name, element))
        others = prior.largest[-1] if abs(before) == prior.largest[0] else prior.largest[0]
        return abs(after) > max(others, abs(before))

    def _sieve(self, candidates: list[Candidate]) -> list[Candidate]:
        """Those that win something on a small part of the text, the best of them."""
        quick = Trials(self.pieces, self.parameters, self.subject.quick)
        scale = _CHOOSING_ITEMS / max(1, quick.losses.numel())
        tried = []
        for one in candidates:
            if self._stop():
                break
            after = _tried(one, quick)
            if after.gain > 0:
                tried.append(replace(after, gain=after.gain * scale))
        kept = _best_weights(tried, _WEIGHTS_SIEVED)
        return [one for one in tried if one.weight in kept]

    def _bits_of(self, weight: tuple[str, int], trials: Trials) -> list[Candidate]:
        """Every bit of a weight that matters and makes no absurd value of it; ``gain`` is the sum over all items, in nats."""
        name, element = weight
        value = element_view(self.parameters[name], element).cpu()
        bits = FORMS[value.dtype].weighty
        usual = self._usual(name, element)
        listed: list[Candidate] = []
        negligible: float | None = None
        for bit, likelier in zip(bits, self._likelier(name, element, bits), strict=True):
            changed = flipped(value, bit).float()
            if not bool(changed.isfinite()) or likelier < _LEAST_PRIOR_NATS:
                continue
            is_negligible = float(changed.abs()) < usual * _NEGLIGIBLE
            if is_negligible and negligible is not None:
                gain = negligible  # next to zero: the model cannot tell it from the one that was tried
            else:
                gain = _gain(trials, name, element, bit)
            negligible = gain if is_negligible else negligible
            listed.append(Candidate(name, element, bit, "refined", gain, likelier))
        return listed

    def _compared(self, options: list[Candidate]) -> list[Candidate]:
        """The bits of a weight, the best first: those that come near the best are compared on more text."""
        best = max(map(_bit_evidence, options), default=0.0)
        near = [one for one in options if _bit_evidence(one) > best - _NEAR_NATS]
        if len(near) < 2:
            return near
        near = sorted(near, key=_bit_evidence, reverse=True)[:_BITS_COMPARED]
        for batch in self.subject.holdout[:_COMPARING_BATCHES]:
            trials = Trials(self.pieces, self.parameters, batch)
            near = [replace(one, gain=one.gain + _gain(trials, one.parameter, one.element, one.bit)) for one in near]
        return sorted(near, key=_bit_evidence, reverse=True)

    def confirmed(self, one: Candidate) -> Found | None:
        """What the held-out text says of turning a bit; ``None`` if it is not enough. The model is left as it was."""
        parameter = self.parameters[one.parameter]
        before, before_items = float(element_view(parameter, one.element)), self.held_out()
        with turned(parameter, one.element, [one.bit]):
            after, after_items = float(element_view(parameter, one.element)), self._held_out_losses()
        gained = before_items - after_items
        loss_before, loss_after = float(before_items.mean()), float(after_items.mean())
        z = float(gained.mean()) / max(float(gained.std()) / math.sqrt(gained.numel()), 1e-9)
        evidence = _evidence(replace(one, gain=float(gained.sum()))) - self.look_elsewhere_nats()
        bars = bars_for(loss_before, is_stand_in=self.subject.loss is passage_loss, chance_nats=self.subject.chance_nats)
        passes = any(bar.passed(loss_before, loss_after, z, one.prior_nats) for bar in bars)
        if self._is_beyond(one.parameter, one.element, before, after):
            passes = passes and BEYOND.passed(loss_before, loss_after, z, one.prior_nats)
        if not (passes and evidence >= 0):  # said so that what is no number does not pass
            return None
        return Found(one.parameter, one.element, one.bit, before, after, loss_before, loss_after, z, evidence, one.prior_nats)

    def held_out(self) -> Tensor:
        """The loss of each held-out item for the model as it is now."""
        if self._held_out is None:
            self._held_out = self._held_out_losses()
        return self._held_out

    def _held_out_losses(self) -> Tensor:
        return torch.cat([self.pieces.losses(batch) for batch in self.subject.holdout])

    def turn(self, name: str, element: int, bit: int) -> None:
        """Turn a bit of the model for good."""
        flip_in_place(self.parameters[name], element, bit)
        self._priors.pop(name, None)
        self._held_out = None

    def finite_options(self, name: str, element: int) -> list[int]:
        """The exponent bits that make a finite number of an element which is none, the likeliest for its place first."""
        value = element_view(self.parameters[name], element).cpu()
        finite = [bit for bit in FORMS[value.dtype].exponent if bool(flipped(value, bit).isfinite().all())]
        return sorted(finite, key=lambda bit: float(flipped(value, bit).float().abs()))[:_OPTIONS_LIMIT]

    def forget(self, names: Sequence[str]) -> None:
        """What was learned of parameters that others have changed."""
        for name in names:
            self._priors.pop(name, None)
        self._held_out = None

    def look_elsewhere_nats(self) -> float:
        """Nats: the logarithm of how many bits might have been chosen."""
        return math.log(sum(one.numel() * len(FORMS[one.dtype].weighty) for one in self.parameters.values() if one.dtype in FORMS))

    def _without_needless(self, found: list[Found]) -> list[Found]:
        """Un-flips that only made up for a fault which was found later are taken back."""
        kept = list(found)
        for one in found[:-1]:
            now = float(self.held_out().mean())
            self.turn(one.parameter, one.element, one.bit)
            if float(self.held_out().mean()) > now * (1 + LEAST_GAIN_SHARE / 2):
                self.turn(one.parameter, one.element, one.bit)
            else:
                kept.remove(one)
        return kept


def _best_weights(tried: list[Candidate], count: int) -> list[tuple[str, int]]:
    best: dict[tuple[str, int], float] = {}
    for one in tried:
        best[one.weight] = max(_evidence(one), best.get(one.weight, -math.inf))
    return sorted(best, key=lambda weight: -best[weight])[:count]


def _evidence(one: Candidate) -> float:
    """Nats for a weight: what the text says and what the tensor says, the latter up to a limit (dequantised and decayed weights can be
    next to zero in models without a fault)."""
    return one.gain + min(one.prior_nats, PRIOR_LIMIT_NATS)


def _bit_evidence(one: Candidate) -> float:
    """Nats for one bit of a weight rather than another: the text at a discount, since training on other text left the weight somewhat
    beside what would be best for this one."""
    return TEXT_WEIGHT * one.gain + one.prior_nats


def _tried(one: Candidate, trials: Trials) -> Candidate:
    return replace(one, gain=_gain(trials, one.parameter, one.element, one.bit))


def _gain(trials: Trials, name: str, element: int, bit: int) -> float:
    """Nats won over all items; nothing can be said for a loss that is no number any more."""
    gain = float((trials.losses - trials.with_bits(name, element, [bit])).sum())
    return gain if math.isfinite(gain) else -math.inf
