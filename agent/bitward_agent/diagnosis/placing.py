"""Where the parameters of a loaded model lie in its files, by their bytes.

A name proves nothing: loading may rename, turn, permute, fuse or convert a tensor. So a parameter has a place only where the file holds,
byte for byte, what the model holds. Parameters without one are told, and never written. Tensors are compared whole, a few MiB at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from torch import Tensor, nn

from bitward_agent.inspection import inspect_file
from bitward_agent.io import OpenFile, resolve
from bitward_formats.frozen import dataclass

_PIECE_BYTES = 4 << 20
_LISTED = 3
_NAME_CHARACTERS = 120
_PART_SHARE = 0.01
"""A model that leaves out this share of what its files hold, or a numbered layer of it, is another model than that of the files."""
_NUMBERED = re.compile(r"(?:^|\.)\d+\.")
DTYPE_LABELS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
"""Element types whose bits can be turned, by the labels that layouts use."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies: the file, the tensor's name and element type in it, and the offset of its first byte."""

    path: str
    tensor: str
    dtype: str
    offset: int


@dataclass(frozen=True, slots=True)
class Placement:
    """``places`` by torch's names. ``twins`` are further places of the same parameter, with the same bytes: tied tensors that are stored
    twice. ``is_part``: the model takes so little of its files that it does not stand for them. ``notes`` tell people what has no place.
    """

    places: Mapping[str, Place]
    twins: Mapping[str, tuple[Place, ...]]
    is_part: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Stored:
    place: Place
    shape: tuple[int, ...]
    bytes: int


def place_parameters(model: nn.Module, files: Sequence[str], unexpected: AbstractSet[str] = frozenset()) -> Placement:
    """Find the parameters of a model in the files that it was loaded from.

    Args:
        files: real paths.
        unexpected: names of the files' tensors that the loading had no use for.

    Raises:
        UnreadableError: A file cannot be read.
    """
    return _Placing(model, files, unexpected).placement()


class _Placing:
    def __init__(self, model: nn.Module, files: Sequence[str], unexpected: AbstractSet[str]) -> None:
        self._prefix = getattr(model, "base_model_prefix", "")
        self._parameters = dict(model.named_parameters())
        self._buffers = {name for name, _ in model.named_buffers()}
        self._unexpected = unexpected
        self._tied = _tied_by_configuration(model)
        self._aliases: dict[int, list[str]] = {}
        for name, one in model.named_parameters(remove_duplicate=False):
            self._aliases.setdefault(id(one), []).append(name)
        self._stored: dict[str, list[_Stored]] = {}
        self._all: list[_Stored] = []
        for path in files:
            self._list(path)
        self._taken: set[tuple[str, int]] = set()
        self._notes: list[str] = []

    def _list(self, path: str) -> None:
        inspection = inspect_file(resolve(path))
        for span in inspection.spans:
            if span.tensor is not None:
                one = _Stored(Place(path, span.tensor, span.dtype, span.offset), tuple(span.shape), span.bytes)
                self._all.append(one)
                self._stored.setdefault(span.tensor, []).append(one)
        for alias, tensor in inspection.aliases:
            self._stored.setdefault(alias, []).extend(one for one in self._stored.get(tensor, ()) if one.place.path == path)

    def placement(self) -> Placement:
        places: dict[str, Place] = {}
        twins: dict[str, tuple[Place, ...]] = {}
        for name, parameter in self._parameters.items():
            found = [one.place for one in self._candidates(self._aliases[id(parameter)]) if self._agrees(one, parameter)]
            if found:
                places[name] = found[0]
                self._taken |= {(one.path, one.offset) for one in found}
                if found[1:]:
                    twins[name] = tuple(found[1:])
        places |= self._renamed({name: one for name, one in self._parameters.items() if name not in places})
        self._tell_twins(places, twins)
        homeless = [name for name in self._parameters if name not in places]
        if homeless:
            count = f"{len(homeless):,} of {len(self._parameters):,} tensors of the model"
            self._notes.append(
                f"{count} are in its files not as the model holds them (fused, turned, converted or made when it was loaded): their bits"
                f" have no place in the files and are never written: {_some(homeless)}"
            )
        is_part = self._tell_unused(bool(homeless))
        return Placement(places, twins, is_part, tuple(self._notes))

    def _candidates(self, names: Iterable[str]) -> Iterator[_Stored]:
        """Tensors of the files that have a parameter's name, with or without the prefix of a model within a model; each once."""
        seen: set[tuple[str, int]] = set()
        for name in names:
            for candidate in (name, f"{self._prefix}.{name}", name.removeprefix(f"{self._prefix}.")):
                for one in self._stored.get(candidate, ()):
                    if (one.place.path, one.place.offset) not in seen:
                        seen.add((one.place.path, one.place.offset))
                        yield one

    def _agrees(self, one: _Stored, parameter: nn.Parameter) -> bool:
        return _fits(one, parameter) and _same_bytes(one, parameter)

    def _renamed(self, homeless: Mapping[str, nn.Parameter]) -> dict[str, Place]:
        """Parameters under another name: those whose bytes are those of one tensor alone that is left, and of no other parameter."""
        shapes = {(DTYPE_LABELS.get(one.dtype), tuple(one.shape)) for one in homeless.values() if one.numel()}
        left = [one for one in self._all if (one.place.path, one.place.offset) not in self._taken]
        left = [one for one in left if (one.place.dtype, one.shape) in shapes and one.place.tensor not in self._unexpected]
        if not left:
            return {}
        stored: dict[tuple[bytes, str], list[_Stored]] = {}
        for one in left:
            stored.setdefault((_digest(_stored_pieces(one)), one.place.dtype), []).append(one)
        held: dict[tuple[bytes, str], list[str]] = {}
        for name, parameter in homeless.items():
            label = DTYPE_LABELS.get(parameter.dtype)
            if label is not None and parameter.numel():
                held.setdefault((_digest(_held_pieces(parameter)), label), []).append(name)
        found: dict[str, Place] = {}
        for key, names in held.items():
            ones = stored.get(key, [])
            if len(names) == len(ones) == 1 and self._agrees(ones[0], homeless[names[0]]):
                found[names[0]] = ones[0].place
                self._taken.add((ones[0].place.path, ones[0].place.offset))
        return found

    def _tell_twins(self, places: Mapping[str, Place], twins: Mapping[str, tuple[Place, ...]]) -> None:
        for name, others in twins.items():
            stored = _some([one.tensor for one in (places[name], *others)])
            self._notes.append(f"one tensor of the model is stored {len(others) + 1} times: {stored}; changes are written to each")

        for target, source in self._tied.items():
            one, two = self._parameters.get(target), self._parameters.get(source)
            if one is None or two is None or one is two or one.shape != two.shape or one.dtype != two.dtype:
                continue
            size = one.element_size()
            pieces = zip(_held_pieces(one), _held_pieces(two), strict=True)
            differ = sum(int((a.reshape(-1, size) != b.reshape(-1, size)).any(axis=1).sum()) for a, b in pieces)
            if differ:
                self._notes.append(
                    f"{target} and {source} should be one tensor by the configuration, but are stored apart and differ in {differ:,}"
                    f" element{'' if differ == 1 else 's'}: one of the two is damaged, or the configuration does not fit"
                )

    def _tell_unused(self, has_homeless: bool) -> bool:
        """Say what of the files the model does not take. Returns whether that is more than odds and ends."""
        left = [one for one in self._all if (one.place.path, one.place.offset) not in self._taken]
        unused = [one for one in left if not self._is_buffer(one.place.tensor)]
        if has_homeless:  # what has no place may have been made of any of them; then the loading's own word counts
            unused = [one for one in unused if one.place.tensor in self._unexpected]
        if not unused:
            return False
        total = max(1, sum(one.bytes for one in self._all))
        size = sum(one.bytes for one in unused)
        is_part = size >= _PART_SHARE * total or any(_NUMBERED.search(one.place.tensor) for one in unused)
        words = f"the model does not use {len(unused):,} of {len(self._all):,} tensors of its files ({size:,} bytes, {size / total:.1%})"
        outcome = "only triage looked at them; does config.json fit the files?" if is_part else "only triage looked at them"
        self._notes.append(f"{words}: {_some([one.place.tensor for one in unused])}; {outcome}")
        return is_part

    def _is_buffer(self, tensor: str) -> bool:
        """Whether it is no weight: a buffer of the model, or one that older versions stored and that is computed now."""
        return (
            tensor in self._buffers
            or f"{self._prefix}.{tensor}" in self._buffers
            or tensor.removeprefix(f"{self._prefix}.") in self._buffers
            or tensor.endswith(("position_ids", "rotary_emb.inv_freq"))
        )


