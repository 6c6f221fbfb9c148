"""Self-correction: fine-tuning that makes a model agree with itself under bit flips. The second of FlipGuard's two measures.

In each step fresh random flips hit the weights in training, as they would be after the exponent guard (the top exponent bit set back,
values clipped). The loss is the divergence of what the hurt model says from what the model said before, plus that of the unhurt weights
in training, so that the model stays the one it was. The flips are constants to the gradient: it flows through the unhurt weights.

Chen et al. (EMNLP 2025) name the mechanism; the loss, the term that holds the model and the optimiser are choices made here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bitward_agent.diagnosis.objectives import TokenBatch, passage_loss
from bitward_agent.diagnosis.subject import ModelError, Subject
from bitward_agent.diagnosis.tensor_bits import FORMS
from bitward_agent.errors import InputError
from bitward_agent.hardening.adapters import DEFAULT_RANK, Full, LowRank, Trained
from bitward_formats.frozen import dataclass

WAYS = ("lora", "full")
STEPS_LIMIT = 1_000_000
_JUDGING_SEEDS = 3
_TASK_ALLOWANCE = 1.01
"""The task's own loss may rise by so much; else the fine-tuning is not accepted."""
_LEARNING_RATES = {"lora": 1e-4, "full": 1e-5}


@dataclass(frozen=True, slots=True)
class TuningRequest:
    """``rate`` is the share of parameters that get a flipped bit in each step. ``learning_rate`` 0 means the usual one of the way."""

    steps: int
    way: str = "lora"
    rate: float = 0.001
    rank: int = DEFAULT_RANK
    learning_rate: float = 0.0
    seed: int = 1

    def check(self) -> None:
        """Raises InputError if something of it makes no sense."""
        if not 1 <= self.steps <= STEPS_LIMIT:
            raise InputError(f"the number of steps must be 1 to {STEPS_LIMIT:,}")
        if self.way not in WAYS:
            raise InputError(f"no way {self.way!r}; there are {', '.join(WAYS)}")
        if not 0 < self.rate <= 1 or not 1 <= self.rank <= 1024 or not 0 <= self.learning_rate < 1:
            raise InputError("the rate must be above 0 and at most 1, the rank 1 to 1,024, the learning rate below 1")


@dataclass(frozen=True, slots=True)
class TuningReport:
    """``divergence_*``: how far the model under flips is from itself before, in nats per token (for encoders a relative squared distance),
    on text that was not trained on and the same flips before and after. ``loss_*``: the task's loss without flips, on that text.

    ``skipped`` steps had a loss that was not finite. Not ``accepted``: it did not help, or harmed the task; the weights stay as they were.
    """

    steps: int
    skipped: int
    way: str
    rate: float
    seed: int
    trained_numbers: int
    changed_elements: int
    divergence_before: float
    divergence_after: float
    loss_before: float
    loss_after: float
    accepted: bool


@dataclass(frozen=True, slots=True)
class Tuned:
    """``weights`` are the new values by parameter name, in the model's dtype; empty if they were not accepted."""

    report: TuningReport
    weights: Mapping[str, Tensor]


def tune(subject: Subject, request: TuningRequest, tell: Callable[[int, float], None] | None = None) -> Tuned:
    """Fine-tune. The model itself is not changed. ``tell`` hears of each step and its loss.

    Raises:
        InputError: What was asked makes no sense, or the model's loss is no number to begin with.
        ModelError: It cannot be trained: no weights of floats, or no step gave a finite loss.
    """
    request.check()
    return _Tuning(subject, request).run(tell)


