"""Sidecars and indices that lie, harmed at random or forged with right checks.

No exception, no hang, no flood of memory, no wrong ``intact``, nothing written that no digest vouches for, and no way out of the unit.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
import signal
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest

import bitward
import checkpoints
from bitward.cli import main
from bitward_agent.findings import FileVerification, Verdict
from bitward_agent.journal import MAGIC
from bitward_agent.repair import RepairRequest, repair_file
from bitward_agent.verify import verify_file
from bitward_formats.blocks import BlockTable
from bitward_formats.digest import leaf_function
from bitward_formats.errors import SidecarError
from bitward_formats.sidecar import read_sidecar
from bitward_formats.unit_index import UNIT_INDEX_NAME
from forging import ABSURD, Forger, LayoutParts, SpanFields, fetcher, forge_index

SEED = 20250612
FORGERIES = 5000
INDEX_FORGERIES = 1000
HANG_LIMIT_SECONDS = 5
MEMORY_FACTOR = 10
MEMORY_FLOOR_BYTES = 8 << 20
"""The scan's buffers and a stripe's arrays, whatever the file's size."""


@contextmanager
def no_hang(told: object) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TimeoutError(f"more than {HANG_LIMIT_SECONDS} s: {told}")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(HANG_LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def forger(small_checkpoint: Path) -> Forger:
    assert bitward.protect(small_checkpoint).exit_code == 0
    return Forger.of(Path(f"{small_checkpoint}.ward").read_bytes())


def damaged(clean: bytes, seeded: random.Random) -> bytes:
    """One of several kinds of damage."""
    out = bytearray(clean)
    match seeded.randrange(4):
        case 0:
            out[seeded.randrange(len(out))] ^= 1 << seeded.randrange(8)
        case 1:
            for _ in range(30):
                out[seeded.randrange(len(out))] ^= 1 << seeded.randrange(8)
        case 2:
            at = seeded.randrange(len(out) - 5000)
            out[at : at + 5000] = seeded.randbytes(5000)
        case 3:
            del out[-seeded.randrange(1, 3000) :]
    return bytes(out)


def check_repair(path: Path, ward: Path, told: object) -> None:
    """Repair, and hold every byte that was written against the sidecar that was there before."""
    before, sidecar_bytes = path.read_bytes(), ward.read_bytes()
    with no_hang(told):
        done = repair_file(str(path), str(ward), RepairRequest())
    after = path.read_bytes()
    assert done.exit_code in (0, 3, 4, 5), told
    if after == before:
        return
    try:
        sidecar = read_sidecar(fetcher(sidecar_bytes), len(sidecar_bytes))
    except SidecarError:
        pytest.fail(f"the file was changed with a sidecar that cannot be read: {told}")
    leaf = leaf_function(sidecar.superblock.leaf_hash)
    for block in BlockTable(sidecar.layout):
        data, was = after[block.offset : block.end], before[block.offset : block.end]
        if data != was.ljust(len(data), b"\0"):  # where blocks behind it came back, a torn one that did not is a hole
            assert len(data) == block.length, told
            assert leaf(np.frombuffer(data, np.uint8), block.index, block.length) == sidecar.leaf(block.number), told
    sizes = sorted((len(before), sidecar.superblock.file_bytes))
    assert sizes[0] <= len(after) <= sizes[1], told


def test_forged_sidecars(small_checkpoint: Path, forger: Forger) -> None:
    path, ward = small_checkpoint, Path(f"{small_checkpoint}.ward")
    clean = path.read_bytes()
    mtime_ns = path.stat().st_mtime_ns
    seeded = random.Random(SEED)
    print(f"seed {SEED}")
    verdicts: dict[tuple[str, str], int] = {}
    for number in range(FORGERIES):
        kind, forged = forger.forge(seeded)
        is_damaged = bool(number % 2)
        ward.write_bytes(forged)
        path.write_bytes(damaged(clean, seeded) if is_damaged else clean)
        os.utime(path, ns=(mtime_ns, mtime_ns))
        told = (SEED, number, kind, is_damaged)
        with no_hang(told):
            found = verify_file(str(path), str(ward), jobs=1)
        assert isinstance(found, FileVerification)
        assert found.exit_code in (0, 1, 3, 4, 5), told
        assert not (is_damaged and found.verdict is Verdict.INTACT), told
        verdicts[kind, str(found.verdict)] = verdicts.get((kind, str(found.verdict)), 0) + 1
        if number % 8 in (0, 3):
            check_repair(path, ward, told)
        if number % 20 == 7:
            with no_hang(told):
                bitward.explain(path)
    print(verdicts)
    # Each way to forge was tried, and some forgeries got past every check.
    assert len({kind for kind, _ in verdicts}) == 10
    for kind in ("payload", "spans", "fields", "leaves", "superblock"):
        assert verdicts.get((kind, "damaged"), 0) + verdicts.get((kind, "intact"), 0) + verdicts.get((kind, "changed"), 0), kind


def test_forged_sidecars_take_no_flood_of_memory(small_checkpoint: Path, forger: Forger) -> None:
    path, ward = small_checkpoint, Path(f"{small_checkpoint}.ward")
    clean = path.read_bytes()
    seeded = random.Random(SEED + 1)
    print(f"seed {SEED + 1}")
    verify_file(str(path), str(ward), jobs=1)
    tracemalloc.start()
    try:
        for number in range(FORGERIES // 25):
            kind, forged = forger.forge(seeded)
            ward.write_bytes(forged)
            data = damaged(clean, seeded) if number % 2 else clean
            path.write_bytes(data)
            tracemalloc.reset_peak()
            held, _ = tracemalloc.get_traced_memory()
            verify_file(str(path), str(ward), jobs=1)
            _, peak = tracemalloc.get_traced_memory()
            assert peak - held < MEMORY_FACTOR * (len(forged) + len(data)) + MEMORY_FLOOR_BYTES, (number, kind, peak - held)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "arguments",
    [("verify", "--json"), ("verify",), ("repair",), ("explain",), ("verify", "--sidecar-only"), ("protect",)],
    ids=" ".join,
)
def test_the_command_line_bears_forged_sidecars(small_checkpoint: Path, forger: Forger, arguments: tuple[str, ...]) -> None:
    path, ward = small_checkpoint, Path(f"{small_checkpoint}.ward")
    clean = path.read_bytes()
    seeded = random.Random(SEED + 2)
    print(f"seed {SEED + 2}")
    for number in range(40):
        kind, forged = forger.forge(seeded)
        ward.write_bytes(forged)
        path.write_bytes(damaged(clean, seeded) if number % 2 else clean)
        out, err = io.StringIO(), io.StringIO()
        with no_hang((number, kind)), redirect_stdout(out), redirect_stderr(err):
            code = main([*arguments, str(path)])
        assert code in (0, 1, 3, 4, 5), (number, kind, code, err.getvalue())
        assert "Traceback" not in err.getvalue()
        assert all(line.isprintable() for line in out.getvalue().splitlines()), (number, kind)


def test_a_layout_of_many_empty_spans(small_checkpoint: Path, forger: Forger) -> None:
    """The most that a layout can make a reader hold for each of its bytes."""
    path, ward = small_checkpoint, Path(f"{small_checkpoint}.ward")
    parts = LayoutParts.of(forger.sidecar)
    last = parts.spans[-1]
    end = parts.file_bytes
    parts.spans += [SpanFields(0, last.kind, end, 0, b"", [], b"") for _ in range(100_000)]
    forged = forger.with_layout(parts.encode(), parts.file_bytes)
    ward.write_bytes(forged)
    tracemalloc.start()
    with no_hang("empty spans"):
        found = verify_file(str(path), str(ward), jobs=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.verdict is Verdict.INTACT
    print(f"peak {peak} for {len(forged)}")
    assert peak < MEMORY_FACTOR * len(forged) + MEMORY_FLOOR_BYTES


# -------------------------------------------------------------------------------------------------------------------- unit indices


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """A protected directory, and beside it a folder with secrets that a forged index or a link may point to."""
    folder, outside = tmp_path / "model", tmp_path / "outside"
    (folder / "sub").mkdir(parents=True)
    outside.mkdir()
    checkpoints.write_safetensors(folder / "model.safetensors", {"w": ("BF16", (50, 50), bytes(range(250)) * 20)})
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "tokenizer.json").write_text('{"a": 1}')
    assert bitward.protect(folder).exit_code == 0
    (outside / "tokenizer.json").write_text('{"a": 2}')
    (outside / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1] + b"!")
    for name in ("tokenizer.json", "model.safetensors"):  # as a bait: a sidecar that would repair it
        source = folder / "sub" / name if name == "tokenizer.json" else folder / name
        (outside / f"{name}.ward").write_bytes(Path(f"{source}.ward").read_bytes())
    return folder


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def entry(path: bytes, file_bytes: int = 2, root: bytes = bytes(32)) -> bytes:
    return struct.pack("<H", len(path) % 65536) + path + struct.pack("<Q32s", file_bytes % (1 << 64), root)


