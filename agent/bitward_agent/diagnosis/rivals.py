"""Un-flips that stand where others should: one weight of a norm may make up for a fault, or for two, of the channel that it scales.

Once it is turned the fault itself wins little, and nothing more is found. So each un-flip that does not look wrong by itself is taken back
at the end, its block is searched for what could stand in its place, and the better of the two models stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from bitward_agent.diagnosis.bars import LEAST_GAIN_SHARE
from bitward_agent.diagnosis.found import Found

_BEYOND_DOUBT_NATS = 8.0
"""An un-flip that makes its weight so much more usual is not doubted: each doubt costs a search of a block."""
_ROUNDS_LIMIT = 3


class Search(Protocol):
    """What is asked of the search."""

    def turn(self, name: str, element: int, bit: int) -> None:
        """Turn a bit of the model for good."""

    def likelier_nats(self, name: str, element: int, bit: int) -> float:
        """How much more usual turning a bit would make its weight."""

    def block_round(self, beside: Found) -> list[Found]:
        """A round in the block of a weight, which is not to be turned itself; what is confirmed is turned in the model."""

    def held_out(self) -> Tensor:
        """The loss of each held-out item for the model as it is now."""


def settled(search: Search, found: list[Found], stop: Callable[[], bool]) -> list[Found]:
    """The un-flips, with others in the place of those that turn out to be stand-ins. The model is changed accordingly."""
    for one in found:
        if stop():
            break
        before = float(search.held_out().mean())
        _turn_all(search, [one])
        instead = [] if search.likelier_nats(one.parameter, one.element, one.bit) >= _BEYOND_DOUBT_NATS else _in_place_of(search, one)
        if instead and float(search.held_out().mean()) < before * (1 - LEAST_GAIN_SHARE / 2):
            found = [*(other for other in found if other is not one), *instead]
        else:
            _turn_all(search, [*instead, one])
    return found


def _in_place_of(search: Search, one: Found) -> list[Found]:
    instead: list[Found] = []
    for _ in range(_ROUNDS_LIMIT):
        new = search.block_round(one)
        if not new:
            break
        instead += new
    return instead


def _turn_all(search: Search, found: list[Found]) -> None:
    for one in found:
        search.turn(one.parameter, one.element, one.bit)
