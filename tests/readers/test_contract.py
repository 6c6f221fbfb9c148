"""The contract that every reader keeps, on real and made files of every format (the modules ``*_files.py`` beside this one).

Spans tile the file; each tensor's bytes are what the format's own library has; a flip at a random element is reported with the right
tensor, index, bit and value by that library's reckoning; and 2,000 mutations of each format's made files end in a layout that tiles,
without a crash, a hang or runaway allocation. Seeds are printed; ``BITWARD_TEST_SEED`` gives another one.
"""

from __future__ import annotations

import os
import random
import shutil
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest

import bitward
from bitward_agent.io import OpenFile
from bitward_agent.neighbours import FolderNeighbours, layout_of_file
from bitward_formats import records
from bitward_formats.readers import layout_of
from bitward_formats.spans import Layout, Role, Span
from readers.contract import Case, Value

SEED = int(os.environ.get("BITWARD_TEST_SEED", "20240819"))
FLIPS_REAL, FLIPS_MADE = 4, 40
"""Tensors of a file that get a flip, one after the other."""
FLIP_LIMIT_BYTES = 512 << 20
"""Larger files (sparse ones, to reach beyond 2 GB) are laid out and compared, but not protected: that would take the tests' whole time."""
MUTATIONS = 2000
MUTATED_LIMIT_BYTES = 2 << 20
FETCHES_LIMIT = 200_000
FETCHED_LIMIT = 64
"""Times the file's size that a layout may read of it, beside a megabyte."""
ALLOCATED_LIMIT_BYTES = 64 << 20


def all_cases() -> list[Case]:
    modules = sorted(path.stem for path in Path(__file__).parent.glob("*_files.py"))
    return [case for name in modules for case in import_module(f"readers.{name}").cases()]


