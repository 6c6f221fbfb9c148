"""A campaign: the same flips for every defence, trial by trial, and what each leaves of the model.

Works on copies in a temporary folder; the model's own files are only read. What is measured is the caller's (``Measure``), so that this
module needs no torch.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from bitward_agent.errors import InputError
from bitward_agent.hardening.campaign_facts import CampaignCell, CampaignReport, TrialResult
from bitward_agent.hardening.defences import Defence, Prepared, copy_files, defend, prepare, wrong_bits
from bitward_agent.hardening.faults import Component, FaultKind, FaultLevel, Injected, Target, inject
from bitward_formats.frozen import dataclass

TRIALS_LIMIT = 10_000
_COPIES = 3
"""The clean copy, the damaged one, and the one that a defence works on; sidecars and journals on top."""
_SPARE_SHARE = 1.5
_KIND_NUMBER = {FaultKind.RATE: 1, FaultKind.BER: 2, FaultKind.TARGETED: 3}


class Measure(Protocol):
    """What is measured of a model. ``parameters`` are the names of the tensors in ``files`` that it computes with."""

    @property
    def metric(self) -> str: ...

    @property
    def more_is_better(self) -> bool: ...

    @property
    def architecture(self) -> str: ...

    @property
    def text(self) -> str: ...

    @property
    def items(self) -> int: ...

    @property
    def files(self) -> tuple[str, ...]: ...

    @property
    def parameters(self) -> frozenset[str]: ...

    def value_of(self, files: Sequence[str]) -> float:
        """The metric with the weights of these files, which may not be finite."""


@dataclass(frozen=True, slots=True)
class CampaignRequest:
    """``levels`` × ``trials`` × ``defences``. ``targets`` are the bits for targeted levels, best first."""

    model: str
    levels: tuple[FaultLevel, ...]
    defences: tuple[Defence, ...]
    trials: int = 3
    seed: int = 1
    component: str = ""
    targets: tuple[Target, ...] = ()

    def check(self) -> None:
        """Raises InputError if something of it makes no sense."""
        if not self.levels or not self.defences:
            raise InputError("a campaign needs at least one fault level and one defence")
        if not 1 <= self.trials <= TRIALS_LIMIT:
            raise InputError(f"the number of trials must be 1 to {TRIALS_LIMIT:,}")
        for level in self.levels:
            level.check()


Tell = Callable[[TrialResult], None]


def run_campaign(request: CampaignRequest, measure: Measure, tell: Tell | None = None) -> CampaignReport:
    """Run all trials. ``tell`` hears of each result as it comes.

    Raises:
        InputError: Nothing can be hit, the metric of the clean model is no number, or there is no room for the copies.
        BitwardError: Files cannot be read or written.
    """
    request.check()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bitward-campaign-") as folder:
        _check_room(measure.files, folder)
        prepared = prepare(measure.files, folder)
        clean = measure.value_of(prepared.clean)
        if not math.isfinite(clean):
            raise InputError(f"{request.model}: its {measure.metric} is {clean} before any fault; 'bitward diagnose' looks for the cause")
        runner = _Runner(request, measure, prepared, clean)
        results = []
        for number, level in enumerate(request.levels):
            for trial in range(request.trials):
                for result in runner.trial(number, level, trial):
                    results.append(result)
                    if tell:
                        tell(result)
    hit = runner.injected
    assert hit is not None
    return CampaignReport(
        model=request.model,
        architecture=measure.architecture,
        metric=measure.metric,
        text=measure.text,
        items=measure.items,
        clean=clean,
        tensors=hit.tensors,
        parameters=hit.parameters,
        component=request.component,
        seed=request.seed,
        cells=tuple(_cells(request, results, more_is_better=measure.more_is_better)),
        trials=tuple(results),
        seconds=time.monotonic() - started,
    )


def _check_room(files: Sequence[str], folder: str) -> None:
    needed = int(sum(os.path.getsize(file) for file in files) * _COPIES * _SPARE_SHARE)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(f"not enough room in {tempfile.gettempdir()}: {needed >> 20:,} MiB needed, {free >> 20:,} MiB free; set TMPDIR")


class _Runner:
    """Runs one trial after the other in the same two folders."""

    def __init__(self, request: CampaignRequest, measure: Measure, prepared: Prepared, clean: float) -> None:
        self._request, self._measure, self._prepared, self._clean = request, measure, prepared, clean
        self._component = Component(request.component, measure.parameters)
        self.injected: Injected | None = None

    def trial(self, number: int, level: FaultLevel, trial: int) -> list[TrialResult]:
        """All defences on the same flips."""
        damaged_folder, work_folder = (os.path.join(self._prepared.folder, name) for name in ("damaged", "work"))
        damaged = copy_files(self._prepared.clean, damaged_folder)
        seed = (self._request.seed, _KIND_NUMBER[level.kind], number, trial)
        self.injected = hit = inject(damaged, level, self._component, seed, self._targets(level, trial))
        results = []
        for defence in self._request.defences:
            started = time.monotonic()
            files = defend(defence, damaged, self._prepared, work_folder)
            seconds = time.monotonic() - started
            left = wrong_bits(files, self._prepared.clean)
            value = self._measure.value_of(files) if left else self._clean  # the same bytes have the same value
            finite = value if math.isfinite(value) else None
            results.append(TrialResult(level.kind, level.amount, trial, defence, hit.flips, left, finite, seconds))
        return results

    def _targets(self, level: FaultLevel, trial: int) -> Sequence[Target]:
        """Each trial takes the next of the ranked bits."""
        if level.kind is not FaultKind.TARGETED:
            return ()
        count = int(level.amount)
        chosen = self._request.targets[trial * count : (trial + 1) * count]
        if len(chosen) < count:
            found = f"only {len(self._request.targets):,} bits were found whose flip should raise the loss"
            raise InputError(f"{found}: ask for fewer, or fewer trials")
        return chosen


def _cells(request: CampaignRequest, results: Sequence[TrialResult], *, more_is_better: bool) -> list[CampaignCell]:
    cells = []
    worst = -math.inf if more_is_better else math.inf
    for level in request.levels:
        for defence in request.defences:
            mine = [one for one in results if (one.fault, one.amount, one.defence) == (level.kind, level.amount, defence)]
            values = sorted(worst if one.value is None else one.value for one in mine)
            finite = [value for value in values if math.isfinite(value)]
            median = _middle(values)
            cells.append(
                CampaignCell(
                    fault=level.kind,
                    amount=level.amount,
                    defence=defence,
                    median=median if math.isfinite(median) else None,
                    lowest=finite[0] if finite else None,
                    highest=finite[-1] if finite else None,
                    not_finite=len(values) - len(finite),
                    trials=len(mine),
                    flips=int(_middle(sorted(one.flips for one in mine))),
                    wrong_bits=int(_middle(sorted(one.wrong_bits for one in mine))),
                )
            )
    return cells


def _middle(ordered: Sequence[float]) -> float:
    """The median of sorted values; of an even number the lower middle one, which is a value that was seen."""
    return ordered[(len(ordered) - 1) // 2]
