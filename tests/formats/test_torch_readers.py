"""The PyTorch readers, against torch on real and made files, against files that lie, and on mutations."""

from __future__ import annotations

import json
import pickle
import random
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

import bitward
from bitward_agent.io import OpenFile
from bitward_agent.neighbours import layout_of_file
from bitward_formats.layout import decode_layout, encode_layout
from bitward_formats.readers import layout_of
from bitward_formats.readers.file_view import FileView, Neighbours
from bitward_formats.records import kind_of
from bitward_formats.spans import Layout, Role
from readers import torch_made
from readers.contract import Case
from readers.torch_files import cases
from readers.zip_made import zip64

torch = pytest.importorskip("torch", reason="the readers are held against torch")

MUTATIONS = 2000


def read(path: Path) -> Layout:
    with OpenFile(str(path.resolve())) as file:
        return layout_of_file(file, file.state().size)


def assert_tiles(layout: Layout) -> None:
    assert sum(span.length for span in layout.spans) == layout.file_bytes
    assert not layout.spans or layout.spans[0].offset == 0
    assert all(left.end == right.offset for left, right in pairwise(layout.spans))
    names = [span.name for span in layout.spans if span.role is Role.TENSOR]
    assert len(set(names)) == len(names)
    assert all(name in set(names) for _, name in layout.aliases)
    again = decode_layout(encode_layout(layout), layout.file_bytes)
    assert again.spans == layout.spans


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_tensors_are_those_that_torch_loads(case: Case, tmp_path: Path) -> None:
    path = case.make(tmp_path)
    layout = read(path)
    assert layout.format_name == case.reader, layout.note
    assert_tiles(layout)
    expected = case.tensors(path)
    spans = {span.name: span for span in layout.spans if span.role is Role.TENSOR}
    aliases = dict(layout.aliases)
    assert spans.keys() | aliases.keys() == expected.keys()
    with path.open("rb") as file:
        for name, data in expected.items():
            span = spans[aliases.get(name, name)]
            file.seek(span.offset)
            assert file.read(span.length) == data, name
            assert span.kind == kind_of(span.dtype)


def flip_one(path: Path, seed: int) -> tuple[str, int]:
    """Flip a random bit of a random tensor's element; the tensor and the place of the byte."""
    seeded = random.Random(seed)
    span = seeded.choice([span for span in read(path).spans if span.role is Role.TENSOR and span.length])
    place = span.offset + seeded.randrange(span.length)
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        # Of a bool only the lowest bit: torch tells no other value than false and true.
        file.write(bytes([byte ^ (1 if span.dtype == "BOOL" else 1 << seeded.randrange(8))]))
    return span.name, place


SMALL = [case for case in cases() if case.value and "full" not in case.name and "CRAFT" not in case.name and "text" not in case.name]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_a_flip_is_told_as_torch_sees_it(case: Case, tmp_path: Path) -> None:
    path = case.make(tmp_path)
    pristine = path.read_bytes()
    assert bitward.protect(path).exit_code == 0
    for seed in range(4):
        print(f"seed {seed}")
        name, place = flip_one(path, seed)
        (flip,) = [flip for damage in bitward.verify(path).files[0].damage for flip in damage.flips]
        assert (flip.tensor, flip.offset) == (name, place)
        assert case.value
        found = case.value(path, name, flip.index)
        assert flip.found == found or str(flip.found) == str(found), (flip, found)
        path.write_bytes(pristine)
        assert flip.correct == case.value(path, name, flip.index) or str(flip.correct) == str(case.value(path, name, flip.index))


