"""PyTorch layouts that contradict themselves, and tensors that share storages: each outcome by name."""

from __future__ import annotations

import io
import math
import pickle
import random
import zipfile
from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest

from bitward_formats import errors
from bitward_formats.readers import torch_legacy, torch_zip
from bitward_formats.readers.file_view import FileView
from bitward_formats.readers.torch_storage_ids import Storage
from bitward_formats.readers.torch_storages import StorageRange, Tally, dense_axes, place_tensors
from bitward_formats.readers.torch_tensors import TensorClaim
from bitward_formats.spans import Layout, Role, Span


class Named:
    """Pickled as a bare global, which need not exist."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class TorchPickler(pickle._Pickler):  # type: ignore[name-defined,misc]
    """Writes what torch would, without torch: tuples of kind "storage" as persistent ids, ``Named`` as globals."""

    def persistent_id(self, obj: object) -> object:
        return obj if isinstance(obj, tuple) and obj[:1] == ("storage",) else None

    def save(self, obj: object, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Named):
            self.write(f"c{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, tuple) and obj[:1] == ("call",):
            self.save(obj[1])
            self.save(obj[2])
            self.write(b"R")
        else:
            super().save(obj, save_persistent_id)


def pickled(value: object) -> bytes:
    stream = io.BytesIO()
    TorchPickler(stream, 2).dump(value)
    return stream.getvalue()


def tensor(key: str, count: int, dims: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, *, legacy: bool = False) -> Any:
    pid = ("storage", Named("torch", "FloatStorage"), key, "cpu", count, *([None] if legacy else []))
    return ("call", Named("torch._utils", "_rebuild_tensor_v2"), (pid, offset, dims, strides, False, None))


def zip_of(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data, method if name.endswith(".pkl") else zipfile.ZIP_STORED)
    return stream.getvalue()


def read(reader: Any, data: bytes) -> Layout:
    layout: Layout = reader.read_layout(FileView("m.pt", len(data), lambda offset, length: data[offset : offset + length]))
    return layout


GOOD = {"m/data.pkl": pickled({"w": tensor("0", 4, (2, 2), (2, 1))}), "m/byteorder": b"little", "m/data/0": bytes(16), "m/version": b"3\n"}


def test_the_good_file_is_one() -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        layout = read(torch_zip, zip_of(GOOD, method))
        assert [(span.name, span.dims, span.length) for span in layout.spans if span.role is Role.TENSOR] == [("w", (2, 2), 16)]
        assert not layout.note


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"m/data.pkl": None}, errors.ArchiveSyntaxError, "0 pickles"),
        ({"n/data.pkl": b"N."}, errors.ArchiveSyntaxError, "2 pickles"),
        ({"m/byteorder": b"middle"}, errors.HeaderSyntaxError, "neither little nor big"),
        ({"m/byteorder": b"little" * 20}, errors.ArchiveTooLargeError, "64 are the most"),
        ({"m/data/0": None}, errors.TensorBoundsError, "does not hold"),
        ({"m/data/0": bytes(15)}, errors.TensorBoundsError, "needs a storage of 16 bytes"),
        ({"m/data.pkl": b"\xff"}, errors.PickleSyntaxError, "data.pkl.*opcode"),
        ({"m/data.pkl": pickled(tensor("0", 4, (5,), (1,)))}, errors.TensorBoundsError, "claims bytes 0 .. 20"),
        ({"m/data.pkl": pickled(tensor("0", 4, (2,), (1,), 3))}, errors.TensorBoundsError, "claims bytes 12 .. 20"),
        ({"m/data.pkl": pickled(tensor("0", 4, (2**62,) * 9, (2**62,) * 9))}, errors.TensorBoundsError, "2\\^64 or more"),
        ({"m/data.pkl": pickled(tensor("0", 4, (0, 2**62, 2**62), (1, 1, 1)))}, errors.TensorBoundsError, "64 bits"),
        ({"m/data.pkl": pickled(tensor("0", 2**62, (4,), (1,)))}, errors.TensorBoundsError, "needs a storage"),
        ({"m/constants.pkl": pickled([tensor("1", 4, (4,), (1,))])}, errors.TensorBoundsError, "constants/1"),
    ],
)
def test_zip_files_that_lie(changes: dict[str, bytes | None], error: type[errors.CheckpointError], told: str) -> None:
    entries = {name: data for name, data in (GOOD | changes).items() if data is not None}
    with pytest.raises(error, match=told):
        read(torch_zip, zip_of(entries))


def test_a_prefix_is_refused() -> None:
    with pytest.raises(errors.HeaderSyntaxError, match="no zip archive"):
        read(torch_zip, b"#!" + zip_of(GOOD))
    with pytest.raises(errors.UnsupportedArchiveError, match="bytes stand"):
        read(torch_zip, b"PK\x03\x04" + zip_of(GOOD))


def legacy_of(
    value: object, storages: dict[str, tuple[int, bytes]], *, magic: object = torch_legacy.MAGIC_NUMBER, version: object = 1001
) -> bytes:
    parts = [pickled(magic), pickled(version), pickled({"little_endian": True}), pickled(value), pickled(list(storages))]
    return b"".join(parts + [count.to_bytes(8, "little") + data for count, data in storages.values()])


ONE = {"w": tensor("0", 4, (2, 2), (1, 2), legacy=True)}


def test_the_good_legacy_file_is_one() -> None:
    data = legacy_of(ONE, {"0": (4, bytes(16))}) + b"more"
    layout = read(torch_legacy, data)
    assert [span.role for span in layout.spans] == [Role.HEADER, Role.TENSOR, Role.TRAILER]
    assert layout.spans[1].dtype == "F32@1,0"
    assert torch_legacy.looks_like(data, len(data), "x")


@pytest.mark.parametrize(
    ("data", "error", "told"),
    [
        (legacy_of(ONE, {"0": (4, bytes(16))}, magic=1), errors.HeaderSyntaxError, "magic number"),
        (legacy_of(ONE, {"0": (4, bytes(16))}, magic=[[1]]), errors.HeaderSyntaxError, "magic number"),
        (legacy_of(ONE, {"0": (4, bytes(16))}, version=1002), errors.HeaderSyntaxError, "magic number"),
        (legacy_of(ONE, {"0": (4, bytes(16))}, version=True), errors.HeaderSyntaxError, "magic number"),
        (legacy_of(ONE, {"0": (5, bytes(20))}), errors.TensorSizeError, "20 bytes by its count"),
        (legacy_of(ONE, {"0": (1 << 63, bytes(16))}), errors.TensorSizeError, "by its count"),
        (legacy_of(ONE, {"0": (4, bytes(15))}), errors.TensorBoundsError, "claims 16 bytes"),
        (legacy_of(ONE, {"0": (4, bytes(16))})[:-20], errors.TensorBoundsError, "ends before the storage"),
        (legacy_of(ONE, {}), errors.TensorBoundsError, "does not list"),
        (legacy_of(ONE, {"0": (4, bytes(16)), "1": (4, bytes(16))}), errors.HeaderSyntaxError, "nothing refers"),
        (b"".join(map(pickled, (torch_legacy.MAGIC_NUMBER, 1001, {}, ONE, ("0",)))), errors.PickleSyntaxError, "no list"),
        (b"".join(map(pickled, (torch_legacy.MAGIC_NUMBER, 1001, {}, ONE, [0]))), errors.PickleSyntaxError, "no string"),
        (b"".join(map(pickled, (torch_legacy.MAGIC_NUMBER, 1001, {}, ONE, ["0", "0"]))), errors.DuplicateKeyError, "twice"),
    ],
)
def test_legacy_files_that_lie(data: bytes, error: type[errors.CheckpointError], told: str) -> None:
    with pytest.raises(error, match=told):
        read(torch_legacy, data)


def claim(
    name: str, offset: int, dims: tuple[int, ...], strides: tuple[int, ...], label: str | None = "F32", item_bytes: int = 4
) -> TensorClaim:
    return TensorClaim(name, Storage("0", "F32", 4, 0, 400, 400), label, item_bytes, offset, dims, strides)


def placed(*claims: TensorClaim, big_endian: bool = False) -> tuple[list[tuple[Any, ...]], Tally]:
    tally = Tally()
    spans = place_tensors(StorageRange(1000, 400, big_endian), claims, tally)
    position = 1000
    for span in spans:
        assert span.offset == position
        position = span.end
    assert position == 1400
    return [shape(span) for span in spans], tally


def shape(span: Span) -> tuple[Any, ...]:
    return (span.name, span.dtype, span.dims, span.length) if span.role is Role.TENSOR else (span.role.name, span.length)


@pytest.mark.parametrize(
    ("claims", "spans"),
    [
        ([], [("DATA", 400)]),
        ([claim("a", 0, (100,), (1,))], [("a", "F32", (100,), 400)]),
        (
            [claim("a", 1, (5, 9), (1, 5)), claim("b", 50, (), ())],
            [("DATA", 4), ("a", "F32@1,0", (5, 9), 180), ("DATA", 16), ("b", "F32", (), 4), ("DATA", 196)],
        ),
        ([claim("part", 10, (20,), (1,)), claim("all", 0, (100,), (1,))], [("all", "F32", (100,), 400)]),
        ([claim("a", 0, (60,), (1,)), claim("b", 50, (50,), (1,))], [("a", "F32", (60,), 240), ("DATA", 160)]),
        ([claim("holes", 0, (10, 5), (10, 1))], [("holes", "F32", (95,), 380), ("DATA", 20)]),
        ([claim("repeats", 0, (7, 100), (0, 1))], [("repeats", "F32", (100,), 400)]),
        ([claim("overlaps", 0, (10, 5), (2, 1))], [("overlaps", "F32", (23,), 92), ("DATA", 308)]),
        ([claim("e", 99, (0, 3), (3, 1)), claim("a", 0, (100,), (1,))], [("e", "F32", (0, 3), 0), ("a", "F32", (100,), 400)]),
        ([claim("half", 0, (200,), (1,), "F16", 2)], [("half", "F16", (200,), 400)]),
        ([claim("strange", 0, (7,), (1,), None, 1)], [("strange", "U8", (400,), 400)]),
        ([claim("axes", 0, (1,) * 200 + (10, 10), (7,) * 200 + (1, 10))], [("axes", "F32", (100,), 400)]),
    ],
)
def test_each_byte_is_of_one_span(claims: list[TensorClaim], spans: list[tuple[Any, ...]]) -> None:
    assert placed(*claims)[0] == spans


def test_what_is_counted() -> None:
    _, tally = placed(
        claim("a", 0, (100,), (1,)), claim("b", 0, (10, 10), (1, 10)), claim("c", 3, (9,), (1,)), claim("d", 0, (7, 100), (0, 1))
    )
    assert (tally.aliases, tally.overlapping, tally.flat) == ([("b", "a"), ("d", "a")], 1, 0)


def test_big_endian_elements_of_another_size_than_the_storage_says_are_bytes() -> None:
    assert placed(claim("a", 0, (100,), (1,)), big_endian=True)[0] == [("a", "F32.BE", (100,), 400)]
    assert placed(claim("a", 0, (200,), (1,), "U16", 2), big_endian=True)[0] == [("a", "U8", (400,), 400)]


def test_dense_axes_by_brute_force() -> None:
    """Every order of the axes of small shapes: the strides of a dense tensor in that order give the order back."""
    seeded = random.Random(5)
    for _ in range(300):
        dims = tuple(seeded.randrange(1, 4) for _ in range(seeded.randrange(5)))
        for axes in permutations(range(len(dims))):
            strides = [0] * len(dims)
            step = 1
            for axis in reversed(axes):
                strides[axis] = step
                step *= dims[axis]
            found = dense_axes(dims, tuple(strides))
            assert found is not None
            order = found or tuple(range(len(dims)))
            assert [axis for axis in order if dims[axis] > 1] == [axis for axis in axes if dims[axis] > 1]
            if math.prod(dims) > 1:
                assert dense_axes((*dims, 2), (*strides, step + 1)) is None


def test_thousands_of_tensors_in_one_storage() -> None:
    claims = [claim(str(number), number % 100, (1,), (1,)) for number in range(20_000)]
    spans, tally = placed(*claims)
    assert len(spans) == 100
    assert len(tally.aliases) == 19_900


def test_placing_by_brute_force() -> None:
    """Greedy by size, byte by byte, on random claims."""
    for seed in range(200):
        seeded = random.Random(seed)
        claims = [claim(str(n), seeded.randrange(90), (seeded.randrange(1, 11),), (1,)) for n in range(seeded.randrange(1, 30))]
        taken: dict[int, str] = {}
        for one in sorted(claims, key=lambda one: -one.dims[0]):
            places = range(4 * one.offset, 4 * (one.offset + one.dims[0]))
            if not any(place in taken for place in places):
                taken.update(dict.fromkeys(places, one.name))
        spans, _ = placed(*claims)
        found = [name for name, *_, length in ((span if len(span) == 4 else ("", span[1])) for span in spans) for _ in range(length)]
        assert found == [taken.get(place, "") for place in range(400)], f"seed {seed}"


def test_looks_like() -> None:
    looks: Callable[..., bool] = torch_zip.looks_like
    assert looks(b"PK\x03\x04" + bytes(100), 104, "any.name")
    assert not looks(b"PK\x03\x04" + bytes(22) + b"\x05\0\0\0" + b"w.npy", 100, "any.npz")
    assert looks(b"", 0, "model.bin")
    assert not looks(b"", 0, "model.txt")
    assert not torch_legacy.looks_like(b"", 0, "model.pth")
    assert torch_legacy.looks_like(pickle.dumps(torch_legacy.MAGIC_NUMBER, 0), 0, "")
