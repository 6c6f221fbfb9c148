"""The GGUF reader where the contract test does not look: headers made by hand, one for each way to be wrong, and what it reads."""

from __future__ import annotations

import struct
import tracemalloc

import pytest

from bitward_formats import errors, records
from bitward_formats.readers import gguf, layout_of
from bitward_formats.readers.file_view import FileView
from bitward_formats.spans import Layout, Role
from readers.gguf_made import Made

F32, Q4_0, Q8_1, Q2_0 = 0, 2, 9, 42
U8, U32, STRING, ARRAY = 0, 4, 8, 9


def read(data: bytes) -> Layout:
    return gguf.read_layout(FileView("m.gguf", len(data), lambda offset, length: data[offset : offset + length]))


def spans(layout: Layout) -> list[tuple[str, str, int]]:
    return [(span.role.name.lower(), span.name, span.length) for span in layout.spans]


def two_tensors(**options: object) -> Made:
    made = Made(data=bytes(range(128)), **options)  # type: ignore[arg-type]
    made.key(b"general.architecture", STRING, made.string(b"llama"))
    return made.tensor(b"b", F32, (3, 2), 64).tensor(b"a", Q4_0, (32, 2), 0)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_in_both_byte_orders(order: str, version: int) -> None:
    data = two_tensors(order=order, version=version).bytes()
    layout = read(data)
    head = len(data) - 128
    found = [(span.role, span.name, span.dtype, span.dims, span.offset, span.length) for span in layout.spans if span.role is Role.TENSOR]
    suffix = ".BE" if order == ">" else ""
    assert found == [
        (Role.TENSOR, "a", f"Q4_0{suffix}", (2, 32), head, 36),
        (Role.TENSOR, "b", f"F32{suffix}", (2, 3), head + 64, 24),
    ]
    assert sum(span.length for span in layout.spans) == len(data)
    assert spans(layout)[-2:] == [("tensor", "b", 24), ("trailer", "", 40)]
    assert spans(read(data[:-30]))[-1] == ("gap", "", 10)


@pytest.mark.parametrize("version", [0, 1, 4, 1 << 31])
def test_other_versions_are_named(version: int) -> None:
    data = two_tensors(version=version).bytes()
    with pytest.raises(errors.FormatVersionError, match="version"):
        read(data)
    layout = layout_of(lambda offset, length: data[offset : offset + length], len(data), "m.gguf")
    assert layout.format_name == "opaque"
    assert "FormatVersionError" in layout.note


def test_every_cut_of_the_header_is_a_named_error() -> None:
    data = two_tensors().bytes()
    whole = read(data)
    for size in range(len(data)):
        if size >= whole.spans[-2].end:
            assert read(data[:size]).spans[:-1] == whole.spans[: len(read(data[:size]).spans) - 1]
            continue
        with pytest.raises(errors.CheckpointError) as caught:
            read(data[:size])
        expected = errors.HeaderTooShortError if size < whole.spans[0].length else errors.TensorBoundsError
        assert isinstance(caught.value, expected), size


def test_types_that_the_python_package_lacks() -> None:
    made = Made(data=bytes(256)).tensor(b"sums", Q8_1, (64,), 0).tensor(b"small", Q2_0, (64, 3), 96)
    assert [one for one in spans(read(made.bytes())) if one[0] == "tensor"] == [("tensor", "sums", 72), ("tensor", "small", 54)]


def test_every_type_is_a_record_kind() -> None:
    for name in gguf.TYPES.values():
        assert records.is_known(name)
    assert set(gguf.TYPES.values()) >= set(records.QUANTISED_DTYPES)


def test_two_names_of_the_same_bytes() -> None:
    made = Made(data=bytes(64)).tensor(b"embed", F32, (4,), 0).tensor(b"head", F32, (2, 2), 0).tensor(b"rest", F32, (4,), 32)
    layout = read(made.bytes())
    assert layout.aliases == (("head", "embed"),)
    assert [name for role, name, _ in spans(layout) if role == "tensor"] == ["embed", "rest"]


