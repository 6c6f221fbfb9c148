"""How two checkpoints differ: the report of ``diff``."""

from __future__ import annotations

from bitward_agent.findings import Flip
from bitward_formats.frozen import dataclass


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """A tensor that differs between two checkpoints. ``kind``: changed | only-in-a | only-in-b | dtype | shape."""

    tensor: str | None
    kind: str
    elements: int
    bits: int
    largest_change: float | str | None
    flips: tuple[Flip, ...] = ()


@dataclass(frozen=True, slots=True)
class DiffReport:
    """``identical`` is true only when every byte of both was compared, or both roots were, and they are equal."""

    schema: str
    a: str
    b: str
    identical: bool
    seconds: float
    compared_bytes: int
    differences: tuple[TensorDifference, ...]
    differing_bits: int
    exit_code: int = 0
