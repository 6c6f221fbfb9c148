"""May a model be served whose sidecar says that blocks are lost, when nothing can restore them?

What was lost is not known, but what it may have been is: values like those beside it. The model runs with some such contents, with neutral
ones, with contents whose signs are the worst by the gradient, and as it is. What the right contents would give is estimated by peers: what
it costs to make other ranges of the same size neutral, elsewhere in the tensor or in its likes, whose contents are known. In four blocks
of 4 KiB of SmolLM2 that was right within 0.2 % of the loss. Where there are no peers, the loss is taken for a paraboloid about the right
contents w, which are as far from the middle as a draw is: then E L(drawn) − L(middle) is what L(middle) − L(w) is, ½ tr(HΣ). That is a
worse guess: trained weights lie along the steeper directions, and a random embedding is worse than none.

The verdict compares changes against that estimate with two shares of the loss (``serving_facts``): ``negligible`` needs a change of at most
0.2 %, two standard errors included, and no contents tried that raise it by more than 2 %; ``degraded`` a change of at most 2 %.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bitward_agent.diagnosis.changes import Change, ChangeTrials, mean_loss, replaced
from bitward_agent.diagnosis.lost_contents import Lost, LostContents
from bitward_agent.diagnosis.pieces import Pieces
from bitward_agent.diagnosis.placing import Place
from bitward_agent.diagnosis.serving_facts import DEGRADED_SHARE, NEGLIGIBLE_SHARE, LostBlock, ServingReport, ServingVerdict
from bitward_agent.diagnosis.subject import Subject
from bitward_agent.findings import Damage
from bitward_formats.frozen import dataclass

SAMPLES = 24
_PEERS = 12
_BATCHES = 3
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}


@dataclass(frozen=True, slots=True)
class _Trial:
    """Losses of the model in its states, ``None`` where no finite number.

    ``drawn`` are those of sampled contents, ``peers`` those with other ranges neutral beside the lost ones.
    """

    now: float | None
    neutral: float | None
    drawn: tuple[float | None, ...]
    against: float | None
    peers: tuple[float | None, ...] = ()


def judge_serving(
    subject: Subject, damages: Sequence[Damage], *, suspect_bits: Mapping[int, int] | None = None, samples: int = SAMPLES, seed: int = 0
) -> ServingReport:
    """Whether the model can be served although ``damages``, blocks that a sidecar located, are lost. The weights are as before afterwards.

    Args:
        suspect_bits: for damages by their position, the bits of each element that may be wrong, where an inner code tells; else all.
    """
    started = time.monotonic()
    placed = [(name, one) for name, place in subject.places.items() for one in (place, *subject.twins.get(name, ()))]
    places = {place.tensor: (name, place) for name, place in placed}
    parameters = dict(subject.model.named_parameters())
    located = [_locate(one, places, parameters, (suspect_bits or {}).get(at, -1)) for at, one in enumerate(damages)]
    of: dict[str, list[Lost]] = {}
    for lost in located:
        if lost is not None and lost not in of.setdefault(lost.parameter, []):
            of[lost.parameter].append(lost)
    if not of:
        blocks = tuple(_unjudged(one) for one in damages)
        return _report(subject, blocks, _Trial(None, None, (), None), started)
    contents = {name: LostContents(name, parameters, lost, of) for name, lost in of.items()}
    pieces = Pieces(subject.model, subject.loss, subject.choosing)
    trials = ChangeTrials(pieces, parameters, [subject.choosing, *subject.holdout[: _BATCHES - 1]])
    neutral = [one.neutral() for one in contents.values()]
    slopes = _slopes(subject, pieces, parameters, neutral, of)
    trial = _run(trials, contents, neutral, slopes, samples, seed)
    blocks = tuple(
        _unjudged(one) if lost is None else _judged(one, lost, contents[lost.parameter], slopes)
        for one, lost in zip(damages, located, strict=True)
    )
    return _report(subject, blocks, trial, started)


def _locate(one: Damage, places: Mapping[str, tuple[str, Place]], parameters: Mapping[str, nn.Parameter], bits: int) -> Lost | None:
    """The elements that lie in a damaged block, ``None`` if they are no weights of the model as it runs."""
    name, place = places.get(one.tensor or "", ("", None))
    if place is None or place.dtype not in _ITEM_BYTES:
        return None
    item, count = _ITEM_BYTES[place.dtype], parameters[name].numel()
    low = max(0, (one.offset - place.offset) // item)
    high = min(count, -(-(one.offset + one.length - place.offset) // item))
    return Lost(name, low, high, bits) if low < high else None


def _slopes(
    subject: Subject, pieces: Pieces, parameters: Mapping[str, nn.Parameter], neutral: Sequence[Change], of: Mapping[str, Sequence[Lost]]
) -> dict[Lost, Tensor]:
    """The gradient of the loss by the lost elements, with neutral contents: float32 on the CPU; what is not finite is 0."""
    names = {id(parameters[name]): name for name in of}
    found: dict[Lost, Tensor] = {}

    def see(parameter: nn.Parameter, gradient: Tensor) -> None:
        flat = gradient.reshape(-1)
        for lost in of[names[id(parameter)]]:
            found[lost] = torch.nan_to_num(flat[lost.low : lost.high].float().cpu(), 0.0, 0.0, 0.0)

    with replaced(parameters, neutral):
        pieces.backward(subject.choosing, see, lambda one: id(one) in names)
    for lost in (one for some in of.values() for one in some):
        found.setdefault(lost, torch.zeros(lost.high - lost.low))
    return found


def _run(
    trials: ChangeTrials,
    contents: Mapping[str, LostContents],
    neutral: Sequence[Change],
    slopes: Mapping[Lost, Tensor],
    samples: int,
    seed: int,
) -> _Trial:
    generator = torch.Generator().manual_seed(seed)
    drawn = tuple(mean_loss(trials.with_changes([one.sampled(generator) for one in contents.values()])) for _ in range(samples))
    against = [one.against([slopes[lost] for lost in one.lost], generator) for one in contents.values()]
    peers: list[float | None] = []
    for _ in range(min(_PEERS, samples)):
        made = [one.peers(generator) for one in contents.values()]
        if any(one is None for one in made):
            break
        peers.append(mean_loss(trials.with_changes([change for one in made if one is not None for change in one])))
    now, middle = mean_loss(trials.before), mean_loss(trials.with_changes(neutral))
    return _Trial(now, middle, drawn, mean_loss(trials.with_changes(against)), tuple(peers))


def _cost(trial: _Trial) -> tuple[float | None, float | None]:
    """What the neutral contents cost against the right ones, and its standard error; ``None`` if nothing can be said."""
    if trial.neutral is None:
        return None, None
    for losses in (trial.peers, trial.drawn):
        costs = [one - trial.neutral for one in losses if one is not None]
        if len(costs) > 1:
            mean = sum(costs) / len(costs)
            return max(0.0, mean), math.sqrt(sum((one - mean) ** 2 for one in costs) / (len(costs) - 1) / len(costs))
    return None, None


def _unjudged(one: Damage) -> LostBlock:
    what = "no weight of the model as it runs" if one.tensor else "no tensor"
    return LostBlock(one.tensor or "", one.block, one.offset, one.length, 0, None, None, f"{what}: what it is for cannot be told")


def _judged(one: Damage, lost: Lost, contents: LostContents, slopes: Mapping[Lost, Tensor]) -> LostBlock:
    slope, deviation = slopes[lost], contents.deviation(contents.lost.index(lost))
    expected, worst = float(slope.square().sum().sqrt()) * deviation, float(slope.abs().sum()) * deviation
    message = "" if contents.known else "nothing like it is left to compare with"
    return LostBlock(one.tensor or "", one.block, one.offset, one.length, lost.high - lost.low, expected, worst, message)


def _report(subject: Subject, blocks: tuple[LostBlock, ...], trial: _Trial, started: float) -> ServingReport:
    neutral_change, error = _cost(trial)
    clean = None
    if trial.neutral is not None and neutral_change is not None:
        clean = min(
            trial.neutral - neutral_change, math.inf if trial.now is None else trial.now
        )  # the right contents are no worse than these
        neutral_change = trial.neutral - clean
    drawn = [one for one in trial.drawn if one is not None]
    unbounded = len(drawn) < len(trial.drawn) or trial.against is None
    worst = None if clean is None or unbounded else max(*drawn, trial.against or 0.0) - clean
    expected = None if clean is None or trial.now is None else trial.now - clean
    judged = not any(one.message for one in blocks)
    verdict = _verdict(expected, error, worst, clean) if judged else ServingVerdict.STOP
    if_neutral = _verdict(neutral_change, error, worst, clean) if judged else ServingVerdict.STOP
    return ServingReport(
        model=subject.source,
        verdict=verdict,
        verdict_neutral=if_neutral,
        blocks=blocks,
        loss_now=trial.now,
        loss_neutral=trial.neutral,
        loss_clean=clean,
        expected_change=expected,
        neutral_change=neutral_change,
        worst_change=worst,
        standard_error=error,
        samples=len(trial.drawn),
        words=_words(verdict, if_neutral, expected, clean, blocks),
        seconds=time.monotonic() - started,
    )


def _verdict(change: float | None, error: float | None, worst: float | None, clean: float | None) -> ServingVerdict:
    """By the limits of ``serving_facts``; what is no number is no reason to go on."""
    if change is None or error is None or clean is None:
        return ServingVerdict.STOP
    bound = change + 2 * error
    if bound <= NEGLIGIBLE_SHARE * clean and worst is not None and worst <= DEGRADED_SHARE * clean:
        return ServingVerdict.NEGLIGIBLE
    return ServingVerdict.DEGRADED if bound <= DEGRADED_SHARE * clean else ServingVerdict.STOP


def _words(
    verdict: ServingVerdict, if_neutral: ServingVerdict, expected: float | None, clean: float | None, blocks: Sequence[LostBlock]
) -> tuple[str, ...]:
    order = list(ServingVerdict)
    words = []
    if unknown := [one for one in blocks if one.message]:
        words.append(f"{len(unknown)} of {len(blocks)} lost blocks cannot be judged, so it must not be served for all that is known here")
    elif expected is None or clean is None:
        words.append("as it is the model gives no number at all")
    else:
        words.append(f"as it is, its loss is about {expected:.4g} nats above what it was ({expected / clean:.2%})")
    if order.index(if_neutral) < order.index(verdict):
        words.append(f"with the lost contents made neutral it would be {if_neutral.value}")
    advice = {
        ServingVerdict.NEGLIGIBLE: "it can be served until a good copy is at hand",
        ServingVerdict.DEGRADED: "serve it only if you must, and restore it from a good copy soon",
        ServingVerdict.STOP: "stop serving it, and restore it from a good copy",
    }
    return (*words, advice[verdict])
