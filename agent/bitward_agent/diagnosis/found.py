"""What a search has found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Found:
    """An un-flip that the held-out text confirmed. Losses are means over the held-out items, in nats.

    ``prior_nats``: how much more usual the weight is with the bit turned back. ``evidence_nats``: what text and tensor say for it, less the
    logarithm of how many bits might have been chosen.
    """

    parameter: str
    element: int
    bit: int
    before: float
    after: float
    loss_before: float
    loss_after: float
    gain_z: float
    evidence_nats: float
    prior_nats: float
