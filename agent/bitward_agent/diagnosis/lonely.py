"""Numbers that no training leaves where they stand: far larger or smaller than their row and tensor, or not finite, and which bit did it.

For each of the few numbers at a tensor's ends, two stories are compared: it was trained so (the prior of ``priors``, drawn on beyond the
tensor's other numbers), or one exponent bit of it flipped, which could have been any one of the model's. The logarithm of the ratio is the
suspect's score; the bit is the one whose un-flipping gives the likeliest number.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from bitward_agent.diagnosis.census import Census
from bitward_agent.diagnosis.facts import Step, Suspect
from bitward_agent.diagnosis.priors import Floats, Prior, column_scales, make_prior, row_median, sample_rows
from bitward_agent.diagnosis.series import Bits
from bitward_formats.frozen import dataclass

PROPOSAL_NATS = 3.0
"""Least score of a proposal."""
_CLUSTER_LIMIT = 16
"""Most lonely numbers at one end of a tensor that are told one by one."""
_ROWS_READ = 24
_NOT_FINITE_LIMIT = 64
_NOT_FINITE_SHARE = 1 / 100
_NOT_FINITE_NATS = 20.0
"""That a trained tensor holds a number that is not finite by itself is taken to be so much less likely than its rarest number."""
_PLAUSIBLE_NATS = 3.0
_POPULATION_UP_NATS = 25.0
_POPULATION_DOWN_NATS = 10.0
"""That training left a few numbers of a tensor on their own, anywhere above or below the rest, is taken to be so unlikely; once for all of
them together. Below it does happen: units that weight decay has put to sleep hold numbers of 1e-13 to 1e-40."""
_OCTAVES_LOG = float(np.log(128))
_FEWEST = 64
"""Tensors of fewer numbers have no census."""


@dataclass(frozen=True, slots=True)
class _Spot:
    """A number of a series: where, its bits, its row's median and its deviation (octaves)."""

    number: int
    bits: int
    column: int
    median: float
    deviation: float


@dataclass(frozen=True, slots=True)
class _Reading:
    """Rows that were read: their numbers, flat. ``medians`` are those of each number's row."""

    numbers: npt.NDArray[np.int64]
    bits: Bits
    columns: npt.NDArray[np.intp]
    medians: Floats


def _read(census: Census, rows: npt.NDArray[np.intp]) -> _Reading:
    length = census.series.row_length
    values = [census.read_row(int(row)) for row in rows]
    sizes = [some.size for some in values]
    medians = [row_median(some, census.series.form) for some in values]
    return _Reading(
        np.concatenate([np.arange(size) + int(row) * length for row, size in zip(rows, sizes, strict=True)]),
        np.concatenate(values),
        np.concatenate([np.arange(size) for size in sizes]),
        np.repeat(medians, sizes),
    )


def _interesting_rows(census: Census) -> npt.NDArray[np.intp]:
    """The rows whose largest or smallest numbers stand out most, by themselves and against the row's usual."""
    rows = census.top.size
    if rows <= 4 * _ROWS_READ:
        return np.arange(rows)
    usual = census.usual.astype(np.float64)
    top, low = census.top.astype(np.float64), census.low.astype(np.float64)
    chosen = [np.argpartition(key, -_ROWS_READ)[-_ROWS_READ:] for key in (top, top - usual, -low, usual - low)]
    return np.unique(np.concatenate(chosen))


def _widest_gap(ordered: Floats) -> int:
    """Of numbers that go away from the rest, in order: how many lie beyond the widest gap."""
    steps = np.abs(np.diff(ordered[: _CLUSTER_LIMIT + 1]))
    return int(steps.argmax()) + 1 if steps.size else 0


