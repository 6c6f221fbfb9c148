"""Under ONNX Runtime: ``InferenceSession``, which takes a model as bytes, and its external data as buffers (its Python API's reference)."""

from __future__ import annotations

import functools
import os
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from bitward.loaders.gated import Charge, charge_of, open_gated
from bitward.loaders.patching import Patches
from bitward.loaders.policy import Policy, current_gate
from bitward.report.names import printable
from bitward_agent.errors import InputError
from bitward_formats.errors import CheckpointError
from bitward_formats.readers.onnxgraph import find_tensors
from bitward_formats.readers.protowalk import Walker

_LOADER = "onnxruntime.InferenceSession"
EXTERNAL_FILES_LIMIT = 1024
"""Most files of external data that one model may name."""

_lent: WeakKeyDictionary[Any, list[dict[str, bytes]]] = WeakKeyDictionary()
"""What session options point to, for as long as there are any that do."""


def install(module: ModuleType, patches: Patches) -> None:
    """Replace the class's ``__init__``."""
    original = module.InferenceSession.__init__

    @functools.wraps(original)
    def init(self: Any, path_or_bytes: Any, sess_options: Any = None, *args: Any, **options: Any) -> None:
        gate = current_gate()
        if gate is None or gate.policy is Policy.OFF or not isinstance(path_or_bytes, (str, os.PathLike)):
            original(self, path_or_bytes, sess_options, *args, **options)
            return
        name = os.fspath(path_or_bytes)
        charge = charge_of(gate, name, _LOADER)
        model, is_verified = _whole(charge)
        external = {} if name.endswith(".ort") else _external(charge, model, is_bare=not is_verified)
        if external is None:  # told: which files it needs cannot be known
            original(self, path_or_bytes, sess_options, *args, **options)
            return
        if external:
            sess_options = sess_options if sess_options is not None else module.C.SessionOptions()
            _lend(name, sess_options, external)
        original(self, model, sess_options, *args, **options)
        self._bitward_external = external  # a session that changes its providers is made anew from the same buffers

    patches.set(module.InferenceSession, "__init__", init)


def _lend(name: str, sess_options: Any, external: dict[str, bytes]) -> None:
    """Give the options the buffers that stand for files. They keep pointers to them, for every session that is made with them.

    Raises:
        InputError: they have one of that name already, which another model's session put there: its weights would be taken.
    """
    try:
        sess_options.add_external_initializers_from_files_in_memory(
            list(external), list(external.values()), list(map(len, external.values()))
        )
    except RuntimeError as error:
        told = "behind a gate each model with external data needs session options of its own, and these have been used"
        raise InputError(f"{printable(name)}: {told}: {error}") from error
    _lent.setdefault(sess_options, []).append(external)


def _whole(charge: Charge) -> tuple[bytes, bool]:
    """(a file's bytes, whether they passed the gate); else they are as the file is, which the policy allows and was told.

    One file without evidence is no reason to let the model's other files past the gate.
    """
    gated = open_gated(charge)
    if gated is None:
        with open(charge.shown, "rb") as file:
            return file.read(), False
    try:
        return gated.read(0, gated.size).tobytes(), True
    finally:
        gated.close()


def _external(charge: Charge, model: bytes, *, is_bare: bool) -> dict[str, bytes] | None:
    """The files that a model names as its external data, by the names that it uses; None where that cannot be told and need not.

    Args:
        is_bare: the model itself has no evidence.

    Raises:
        LoadRefusedError: one of them is not right, lies outside the model's folder, or the model cannot be understood.
    """
    walker = Walker(lambda offset, length: model[offset : offset + length], len(model))
    try:
        found = find_tensors(walker, only_external=True)
    except CheckpointError as error:
        charge.unverifiable(f"which files it needs cannot be told: {error}", is_absent=is_bare)
        return None
    names = sorted({named.tensor.external.location for named in found if named.tensor.external is not None})
    if len(names) > EXTERNAL_FILES_LIMIT:
        charge.unverifiable(f"names {len(names)} files of external data; the most is {EXTERNAL_FILES_LIMIT}", is_absent=is_bare)
        return None
    folder = os.path.dirname(os.path.abspath(charge.shown))
    data: dict[str, bytes] = {}
    for name in names:
        path = os.path.normpath(os.path.join(folder, name))
        if os.path.isabs(name) or not path.startswith(folder.rstrip("/") + "/") or "\0" in name:
            charge.unverifiable(f"names a file outside its folder as external data: {name!r}", is_absent=is_bare)
            return None
        data[name] = _whole(charge_of(charge.gate, path, _LOADER))[0]
    return data