HOSTILE_PATHS = (
    b"../outside/model.safetensors", b"..", b".", b"/etc/passwd", b"sub/../../outside/tokenizer.json", b"sub//x", b"a\0b", b"", b"x" * 4096,
    b"sub", b"sub/", b"\xff\xfe", b"\x1b[2J", b"bitward-unit.ward", b"model.safetensors.ward", b"config.json/x", b"x/" * 2000 + b"x",
)  # fmt: skip


def forge_unit_index(good: bytes, seeded: random.Random) -> bytes:
    if seeded.random() < 0.3:
        out = bytearray(good)
        for _ in range(seeded.choice((1, 5, 500))):
            out[seeded.randrange(len(out))] = seeded.randrange(256)
        return bytes(out[: seeded.choice((len(out), len(out), seeded.randrange(len(out))))])
    names = [b"config.json", b"model.safetensors", b"sub/tokenizer.json", *seeded.sample(HOSTILE_PATHS, seeded.choice((0, 1, 3)))]
    if seeded.random() < 0.8:
        names = sorted(set(names))
    sizes = [seeded.choice((2, *ABSURD)) for _ in names]
    stream = b"".join(entry(name, size) for name, size in zip(names, sizes, strict=True))
    if seeded.random() < 0.2:
        stream = stream[: seeded.randrange(len(stream))]
    count = len(names) if seeded.random() < 0.7 else seeded.choice(ABSURD)
    return forge_index(good, stream, count, sum(sizes) if seeded.random() < 0.7 else seeded.choice(ABSURD))


