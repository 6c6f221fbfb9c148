"""Accuracy on labelled texts: an encoder's embeddings and a classifier that is fitted on the clean model and stays as it is.

That is how such a model is deployed: the classifier was trained long before a bit flips in the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bitward_agent.diagnosis.objectives import TokenBatch, passage_loss
from bitward_agent.diagnosis.subject import ModelError, load_subject
from bitward_agent.errors import InputError
from bitward_agent.hardening.logistic import Array, fit
from bitward_agent.hardening.measuring import exchange_weights, pooled_states
from bitward_agent.io import read_regular
from bitward_formats.frozen import dataclass

TEXTS_LIMIT = 100_000
_FILE_LIMIT_BYTES = 64 << 20
_FEWEST_TEXTS = 20
_BATCH_ROWS = 50
_LONGEST_TOKENS = 128


@dataclass(frozen=True, slots=True)
class LabelledText:
    """``label`` is one of two classes."""

    text: str
    label: bool


def read_labelled(path: Path) -> list[LabelledText]:
    """Lines of UTF-8: 0 or 1, a tab, the text.

    Raises:
        InputError: A line is no such thing; the message names it.
        UnreadableError: The file cannot be read.
    """
    data = read_regular(str(path), _FILE_LIMIT_BYTES, "give a part of the labelled texts")
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text at byte {error.start:,}") from error
    found = []
    for number, line in enumerate(lines, 1):
        label, tab, text = line.partition("\t")
        if not tab or label not in ("0", "1") or not text.strip():
            raise InputError(f"{path}: line {number}: must be 0 or 1, a tab, and a text")
        found.append(LabelledText(text, label == "1"))
    if not _FEWEST_TEXTS <= len(found) <= TEXTS_LIMIT:
        raise InputError(f"{path}: {len(found):,} texts; {_FEWEST_TEXTS} to {TEXTS_LIMIT:,} are needed")
    return found


class LabelledMeasure:
    """An encoder, and a classifier fitted on every other text; the accuracy is that on the rest. See ``campaign.Measure``."""

    metric = "accuracy"
    more_is_better = True

    def __init__(self, source: str, texts: Sequence[LabelledText], calibration: str, *, text_name: str = "") -> None:
        """Load the model and fit the classifier.

        Raises:
            InputError: There is no such model, or it is no encoder, or no classifier can be fitted.
            ModelError: It cannot be loaded or run.
        """
        import transformers

        self.subject = load_subject(source, calibration)
        if self.subject.loss is not passage_loss or not self.subject.places:
            raise InputError(f"{source}: labelled texts need an encoder without a head")
        self.text = text_name
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
        if self._tokenizer.pad_token_id is None:
            raise ModelError(f"{source}: its tokenizer has no padding token")
        training, self._tested = texts[0::2], texts[1::2]
        self._classifier = fit(self._embeddings(training), np.array([one.label for one in training]))

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
        return len(self._tested)

    def value_of(self, files: Sequence[str]) -> float:
        """The accuracy with the weights of these files."""
        exchange_weights(self.subject, files)
        return self._classifier.accuracy(self._embeddings(self._tested), np.array([one.label for one in self._tested]))

    def _embeddings(self, texts: Sequence[LabelledText]) -> Array:
        with torch.no_grad():
            order = sorted(range(len(texts)), key=lambda number: len(texts[number].text))
            parts = []
            for low in range(0, len(order), _BATCH_ROWS):
                words = [texts[number].text for number in order[low : low + _BATCH_ROWS]]
                made = self._tokenizer(words, padding=True, truncation=True, max_length=_LONGEST_TOKENS, return_tensors="pt")
                batch = TokenBatch({"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}, made["input_ids"])
                parts.append(pooled_states(self.subject, batch).double().numpy())
            rows = np.concatenate(parts)
            ordered = np.empty_like(rows)
            ordered[order] = rows
            return ordered
