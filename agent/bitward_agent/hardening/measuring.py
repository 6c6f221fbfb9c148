"""Perplexity and accuracy of a model whose weights are exchanged from files, without loading it anew.

- *perplexity*: exp of the mean loss per token, for models with a head, over windows of 256 tokens;
- *accuracy*: the share of tokens that the model ranks first; for encoders the share of passages whose neighbour in the text is found
  among 15 others, or with labelled texts that of a classifier (``labelled``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bitward_agent.diagnosis.objectives import TokenBatch, causal_loss, masked_loss, passage_loss
from bitward_agent.diagnosis.placing import Place
from bitward_agent.diagnosis.subject import ModelError, Subject, load_subject
from bitward_agent.errors import InputError
from bitward_agent.io import OpenFile

WINDOW_TOKENS = 256
METRICS = ("perplexity", "accuracy")


class ModelMeasure:
    """A loaded model, its text in batches, and one metric. See ``campaign.Measure``."""

    def __init__(self, source: str, text: str, *, metric: str = "perplexity", text_name: str = "", max_tokens: int = 1024) -> None:
        """Load the model.

        Raises:
            InputError: There is no such model or metric, or the text is too short.
            ModelError: It cannot be loaded or run, or none of its parameters lies in its files as it is.
        """
        if metric not in METRICS:
            raise InputError(f"no metric {metric!r}; there are {', '.join(METRICS)}")
        self.subject = load_subject(source, text, max_tokens=max_tokens)
        if not self.subject.places:
            raise ModelError(f"{source}: no parameter lies in a file as it is in the model: flips in files could not be followed")
        if metric == "perplexity" and self.subject.loss is passage_loss:
            raise InputError(f"{source}: an encoder without a head has no perplexity; ask for accuracy")
        self.metric, self.text = metric, text_name
        self.more_is_better = metric == "accuracy"
        self._batches = _windows(self.subject)

    @property
    def architecture(self) -> str:
        return self.subject.architecture

    @property
    def files(self) -> tuple[str, ...]:
        return self.subject.files

    @property
    def parameters(self) -> frozenset[str]:
        return frozenset(place.tensor for place in self.subject.places.values())

    @property
    def items(self) -> int:
        """Tokens of the text, or passages for encoders."""
        by_rows = self.subject.loss is passage_loss
        return sum(batch.rows if by_rows else int(batch.labels.numel()) for batch in self._batches)

    def value_of(self, files: Sequence[str]) -> float:
        """The metric with the weights of these files, which stand for ``self.files`` in the same order."""
        exchange_weights(self.subject, files)
        value: float = self.value()
        return value

    def value(self) -> float:
        """The metric with the weights that are in the model now."""
        with torch.no_grad():
            if self.metric == "accuracy":
                hits = torch.cat([hits_of(self.subject, batch) for batch in self._batches])
                return float(hits.float().mean())
            losses = torch.cat([self.subject.loss(self.subject.model, batch).double() for batch in self._batches])
            mean = float(losses.mean())
            return math.exp(mean) if mean < 700 else math.inf if mean == mean else math.nan


def exchange_weights(subject: Subject, files: Sequence[str]) -> None:
    """Fill the model's parameters from files that stand for ``subject.files``, in the same order.

    Raises:
        UnreadableError: A file cannot be read.
        ModelError: It is shorter than it was.
    """
    by_file: dict[str, list[tuple[str, Place]]] = {}
    for name, place in subject.places.items():
        by_file.setdefault(place.path, []).append((name, place))
    parameters = dict(subject.model.named_parameters())
    for original, path in zip(subject.files, files, strict=True):
        with OpenFile(path) as file:
            for name, place in by_file.get(original, ()):
                parameter = parameters[name].data
                length = parameter.numel() * parameter.element_size()
                data = bytearray(file.read(place.offset, length))
                if len(data) != length:
                    raise ModelError(f"{path}: ends within {place.tensor}")
                if length:
                    parameter.copy_(torch.frombuffer(data, dtype=parameter.dtype).view(parameter.shape))


def _windows(subject: Subject) -> list[TokenBatch]:
    """All batches of the subject; for causal models cut anew into longer windows, since a longer context is what they are used with."""
    batches = [subject.choosing, *subject.holdout]
    if subject.loss is not causal_loss:
        return batches
    stream = torch.cat([batch.labels.reshape(-1) for batch in batches])
    width = min(WINDOW_TOKENS, stream.numel())
    rows = stream[: stream.numel() // width * width].view(-1, width)
    return [TokenBatch({"input_ids": row[None], "attention_mask": torch.ones_like(row[None])}, row[None]) for row in rows]


def hits_of(subject: Subject, batch: TokenBatch) -> Tensor:
    """For each item whether it was ranked first: bool, 1-D."""
    if subject.loss is passage_loss:
        return _found_neighbours(subject, batch)
    logits = subject.model(**batch.inputs).logits
    if subject.loss is masked_loss:
        hidden = batch.labels >= 0
        return logits[hidden].argmax(-1) == batch.labels[hidden]
    return (logits[:, :-1].argmax(-1) == batch.labels[:, 1:]).reshape(-1)


def _found_neighbours(subject: Subject, batch: TokenBatch) -> Tensor:
    pooled = torch.nn.functional.normalize(pooled_states(subject, batch), dim=-1)
    similarity = pooled[0::2] @ pooled[1::2].T
    right = torch.arange(similarity.shape[0])
    return torch.cat([similarity.argmax(1) == right, similarity.argmax(0) == right])


def pooled_states(subject: Subject, batch: TokenBatch) -> Tensor:
    """Mean of the last hidden state over the tokens of each row: float32 [rows, width]."""
    hidden = subject.model(**batch.inputs).last_hidden_state.float()
    weight = batch.inputs["attention_mask"].unsqueeze(-1).float()
    return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)