def test_empty_tensors_and_scalars() -> None:
    made = Made(data=bytes(64)).tensor(b"none", F32, (0, 5), 32).tensor(b"one", F32, (), 0).tensor(b"last", F32, (1,), 32)
    tensors = [one for one in spans(read(made.bytes())) if one[0] == "tensor"]
    assert tensors == [("tensor", "one", 4), ("tensor", "none", 0), ("tensor", "last", 4)]


ONE = {"data": bytes(64)}
DEEP = [ARRAY] * 12
WRONG = [
    ("a key twice", Made().key(b"k", U8, b"1").key(b"k", U8, b"1"), errors.DuplicateKeyError),
    ("a tensor twice", Made(**ONE).tensor(b"t", F32, (1,), 0).tensor(b"t", F32, (1,), 32), errors.DuplicateKeyError),
    ("an unknown value", Made().key(b"k", 13, b""), errors.HeaderSyntaxError),
    ("an unknown value in a list", Made().key(b"k", ARRAY, struct.pack("<IQ", 99, 1)), errors.HeaderSyntaxError),
    ("deep lists", Made().key(b"k", ARRAY, b"".join(struct.pack("<IQ", kind, 1) for kind in DEEP)), errors.HeaderSyntaxError),
    ("more numbers than bytes", Made().key(b"k", ARRAY, struct.pack("<IQ", U32, 1 << 62)), errors.HeaderTooShortError),
    ("more strings than bytes", Made().key(b"k", ARRAY, struct.pack("<IQ", STRING, (1 << 64) - 1)), errors.HeaderTooShortError),
    ("a string longer than the file", Made().key(b"k", STRING, struct.pack("<Q", 1 << 63)), errors.HeaderTooShortError),
    ("a long key", Made().key(b"k" * 65_536, U8, b"1"), errors.HeaderTooLargeError),
    ("a long name", Made().tensor(b"t" * 65_536, F32, (1,), 0), errors.HeaderTooLargeError),
    ("more keys than bytes", Made(key_count=60_000), errors.HeaderTooShortError),
    ("too many keys", Made(key_count=65_537), errors.HeaderTooLargeError),
    ("more tensors than bytes", Made(tensor_count=1_000_000), errors.HeaderTooShortError),
    ("too many tensors", Made(tensor_count=1 << 40), errors.HeaderTooLargeError),
    ("no alignment", Made().key(b"general.alignment", U32, struct.pack("<I", 0)), errors.HeaderSyntaxError),
    ("an odd alignment", Made().key(b"general.alignment", U32, struct.pack("<I", 48)), errors.HeaderSyntaxError),
    ("a wide alignment", Made().key(b"general.alignment", 10, struct.pack("<Q", 32)), errors.HeaderSyntaxError),
    ("an alignment beyond the file", Made().key(b"general.alignment", U32, struct.pack("<I", 1 << 31)).tensor(b"t", F32, (1,), 0), None),
    ("a name of no characters", Made(**ONE).tensor(b"\xff", F32, (1,), 0), errors.HeaderSyntaxError),
    ("five dimensions", Made(**ONE).tensor(b"t", F32, (1,) * 5, 0), errors.HeaderSyntaxError),
    ("2^32 dimensions", Made(infos=[struct.pack("<QsI", 1, b"t", 0xFFFFFFFF)]), errors.HeaderSyntaxError),
    ("a type that was removed", Made(**ONE).tensor(b"t", 4, (32,), 0), errors.UnknownDtypeError),
    ("a type to come", Made(**ONE).tensor(b"t", 43, (32,), 0), errors.UnknownDtypeError),
    ("half a block", Made(**ONE).tensor(b"t", Q4_0, (16, 2), 0), errors.TensorSizeError),
    ("a block as a scalar", Made(**ONE).tensor(b"t", Q4_0, (), 0), errors.TensorSizeError),
    ("more elements than can be counted", Made(**ONE).tensor(b"t", F32, (1 << 32, 1 << 31, 0), 0), errors.TensorSizeError),
    ("an odd place", Made(**ONE).tensor(b"t", F32, (1,), 4), errors.TensorBoundsError),
    ("a place beyond the file", Made(**ONE).tensor(b"t", F32, (1,), 64), errors.TensorBoundsError),
    ("a place beyond all files", Made(**ONE).tensor(b"t", F32, (1,), (1 << 64) - 32), errors.TensorBoundsError),
    ("a tensor beyond the file", Made(**ONE).tensor(b"t", F32, (17,), 0), errors.TensorBoundsError),
    ("tensors over one another", Made(**ONE).tensor(b"t", F32, (9,), 0).tensor(b"u", F32, (1,), 32), errors.TensorOverlapError),
    ("one in another", Made(**ONE).tensor(b"t", F32, (9,), 0).tensor(b"u", F32, (2,), 0), errors.TensorOverlapError),
]


