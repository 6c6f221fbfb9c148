"""The TFLite reader where the contract test does not look: offsets that lie, what fits nothing, and seeded damage."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from bitward_formats import errors
from bitward_formats.readers import layout_of, tflite
from bitward_formats.readers.file_view import FileView
from bitward_formats.spans import Layout, Role
from readers.folders import assert_tiles, fetcher
from readers.mutations import check_mutations
from readers.tflite_made import Model, Tensor, build, write_shared

pytest.importorskip("flatbuffers", reason="flatbuffers writes the files")


def read(data: bytes) -> Layout:
    layout = tflite.read_layout(FileView("model.tflite", len(data), fetcher(data)))
    assert_tiles(layout)
    return layout


def model(*tensors: Tensor, buffers: tuple[bytes | tuple[int, int], ...] = (b"", bytes(range(1, 25)))) -> bytes:
    return build(Model(buffers, [("main", tensors)]))


def found(data: bytes) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {span.name: (span.dtype, span.dims) for span in read(data).spans if span.role is Role.TENSOR}


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (Tensor("t", 0, (2, 3), 1), {"t": ("F32", (2, 3))}),
        (Tensor("t", 9, (24,), 1), {"t": ("I8", (24,))}),
        (Tensor("t", 17, (47,), 1), {"t": ("I4", (47,))}),
        (Tensor("t", 17, (49,), 1), {}),
        (Tensor("t", 0, (2, 4), 1), {}),
        (Tensor("t", 0, (1, 5), 1), {}),
        (Tensor("t", 0, (-6,), 1), {}),
        (Tensor("t", 0, (-2, -3), 1), {}),
        (Tensor("t", 0, (0,), 1), {}),
        (Tensor("t", 0, (1 << 30,) * 200, 1), {}),
        (Tensor("t", 0, (6,) + (1,) * 254, 1), {"t": ("F32", (6,) + (1,) * 254)}),
        (Tensor("t", 0, (6,) + (1,) * 255, 1), {}),
        (Tensor("t", 5, (24,), 1), {}),
        (Tensor("t", 13, (24,), 1), {}),
        (Tensor("t", 99, (24,), 1), {}),
        (Tensor("t", 0, (100, 100), 1, sparse=True), {"t.values": ("F32", (6,))}),
        (Tensor("t", 11, (100, 100), 1, sparse=True), {}),
        (Tensor("t", 17, (100, 100), 1, sparse=True), {}),
        (Tensor("t", 0, (6,), 0), {}),
        (Tensor("t", 0, (6,), 1, external=1), {}),
        (Tensor("", 0, (6,), 1), {"tensor_0": ("F32", (6,))}),
    ],
)
def test_a_buffer_is_a_tensor_if_it_fits_type_and_shape(tensor: Tensor, expected: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    assert found(model(tensor)) == expected


def test_tensors_that_share_a_buffer_are_aliases_and_the_first_that_fits_is_the_span() -> None:
    data = model(Tensor("unfit", 0, (7,), 1), Tensor("w", 0, (6,), 1), Tensor("tied", 0, (2, 3), 1))
    layout = read(data)
    assert [span.name for span in layout.spans if span.role is Role.TENSOR] == ["w"]
    assert (layout.aliases, layout.note) == ((("tied", "w"),), "")


def test_long_buffers_without_a_tensor_are_data() -> None:
    layout = read(model(Tensor("unfit", 0, (7,), 2), buffers=(b"", bytes(4095), b"\1" * 4096, b"\2" * 5000)))
    assert sorted(span.length for span in layout.spans if span.role is Role.DATA) == [4096, 5000]
    assert layout.note == "1 buffer that fit no tensor's type and shape protected as opaque bytes"


def test_buffers_behind_the_flatbuffer() -> None:
    data = model(Tensor("a", 0, (4,), 1), Tensor("b", 0, (4,), 2), buffers=(b"", (2048, 16), (2064, 16)))
    layout = read(data + bytes(4096 - len(data)))
    assert [(span.role, span.offset, span.length) for span in layout.spans] == [
        (Role.HEADER, 0, 2048),
        (Role.TENSOR, 2048, 16),
        (Role.TENSOR, 2064, 16),
        (Role.TRAILER, 2080, 2016),
    ]
    with pytest.raises(errors.TensorBoundsError, match="buffer 2 claims 16 bytes at byte 2064; the file has 2079"):
        read(data + bytes(2079 - len(data)))


def table_places(data: bytes) -> tuple[int, int]:
    """Where the root table and its vtable are."""
    root = struct.unpack_from("<I", data)[0]
    return root, root - struct.unpack_from("<i", data, root)[0]


def with_number(data: bytes, place: int, form: str, number: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, place, number)
    return bytes(changed)


GOOD = build(Model((b"", bytes(24)), [("main", [Tensor("t", 0, (6,), 1)])]))
ROOT, VTABLE = table_places(GOOD)
BUFFERS_FIELD = ROOT + struct.unpack_from("<H", GOOD, VTABLE + 4 + 2 * 4)[0]

BAD_FILES: list[tuple[str, type[errors.CheckpointError], bytes]] = [
    ("empty", errors.HeaderTooShortError, b""),
    ("seven bytes", errors.HeaderTooShortError, GOOD[:7]),
    ("other identifier", errors.HeaderSyntaxError, GOOD[:4] + b"TFL2" + GOOD[8:]),
    ("root at itself", errors.HeaderSyntaxError, with_number(GOOD, 0, "<I", 0)),
    ("root behind the end", errors.HeaderSyntaxError, with_number(GOOD, 0, "<I", len(GOOD))),
    ("vtable before the file", errors.HeaderSyntaxError, with_number(GOOD, ROOT, "<i", ROOT + 1)),
    ("vtable behind the file", errors.HeaderSyntaxError, with_number(GOOD, ROOT, "<i", -len(GOOD))),
    ("vtable of three bytes", errors.HeaderSyntaxError, with_number(GOOD, VTABLE, "<H", 3)),
    ("vtable of odd size", errors.HeaderSyntaxError, with_number(GOOD, VTABLE, "<H", 21)),
    ("vtable longer than the file", errors.HeaderSyntaxError, with_number(GOOD, VTABLE, "<H", 65534)),
    ("table longer than the file", errors.HeaderSyntaxError, with_number(GOOD, VTABLE + 2, "<H", 65535)),
    ("table of two bytes", errors.HeaderSyntaxError, with_number(GOOD, VTABLE + 2, "<H", 2)),
    ("field outside of its table", errors.HeaderSyntaxError, with_number(GOOD, VTABLE + 12, "<H", 60000)),
    ("field in the table's own offset", errors.HeaderSyntaxError, with_number(GOOD, VTABLE + 12, "<H", 2)),
    ("vector nowhere", errors.HeaderSyntaxError, with_number(GOOD, BUFFERS_FIELD, "<I", 0)),
    ("vector behind the file", errors.HeaderSyntaxError, with_number(GOOD, BUFFERS_FIELD, "<I", 1 << 31)),
    ("buffer that is not there", errors.HeaderSyntaxError, model(Tensor("t", 0, (6,), 2))),
    ("name too long", errors.HeaderTooLargeError, model(Tensor("n" * 65_536, 0, (6,), 1))),
    ("name too long with its suffix", errors.HeaderTooLargeError, model(Tensor("n" * 65_530, 0, (6,), 1))),
    ("too many buffers", errors.HeaderTooLargeError, build(Model((b"",) * ((1 << 18) + 1)))),
    ("buffer beyond the file", errors.TensorBoundsError, model(buffers=(b"", (1 << 40, 16)))),
    ("buffer of 2^64 bytes", errors.TensorBoundsError, model(buffers=(b"", (16, (1 << 64) - 1)))),
]


@pytest.mark.parametrize(("error", "data"), [bad[1:] for bad in BAD_FILES], ids=[bad[0] for bad in BAD_FILES])
def test_each_way_to_be_wrong_is_a_named_error(error: type[errors.CheckpointError], data: bytes) -> None:
    with pytest.raises(error) as caught:
        read(data)
    layout = layout_of(fetcher(data), len(data), "model.tflite")
    assert layout.format_name == "opaque"
    assert layout.note == f"not valid tflite ({error.__name__}: {caught.value})"


def test_the_file_before_it_was_made_wrong_is_right() -> None:
    assert found(GOOD) == {"t": ("F32", (6,))}


def test_a_file_that_shrinks_while_it_is_read() -> None:
    with pytest.raises(errors.HeaderTooShortError):
        tflite.read_layout(FileView("m.tflite", len(GOOD), fetcher(GOOD[: ROOT + 2])))


def test_subgraphs_that_share_a_list_of_tensors_do_not_multiply_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their tensors are counted each time."""
    data = build(Model((b"", bytes(24)), [("", [Tensor("t", 0, (6,), 1)] * 10)] * 10))
    assert found(data) == {"t": ("F32", (6,)), }
    monkeypatch.setattr(tflite, "TENSORS_LIMIT", 99)
    with pytest.raises(errors.HeaderTooLargeError, match="10 tensors; the most is 9"):
        read(data)
    monkeypatch.undo()
    monkeypatch.setattr(tflite, "NAMES_LIMIT_BYTES", 99)
    with pytest.raises(errors.HeaderTooLargeError, match="99 bytes of names"):
        read(data)


