"""A fault campaign from what a user asks: the model is loaded, the faults and defences are run, and the report comes back.

Needs torch and transformers (extra ``bitward[diagnose]``); both are imported here and not before.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import field
from pathlib import Path

from bitward_agent.errors import BitwardError, InputError
from bitward_agent.hardening.campaign import CampaignRequest, Measure, run_campaign
from bitward_agent.hardening.campaign_facts import CampaignReport, TrialResult
from bitward_agent.hardening.defences import Defence
from bitward_agent.hardening.faults import Component, FaultKind, FaultLevel
from bitward_formats.frozen import dataclass


@dataclass(frozen=True, slots=True)
class CampaignOrder:
    """What a user asks. ``rates`` are shares of parameters, ``bers`` of bits, ``targeted`` numbers of bits. Paths may be ``None``."""

    model: str
    rates: tuple[float, ...] = ()
    bers: tuple[float, ...] = ()
    targeted: tuple[int, ...] = ()
    defences: tuple[str, ...] = field(default_factory=lambda: tuple(Defence))
    component: str = ""
    trials: int = 3
    seed: int = 1
    metric: str = "perplexity"
    calibration: str | None = None
    labels: str | None = None
    max_tokens: int = 1024
    jobs: int | None = None

    @property
    def levels(self) -> tuple[FaultLevel, ...]:
        kinds = ((FaultKind.RATE, self.rates), (FaultKind.BER, self.bers), (FaultKind.TARGETED, self.targeted))
        return tuple(FaultLevel(kind, amount) for kind, amounts in kinds for amount in dict.fromkeys(amounts))


def campaign(order: CampaignOrder, tell: Callable[[TrialResult], None] | None = None) -> CampaignReport:
    """Run a campaign; see :func:`bitward_agent.hardening.campaign.run_campaign`.

    Raises:
        InputError: What was asked makes no sense.
        BitwardError: The model cannot be loaded or run, or files cannot be read or written.
    """
    request = CampaignRequest(
        model=order.model,
        levels=order.levels,
        defences=tuple(Defence(one) for one in dict.fromkeys(order.defences)),
        trials=order.trials,
        seed=order.seed,
        component=order.component,
    )
    request.check()
    if not os.path.isdir(order.model):
        raise InputError(f"{order.model}: no such directory; a campaign needs a model's directory with its files")
    try:
        import torch

        from bitward_agent.diagnosis.calibration import OWN_TEXT, calibration_text
        from bitward_agent.diagnosis.subject import told_as_model_error
        from bitward_agent.hardening.labelled import LabelledMeasure, read_labelled
        from bitward_agent.hardening.measuring import ModelMeasure
        from bitward_agent.hardening.targets import worst_flips
    except ImportError as error:
        raise BitwardError("a campaign runs the model: pip install 'bitward[diagnose]'") from error
    if order.jobs is not None:
        torch.set_num_threads(order.jobs)
    text = calibration_text(None if order.calibration is None else Path(order.calibration))
    measure: Measure
    with told_as_model_error(order.model):
        if order.labels is not None:
            if order.metric != "accuracy":
                raise InputError("--labels is for --metric accuracy")
            model = LabelledMeasure(order.model, read_labelled(Path(order.labels)), text, text_name=os.path.basename(order.labels))
            measure, subject = model, model.subject
        else:
            name = OWN_TEXT if order.calibration is None else os.path.basename(order.calibration)
            plain = ModelMeasure(order.model, text, metric=order.metric, text_name=name, max_tokens=order.max_tokens)
            measure, subject = plain, plain.subject
        if order.targeted:
            wanted = int(max(order.targeted)) * order.trials
            targets = tuple(worst_flips(subject, wanted, Component(order.component, measure.parameters)))
            request = CampaignRequest(
                request.model, request.levels, request.defences, request.trials, request.seed, request.component, targets
            )
        return run_campaign(request, measure, tell)
