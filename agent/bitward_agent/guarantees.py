"""What a sidecar can repair, in numbers: the report of ``explain``."""

from __future__ import annotations

from bitward_formats.frozen import dataclass


@dataclass(frozen=True, slots=True)
class LaneGuarantee:
    """What one lane group of one record kind can bear.

    ``flips_per_cell_and_lane`` wrong bits of one lane among ``cell_records`` neighbouring records (``cell_bytes`` bytes) are put back by
    the inner code alone; ``blocks_per_stripe`` lost blocks of a stripe of ``stripe_slots`` by the outer code (0: none).
    """

    lanes: str
    dtypes: tuple[str, ...]
    lane_count: int
    cell_records: int
    cell_bytes: int
    flips_per_cell_and_lane: int
    stripe_slots: int
    blocks_per_stripe: int


@dataclass(frozen=True, slots=True)
class FileGuarantee:
    """``longest_burst_bytes`` is the longest run of lost bytes, wherever it lies, that is sure to come back whole."""

    path: str
    bytes: int
    sidecar: str
    sidecar_bytes: int
    overhead: float
    root: str
    origin: str
    preset: str
    leaf_hash: str
    protected_ns: int
    format: str
    tensors: int
    blocks: int
    zones: int
    guarantees: tuple[LaneGuarantee, ...]
    longest_burst_bytes: int
    parity_bytes: int = 0
    digest_bytes: int = 0
    message: str = ""
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class ExplainReport:
    schema: str
    files: tuple[FileGuarantee, ...]
    exit_code: int = 0
