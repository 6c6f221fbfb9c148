"""Any single bit. Of the file it is found at its very place and put back; of the sidecar it is told, changes no verdict, and heals.

What is covered. Of the file, a checkpoint of about 2 KB with ten element types: every bit through the real verify, every bit through the
decoder, every eleventh through the real repair. Of its sidecar of some twenty-odd pages: every bit of every page against the page check,
through which all readers go; through the real verify all bits of the superblocks' fields and of all trailers but padding's, every 97th
of the superblocks' reserved bytes, every 13th of layout, leaves and parity and a few of padding; of these every 31st through the real
repair, and every 61st with a flip in the file at the same time.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

import bitward
import checkpoints
from bitward_agent.findings import SidecarState, Verdict
from bitward_agent.io import OpenFile
from bitward_agent.locate import Locator
from bitward_agent.repair import RepairRequest, repair_file
from bitward_agent.verify import verify_file
from bitward_formats.pages import PAGE_BYTES, PAYLOAD_BYTES, Section, is_sound
from bitward_formats.sidecar import Sidecar, read_sidecar

SEED = 20250613


def tiny_tensors() -> dict[str, checkpoints.Tensor]:
    """The tensors of :func:`checkpoints.many_dtypes`, cut to a few elements each."""
    widths = {"F64": 8, "I64": 8, "F32": 4, "BF16": 2, "F16": 2}
    tensors = {}
    for index, (name, (dtype, _, data)) in enumerate(checkpoints.many_dtypes().items()):
        count = min(3 + 12 * index, len(data) // widths.get(dtype, 1))
        tensors[name] = (dtype, (count,), data[: count * widths.get(dtype, 1)])
    return tensors


@pytest.fixture(scope="module")
def protected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    path = checkpoints.write_safetensors(tmp_path_factory.mktemp("tiny") / "tiny.safetensors", tiny_tensors())
    assert bitward.protect(path).exit_code == 0
    assert 1500 < path.stat().st_size < 3000
    return path, Path(f"{path}.ward")


@pytest.fixture
def tiny(protected: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A copy to hurt."""
    for path in protected:
        shutil.copy2(path, tmp_path)
    return tmp_path / protected[0].name, tmp_path / protected[1].name


