"""What an un-flip must win on held-out text before it is believed, for each kind of model."""

from __future__ import annotations

import math
from dataclasses import dataclass

TEXT_WEIGHT = 0.3
"""What a nat of the text counts between bits that would each do: training on other text left the weights somewhat beside what would be best
for this one."""
PRIOR_LIMIT_NATS = 25.0
"""What a tensor can say at most: dequantised and decayed weights can be next to zero in models without a fault."""
LEAST_GAIN_SHARE = 0.008
"""An un-flip must win this share of the held-out loss: in clean models the best of all bits wins less (docs/diagnosis.md)."""
LEAST_GAIN_Z = 2.5
"""…and so many standard errors of the mean difference by item."""


@dataclass(frozen=True, slots=True)
class Bar:
    """What an un-flip must win, as shares of the loss and in standard errors, and how much more usual it must make the weight, in nats."""

    gain_share: float
    gain_z: float
    prior_nats: float

    def passed(self, loss_before: float, loss_after: float, gain_z: float, prior_nats: float) -> bool:
        is_gain = loss_before - loss_after >= self.gain_share * loss_after and gain_z >= self.gain_z
        return is_gain and prior_nats >= self.prior_nats


_OWN_LOSS = Bar(LEAST_GAIN_SHARE, LEAST_GAIN_Z, -math.inf)
BEYOND = Bar(0.1, LEAST_GAIN_Z, -math.inf)
"""For a value beyond all others of its tensor: such were found that win 4 % for the text at hand and were never there."""
_STAND_IN = Bar(0.05, 4.0, 5.0)
"""For encoders: nobody trained them for the loss that stands in, so that weights can be found which are better for it but were never so."""
_LOST = (Bar(0.02, 4.0, 8.0), Bar(0.25, 4.0, -math.inf))
"""For language models that do little better than chance: either they are badly damaged, or the text is not what they were trained for, and
then many a change is a gain. What is turned must look wrong by itself, or be most of what is wrong."""
_LOST_SHARE_OF_CHANCE = 0.6


def bars_for(loss: float, *, is_stand_in: bool, chance_nats: float | None) -> tuple[Bar, ...]:
    """The bars of which one must be passed.

    Args:
        loss: nats per item, before the un-flip.
        is_stand_in: whether the loss is not the one that the model was trained for.
        chance_nats: the loss of one who knows nothing, or ``None`` where that is not known.
    """
    if is_stand_in:
        return (_STAND_IN,)
    return _LOST if chance_nats is not None and loss > _LOST_SHARE_OF_CHANCE * chance_nats else (_OWN_LOSS,)
