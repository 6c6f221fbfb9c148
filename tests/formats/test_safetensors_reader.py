"""The safetensors reader: real files, one hand-made file per error, and seeded damage to headers."""

from __future__ import annotations

import json
import math
import os
import random
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import checkpoints
from bitward_formats import errors, records
from bitward_formats.readers import layout_of, safetensors
from bitward_formats.readers.file_view import FileView
from bitward_formats.spans import Layout, Role

MUTATIONS = 5_000
SEED = int(os.environ.get("BITWARD_TEST_SEED", "20240817"))


def fetcher(data: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, length: data[offset : offset + length]


def read(data: bytes) -> Layout:
    return safetensors.read_layout(FileView("model.safetensors", len(data), fetcher(data)))


def file_of(header: object, data_bytes: int = 0) -> bytes:
    """A file with this header (text, bytes or what json.dumps takes) and so many bytes of data."""
    text = header if isinstance(header, bytes) else header.encode() if isinstance(header, str) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data_bytes)


def tensor(dtype: object = "U8", shape: object = (4,), offsets: object = (0, 4), **more: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def assert_tiles(layout: Layout) -> None:
    position = 0
    for span in layout.spans:
        assert span.offset == position
        assert span.length >= 0
        assert span.length % span.kind.record_bytes == 0
        position = span.end
    assert position == layout.file_bytes


def test_the_many_dtypes_of_the_small_checkpoint() -> None:
    tensors = checkpoints.many_dtypes()
    data = checkpoints.safetensors_bytes(tensors, {"format": "pt"})
    layout = read(data)
    assert_tiles(layout)
    assert (layout.format_name, layout.note, layout.spans[0].role) == ("safetensors", "", Role.HEADER)
    found = {span.name: (span.dtype, span.dims, data[span.offset : span.end]) for span in layout.spans[1:]}
    assert found == tensors
    assert all(span.role is Role.TENSOR and span.kind is records.kind_of(span.dtype) for span in layout.spans[1:])


def assert_same_as_library(path: Path) -> None:
    library = pytest.importorskip("safetensors", reason="the safetensors library is there to compare with in CI")
    data = path.read_bytes()
    layout = layout_of(fetcher(data), len(data), path.name)
    assert_tiles(layout)
    assert layout.format_name == "safetensors"
    wanted = {name: (info["dtype"], tuple(info["shape"]), bytes(info["data"])) for name, info in library.deserialize(data)}
    assert {span.name: (span.dtype, span.dims, data[span.offset : span.end]) for span in layout.spans[1:]} == wanted


def test_real_f32_checkpoint(minilm: Path) -> None:
    assert_same_as_library(minilm)


def test_real_small_checkpoints(fracast_files: list[Path]) -> None:
    assert len(fracast_files) == 2
    for path in fracast_files:
        assert_same_as_library(path)


def test_small_checkpoint_as_the_library_reads_it(small_checkpoint: Path) -> None:
    assert_same_as_library(small_checkpoint)


def test_empty_tensors_come_first_at_their_offset_and_keep_their_order() -> None:
    header = {
        "b": tensor(offsets=(0, 4)),
        "z": tensor(shape=(0,), offsets=(4, 4)),
        "c": tensor(offsets=(4, 8)),
        "y": tensor(shape=(3, 0), offsets=(4, 4)),
        "x": tensor("F64", (0, 7), (0, 0)),
        "w": tensor("I16", (0,), (8, 8)),
    }
    layout = read(file_of(header, 8))
    assert_tiles(layout)
    assert [span.name for span in layout.spans] == ["", "x", "b", "z", "y", "c", "w"]


@pytest.mark.parametrize(
    ("header", "data_bytes", "span_count"),
    [
        ("{}", 0, 1),
        ("{ }  \n", 0, 1),
        ({"__metadata__": {}}, 0, 1),
        ({"__metadata__": {"note": 'a "quoted" \\ é \x00 text'}, "t": tensor()}, 4, 2),
        ({"": tensor()}, 4, 2),
        ({"scalar": tensor("F32", (), (0, 4))}, 4, 2),
        ({"naïve/λ": tensor()}, 4, 2),
        ({"later": tensor(flags=[1, 2], note="x")}, 4, 2),
        ({"half": tensor("F4", (2, 4), (0, 4))}, 4, 2),
        ({"six": tensor("F6_E3M2", (8,), (0, 6))}, 6, 2),
        ('{"t":\t{"shape":[4] , "data_offsets": [0,4],\n"dtype":"U8"}\r\n}', 4, 2),
        ({"n" * 65_535: tensor()}, 4, 2),
        ({"dims": tensor(shape=[1] * 255, offsets=(0, 1))}, 1, 2),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_unusual_but_valid(header: object, data_bytes: int, span_count: int) -> None:
    layout = read(file_of(header, data_bytes))
    assert_tiles(layout)
    assert len(layout.spans) == span_count


def entry_text(**fields: str) -> str:
    members = {"dtype": '"U8"', "shape": "[4]", "data_offsets": "[0,4]", **fields}
    return '{"t":{' + ",".join(f'"{key}":{value}' for key, value in members.items()) + "}}"


EMPTY = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'

BAD_FILES: list[tuple[str, type[errors.CheckpointError], bytes]] = [
    ("empty file", errors.HeaderTooShortError, b""),
    ("seven bytes", errors.HeaderTooShortError, bytes(7)),
    ("length beyond the file", errors.HeaderTooShortError, (3).to_bytes(8, "little") + b"{}"),
    ("length above the limit", errors.HeaderTooLargeError, (100_000_001).to_bytes(8, "little") + b"{}"),
    ("length of all ones", errors.HeaderTooLargeError, b"\xff" * 8 + b"{}"),
    ("no header", errors.HeaderSyntaxError, bytes(8)),
    ("white space first", errors.HeaderSyntaxError, file_of(" {}")),
    ("byte order mark", errors.HeaderSyntaxError, file_of(b"\xef\xbb\xbf{}")),
    ("a list", errors.HeaderSyntaxError, file_of("[]")),
    ("cut off", errors.HeaderSyntaxError, file_of("{")),
    ("cut off in a name", errors.HeaderSyntaxError, file_of('{"t')),
    ("cut off after a name", errors.HeaderSyntaxError, file_of('{"t":')),
    ("trailing comma", errors.HeaderSyntaxError, file_of('{"__metadata__":{},}')),
    ("text after the end", errors.HeaderSyntaxError, file_of("{}{}")),
    ("zero byte after the end", errors.HeaderSyntaxError, file_of("{}\0")),
    ("not UTF-8", errors.HeaderSyntaxError, file_of(b'{"__metadata__":{"a":"\xff"}}')),
    ("overlong UTF-8", errors.HeaderSyntaxError, file_of(b'{"__metadata__":{"a":"\xc0\x80"}}')),
    ("surrogate in UTF-8", errors.HeaderSyntaxError, file_of(b'{"__metadata__":{"a":"\xed\xa0\x80"}}')),
    ("half a surrogate pair in a name", errors.HeaderSyntaxError, file_of(r'{"\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}')),
    ("unknown escape", errors.HeaderSyntaxError, file_of(r'{"__metadata__":{"a":"\x41"}}')),
    ("control character in a string", errors.HeaderSyntaxError, file_of(b'{"__metadata__":{"a":"\n"}}')),
    ("metadata not an object", errors.HeaderSyntaxError, file_of({"__metadata__": "x"})),
    ("metadata null", errors.HeaderSyntaxError, file_of({"__metadata__": None})),
    ("metadata of numbers", errors.HeaderSyntaxError, file_of({"__metadata__": {"a": 1}})),
    ("metadata of objects", errors.HeaderSyntaxError, file_of({"__metadata__": {"a": {}}})),
    ("too many metadata keys", errors.HeaderTooLargeError, file_of({"__metadata__": {str(key): "" for key in range(65_537)}})),
    ("name too long", errors.HeaderSyntaxError, file_of({"n" * 65_536: tensor()}, 4)),
    ("name too long in UTF-8", errors.HeaderSyntaxError, file_of(json.dumps({"é" * 32_768: tensor()}, ensure_ascii=False), 4)),
    ("name far too long", errors.HeaderSyntaxError, file_of({"n" * 1_000_000: tensor()}, 4)),
    ("tensor not an object", errors.HeaderSyntaxError, file_of({"t": []})),
    ("object in a tensor", errors.HeaderSyntaxError, file_of({"t": tensor(more={})}, 4)),
    ("tensor's text too long", errors.HeaderSyntaxError, file_of({"t": tensor(more=" " * 65_536)}, 4)),
    ("no dtype", errors.HeaderSyntaxError, file_of('{"t":{"shape":[4],"data_offsets":[0,4]}}', 4)),
    ("no shape", errors.HeaderSyntaxError, file_of('{"t":{"dtype":"U8","data_offsets":[0,4]}}', 4)),
    ("no offsets", errors.HeaderSyntaxError, file_of('{"t":{"dtype":"U8","shape":[4]}}', 4)),
    ("dtype a number", errors.HeaderSyntaxError, file_of({"t": tensor(dtype=8)}, 4)),
    ("dtype empty", errors.HeaderSyntaxError, file_of({"t": tensor(dtype="")}, 4)),
    ("dtype unknown", errors.UnknownDtypeError, file_of({"t": tensor(dtype="F7")}, 4)),
    ("dtype in lower case", errors.UnknownDtypeError, file_of({"t": tensor(dtype="u8")}, 4)),
    ("shape a number", errors.HeaderSyntaxError, file_of({"t": tensor(shape=4)}, 4)),
    ("shape of a bool", errors.HeaderSyntaxError, file_of({"t": tensor(shape=[True, 4])}, 4)),
    ("shape of a float", errors.HeaderSyntaxError, file_of({"t": tensor(shape=[4.0])}, 4)),
    ("shape negative", errors.HeaderSyntaxError, file_of({"t": tensor(shape=[-4])}, 4)),
    ("shape of a string", errors.HeaderSyntaxError, file_of({"t": tensor(shape=["4"])}, 4)),
    ("256 dimensions", errors.HeaderSyntaxError, file_of({"t": tensor(shape=[1] * 256, offsets=(0, 1))}, 1)),
    ("three offsets", errors.HeaderSyntaxError, file_of({"t": tensor(offsets=[0, 4, 4])}, 4)),
    ("one offset", errors.HeaderSyntaxError, file_of({"t": tensor(offsets=[0])}, 4)),
    ("offset null", errors.HeaderSyntaxError, file_of({"t": tensor(offsets=[0, None])}, 4)),
    ("offset negative", errors.HeaderSyntaxError, file_of({"t": tensor(offsets=[-4, 0])}, 4)),
    ("offset a bool", errors.HeaderSyntaxError, file_of({"t": tensor(shape=[1], offsets=[False, True])}, 1)),
    ("NaN", errors.HeaderSyntaxError, file_of(entry_text(more="NaN"), 4)),
    ("Infinity as an offset", errors.HeaderSyntaxError, file_of(entry_text(data_offsets="[0,Infinity]"), 4)),
    ("an integer of 5,000 digits", errors.HeaderSyntaxError, file_of(entry_text(data_offsets=f"[0,{'9' * 5000}]"), 4)),
    ("an offset of 4,000 digits", errors.TensorBoundsError, file_of(entry_text(data_offsets=f"[0,{'9' * 4000}]"), 4)),
    ("a dimension of 4,000 digits", errors.TensorSizeError, file_of(entry_text(shape=f"[{'9' * 4000}]"), 4)),
    ("deeply nested lists", errors.HeaderSyntaxError, file_of(entry_text(shape="[" * 30_000 + "]" * 30_000), 4)),
    ("leading zero", errors.HeaderSyntaxError, file_of(entry_text(data_offsets="[00,4]"), 4)),
    ("tensor twice", errors.DuplicateKeyError, file_of('{"t":' + EMPTY + r',"\u0074":' + EMPTY + "}")),
    ("metadata twice", errors.DuplicateKeyError, file_of('{"__metadata__":{},"__metadata__":{}}')),
    ("key twice in the metadata", errors.DuplicateKeyError, file_of('{"__metadata__":{"a":"","a":""}}')),
    ("key twice in a tensor", errors.DuplicateKeyError, file_of('{"t":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}}', 4)),
    ("range beyond the file", errors.TensorBoundsError, file_of({"t": tensor(shape=(5,), offsets=(0, 5))}, 4)),
    ("range reversed", errors.TensorBoundsError, file_of({"t": tensor(offsets=(4, 0))}, 4)),
    ("range wholly outside", errors.TensorBoundsError, file_of({"t": tensor(offsets=(8, 12))}, 4)),
    ("range too short for the shape", errors.TensorSizeError, file_of({"t": tensor(shape=(5,))}, 4)),
    ("range too long for the shape", errors.TensorSizeError, file_of({"t": tensor(shape=(3,))}, 4)),
    ("range too short for the dtype", errors.TensorSizeError, file_of({"t": tensor("F16")}, 4)),
    ("half a byte", errors.TensorSizeError, file_of({"t": tensor("F4", (7,))}, 4)),
    ("more elements than 64 bits count", errors.TensorSizeError, file_of({"t": tensor(shape=(1 << 32, 1 << 32))}, 4)),
    ("no elements, but too many", errors.TensorSizeError, file_of({"t": tensor(shape=(1 << 32, 1 << 32, 0), offsets=(0, 0))})),
    ("overlap", errors.TensorOverlapError, file_of({"a": tensor(), "b": tensor(offsets=(3, 7))}, 7)),
    ("the same range twice", errors.TensorOverlapError, file_of({"a": tensor(), "b": tensor()}, 4)),
    ("an empty tensor within another", errors.TensorOverlapError, file_of({"a": tensor(), "b": tensor(shape=(0,), offsets=(2, 2))}, 4)),
    ("hole at the start", errors.TensorHoleError, file_of({"a": tensor(offsets=(1, 5))}, 5)),
    ("hole in the middle", errors.TensorHoleError, file_of({"a": tensor(), "b": tensor(offsets=(5, 9))}, 9)),
    ("trailing byte", errors.TensorHoleError, file_of({"a": tensor()}, 5)),
    ("data without tensors", errors.TensorHoleError, file_of("{}", 1)),
]


@pytest.mark.parametrize(("error", "data"), [bad[1:] for bad in BAD_FILES], ids=[bad[0] for bad in BAD_FILES])
def test_each_way_to_be_wrong_is_a_named_error(error: type[errors.CheckpointError], data: bytes) -> None:
    with pytest.raises(errors.CheckpointError) as caught:
        read(data)
    assert caught.type is error
    assert str(caught.value).isprintable(), "messages are fit for a terminal"
    assert len(str(caught.value)) < 1000, "messages are not as long as what they complain about"
    layout = layout_of(fetcher(data), len(data), "model.safetensors")
    assert_tiles(layout)
    assert layout.format_name == "opaque"
    assert error.__name__ in layout.note


def test_every_error_of_the_reader_has_its_bad_file() -> None:
    named = {value for value in vars(safetensors).values() if isinstance(value, type) and issubclass(value, errors.CheckpointError)}
    assert {bad[1] for bad in BAD_FILES} == named


@pytest.mark.parametrize("given_bytes", [0, 7, 8, 9, 60])
def test_a_file_that_shrinks_while_it_is_read(given_bytes: int) -> None:
    data = checkpoints.safetensors_bytes({"t": ("U8", (4,), bytes(4))})
    with pytest.raises(errors.HeaderTooShortError):
        safetensors.read_layout(FileView("t.safetensors", len(data), fetcher(data[:given_bytes])))


def test_what_fetch_raises_goes_through() -> None:
    def broken(offset: int, length: int) -> bytes:
        raise OSError(5, f"cannot read {length} bytes at {offset}")

    with pytest.raises(OSError, match="cannot read"):
        layout_of(broken, 100, "model.safetensors")


def test_safetensors_is_known_by_content_too() -> None:
    data = checkpoints.safetensors_bytes({"t": ("U8", (4,), bytes(4))})
    for name in ("6f2ba1", "model.SafeTensors", "model.safetensors", "blob.bin"):
        assert layout_of(fetcher(data), len(data), name).format_name == "safetensors"


@pytest.mark.parametrize(
    "data", [b"", b"{", b"12345678", b'{"json": true}', b"version 1\noid sha256:00\n", bytes(100), b"\x7fELF" * 30], ids=repr
)
def test_other_files_are_opaque_without_a_note(data: bytes) -> None:
    layout = layout_of(fetcher(data), len(data), "config.json")
    assert_tiles(layout)
    assert (layout.format_name, layout.note, len(layout.spans)) == ("opaque", "", min(len(data), 1))
    assert all(span.role is Role.DATA and span.kind.critical_mask == b"\xff" for span in layout.spans)


SNIPPETS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b'"',
    b"\\",
    b"\\u",
    b"\\ud800",
    b"null",
    b"true",
    b"-1",
    b"1e9",
    b"NaN",
    b"0",
    b"\xff",
    b"\x00",
    b"9" * 25,
    b'"dtype"',
    b'"F4"',
]


def mutate(seeded: random.Random, data: bytes, header_bytes: int) -> bytes:
    """One to four flips, overwritten bytes, cuts, doublings or foreign snippets, mostly in the header."""
    out = bytearray(data)
    for _ in range(seeded.choice((1, 1, 1, 2, 4))):
        at = seeded.randrange(min(len(out), 8 if seeded.random() < 0.05 else header_bytes) or 1)
        match seeded.randrange(8):
            case 0:
                out[at : at + 1] = bytes([out[at] ^ 1 << seeded.randrange(8)]) if out else b""
            case 1:
                out[at : at + 1] = seeded.randbytes(1)
            case 2:
                out[at:at] = seeded.choice(SNIPPETS)
            case 3:
                del out[at : at + seeded.randint(1, 30)]
            case 4:
                out[at:at] = out[at : at + seeded.randint(1, 80)]
            case 5 | 6:
                # Another digit keeps the grammar, so that the checks behind it are reached.
                digits = [place for place in range(8, min(header_bytes, len(out))) if 48 <= out[place] < 58]
                if digits:
                    out[seeded.choice(digits)] = seeded.randrange(48, 58)
            case 7:
                snippet = seeded.choice(SNIPPETS)
                out[at : at + len(snippet)] = snippet
    if seeded.random() < 0.8 and len(out) >= 8:
        # With a length that fits, the damage gets past the first check.
        data_bytes = len(data) - header_bytes
        out[:8] = max(len(out) - 8 - data_bytes, 0).to_bytes(8, "little")
    return bytes(out)


def test_mutated_headers_give_a_tiling_layout_or_a_named_error() -> None:
    print(f"seed {SEED}")
    tensors = {name: (dtype, dims, data) for name, (dtype, dims, data) in checkpoints.many_dtypes().items() if len(data) < 5000}
    data = checkpoints.safetensors_bytes(tensors, {"format": "pt", "é": "\\ \u2028"})
    header_bytes = 8 + int.from_bytes(data[:8], "little")
    outcomes: dict[str, int] = {}
    for number in range(MUTATIONS):
        seeded = random.Random(f"{SEED}/{number}")
        mutant = mutate(seeded, data, header_bytes)
        try:
            layout = read(mutant)
        except tuple(errors.CheckpointError.__subclasses__()) as error:
            outcome = type(error).__name__
        else:
            assert_tiles(layout)
            outcome = "layout"
        assert_tiles(layout_of(fetcher(mutant), len(mutant), "m.safetensors"))
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    print(outcomes)
    assert outcomes["layout"] > 50, "the mutations are not all fatal, so accepted headers were tried too"
    assert len(outcomes) >= 8, outcomes


def outcome_of(data: bytes) -> object:
    """The layout, or the error with its words."""
    try:
        return read(data)
    except errors.CheckpointError as error:
        return type(error), str(error)


def test_the_quick_way_says_what_the_careful_way_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members written in the usual way are taken by one expression; without it every header has the same outcome."""
    print(f"seed {SEED}")
    tensors = {f"layer {name}": (dtype, dims, data) for name, (dtype, dims, data) in checkpoints.many_dtypes().items() if len(data) < 5000}
    spaced = json.dumps({name: tensor(offsets=(4 * at, 4 * at + 4)) for at, name in enumerate("abcdé")}, indent=1, ensure_ascii=False)
    files = [checkpoints.safetensors_bytes(tensors), checkpoints.safetensors_bytes(tensors, {"format": "pt"}), file_of(spaced, 20)]
    mutants = []
    for number in range(MUTATIONS // 2):
        seeded = random.Random(f"{SEED}/ways/{number}")
        data = files[number % len(files)]
        mutants.append(mutate(seeded, data, 8 + int.from_bytes(data[:8], "little")))
    everything = [*files, *mutants, *(data for _, _, data in BAD_FILES)]
    quick = [outcome_of(data) for data in everything]
    monkeypatch.setattr(safetensors, "_USUAL_MEMBER", re.compile(rb"(?!)"))
    assert quick == [outcome_of(data) for data in everything]
    assert sum(isinstance(outcome, Layout) for outcome in quick) > 100


@given(st.binary(max_size=200), st.binary(max_size=20))
def test_any_bytes_have_a_layout(head: bytes, tail: bytes) -> None:
    for data in (head + tail, len(head).to_bytes(8, "little") + head + tail, file_of(b"{" + head, len(tail))):
        assert_tiles(layout_of(fetcher(data), len(data), "x.safetensors"))


@pytest.mark.parametrize("dtype", ["C128", "F32.BE", "F32@0", "", "Q4_0"])
def test_labels_of_other_formats_are_no_types_of_this_one(dtype: str) -> None:
    data = checkpoints.safetensors_bytes({"w": (dtype, (32,), bytes(128))})
    layout = layout_of(lambda offset, length: data[offset : offset + length], len(data), "w.safetensors")
    assert layout.format_name == "opaque"
    assert "not valid safetensors" in layout.note


NAMES = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.dictionaries(NAMES, st.sampled_from(sorted(safetensors.DTYPES)), max_size=8), st.data())
def test_what_was_written_is_read(dtypes: dict[str, str], draw: st.DataObject) -> None:
    tensors: dict[str, checkpoints.Tensor] = {}
    for name, dtype in dtypes.items():
        dims = (*draw.draw(st.lists(st.integers(0, 5), max_size=3)), records.elements_per_record(dtype))
        size = math.prod(dims) * records.element_bits(dtype) // 8
        tensors[name] = dtype, dims, draw.draw(st.binary(min_size=size, max_size=size))
    tensors.pop("__metadata__", None)
    data = checkpoints.safetensors_bytes(tensors)
    layout = read(data)
    assert_tiles(layout)
    assert {span.name: (span.dtype, span.dims, data[span.offset : span.end]) for span in layout.spans[1:]} == tensors


def repeated(one: Callable[[int], str], count: int, data_bytes: int = 0) -> bytes:
    return file_of("{" + ",".join(one(index) for index in range(count)) + "}", data_bytes)


HEAVY: dict[str, Callable[[], bytes]] = {
    "nested lists": lambda: file_of('{"t":{"dtype":[' + "[]," * 700_000 + "[]]}}"),
    "empty objects": lambda: file_of('{"t":[' + "{}," * 700_000 + "{}]}"),
    "many tensors": lambda: repeated(lambda i: f'"{i}":{{"dtype":"U8","shape":[],"data_offsets":[{i},{i + 1}]}}', 40_000, 40_000),
    "many empty tensors": lambda: repeated(lambda i: f'"{i:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', 40_000),
    "wide shapes": lambda: repeated(lambda i: f'"{i:x}":{{"dtype":"U8","shape":[{"300," * 7}0],"data_offsets":[0,0]}}', 25_000),
    "many zeros": lambda: repeated(lambda i: f'"{i:x}":{{"dtype":"U8","shape":[{"0," * 250}0],"data_offsets":[0,0]}}', 4_000),
    "metadata keys": lambda: file_of('{"__metadata__":{' + ",".join(f'"{i:x}":""' for i in range(200_000)) + "}}"),
    "escapes": lambda: file_of('{"__metadata__":{"a":"' + r"\n" * 1_000_000 + '"}}'),
    "a long astral name": lambda: file_of('{"' + "\N{GRINNING FACE}" * 500_000 + '":{}}'),
    "an unclosed string": lambda: file_of('{"' + "x" * 2_000_000),
    "white space": lambda: file_of("{" + " " * 2_000_000 + "}"),
    "digits": lambda: file_of('{"t":{"dtype":"U8","shape":[' + "9" * 2_000_000 + "]}}"),
}


@pytest.mark.parametrize("name", HEAVY)
def test_memory_is_bounded_by_the_header(name: str) -> None:
    """Peak at most ten times the input, and 1 MiB for what does not grow with it."""
    data = HEAVY[name]()
    tracemalloc.start()
    try:
        layout_of(fetcher(data), len(data), "m.safetensors")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    print(f"{name}: {len(data)} bytes, peak {peak_bytes / len(data):.1f} x")
    assert peak_bytes <= 10 * len(data) + (1 << 20)