def lonely(census: Census, weights: int, path: str) -> Iterator[Suspect]:
    """Suspects of a series in a model of ``weights`` numbers."""
    series, form = census.series, census.series.form
    if series.count < _FEWEST or not census.exponents[1:].any():
        return
    sampled = [(values, row_median(values, form)) for values in map(census.read_row, sample_rows(census))]
    columns = column_scales(census, sampled)
    reading = _read(census, _interesting_rows(census))
    magnitudes = reading.bits & reading.bits.dtype.type(form.magnitude_mask)
    special = (magnitudes >> magnitudes.dtype.type(form.mantissa_bits)) >= form.special
    deviations = form.octaves(magnitudes) - reading.medians - columns[reading.columns]
    finite = np.flatnonzero(~special & (magnitudes > 0))
    if finite.size < _FEWEST:
        return
    order = finite[np.argsort(deviations[finite])]
    below, above = _widest_gap(deviations[order]), _widest_gap(deviations[order[::-1]])
    low, high = float(deviations[order[below]]), float(deviations[order[-above - 1]])
    prior = make_prior(census, sampled, deviations[order[below : order.size - above]], low, high, columns)
    ends = {int(at): ("lonely-exponent", _POPULATION_DOWN_NATS / below) for at in order[:below]}
    ends.update((int(at), ("lonely-exponent", _POPULATION_UP_NATS / above)) for at in order[order.size - above :])
    not_finite = np.flatnonzero(special)
    if form.special < census.exponents.size:
        count = int(census.exponents[form.special])
        if count and count <= min(_NOT_FINITE_LIMIT, series.count * _NOT_FINITE_SHARE):
            ends.update((int(at), ("not-finite", _NOT_FINITE_NATS)) for at in not_finite)
    cost = float(np.log(max(weights, 1) * form.exponent_bits))
    for at, (kind, population_nats) in ends.items():
        spot = _Spot(
            *(int(reading.numbers[at]), int(reading.bits[at]), int(reading.columns[at]), float(reading.medians[at])),
            float(deviations[at]),
        )
        yield from _proposal(census, prior, spot, kind, population_nats, cost, path)


def _proposal(
    census: Census, prior: Prior, spot: _Spot, kind: str, population_nats: float, cost: float, path: str
) -> Iterator[Suspect]:
    form, series = census.series.form, census.series
    bits = np.arange(form.mantissa_bits, form.mantissa_bits + form.exponent_bits)
    flipped = (np.uint64(spot.bits) ^ (np.uint64(1) << bits.astype(np.uint64))) & np.uint64(form.magnitude_mask)
    stories = prior.log_probability(prior.deviations(flipped, spot.median, np.full(bits.size, spot.column)))
    stories[(flipped >> np.uint64(form.mantissa_bits)) >= form.special] = -np.inf
    best = int(stories.argmax())
    rarest = -float(np.log(max(series.count, 2)))
    if kind == "not-finite":
        trained = rarest - population_nats
        plausible = stories[best] > rarest - _PLAUSIBLE_NATS
    else:
        trained = float(prior.log_probability(np.array([spot.deviation]))[0])
        trained = max(trained, rarest - _OCTAVES_LOG - population_nats)
        plausible = True
    score = float(stories[best]) - trained - cost
    if score < PROPOSAL_NATS and kind != "not-finite":
        return
    bit = int(bits[best])
    found, correct = form.value(spot.bits), form.value(spot.bits ^ (1 << bit))
    name = series.span.name
    index = series.index(spot.number)
    told = f"{name}[{', '.join(map(str, index))}]"
    if not plausible:
        words = f"{told} is {found}, and no single bit explains it"
        yield Suspect(
            *(Step.TRIAGE, kind, path, name, index, None, "", series.offset(spot.number), form.item_bytes, found, None),
            *(max(score, 0.0), words),
        )
        return
    words = f"{told} is {_short(found)}; with bit {bit + series.first_bit} turned back {_short(correct)}, as its row and tensor let expect"
    yield Suspect(
        *(Step.TRIAGE, kind, path, name, index, bit + series.first_bit, series.field(bit), series.offset(spot.number, bit)),
        *(form.item_bytes, found, correct, score, words),
    )


def _short(value: float | int | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
