"""What is said about serving a model with lost blocks, as frozen values: the document ``bitward.serving/1``."""

from __future__ import annotations

from enum import StrEnum

from bitward_agent.findings import ExitCode
from bitward_formats.frozen import dataclass

NEGLIGIBLE_SHARE = 0.002
"""A loss that rises by less than this share is lost in the noise of another rounding or another text; 3 nats per token by 0.006, the
perplexity by 0.6 %."""
DEGRADED_SHARE = 0.02
"""By more than this share of the loss nobody should be served: 3 nats per token by 0.06, the perplexity by 6 %, a smaller model's."""


class ServingVerdict(StrEnum):
    """``negligible``: serve on. ``degraded``: serve if you must, and restore. ``stop``: what it says is not what the model would say."""

    NEGLIGIBLE = "negligible"
    DEGRADED = "degraded"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class LostBlock:
    """One lost block. ``elements`` of its tensor lie in it; ``offset`` and ``length`` are bytes of the file.

    The first-order numbers are nats by item, from the gradient with the block neutral: ``expected`` for contents of random signs (the root
    of the summed squares), ``worst`` for the worst signs. They are ``None`` for a block that is no part of the model as it runs.
    """

    tensor: str
    block: int
    offset: int
    length: int
    elements: int
    first_order_expected: float | None
    first_order_worst: float | None
    message: str = ""


@dataclass(frozen=True, slots=True)
class ServingReport:
    """``loss_now`` is that of the model as it is; ``loss_neutral`` with the lost contents set to what is usual in the middle (zero, for
    most weights); ``loss_clean`` the estimate for the model with the right contents. Changes are against that estimate, in nats by item;
    ``standard_error`` is the estimate's. ``worst_change`` is the largest that any tried contents made. ``None``: no finite number.

    ``verdict`` is about serving it as it is, ``verdict_neutral`` about serving it with the lost contents made neutral.
    """

    model: str
    verdict: ServingVerdict
    verdict_neutral: ServingVerdict
    blocks: tuple[LostBlock, ...]
    loss_now: float | None
    loss_neutral: float | None
    loss_clean: float | None
    expected_change: float | None
    neutral_change: float | None
    worst_change: float | None
    standard_error: float | None
    samples: int
    words: tuple[str, ...]
    seconds: float
    negligible_share: float = NEGLIGIBLE_SHARE
    degraded_share: float = DEGRADED_SHARE
    schema: str = "bitward.serving/1"

    @property
    def exit_code(self) -> int:
        """For scripts: 0 serve on, 1 degraded, 4 stop."""
        codes = {ServingVerdict.NEGLIGIBLE: ExitCode.OK, ServingVerdict.DEGRADED: ExitCode.REPAIRABLE}
        return codes.get(self.verdict, ExitCode.NOT_REPAIRABLE)