CASES = all_cases()
MADE = [case for case in CASES if not case.real]
by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@contextmanager
def made(case: Case, folder: Path) -> Iterator[Path]:
    """The case's file, in a folder that is gone afterwards: real files are large."""
    try:
        yield case.make(folder).resolve()
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("bitward"):
            raise
        pytest.skip(f"{case.name} needs the package {error.name}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def layout_at(path: Path) -> Layout:
    with OpenFile(str(path)) as file:
        return layout_of_file(file, file.state().size)


def assert_tiles(layout: Layout) -> None:
    position = 0
    for span in layout.spans:
        assert span.offset == position, f"{span.name or span.role.name} begins at {span.offset}, the span before it ends at {position}"
        assert span.length >= 0
        assert span.length % span.kind.record_bytes == 0
        assert span.role is Role.TENSOR or not (span.name or span.dtype or span.dims)
        position = span.end
    assert position == layout.file_bytes


@by_name
def test_spans_tile_and_hold_what_the_library_has(case: Case, tmp_path: Path) -> None:
    with made(case, tmp_path) as path:
        layout = layout_at(path)
        assert layout.format_name == case.reader, layout.note
        assert_tiles(layout)
        assert layout.file_bytes == path.stat().st_size
        expected = case.tensors(path)
        with path.open("rb") as file:
            found = {span.name: read(file, span) for span in layout.spans if span.role is Role.TENSOR}
        assert len(found) == sum(span.role is Role.TENSOR for span in layout.spans), "two tensors have one name"
        for alias, name in layout.aliases:
            assert alias not in found
            found[alias] = found[name]
        assert sorted(found) == sorted(expected)
        for name, data in expected.items():
            assert found[name] == data, name
        for span in layout.spans:
            if span.role is Role.TENSOR:
                assert records.form_of(span.dtype).kind == span.kind


def read(file: object, span: Span) -> bytes:
    file.seek(span.offset)  # type: ignore[attr-defined]
    data: bytes = file.read(span.length)  # type: ignore[attr-defined]
    return data


@by_name
def test_a_flip_is_reported_as_the_library_sees_it(case: Case, tmp_path: Path) -> None:
    rng = random.Random(f"{SEED} {case.name}")
    print(f"seed {SEED}")
    with made(case, tmp_path) as path:
        if path.stat().st_size > FLIP_LIMIT_BYTES:
            pytest.skip(f"protecting {path.stat().st_size:,} bytes takes too long here; its spans are checked")
        spans = [span for span in layout_at(path).spans if span.role is Role.TENSOR and span.length]
        assert bitward.protect(path).exit_code == 0
        for span in rng.sample(spans, min(FLIPS_REAL if case.real else FLIPS_MADE, len(spans))):
            offset, bit = span.offset + rng.randrange(span.length), rng.randrange(8)
            with flipped(path, offset, bit) as before:
                check_flip(case, path, span, (offset, bit), before)
        assert bitward.verify(path).exit_code == 0


@contextmanager
def flipped(path: Path, offset: int, bit: int) -> Iterator[Path]:
    """Flips one bit, with the file's times left alone, and puts it back. Gives a copy of the file as it was, for the library."""
    before = path.parent / "before" / path.name
    if not before.exists():
        before.parent.mkdir()
        for one in path.parent.iterdir():
            if one.is_file() and not one.name.endswith(".ward"):
                shutil.copy2(one, before.parent / one.name)
    turn(path, offset, bit)
    yield before
    turn(path, offset, bit)


def turn(path: Path, offset: int, bit: int) -> None:
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def check_flip(case: Case, path: Path, span: Span, place: tuple[int, int], before: Path) -> None:
    offset, bit = place
    report = bitward.verify(path)
    assert report.exit_code == 1
    ((flip,),) = [damage.flips for file in report.files for damage in file.damage]
    assert (flip.tensor, flip.offset) == (span.name, offset)
    assert flip.bit == bit_of_element(span, offset - span.offset, bit, flip.bit)
    assert len(flip.index) == len(span.dims)
    assert all(0 <= one < dim for one, dim in zip(flip.index, span.dims, strict=True))
    in_block = records.parse_label(span.dtype).element in records.QUANTISED_DTYPES
    # A code may mean the same as before under a scale of zero, and NaN with another bit is NaN.
    assert str(flip.found) != str(flip.correct) or in_block or flip.found == "nan"  # as text, where 0 and -0 differ
    if case.value is None:
        return
    try:
        values = [case.value(one, span.name, flip.index) for one in (path, before)]
    except NotImplementedError:
        return  # the library has no arithmetic for this type
    if in_block and (flip.field == "scale" or records.form_of(span.dtype).worth is None):
        return  # scales, and codes that mean several elements, are told as themselves; tests of records check them
    assert [same(flip.found), same(flip.correct)] == [same(one) for one in values], (case.name, flip)


def same(value: Value) -> Value:
    """-0.0 and 0.0 are one here, as they are to libraries that print."""
    return value + 0 if isinstance(value, float) else value


def bit_of_element(span: Span, at: int, bit: int, told: int) -> int:
    """Which bit of the element a bit of the file is, worked out from the label alone; ``told`` for blocks, which tests of records check."""
    label = records.parse_label(span.dtype)
    if label.element not in records.PLAIN_DTYPES:
        return told
    width = records.element_bits(span.dtype)
    if not label.big_endian or width <= 8:
        return (8 * at + bit) % width
    part = width // 16 if label.element.startswith("C") else width // 8
    within = at % (width // 8)
    return 8 * (within // part * part + part - 1 - within % part) + bit


@pytest.mark.parametrize("case", MADE, ids=lambda case: case.name)
def test_mutations_never_crash(case: Case, tmp_path: Path) -> None:
    rng = random.Random(f"{SEED} {case.name}")
    print(f"seed {SEED}")
    with made(case, tmp_path) as path:
        if path.stat().st_size > MUTATED_LIMIT_BYTES:
            pytest.skip(f"{path.stat().st_size:,} bytes are too many to mutate thousands of times; smaller files of the format are")
        data = path.read_bytes()
        metadata = [at for span in layout_at(path).spans if span.role is not Role.TENSOR for at in range(span.offset, span.end)]
        share = -(-MUTATIONS // sum(other.reader == case.reader for other in MADE))
        outcomes: Counter[str] = Counter()
        with FolderNeighbours(str(path)) as neighbours:
            for number in range(share):
                mutated = mutate(data, metadata, rng)
                try:
                    outcomes[lay_out(mutated, str(path), neighbours)] += 1
                except BaseException:
                    print(f"mutation {number} of {case.name}")
                    raise
        print(dict(outcomes))
        assert set(outcomes) - {"opaque"}, "no mutation left anything to read"


def lay_out(data: bytes, name: str, neighbours: FolderNeighbours) -> str:
    """The format of a layout that tiles; what is read and allocated is bounded."""
    fetched = [0, 0]

    def fetch(offset: int, length: int) -> bytes:
        assert offset >= 0
        assert length >= 0
        part = data[offset : offset + length]
        fetched[0] += 1
        fetched[1] += len(part)
        assert fetched[0] <= FETCHES_LIMIT, "the layout reads and reads"
        assert fetched[1] <= FETCHED_LIMIT * len(data) + (1 << 20), "the layout reads the file again and again"
        return part

    tracemalloc.start()
    try:
        layout = layout_of(fetch, len(data), name, neighbours)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= ALLOCATED_LIMIT_BYTES
    assert layout.file_bytes == len(data)
    assert_tiles(layout)
    if layout.format_name == "opaque" and len(data):
        assert len(layout.spans) == 1
    return layout.format_name


EXTREMES = (0, 1, 7, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


def mutate(data: bytes, metadata: list[int], rng: random.Random) -> bytes:
    """One to three changes of a file, mostly where its structure stands."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = min(rng.choice(metadata) if metadata else rng.randrange(len(data) + 1), len(out))
        match rng.randrange(8):
            case 0 | 1:
                if at < len(out):
                    out[at] ^= 1 << rng.randrange(8)
            case 2:
                out[at : at + 1] = bytes([rng.randrange(256)])
            case 3:
                width = rng.choice((1, 2, 4, 8))
                number = rng.choice(EXTREMES) & ((1 << 8 * width) - 1)
                out[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))
            case 4:
                del out[at : at + rng.choice((1, 2, 4, 8, 100))]
            case 5:
                out[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8, 100)))
            case 6:
                other = rng.choice(metadata) if metadata else 0
                length = rng.choice((1, 4, 8, 32, 200))
                out[at : at + length] = out[other : other + length]
            case _:
                del out[at : len(out) if rng.random() < 0.3 else at + 1]
    return bytes(out)
