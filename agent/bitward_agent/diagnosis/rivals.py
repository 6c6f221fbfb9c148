"""Un-flips that stand where others should: one weight may make up for two faults of its neuron or channel.

Once it is turned neither of the faults wins enough any more, though each of them looks far more wrong by itself. So what is refused beside
an un-flip, and confirmed without it, is kept in mind; at the end the search goes on from there, and the better of the two models stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from bitward_agent.diagnosis.bars import LEAST_GAIN_SHARE
from bitward_agent.diagnosis.candidates import Candidate
from bitward_agent.diagnosis.found import Found

_MORE_UNUSUAL_NATS = 3.0
"""By so much what was refused must look more wrong than what was turned: each rival costs a round of the search or two."""


class Search(Protocol):
    """What is asked of the search."""

    def turn(self, name: str, element: int, bit: int) -> None:
        """Turn a bit of the model for good."""

    def confirmed(self, one: Candidate) -> Found | None:
        """What the held-out text says of turning a bit; ``None`` if it is not enough."""

    def held_out(self) -> Tensor:
        """The loss of each held-out item for the model as it is now."""


@dataclass(frozen=True, slots=True)
class _Rival:
    turned: Found
    instead: Candidate


class Rivals:
    """The rivals that a search has met. The model changes only by what :meth:`settled` returns."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._met: list[_Rival] = []

    def forget(self) -> None:
        """A new search begins."""
        self._met.clear()

    def note(self, refused: Sequence[Candidate], turned: Sequence[tuple[Found, float]]) -> None:
        """Keep in mind what was refused only because of something that was turned.

        ``turned``: the un-flips of the round, each with how much more usual, in nats, it made its weight.
        """
        for one in refused:
            for found, prior_nats in turned:
                if one.prior_nats >= prior_nats + _MORE_UNUSUAL_NATS and self._is_confirmed_without(found, one):
                    self._met.append(_Rival(found, one))
                    break

    def settled(self, found: list[Found], go_on: Callable[[], list[Found]]) -> list[Found]:
        """The un-flips, with rivals in the place of what had been turned where that wins more.

        ``go_on`` searches from the model as it is then, turns what it finds and returns it.
        """
        for rival in list(self._met):
            others = [one for one in found if one is not rival.turned]
            if len(others) < len(found):
                found = self._settled(rival, found, others, go_on)
        return found

    def _settled(self, rival: _Rival, found: list[Found], others: list[Found], go_on: Callable[[], list[Found]]) -> list[Found]:
        before = float(self._search.held_out().mean())
        self._turn(rival.turned)
        instead = self._search.confirmed(rival.instead)
        tried = [] if instead is None else [instead]
        self._turn(*tried)
        if tried:
            tried += go_on()
            if float(self._search.held_out().mean()) < before * (1 - LEAST_GAIN_SHARE / 2):
                return others + tried
        self._turn(*tried, rival.turned)
        return found

    def _is_confirmed_without(self, found: Found, one: Candidate) -> bool:
        self._turn(found)
        without = self._search.confirmed(one)
        self._turn(found)
        return without is not None

    def _turn(self, *found: Found) -> None:
        for one in found:
            self._search.turn(one.parameter, one.element, one.bit)
