"""The readers of NumPy and HDF5 files beyond the contract: each way to be wrong, what is opaque and why, seeded damage to metadata."""

from __future__ import annotations

import importlib.util
import os
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from bitward_formats import errors
from bitward_formats.readers import hdf5, layout_of, npy, npz
from bitward_formats.readers.file_view import FileView
from bitward_formats.spans import Layout, Role
from readers import hdf5_files, numpy_files
from readers.contract import Case

MUTATIONS = 2_000
SEED = int(os.environ.get("BITWARD_TEST_SEED", "20240817"))
HAS_H5PY = importlib.util.find_spec("h5py") is not None
CASES = [*numpy_files.cases(), *hdf5_files.cases()]
READERS = {"npy": npy, "npz": npz, "hdf5": hdf5}


def fetcher(data: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, length: data[offset : offset + length]


def read(data: bytes, name: str = "blob") -> Layout:
    return layout_of(fetcher(data), len(data), name)


def assert_tiles(layout: Layout) -> None:
    position = 0
    for span in layout.spans:
        assert span.offset == position
        assert span.length >= 0
        assert span.length % span.kind.record_bytes == 0
        position = span.end
    assert position == layout.file_bytes


def made_by(case: Case, folder: Path) -> Path:
    if case.reader == "hdf5" and not HAS_H5PY:
        pytest.skip("h5py is there to write HDF5 files and to compare with in CI")
    return case.make(folder)


@pytest.mark.parametrize("case", [case for case in CASES if not case.real], ids=lambda case: case.name)
def test_files_are_known_by_content_alone(case: Case, tmp_path: Path) -> None:
    layout = read(made_by(case, tmp_path).read_bytes(), "sha256-0123")
    assert_tiles(layout)
    assert layout.format_name == case.reader, layout.note


def metadata_of(layout: Layout) -> list[int]:
    """Offsets of the bytes that readers read, so that mutations hit them."""
    return [at for span in layout.spans if span.role is not Role.TENSOR for at in range(span.offset, min(span.end, span.offset + 4096))]


def mutate(seeded: random.Random, data: bytes, targets: list[int]) -> bytes:
    """One to four flips, foreign numbers, copies of other metadata, cuts and insertions."""
    out = bytearray(data)
    for _ in range(seeded.choice((1, 1, 2, 4))):
        at = min(seeded.choice(targets), len(out) - 1)
        match seeded.randrange(8):
            case 0 | 1 | 2:
                out[at] ^= 1 << seeded.randrange(8)
            case 3:
                out[at] = seeded.choice((0, 1, 0x7F, 0x80, 0xFF, *b"()[]{},':<>|"))
            case 4:
                width = seeded.choice((2, 4, 8))
                out[at : at + width] = seeded.choice((0, 1, len(data), (1 << 8 * width) - 1, seeded.choice(targets))).to_bytes(8, "little")[
                    :width
                ]
            case 5:
                source = seeded.choice(targets)
                out[at : at + 64] = data[source : source + 64]
            case 6:
                del out[at : at + seeded.randint(1, 64)]
            case 7:
                out[at:at] = seeded.randbytes(seeded.randint(1, 16))
    return bytes(out or b"\0")


MUTATED = [
    "npy, <f4", "npy, Fortran order, >f2", "npz mixed", "HDF5 earliest, weights", "HDF5 latest, weights",
    "HDF5 earliest, opaque", "HDF5 latest, opaque", "HDF5 latest, a crowd", "HDF5 earliest, a crowd",
]  # fmt: skip


@pytest.mark.parametrize("name", MUTATED)
def test_mutations_give_a_tiling_layout_or_a_named_error(name: str, tmp_path: Path) -> None:
    print(f"seed {SEED}")
    case = next(case for case in CASES if case.name == name)
    data = made_by(case, tmp_path).read_bytes()
    reader, targets = READERS[case.reader], metadata_of(read(data))
    outcomes: dict[str, int] = {}
    for number in range(MUTATIONS // 10 if "crowd" in name else MUTATIONS):
        mutant = mutate(random.Random(f"{SEED}/{name}/{number}"), data, targets)
        try:
            layout = reader.read_layout(FileView("m", len(mutant), fetcher(mutant)))
        except tuple(errors.CheckpointError.__subclasses__()) as error:
            outcome = type(error).__name__
        else:
            assert_tiles(layout)
            outcome = "layout"
        assert_tiles(read(mutant))
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    print(outcomes)
    assert outcomes["layout"] > 20, "not all mutations are fatal, so accepted ones were tried too"
    assert len(outcomes) >= 4, outcomes


def test_checkpoints_are_found_by_content_and_nothing_else_is_taken_for_one(tmp_path: Path) -> None:
    """Blob stores name files by digest: there is no suffix to go by."""
    import io
    import zipfile

    import numpy

    import checkpoints

    array, archive, other_zip, docx = io.BytesIO(), io.BytesIO(), io.BytesIO(), io.BytesIO()
    numpy.save(array, numpy.ones(3, "f4"))
    numpy.savez(archive, a=numpy.ones(3, "f4"))
    with zipfile.ZipFile(other_zip, "w") as file:
        file.writestr("readme.txt", "nothing")
    with zipfile.ZipFile(docx, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("[Content_Types].xml", "<Types/>" * 100)
    blobs = {
        "safetensors": checkpoints.safetensors_bytes(checkpoints.many_dtypes()),
        "npy": array.getvalue(),
        "npz": archive.getvalue(),
    }
    for wanted, data in blobs.items():
        assert read(data, "sha256-" + "0" * 64).format_name == wanted
    nothing = {
        "JSON": b'{"model_type": "bert", "shape": [1, 2]}',
        "text": "Ein Text über nichts.\n".encode() * 100,
        "zip": other_zip.getvalue(),
        "zip, deflated": docx.getvalue(),
        "empty": b"",
        "zeros": bytes(5000),
        "random": random.Random(SEED).randbytes(5000),
        "a header's length and no header": (100).to_bytes(8, "little") + b"\0" * 200,
    }
    for name, data in nothing.items():
        layout = read(data, "sha256-" + "0" * 64)
        assert (layout.format_name, [span.role for span in layout.spans]) == ("opaque", [Role.DATA] if data else []), name


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5", ".hdf5", ".weights.h5"])
def test_a_suffix_that_lies_is_told_in_the_note(suffix: str) -> None:
    layout = read(b"not what the name says" * 50, "model" + suffix)
    assert layout.format_name == "opaque"
    assert "not valid" in layout.note


def hostile_npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    text = header.encode()
    return npy.MAGIC + bytes((version, 0)) + len(text).to_bytes(2 if version == 1 else 4, "little") + text + data


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }"

BAD_ARRAYS: list[tuple[str, type[errors.CheckpointError], bytes]] = [
    ("cut in the magic", errors.HeaderSyntaxError, npy.MAGIC[:5]),
    ("cut in the version", errors.HeaderTooShortError, npy.MAGIC + b"\1"),
    ("cut in the length", errors.HeaderTooShortError, npy.MAGIC + b"\1\0\1"),
    ("version 4", errors.FormatVersionError, hostile_npy(HEADER, bytes(16), 4)),
    ("version 1.1", errors.FormatVersionError, npy.MAGIC + b"\1\1" + hostile_npy(HEADER, bytes(16))[8:]),
    ("header beyond the file", errors.HeaderTooShortError, hostile_npy(HEADER)[:-1]),
    ("header too large", errors.HeaderTooLargeError, npy.MAGIC + b"\2\0" + b"\xff" * 4 + HEADER.encode()),
    ("not UTF-8", errors.HeaderSyntaxError, npy.MAGIC + b"\3\0\4\0\0\0{\xff\xff}"),
    ("no dictionary", errors.HeaderSyntaxError, hostile_npy("[]")),
    ("a key missing", errors.HeaderSyntaxError, hostile_npy("{'descr': '<f4', 'fortran_order': False}")),
    ("another key", errors.HeaderSyntaxError, hostile_npy(HEADER.replace("}", "'x': 1}"))),
    ("a key twice", errors.DuplicateKeyError, hostile_npy(HEADER.replace("}", "'shape': (4,)}"))),
    ("text behind it", errors.HeaderSyntaxError, hostile_npy(HEADER + "{}", bytes(16))),
    ("an expression", errors.HeaderSyntaxError, hostile_npy(HEADER.replace("False", "not 1"), bytes(16))),
    ("a call", errors.HeaderSyntaxError, hostile_npy(HEADER.replace("(4,)", "exit()"), bytes(16))),
    ("a negative dimension", errors.HeaderSyntaxError, hostile_npy(HEADER.replace("4,", "-4,"), bytes(16))),
    ("a shape that is no tuple", errors.HeaderSyntaxError, hostile_npy(HEADER.replace("4,)", "4)"), bytes(16))),
    ("numbers without commas", errors.HeaderSyntaxError, hostile_npy(HEADER.replace("4,", "2 2"), bytes(16))),
    ("65 dimensions", errors.HeaderSyntaxError, hostile_npy(HEADER.replace("4,", "1," * 65), bytes(16))),
    ("more elements than exist", errors.TensorSizeError, hostile_npy(HEADER.replace("4,", "4294967296," * 3))),
    ("as many beside a zero", errors.TensorSizeError, hostile_npy(HEADER.replace("4,", "0," + "4294967296," * 3))),
    ("data cut off", errors.TensorBoundsError, hostile_npy(HEADER, bytes(15))),
    ("no type string", errors.HeaderSyntaxError, hostile_npy(HEADER.replace("<f4", "4"))),
    ("brackets that do not match", errors.HeaderSyntaxError, hostile_npy(HEADER.replace("'<f4'", "[('a', '<f4')"))),
    ("brackets too deep", errors.HeaderTooLargeError, hostile_npy(HEADER.replace("'<f4'", "[" * 65 + "]" * 65))),
]


@pytest.mark.parametrize(("error", "data"), [row[1:] for row in BAD_ARRAYS], ids=[row[0] for row in BAD_ARRAYS])
def test_each_way_to_be_wrong_is_named(error: type[errors.CheckpointError], data: bytes) -> None:
    with pytest.raises(error):
        npy.read_layout(FileView("x.npy", len(data), fetcher(data)))
    assert read(data, "x.npy").format_name == "opaque"


@pytest.mark.parametrize(
    ("dtype", "meaning"),
    [
        ("O", "pickled objects"),
        ("V2", "V2"),
        ("U5", "U5"),
        ("S3", "S3"),
        ("<M8[ns]", "M8[ns]"),
        ("longdouble", "type"),
        ([("a", "f4")], "records"),
    ],
    ids=str,
)
def test_elements_without_a_number_are_opaque(dtype: str, meaning: str) -> None:
    import io

    import numpy

    file = io.BytesIO()
    numpy.save(file, numpy.zeros((3, 4), dtype), allow_pickle=True)
    layout = read(file.getvalue())
    assert_tiles(layout)
    assert [span.role for span in layout.spans] == [Role.HEADER, Role.DATA]
    assert meaning in layout.note


def test_what_follows_an_array_is_trailer() -> None:
    data = hostile_npy(HEADER, bytes(21))
    assert [(span.role, span.length) for span in read(data).spans[1:]] == [(Role.TENSOR, 16), (Role.TRAILER, 5)]


def test_one_broken_entry_does_not_spoil_an_archive() -> None:
    import io
    import zipfile

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("good.npy", hostile_npy(HEADER, bytes(16)))
        archive.writestr("bad.npy", hostile_npy(HEADER, bytes(15)))
        archive.writestr("objects.npy", hostile_npy(HEADER.replace("<f4", "|O"), b"pickle"))
        archive.writestr("note.txt", "text")
        archive.writestr("packed.npy", hostile_npy(HEADER, bytes(16)), zipfile.ZIP_DEFLATED)
    layout = read(file.getvalue())
    assert_tiles(layout)
    assert [span.name for span in layout.spans if span.role is Role.TENSOR] == ["good"]
    for told in ("1 of 4 arrays are compressed", "pickled objects", "'bad.npy' (TensorBoundsError"):
        assert told in layout.note


def hdf5_bytes(tmp_path: Path, name: str) -> bytes:
    return made_by(next(case for case in CASES if case.name == name), tmp_path).read_bytes()


def test_hard_links_are_aliases_and_circles_end(tmp_path: Path) -> None:
    layout = read(hdf5_bytes(tmp_path, "HDF5 latest, weights"))
    assert ("tied", "rows") in layout.aliases
    assert "further links to groups" in layout.note


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_what_is_not_a_tensor_is_told(libver: str, tmp_path: Path) -> None:
    layout = read(hdf5_bytes(tmp_path, f"HDF5 {libver}, opaque"))
    for told in ("in chunks", "of other elements than numbers", "without bytes in the file", "in other files"):
        assert told in layout.note


def test_listing_reads_the_metadata_alone(tmp_path: Path) -> None:
    """A sparse file of 4 GB: less than a hundredth of it is read, and little memory used."""
    pytest.importorskip("h5py", reason="h5py is there to write HDF5 files and to compare with in CI")
    import h5py

    path = tmp_path / "large.h5"
    with h5py.File(path, "w") as file:
        for number in range(16):
            # Written at its end, so that the space is allocated and stays a hole.
            file.create_dataset(f"layer {number}/kernel", (1 << 26,), "<f4")[-1] = number
    assert path.stat().st_size > 1 << 32
    read_bytes = 0
    with path.open("rb", buffering=0) as opened:

        def fetch(offset: int, length: int) -> bytes:
            nonlocal read_bytes
            read_bytes += length
            opened.seek(offset)
            return opened.read(length)

        layout = layout_of(fetch, path.stat().st_size, path.name)
    assert_tiles(layout)
    assert sum(span.length for span in layout.spans if span.role is Role.TENSOR) == 1 << 32
    assert read_bytes < 1 << 18


def nested_lists() -> bytes:
    return hostile_npy(HEADER.replace("'<f4'", "[" + "[],()," * 170_000 + "]"), bytes(16), 2)


def circular_tree(tmp_path: Path) -> bytes:
    """Every child of every B-tree node is the root of the group's tree, at a level that fits."""
    data = bytearray(hdf5_bytes(tmp_path, "HDF5 earliest, a crowd"))
    root = data.find(b"TREE")
    while root >= 0:
        data[root + 5] = 40
        for entry in range(32):
            at = root + 24 + 8 + 16 * entry
            data[at : at + 8] = root.to_bytes(8, "little")
        data[root + 6 : root + 8] = (32).to_bytes(2, "little")
        root = data.find(b"TREE", root + 4)
    return bytes(data)


def chain_of_groups(tmp_path: Path) -> bytes:
    """Groups in groups, whose names add up to more than the file."""
    pytest.importorskip("h5py", reason="h5py is there to write HDF5 files and to compare with in CI")
    import h5py

    path = tmp_path / "chain.h5"
    with h5py.File(path, "w", libver="latest") as file:
        group = file
        for _ in range(600):
            group = group.create_group("n" * 100)
            group["t"] = 1.0
    return path.read_bytes()


@pytest.mark.parametrize("make", [lambda path: nested_lists(), circular_tree, chain_of_groups], ids=["lists", "circle", "chain"])
def test_hostile_files_take_little_memory(make: Callable[[Path], bytes], tmp_path: Path) -> None:
    data = make(tmp_path)
    tracemalloc.start()
    try:
        assert_tiles(read(data))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Names are held to a limit of their own.
    assert peak_bytes <= 10 * len(data) + (1 << 25)
