"""The steps that run the model: what the ladder asks of a loaded ``Subject``. The only door from the ladder to torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bitward_agent.diagnosis.bars import LEAST_GAIN_SHARE
from bitward_agent.diagnosis.changes import Change, ChangeTrials, mean_loss, patches_of
from bitward_agent.diagnosis.departures import load_trace, number_or_word, trace_blocks, trace_suspects
from bitward_agent.diagnosis.differential import compare_modules, compare_weights, load_reference, module_scores
from bitward_agent.diagnosis.donors import Donor, donated, open_donors
from bitward_agent.diagnosis.facts import Attempt, BlockScore, Step, Suspect, Unflip
from bitward_agent.diagnosis.found import Found
from bitward_agent.diagnosis.heap import return_freed_blocks
from bitward_agent.diagnosis.perturbation import branch_scores, perturb
from bitward_agent.diagnosis.profile import Profile
from bitward_agent.diagnosis.recovery import Part, Recovery
from bitward_agent.diagnosis.subject import ModelError, Subject, load_subject
from bitward_agent.diagnosis.tensor_bits import FORMS, value_of
from bitward_agent.diagnosis.trace import compare
from bitward_agent.diagnosis.writing import Patch
from bitward_agent.io import resolve
from bitward_formats.frozen import dataclass

_ONE_BY_ONE = 64
"""More proposals than this are tried all at once only."""
_PARTS_LIMIT = 4
_LISTED = 3
_GUESSING_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class Differences:
    """What a comparison found."""

    suspects: tuple[Suspect, ...]
    unflips: tuple[Unflip, ...]
    blocks: tuple[BlockScore, ...]
    words: tuple[str, ...]


class ModelSteps:
    """A loaded model and what was done to it. Losses are means over the held-out items, in nats; ``None`` where not finite."""

    def __init__(self, source: str, text: str, device: str, stop: Callable[[], bool]) -> None:
        """
        Raises:
            ModelError: it cannot be loaded, or its loss cannot be had.
        """
        return_freed_blocks()
        self.subject: Subject = load_subject(source, text, device=device)
        self.search = _first_run(self.subject, stop)
        self.architecture = self.subject.architecture
        self._stop = stop
        self._changed: list[str] = []
        self._branch = ""
        places = ((name, one) for name, place in self.subject.places.items() for one in (place, *self.subject.twins.get(name, ())))
        self._parameter_of = {(resolve(place.path), place.tensor): name for name, place in places}

    def loss(self) -> float | None:
        """The mean loss of the held-out text for the model as it is now."""
        mean = float(self.search.held_out().mean())
        return mean if math.isfinite(mean) else None

    def knows_nothing(self, loss: float | None) -> bool:
        """Whether a loss is that of a model that guesses: next to the logarithm of the vocabulary, or beyond it."""
        chance = self.subject.chance_nats
        return chance is not None and loss is not None and loss >= _GUESSING_SHARE * chance

    def try_proposals(self, proposals: Sequence[Suspect]) -> tuple[list[Unflip], list[Suspect]]:
        """Turn back all bits that triage proposes, then take back each that the text speaks against more than the census does for it.

        Returns (kept, refused). Bits of tensors that the model does not hold as they are in the file stay as proposed: nothing can be
        asked about them.
        """
        before = self.loss()
        asked = [(one, self._name_of(one)) for one in self.without_twins(proposals)]
        for one, name in asked:
            if name is not None:
                self._turn(one, name)
        kept: list[Unflip] = []
        refused: list[Suspect] = []
        for one, name in asked:
            if name is not None and len(asked) <= _ONE_BY_ONE:
                with_it = self.search.held_out()
                self._turn(one, name)
                lost = float((with_it - self.search.held_out()).sum())
                breaks = bool(self.search.held_out().isfinite().all()) and not bool(with_it.isfinite().all())
                if breaks or (math.isfinite(lost) and lost > one.score_nats):
                    refused.append(one)
                    continue
                self._turn(one, name)
            kept.append(Unflip(one, None, None, None) if name is None else Unflip(one, before, self.loss(), None))
        return kept, refused

    def without_twins(self, suspects: Sequence[Suspect]) -> list[Suspect]:
        """One suspect of each place of the model: a tensor stored twice has each of its faults twice, and turning both turns none."""
        seen: set[tuple[str, tuple[int, ...], int | None, str]] = set()
        kept: list[Suspect] = []
        for one in suspects:
            name = self._name_of(one)
            if name is not None and self.subject.twins.get(name):
                key = name, one.index, one.bit, one.kind
                if key in seen:
                    continue
                seen.add(key)
            kept.append(one)
        return kept

    def _name_of(self, one: Suspect) -> str | None:
        """The parameter that a suspect is about, if it is one."""
        return self._parameter_of.get((resolve(one.path), one.tensor)) if one.path else None

    def twins_of(self, suspects: Sequence[Suspect]) -> tuple[Suspect, ...]:
        """The same bits in the further places of tensors that are stored more than once."""
        found: list[Suspect] = []
        for one in suspects:
            name = self._name_of(one)
            if name is None:
                continue
            places = (self.subject.places[name], *self.subject.twins.get(name, ()))
            own = next(place for place in places if (resolve(place.path), place.tensor) == (resolve(one.path), one.tensor))
            others = (place for place in places if place is not own)
            found += [replace(one, path=to.path, tensor=to.tensor, offset=one.offset - own.offset + to.offset) for to in others]
        return tuple(found)

    def make_numbers(self, suspects: Sequence[Suspect]) -> tuple[list[Unflip], list[Suspect]]:
        """For elements that are the only ones of their tensors that are no numbers: the bit that makes one which the model does best with.

        Returns what was turned, and the suspects that it stands for; nothing where the loss stays no number.
        """
        before = self.loss()
        asked: list[tuple[Suspect, str, int, list[int]]] = []
        for one, name in self._of_model(suspects):
            parameter = self.search.parameters[name]
            alone = int((~parameter.detach().isfinite()).sum()) == 1
            if one.kind == "not-finite" and one.bit is None and alone and len(asked) < _ONE_BY_ONE:
                element = _element(one, parameter.shape)
                if options := self.search.finite_options(name, element):
                    asked.append((one, name, element, options))
        for _, name, element, options in asked:
            self.search.turn(name, element, options[0])
        if self.loss() is None:
            for _, name, element, options in asked:
                self.search.turn(name, element, options[0])
            return [], []
        unflips: list[Unflip] = []
        for one, name, element, options in asked:
            self.search.turn(name, element, options[0])
            was = value_of(self.search.parameters[name], element)
            best = min(options, key=lambda bit: self._loss_with(name, element, bit))
            self.search.turn(name, element, best)
            now = value_of(self.search.parameters[name], element)
            words = f"no number; with bit {best} turned back it is {now:.6g}, as which the model does best"
            suspect = self._suspect_at(name, element, best, (was, now), one.score_nats, words)
            unflips.append(Unflip(replace(suspect, step=Step.TRIAGE, kind="not-finite"), before, self.loss(), None))
        return unflips, [one for one, *_ in asked]

    def _loss_with(self, name: str, element: int, bit: int) -> float:
        """The held-out loss with a bit turned, infinite where it is no number."""
        self.search.turn(name, element, bit)
        loss = self.loss()
        self.search.turn(name, element, bit)
        return math.inf if loss is None else loss

    def against_trace(self, path: str) -> Differences:
        """Hold the model against its trace; what single bits explain is turned back."""
        findings = compare(self.subject, load_trace(Path(path)))
        suspects = trace_suspects(self.subject, findings)
        if not findings.departures:
            words = [f"{findings.modules} calls of modules give what was recorded"]
        else:
            first = findings.departures[0]
            words = [f"{first.module} is the first of {findings.modules} calls of modules that does not give what was recorded"]
            words.append("every departure is explained" if findings.mended else "some departures are not explained by one or two bits")
        return Differences(tuple(suspects), self._turned_back(suspects), tuple(trace_blocks(self.subject, findings)), tuple(words))

    def against_reference(self, source: str) -> Differences:
        """Compare module by module and weight by weight; what single bits explain is turned back."""
        reference = load_reference(source, self.subject)
        blocks = module_scores(self.subject, compare_modules(self.subject, reference))
        suspects, notes = compare_weights(self.subject, reference)
        words = [f"compared with {source}", *notes]
        number = f"{len(suspects):,} weights differ" if suspects else "no weight differs"
        words.append(f"{number} by more than the element types explain")
        return Differences(tuple(suspects), self._turned_back(suspects), tuple(blocks), tuple(words))

    def _turned_back(self, suspects: Sequence[Suspect]) -> tuple[Unflip, ...]:
        before = self.loss()
        bits = [(one, name) for one, name in self._of_model(suspects) if one.bit is not None]
        for one, name in bits:
            self._turn(one, name)
        after = self.loss()
        return tuple(Unflip(one, before, after, None) for one, _ in bits)

    def perturbation(self) -> tuple[list[BlockScore], list[str]]:
        """Which branches the model is better without."""
        found = perturb(self.search.pieces, self.subject.choosing, stop=self._stop)
        if not found.trials:
            return [], ["the model is no chain of blocks with branches, or time is up"]
        scores = branch_scores(found)
        best = found.best
        if best is None or not found.stands_out:
            return scores, [f"no branch stands out; the cost was that of {found.passes:.0f} forward passes"]
        self._branch = best.branch
        gain = f"lowers the loss by {best.gain:.4f} nats" if math.isfinite(best.gain) else "makes the loss a number"
        return scores, [f"{best.branch} at {best.factor:.0%} of its strength {gain}"]

    def recover(self, suspects: Sequence[Suspect], donors: Sequence[str]) -> tuple[list[Attempt], list[str]]:
        """Clamp, restore or attenuate what is known to be wrong and no single bit explains."""
        opened, notes = open_donors(donors, self.subject)
        recovery = Recovery(self.subject, self.search.pieces, opened, stop=self._stop)
        parts = self._parts(recovery, suspects) or self._parts_by_donors(recovery, opened)
        words = [*notes]
        if not parts:
            return [], [*words, "nothing is left that no single bit explains"]
        attempts: list[Attempt] = []
        for part in parts[:_PARTS_LIMIT]:
            report = recovery.recover(part)
            attempts += report.attempts
            self._changed += report.changed
            words += report.notes
            self.search.forget(report.changed)
        accepted = [one for one in attempts if one.accepted]
        words.append("; ".join(one.words for one in accepted[:_LISTED]) or "no way of recovery makes the held-out loss better by enough")
        return attempts, words

    def _parts(self, recovery: Recovery, suspects: Sequence[Suspect]) -> list[Part]:
        """What is known to be wrong: tensors that triage or a comparison named, else the block whose branch stands out."""
        names = {name: None for one, name in self._of_model(suspects) if one.bit is None}
        if names:
            return [Part(name, (name,)) for name in names]
        blocks = enumerate(recovery.pieces.block_names)
        return [recovery.part_of_block(at) for at, block in blocks if self._branch.startswith(f"{block}.")]

    def _parts_by_donors(self, recovery: Recovery, donors: Sequence[Donor]) -> list[Part]:
        """Where nothing is known but donors are at hand: the blocks that win most if they come from the first donor that has them."""
        trials = ChangeTrials(recovery.pieces, self.search.parameters, [self.subject.choosing])
        base = mean_loss(trials.now([]))
        tried: list[tuple[float, Part]] = []
        for number in range(len(recovery.pieces.block_names)):
            part = recovery.part_of_block(number)
            donor = next((one for one in donors if one.has(part.parameters)), None)
            if donor is None or self._stop():
                continue
            changes = [Change(name, donated(donor, name, self.search.parameters[name])) for name in part.parameters]
            after = mean_loss(trials.with_changes(changes))
            if after is not None and (base is None or after < base * (1 - LEAST_GAIN_SHARE)):
                tried.append((after, part))
        return [part for _, part in sorted(tried, key=lambda one: one[0])]

    def patches(self) -> tuple[Patch, ...]:
        """The tensors that recovery changed, as bytes for their files; those of a factory's model have none."""
        return patches_of(self.subject, [name for name in self._changed if name in self.subject.places])

    def unplaced(self) -> tuple[str, ...]:
        """Parameters that recovery changed and that have no place in a file."""
        return tuple(name for name in dict.fromkeys(self._changed) if name not in self.subject.places)

    def tensors(self) -> tuple[str, ...]:
        """The names of all parameters, as the files have them where these are known."""
        places = self.subject.places
        return tuple(places[name].tensor if name in places else name for name in self.search.parameters)

    def sensitivity(self) -> tuple[tuple[str, float], ...]:
        """What each parameter matters for the loss: the root of the summed squares of gradient × weight, from the last backward pass."""
        places = self.subject.places
        return tuple((places[name].tensor if name in places else name, value) for name, value in self.search.sensitivity.items())

    def profile(self, candidates: Sequence[Suspect], tell: Callable[[str], None]) -> list[Unflip]:
        """The self-referential search. ``candidates`` are un-flips that triage could not justify; they are tried with the others."""
        named = self._of_model(candidates)
        extra = [(name, _element(one, self.search.parameters[name].shape), one.bit) for one, name in named if one.bit is not None]
        found = self.search.run(extra=extra, tell=tell)
        if self.search.is_blind and not found:
            raise ModelError("the loss of the text that faults are looked for with is not a number, so no bit can be weighed by it")
        return [Unflip(self._suspect(one), one.loss_before, one.loss_after, one.gain_z) for one in found]

    def _of_model(self, suspects: Sequence[Suspect]) -> list[tuple[Suspect, str]]:
        named = [(one, self._name_of(one)) for one in self.without_twins(suspects)]
        return [(one, name) for one, name in named if name is not None]

    def _turn(self, one: Suspect, name: str) -> None:
        assert one.bit is not None
        parameter = self.search.parameters[name]
        self.search.turn(name, _element(one, parameter.shape), one.bit)

    def _suspect(self, found: Found) -> Suspect:
        change = f"{found.before:.6g} to {found.after:.6g}"
        gain = f"the held-out loss from {found.loss_before:.4f} to {found.loss_after:.4f} ({found.gain_z:.1f} standard errors)"
        words = f"turning bit {found.bit} makes {change} and lowers {gain}"
        return self._suspect_at(found.parameter, found.element, found.bit, (found.before, found.after), found.evidence_nats, words)

    def _suspect_at(self, name: str, element: int, bit: int, values: tuple[float, float], score_nats: float, words: str) -> Suspect:
        parameter = self.search.parameters[name]
        form = FORMS[parameter.dtype]
        index = tuple(int(one) for one in torch.unravel_index(torch.tensor(element), parameter.shape))
        place = self.subject.places.get(name)
        path, tensor = ("", name) if place is None else (place.path, place.tensor)
        return Suspect(
            step=Step.PROFILE,
            kind="gradient",
            path=path,
            tensor=tensor,
            index=index,
            bit=bit,
            field=form.field_of(bit),
            offset=-1 if place is None else place.offset + element * form.bits // 8 + bit // 8,
            length_bytes=form.bits // 8,
            found=number_or_word(values[0]),
            correct=number_or_word(values[1]),
            score_nats=score_nats,
            words=f"{tensor}[{', '.join(map(str, index))}]: {words}",
        )


def _first_run(subject: Subject, stop: Callable[[], bool]) -> Profile:
    """The search, once the model has run on all batches. What a model, or a factory's loss, raises then is no fault of ours."""
    try:
        search = Profile(subject, stop=stop)
        losses = search.pieces.losses(subject.choosing)
        if losses.dim() != 1 or not losses.numel():
            shape = list(losses.shape)
            raise ModelError(f"{subject.source}: its loss must give a 1-D tensor of one loss per item, not one of shape {shape}")
        search.held_out()
    except ModelError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise MemoryError(str(error)) from error
    except Exception as error:
        words = (str(error).strip().splitlines() or ["no message"])[0][:300]
        raise ModelError(f"{subject.source}: it fails on the calibration batches: {type(error).__name__}: {words}") from error
    return search


def _element(one: Suspect, shape: torch.Size) -> int:
    """The element's number in row-major order."""
    number = 0
    for at, length in zip(one.index, shape, strict=True):
        number = number * length + at
    return number
