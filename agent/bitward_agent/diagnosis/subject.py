"""The model under diagnosis: loaded once, with what is needed to run it and to name its weights as its files do."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitward_agent.diagnosis.calibration import rows_of_tokens
from bitward_agent.diagnosis.objectives import LossFunction, TokenBatch, causal_loss, hide_tokens, masked_loss, passage_loss
from bitward_agent.errors import BitwardError, InputError
from bitward_agent.inspection import inspect_file
from bitward_agent.io import read_regular, resolve
from bitward_formats.errors import FormatError

CHOOSING_TOKENS = 256
"""Tokens that faults are looked for with; the rest of the text confirms what was found."""
_ROW_TOKENS = 64
_PASSAGE_TOKENS = 16
_PASSAGES = 24
_INDEX_LIMIT_BYTES = 256 << 20
_LAYERS_LIMIT = 4096
"""Of any one count of layers or experts in a configuration; a model of millions would be built for days, whatever its files hold."""


class ModelError(BitwardError):
    """The model cannot be run: an unknown architecture, a file that is missing, no loss. What needs no running still works."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies: the file, the tensor's name and element type in it, and the offset of its first byte."""

    path: str
    tensor: str
    dtype: str
    offset: int


@dataclass(frozen=True, slots=True)
class Subject:
    """``choosing`` is the batch that faults are looked for with, ``quick`` a part of it; ``holdout`` are batches that take no part in that.

    ``places`` tells where each parameter's bytes lie; parameters that are no plain copy of a tensor of the files are missing in it.
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


def weight_files(directory: Path) -> list[Path]:
    """The checkpoint files of a Hugging Face directory: those of its index, or the one that is there.

    Raises:
        InputError: There are none.
    """
    for index_name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        index = directory / index_name
        if index.is_file():
            data = read_regular(str(index), _INDEX_LIMIT_BYTES, "no index of shards is so large")
            try:
                names = sorted(set(json.loads(data.decode("utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
                raise InputError(f"{index}: not an index of shards: {error}") from error
            if any(not isinstance(name, str) or Path(name).name != name or "\0" in name for name in names):
                raise InputError(f"{index}: it names files outside its directory")
            missing = [name for name in names if not (directory / name).is_file()]
            if missing:
                raise InputError(f"{directory / missing[0]}: the index names this file, but it is not there")
            return [directory / name for name in names]
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (directory / name).is_file():
            return [directory / name]
    raise InputError(f"{directory}: no model here (no model.safetensors, pytorch_model.bin or index of shards)")


def load_subject(source: str, text: str, *, device: str = "cpu", max_tokens: int = 2048) -> Subject:
    """Load ``source``: a Hugging Face directory, or ``module:factory``.

    A factory takes no arguments and returns ``(model, loss, batches)``: ``loss(model, batch)`` gives a 1-D tensor, one loss per item;
    the first batch is for choosing, the others confirm.

    Raises:
        InputError: There is no such model, or the text is too short.
        ModelError: It cannot be loaded or run.
    """
    if not Path(source).is_dir() and ":" in source:
        return _from_factory(source, device)
    directory = Path(source)
    if not directory.is_dir():
        raise InputError(f"{source}: no such directory (or give module:factory)")
    files = weight_files(directory)
    return _from_directory(directory, files, text, device, max_tokens)


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
    return Subject(model, source, type(model).__name__, loss, batches[0], batches[0], tuple(batches[1:]), {}, ())


def _from_directory(directory: Path, files: Sequence[Path], text: str, device: str, max_tokens: int) -> Subject:
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
    if missing:
        raise ModelError(f"{directory}: {len(missing):,} tensors of the model are in none of its files, the first is {missing[0][:200]}")
    _move(model.eval(), device)
    if loss is masked_loss and getattr(tokenizer, "mask_token_id", None) is None:
        raise ModelError(f"{directory}: a masked language model whose tokenizer has no mask token: nothing can be hidden from it")
    with told_as_model_error(str(directory)):
        batches = _batches(tokenizer(text)["input_ids"][:max_tokens], loss, tokenizer, torch.device(device))
    names = [resolve(str(file)) for file in files]  # as triage names them, whatever way leads there
    choosing = batches[0]
    quick = choosing if loss is passage_loss else choosing.part(choosing.rows, _ROW_TOKENS // 2)
    places = _places(model, names)
    vocabulary = getattr(config, "vocab_size", None) if loss is not passage_loss else None
    return Subject(
        model=model,
        source=str(directory),
        architecture=type(model).__name__,
        loss=loss,
        choosing=choosing,
        quick=quick,
        holdout=tuple(batches[1:]),
        places=places,
        files=tuple(names),
        chance_nats=math.log(vocabulary) if vocabulary else None,
    )


def _move(model: nn.Module, device: str) -> None:
    try:
        model.to(device)
    except torch.OutOfMemoryError as error:
        raise MemoryError(str(error)) from error
    except (AssertionError, RuntimeError) as error:  # torch asserts that it was built for the device
        raise ModelError(f"--device {device}: torch cannot run a model there: {_first_line(error)}") from error


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
        inputs, labels = (hide_tokens(part, tokenizer.mask_token_id) if loss is masked_loss else (part, part))
        batches.append(TokenBatch({"input_ids": inputs, "attention_mask": torch.ones_like(inputs)}, labels))
    if len(batches) < 2:
        raise InputError("the calibration text is too short: it must fill two batches, one to choose with and one to confirm")
    return batches


def _places(model: nn.Module, files: Sequence[str]) -> dict[str, Place]:
    """Where each parameter's bytes lie, for those whose name, shape and element type agree with a tensor of the files."""
    found: dict[str, tuple[Place, tuple[int, ...]]] = {}
    for path in files:
        for span in inspect_file(resolve(path)).spans:
            if span.tensor is not None:
                found[span.tensor] = (Place(path, span.tensor, span.dtype, span.offset), tuple(span.shape))
    prefix = getattr(model, "base_model_prefix", "")
    places: dict[str, Place] = {}
    for name, parameter in model.named_parameters():
        for candidate in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
            place, shape = found.get(candidate, (None, ()))
            if place is not None and shape == tuple(parameter.shape) and DTYPE_LABELS.get(parameter.dtype) == place.dtype:
                places[name] = place
                break
    return places


DTYPE_LABELS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
"""Element types whose bits can be turned, by the labels that layouts use."""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]
