"""Which files of a Hugging Face directory a model is loaded from, as transformers chooses them, and what lies beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitward_agent.errors import BitwardError, InputError
from bitward_agent.io import read_regular
from bitward_formats.frozen import dataclass

_INDEX_LIMIT_BYTES = 256 << 20
_CONFIG_LIMIT_BYTES = 16 << 20
_ORDER = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""The first that is there is loaded (transformers 5.23, ``modeling_utils._get_resolved_checkpoint_files``)."""
_ADAPTER = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The checkpoint's ``files``; ``notes`` tell what else lies there that could be taken for it."""

    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def weight_files(directory: Path) -> list[Path]:
    """The checkpoint files of a Hugging Face directory; see :func:`model_files`."""
    return list(model_files(directory).files)


def model_files(directory: Path) -> ModelFiles:
    """The files that transformers loads a directory's model from: one, or the shards that an index names.

    What the configuration names as ``transformers_weights`` goes before all others.

    Raises:
        InputError: There are none, or an index names what is not there or lies elsewhere.
    """
    named = _named_by_configuration(directory)
    there = [name for name in ((named,) if named else _ORDER) if (directory / name).is_file()]
    if not there:
        adapter = f"; {_ADAPTER} tells of an adapter: give the directory of its base model" if has_adapter(directory) else ""
        wanted = named or "model.safetensors, pytorch_model.bin or index of shards"
        raise InputError(f"{directory}: no model here (no {wanted}){adapter}")
    first = directory / there[0]
    files = _shards(first) if first.suffix == ".json" else [first]
    others = [name for name in _ORDER if name != there[0] and (directory / name).is_file()]
    notes = (f"{there[0]} is what is loaded and looked at here, not {' or '.join(others)} beside it",) if others else ()
    return ModelFiles(tuple(files), notes)


def has_adapter(directory: Path) -> bool:
    """Whether an adapter (LoRA and the like) lies in the directory: alone, or beside the model that it is for."""
    return (directory / _ADAPTER).is_file()


def refuse_adapter(directory: Path) -> None:
    """Refuse a model with an adapter beside it.

    transformers puts the adapter into the model if the package ``peft`` is there and passes over it in silence if not: what would be
    diagnosed, and what the losses are of, would not be what the files hold.

    Raises:
        InputError: There is one.
    """
    if has_adapter(directory):
        raise InputError(
            f"{directory / _ADAPTER}: an adapter lies beside the model. What is served is both together, which no file holds: merge the"
            " adapter into the model (peft's merge_and_unload) and diagnose the result, or the model without it from another directory"
        )


def _named_by_configuration(directory: Path) -> str:
    """The file that the configuration says the weights are in, or "".

    Raises:
        InputError: It is no name of a safetensors file or index in the directory itself.
    """
    try:
        config: Any = json.loads(read_regular(str(directory / "config.json"), _CONFIG_LIMIT_BYTES, "no configuration is so large"))
    except (BitwardError, ValueError, RecursionError):
        return ""  # what is wrong with it is said by who needs more of it
    name = config.get("transformers_weights") if isinstance(config, dict) else None
    if name is None:
        return ""
    if not _is_name(name) or not name.endswith((".safetensors", ".safetensors.index.json")):
        raise InputError(f"{directory / 'config.json'}: its transformers_weights is no safetensors file of this directory")
    return str(name)


def _shards(index: Path) -> Sequence[Path]:
    data = read_regular(str(index), _INDEX_LIMIT_BYTES, "no index of shards is so large")
    try:
        names = sorted(set(json.loads(data.decode("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{index}: not an index of shards: {error}") from error
    if not names or not all(_is_name(name) for name in names):
        raise InputError(f"{index}: it names no files, or files outside its directory")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise InputError(f"{index.parent / missing[0]}: the index names this file, but it is not there")
    return [index.parent / name for name in names]


def _is_name(name: object) -> bool:
    """Whether it names something in a directory itself, and neither that directory nor the one above."""
    return isinstance(name, str) and Path(name).name == name and "\0" not in name and name not in ("", ".", "..")
