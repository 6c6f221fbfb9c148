"""The model under diagnosis: loaded once, with what is needed to run it and to name its weights as its files do."""

from __future__ import annotations

import importlib
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitward_agent.diagnosis.calibration import rows_of_tokens
from bitward_agent.diagnosis.model_files import ModelFiles, model_files, refuse_adapter
from bitward_agent.diagnosis.objectives import LossFunction, TokenBatch, causal_loss, hide_tokens, masked_loss, on_device, passage_loss
from bitward_agent.diagnosis.placing import Place, Placement, place_parameters
from bitward_agent.errors import BitwardError, InputError
from bitward_agent.io import resolve
from bitward_formats.errors import FormatError

CHOOSING_TOKENS = 256
"""Tokens that faults are looked for with; the rest of the text confirms what was found."""
_ROW_TOKENS = 64
_PASSAGE_TOKENS = 16
_PASSAGES = 24
_LAYERS_LIMIT = 4096
"""Of any one count of layers or experts in a configuration; a model of millions would be built for days, whatever its files hold."""


class ModelError(BitwardError):
    """The model cannot be run: an unknown architecture, a file that is missing, no loss. What needs no running still works."""


@dataclass(frozen=True, slots=True)
class Subject:
    """``choosing`` is the batch that faults are looked for with, ``quick`` a part of it; ``holdout`` are batches that take no part in that.

    ``places`` tells where each parameter's bytes lie; parameters that are no plain copy of a tensor of the files are missing in it.
    ``twins`` are further places of the same bytes: tied tensors that are stored twice. ``is_part``: the files hold a larger model than
    the one that is run. ``notes`` tell what of the files and of the model does not fit together.
    ``chance_nats`` is the loss of who knows nothing: the logarithm of the vocabulary; ``None`` where there is none.
    """

    model: nn.Module
    source: str
    architecture: str
    loss: LossFunction
    choosing: Any
    quick: Any
    holdout: tuple[Any, ...]
    places: Mapping[str, Place]
    files: tuple[str, ...]
    chance_nats: float | None = None
    twins: Mapping[str, tuple[Place, ...]] = field(default_factory=dict)
    is_part: bool = False
    notes: tuple[str, ...] = ()

    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next(self.model.parameters()).device


@contextmanager
def told_as_model_error(source: str) -> Iterator[None]:
    """While this holds, whatever somebody else's model raises when it is run becomes a ``ModelError``.

    Code that a configuration has put together may raise anything: an index out of range, an assertion, an attribute that is missing.
    """
    try:
        yield
    except (BitwardError, FormatError, MemoryError, OSError):
        raise
    except Exception as error:
        if "memory" in str(error).lower() and isinstance(error, RuntimeError):
            raise ModelError(f"{source}: not enough memory to run the model") from error
        raise ModelError(f"{source}: torch cannot run this model: {type(error).__name__}: {_first_line(error)}") from error


def load_subject(source: str, text: str, *, device: str = "cpu", max_tokens: int = 2048) -> Subject:
    """Load ``source``: a Hugging Face directory, or ``module:factory``.

    A factory takes no arguments and returns ``(model, loss, batches)``: ``loss(model, batch)`` gives a 1-D tensor, one loss per item;
    the first batch is for choosing, the others confirm. Tensors of batches are moved to the device, within tuples, lists and mappings too.

    Raises:
        InputError: There is no such model, or the text is too short.
        ModelError: It cannot be loaded or run.
    """
    if not Path(source).is_dir() and ":" in source:
        return _from_factory(source, device)
    directory = Path(source)
    if not directory.is_dir():
        raise InputError(f"{source}: no such directory (or give module:factory)")
    found = model_files(directory)
    refuse_adapter(directory)
    return _from_directory(directory, found, text, device, max_tokens)


def _from_factory(source: str, device: str) -> Subject:
    module_name, _, factory_name = source.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: a factory usually lies where the command is run
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{source}: no such factory: {error}") from error
    try:
        made = factory()
    except MemoryError:
        raise
    except Exception as error:
        raise ModelError(f"{source}: the factory fails: {type(error).__name__}: {_first_line(error)}") from error
    is_triple = isinstance(made, tuple) and len(made) == 3 and isinstance(made[0], nn.Module) and callable(made[1])
    if not (is_triple and isinstance(made[2], Sequence) and len(made[2]) > 1):
        raise ModelError(f"{source}: a factory must return (torch module, loss(module, batch), [two or more batches])")
    model, loss, batches = made
    _move(model.eval(), device)
    with told_as_model_error(source):
        batches = [on_device(one, torch.device(device)) for one in batches]
    return Subject(model, source, type(model).__name__, loss, batches[0], batches[0], tuple(batches[1:]), {}, ())


