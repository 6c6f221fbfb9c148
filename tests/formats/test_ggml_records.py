"""The blocks of ggml's quantised types: sizes, critical lanes, and what every single flip does, by the reckoning of the gguf package."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bitward_agent.flips import list_flips
from bitward_formats import records
from bitward_formats.blocks import Block
from bitward_formats.errors import UnknownDtypeError
from bitward_formats.spans import Role, Span
from formats.test_spec_tables import parse_lanes, tables

SEED = 41
NO_DEQUANTISATION = {"Q8_1", "Q8_K", "Q1_0", "Q2_0"}
"""Types that the gguf package does not dequantise."""

KNOWN = [name for name in records.QUANTISED_DTYPES if name not in NO_DEQUANTISATION]
SIGN_WORDS = {"IQ2_XXS", "IQ2_XS", "IQ3_XXS"}
"""Seven bits give the signs of eight elements: a flip may leave the first alone and turn others."""

CODES_ALONE = {name for name in records.QUANTISED_DTYPES if records.form_of(name).worth is None}


@functools.cache
def quants() -> Any:
    pytest.importorskip("gguf")
    from gguf import quants

    return quants


def ggml_type(name: str) -> Any:
    gguf = pytest.importorskip("gguf")
    return getattr(gguf.GGMLQuantizationType, name)


def dequantised(name: str, blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """(n, R) u8 -> (n, elements) by the gguf package."""
    with np.errstate(all="ignore"):
        values: npt.NDArray[np.float32] = quants().dequantize(blocks, ggml_type(name))
    return values


def random_blocks(name: str, count: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(SEED).integers(0, 256, (count, records.kind_of(name).record_bytes), dtype=np.uint8)


def shown(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def test_the_table_is_the_one_of_the_spec() -> None:
    (rows,) = tables("2.2.2")
    assert tuple(row["dtype"] for row in rows) == records.QUANTISED_DTYPES
    for row in rows:
        form = records.form_of(row["dtype"])
        assert (form.kind.record_bytes, form.elements) == (int(row["record_bytes"]), int(row["elements"])), row["dtype"]
        mask = sum(1 << lane for lane in parse_lanes(row["critical lanes"]))
        assert mask.to_bytes(form.kind.record_bytes, "little") == form.kind.critical_mask, row["dtype"]


def test_sizes_are_those_of_the_gguf_package() -> None:
    gguf = pytest.importorskip("gguf")
    sizes = {kind.name: size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    # The package gives Q8_1, which no file holds, two scales of four bytes; ggml's own structure has two of two.
    assert sizes.pop("Q8_1") == (32, 40)
    assert records.kind_of("Q8_1").record_bytes == 36
    for name, (elements, size) in sizes.items():
        assert (records.elements_per_record(name), records.kind_of(name).record_bytes) == (elements, size), name
    # Newer than the package: Q2_0.
    assert set(records.QUANTISED_DTYPES) - set(sizes) <= {"Q8_1", "Q2_0"}


@pytest.mark.parametrize("name", sorted(set(KNOWN) - CODES_ALONE))
def test_values_are_those_of_the_gguf_package(name: str) -> None:
    form, blocks = records.form_of(name), random_blocks(name, 16)
    assert form.worth is not None
    for block, values in zip(blocks, dequantised(name, blocks), strict=True):
        assert [form.worth(block.tobytes(), element) for element in range(form.elements)] == [shown(float(value)) for value in values]


@pytest.mark.parametrize("name", KNOWN)
def test_a_flip_changes_first_the_element_that_is_named(name: str) -> None:
    form, blocks = records.form_of(name), random_blocks(name, 40)
    before = dequantised(name, blocks)
    for lane, (which, _) in enumerate(form.places):
        number = form.numbers[which]
        damaged = blocks.copy()
        damaged[:, lane // 8] ^= 1 << lane % 8
        after = dequantised(name, damaged)
        changed = (before.view(np.uint32) != after.view(np.uint32)).any(axis=0).nonzero()[0]
        if not changed.size:
            assert (name, lane % 8) == ("NVFP4", 7), "only the sign of a scale that has none may say nothing"
        elif number.is_code and (name in SIGN_WORDS or name == "TQ1_0"):
            assert changed[0] >= number.element
        else:
            assert changed[0] == number.element


@pytest.mark.parametrize("name", records.QUANTISED_DTYPES)
def test_a_flip_is_reported_as_its_number(name: str) -> None:
    """Tensor, index, bit and value, through the agent; each lane of the third of four records of a 2 × n tensor."""
    form, blocks = records.form_of(name), random_blocks(name, 4)
    size = form.kind.record_bytes
    span = Span(Role.TENSOR, form.kind, 0, 4 * size, name, (2, 2 * form.elements), "w")
    correct = blocks.reshape(-1)
    for lane, (which, bit) in enumerate(form.places):
        number = form.numbers[which]
        found = correct.copy()
        found[2 * size + lane // 8] ^= 1 << lane % 8
        (flip,) = list_flips(Block(0, 0, 0, 4 * size, span), found, correct, 10)
        assert (flip.tensor, flip.index, flip.bit) == ("w", (1, number.element), bit)
        assert flip.field == ("scale" if not number.is_code and number.field == "scale" else "raw")
        if number.is_code and form.worth is not None and name not in NO_DEQUANTISATION:
            values = [dequantised(name, part.reshape(4, size))[2, number.element] for part in (found, correct)]
            assert [flip.found, flip.correct] == [shown(float(value)) for value in values]


def test_scales_are_told_as_themselves() -> None:
    record = np.zeros(144, np.uint8)
    record[:2] = np.frombuffer(np.float16(0.125).tobytes(), np.uint8)
    record[4] = 0b1010_0101
    form = records.form_of("Q4_K")
    told = [form.value(number, record.tobytes()) for number in form.numbers[:3]]
    assert told == [0.125, 0.0, 0b10_0101]
    assert form.value(records.form_of("MXFP4").numbers[0], b"\x80" + bytes(143)) == 2.0


@pytest.mark.parametrize(("name", "values"), [("Q1_0", [-0.5, 0.5, -0.5]), ("Q2_0", [0.0, 0.5, -0.5])])
def test_the_types_that_the_package_lacks(name: str, values: list[float]) -> None:
    """Values worked out by hand from ggml's dequantisation: bits 0, 1, 0 mean -d, d, -d; pairs 01, 10, 00 mean 0, d, -d."""
    form = records.form_of(name)
    record = np.float16(0.5).tobytes() + bytes([0b00_00_10 if name == "Q1_0" else 0b00_10_01]) + bytes(15)
    assert form.worth is not None
    assert [form.worth(record, element) for element in range(3)] == values


