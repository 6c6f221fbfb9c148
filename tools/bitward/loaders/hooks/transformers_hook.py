"""Under transformers: every ``from_pretrained`` is one load, whose weights go through the gates below it, and whose small files are held.

Configurations, tokenizers, generation settings and indexes of shards are read by the library itself, from paths that
``transformers.utils.hub.cached_files`` and ``get_checkpoint_shard_files`` give it: those are verified there, and once more when the load is
over. Weights are opened by safetensors, PyTorch or gguf, which are gated themselves; a load that read any past them is refused.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from bitward.loaders.gated import LoadScope, charge_of, load_scope
from bitward.loaders.holding import check_again, hold
from bitward.loaders.patching import Patches
from bitward.loaders.policy import Gate, Policy, current_gate
from bitward_agent.io import resolve

_LOADER = "transformers.from_pretrained"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf")


def install(module: ModuleType, patches: Patches) -> None:
    """Put in what this module of transformers has."""
    if module.__name__ == "transformers.utils.hub":
        patches.set_everywhere(module.cached_files, _gated_files(module.cached_files))
        patches.set_everywhere(module.get_checkpoint_shard_files, _gated_shards(module.get_checkpoint_shard_files))
        return
    # Every class of these modules that has one of its own: the automatic classes have copies, not the method of their base.
    for owner in list(vars(module).values()):
        if not isinstance(owner, type) or owner.__module__ != module.__name__:
            continue
        method = vars(owner).get("from_pretrained")
        if isinstance(method, classmethod):
            patches.set(owner, "from_pretrained", classmethod(_scoped(method.__func__)))
    if hasattr(module, "_is_on_hf_mount"):
        patches.set(module, "_is_on_hf_mount", _never_read_past(module._is_on_hf_mount))  # noqa: SLF001
        patches.set(module, "_safe_load_bytes", _told_if_read_past(module._safe_load_bytes))  # noqa: SLF001


def _gate() -> Gate | None:
    gate = current_gate()
    return None if gate is None or gate.policy is Policy.OFF else gate


def _scoped(original: Any) -> Any:
    @functools.wraps(original)
    def from_pretrained(cls: type, *args: Any, **options: Any) -> Any:
        gate = _gate()
        if gate is None or load_scope.get() is not None:
            return original(cls, *args, **options)
        if options.get("disable_mmap"):
            options["disable_mmap"] = False  # it would read files past the gate; verified tensors are never maps of the file
        with _one_load():
            return original(cls, *args, **options)

    return from_pretrained


@contextmanager
def _one_load() -> Iterator[None]:
    """One load from begin to end: what a gate refused in it stays refused, though a library may have swallowed the error."""
    scope = LoadScope()
    token = load_scope.set(scope)
    try:
        try:
            yield
        except Exception as error:
            if scope.refusal is None or scope.refusal is error:
                raise
            raise scope.refusal from error  # a library may have made another error of it
        if scope.refusal is not None:
            raise scope.refusal
        for held in scope.held:
            check_again(held)
        for path, charge in scope.expected.items():
            if path not in scope.gated:
                charge.unverifiable("its weights were read past the gate")
    finally:
        load_scope.reset(token)


def _look_at(paths: Iterable[str | None]) -> None:
    """Verify and hold the small ones of some files that a library is about to read; weights are to pass another gate."""
    gate, scope = _gate(), load_scope.get()
    if gate is None:
        return
    for path in paths:
        if path is None:
            continue
        if path.endswith(_WEIGHTS):
            continue
        held = hold(charge_of(gate, path, _LOADER))
        if held is not None and scope is not None:
            scope.held.append(held)


def _gated_files(original: Any) -> Any:
    @functools.wraps(original)
    def cached_files(*args: Any, **options: Any) -> Any:
        found = original(*args, **options)
        _look_at(found or ())
        return found

    return cached_files


def _gated_shards(original: Any) -> Any:
    @functools.wraps(original)
    def get_checkpoint_shard_files(pretrained_model_name_or_path: Any, index_filename: Any, *args: Any, **options: Any) -> Any:
        _look_at([os.fspath(index_filename)])
        shards, metadata = original(pretrained_model_name_or_path, index_filename, *args, **options)
        gate, scope = _gate(), load_scope.get()
        if gate is not None and scope is not None:
            scope.expected.update({resolve(path): charge_of(gate, path, _LOADER) for path in shards})
        return shards, metadata

    return get_checkpoint_shard_files


def _never_read_past(original: Any) -> Any:
    @functools.wraps(original)
    def is_on_hf_mount(path: Any) -> bool:
        return _gate() is None and bool(original(path))

    return is_on_hf_mount


def _told_if_read_past(original: Any) -> Any:
    @functools.wraps(original)
    def load(data: bytes) -> Any:
        gate = _gate()
        if gate is not None:
            charge_of(gate, "safetensors file", _LOADER).unverifiable("its weights were read past the gate")
        return original(data)

    return load
