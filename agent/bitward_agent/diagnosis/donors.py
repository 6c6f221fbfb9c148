"""Donors: other checkpoints of the same architecture, from which a tensor or a block can be taken.

A donor is a directory like the subject's own. Tensors are read from its files when they are wanted, one at a time; no second model is
loaded. What fits is decided by name and shape; another float type is converted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bitward_agent.diagnosis.model_files import weight_files
from bitward_agent.diagnosis.placing import Place
from bitward_agent.diagnosis.subject import Subject
from bitward_agent.errors import BitwardError, InputError, UnreadableError
from bitward_agent.inspection import inspect_file
from bitward_agent.io import OpenFile, resolve
from bitward_formats.frozen import dataclass

_CONFIG_LIMIT_BYTES = 1 << 20
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


class DonorError(BitwardError):
    """A directory that cannot give what is asked of it: another architecture, another shape, values that are not finite."""


@dataclass(frozen=True, slots=True)
class Donor:
    """``places`` tells where the donor has each of the subject's parameters, by torch's name, with the shape of the subject's."""

    path: str
    places: Mapping[str, Place]

    @property
    def name(self) -> str:
        """The directory's name."""
        return Path(self.path).name

    def has(self, parameters: Iterable[str]) -> bool:
        """Whether it has all of these parameters."""
        return all(name in self.places for name in parameters)


def open_donor(directory: str | Path, subject: Subject) -> Donor:
    """A donor for the subject.

    Raises:
        DonorError: It is another architecture, or holds nothing of the same name and shape.
        InputError: There is no model in the directory.
    """
    path = Path(resolve(str(directory)))
    if not path.is_dir():
        raise InputError(f"{directory}: no such directory: a donor is a directory with a model")
    own, its = _architecture(Path(subject.source)), _architecture(path)
    if own and its and own != its:
        raise DonorError(f"{directory}: its architecture is {its}, not {own}")
    found: dict[str, tuple[Place, tuple[int, ...]]] = {}
    for file in weight_files(path):
        for span in inspect_file(resolve(str(file))).spans:
            if span.tensor is not None and span.dtype in _DTYPES:
                found[span.tensor] = (Place(resolve(str(file)), span.tensor, span.dtype, span.offset), tuple(span.shape))
    prefix = getattr(subject.model, "base_model_prefix", "")
    places: dict[str, Place] = {}
    for name, parameter in subject.model.named_parameters():
        for candidate in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
            place, shape = found.get(candidate, (None, ()))
            if place is not None and shape == tuple(parameter.shape):
                places[name] = place
                break
    if not places:
        raise DonorError(f"{directory}: no tensor of it has the name and shape of one of {subject.source}")
    return Donor(str(path), places)


def open_donors(directories: Sequence[str | Path], subject: Subject) -> tuple[tuple[Donor, ...], tuple[str, ...]]:
    """All donors that can be used, in the order given, and why the others cannot. The subject's own directory is none."""
    donors: list[Donor] = []
    refused: list[str] = []
    taken = {resolve(subject.source)}
    for directory in directories:
        try:
            if resolve(str(directory)) in taken:
                refused.append(f"{directory}: given twice, or the model itself")
                continue
            taken.add(resolve(str(directory)))
            donors.append(open_donor(directory, subject))
        except BitwardError as error:
            refused.append(str(error))
    return tuple(donors), tuple(refused)


def donated(donor: Donor, parameter: str, like: Tensor) -> Tensor:
    """The donor's values of a parameter, on the CPU, in ``like``'s dtype and shape.

    Raises:
        DonorError: It has no such tensor, or values that are not finite.
        UnreadableError: Part of it cannot be read.
    """
    place = donor.places.get(parameter)
    if place is None:
        raise DonorError(f"{donor.path}: has no {parameter}")
    dtype = _DTYPES[place.dtype]
    data = bytearray(like.numel() * dtype.itemsize)
    with OpenFile(place.path) as file:
        if file.read_into(memoryview(data), place.offset):
            raise UnreadableError(f"{place.path}: the tensor {place.tensor} cannot be read whole")
    values = torch.frombuffer(data, dtype=dtype).view(like.shape) if data else torch.empty(like.shape, dtype=dtype)
    if not bool(values.isfinite().all()):
        raise DonorError(f"{donor.path}: {place.tensor} holds values that are not finite: damaged itself")
    return values.to(like.dtype)


def _architecture(directory: Path) -> str:
    """What the configuration names, or "" where it does not."""
    try:
        with OpenFile(resolve(str(directory / "config.json"))) as file:
            data = file.read(0, _CONFIG_LIMIT_BYTES)
        named = json.loads(data)["architectures"][0]
    except (BitwardError, ValueError, LookupError, TypeError, RecursionError):
        return ""
    return named if isinstance(named, str) else ""