@pytest.mark.parametrize(("made", "error"), [one[1:] for one in WRONG], ids=[one[0] for one in WRONG])
def test_what_is_wrong_is_named(made: Made, error: type[errors.CheckpointError] | None) -> None:
    with pytest.raises(error or errors.TensorBoundsError) as caught:
        read(made.bytes())
    assert type(caught.value) is (error or errors.TensorBoundsError)
    assert 10 < len(str(caught.value)) < 400


def test_lists_in_lists_are_passed_over() -> None:
    inner = struct.pack("<IQ", U8, 3) + b"abc"
    strings = struct.pack("<IQ", STRING, 2) + struct.pack("<Q", 1) + b"x" + struct.pack("<Q", 0)
    empty = struct.pack("<IQ", ARRAY, 0)
    made = Made(data=bytes(32)).key(b"k", ARRAY, struct.pack("<IQ", ARRAY, 3) + inner + strings + empty).tensor(b"t", F32, (8,), 0)
    assert spans(read(made.bytes()))[-1] == ("tensor", "t", 32)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_large_vocabulary_costs_one_reading_and_no_memory(order: str) -> None:
    made = Made(data=bytes(32), order=order)
    tokens = b"".join(made.string(b"token %d" % number * (number % 7)) for number in range(200_000))
    long = made.string(b"x" * 600_000)
    made.key(b"tokens", ARRAY, made.pack("IQ", STRING, 200_001) + long + tokens)
    made.key(b"scores", ARRAY, made.pack("IQ", U32, 2_000_000) + bytes(8_000_000)).tensor(b"t", F32, (8,), 0)
    data = memoryview(made.bytes())
    fetched = 0

    def fetch(offset: int, length: int) -> bytes:
        nonlocal fetched
        fetched += length
        return bytes(data[offset : offset + length])

    tracemalloc.start()
    layout = gguf.read_layout(FileView("m.gguf", len(data), fetch))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert spans(layout)[-1] == ("tensor", "t", 32)
    assert fetched <= len(tokens) + (4 << 18), "what is passed over need not be read"
    assert peak <= 4 << 20


def test_a_header_beyond_its_limit_is_refused_without_reading_it() -> None:
    made = Made().key(b"k", ARRAY, struct.pack("<IQ", U8, 65 << 20))
    head = made.bytes()
    fetched = 0

    def fetch(offset: int, length: int) -> bytes:
        nonlocal fetched
        fetched += length
        return head[offset : offset + length].ljust(length, b"\0")

    with pytest.raises(errors.HeaderTooLargeError, match="header"):
        gguf.read_layout(FileView("m.gguf", 1 << 32, fetch))
    assert fetched <= 1 << 18


def test_a_file_that_is_cut_while_it_is_read() -> None:
    data = two_tensors().bytes()
    with pytest.raises(errors.HeaderTooShortError, match="ended"):
        gguf.read_layout(FileView("m.gguf", len(data), lambda offset, length: data[offset : min(offset + length, 60)]))


def test_the_parts_of_a_split_model_stand_alone() -> None:
    for name in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf"):
        made = two_tensors() if name.startswith("m-00002") else Made()
        made.key(b"split.no", 2, struct.pack("<H", 0)).key(b"split.count", 2, struct.pack("<H", 2))
        data = made.bytes()
        layout = layout_of(lambda offset, length, data=data: data[offset : offset + length], len(data), name)
        assert (layout.format_name, layout.note) == ("gguf", "")
