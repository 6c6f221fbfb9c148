"""Vectors of the same name in all layers, laid over one another: each number is held against those at its place in the other layers.

A norm's weight or a bias has too few numbers for a census of its own, and its outliers are as good as its rest; but in most models the same
places stand out in every layer. Such a stack is counted like a tensor: its rows are the layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from bitward_agent.diagnosis.census import Census
from bitward_agent.diagnosis.series import Bits, Series

LAYERS_LEAST = 4
"""Fewer layers have no usual number at a place."""
LENGTH_LIMIT = 1 << 16
_NUMBER = re.compile(r"\d+")


class Stack:
    """Vectors of one form and length as the rows of a tensor."""

    def __init__(self, members: list[Census]) -> None:
        self._members = members
        self.form = members[0].form
        self.row_length = members[0].row_length
        self.count = len(members) * self.row_length
        self.column_rows = LAYERS_LEAST
        self.exponents: npt.NDArray[np.int64] = np.sum([one.exponents for one in members], axis=0)
        self.top: Bits = np.concatenate([one.top for one in members])
        self.low: Bits = np.concatenate([one.low for one in members])
        self.usual: npt.NDArray[np.float32] = np.concatenate([one.usual for one in members])

    def place(self, row: int, column: int) -> tuple[str, Series, int]:
        """Where a number is: (file, series, number in it)."""
        return self._members[row].place(0, column)

    def read_row(self, row: int) -> Bits:
        """One of the vectors as bits."""
        return self._members[row].read_row(0)


def is_vector(census: Census) -> bool:
    """Whether a series is worth keeping for ``stacks``."""
    return census.top.size == 1 and census.count <= LENGTH_LIMIT


def stacks(vectors: Iterable[Census]) -> Iterator[Stack]:
    """The stacks that vectors make: by their names without numbers, their types and their lengths."""
    families: dict[tuple[str, str, int, int], list[Census]] = {}
    for one in vectors:
        name = _NUMBER.sub("#", one.series.span.name)
        families.setdefault((name, one.series.span.dtype, one.series.at, one.count), []).append(one)
    for members in families.values():
        if len(members) >= LAYERS_LEAST:
            yield Stack(members)
