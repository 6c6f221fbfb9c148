"""Numbers that no training leaves where they stand: far larger or smaller than their row and tensor, or not finite, and which bit did it.

For each of the few numbers at a tensor's ends, two stories are compared: it was trained so (the prior of ``priors``, drawn on beyond the
tensor's other numbers), or one exponent bit of it flipped, which could have been any one of the model's. The logarithm of the ratio is the
suspect's score; the bit is the one whose un-flipping gives the likeliest number.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bitward_agent.diagnosis.census import Countable
from bitward_agent.diagnosis.facts import Step, Suspect
from bitward_agent.diagnosis.priors import Floats, Prior, Rows, make_prior, read_rows, sample_rows, scales_of
from bitward_agent.diagnosis.series import Bits, FloatForm
from bitward_formats.frozen import dataclass

PROPOSAL_NATS = 4.0
"""Least score of a proposal."""
CANDIDATE_NATS = -6.0
"""Least score of a candidate: worth a trial where there is a loss to decide it, and no more."""
FEWEST = 64
"""Series of fewer numbers have no census."""
_CLUSTER_LIMIT = 16
"""Most lonely numbers at one end of a tensor that are told one by one."""
_ROWS_READ = 12
"""Rows that are read for each way in which a row can stand out."""
_ROWS_LIMIT_BYTES = 1 << 19
"""Most bytes of them, unless one row is longer."""
_NOT_FINITE_LIMIT = 64
_NOT_FINITE_SHARE = 1 / 100
_NOT_FINITE_NATS = 20.0
"""That a trained tensor holds a number that is not finite by itself is taken to be so much less likely than its rarest number."""
_PLAUSIBLE_NATS = 3.0
_OUTLIER_NATS = 5.0
_OUTLIER_FALL = 2 * float(np.log(2))
_VECTOR_FALL = float(np.log(2))
"""That training left a few large numbers of a tensor on their own is taken to be so unlikely (once for all of them together), and four
times less with each octave by which they exceed its next one. Of 1,900 tensors of real models one in fifty has a gap of 1.5 octaves or
more. In a vector by itself a number is only half as rare with each octave: one class or token is often unlike all others (a text reader's
blank, the padding)."""
_AWAKE_NATS = 25.0
_AWAKE_OCTAVES = 16.0
"""The most that this comes to, unless the numbers are beyond 2^16 and so is the gap: a few units may be all that is awake in a tensor."""
_SLEEPING_NATS = 12.0
"""The same for a small number, however small: units that weight decay has put to sleep hold numbers of 1e-13 to 1e-40. Where there is one
such number there are others: several are told apart with the square of their number."""
_OCTAVES_LOG = float(np.log(128))


@dataclass(frozen=True, slots=True)
class Reading:
    """A series' prior, its ``largest`` number in octaves but for the lonely ones, and the numbers that stand out: flat arrays of rows,
    columns, bits and deviations (octaves).

    ``below`` and ``above`` index the lonely ones among them at either end, ``not_finite`` those that are no numbers (if they are few).
    """

    prior: Prior
    largest: float
    rows: Rows
    columns: Rows
    bits: Bits
    deviations: Floats
    below: Rows
    above: Rows
    not_finite: Rows


def _interesting_rows(census: Countable) -> Rows:
    """The rows whose largest or smallest numbers stand out most, by themselves and against the row's usual."""
    rows = census.top.size
    wanted = max(1, min(_ROWS_READ, _ROWS_LIMIT_BYTES // (census.row_length * census.form.item_bytes)))
    if rows <= 4 * wanted:
        return np.arange(rows)
    usual = census.usual.astype(np.float64)
    top, low = census.top.astype(np.float64), census.low.astype(np.float64)
    keys = (top, top - usual, -low, usual - low)
    chosen = [np.argpartition(key, -wanted)[-wanted:] for key in keys]
    mantissa = census.form.mantissa_bits
    chosen.append(np.flatnonzero((census.top >> census.top.dtype.type(mantissa)) >= census.form.special)[: 4 * wanted + 16])
    return np.unique(np.concatenate(chosen))


def _lonely_ends(deviations: Floats, known: Rows) -> tuple[Rows, Rows]:
    """Of the numbers ``known`` to be finite: those beyond the widest gap at the lower end, and at the upper end."""
    number = min(_CLUSTER_LIMIT + 1, known.size)
    values = deviations[known]
    lowest = np.argpartition(values, number - 1)[:number]
    lowest = lowest[np.argsort(values[lowest])]
    highest = np.argpartition(values, -number)[-number:]
    highest = highest[np.argsort(-values[highest])]
    below = int(np.diff(values[lowest]).argmax()) + 1
    above = int((-np.diff(values[highest])).argmax()) + 1
    return known[lowest[:below]], known[highest[:above]]


def read_ends(census: Countable) -> Reading | None:
    """Read what stands out in a series, and what its prior needs; None where there are too few numbers to tell."""
    form = census.form
    if census.count < FEWEST or not census.exponents[1:].any():
        return None
    sampled = sample_rows(census)
    rows = np.union1d(sampled, _interesting_rows(census))
    grid = read_rows(census, rows)
    magnitudes = grid & grid.dtype.type(form.magnitude_mask)
    of_sample = np.searchsorted(rows, sampled)
    scales = scales_of(census, sampled, magnitudes[of_sample])
    deviations = scales.deviations(form.octaves(magnitudes), rows[:, None], np.arange(census.row_length))
    special = (magnitudes >> magnitudes.dtype.type(form.mantissa_bits)) >= form.special
    finite = ~special & (magnitudes > 0)
    known = np.flatnonzero(finite)
    if known.size < FEWEST:
        return None
    flat = deviations.reshape(-1)
    below, above = _lonely_ends(flat, known)
    inside = finite.copy().reshape(-1)
    inside[below] = inside[above] = False
    others = flat[inside]
    sample = deviations[of_sample][inside.reshape(finite.shape)[of_sample]]
    prior = make_prior(scales, census.count, sample, others, float(others.min()), float(others.max()))
    count = int(census.exponents[form.special]) if form.special < census.exponents.size else 0
    few = 0 < count <= min(_NOT_FINITE_LIMIT, census.count * _NOT_FINITE_SHARE)
    not_finite = np.flatnonzero(special)[: _NOT_FINITE_LIMIT if few else 0]
    largest = float(form.octaves(magnitudes.reshape(-1)[inside].max()))
    kept = np.concatenate((below, above, not_finite))
    row_at, columns = np.divmod(kept, census.row_length)
    ends = np.cumsum([below.size, above.size])
    places = np.arange(kept.size)
    return Reading(prior, largest, rows[row_at], columns, grid.reshape(-1)[kept], flat[kept], *np.split(places, ends))


def lonely(census: Countable, weights: int) -> Iterator[Suspect]:
    """Suspects of a series in a model of ``weights`` numbers (and bytes of codes), with scores from ``CANDIDATE_NATS`` on."""
    reading = read_ends(census)
    if reading is None:
        return
    form = census.form
    cost = float(np.log(max(weights, 1) * form.exponent_bits))
    rarest = -float(np.log(census.count))
    for at in (*reading.below, *reading.above):
        trained = float(reading.prior.log_probability(reading.deviations[at : at + 1])[0])
        trained = max(trained, rarest - _OCTAVES_LOG - _alone(reading, form, int(at)))
        yield from _proposal(census, reading, int(at), trained + cost)
    for at in reading.not_finite:
        yield from _not_finite(census, reading, int(at), cost)


def _alone(reading: Reading, form: FloatForm, at: int) -> float:
    """-ln of the probability that training left a number alone at its end of the tensor."""
    if at in reading.below:
        return _SLEEPING_NATS / reading.below.size**2
    octaves = float(form.octaves(reading.bits[at : at + 1] & reading.bits.dtype.type(form.magnitude_mask))[0])
    gap, number = max(0.0, octaves - reading.largest), reading.above.size
    fall = _OUTLIER_FALL if reading.prior.scales.rows.size > 1 else _VECTOR_FALL
    alone = _OUTLIER_NATS / number + fall * gap
    return alone if min(gap, octaves) > _AWAKE_OCTAVES else min(alone, _AWAKE_NATS / number)


def _stories(census: Countable, reading: Reading, at: int) -> tuple[int, float]:
    """The bit whose un-flipping gives the likeliest number, and ln of how likely that is."""
    form = census.form
    bits = np.arange(form.mantissa_bits, form.mantissa_bits + form.exponent_bits)
    kind = reading.bits.dtype.type
    flipped = (reading.bits[at] ^ (kind(1) << bits.astype(reading.bits.dtype))) & kind(form.magnitude_mask)
    likely = reading.prior.log_prior_nats(int(reading.rows[at]), int(reading.columns[at]), flipped)
    best = int(likely.argmax())
    return int(bits[best]), float(likely[best])


def _proposal(census: Countable, reading: Reading, at: int, threshold: float) -> Iterator[Suspect]:
    bit, likely = _stories(census, reading, at)
    if likely - threshold >= CANDIDATE_NATS:
        yield _suspect(census, reading, at, bit, "lonely-exponent", likely - threshold)


def _not_finite(census: Countable, reading: Reading, at: int, cost: float) -> Iterator[Suspect]:
    bit, likely = _stories(census, reading, at)
    rarest = -float(np.log(census.count))
    score = max(likely - rarest + _NOT_FINITE_NATS - cost, 0.0)
    plausible = likely > rarest - _PLAUSIBLE_NATS
    yield _suspect(census, reading, at, bit if plausible else None, "not-finite", score)


def _suspect(census: Countable, reading: Reading, at: int, bit: int | None, kind: str, score: float) -> Suspect:
    path, series, number = census.place(int(reading.rows[at]), int(reading.columns[at]))
    form = census.form
    index, bits = series.index(number), int(reading.bits[at])
    found, name = form.value(bits), series.span.name
    told = f"{name}[{', '.join(map(str, index))}] is {_short(found)}"
    which, field, offset = None, "", series.offset(number)
    correct: float | int | str | None = None
    words = f"{told}, and no single bit explains it"
    if bit is not None:
        which, field, offset = bit + series.first_bit, series.field(bit), series.offset(number, bit)
        correct = form.value(bits ^ (1 << bit))
        words = f"{told}; with bit {which} turned back {_short(correct)}, as its row and tensor let expect"
    return Suspect(Step.TRIAGE, kind, path, name, index, which, field, offset, form.item_bytes, found, correct, score, words)


def _short(value: float | int | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
