"""Priors for any weight of a model, looked up by name and place: what steps that propose weights ask before a loss decides.

A tensor's census is taken when it is first asked for, which reads it once; afterwards a look-up costs nothing but arithmetic. What is kept
are the scales of rows and columns of the tensors that were asked for last.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from bitward_agent.diagnosis.census import CensusTaker, Group
from bitward_agent.diagnosis.lonely import read_ends
from bitward_agent.diagnosis.priors import Floats, Prior
from bitward_agent.diagnosis.series import Series, series_of
from bitward_agent.errors import InputError
from bitward_agent.io import DISK, Disk, OpenFile, resolve
from bitward_agent.neighbours import layout_of_file
from bitward_formats.frozen import dataclass
from bitward_formats.spans import Layout

KEPT_TENSORS = 16
"""Tensors whose scales are kept: about 8 bytes for each row, and for each place in a row."""


@dataclass(frozen=True, slots=True)
class _Known:
    """``prior`` is None where a tensor is too small for one. ``log_zero`` is ln of the share of zeros, subnormal numbers among them."""

    row_length: int
    log_zero: float
    prior: Prior | None


class PriorLookup:
    """The files of a model, opened; use it as a context."""

    def __init__(self, paths: Sequence[Path | str], disk: Disk = DISK) -> None:
        """
        Raises:
            UnreadableError: a file cannot be read.
        """
        self._files: list[OpenFile] = []
        self._tensors: dict[str, tuple[OpenFile, Layout, Series]] = {}
        self._known: OrderedDict[str, _Known] = OrderedDict()
        try:
            for path in paths:
                file = OpenFile(resolve(os.fspath(path)), disk=disk)
                self._files.append(file)
                layout = layout_of_file(file, file.state().size)
                for series in series_of(layout):
                    if not series.is_scale:
                        self._tensors.setdefault(series.span.name, (file, layout, series))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()
        self._files.clear()

    def has(self, tensor: str) -> bool:
        """Whether a tensor of plain floating-point numbers has this name."""
        return tensor in self._tensors

    def log_prior_nats(self, tensor: str, places: npt.NDArray[np.integer], values: npt.NDArray[np.floating]) -> Floats:
        """ln of the probability, to the octave, that a number of such a magnitude stands at a place of a tensor.

        ``places`` count the elements in the order of the file (row-major for safetensors); ``values`` are what might stand there, the two
        are broadcast. What is not finite has the probability 0; in tensors too small for a census all else is equally likely.

        Raises:
            InputError: there is no such tensor of plain floating-point numbers, or no such place in it.
        """
        if tensor not in self._tensors:
            raise InputError(f"no tensor {tensor!r} of plain floating-point numbers in these files")
        series = self._tensors[tensor][2]
        at = np.asarray(places, np.int64)
        if at.size and not (int(at.min()) >= 0 and int(at.max()) < series.count):
            raise InputError(f"{tensor}: places go from 0 to {series.count - 1}")
        numbers = np.asarray(values, np.float64)
        finite = np.isfinite(numbers)
        octaves = octaves_of(np.where(finite, numbers, 0.0), series.form.bias)
        known = self._look_up(tensor)
        if known.prior is None:
            likely = np.zeros(np.broadcast_shapes(at.shape, numbers.shape))
        else:
            rows, columns = np.divmod(at, known.row_length)
            likely = known.prior.log_probability(known.prior.scales.deviations(octaves, rows, columns))
            likely = np.where(numbers == 0, known.log_zero, likely)
        return np.where(finite, likely, -np.inf)

    def _look_up(self, tensor: str) -> _Known:
        if tensor in self._known:
            self._known.move_to_end(tensor)
            return self._known[tensor]
        file, layout, series = self._tensors[tensor]
        found: list[_Known] = []

        def on_tensor(group: Group) -> None:
            census = group.censuses[0]
            reading = read_ends(census)
            log_zero = float(np.log((float(census.exponents[0]) + 0.5) / (census.count + 1.0)))
            found.append(_Known(series.row_length, log_zero, reading.prior if reading else None))

        CensusTaker(file, replace(layout, spans=(series.span,)), [series], on_tensor).run(1)
        self._known[tensor] = found[0]
        if len(self._known) > KEPT_TENSORS:
            self._known.popitem(last=False)
        return found[0]


def octaves_of(values: Floats, bias: int) -> Floats:
    """About log2 of magnitudes, exact at powers of two and straight between, as ``FloatForm.octaves`` of their bits; of zero ``-bias``."""
    fraction, exponent = np.frexp(np.abs(values))
    return np.where(fraction > 0, np.maximum(exponent - 2 + 2 * fraction, -float(bias)), -float(bias))