@pytest.mark.parametrize("name", records.QUANTISED_DTYPES)
def test_big_endian_blocks_are_the_little_endian_ones_with_swapped_words(name: str) -> None:
    little, big = records.form_of(name), records.form_of(f"{name}.BE")
    block = random_blocks(name, 1)[0].tobytes()
    stored = big.straight(block)  # swapping is its own inverse
    assert big.straight(stored) == block
    assert [big.value(number, big.straight(stored)) for number in big.numbers] == [little.value(number, block) for number in little.numbers]
    for lane, place in enumerate(big.places):
        flipped = bytearray(stored)
        flipped[lane // 8] ^= 1 << lane % 8
        straight = big.straight(bytes(flipped))
        (at,) = (byte for byte in range(len(block)) if straight[byte] != block[byte])
        assert little.places[8 * at + lane % 8] == place


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0", "Q4_K", "Q6_K", "MXFP4", "NVFP4"])
def test_words_are_swapped_as_the_gguf_package_converts_files(name: str) -> None:
    pytest.importorskip("tqdm")
    pytest.importorskip("gguf")
    from gguf.scripts.gguf_convert_endian import byteswap_tensors

    class Tensor:
        data = random_blocks(name, 1).reshape(-1)

    block = Tensor.data.tobytes()
    byteswap_tensors[ggml_type(name)](Tensor, 0)
    assert Tensor.data.tobytes() == records.form_of(f"{name}.BE").straight(block)


def test_blocks_have_no_width_of_an_element() -> None:
    with pytest.raises(UnknownDtypeError, match="blocks"):
        records.element_bits("Q4_0")
