"""The record kinds are those of the SPEC's table, and every element decodes to the value that its format defines."""

from __future__ import annotations

import itertools
import math
import random
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from bitward_formats import records
from bitward_formats.errors import UnknownDtypeError
from bitward_formats.spans import OPAQUE_KIND

SPEC = Path(__file__).parents[2] / "formats" / "SPEC.md"
SMALL_FLOATS = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F6_E2M3", "F6_E3M2", "F4")


def spec_table() -> dict[str, tuple[int, set[int]]]:
    """The rows of SPEC section 2.2: dtype -> record bytes, critical lanes."""
    section = SPEC.read_text("utf-8").split("### 2.2", 1)[1].split("### 2.3", 1)[0]
    rows = re.findall(r"^\| ([A-Z0-9_]+) \| (\d+) \| ([0-9–, ]+) \|$", section, re.MULTILINE)
    table = {}
    for dtype, record_bytes, ranges in rows:
        ends = [tuple(map(int, lanes.split("–"))) for lanes in ranges.split(", ")]
        table[dtype] = int(record_bytes), {lane for end in ends for lane in range(end[0], end[-1] + 1)}
    return table


def lanes_of(mask: bytes) -> set[int]:
    return {lane for lane in range(8 * len(mask)) if mask[lane // 8] >> lane % 8 & 1}


def same(decoded: float | int | str, wanted: float) -> bool:
    """Equal as JSON values, with minus zero told from zero."""
    if not math.isfinite(wanted):
        return decoded == str(wanted)
    return isinstance(decoded, float) and struct.pack("d", decoded) == struct.pack("d", wanted)


def test_the_table_is_the_one_of_the_spec() -> None:
    table = spec_table()
    assert tuple(table) == records.PLAIN_DTYPES
    for dtype, (record_bytes, critical) in table.items():
        kind = records.kind_of(dtype)
        assert (kind.record_bytes, lanes_of(kind.critical_mask)) == (record_bytes, critical), dtype
        assert records.element_bits(dtype) * records.elements_per_record(dtype) == 8 * record_bytes, dtype


def test_opaque_bytes_are_an_element_type_of_their_own() -> None:
    assert records.kind_of("") is OPAQUE_KIND
    assert (records.element_bits(""), records.elements_per_record("")) == (8, 1)
    assert records.field_of("", 7) == "raw"
    assert records.decode_element("", 0xA5) == 0xA5


def test_elements_below_a_byte_share_a_record() -> None:
    assert {dtype: records.elements_per_record(dtype) for dtype in records.PLAIN_DTYPES if records.elements_per_record(dtype) > 1} == {
        "F6_E2M3": 4,
        "F6_E3M2": 4,
        "F4": 2,
        "I4": 2,
        "U4": 2,
        "I2": 4,
        "U2": 4,
    }


@pytest.mark.parametrize(
    "call", [records.kind_of, records.element_bits, records.elements_per_record, lambda d: records.field_of(d, 0)], ids=str
)
@pytest.mark.parametrize("dtype", ["F80", "f32", "BF16 ", "\x00", "x" * 100_000])
def test_unknown_types_are_named_errors(call, dtype) -> None:
    with pytest.raises(UnknownDtypeError) as caught:
        call(dtype)
    assert len(str(caught.value)) < 500


def test_fields_agree_with_the_critical_mask() -> None:
    for dtype in records.PLAIN_DTYPES:
        critical = lanes_of(records.kind_of(dtype).critical_mask)
        for bit in range(records.element_bits(dtype)):
            field = records.field_of(dtype, bit)
            if dtype[0] in "FBC" and dtype != "BOOL":
                assert (field in ("sign", "exponent", "scale")) == (bit in critical), (dtype, bit)
            else:
                assert field == "raw"


def test_fields_by_name() -> None:
    assert [records.field_of("BF16", bit) for bit in (0, 6, 7, 14, 15)] == ["mantissa", "mantissa", "exponent", "exponent", "sign"]
    assert [records.field_of("C64", bit) for bit in (22, 23, 31, 32, 54, 55, 62, 63)] == [
        "mantissa",
        "exponent",
        "sign",
        "mantissa",
        "mantissa",
        "exponent",
        "exponent",
        "sign",
    ]
    assert [records.field_of("F4", bit) for bit in range(4)] == ["mantissa", "exponent", "exponent", "sign"]
    assert {records.field_of("F8_E8M0", bit) for bit in range(8)} == {"scale"}


@pytest.mark.parametrize("dtype", ["", *records.PLAIN_DTYPES])
def test_bits_that_are_not_there_are_refused(dtype: str) -> None:
    width = records.element_bits(dtype)
    records.decode_element(dtype, (1 << width) - 1)
    for bits in (-1, 1 << width):
        with pytest.raises(ValueError, match="does not fit"):
            records.decode_element(dtype, bits)
    for bit in (-1, width):
        with pytest.raises(ValueError, match="has bits"):
            records.field_of(dtype, bit)


def test_every_f16_is_what_numpy_says() -> None:
    values = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)
    assert all(same(records.decode_element("F16", bits), value) for bits, value in enumerate(values.tolist()))


def test_every_bf16_is_the_upper_half_of_an_f32() -> None:
    for bits in range(1 << 16):
        (value,) = struct.unpack("<f", struct.pack("<I", bits << 16))
        assert same(records.decode_element("BF16", bits), value), hex(bits)


def interesting(width: int, mantissa_bits: int) -> list[int]:
    """Zeros, subnormals, one, infinities, NaNs and their neighbours, and seeded random patterns."""
    edges = [
        0,
        1,
        (1 << mantissa_bits) - 1,
        1 << mantissa_bits,
        (1 << width - 1) - 1,
        ((1 << width - 1) - 1) >> mantissa_bits << mantissa_bits,
    ]
    near = {edge + delta for edge in edges for delta in (-1, 0, 1)}
    seeded = random.Random(20)
    both_signs = {bits | sign for bits in near if 0 <= bits < 1 << width - 1 for sign in (0, 1 << width - 1)}
    return sorted(both_signs | {seeded.getrandbits(width) for _ in range(2000)})


@pytest.mark.parametrize(("dtype", "code", "uint", "width", "mantissa_bits"), [("F32", "<f", "<I", 32, 23), ("F64", "<d", "<Q", 64, 52)])
def test_wide_floats_are_what_the_machine_says(dtype: str, code: str, uint: str, width: int, mantissa_bits: int) -> None:
    for bits in interesting(width, mantissa_bits):
        (value,) = struct.unpack(code, struct.pack(uint, bits))
        assert same(records.decode_element(dtype, bits), value), hex(bits)


HAND_COMPUTED = {
    "F8_E4M3": {
        0x00: 0.0,
        0x80: -0.0,
        0x01: 2**-9,
        0x07: 7 * 2**-9,
        0x08: 2**-6,
        0x38: 1.0,
        0x78: 256.0,
        0x7E: 448.0,
        0x7F: "nan",
        0xFF: "nan",
        0xFE: -448.0,
    },
    "F8_E5M2": {
        0x01: 2**-16,
        0x03: 3 * 2**-16,
        0x04: 2**-14,
        0x3C: 1.0,
        0x7B: 57344.0,
        0x7C: "inf",
        0xFC: "-inf",
        0x7D: "nan",
        0xFF: "nan",
        0x80: -0.0,
    },
    "F8_E4M3FNUZ": {0x00: 0.0, 0x80: "nan", 0x01: 2**-10, 0x08: 2**-7, 0x40: 1.0, 0x7F: 240.0, 0xFF: -240.0, 0x78: 128.0, 0x81: -(2**-10)},
    "F8_E5M2FNUZ": {0x00: 0.0, 0x80: "nan", 0x01: 2**-17, 0x04: 2**-15, 0x40: 1.0, 0x7F: 57344.0, 0x7C: 32768.0, 0xFF: -57344.0},
    "F8_E8M0": {0x00: 2**-127, 0x7F: 1.0, 0x80: 2.0, 0xFE: 2.0**127, 0xFF: "nan"},
    "F6_E2M3": {0x00: 0.0, 0x01: 0.125, 0x07: 0.875, 0x08: 1.0, 0x1F: 7.5, 0x20: -0.0, 0x3F: -7.5},
    "F6_E3M2": {0x00: 0.0, 0x01: 0.0625, 0x03: 0.1875, 0x04: 0.25, 0x0C: 1.0, 0x1F: 28.0, 0x3F: -28.0},
    "F4": {0: 0.0, 1: 0.5, 2: 1.0, 3: 1.5, 4: 2.0, 5: 3.0, 6: 4.0, 7: 6.0, 8: -0.0, 9: -0.5, 15: -6.0},
}


@pytest.mark.parametrize(("dtype", "bits", "wanted"), [(d, b, w) for d, table in HAND_COMPUTED.items() for b, w in table.items()])
def test_small_floats_against_hand_computed_values(dtype: str, bits: int, wanted: float | str) -> None:
    decoded = records.decode_element(dtype, bits)
    assert decoded == wanted if isinstance(wanted, str) else same(decoded, wanted)


@pytest.mark.parametrize("dtype", [*SMALL_FLOATS, "F16", "BF16"])
def test_positive_floats_grow_with_their_bits(dtype: str) -> None:
    """Sign-magnitude floats are ordered as their bits, and each negative one mirrors a positive one."""
    sign = 1 << records.element_bits(dtype) - 1
    positive = [records.decode_element(dtype, bits) for bits in range(sign)]
    numbers = [value for value in positive if value != "nan"]
    assert all(float(low) < float(high) for low, high in itertools.pairwise(numbers))
    assert positive[: len(numbers)] == numbers, "NaNs come last"
    for bits in range(1, sign):
        negative = records.decode_element(dtype, bits | sign)
        assert negative == "nan" if positive[bits] == "nan" else float(negative) == -float(positive[bits])


def test_counts_of_what_is_not_a_number() -> None:
    not_numbers = {
        dtype: sum(isinstance(records.decode_element(dtype, bits), str) for bits in range(1 << records.element_bits(dtype)))
        for dtype in SMALL_FLOATS
    }
    assert not_numbers == {"F8_E4M3": 2, "F8_E5M2": 8, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "F6_E2M3": 0, "F6_E3M2": 0, "F4": 0}


def test_scales_are_powers_of_two() -> None:
    for bits in range(255):
        assert records.decode_element("F8_E8M0", bits) == 2.0 ** (bits - 127)


@pytest.mark.parametrize("width", [8, 16, 32, 64])
def test_integers_are_twos_complement(width: int) -> None:
    for bits in (0, 1, (1 << width - 1) - 1, 1 << width - 1, (1 << width) - 1):
        raw = bits.to_bytes(width // 8, "little")
        assert records.decode_element(f"I{width}", bits) == int.from_bytes(raw, "little", signed=True)
        assert records.decode_element(f"U{width}", bits) == bits


def test_booleans_show_what_is_there() -> None:
    assert [records.decode_element("BOOL", bits) for bits in (0, 1, 0x81)] == [0, 1, 0x81]


def complex_bits(real: float, imaginary: float) -> int:
    return int.from_bytes(struct.pack("<ff", real, imaginary), "little")


def test_complex_elements_are_two_f32() -> None:
    assert records.decode_element("C64", complex_bits(1.5, 2.0)) == "1.5+2j"
    assert records.decode_element("C64", complex_bits(-0.25, -(2.0**100))) == "-0.25-1.2676506e+30j"
    assert records.decode_element("C64", complex_bits(math.inf, math.nan)) == "inf+nanj"


@pytest.mark.parametrize("dims", [(), (1,), (7,), (2, 3), (3, 1, 5, 2)])
def test_unravel_is_row_major(dims: tuple[int, ...]) -> None:
    count = math.prod(dims)
    assert [records.unravel(index, dims) for index in range(count)] == list(itertools.product(*map(range, dims)))
    for index in (-1, count):
        with pytest.raises(ValueError, match="no element"):
            records.unravel(index, dims)


def test_unravel_of_an_empty_array_has_no_element() -> None:
    with pytest.raises(ValueError, match="no element"):
        records.unravel(0, (3, 0, 2))
