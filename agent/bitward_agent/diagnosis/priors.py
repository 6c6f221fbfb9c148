"""How likely a number is where it stands, before any model is run: from its row, its column and its tensor.

A number's magnitude is told in octaves (about log2) above what its row and column let expect: the row's median and the column's mean
deviation from it. Of a tensor's deviations a sample is counted; between the counts the logarithm of the probability is a straight line,
and beyond the last ones it falls on with the slope that the tail has. What the tail looks like comes from the data alone: large tensors
hold small numbers by chance (half as many with each octave), trained ones hold outliers, and quantised ones neither.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitward_agent.diagnosis.census import Census
from bitward_agent.diagnosis.series import Bits, FloatForm
from bitward_formats.frozen import dataclass

SAMPLE_ROWS = 64
"""Rows that are read for a tensor's prior."""
SAMPLE_LIMIT = 1 << 17
"""Most numbers of a sample, if rows are long."""
_COLUMN_ROWS = 16
"""Fewest sampled rows that tell a column's scale."""
_TAIL_OCTAVES = 4
_STEEPEST_UP = 8.0
_STEEPEST_DOWN = 1.0
"""A density that is not zero at zero halves with each octave down; nothing is taken to fall faster."""
_GENTLEST = 0.5

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Prior:
    """What a tensor's numbers are like. ``columns`` are octaves by place in the row, 0 where nothing is known of it.

    ``at`` and ``log_density`` are the knots (octaves of deviation, ln of the probability of that octave); beyond them it falls by ``fall_up``
    and ``fall_down`` nats per octave. ``count`` numbers are in the tensor.
    """

    form: FloatForm
    count: int
    columns: Floats
    at: Floats
    log_density: Floats
    fall_up: float
    fall_down: float

    def deviations(self, magnitudes: Bits, row_median: float | Floats, columns: npt.NDArray[np.intp]) -> Floats:
        """Octaves above what the row and the column let expect."""
        found: Floats = self.form.octaves(magnitudes) - row_median - self.columns[columns]
        return found

    def log_probability(self, deviations: Floats) -> Floats:
        """ln of the probability that a number deviates so, to the octave."""
        inside: Floats = np.interp(deviations, self.at, self.log_density)
        above = np.maximum(deviations - self.at[-1], 0.0) * self.fall_up
        below = np.maximum(self.at[0] - deviations, 0.0) * self.fall_down
        return inside - above - below


def row_median(values: Bits, form: FloatForm) -> float:
    """The median of a row's magnitudes, of those that are neither zero nor special, in octaves; of an empty row that of zero."""
    magnitudes = values & values.dtype.type(form.magnitude_mask)
    some = magnitudes[(magnitudes > 0) & ((magnitudes >> values.dtype.type(form.mantissa_bits)) < form.special)]
    return float(form.octaves(np.median(some))) if some.size else float(-form.bias)


def sample_rows(census: Census) -> npt.NDArray[np.intp]:
    """Which rows stand for all: evenly spread."""
    series = census.series
    number = min(SAMPLE_ROWS, max(1, SAMPLE_LIMIT // series.row_length), series.row_count)
    return np.linspace(0, series.row_count - 1, number).astype(np.intp)


def _steepness(deviations: Floats, weights: float, edge: float, direction: int) -> float:
    """How many times, as a power of two, the numbers beyond some deviation get fewer with each octave, up to the edge where one is left."""
    beyond = [
        max(1.0, float((direction * (deviations - edge) >= -octaves).sum()) * weights) for octaves in range(1, _TAIL_OCTAVES + 1)
    ]
    return min(float(np.log2((some + 1) / 2)) / octaves for octaves, some in enumerate(beyond, 1))


def make_prior(census: Census, sampled: list[tuple[Bits, float]], extremes: Floats, low: float, high: float, columns: Floats) -> Prior:
    """A prior from sampled rows (values, their median), with the tensor's ends that count as its own: deviations from ``low`` to ``high``.

    ``extremes`` are deviations of further numbers near the ends, each counted once.
    """
    form, count = census.series.form, census.series.count
    parts = []
    for values, median in sampled:
        magnitudes = values & values.dtype.type(form.magnitude_mask)
        kept = (magnitudes > 0) & ((magnitudes >> values.dtype.type(form.mantissa_bits)) < form.special)
        parts.append((form.octaves(magnitudes) - median - columns[: magnitudes.size])[kept])
    found = np.concatenate(parts) if parts else np.zeros(0)
    found = found[(found >= low) & (found <= high)]
    if not found.size:
        found = np.zeros(1)
    bins = np.floor(found).astype(np.int64)
    base = int(bins.min())
    counted = np.bincount(bins - base)
    filled = np.flatnonzero(counted)
    at = filled + base + 0.5
    log_density = np.log(counted[filled] / found.size)
    rarest = -np.log(max(count, 2))
    # The ends of the tensor itself: one number of all is there.
    at = np.concatenate(([min(low, at[0] - 0.5)], at, [max(high, at[-1] + 0.5)]))
    log_density = np.concatenate(([rarest], log_density, [rarest]))
    scaled = count / found.size
    fall_up = max(_steepness(found, scaled, high, 1), 0.0)
    fall_down = max(_steepness(found, scaled, low, -1), 0.0)
    if extremes.size:
        fall_up = min(fall_up, _steepness(np.concatenate((found, extremes)), 1.0, high, 1)) if found.size >= count else fall_up
    fall_up = float(np.clip(fall_up, _GENTLEST, _STEEPEST_UP)) * float(np.log(2))
    fall_down = float(np.clip(fall_down, _GENTLEST, _STEEPEST_DOWN)) * float(np.log(2))
    return Prior(form, count, columns, at, log_density, fall_up, fall_down)


def column_scales(census: Census, sampled: list[tuple[Bits, float]]) -> Floats:
    """The mean deviation of each place in the row, where enough rows were sampled; else 0."""
    length, form = census.series.row_length, census.series.form
    whole = [(values, median) for values, median in sampled if values.size == length]
    if len(whole) < _COLUMN_ROWS:
        return np.zeros(length)
    grid = np.stack([values for values, _ in whole])
    magnitudes = grid & grid.dtype.type(form.magnitude_mask)
    octaves = form.octaves(magnitudes) - np.array([median for _, median in whole])[:, None]
    return np.asarray(np.median(octaves, axis=0), np.float64)