class _Tuning:
    def __init__(self, subject: Subject, request: TuningRequest) -> None:
        self._subject, self._request = subject, request
        self._generator = torch.Generator().manual_seed(request.seed)
        model = subject.model
        model.requires_grad_(False)
        self._base = {name: one for name, one in model.named_parameters() if name in subject.places and one.dtype in FORMS and one.numel()}
        if not self._base:
            raise ModelError(f"{subject.source}: no weights of floats that lie in its files as they are")
        self._judged = subject.holdout[-1]
        self._batches = [subject.choosing, *subject.holdout[:-1]]
        self._divergence = relative_distance if subject.loss is passage_loss else kl_divergence

    def run(self, tell: Callable[[int, float], None] | None) -> Tuned:
        """All steps, and the judgement."""
        loss_before = self._task_loss({})
        if not math.isfinite(loss_before):
            raise InputError(f"{self._subject.source}: its loss is {loss_before} before any fault; 'bitward diagnose' looks for the cause")
        divergence_before = self._judgement({})
        request = self._request
        trained: Trained
        trained = LowRank(self._subject.model, self._base, request.rank, self._generator) if request.way == "lora" else Full(self._base)
        skipped = self._train(trained, tell)
        with torch.no_grad():
            weights = trained.weights()
        after, loss_after = self._judgement(weights), self._task_loss(weights)
        accepted = after < divergence_before and loss_after <= max(loss_before * _TASK_ALLOWANCE, loss_before + 0.01)
        changed = sum(int((one != self._base[name]).sum()) for name, one in weights.items())
        report = TuningReport(
            steps=request.steps,
            skipped=skipped,
            way=request.way,
            rate=request.rate,
            seed=request.seed,
            trained_numbers=sum(one.numel() for one in trained.numbers()),
            changed_elements=changed if accepted else 0,
            divergence_before=divergence_before,
            divergence_after=after,
            loss_before=loss_before,
            loss_after=loss_after,
            accepted=accepted,
        )
        return Tuned(report, weights if accepted else {})

    def _train(self, trained: Trained, tell: Callable[[int, float], None] | None) -> int:
        request = self._request
        numbers = trained.numbers()
        optimiser = torch.optim.AdamW(numbers, lr=request.learning_rate or _LEARNING_RATES[request.way], weight_decay=0.0)
        skipped = 0
        for step in range(request.steps):
            batch = self._batches[step % len(self._batches)]
            said = self._says({}, batch)
            optimiser.zero_grad()
            with torch.enable_grad():
                weights = trained.weights()
                hurt = self._hurt(weights, self._generator)
                loss = self._divergence(said, self._says(hurt, batch)) + self._divergence(said, self._says(weights, batch))
                if not torch.isfinite(loss):
                    skipped += 1
                    continue
                loss.backward()
            torch.nn.utils.clip_grad_norm_(numbers, 1.0)
            optimiser.step()
            if tell:
                tell(step, float(loss.detach()))
        if skipped == request.steps:
            raise ModelError(f"{self._subject.source}: no step gave a finite loss; a smaller rate of flips may help")
        return skipped

    def _hurt(self, weights: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """All weights of the model with fresh flips, those in training with their gradients."""
        return {name: with_flips(weights.get(name, one), self._request.rate, generator) for name, one in self._base.items()}

    def _says(self, weights: Mapping[str, Tensor], batch: TokenBatch) -> Tensor:
        """Logits or the last hidden state with these weights in place of the model's."""
        with torch.set_grad_enabled(any(one.requires_grad for one in weights.values())):
            output: Any = functional_call(self._subject.model, dict(weights), (), dict(batch.inputs))
        logits: Tensor | None = getattr(output, "logits", None)
        return (output.last_hidden_state if logits is None else logits).float()

    def _judgement(self, weights: Mapping[str, Tensor]) -> float:
        """The mean divergence under the same few sets of flips, whatever the weights are."""
        with torch.no_grad():
            said = self._says({}, self._judged)
            total = 0.0
            for number in range(_JUDGING_SEEDS):
                generator = torch.Generator().manual_seed(self._request.seed + 1_000_003 * (number + 1))
                total += float(self._divergence(said, self._says(self._hurt(weights, generator), self._judged)))
            return total / _JUDGING_SEEDS

    def _task_loss(self, weights: Mapping[str, Tensor]) -> float:
        def model(**inputs: Any) -> Any:
            """As the losses call a model."""
            return functional_call(self._subject.model, dict(weights), (), inputs)

        with torch.no_grad():
            return float(self._subject.loss(cast(nn.Module, model), self._judged).float().mean())


def with_flips(weight: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """A copy with a random bit turned in about ``rate`` of the elements, as the exponent guard would leave it.

    Flips of the top exponent bit come to nothing; others are clipped to the range of the weight. Gradients flow as through ``weight``.
    """
    form = FORMS[weight.dtype]
    flat = weight.detach().reshape(-1)
    count = int(torch.poisson(torch.tensor(float(rate * flat.numel())), generator=generator))
    places = torch.randint(flat.numel(), (count,), generator=generator).unique()
    if not places.numel():
        return weight
    bits = torch.randint(form.bits, places.shape, generator=generator)
    values = flat[places]
    masks = torch.tensor([form.mask(bit) for bit in range(form.bits)], dtype=form.integer)
    turned = (values.view(form.integer) ^ masks[bits]).view(weight.dtype)
    turned = torch.where(bits == form.bits - 2, values, turned)
    turned = torch.nan_to_num(turned.float(), 0.0).clamp(float(flat.min()), float(flat.max()))
    change = torch.zeros_like(flat)
    change[places] = (turned - values.float()).to(weight.dtype)
    return weight + change.view(weight.shape)


def kl_divergence(said: Tensor, says: Tensor) -> Tensor:
    """KL(said ‖ says) of logits, in nats per token."""
    expected, found = said.log_softmax(-1), says.log_softmax(-1)
    return (expected.exp() * (expected - found)).sum(-1).mean()


def relative_distance(said: Tensor, says: Tensor) -> Tensor:
    """The squared distance of hidden states relative to their squared length."""
    return (says - said).square().mean() / said.square().mean().clamp(min=1e-12)