class Scalpel:
    """Flips single bits of a file and leaves its time as it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clean = path.read_bytes()
        self._times = path.stat().st_atime_ns, path.stat().st_mtime_ns
        self._fd = os.open(path, os.O_RDWR)

    def turn(self, bit: int) -> None:
        byte = os.pread(self._fd, 1, bit // 8)[0] ^ 1 << bit % 8
        os.pwrite(self._fd, bytes([byte]), bit // 8)
        os.utime(self.path, ns=self._times)

    def close(self) -> None:
        os.close(self._fd)


def element_of(clean: bytes, at: int, bit: int) -> tuple[str | None, int, int]:
    """(tensor, element index, bit of the element) of a bit of a safetensors file, worked out from its header alone."""
    header_end = 8 + int.from_bytes(clean[:8], "little")
    if at < header_end:
        return None, at, bit
    for name, fields in json.loads(clean[8:header_end]).items():
        low, high = (header_end + end for end in fields["data_offsets"])
        if low <= at < high:
            width = (high - low) // fields["shape"][0]
            return name, (at - low) // width, 8 * ((at - low) % width) + bit
    raise AssertionError(at)


def test_every_bit_of_a_file_is_found_where_it_is(tiny: tuple[Path, Path]) -> None:
    path, ward = tiny
    scalpel = Scalpel(path)
    for place in range(8 * len(scalpel.clean)):
        scalpel.turn(place)
        found = verify_file(str(path), str(ward), jobs=1)
        scalpel.turn(place)
        assert found.verdict is Verdict.DAMAGED, place
        assert not found.modified
        (damage,) = found.damage
        assert damage.repairable
        (flip,) = damage.flips
        tensor, index, bit = element_of(scalpel.clean, place // 8, place % 8)
        assert (flip.offset, flip.tensor, flip.bit) == (place // 8, tensor, bit), place
        assert flip.index == ((index,) if tensor else flip.index), place
    scalpel.close()
    assert verify_file(str(path), str(ward), jobs=1).verdict is Verdict.INTACT


def test_every_bit_of_a_file_is_put_back(tiny: tuple[Path, Path]) -> None:
    """By the decoder in memory, for every bit; by the whole of repair for every eleventh."""
    path, ward = tiny
    scalpel = Scalpel(path)
    with OpenFile(str(path)) as file, OpenFile(str(ward)) as wards:
        sidecar = read_sidecar(wards.read, wards.state().size)
        locator = Locator(file, wards, sidecar)
        for place in range(8 * len(scalpel.clean)):
            scalpel.turn(place)
            block = sidecar.plan.table.at_offset(place // 8)
            ((outcome,),) = locator.outcomes([block.number], ())
            assert outcome.correct is not None, place
            assert outcome.correct.tobytes() == scalpel.clean[block.offset : block.end], place
            if place % 11 == 0:
                done = repair_file(str(path), str(ward), RepairRequest(), jobs=1)
                assert (done.verdict, done.repaired, done.remaining) == (Verdict.INTACT, 1, 0), place
                assert path.read_bytes() == scalpel.clean, place
            else:
                scalpel.turn(place)
    scalpel.close()


def pages_of(sidecar: Sidecar) -> list[tuple[int, Section, int]]:
    """(number, section, copy) of every page."""
    pages = [(0, Section.SUPERBLOCK, 0), (sidecar.plan.total_pages - 1, Section.SUPERBLOCK, 1)]
    for section, copy, first, count in sidecar.plan.sections():
        pages += [(number, section, copy) for number in range(first, first + count)]
    return sorted(pages)


def load(ward: Path) -> Sidecar:
    data = ward.read_bytes()
    return read_sidecar(lambda offset, length: data[offset : offset + length], len(data))


def test_every_bit_of_a_sidecar_is_seen_by_its_page_check(protected: tuple[Path, Path]) -> None:
    sidecar = load(protected[1])
    data = protected[1].read_bytes()
    for number, section, copy in pages_of(sidecar):
        page = bytearray(data[number * PAGE_BYTES : (number + 1) * PAGE_BYTES])
        salt = 0 if section is Section.SUPERBLOCK else sidecar.superblock.salt
        assert is_sound(page, section, copy, number, salt)
        for place in range(8 * PAGE_BYTES):
            page[place // 8] ^= 1 << place % 8
            assert not is_sound(page, section, copy, number, salt), (number, place)
            page[place // 8] ^= 1 << place % 8


def sidecar_places(sidecar: Sidecar) -> list[int]:
    """Bits of the sidecar that go through the whole of verify: see the module's docstring."""
    places: list[int] = []
    for number, section, _ in pages_of(sidecar):
        start = 8 * number * PAGE_BYTES
        trailer = range(start + 8 * PAYLOAD_BYTES, start + 8 * PAGE_BYTES)
        match section:
            case Section.SUPERBLOCK:
                used = range(start, start + 8 * 192)
                places += [*used, *range(used.stop, trailer.start, 97), *trailer]
            case Section.PADDING:
                places += [*range(start, trailer.start, 9973), *trailer[:: 8 * 2 + 1]]
            case _:
                places += [*range(start, trailer.start, 13), *trailer]
    return places


def test_any_bit_of_a_sidecar_is_told_and_does_not_change_the_verdict(tiny: tuple[Path, Path]) -> None:
    path, ward = tiny
    places = sidecar_places(load(ward))
    scalpel = Scalpel(ward)
    for place in places:
        scalpel.turn(place)
        found = verify_file(str(path), str(ward), jobs=1)
        scalpel.turn(place)
        assert found.verdict is Verdict.INTACT, place
        assert found.sidecar.state is SidecarState.DAMAGED, place
        assert found.sidecar.lost_pages == 1, place
    scalpel.close()
    print(f"{len(places)} bits")
    assert verify_file(str(path), str(ward), jobs=1).sidecar.state is SidecarState.INTACT


@pytest.mark.parametrize("file_too", [False, True], ids=["file intact", "file hurt as well"])
def test_any_bit_of_a_sidecar_is_put_back(tiny: tuple[Path, Path], file_too: bool) -> None:
    path, ward = tiny
    scalpel, other = Scalpel(ward), Scalpel(path)
    clean_ward, clean = scalpel.clean, other.clean
    scalpel.close()
    seeded = random.Random(SEED)
    print(f"seed {SEED}")
    for place in sidecar_places(load(ward))[:: 61 if file_too else 31]:
        scalpel = Scalpel(ward)
        scalpel.turn(place)
        scalpel.close()
        if file_too:
            other.turn(seeded.randrange(8 * len(clean)))
        done = repair_file(str(path), str(ward), RepairRequest(), jobs=1)
        assert done.verdict is Verdict.INTACT, place
        assert done.repaired == file_too
        assert done.sidecar.state is SidecarState.HEALED, place
        assert ward.read_bytes() == clean_ward, place
        assert path.read_bytes() == clean, place
    other.close()


