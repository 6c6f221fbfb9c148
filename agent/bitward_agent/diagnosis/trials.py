"""Trying un-flips for real: turn a bit, run what comes after it, turn it back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from bitward_agent.diagnosis.objectives import Batch
from bitward_agent.diagnosis.pieces import BlockCall, Pieces
from bitward_agent.diagnosis.tensor_bits import flip_in_place


@contextmanager
def turned(parameter: nn.Parameter, element: int, bits: Sequence[int]) -> Iterator[None]:
    """Some bits of an element turned, and turned back afterwards, whatever happens."""
    for bit in bits:
        flip_in_place(parameter, element, bit)
    try:
        yield
    finally:
        for bit in bits:
            flip_in_place(parameter, element, bit)


class Trials:
    """Losses of a batch with single bits turned. Holds the hidden state before each block, so that only what follows a change runs.

    The hidden states are those of the model as it was when this was made.
    """

    def __init__(self, pieces: Pieces, parameters: Mapping[str, nn.Parameter], batch: Batch) -> None:
        self._pieces, self._parameters, self._batch = pieces, parameters, batch
        self._calls: list[BlockCall] = []
        if pieces.blocks:
            self._calls, self.losses = pieces.calls(batch)
        else:
            self.losses = pieces.losses(batch)

    def with_bits(self, name: str, element: int, bits: Sequence[int]) -> Tensor:
        """The loss of each item with ``bits`` of an element of the parameter ``name`` turned."""
        parameter = self._parameters[name]
        with turned(parameter, element, bits):
            number = self._pieces.block_of(parameter)
            if number is not None:
                return self._pieces.losses_from(number, self._calls[number], self._batch)
            if self._calls and name in self._pieces.after_blocks:
                last = len(self._calls) - 1
                return self._pieces.losses_from(last, self._calls[last], self._batch)
            return self._pieces.losses(self._batch)