def fetcher(data: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, length: data[offset : offset + length]


class Beside:
    """One file beside another, in memory."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name, self.data = name, data

    def names(self) -> list[str]:
        return [self.name]

    def open(self, name: str) -> FileView | None:
        return FileView(name, len(self.data), fetcher(self.data), self) if name == self.name else None


def laid_out(data: bytes, name: str, beside: Neighbours | None = None) -> Layout:
    """The layout of a file in memory, whose every fetch must stay within it."""

    def fetch(offset: int, length: int) -> bytes:
        assert offset >= 0, "before the file"
        assert 0 <= length <= len(data) + 4096, "longer than the file"
        return data[offset : offset + length]

    layout = layout_of(fetch, len(data), name, beside)
    assert_tiles(layout)
    return layout


def mutants(data: bytes, parts: list[tuple[int, int]], seed: int, count: int) -> list[bytes]:
    """Copies of ``data`` with a few bytes of its ``parts`` changed, cut, or replaced by telling numbers."""
    seeded = random.Random(seed)
    print(f"seed {seed}")
    made = []
    for _ in range(count):
        text = bytearray(data)
        for _ in range(seeded.choice([1, 1, 2, 5])):
            start, end = seeded.choice(parts)
            place = min(seeded.randrange(start, end), len(text) - 9)
            match seeded.randrange(5):
                case 0:
                    text[place] ^= 1 << seeded.randrange(8)
                case 1:
                    text[place] = seeded.randrange(256)
                case 2:
                    text[place : place + 4] = struct.pack("<L", seeded.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, len(data)]))
                case 3:
                    text[place] = seeded.choice(b"()]}.0123Qqhrsu\x85\x86\x93\x94\x95\x8c\x8d\x80\x81\x8a\x8b")
                case _:
                    del text[place : place + seeded.randrange(1, 9)]
        made.append(bytes(text))
    return made


def headers(path: Path) -> list[tuple[int, int]]:
    return [(span.offset, span.end) for span in read(path).spans if span.role is not Role.TENSOR and span.length > 1]


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (torch_made.write_shared, MUTATIONS),
        (torch_made.write_legacy_shared, MUTATIONS),
        (torch_made.write_sparse, MUTATIONS // 4),
        (torch_made.write_foreign, MUTATIONS // 4),
        (torch_made.write_script, MUTATIONS // 4),
        (torch_made.write_deflated, MUTATIONS // 4),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_mutations_give_a_layout_that_tiles(make: Callable[[Path], Path], count: int, tmp_path: Path) -> None:
    path = make(tmp_path)
    data = path.read_bytes()
    readers = [laid_out(mutant, path.name).format_name for mutant in mutants(data, headers(path), 2026, count)]
    assert "opaque" in readers
    assert len(set(readers)) > 1, "some mutants are still what they were"


@pytest.mark.parametrize("mutates_metadata", [False, True])
def test_mutations_of_a_distributed_checkpoint(mutates_metadata: bool, tmp_path: Path) -> None:
    path = torch_made.write_sharded_dcp(tmp_path)
    data, metadata = path.read_bytes(), (path.parent / ".metadata").read_bytes()
    mutated = (
        mutants(metadata, [(0, len(metadata))], 7, MUTATIONS // 2) if mutates_metadata else mutants(data, headers(path), 8, MUTATIONS // 2)
    )
    readers = set()
    for mutant in mutated:
        pair = (data, mutant) if mutates_metadata else (mutant, metadata)
        readers.add(laid_out(pair[0], path.name, Beside(".metadata", pair[1])).format_name)
    assert len(readers) > 1


def test_a_distributed_file_without_its_metadata_is_opaque(tmp_path: Path) -> None:
    path = torch_made.write_sharded_dcp(tmp_path)
    assert "no .metadata beside it" in laid_out(path.read_bytes(), path.name).note
    layout = laid_out(path.read_bytes(), "other.distcp", Beside(".metadata", (path.parent / ".metadata").read_bytes()))
    assert "lies in this file" in layout.note


def test_nothing_that_a_pickle_names_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (mark,)

    for is_zip in (True, False):
        path = tmp_path / f"bomb{is_zip}.pt"
        torch.save({"w": torch.ones(3), "b": Bomb()}, path, _use_new_zipfile_serialization=is_zip)
        assert [span.name for span in read(path).spans if span.role is Role.TENSOR] == ["w"]
        assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb()))
    assert mark.exists(), "the bomb is one"


def foreign_names(path: Path) -> set[str]:
    return {span.name for span in read(path).spans if span.role is Role.TENSOR}


@pytest.mark.parametrize("make", [torch_made.write_foreign, torch_made.write_legacy_foreign])
def test_classes_that_cannot_be_imported_do_not_matter(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path)
    with pytest.raises(Exception, match="bitward_foreign"):
        torch.load(path, weights_only=True)
    with pytest.raises(ModuleNotFoundError):
        torch.load(path, weights_only=False)
    assert foreign_names(path) == {"net.steps", "net.body.0.weight", "more.0.ema.body.0.weight", "more.1.0"}


def test_notes_tell_what_is_no_span_of_its_own(tmp_path: Path) -> None:
    note = read(torch_made.write_shared(tmp_path)).note
    assert "2 tensors not dense" in note
    assert "1 tensor within" in note
    packed = read(torch_made.write_deflated(tmp_path))
    assert "1 tensor in deflated" in packed.note
    assert [span.name for span in packed.spans if span.role is Role.TENSOR] == ["plain"]


def test_the_oldest_format_is_recognised(tmp_path: Path) -> None:
    import tarfile

    (tmp_path / "sys_info").write_bytes(b"x")
    with tarfile.open(tmp_path / "old.pth", "w") as tar:
        tar.add(tmp_path / "sys_info", "sys_info")
    layout = read(tmp_path / "old.pth")
    assert layout.format_name == "opaque"
    assert "tar archive" in layout.note


def test_zip64(tmp_path: Path) -> None:
    path = torch_made.write_shared(tmp_path)
    before = read(path)
    path.write_bytes(zip64(path.read_bytes()))
    assert set(torch.load(path)) == set(torch_made.shared())
    assert [span for span in read(path).spans if span.role is Role.TENSOR] == [span for span in before.spans if span.role is Role.TENSOR]


def test_a_directory_of_shards_is_a_unit(tmp_path: Path) -> None:
    """The index beside the shards is a file like others: each shard says itself what it holds."""
    folder = tmp_path / "model"
    folder.mkdir()
    shards = {f"pytorch_model-{number:05}-of-00002.bin": {f"layer.{number}.weight": torch.ones(50, 40)} for number in (1, 2)}
    for name, tensors in shards.items():
        torch.save(tensors, folder / name)
    weight_map = {key: name for name, tensors in shards.items() for key in tensors}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert bitward.protect(folder).exit_code == 0
    name, place = flip_one(folder / "pytorch_model-00002-of-00002.bin", 3)
    report = bitward.verify(folder)
    (flip,) = [flip for file in report.files for damage in file.damage for flip in damage.flips]
    assert (name, flip.tensor, flip.offset) == ("layer.2.weight", "layer.2.weight", place)
    assert bitward.repair(folder).exit_code == 0
    assert torch.equal(torch.load(folder / "pytorch_model-00002-of-00002.bin")["layer.2.weight"], torch.ones(50, 40))


def test_listing_reads_little(tmp_path: Path) -> None:
    """A sparse gigabyte: what is read does not grow with it."""
    path = tmp_path / "big.pt"
    torch.save({f"w{index}": torch.zeros(1) for index in range(10)}, path)
    small = read(path)
    torch.save({f"w{index}": torch.zeros(2_000_000) for index in range(10)}, path)
    taken = [0]
    with OpenFile(str(path.resolve())) as file:

        def fetch(offset: int, length: int) -> bytes:
            taken[0] += length
            return file.read(offset, length)

        layout = layout_of(fetch, file.state().size, path.name)
    assert [span.name for span in layout.spans] == [span.name for span in small.spans]
    assert taken[0] < layout.file_bytes / 1000
