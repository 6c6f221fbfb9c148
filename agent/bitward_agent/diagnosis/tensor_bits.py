"""The bits of elements of torch tensors: which there are, and turning one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class BitForm:
    """Sign, exponent and mantissa of an IEEE-like element, counted from the least significant bit."""

    integer: torch.dtype
    bits: int
    mantissa_bits: int

    @property
    def sign(self) -> int:
        return self.bits - 1

    @property
    def exponent(self) -> range:
        """The exponent's bits, from the least."""
        return range(self.mantissa_bits, self.bits - 1)

    @property
    def weighty(self) -> tuple[int, ...]:
        """The bits whose flip can matter: sign, exponent and the two upper bits of the mantissa (a change by a quarter or more)."""
        return (self.sign, *reversed(self.exponent), self.mantissa_bits - 1, self.mantissa_bits - 2)

    def mask(self, bit: int) -> int:
        """The bit as an integer of the element's width, which is signed."""
        return 1 << bit if bit < self.bits - 1 else -(1 << bit)

    def field_of(self, bit: int) -> str:
        """sign | exponent | mantissa."""
        return "sign" if bit == self.sign else "exponent" if bit >= self.mantissa_bits else "mantissa"


FORMS = {
    torch.float32: BitForm(torch.int32, 32, 23),
    torch.float16: BitForm(torch.int16, 16, 10),
    torch.bfloat16: BitForm(torch.int16, 16, 7),
    torch.float64: BitForm(torch.int64, 64, 52),
}


def flipped(values: Tensor, bit: int) -> Tensor:
    """A copy of contiguous ``values`` with one bit of each element turned; same dtype and shape."""
    form = FORMS[values.dtype]
    return (values.contiguous().view(form.integer) ^ form.mask(bit)).view(values.dtype)


def flip_in_place(parameter: nn.Parameter, element: int, bit: int) -> None:
    """Turn one bit of one element, counted in row-major order, of a parameter of any layout."""
    form = FORMS[parameter.dtype]
    place = element_view(parameter, element)
    place.view(form.integer).bitwise_xor_(form.mask(bit))


def element_view(parameter: Tensor, element: int) -> Tensor:
    """The element as a tensor of one element that shares its memory."""
    index = torch.unravel_index(torch.tensor(element), parameter.shape)
    part = parameter.data[tuple(int(one) for one in index)] if parameter.dim() else parameter.data
    return part.view(1)


def value_of(parameter: Tensor, element: int) -> float:
    """The element as a Python number (which may be NaN or infinite)."""
    return float(element_view(parameter, element))