def _tied_by_configuration(model: nn.Module) -> dict[str, str]:
    """The names of parameters that the configuration makes one, whether they are or not: target by source, as transformers has them."""
    expanded = getattr(model, "get_expanded_tied_weights_keys", None)
    found = expanded(all_submodels=True) if callable(expanded) else {}
    return dict(found) if isinstance(found, dict) else {}


def _fits(one: _Stored, parameter: nn.Parameter) -> bool:
    size = parameter.numel() * parameter.element_size()
    return one.shape == tuple(parameter.shape) and DTYPE_LABELS.get(parameter.dtype) == one.place.dtype and one.bytes == size


def _same_bytes(one: _Stored, parameter: nn.Parameter) -> bool:
    at = one.place.offset
    with OpenFile(one.place.path) as file:
        for piece in _held_pieces(parameter):
            buffer = bytearray(piece.size)
            if file.read_into(memoryview(buffer), at) or not np.array_equal(np.frombuffer(buffer, np.uint8), piece):
                return False
            at += piece.size
    return True


def _held_pieces(parameter: nn.Parameter) -> Iterator[npt.NDArray[np.uint8]]:
    """The bytes of a parameter, row-major, a few MiB at a time; of one that lies otherwise in memory, at least a row."""
    tensor: Tensor = parameter.detach()
    if tensor.numel() == 0:
        return
    whole = tensor.view(-1) if tensor.is_contiguous() else tensor
    row_bytes = whole[0].numel() * whole.element_size()
    step = max(1, _PIECE_BYTES // row_bytes)
    for low in range(0, whole.shape[0], step):
        piece: Any = whole[low : low + step].contiguous().cpu().view(-1).view(torch.uint8).numpy()
        yield piece


def _stored_pieces(one: _Stored) -> Iterator[npt.NDArray[np.uint8]]:
    with OpenFile(one.place.path) as file:
        for low in range(0, one.bytes, _PIECE_BYTES):
            yield np.frombuffer(file.read(one.place.offset + low, min(_PIECE_BYTES, one.bytes - low)), np.uint8)


def _digest(pieces: Iterable[npt.NDArray[np.uint8]]) -> bytes:
    digest = xxhash.xxh3_128()
    for piece in pieces:
        digest.update(piece.data)
    return digest.digest()


def _some(names: Sequence[str]) -> str:
    """The first names, shortened, and how many more there are."""
    short = [name if len(name) <= _NAME_CHARACTERS else f"{name[:_NAME_CHARACTERS]}…" for name in names[:_LISTED]]
    return ", ".join(short) + (f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else "")
