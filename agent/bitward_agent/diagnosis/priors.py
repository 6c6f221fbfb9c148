"""How likely a number is where it stands, before any model is run: from its row, its column and its tensor.

A number's magnitude is told in octaves (about log2) above what its row and column let expect: the mean of the row, and the mean by which
numbers at this place of sampled rows deviate from theirs. Of a tensor's deviations a sample is counted; between the counts the logarithm of
the probability is a straight line, and beyond the last ones it falls on as steeply as the tail ends. What the tail is like comes from the
data alone: large tensors hold small numbers by chance (half as many with each octave), trained ones hold outliers, quantised ones neither.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitward_agent.diagnosis.census import Countable
from bitward_agent.diagnosis.series import Bits, FloatForm
from bitward_formats.frozen import dataclass

SAMPLE_ROWS = 32
"""Rows that are read for a tensor's prior."""
SAMPLE_LIMIT = 1 << 16
"""Most numbers of a sample, if rows are long; at least one row is read."""
_DEAD_ROW_OCTAVES = 4.0
"""A row that lies further below its tensor has no scale of its own: units that training has put to sleep hold noise of any size."""
_STEEPEST_UP = 20.0
_STEEPEST_DOWN = 1.0
_GENTLEST_UP = 2.0
_GENTLEST_DOWN = 0.5
"""Powers of two per octave. A density that is not zero at zero halves with each octave down; nothing is taken to fall faster. Upwards one
outlier at the end of a tensor hides how its tail falls: then as in real models, where one tensor in 25 has a gap of an octave or more above
its next number, and one in 150 of three."""

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Scales:
    """What a number of a series is held against: octaves for each ``rows`` (all of the tensor's) and for each place in a row, added."""

    form: FloatForm
    rows: Floats
    columns: Floats

    def deviations(self, octaves: Floats, rows: Rows | int, columns: Rows | int) -> Floats:
        """Octaves above what the row and the column let expect; the three are broadcast."""
        return np.asarray(octaves - self.rows[rows] - self.columns[columns], np.float64)


@dataclass(frozen=True, slots=True)
class Prior:
    """How deviations are distributed in a tensor.

    ``at`` and ``log_density`` are the knots (octaves of deviation, ln of the probability of that octave); beyond them it falls by
    ``fall_up`` and ``fall_down`` nats per octave.
    """

    scales: Scales
    at: Floats
    log_density: Floats
    fall_up: float
    fall_down: float

    def log_probability(self, deviations: Floats) -> Floats:
        """ln of the probability that a number deviates so, to the octave."""
        inside = np.interp(deviations, self.at, self.log_density)
        above = np.maximum(deviations - self.at[-1], 0.0) * self.fall_up
        below = np.maximum(self.at[0] - deviations, 0.0) * self.fall_down
        return np.asarray(inside - above - below, np.float64)

    def log_prior_nats(self, row: int, column: int, magnitudes: Bits) -> Floats:
        """ln of the probability of some magnitudes (as bits) at one place; what is not finite is impossible."""
        form = self.scales.form
        found = self.log_probability(self.scales.deviations(form.octaves(magnitudes), row, column))
        return np.where((magnitudes >> magnitudes.dtype.type(form.mantissa_bits)) >= form.special, -np.inf, found)


def sample_rows(census: Countable) -> Rows:
    """Which rows stand for all: evenly spread."""
    rows = census.top.size
    number = min(SAMPLE_ROWS, max(1, SAMPLE_LIMIT // census.row_length), rows)
    return np.linspace(0, rows - 1, number).astype(np.intp)


def read_rows(census: Countable, rows: Rows) -> Bits:
    """Rows as bits; where the last one is short, zeros follow."""
    grid = np.zeros((rows.size, census.row_length), np.dtype(f"=u{census.form.item_bytes}"))
    for at, row in enumerate(rows):
        values = census.read_row(int(row))
        grid[at, : values.size] = values
    return grid


def scales_of(census: Countable, rows: Rows, magnitudes: Bits) -> Scales:
    """The scales of a series, from its census and sampled rows (``magnitudes`` without signs)."""
    form = census.form
    usual = form.octaves(census.usual.astype(np.float64))
    usual = np.maximum(usual, np.median(usual) - _DEAD_ROW_OCTAVES)
    columns = np.zeros(census.row_length)
    if rows.size >= census.column_rows:
        columns = np.median(form.octaves(magnitudes) - usual[rows, None], axis=0)
        # Rows of zeros and special numbers say nothing of a column.
        columns = np.where(np.abs(columns) < form.bias // 2, columns, 0.0)
    return Scales(form, usual, columns)


def _steepness(beyond: float) -> float:
    """How steeply, as powers of two per octave, a tail ends that has so many numbers in the last octave before its end."""
    return float(np.log2((max(beyond, 1.0) + 1.0) / 2.0))


def make_prior(scales: Scales, count: int, sample: Floats, extremes: Floats, low: float, high: float) -> Prior:
    """A prior for a series of ``count`` numbers, whose own deviations reach from ``low`` to ``high``.

    ``sample`` are the deviations of sampled rows, ``extremes`` those of rows that reach furthest.
    """
    sample = sample[(sample >= low) & (sample <= high)]
    if not sample.size:
        sample = np.array([low, high])
    bins = np.floor(sample).astype(np.int64)
    base = int(bins.min())
    counted = np.bincount(bins - base)
    filled = np.flatnonzero(counted)
    at, log_density = filled + base + 0.5, np.log(counted[filled] / sample.size)
    # At its ends a tensor has one number: rarer than any octave of the sample, or the sample is all there is.
    rarest = -float(np.log(max(count, 2)))
    at = np.concatenate(([min(low, at[0] - 0.5)], at, [max(high, at[-1] + 0.5)]))
    log_density = np.concatenate(([rarest], log_density, [rarest]))
    scaled = count / sample.size
    up = max((sample > high - 1).sum() * scaled, (extremes > high - 1).sum())
    down = max((sample < low + 1).sum() * scaled, (extremes < low + 1).sum())
    fall_up = float(np.clip(_steepness(float(up)), _GENTLEST_UP, _STEEPEST_UP)) * float(np.log(2))
    fall_down = float(np.clip(_steepness(float(down)), _GENTLEST_DOWN, _STEEPEST_DOWN)) * float(np.log(2))
    return Prior(scales, np.asarray(at, np.float64), log_density, fall_up, fall_down)
