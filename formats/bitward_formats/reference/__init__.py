"""The slow, obvious twin of the codec, written from ``SPEC.md`` alone. For tests, vectors and readers of the SPEC.

Its rules: plain Python over bytes and integers, one module per section of the SPEC, no cleverness that the SPEC does not
have. It shares nothing with the fast codec but the value types of ``spans`` and the errors, so that the two can disagree.
It checks what it is asked to write and never opens a file. It repairs less than a good decoder can: it takes a damaged
block as lost as a whole once its single flips do not explain it.
"""

from bitward_formats.reference.groups import PRESETS, LaneGroup
from bitward_formats.reference.layout_stream import decode_layout, encode_layout
from bitward_formats.reference.limits import BLAKE3_LEAF, XXH3_LEAF
from bitward_formats.reference.reading import read_unit_index
from bitward_formats.reference.repairing import BeyondRepairError, repair, verify
from bitward_formats.reference.writing import UnitEntry, build_sidecar, build_unit_index, unit_index_stream

__all__ = [
    "BLAKE3_LEAF",
    "PRESETS",
    "XXH3_LEAF",
    "BeyondRepairError",
    "LaneGroup",
    "UnitEntry",
    "build_sidecar",
    "build_unit_index",
    "decode_layout",
    "encode_layout",
    "read_unit_index",
    "repair",
    "unit_index_stream",
    "verify",
]
