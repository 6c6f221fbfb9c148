"""The exponent guard at load: mask and clip on the parameters of a PyTorch module in this process's memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from bitward_agent.diagnosis.placing import DTYPE_LABELS
from bitward_agent.diagnosis.tensor_bits import FORMS
from bitward_agent.hardening.exponent_guard import FileGuard, GuardedFile, mask_and_clip
from bitward_agent.hardening.float_tensors import unsigned_type

_AT_ONCE = 1 << 21


def apply_to_module(module: nn.Module, guards: Sequence[FileGuard]) -> GuardedFile:
    """Guard the parameters whose name, type and size a guard knows; the others stay as they are. Parameters may be on any device.

    Names may lack or have the module's ``base_model_prefix``, as in files of transformers. ``missing`` names tensors of the guards that
    are no parameter of the module.
    """
    prefix = getattr(module, "base_model_prefix", "")
    parameters = dict(module.named_parameters())
    masked = clipped = 0
    missing: list[str] = []
    for guard in (one for file in guards for one in file.tensors):
        names = (guard.name, f"{prefix}.{guard.name}", guard.name.removeprefix(f"{prefix}."))
        parameter = next((parameters[name] for name in names if name in parameters), None)
        if parameter is None or (DTYPE_LABELS.get(parameter.dtype), parameter.numel()) != (guard.dtype, guard.elements):
            missing.append(guard.name)
            continue
        integer = FORMS[parameter.dtype].integer
        flat = parameter.detach().cpu().contiguous().view(-1)
        changed = False
        for first in range(0, flat.numel(), _AT_ONCE):
            piece = flat[first : first + _AT_ONCE]
            bits = piece.view(integer).numpy().view(unsigned_type(guard.dtype))
            new, masked_here, clipped_here = mask_and_clip(first, bits, guard)
            if masked_here or clipped_here:
                piece.view(integer).copy_(torch.from_numpy(new.view(bits.dtype.str.replace("u", "i"))))
                masked, clipped, changed = masked + masked_here, clipped + clipped_here, True
        if changed:
            parameter.data.copy_(flat.view(parameter.shape))
    return GuardedFile("", masked, clipped, tuple(missing))