def test_tflite_is_known_by_content_too() -> None:
    assert layout_of(fetcher(GOOD), len(GOOD), "blob").format_name == "tflite"
    damaged = GOOD[:5] + bytes([GOOD[5] ^ 1]) + GOOD[6:]
    assert layout_of(fetcher(damaged), len(damaged), "blob").format_name == "opaque"


def test_listing_reads_little() -> None:
    buffers = (b"", *(bytes([index]) * 200_000 for index in range(1, 101)))
    data = model(*(Tensor(f"layer.{index}", 0, (500, 100), index) for index in range(1, 101)), buffers=buffers)
    fetched = 0

    def counting(offset: int, length: int) -> bytes:
        nonlocal fetched
        fetched += length
        return data[offset : offset + length]

    layout = tflite.read_layout(FileView("m.tflite", len(data), counting))
    assert sum(span.role is Role.TENSOR for span in layout.spans) == 100
    assert fetched < len(data) / 100


def mutate(seeded: random.Random, data: bytes, structure: list[int]) -> bytes:
    """One to four changes where the FlatBuffer has structure: flips, numbers at their limits, cuts."""
    mutant = bytearray(data)
    for _ in range(seeded.randint(1, 4)):
        at = seeded.choice(structure) % max(len(mutant) - 8, 1)
        match seeded.randrange(5):
            case 0 if mutant:
                mutant[at] ^= 1 << seeded.randrange(8)
            case 1:
                mutant[at : at + 4] = seeded.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\4\0\0\0"))
            case 2:
                mutant[at : at + 2] = seeded.randbytes(2)
            case 3:
                mutant[at : at + 4] = struct.pack("<I", seeded.randrange(len(data)))
            case _:
                del mutant[at : at + seeded.choice((1, 4, len(mutant)))]
    return bytes(mutant)


def test_mutations_give_a_tiling_layout_or_a_named_error(tmp_path: Path) -> None:
    data = write_shared(tmp_path).read_bytes()
    structure = [at for span in read(data).spans if span.role in (Role.HEADER, Role.TRAILER) for at in range(span.offset, span.end)]
    check_mutations("m.tflite", data, tflite.read_layout, lambda seeded: mutate(seeded, data, structure), sizes_limit=10)
