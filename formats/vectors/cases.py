"""The cases of the test vectors: files, layouts and settings. What is done to them stands in ``corruptions.py``."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from bitward_formats.reference import BLAKE3_LEAF, PRESETS, XXH3_LEAF
from bitward_formats.spans import OPAQUE_KIND, Layout, RecordKind, Role, Span

CONTENT_RULE = "SHA-256(label || u64 0) || SHA-256(label || u64 1) || ..., cut to file_bytes; label in ASCII, the numbers little-endian"


def mask_of(record_bytes: int, *ranges: tuple[int, int]) -> RecordKind:
    """A kind whose critical lanes are the ranges, first and last lane included as in the SPEC's table."""
    lanes = sum(1 << lane for first, last in ranges for lane in range(first, last + 1))
    return RecordKind(record_bytes, lanes.to_bytes(record_bytes, "little"))


# Rows of the SPEC's table of section 2.2 that the vectors use.
KINDS = {
    "F64": mask_of(8, (52, 63)),
    "F32": mask_of(4, (23, 31)),
    "F16": mask_of(2, (10, 15)),
    "BF16": mask_of(2, (7, 15)),
    "F8_E4M3": mask_of(1, (3, 7)),
    "F6_E2M3": mask_of(3, (3, 5), (9, 11), (15, 17), (21, 23)),
    "I64": mask_of(8, (32, 63)),
    "BOOL": mask_of(1, (0, 7)),
}
# A quantised block of 20 bytes with a scale in its first two; its size is no power of two, so neither are rows and slots.
RECORDS_20_KIND = mask_of(20, (8, 15))


@dataclass(frozen=True, slots=True)
class Case:
    """One sidecar to build. ``file`` names the content, which several cases may share; it is stored if ``stored``."""

    name: str
    file: str
    layout: Layout
    preset: str
    groups: tuple[tuple[int, int, int], ...]
    leaf_hash: int = XXH3_LEAF
    origin: int = 0
    mtime_ns: int = 0
    protected_ns: int = 0
    trusted: bool = False
    stored: bool = True


def content(label: str, file_bytes: int) -> bytes:
    """Bytes without pattern that anyone can make again (CONTENT_RULE)."""
    digests = (hashlib.sha256(label.encode() + number.to_bytes(8, "little")).digest() for number in range(-(-file_bytes // 32)))
    return b"".join(digests)[:file_bytes]


# Role, length in bytes, and for tensors kind, dtype, shape, name.
Piece = tuple[Role, int] | tuple[Role, int, RecordKind, str, tuple[int, ...], str]


def layout_of(format_name: str, pieces: list[Piece]) -> Layout:
    """Put pieces one after the other."""
    spans: list[Span] = []
    at = 0
    for piece in pieces:
        if len(piece) == 2:
            spans.append(Span(piece[0], OPAQUE_KIND, at, piece[1]))
        else:
            role, length, kind, dtype, dims, name = piece
            spans.append(Span(role, kind, at, length, dtype, dims, name))
        at += piece[1]
    return Layout(format_name, at, tuple(spans))


def tensor(dtype: str, element_bits: int, dims: tuple[int, ...], name: str) -> Piece:
    """A tensor of a plain element type."""
    elements = 1
    for dim in dims:
        elements *= dim
    return Role.TENSOR, elements * element_bits // 8, KINDS[dtype], dtype, dims, name


def mixed_layout() -> Layout:
    """Every role but opaque data, kinds of five record sizes, full blocks, packed short blocks, a scalar, an empty tensor."""
    return layout_of(
        "safetensors",
        [
            (Role.HEADER, 1000),
            tensor("BF16", 16, (330, 200), "embed.weight"),
            tensor("BF16", 16, (64,), "norm.weight"),
            tensor("F32", 32, (3000,), "head.weight"),
            tensor("F32", 32, (33,), "head.bias"),
            tensor("I64", 64, (), "step"),
            tensor("F8_E4M3", 8, (3, 100), "scales"),
            tensor("F6_E2M3", 6, (880, 100), "six"),
            tensor("BOOL", 8, (7, 11), "kept"),
            tensor("F16", 16, (0, 5), "none"),
            (Role.GAP, 19),
            tensor("BF16", 16, (1000,), "größe"),
            (Role.TRAILER, 5),
        ],
    )


def records_20_layout() -> Layout:
    """Records of 20 bytes in two tensors, between opaque bytes."""
    records = RECORDS_20_KIND
    return layout_of(
        "gguf",
        [
            (Role.HEADER, 96),
            (Role.TENSOR, 6600 * 20, records, "X20", (6600, 32), "blk.0"),
            (Role.TENSOR, 31 * 20, records, "X20", (31, 32), "blk.1"),
            (Role.GAP, 12),
            (Role.TENSOR, 20, records, "X20", (1, 32), "blk.2"),
        ],
    )


def zones_layout() -> Layout:
    """65 tensors of which no two fit into one slot, so that with stripes of one slot there are two zones."""
    return layout_of("safetensors", [tensor("F64", 64, (4104,), f"layer.{number}") for number in range(65)])


def opaque_layout(file_bytes: int) -> Layout:
    """A file of which nothing is known."""
    return layout_of("opaque", [(Role.DATA, file_bytes)])


def all_cases() -> list[Case]:
    """The cases in the order of ``vectors.json``."""
    standard, mixed = PRESETS["standard"], mixed_layout()
    return [
        Case("empty", "empty", layout_of("opaque", []), "standard", standard),
        Case("one-byte", "one-byte", opaque_layout(1), "standard", standard, mtime_ns=-1, protected_ns=1_700_000_000_000_000_001),
        *(
            Case(f"opaque-{file_bytes}", f"opaque-{file_bytes}", opaque_layout(file_bytes), "standard", standard)
            for file_bytes in (65535, 65536, 65537)
        ),
        Case("mixed-standard", "mixed", mixed, "standard", standard, mtime_ns=1_600_000_000_123_456_789),
        Case("mixed-lean", "mixed", mixed, "lean", PRESETS["lean"]),
        Case("mixed-strong", "mixed", mixed, "strong", PRESETS["strong"]),
        Case("mixed-blake3", "mixed", mixed, "standard", standard, leaf_hash=BLAKE3_LEAF, origin=1, trusted=True),
        Case("mixed-narrow", "mixed", mixed, "narrow", ((0, 9, 2),), origin=2),
        Case("mixed-by-kind", "mixed", mixed, "", ((2, 8, 0), (1, 6, 2))),
        Case("records-20", "records-20", records_20_layout(), "lean", PRESETS["lean"]),
        Case("zones", "zones", zones_layout(), "zones", ((0, 11, 1),), stored=False),
    ]