def test_forged_unit_indices(unit: Path, tmp_path: Path) -> None:
    index = unit / UNIT_INDEX_NAME
    good = index.read_bytes()
    seeded = random.Random(SEED)
    print(f"seed {SEED}")
    outside, inside = snapshot(tmp_path / "outside"), snapshot(unit)
    for number in range(INDEX_FORGERIES):
        index.write_bytes(forge_unit_index(good, seeded))
        told = (SEED, number)
        with no_hang(told):
            report = bitward.verify(unit)
        assert report.exit_code in (0, 3, 4), told
        assert all(Path(file.path).is_relative_to(unit) and ".." not in Path(file.path).parts for file in report.files), told
        if number % 5 == 0:
            with no_hang(told):
                bitward.repair(unit, sources=[tmp_path / "outside"] if number % 2 else [])
            for path in unit.rglob("*-log"):
                path.unlink()
            assert snapshot(tmp_path / "outside") == outside, told
            assert snapshot(unit) | {UNIT_INDEX_NAME: None} == inside | {UNIT_INDEX_NAME: None}, told


LINK_EXIT_CODES = {  # of verify, repair, explain, protect
    "folder": (4, 4, 3, 4),
    "file": (4, 4, 0, 4),
    "sidecar": (3, 3, 3, 3),
    "journal": (1, 3, 0, 4),
    "log": (1, 0, 0, 4),
    "index": (3, 3, 0, 0),
    "temporary": (1, 3, 0, 4),
    "unit": (0, 0, 0, 0),
}


