"""Loading through a gate: what ``bitward.load_safetensors``, ``safe_open`` and ``torch_load`` do, and what the hooks call."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from bitward.loaders.gated import charge_of, open_gated
from bitward.loaders.policy import Gate, Policy, gated_off, policy_of
from bitward.loaders.safetensors_file import NoSafetensorsError, VerifiedFile
from bitward.loaders.sealed import SealedFolder, copy_into
from bitward.loaders.tensors import FRAMEWORKS
from bitward.targets import PathLike, folder_of
from bitward_agent.errors import InputError

NAMELESS_TOLD = "an open file that has no name any more, by which its sidecar could be found"


def gate_for(policy: str, sidecar_dir: PathLike | None) -> Gate:
    """A gate for one call. Raises InputError: ``off`` gates nothing, so it makes no sense there."""
    chosen = policy_of(policy)
    if chosen is Policy.OFF:
        raise InputError("policy 'off' verifies nothing: call the loader itself")
    return Gate(chosen, folder_of(sidecar_dir))


def open_safetensors(path: PathLike, framework: str, device: Any, gate: Gate, loader: str) -> VerifiedFile | None:
    """The file behind the gate, or None where the policy lets it be loaded as it is (that was told).

    Raises:
        LoadRefusedError: the policy does not.
        FileNotFoundError: no such file.
        InputError: a framework other than PyTorch and NumPy.
    """
    known = FRAMEWORKS.get(framework)
    if known is None:
        raise InputError(f"framework {framework!r}: verified tensors come as 'pt' or 'np'")
    charge = charge_of(gate, os.fspath(path), loader)
    gated = open_gated(charge)
    if gated is None:
        return None
    try:
        return VerifiedFile(gated, charge, known, device)
    except NoSafetensorsError:
        return None


@contextlib.contextmanager
def verified_path(path: str, gate: Gate, loader: str) -> Iterator[str]:
    """A path whose bytes were verified and cannot change, under the file's own name; the path itself where the policy lets that be loaded.

    It may be opened and mapped while the context lasts; maps outlive it.

    Raises:
        LoadRefusedError, FileNotFoundError: as :func:`bitward.loaders.gated.open_gated`.
        WriteError: there is not enough memory for the copy.
    """
    gated = open_gated(charge_of(gate, path, loader))
    if gated is None:
        yield path
        return
    try:
        folder = SealedFolder()
    except BaseException:
        gated.close()
        raise
    with folder:
        yield copy_into(folder, [(path, gated)])[0]


def name_of(fd: int) -> str | None:
    """The path of an open file; None if it has none, or if another file has that name by now: evidence about that one says nothing here."""
    name = os.readlink(f"/proc/self/fd/{fd}")
    with contextlib.suppress(OSError):
        if os.path.samestat(os.stat(name), os.fstat(fd)):
            return name
    return None


def load_safetensors(
    path: PathLike, framework: str = "pt", device: Any = "cpu", *, policy: str = "enforce", sidecar_dir: PathLike | None = None
) -> dict[str, Any]:
    """See :func:`bitward.api.load_safetensors`."""
    with safe_open(path, framework, device, policy=policy, sidecar_dir=sidecar_dir) as file:
        found: dict[str, Any] = file.get_tensors()
    return found


def safe_open(
    path: PathLike, framework: str = "pt", device: Any = "cpu", *, policy: str = "enforce", sidecar_dir: PathLike | None = None
) -> Any:
    """See :func:`bitward.api.safe_open`."""
    file = open_safetensors(path, framework, device, gate_for(policy, sidecar_dir), "bitward.safe_open")
    if file is not None:
        return file
    from safetensors import safe_open as plain

    with gated_off():
        return plain(path, framework, device)


def torch_load(path: PathLike, *args: Any, policy: str = "enforce", sidecar_dir: PathLike | None = None, **options: Any) -> Any:
    """See :func:`bitward.api.torch_load`."""
    name, gate = os.fspath(path), gate_for(policy, sidecar_dir)
    if name.endswith(".safetensors"):
        raise InputError(f"{name}: load it with bitward.load_safetensors")
    import torch

    with verified_path(name, gate, "bitward.torch_load") as verified, gated_off():
        return torch.load(verified, *args, **options)
