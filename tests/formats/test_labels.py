"""Labels ``ELEMENT[.BE][@axes]``: what they mean, by NumPy's reckoning, and that a hostile one is only an unknown type."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitward_agent.flips import list_flips
from bitward_formats import records
from bitward_formats.blocks import Block
from bitward_formats.errors import UnknownDtypeError
from bitward_formats.readers import safetensors
from bitward_formats.records.labels import Label, parse_label
from bitward_formats.spans import OPAQUE_KIND, Role, Span
from formats.test_spec_tables import section_text, tables

NUMPY_TYPES = {
    "F64": "f8", "F32": "f4", "F16": "f2", "C64": "c8", "C128": "c16", "I64": "i8", "U64": "u8", "I32": "i4", "U32": "u4", "I16": "i2",
    "U16": "u2", "I8": "i1", "U8": "u1",
}  # fmt: skip

HOSTILE = [
    "f32", "F32 ", " F32", "F32.be", "F32.BE.BE", "F32.", ".BEF32", "F32@", "F32@0,", "F32@,0", "F32@0,0", "F32@1", "F32@0,2", "F32@-1",
    "F32@01,0", "F32@0.BE",
    "F32@\u0660", "F32@0,1\n", "F32\n", "\x00", "F32@" + ",".join(map(str, range(200))), "@" * 255, "F32@" + "9" * 251,
    "F32@999", "\uff2632", "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("text", ["", "F32", "BF16.BE", "I8@0", "F32.BE@2,0,1", "F4@1,0", ".BE", "@0", "UNHEARD_OF.BE@1,0"])
def test_a_label_is_what_its_parts_say(text: str) -> None:
    assert str(parse_label(text)) == text


def test_the_parts_of_a_label_are_those_of_the_spec() -> None:
    (rows,) = tables("2.2.1")
    assert [row["part"] for row in rows] == ["element", "order", "axes"]
    whole = "".join(row["form"] for row in rows)
    assert parse_label(whole) == Label("F32", True, (1, 0))
    assert "255 bytes" in section_text("2.2.1")
    # Its example: the mask of F32.BE, and the second element in memory.
    assert records.kind_of("F32.BE").critical_mask.hex(" ") == "ff 80 00 00"
    span = Span(Role.TENSOR, records.kind_of("F32"), 0, 24, "F32@1,0", (2, 3), "w")
    assert records.locator(span, records.form_of_span(span))(1) == (1, 0)


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_labels_are_unknown_types(text: str) -> None:
    for call in (records.kind_of, records.element_bits, records.elements_per_record, records.form_of, parse_label):
        with pytest.raises(UnknownDtypeError) as caught:
            call(text)
        assert len(str(caught.value)) < 800
    assert not records.is_known(text)
    assert flip_of(text, (2, 3), 24, 5, 6) == (("w", (5,), 6, "raw", 5), 64, 0)


@given(st.text(max_size=300), st.lists(st.integers(0, 1 << 64), max_size=8), st.integers(0, 3))
def test_any_label_on_any_shape_names_a_place(text: str, dims: list[int], records_count: int) -> None:
    for label in (text, f"F32{text}", f"F16.BE@{text}"):
        kind = records.kind_of(label) if records.is_known(label) else OPAQUE_KIND
        length = (records_count + 1) * kind.record_bytes
        (name, index, _, _, offset), _, _ = flip_of(label, tuple(dims), length, length - 1, 0)
        assert (name, offset) == ("w", length - 1)
        assert all(0 <= one < max([length, *dims]) for one in index)


def flip_of(dtype: str, dims: tuple[int, ...], length: int, byte: int, bit: int) -> tuple[tuple[object, ...], object, object]:
    """A flip in a span of zeros, as it is reported: ((tensor, index, bit, field, offset), found, correct)."""
    kind = records.kind_of(dtype) if records.is_known(dtype) else OPAQUE_KIND
    span = Span(Role.TENSOR, kind, 0, length, dtype, dims, "w")
    correct = np.zeros(length, np.uint8)
    found = correct.copy()
    found[byte] ^= 1 << bit
    (flip,) = list_flips(Block(0, 0, 0, length, span), found, correct, 10)
    return (flip.tensor, flip.index, flip.bit, flip.field, flip.offset), flip.found, flip.correct


@pytest.mark.parametrize("element", records.PLAIN_DTYPES)
def test_big_endian_records_are_the_little_endian_ones_with_swapped_bytes(element: str) -> None:
    little, big = records.form_of(element), records.form_of(f"{element}.BE")
    assert (big.kind.record_bytes, big.elements) == (little.kind.record_bytes, little.elements)
    part = 8 if element == "C128" else 4 if element == "C64" else 2 if element == "C32" else little.kind.record_bytes
    if records.element_bits(element) < 8:
        part = 1
    mask = little.kind.critical_mask
    assert big.kind.critical_mask == b"".join(mask[at : at + part][::-1] for at in range(0, len(mask), part))


@pytest.mark.parametrize(("element", "code"), NUMPY_TYPES.items())
@pytest.mark.parametrize(("order", "mark"), [("", "<"), (".BE", ">")])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)], ids=str)
def test_flips_are_named_as_numpy_sees_them(element: str, code: str, order: str, mark: str, axes: tuple[int, ...]) -> None:
    dims = (3, 4, 5)
    dtype = np.dtype(mark + code)
    seed = 11
    memory = np.random.default_rng(seed).integers(0, 127, math.prod(dims) * dtype.itemsize, dtype=np.uint8)
    label = f"{element}{order}@{','.join(map(str, axes))}"
    span = Span(Role.TENSOR, records.kind_of(label), 0, memory.size, label, dims, "w")
    for byte in range(0, memory.size, 7):
        damaged = memory.copy()
        damaged[byte] ^= 1 << byte % 8
        (flip,) = list_flips(Block(0, 0, 0, memory.size, span), damaged, memory, 10)
        arrays = [part.view(dtype).reshape([dims[axis] for axis in axes]).transpose(np.argsort(axes)) for part in (damaged, memory)]
        assert arrays[0].shape == dims
        opaque = [array.view(f"V{dtype.itemsize}") for array in arrays]
        differing = [tuple(map(int, where)) for where in np.argwhere(opaque[0] != opaque[1])]
        assert [flip.index] == differing
        values = [array[flip.index].item() for array in arrays]
        if isinstance(values[0], complex):
            assert [complex(str(flip.found)), complex(str(flip.correct))] == pytest.approx(values, rel=1e-8)
        else:
            assert [flip.found, flip.correct] == [one if math.isfinite(one) else str(one) for one in values]
        assert dtype.newbyteorder("<").itemsize * 8 > flip.bit
        as_number = [int.from_bytes(array[flip.index].astype(dtype.newbyteorder("<")).tobytes(), "little") for array in arrays]
        assert as_number[0] ^ as_number[1] == 1 << flip.bit


def test_axes_reach_every_element_once() -> None:
    span = Span(Role.TENSOR, records.kind_of("U8"), 0, 24, "U8@1,2,0", (2, 3, 4), "w")
    locate = records.locator(span, records.form_of_span(span))
    assert {locate(place) for place in range(24)} == set(itertools.product(range(2), range(3), range(4)))
    assert [locate(place) for place in range(3)] == [(0, 0, 0), (1, 0, 0), (0, 0, 1)]


def test_axes_of_another_rank_leave_the_bare_place() -> None:
    assert flip_of("F32@1,0", (2, 3, 1), 24, 4, 0)[0] == ("w", (1,), 0, "mantissa", 4)


def test_a_record_that_is_not_as_long_as_its_label_says_is_bytes() -> None:
    span = Span(Role.TENSOR, records.kind_of("F64"), 0, 24, "F32", (6,), "w")
    assert records.form_of_span(span) is records.OPAQUE_FORM


def test_what_safetensors_knows_is_plain() -> None:
    assert set(records.PLAIN_DTYPES) > safetensors.DTYPES
