"""Un-flips that stand where others should, looked at again when nothing more is found.

Where there are several faults the first of them are weighed in a model that is still wrong elsewhere, and another bit of the same weight
may have done better then. And one weight of a norm may make up for a fault, or for two, of the channel that it scales; once it is turned
the fault itself wins too little to be seen. So each un-flip is taken back once more, and its weight and its block are searched for what
could stand in its place. What text and tensors say of the two models decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from bitward_agent.diagnosis.bars import PRIOR_LIMIT_NATS, TEXT_WEIGHT
from bitward_agent.diagnosis.found import Found

_BEYOND_DOUBT_NATS = 8.0
"""Where an un-flip makes its weight so much more usual its block is not searched, which takes as long as half a round."""
_LEAST_GAIN_NATS = 2.0
_BLOCK_ROUNDS_LIMIT = 3
"""Where several faults were found. A single one takes minutes as it is, and seldom hides two."""


class Search(Protocol):
    """What is asked of the search."""

    def turn(self, name: str, element: int, bit: int) -> None:
        """Turn a bit of the model for good."""

    def weight_round(self, one: Found, /) -> list[Found]:
        """Weigh all bits of a weight; the one that is confirmed is turned in the model."""

    def block_round(self, one: Found, /) -> list[Found]:
        """A round in the block of a weight, which is not to be turned itself; what is confirmed is turned in the model."""

    def held_out(self) -> Tensor:
        """The loss of each held-out item for the model as it is now."""

    def look_elsewhere_nats(self) -> float:
        """The logarithm of how many bits might have been chosen: what each un-flip has to be worth."""


def settled(search: Search, found: list[Found], stop: Callable[[], bool]) -> list[Found]:
    """The un-flips, with others in the place of those that turn out to be stand-ins. The model is changed accordingly."""
    for one in found:
        rounds: list[tuple[Callable[[Found], list[Found]], int]] = [(search.weight_round, 1)] if len(found) > 1 else []
        if one.prior_nats < _BEYOND_DOUBT_NATS:
            rounds.append((search.block_round, _BLOCK_ROUNDS_LIMIT if len(found) > 1 else 1))
        for round_of, limit in rounds:
            if stop():
                return found
            instead = _instead(search, one, round_of, limit)
            if instead:
                found = [*(other for other in found if other is not one), *instead]
                break
    return found


def _instead(search: Search, one: Found, round_of: Callable[[Found], list[Found]], limit: int) -> list[Found]:
    """What explains more than an un-flip does: found by a few rounds without it, and turned in its place. Nothing: all is as it was."""
    before = float(search.held_out().sum())
    _turn_all(search, [one])
    instead: list[Found] = []
    for _ in range(limit):
        new = round_of(one)
        instead += new
        if not new or [_bit(other) for other in instead] == [_bit(one)]:
            break
        text_nats = before - float(search.held_out().sum())
        if TEXT_WEIGHT * text_nats + _worth(search, instead) - _worth(search, [one]) > _LEAST_GAIN_NATS:
            return instead
    _turn_all(search, [*instead, one])
    return []


def _worth(search: Search, found: Sequence[Found]) -> float:
    """What tensors say for un-flips, in nats, less what their number makes likely by chance."""
    return sum(min(one.prior_nats, PRIOR_LIMIT_NATS) - search.look_elsewhere_nats() for one in found)


def _bit(one: Found) -> tuple[str, int, int]:
    return one.parameter, one.element, one.bit


def _turn_all(search: Search, found: Sequence[Found]) -> None:
    for one in found:
        search.turn(one.parameter, one.element, one.bit)
