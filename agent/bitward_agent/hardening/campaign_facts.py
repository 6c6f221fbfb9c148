"""What a campaign finds, as frozen values. Their fields are the JSON document of ``bitward campaign``."""

from __future__ import annotations

from bitward_formats.frozen import dataclass


@dataclass(frozen=True, slots=True)
class TrialResult:
    """One defence on one set of flips. ``value`` is the metric, ``None`` if it is not finite; ``wrong_bits`` is what the defence left
    wrong of the files, of ``flips`` bits that were turned."""

    fault: str
    amount: float
    trial: int
    defence: str
    flips: int
    wrong_bits: int
    value: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class CampaignCell:
    """All trials of one defence at one level. The median counts values that are not finite as the worst; ``None`` if it is one of them."""

    fault: str
    amount: float
    defence: str
    median: float | None
    lowest: float | None
    highest: float | None
    not_finite: int
    trials: int
    flips: int
    wrong_bits: int


@dataclass(frozen=True, slots=True)
class CampaignReport:
    """The document ``bitward.campaign/1``. ``clean`` is the metric of the model as it is; ``metric`` is perplexity (less is better) or
    accuracy (a share; more is better); ``parameters`` could be hit. ``flips`` and ``wrong_bits`` of cells are medians."""

    model: str
    architecture: str
    metric: str
    text: str
    items: int
    clean: float
    tensors: int
    parameters: int
    component: str
    seed: int
    cells: tuple[CampaignCell, ...]
    trials: tuple[TrialResult, ...]
    seconds: float
    notes: tuple[str, ...] = ()
    exit_code: int = 0
    schema: str = "bitward.campaign/1"
