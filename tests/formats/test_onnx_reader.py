"""The ONNX reader where the contract test does not look: messages made by hand, one for each way to be wrong, and what is told apart."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bitward_formats import errors
from bitward_formats.readers import layout_of, onnx, protowalk
from bitward_formats.readers.file_view import FileView
from bitward_formats.spans import Layout, Role
from readers.folders import Folder, assert_tiles, fetcher, fetcher_of
from readers.mutations import check_mutations


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def piece(field: int, *parts: bytes | str) -> bytes:
    data = b"".join(part.encode() if isinstance(part, str) else part for part in parts)
    return varint(field << 3 | 2) + varint(len(data)) + data


def tensor(name: str, data_type: int, dims: tuple[int, ...], *more: bytes) -> bytes:
    return b"".join([*(number(1, dim) for dim in dims), number(2, data_type), piece(8, name), *more])


def initializer(*parts: bytes) -> bytes:
    return piece(5, *parts)


def model(*graph: bytes) -> bytes:
    return number(1, 9) + piece(2, "by hand") + piece(7, *graph) + piece(8, piece(1, ""), number(2, 19))


def read(data: bytes) -> Layout:
    layout = onnx.read_layout(FileView("model.onnx", len(data), fetcher(data)))
    assert_tiles(layout)
    return layout


def tensors_of(data: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {span.name: (span.dtype, span.dims, data[span.offset : span.end]) for span in read(data).spans if span.role is Role.TENSOR}


EIGHT = bytes(range(8))


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        (tensor("t", 1, (2,), piece(9, EIGHT)), ("F32", (2,), EIGHT)),
        (piece(9, EIGHT) + piece(8, "t") + number(2, 1) + number(1, 2), ("F32", (2,), EIGHT)),
        (number(2, 1) + piece(1, varint(2), varint(1)) + piece(8, "t") + piece(9, EIGHT), ("F32", (2, 1), EIGHT)),
        (tensor("t", 1, (2,), piece(4, EIGHT)), ("F32", (2,), EIGHT)),
        (tensor("t", 14, (1,), piece(4, EIGHT)), ("C64", (1,), EIGHT)),
        (tensor("t", 11, (1,), piece(10, EIGHT)), ("F64", (1,), EIGHT)),
        (tensor("t", 1, (2,), piece(4), piece(9, EIGHT)), ("F32", (2,), EIGHT)),
        (tensor("t", 22, (3, 5), piece(9, EIGHT)), ("I4", (3, 5), EIGHT)),
        (tensor("t", 25, (31,), piece(9, EIGHT)), ("U2", (31,), EIGHT)),
        (tensor("t", 27, (8,), piece(9, EIGHT[:6])), ("F6_E2M3", (8,), EIGHT[:6])),
        (tensor("t", 7, (), piece(9, EIGHT)), ("I64", (), EIGHT)),
        (tensor("t", 7, (0, 3), piece(9)), ("I64", (0, 3), b"")),
        (tensor("t", 7, (0, 3)), ("I64", (0, 3), b"")),
        (tensor("t", 1, (2,), number(14, 0), piece(12, "text"), number(99, 5), piece(9, EIGHT)), ("F32", (2,), EIGHT)),
        (tensor("t", 1, (1,) * 255, piece(9, EIGHT[:4])), ("F32", (1,) * 255, EIGHT[:4])),
    ],
)
def test_what_lies_as_an_array_is_a_tensor(parts: bytes, found: tuple[str, tuple[int, ...], bytes]) -> None:
    assert tensors_of(model(initializer(parts))) == {"t": found}


@pytest.mark.parametrize(
    "parts",
    [
        tensor("size", 1, (3,), piece(9, EIGHT)),
        tensor("size", 1, (1,), piece(9, EIGHT)),
        tensor("shape of 2^80 elements", 1, (1 << 40, 1 << 40), piece(9, EIGHT)),
        tensor("negative", 1, ((1 << 64) - 2,), piece(9, EIGHT)),
        tensor("negative twice", 1, ((1 << 64) - 1, (1 << 64) - 2), piece(9, EIGHT)),
        tensor("256 dimensions", 1, (1,) * 256, piece(9, EIGHT[:4])),
        tensor("300 dimensions", 1, (1,) * 300, piece(9, EIGHT[:4])),
        tensor("text", 8, (2,), piece(6, "one"), piece(6, "two")),
        tensor("undefined", 0, (2,), piece(9, EIGHT)),
        tensor("unknown", 99, (2,), piece(9, EIGHT)),
        tensor("six bits in half a record", 27, (5,), piece(9, EIGHT[:4])),
        tensor("varints", 6, (8,), piece(5, EIGHT)),
        tensor("varints", 7, (8,), piece(7, EIGHT)),
        tensor("varints", 13, (8,), piece(11, EIGHT)),
        tensor("doubles as floats", 11, (1,), piece(4, EIGHT)),
        tensor("floats as doubles", 1, (2,), piece(10, EIGHT)),
        tensor("two chunks", 1, (4,), piece(4, EIGHT), piece(4, EIGHT)),
        tensor("two fields", 1, (2,), piece(9, EIGHT), piece(4, EIGHT)),
        tensor("raw twice", 1, (2,), piece(9, EIGHT), piece(9, EIGHT)),
        tensor("type twice", 1, (2,), number(2, 1), piece(9, EIGHT)),
        tensor("segment", 1, (2,), piece(3, number(1, 0), number(2, 2)), piece(9, EIGHT)),
        tensor("not packed", 1, (2,), b"".join(varint(4 << 3 | 5) + EIGHT[:4] for _ in range(2))),
        tensor("no data", 1, (2,)),
        tensor("external", 1, (2,), number(14, 1), piece(13, piece(1, "location"), piece(2, "x")), piece(9, EIGHT)),
    ],
)
def test_what_does_not_is_opaque(parts: bytes) -> None:
    """Wrong in itself, but no reason to give up its neighbours."""
    found = tensors_of(model(initializer(parts), initializer(tensor("well", 1, (2,), piece(9, EIGHT)))))
    assert found == {"well": ("F32", (2,), EIGHT)}


def test_long_opaque_payloads_are_data_and_the_note_counts_them() -> None:
    data = model(*(initializer(tensor(f"v{size}", 7, (size,), piece(7, bytes(size)))) for size in (4095, 4096)))
    layout = read(data)
    assert [(span.role, span.length) for span in layout.spans if span.role is Role.DATA] == [(Role.DATA, 4096)]
    assert layout.note.startswith("2 tensors stored as variable-length numbers")


def test_equal_names_get_numbers() -> None:
    parts = [initializer(tensor(name, 1, (1,), piece(9, bytes([index] * 4)))) for index, name in enumerate(("a", "a#2", "a", "a"))]
    data = model(*parts)
    assert {name: found[2][0] for name, found in tensors_of(data).items()} == {"a": 0, "a#2": 1, "a#3": 2, "a#4": 3}
    assert read(data).note == "2 tensors of names that were taken got a number behind theirs"


def test_a_node_without_a_name_is_called_by_its_output_or_its_operator() -> None:
    one = piece(5, piece(1, "k"), piece(5, tensor("", 1, (1,), piece(9, EIGHT[:4]))))
    nodes = [piece(1, piece(4, "Own"), piece(2, "out"), one), piece(1, piece(4, "Own"), one), piece(1, one, piece(3, "named"))]
    assert list(tensors_of(model(*nodes))) == ["out.k", "Own_1.k", "named.k"]


def nested(depth: int) -> bytes:
    graph = initializer(tensor("w", 1, (2,), piece(9, EIGHT)))
    for _ in range(depth):
        graph = piece(1, piece(3, "n"), piece(5, piece(1, "g"), piece(6, graph)))
    return model(graph)


BAD_FILES: list[tuple[str, type[errors.CheckpointError], bytes]] = [
    ("empty", errors.HeaderSyntaxError, b""),
    ("no graph", errors.HeaderSyntaxError, number(1, 9)),
    ("cut off in a tag", errors.HeaderSyntaxError, model() + b"\x80"),
    ("cut off in a length", errors.HeaderSyntaxError, model() + b"\x3a\x80"),
    ("length beyond the file", errors.HeaderSyntaxError, number(1, 9) + b"\x3a\x05abcd"),
    ("length of 2^63", errors.HeaderSyntaxError, number(1, 9) + b"\x3a" + b"\xff" * 8 + b"\x7f"),
    ("varint of eleven bytes", errors.HeaderSyntaxError, b"\x08" + b"\x80" * 10 + b"\x01" + model()),
    ("field 0", errors.HeaderSyntaxError, model() + b"\x02\x00"),
    ("field 2^29", errors.HeaderSyntaxError, model() + varint(1 << 32) + b"\x00"),
    ("a group", errors.HeaderSyntaxError, model() + b"\x0b\x0c"),
    ("wire type 7", errors.HeaderSyntaxError, model() + b"\x0f\x00"),
    ("graph a number", errors.HeaderSyntaxError, number(1, 9) + number(7, 1)),
    ("version a text", errors.HeaderSyntaxError, piece(1, "9") + piece(7)),
    ("node a number", errors.HeaderSyntaxError, model(number(1, 1))),
    ("attribute a number", errors.HeaderSyntaxError, model(piece(1, number(5, 1)))),
    ("attribute's tensor a number", errors.HeaderSyntaxError, model(piece(1, piece(5, number(5, 1))))),
    ("raw data a number", errors.HeaderSyntaxError, model(initializer(number(9, 1)))),
    ("type a text", errors.HeaderSyntaxError, model(initializer(piece(2, "1")))),
    ("tensor longer than its graph", errors.HeaderSyntaxError, model(b"\x2a\x20" + tensor("t", 1, (2,)))),
    ("packed shape cut off", errors.HeaderSyntaxError, model(initializer(piece(1, b"\x80")))),
    ("name too long", errors.HeaderTooLargeError, model(initializer(tensor("n" * 65_536, 1, (2,), piece(9, EIGHT))))),
    ("34 graphs deep", errors.HeaderTooLargeError, nested(34)),
    ("2,000 graphs deep", errors.HeaderTooLargeError, nested(2000)),
]


@pytest.mark.parametrize(("error", "data"), [bad[1:] for bad in BAD_FILES], ids=[bad[0] for bad in BAD_FILES])
def test_each_way_to_be_wrong_is_a_named_error(error: type[errors.CheckpointError], data: bytes) -> None:
    with pytest.raises(error) as caught:
        read(data)
    layout = layout_of(fetcher(data), len(data), "model.onnx")
    assert layout.format_name == "opaque"
    assert layout.note == f"not valid onnx ({error.__name__}: {caught.value})"


def test_graphs_as_deep_as_the_limit() -> None:
    assert list(tensors_of(nested(33))) == ["n.g/" * 33 + "w"]


def test_limits_of_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitward_formats.readers import onnxgraph

    data = model(*(initializer(tensor(f"t{index}", 1, (1,), piece(9, EIGHT[:4]))) for index in range(20)))
    for module, limit in ((onnxgraph, "TENSORS_LIMIT"), (onnxgraph, "NAMES_LIMIT_BYTES"), (protowalk, "FIELDS_LIMIT")):
        with monkeypatch.context() as patched:
            patched.setattr(module, limit, 19)
            with pytest.raises(errors.HeaderTooLargeError):
                read(data)


def test_a_file_that_shrinks_while_it_is_read() -> None:
    data = model(initializer(tensor("n" * 600, 1, (2,), piece(9, EIGHT))))
    with pytest.raises(errors.CheckpointError):
        onnx.read_layout(FileView("m.onnx", len(data), fetcher(data[:500])))


def test_onnx_is_known_by_content_too() -> None:
    data = model(piece(1, piece(4, "Relu")), initializer(tensor("t", 1, (2,), piece(9, EIGHT))))
    assert layout_of(fetcher(data), len(data), "blob").format_name == "onnx"
    damaged = bytes([data[0] ^ 2]) + data[1:]
    assert layout_of(fetcher(damaged), len(damaged), "blob").format_name == "opaque"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x08",
        number(1, 9) + piece(2, "name of something") + number(3, 17),
        number(1, 9) + piece(2, "person") + piece(3, "mail") + piece(4, number(1, 5)),
        number(1, 9) + piece(2, b"\xff\xfe") + piece(7, piece(1, "x")),
        number(1, 9) + piece(7),
        number(1, 9) + piece(7, number(1, 5)),
        number(1, 900) + piece(7, piece(1, "x")),
        number(1, 9) + piece(8, number(3, 1)) + piece(7, piece(1, "x")),
        number(1, 9) + b"\x3a\x7f" + piece(1, "x"),
        b"\x08\x09" * 2000,
        bytes(range(256)) * 16,
    ],
    ids=repr,
)
def test_other_messages_are_not_onnx(data: bytes) -> None:
    layout = layout_of(fetcher(data), len(data), "message.pb")
    assert (layout.format_name, layout.note) == ("opaque", "")


def test_a_run_of_unpacked_numbers_is_passed_over_fast() -> None:
    """A tree ensemble: a million floats and integers, one field each, which count as few."""
    values = (varint(7 << 3 | 5) + EIGHT[:4]) * 500_000 + number(8, 1 << 40) * 500_000
    data = model(piece(1, piece(5, piece(1, "k"), values, piece(5, tensor("", 1, (2,), piece(9, EIGHT))))))
    walker = protowalk.Walker(fetcher(data), len(data))
    assert sum(1 for _ in walker.fields(0, len(data))) == 4
    assert tensors_of(data) == {"_0.k": ("F32", (2,), EIGHT)}


def test_listing_reads_little_and_nothing_twice_over() -> None:
    """500 tensors of 40 kB: less than one per cent of the file is fetched."""
    data = model(*(initializer(tensor(f"layer.{index}.weight", 1, (100, 100), piece(9, bytes(40_000)))) for index in range(500)))
    fetched = 0

    def counting(offset: int, length: int) -> bytes:
        nonlocal fetched
        fetched += length
        return data[offset : offset + length]

    layout = onnx.read_layout(FileView("m.onnx", len(data), counting))
    assert sum(span.role is Role.TENSOR for span in layout.spans) == 500
    assert fetched < len(data) / 75


def test_a_model_beyond_what_protobuf_libraries_can_load() -> None:
    """A graph of 4 GiB: one tensor of 3 GiB, one of 1 GiB, one behind them. Less than a millionth is read."""
    sizes = (3 << 30, 1 << 30, 400)
    pieces: list[bytes | int] = []
    for index, size in enumerate(sizes):
        head = tensor(f"t{index}", 1, (size // 4,)) + varint(9 << 3 | 2) + varint(size)
        pieces += [varint(5 << 3 | 2) + varint(len(head) + size) + head, size]
    graph_bytes = sum(one if isinstance(one, int) else len(one) for one in pieces)
    pieces = [number(1, 9) + varint(7 << 3 | 2) + varint(graph_bytes), *pieces, piece(8, number(2, 19))]
    starts = [0]
    for one in pieces:
        starts.append(starts[-1] + (one if isinstance(one, int) else len(one)))
    fetched = 0

    def fetch(offset: int, length: int) -> bytes:
        nonlocal fetched
        length = min(length, starts[-1] - offset)
        fetched += length
        out = bytearray(length)
        for start, one in zip(starts, pieces, strict=False):
            if isinstance(one, bytes) and start < offset + length and start + len(one) > offset:
                low, high = max(start, offset), min(start + len(one), offset + length)
                out[low - offset : high - offset] = one[low - start : high - start]
        return bytes(out)

    layout = onnx.read_layout(FileView("m.onnx", starts[-1], fetch))
    assert_tiles(layout)
    assert [span.length for span in layout.spans if span.role is Role.TENSOR] == list(sizes)
    assert fetched < 4096


def mutate(seeded: random.Random, data: bytes) -> bytes:
    """One to four changes: flips, bytes set, cut, repeated, inserted."""
    mutant = bytearray(data)
    for _ in range(seeded.randint(1, 4)):
        at = seeded.randrange(len(mutant) or 1)
        match seeded.randrange(6):
            case 0 if mutant:
                mutant[at] ^= 1 << seeded.randrange(8)
            case 1 if mutant:
                mutant[at] = seeded.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                del mutant[at : at + seeded.randint(1, 40)]
            case 3:
                mutant[at:at] = mutant[at : at + seeded.randint(1, 40)]
            case 4:
                mutant[at:at] = seeded.choice((b"\xff" * 9 + b"\x01", b"\x80" * 3, varint(1 << 62), seeded.randbytes(5)))
            case _:
                del mutant[at:]
    return bytes(mutant)


@pytest.mark.parametrize("name", ["write_nested", "write_typed_fields", "write_external"])
def test_mutations_give_a_tiling_layout_or_a_named_error(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="the onnx library writes the files")
    from readers import onnx_made

    getattr(onnx_made, name)(tmp_path)
    data = (tmp_path / "made.onnx").read_bytes()
    check_mutations("m.onnx", data, onnx.read_layout, lambda seeded: mutate(seeded, data), sizes_limit=30)


def external_model(location: str, name: str = "t", offset: str = "0", length: str | None = "8") -> bytes:
    entries = [("location", location), ("offset", offset)] + ([] if length is None else [("length", length)])
    pieces = [piece(13, piece(1, key), piece(2, text)) for key, text in entries]
    return initializer(tensor(name, 1, (2,), number(14, 1), *pieces))


def read_beside(folder: Path, name: str) -> Layout:
    path = folder / name
    layout = layout_of(fetcher_of(path), path.stat().st_size, str(path), Folder(folder))
    assert_tiles(layout)
    return layout


def places(layout: Layout) -> dict[str, int]:
    return {span.name: span.offset for span in layout.spans if span.role is Role.TENSOR}


@pytest.mark.parametrize(
    ("location", "offset", "length", "found"),
    [
        ("weights", "0", "8", {"t": 0}),
        ("weights", "92", "8", {"t": 92}),
        ("weights", "16", None, {"t": 16}),
        ("weights", "93", "8", {}),
        ("weights", "0", "7", {}),
        ("weights", "-8", "8", {}),
        ("weights", "9" * 30, "8", {}),
        ("weights", "0x10", "8", {}),
        ("weights", "²", "8", {}),
        ("./weights", "0", "8", {}),
        ("../weights", "0", "8", {}),
        ("/weights", "0", "8", {}),
        ("", "0", "8", {}),
        ("other", "0", "8", {}),
    ],
)
def test_external_data_is_explained_by_the_model_beside_it(
    tmp_path: Path, location: str, offset: str, length: str | None, found: dict[str, int]
) -> None:
    (tmp_path / "weights").write_bytes(bytes(100))
    (tmp_path / "a.onnx").write_bytes(model(external_model(location, offset=offset, length=length)))
    layout = read_beside(tmp_path, "weights")
    assert places(layout) == found
    assert layout.format_name == ("onnx-data" if found else "opaque")


def test_tensors_of_external_data_that_share_or_overlap(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(100))
    first = [external_model("weights", "a", "0"), external_model("weights", "tied", "0"), external_model("weights", "b", "96")]
    (tmp_path / "1.onnx").write_bytes(model(*first))
    (tmp_path / "2.onnx").write_bytes(model(external_model("weights", "a", "0"), external_model("weights", "c", "20")))
    (tmp_path / "3.onnx").write_bytes(b"not a model")
    large = initializer(tensor("large", 1, (3,), number(14, 1), piece(13, piece(1, "location"), piece(2, "weights")),
                               piece(13, piece(1, "offset"), piece(2, "24"))))  # fmt: skip
    (tmp_path / "4.onnx").write_bytes(model(large))
    layout = read_beside(tmp_path, "weights")
    assert places(layout) == {"a": 0, "large": 24}
    assert layout.aliases == (("tied", "a"),)
    assert {span.role for span in layout.spans} == {Role.TENSOR, Role.GAP}
    assert layout.note == "1 tensor whose place does not fit the file or the shape left out; 1 tensor overlapping a larger one left out"


def test_a_model_that_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    class Broken(Folder):
        def open(self, name: str) -> FileView | None:
            def fetch(offset: int, length: int) -> bytes:
                raise OSError(5, "bad sector")

            return FileView(name, 1000, fetch, self)

    (tmp_path / "weights").write_bytes(bytes(100))
    (tmp_path / "a.onnx").write_bytes(model(external_model("weights")))
    path = tmp_path / "weights"
    assert layout_of(fetcher_of(path), 100, str(path), Broken(tmp_path)).format_name == "opaque"
    assert places(read_beside(tmp_path, "weights")) == {"t": 0}


def test_the_note_of_a_model_names_its_other_files(tmp_path: Path) -> None:
    data = model(*(external_model(f"w{index}", f"t{index}") for index in range(5)))
    assert read(data).note == "the data of 5 tensors is in other files: 'w0', 'w1', 'w2', …"
