"""The fast codec against the slow twin, piece by piece, on random input."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitward_formats import geometry, groups, layout, merkle
from bitward_formats.blocks import BlockTable
from bitward_formats.errors import LayoutError
from bitward_formats.lanes import inner_blobs, unpack_blobs
from bitward_formats.packing import pack_lanes, unpack_lanes
from bitward_formats.reference import decode_layout, encode_layout, inner, packing, tree
from bitward_formats.reference import groups as twin_groups
from bitward_formats.reference.outer import parities
from bitward_formats.spans import BLOCK_LIMIT_BYTES, OPAQUE_KIND, Layout, RecordKind, Role, Span
from bitward_formats.stripes import StripeAccumulator, from_symbols, to_symbols

kinds = st.integers(1, 40).flatmap(lambda size: st.builds(RecordKind, st.just(size), st.binary(min_size=size, max_size=size)))
lane_groups = st.sampled_from(
    [
        *groups.PRESETS.values(),
        (groups.LaneGroup(groups.Selector.ALL, 0, 3),),
        (groups.LaneGroup(groups.Selector.OTHER, 3, 2), groups.LaneGroup(groups.Selector.CRITICAL, 5, 0)),
        (groups.LaneGroup(groups.Selector.CRITICAL, 16, 5),),
        (groups.LaneGroup(groups.Selector.ALL, 4, 0),),
    ]
)


def twins(some: groups.LaneGroups) -> list[twin_groups.LaneGroup]:
    return [twin_groups.LaneGroup(int(group.selector), group.cell_log2, group.stripe_slots) for group in some]


@given(kinds, st.integers(1, 90), st.integers(0, 2**32), lane_groups)
@settings(deadline=None, max_examples=150)
def test_inner_blobs(kind: RecordKind, records: int, seed: int, some: groups.LaneGroups) -> None:
    data = np.random.default_rng(seed).integers(0, 256, (2, records * kind.record_bytes), dtype=np.uint8)
    blobs = inner_blobs(data, kind, some)
    for block, blob in zip(data, blobs, strict=True):
        assert blob.tobytes() == inner.inner_blob(block.tobytes(), kind, twins(some))
    assert blobs.shape[1] == geometry.inner_blob_bytes(kind, data.shape[1], some)
    unpack_blobs(blobs, kind, data.shape[1], some)


@given(kinds, st.integers(1, 50), st.integers(0, 2**32))
@settings(deadline=None, max_examples=150)
def test_packed_lanes(kind: RecordKind, records: int, seed: int) -> None:
    data = np.random.default_rng(seed).integers(0, 256, (1, records, kind.record_bytes), dtype=np.uint8)
    packed = pack_lanes(data, kind.critical_mask)
    assert packed.tobytes() == packing.pack_lanes(data.tobytes(), kind.critical_mask)
    kept = data & np.frombuffer(kind.critical_mask, np.uint8)
    assert (unpack_lanes(packed, records, kind.critical_mask) == kept).all()


@pytest.mark.parametrize("record_bytes", [1, 3, 20, 292])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_stripe_parity(record_bytes: int, count: int) -> None:
    kind = RecordKind(record_bytes, b"\xff" * record_bytes)
    code = geometry.CodeClass(BlockTable(Layout("", 0, ())), [], kind=kind, mask=kind.critical_mask, stripe_slots=9)
    slots = np.random.default_rng(count).integers(0, 256, (count, 2, code.slot_bytes), dtype=np.uint8)
    accumulator = StripeAccumulator(code, 2)
    for position in range(count):
        accumulator.add(position, 0, slots[position].copy())
    p, q = accumulator.result()
    for stripe in range(2):
        expected = parities([slots[position, stripe].tobytes() for position in range(count)], code.row_bytes)
        assert (p[stripe].tobytes(), q[stripe].tobytes()) == expected
    symbols = to_symbols(slots[:, 0], code.row_bytes)
    assert (from_symbols(symbols, code.row_bytes) == slots[:, 0]).all()


@pytest.mark.parametrize("leaf_count", [0, 1, 2, 255, 256, 257, 65536, 65537])
@pytest.mark.parametrize(("leaf_hash", "leaf_bytes"), [(1, 16), (2, 32)])
def test_span_root(leaf_count: int, leaf_hash: int, leaf_bytes: int) -> None:
    span = Span(Role.DATA, OPAQUE_KIND, 0, leaf_count * BLOCK_LIMIT_BYTES)
    leaves = np.random.default_rng(leaf_count).bytes(leaf_count * leaf_bytes)
    listed = [leaves[at : at + leaf_bytes] for at in range(0, len(leaves), leaf_bytes)]
    assert merkle.span_root(span, leaves, leaf_hash, leaf_bytes) == tree.span_root(span, listed, leaf_hash)


names = st.text(st.characters(codec="utf-8"), max_size=20)


@given(st.lists(st.tuples(kinds, st.integers(0, 5), names, st.lists(st.integers(0, 2**40), max_size=4)), max_size=6))
@settings(deadline=None, max_examples=150)
def test_layout_stream(parts: list[tuple[RecordKind, int, str, list[int]]]) -> None:
    spans, offset = [], 0
    for kind, records, name, dims in parts:
        spans.append(Span(Role.TENSOR, kind, offset, records * kind.record_bytes, "BF16", tuple(dims), name))
        offset = spans[-1].end
    one = Layout("test", offset, tuple(spans))
    stream = layout.encode_layout(one)
    assert stream == encode_layout(one)
    assert layout.decode_layout(stream, offset) == decode_layout(stream, offset) == one


def outcome(decode: Callable[[bytes, int], Layout], stream: bytes, file_bytes: int) -> Layout | None:
    try:
        return decode(stream, file_bytes)
    except LayoutError:
        return None


def test_layout_streams_that_are_hurt_are_refused_by_both_or_mean_the_same_to_both() -> None:
    wide, narrow = RecordKind(4, b"\x00\x00\x80\xff"), RecordKind(2, b"\x80\xff")
    parts = ((wide, (3, 5), "blk.0.w"), (narrow, (9,), "bläse"), (wide, (1,) * 6, ""), (narrow, (), "b"))
    spans = [Span(Role.HEADER, OPAQUE_KIND, 0, 8)]
    for kind, dims, name in parts:
        spans.append(Span(Role.TENSOR, kind, spans[-1].end, 60 * kind.record_bytes, "F32", dims, name))
    spans.append(Span(Role.TRAILER, OPAQUE_KIND, spans[-1].end, 1))
    size = spans[-1].end
    stream = layout.encode_layout(Layout("test", size, tuple(spans)))
    flipped = [stream[:at] + bytes([stream[at] ^ 1 << bit]) + stream[at + 1 :] for at in range(len(stream)) for bit in range(8)]
    for hurt in (*flipped, *(stream[:end] for end in range(len(stream))), stream + b"\0", stream * 2):
        assert outcome(layout.decode_layout, hurt, size) == outcome(decode_layout, hurt, size), hurt
    assert [outcome(decode, stream, size + 1) for decode in (layout.decode_layout, decode_layout)] == [None, None]


@pytest.mark.parametrize("kinds", [[OPAQUE_KIND], [RecordKind(2, b"\0\1")], [OPAQUE_KIND, RecordKind(2, b"\0\1")]])
def test_kinds_of_an_empty_layout(kinds: list[RecordKind]) -> None:
    listed = b"".join(kind.record_bytes.to_bytes(2, "little") + kind.critical_mask for kind in kinds)
    stream = b"\x04test" + len(kinds).to_bytes(2, "little") + listed + bytes(4)
    assert outcome(layout.decode_layout, stream, 0) == outcome(decode_layout, stream, 0)
    assert (outcome(layout.decode_layout, stream, 0) is not None) == (kinds == [OPAQUE_KIND])