@pytest.mark.parametrize("command", ["verify", "repair", "explain", "protect"])
@pytest.mark.parametrize("kind", LINK_EXIT_CODES)
def test_links_that_were_put_in_later_are_not_followed(unit: Path, tmp_path: Path, kind: str, command: str) -> None:
    outside = tmp_path / "outside"
    weights = unit / "model.safetensors"
    ward = Path(f"{weights}.ward")
    match kind:
        case "folder":
            (unit / "sub").rename(tmp_path / "was")
            (unit / "sub").symlink_to(outside)
        case "file":
            weights.unlink()
            weights.symlink_to(outside / "model.safetensors")
        case "sidecar":
            ward.unlink()
            ward.symlink_to(outside / "model.safetensors.ward")
        case "journal":
            Path(f"{ward}-journal").symlink_to(outside / "tokenizer.json")
        case "log":
            Path(f"{ward}-log").symlink_to(outside / "tokenizer.json")
        case "index":
            (unit / UNIT_INDEX_NAME).unlink()
            (unit / UNIT_INDEX_NAME).symlink_to(outside / "tokenizer.json")
        case "temporary":
            (unit / ".model.safetensors.ward.new").symlink_to(outside / "tokenizer.json")
            (unit / ".model.safetensors.ward-journal.new").symlink_to(outside / "tokenizer.json")
        case "unit":  # named by the user through a link: that one is followed
            unit.rename(tmp_path / "real")
            unit.symlink_to(tmp_path / "real")
    if kind in ("log", "temporary", "journal", "sidecar"):
        data = bytearray(weights.read_bytes())
        data[-100] ^= 4
        state = weights.stat()
        weights.write_bytes(data)
        os.utime(weights, ns=(state.st_mtime_ns, state.st_mtime_ns))
    before = snapshot(outside)
    names = set(os.listdir(outside))
    report = getattr(bitward, command)(unit)
    assert snapshot(outside) == before
    assert set(os.listdir(outside)) == names
    assert report.exit_code == LINK_EXIT_CODES[kind][("verify", "repair", "explain", "protect").index(command)], report
    for file in report.files:
        assert "outside" not in file.path


def test_a_missing_member_is_not_made_outside(unit: Path, tmp_path: Path) -> None:
    """The index knows ``sub/tokenizer.json``; ``sub`` now leads elsewhere, and a good copy is at hand."""
    copy = tmp_path / "copy"
    shutil.copytree(unit, copy)
    shutil.rmtree(unit / "sub")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(copy / "sub" / "tokenizer.json.ward", elsewhere)
    (unit / "sub").symlink_to(elsewhere)
    report = bitward.repair(unit, sources=[copy])
    assert report.exit_code == 4
    assert os.listdir(elsewhere) == ["tokenizer.json.ward"]
    (unit / "sub").unlink()  # the twin: without the link the folder and the file come back
    (unit / "sub").mkdir()
    shutil.copy(copy / "sub" / "tokenizer.json.ward", unit / "sub")
    assert bitward.repair(unit, sources=[copy]).exit_code == 0
    assert (unit / "sub" / "tokenizer.json").read_bytes() == (copy / "sub" / "tokenizer.json").read_bytes()


# ------------------------------------------------------------------------------------------------------------------------ journals


def test_forged_journals_write_nothing_over_good_blocks(small_checkpoint: Path) -> None:
    """A journal with a right check, about this very file: good blocks and the size stay, and nothing raises."""
    path, ward = small_checkpoint, Path(f"{small_checkpoint}.ward")
    assert bitward.protect(path).exit_code == 0
    clean = path.read_bytes()
    journal = Path(f"{ward}-journal")
    seeded = random.Random(SEED)
    print(f"seed {SEED}")
    offsets = [block.offset for block in BlockTable(Forger.of(ward.read_bytes()).sidecar.layout)]
    for number in range(400):
        size = seeded.choice((len(clean), 0, 100, len(clean) - 1, len(clean) + 5, *ABSURD))
        entries = [
            (seeded.choice((*offsets, *ABSURD, seeded.randrange(len(clean)))), seeded.randbytes(seeded.choice((0, 1, 100, 65536))))
            for _ in range(seeded.choice((0, 1, 5)))
        ]
        count = len(entries) if seeded.random() < 0.8 else seeded.choice(ABSURD) % (1 << 32)
        state = path.stat()
        mtime_ns = seeded.choice((0, -5, state.st_mtime_ns, 2**63 - 1))
        head = struct.pack("<8sQqQQQI", MAGIC, size, mtime_ns, state.st_dev, state.st_ino, 0, count)
        body = head + b"".join(struct.pack("<QI", offset, len(data)) + data for offset, data in entries)
        if seeded.random() < 0.2:
            body = body[: seeded.randrange(len(body))]
        journal.write_bytes(body + hashlib.blake2b(body, digest_size=32).digest())
        with no_hang(number):
            done = repair_file(str(path), str(ward), RepairRequest())
        assert path.read_bytes() == clean, number
        assert done.exit_code in (0, 3), number
        assert (done.exit_code == 3) == journal.exists(), number
        if journal.exists():
            assert "journal" in done.message
            journal.unlink()