def test_both_copies_of_a_page_lose_a_bit(tiny: tuple[Path, Path]) -> None:
    """Superblock, layout and leaves, a flip in each copy: read by trying, and healed."""
    path, ward = tiny
    sidecar = load(ward)
    clean = ward.read_bytes()
    doubled = [(0, sidecar.plan.total_pages - 1), (1, sidecar.plan.layout_b_page), (sidecar.plan.leaves_a_page, sidecar.plan.leaves_b_page)]
    seeded = random.Random(SEED)
    print(f"seed {SEED}")
    for trial in range(30):
        pages = doubled[trial % 3]
        hurt = bytearray(clean)
        for page in pages:
            place = page * 8 * PAGE_BYTES + seeded.randrange(8 * PAGE_BYTES)
            hurt[place // 8] ^= 1 << place % 8
        ward.write_bytes(hurt)
        found = verify_file(str(path), str(ward), jobs=1)
        assert (found.verdict, found.sidecar.state, found.sidecar.lost_pages) == (Verdict.INTACT, SidecarState.DAMAGED, 2), trial
        assert repair_file(str(path), str(ward), RepairRequest(), jobs=1).sidecar.state is SidecarState.HEALED
        assert ward.read_bytes() == clean, trial


@pytest.mark.parametrize("pages", [(0,), (-1,), range(3), range(3, 12), range(-3, 0)], ids=str)
def test_pages_of_an_older_sidecar_are_lost_pages(tiny: tuple[Path, Path], pages: range | tuple[int]) -> None:
    """A disk that loses a write leaves old pages with right checks, the superblock's among them."""
    path, ward = tiny
    old = ward.read_bytes()
    assert bitward.protect(path, force=True).exit_code == 0
    new = ward.read_bytes()
    count = len(new) // PAGE_BYTES
    hurt = bytearray(new)
    for page in pages:
        at = page % count * PAGE_BYTES
        hurt[at : at + PAGE_BYTES] = old[at : at + PAGE_BYTES]
    ward.write_bytes(hurt)
    found = verify_file(str(path), str(ward), jobs=1)
    assert (found.verdict, found.sidecar.state, found.sidecar.lost_pages) == (Verdict.INTACT, SidecarState.DAMAGED, len(pages))
    assert repair_file(str(path), str(ward), RepairRequest(), jobs=1).sidecar.state is SidecarState.HEALED
    assert ward.read_bytes() == new


# ------------------------------------------------------------------------------------------------------------------- real weights


def test_single_bits_of_real_weights_and_of_their_sidecar(minilm: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    shutil.copy2(minilm, path)
    assert bitward.protect(path).exit_code == 0
    ward = Path(f"{path}.ward")
    clean_ward = ward.read_bytes()
    scalpel = Scalpel(path)
    header_end = 8 + int.from_bytes(scalpel.clean[:8], "little")
    seeded = random.Random(SEED)
    print(f"seed {SEED}")
    for trial in range(40):
        place = seeded.randrange(8 * header_end) if trial == 0 else seeded.randrange(8 * len(scalpel.clean))
        scalpel.turn(place)
        found = verify_file(str(path), str(ward))
        assert [flip.offset for damage in found.damage for flip in damage.flips] == [place // 8], place
        done = repair_file(str(path), str(ward), RepairRequest())
        assert (done.verdict, done.repaired) == (Verdict.INTACT, 1), place
        with path.open("rb") as file:
            assert np.array_equal(np.frombuffer(file.read(), np.uint8), np.frombuffer(scalpel.clean, np.uint8)), place
    scalpel.close()
    for _ in range(20):
        place = seeded.randrange(8 * len(clean_ward))
        scalpel = Scalpel(ward)
        scalpel.turn(place)
        scalpel.close()
        found = verify_file(str(path), str(ward))
        assert (found.verdict, found.sidecar.state, found.sidecar.lost_pages) == (Verdict.INTACT, SidecarState.DAMAGED, 1), place
        assert repair_file(str(path), str(ward), RepairRequest()).sidecar.state is SidecarState.HEALED
        assert ward.read_bytes() == clean_ward, place