def _from_directory(directory: Path, found: ModelFiles, text: str, device: str, max_tokens: int) -> Subject:
    try:
        import transformers
    except ImportError as error:
        raise ModelError("running a model needs transformers: pip install 'bitward[diagnose]'") from error
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        _check_counts(directory, config.to_dict())
        model_class, loss = _class_for(transformers, config)
        model, loading = model_class.from_pretrained(
            directory,
            local_files_only=True,
            trust_remote_code=False,
            dtype="auto",
            attn_implementation="eager",
            output_loading_info=True,
        )
    except (MemoryError, BitwardError):
        raise
    except Exception as error:
        raise ModelError(f"{directory}: transformers cannot load this model: {type(error).__name__}: {_first_line(error)}") from error
    # A pooler is not run by any loss here, and checkpoints often come without.
    missing = sorted(name for name in loading["missing_keys"] if "pooler" not in name)
    _refuse_made_up(str(directory), missing)
    names = [resolve(str(file)) for file in found.files]  # as triage names them, whatever way leads there
    placed, notes = _placed(model, names, loading)
    _move(model.eval(), device)
    if loss is masked_loss and getattr(tokenizer, "mask_token_id", None) is None:
        raise ModelError(f"{directory}: a masked language model whose tokenizer has no mask token: nothing can be hidden from it")
    with told_as_model_error(str(directory)):
        batches = _batches(tokenizer(text)["input_ids"][:max_tokens], loss, tokenizer, torch.device(device))
    choosing = batches[0]
    quick = choosing if loss is passage_loss else choosing.part(choosing.rows, _ROW_TOKENS // 2)
    vocabulary = getattr(config, "vocab_size", None) if loss is not passage_loss else None
    return Subject(
        model=model,
        source=str(directory),
        architecture=type(model).__name__,
        loss=loss,
        choosing=choosing,
        quick=quick,
        holdout=tuple(batches[1:]),
        places=placed.places,
        files=tuple(names),
        chance_nats=math.log(vocabulary) if vocabulary else None,
        twins=placed.twins,
        is_part=placed.is_part,
        notes=(*found.notes, *notes),
    )


def _placed(model: nn.Module, files: Sequence[str], loading: Mapping[str, Any]) -> tuple[Placement, tuple[str, ...]]:
    """Where the parameters lie, and what is to be said of that.

    Raises:
        ModelError: Parameters are in no file although the loading does not count them as missing: what they hold was made up.
    """
    placed = place_parameters(model, files, frozenset(loading["unexpected_keys"]))
    patterns = [re.compile(one) for one in getattr(model, "_keys_to_ignore_on_load_missing", None) or ()]
    made_up = [name for name, _ in model.named_parameters() if name not in placed.places and any(one.search(name) for one in patterns)]
    _refuse_made_up(files[0], made_up)
    poolers = sorted(name for name in loading["missing_keys"] if "pooler" in name)
    made = (f"{poolers[0]} is in no file and holds what was made up when it was loaded; no loss here runs it",) if poolers else ()
    return placed, (*placed.notes, *made)


def _move(model: nn.Module, device: str) -> None:
    try:
        model.to(device)
    except torch.OutOfMemoryError as error:
        raise MemoryError(str(error)) from error
    except (AssertionError, RuntimeError) as error:  # torch asserts that it was built for the device
        raise ModelError(f"--device {device}: torch cannot run a model there: {_first_line(error)}") from error


def _refuse_made_up(source: str, missing: Sequence[str]) -> None:
    if missing:
        raise ModelError(f"{source}: {len(missing):,} tensors of the model are in none of its files, the first is {missing[0][:200]}")


def _check_counts(directory: Path, config: Mapping[str, Any]) -> None:
    """Refuse counts of layers or experts that no model has, before a model is built by them; also those of a part's configuration."""
    for part in (config, *(one for one in config.values() if isinstance(one, dict))):
        for name, value in part.items():
            counts = isinstance(name, str) and ("layer" in name or "expert" in name or name in ("depth", "depths"))
            if counts and isinstance(value, int) and value > _LAYERS_LIMIT:
                raise ModelError(f"{directory}: its configuration has {name} = {value:,}; more than {_LAYERS_LIMIT:,} are not built")


def _class_for(transformers: Any, config: Any) -> tuple[Any, LossFunction]:
    """Which class to load, by the architecture that the configuration names."""
    architecture = (getattr(config, "architectures", None) or [""])[0]
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return transformers.AutoModelForCausalLM, causal_loss
    if architecture.endswith("ForMaskedLM"):
        return transformers.AutoModelForMaskedLM, masked_loss
    return transformers.AutoModel, passage_loss


def _batches(tokens: Sequence[int], loss: LossFunction, tokenizer: Any, device: torch.device) -> list[TokenBatch]:
    """Token batches of about ``CHOOSING_TOKENS`` each; encoders get more and shorter rows, as their items are rows."""
    row_tokens = _PASSAGE_TOKENS if loss is passage_loss else _ROW_TOKENS
    cut = rows_of_tokens(tokens, row_tokens, 1 << 16)
    if loss is passage_loss and len(tokens) > 2 * row_tokens:
        # The same text cut elsewhere: few passages make a noisy loss.
        cut = cut[: len(cut) // 2 * 2] + rows_of_tokens(tokens[row_tokens // 2 :], row_tokens, 1 << 16)
    rows = torch.tensor(cut, dtype=torch.int64, device=device)
    per_batch = _PASSAGES if loss is passage_loss else max(1, CHOOSING_TOKENS // row_tokens)
    batches = []
    for low in range(0, len(rows), per_batch):
        part = rows[low : low + per_batch]
        if loss is passage_loss:
            part = part[: len(part) // 2 * 2]
        if len(part) == 0 or (loss is passage_loss and len(part) < 4):
            continue
        inputs, labels = hide_tokens(part, tokenizer.mask_token_id) if loss is masked_loss else (part, part)
        batches.append(TokenBatch({"input_ids": inputs, "attention_mask": torch.ones_like(inputs)}, labels))
    if len(batches) < 2:
        raise InputError("the calibration text is too short: it must fill two batches, one to choose with and one to confirm")
    return batches


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]
