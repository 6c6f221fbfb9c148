"""The hints let every file pass that its reader would take: loading a reader late must never hide a format."""

from __future__ import annotations

import random
from importlib import import_module
from types import ModuleType

import pytest

from bitward_formats.readers import HEAD_BYTES, opaque
from bitward_formats.readers.hints import COMPANIONS, READERS, Hint

SEED = 11
TRIALS = 3_000
NAMES = ("", "x", "model.bin", "weights", "a.npy", "b.npz", "c.h5", "c.hdf5", "d.onnx", "e.pt", "f.jit", "g.distcp", "i.TFLITE")
PIECES = (
    b"GGUF", b"\x93NUMPY", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"TFL3",
    b"\x08", b"\x08\x07\x12", b"\x80\x02", b"L", b"ustar", b"{", b"{\"",
    (0x1950A86A20F9469CFC6C).to_bytes(10, "little"), str(0x1950A86A20F9469CFC6C).encode(), b"a.npy", b"\x00", b"\x00" * 8,
)  # fmt: skip
PLACES = (0, 1, 2, 4, 8, 26, 30, 257, 512, 1024, 2048)


def module_of(hint: Hint) -> ModuleType:
    return import_module(f"bitward_formats.readers.{hint.module}")


def heads(seeded: random.Random) -> tuple[bytes, str]:
    head = bytearray(seeded.choice((0, 5, 300, HEAD_BYTES)))
    for _ in range(seeded.randrange(5)):
        place, piece = seeded.choice(PLACES), seeded.choice(PIECES)
        if place + len(piece) <= len(head):
            head[place : place + len(piece)] = piece
    return bytes(head), seeded.choice(NAMES)


@pytest.mark.parametrize("hint", READERS, ids=lambda hint: hint.module)
def test_what_a_reader_takes_its_hint_lets_pass(hint: Hint) -> None:
    print(f"seed {SEED}")
    seeded, taken = random.Random(SEED), 0
    reader = module_of(hint)
    for _ in range(TRIALS):
        head, name = heads(seeded)
        if reader.looks_like(head, 1 << 20, name):
            taken += 1
            assert hint.is_possible(head, name), (head[:64], name)
    assert taken, "no head looked like the format: the test has lost its sense"


def test_readers_keep_the_contract_of_the_registry() -> None:
    readers = [module_of(hint) for hint in READERS]
    for hint, reader in zip(READERS, readers, strict=True):
        assert set(reader.SUFFIXES) <= set(hint.suffixes)
    for reader in (*readers, opaque):
        assert reader.NAME.isascii()
        assert 0 < len(reader.NAME) <= 255
        assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in reader.SUFFIXES)
    names = [reader.NAME for reader in (*readers, opaque, *map(module_of, COMPANIONS))]
    assert len(set(names)) == len(names)


def test_only_readers_that_are_possible_are_loaded() -> None:
    import subprocess
    import sys

    question = (
        "import sys; from bitward_formats.readers import layout_of; data = b'hello';"
        "layout_of(lambda at, size: data[at : at + size], 5, 'notes.txt');"
        "print(sorted(name for name in sys.modules if name.startswith('bitward_formats.readers.')))"
    )
    done = subprocess.run([sys.executable, "-c", question], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == str([f"bitward_formats.readers.{name}" for name in ("file_view", "hints", "opaque")])
