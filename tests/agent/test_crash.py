"""Whatever is interrupted, wherever: the next repair gives the exact bytes, and a sidecar is the old one or the new one, never half of one.

Deaths are simulated at every single call that changes something, also in the middle of a write, also with everything lost that was not
synced; and real processes are killed with SIGKILL at random moments.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

import bitward
import checkpoints
from bitward_agent.findings import FileRepair, SidecarState, Verdict
from bitward_agent.io import DISK, Disk
from bitward_agent.protect import Protection, preset_groups, protect_file
from bitward_agent.repair import RepairRequest, repair_file
from bitward_agent.sources.local import LocalSource
from bitward_agent.verify import verify_file
from cli.command_line import environment
from faulty_disks import Death, DyingDisk, PowerLossDisk

SEED = 20250611
KILLS = 50
HANG_LIMIT_SECONDS = 60


@dataclass
class Case:
    """A file and its sidecar, as they should be and as they were damaged."""

    path: Path
    clean: bytes
    clean_ward: bytes
    damaged: bytes
    damaged_ward: bytes
    mtime_ns: int = 1_700_000_000_123_456_789

    @property
    def ward(self) -> Path:
        return self.path.with_name(self.path.name + ".ward")

    def damage(self) -> None:
        """Put the damage back, with the recorded time, and remove what repairs left."""
        for leftover in self.path.parent.iterdir():
            if leftover.is_file():
                leftover.unlink()
        self.path.write_bytes(self.damaged)
        self.ward.write_bytes(self.damaged_ward)
        os.utime(self.path, ns=(self.mtime_ns, self.mtime_ns))

    def repair(self, disk: Disk = DISK) -> FileRepair:
        return repair_file(str(self.path), str(self.ward), RepairRequest(), jobs=1, disk=disk)

    def dies(self, disk: DyingDisk) -> None:
        with pytest.raises(Death):
            self.repair(disk)

    def check_whole(self, told: object = "") -> None:
        done = self.repair()
        assert done.verdict is Verdict.INTACT, (told, done)
        assert done.exit_code == 0, (told, done)
        assert self.path.read_bytes() == self.clean, told
        assert self.ward.read_bytes() == self.clean_ward, told
        assert self.path.stat().st_mtime_ns == self.mtime_ns, told
        left = {entry.name for entry in self.path.parent.iterdir()} - {self.path.name, self.ward.name, self.ward.name + "-log"}
        assert not left, (told, left)

    def check_no_byte_is_new(self, told: object) -> None:
        """Every byte is as it was found or as it should be; what lies past the end of a torn file may be a hole."""
        now = self.path.read_bytes()
        for at, (byte, was) in enumerate(zip(now, self.damaged, strict=False)):
            assert byte == was or byte == self.clean[at], (told, at)
        assert min(len(self.clean), len(self.damaged)) <= len(now) <= max(len(self.clean), len(self.damaged)), told


def flipped(data: bytes, count: int, seeded: random.Random) -> bytearray:
    out = bytearray(data)
    for place in seeded.sample(range(8 * len(out)), count):
        out[place // 8] ^= 1 << place % 8
    return out


def damages(clean: bytes, ward: bytes) -> dict[str, tuple[bytes, bytes]]:
    """Variants of damage to a file and its sidecar, all of them repairable."""
    seeded = random.Random(SEED)
    flips = flipped(clean, 12, seeded)
    block = bytearray(flips)
    block[4096:36864] = bytes(32768)
    hurt = flipped(ward, 9, seeded)
    return {
        "flips and a lost block": (bytes(block), ward),
        "flips and a torn tail": (bytes(flips[:-2500]), ward),
        "flips and bytes appended": (bytes(flips) + seeded.randbytes(777), ward),
        "flips here and in the sidecar": (bytes(flips), bytes(hurt)),
        "a torn tail and a lost region of the sidecar": (bytes(flips[:-900]), ward[:8192] + bytes(16384) + ward[24576:]),
    }


VARIANTS = list(damages(bytes(50_000), bytes(100_000)))


def protect(path: Path, disk: Disk = DISK, *, protected_ns: int = 1) -> None:
    protection = Protection(preset_groups("standard"), "standard", 1, protected_ns=protected_ns)
    protect_file(str(path), f"{path}.ward", protection, jobs=1, disk=disk)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    path = checkpoints.write_safetensors(folder / "small.safetensors", checkpoints.many_dtypes())
    os.utime(path, ns=(Case.mtime_ns, Case.mtime_ns))
    protect(path)
    return path


def case_of(path: Path, variant: str) -> Case:
    ward = Path(f"{path}.ward")
    clean, clean_ward = path.read_bytes(), ward.read_bytes()
    return Case(path, clean, clean_ward, *damages(clean, clean_ward)[variant])


def calls_of_a_repair(case: Case) -> list[str]:
    case.damage()
    disk = DyingDisk()
    done = case.repair(disk)
    assert done.verdict is Verdict.INTACT, done
    assert case.path.read_bytes() == case.clean
    return disk.calls


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_repair_that_dies_at_any_call_is_finished_by_the_next(small: Path, variant: str) -> None:
    case = case_of(small, variant)
    calls = calls_of_a_repair(case)
    assert {"open", "write", "sync", "set_mtime", "replace", "unlink"} <= set(calls)
    for number, name in enumerate(calls):
        for torn in (False, True) if name == "write" else (False,):
            case.damage()
            case.dies(DyingDisk(number, torn=torn))
            told = (number, name, torn)
            case.check_no_byte_is_new(told)
            case.check_whole(told)


@pytest.mark.parametrize("variant", VARIANTS)
def test_power_that_fails_at_any_call(small: Path, tmp_path: Path, variant: str) -> None:
    case = case_of(small, variant)
    seeded = random.Random(SEED)
    print(f"seed {SEED}")
    for number, name in enumerate(calls_of_a_repair(case)):
        attic = tmp_path / f"attic-{number}"
        attic.mkdir()
        case.damage()
        disk = PowerLossDisk(number, attic)
        case.dies(disk)
        disk.lose_power(seeded)
        case.check_whole((number, name))


def test_a_repair_that_dies_again_and_again(small: Path) -> None:
    """The undoing dies as well, up to three times; nothing is lost."""
    seeded = random.Random(SEED)
    print(f"seed {SEED}")
    for variant in VARIANTS[:3]:
        case = case_of(small, variant)
        calls = calls_of_a_repair(case)
        for _ in range(20):
            case.damage()
            places = [seeded.randrange(len(calls)) for _ in range(3)]
            for place in places:
                with contextlib.suppress(Death):
                    case.repair(DyingDisk(place, torn=bool(seeded.getrandbits(1))))
            case.check_whole((variant, places))


def test_what_was_repaired_before_the_death_stays_repaired(small: Path, tmp_path: Path) -> None:
    """Blocks that came from another copy are not undone, so that the copy is not needed a second time."""
    case = case_of(small, VARIANTS[0])
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(case.clean)
    case.damaged = bytes(len(case.clean))
    case.damage()
    source = LocalSource(str(copy), str(case.path))
    disk = DyingDisk()
    request = RepairRequest(sources=(source,))
    assert repair_file(str(case.path), str(case.ward), request, disk=disk).verdict is Verdict.INTACT
    case.damage()
    with pytest.raises(Death):  # the call that removes the journal: all is written by then
        repair_file(str(case.path), str(case.ward), request, disk=DyingDisk(disk.calls.index("unlink")))
    source.close()
    assert (case.ward.parent / (case.ward.name + "-journal")).exists()
    case.check_whole()


def test_a_partial_repair_that_dies_does_not_make_the_file_look_rewritten(small: Path) -> None:
    """What could be repaired before the death can be repaired after it, also where something else is beyond repair."""
    case = case_of(small, VARIANTS[0])
    seeded = random.Random(SEED)
    hopeless = bytearray(case.clean)
    hopeless[70_000:] = seeded.randbytes(len(hopeless) - 70_000)  # every small block, hundreds of them in the same slot
    hopeless[1000:66_000] = seeded.randbytes(65_000)
    hopeless[200] ^= 4
    case.damaged = bytes(hopeless)
    case.damage()
    disk = DyingDisk()
    undisturbed = case.repair(disk)
    after = case.path.read_bytes()
    for number in range(len(disk.calls)):
        case.damage()
        case.dies(DyingDisk(number))
        again = case.repair()
        assert (again.verdict, case.path.read_bytes()) == (undisturbed.verdict, after), number


def test_protect_that_dies_at_any_call_leaves_the_old_sidecar_or_the_new_one(small: Path) -> None:
    ward = Path(f"{small}.ward")
    old = ward.read_bytes()
    disk = DyingDisk()
    protect(small, disk, protected_ns=2)
    new = ward.read_bytes()
    assert new != old
    replaced = disk.calls.index("replace")
    for number, name in enumerate(disk.calls):
        for torn in (False, True) if name == "write" else (False,):
            ward.write_bytes(old)
            with pytest.raises(Death):
                protect(small, DyingDisk(number, torn=torn), protected_ns=2)
            assert ward.read_bytes() == (old if number <= replaced else new), (number, name)
            assert verify_file(str(small), str(ward)).verdict is Verdict.INTACT
    protect(small, protected_ns=2)  # what the dead left behind is taken over
    assert {entry.name for entry in small.parent.iterdir()} == {small.name, ward.name}


def test_protect_that_loses_power_leaves_the_old_sidecar_or_the_new_one(small: Path, tmp_path: Path) -> None:
    ward = Path(f"{small}.ward")
    old = ward.read_bytes()
    disk = DyingDisk()
    protect(small, disk, protected_ns=2)
    new = ward.read_bytes()
    seeded = random.Random(SEED)
    print(f"seed {SEED}")
    for number in range(len(disk.calls)):
        attic = tmp_path / f"attic-{number}"
        attic.mkdir()
        ward.write_bytes(old)
        failing = PowerLossDisk(number, attic)
        with pytest.raises(Death):
            protect(small, failing, protected_ns=2)
        failing.lose_power(seeded)
        assert ward.read_bytes() in (old, new), number


def test_healing_that_dies_at_any_call_leaves_the_hurt_sidecar_or_the_whole_one(small: Path) -> None:
    clean, ward = small.read_bytes(), Path(f"{small}.ward").read_bytes()
    case = Case(small, clean, ward, clean, bytes(flipped(ward, 9, random.Random(SEED))))
    case.damage()
    disk = DyingDisk()
    assert case.repair(disk).sidecar.state is SidecarState.HEALED
    for number, name in enumerate(disk.calls):
        for torn in (False, True) if name == "write" else (False,):
            case.damage()
            case.dies(DyingDisk(number, torn=torn))
            assert case.path.read_bytes() == clean
            assert case.ward.read_bytes() in (case.damaged_ward, ward), (number, name)
            seen = verify_file(str(small), str(case.ward))
            assert seen.verdict is Verdict.INTACT
            case.check_whole((number, name))


# ------------------------------------------------------------------------------------------------------------- real processes


@pytest.fixture
def large(tmp_path: Path) -> Case:
    """6 MB of which many blocks are hurt, so that a repair has much to write."""
    seeded = random.Random(SEED)
    folder = tmp_path / "model"
    folder.mkdir()
    weights = bytearray(seeded.randbytes(6 << 20))
    weights[1::2] = bytes(0x3C | byte & 0x81 for byte in weights[1::2])
    path = checkpoints.write_safetensors(folder / "model.safetensors", {"w": ("BF16", (3 << 20,), bytes(weights))})
    os.utime(path, ns=(Case.mtime_ns, Case.mtime_ns))
    protect(path)
    clean, ward = path.read_bytes(), Path(f"{path}.ward").read_bytes()
    hurt = flipped(clean, 400, seeded)
    hurt[1_000_000:1_100_000] = bytes(100_000)
    return Case(path, clean, ward, bytes(hurt), bytes(flipped(ward, 5, seeded)))


def start(*arguments: str | Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bitward", *map(str, arguments)]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def undisturbed_seconds(*arguments: str | Path) -> float:
    started = time.monotonic()
    process = start(*arguments)
    assert process.wait(HANG_LIMIT_SECONDS) == 0
    return time.monotonic() - started


def test_kill_9_at_random_moments_of_a_repair(large: Case) -> None:
    """Half of them anywhere in the process's life, half in the milliseconds after the journal appeared."""
    large.damage()
    seconds = undisturbed_seconds("repair", large.path)
    seeded = random.Random(SEED)
    killed = journals = 0
    journal = large.ward.with_name(large.ward.name + "-journal")
    for trial in range(KILLS):
        large.damage()
        process = start("repair", large.path)
        if trial % 2:
            while process.poll() is None and not journal.exists():
                pass
            delay = seeded.uniform(0, 0.02)
        else:
            delay = seconds * seeded.uniform(0.2, 1.0)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        killed += process.wait(HANG_LIMIT_SECONDS) == -signal.SIGKILL
        journals += journal.exists()
        large.check_no_byte_is_new((trial, delay))
        large.check_whole((trial, delay))
    print(f"seed {SEED}: {killed} of {KILLS} killed before the end, {journals} with a journal left")
    assert killed


def test_kill_9_at_random_moments_of_protect(large: Case) -> None:
    seconds = undisturbed_seconds("protect", large.path)
    seeded = random.Random(SEED)
    print(f"seed {SEED}")
    old = large.ward.read_bytes()
    for _ in range(20):
        process = start("protect", large.path)
        time.sleep(seconds * seeded.uniform(0.2, 1.0))
        process.send_signal(signal.SIGKILL)
        process.wait(HANG_LIMIT_SECONDS)
        now = large.ward.read_bytes()
        seen = bitward.verify(large.path)
        assert seen.verdict is Verdict.INTACT
        assert seen.files[0].sidecar.state is SidecarState.INTACT
        assert now == old or seen.files[0].root
        old = now
    assert bitward.protect(large.path).exit_code == 0
    assert {entry.name for entry in large.path.parent.iterdir()} == {large.path.name, large.ward.name}


def test_kill_9_at_random_moments_of_healing(large: Case) -> None:
    large.damaged = large.clean
    large.damage()
    seconds = undisturbed_seconds("repair", large.path)
    seeded = random.Random(SEED)
    print(f"seed {SEED}")
    for trial in range(20):
        large.damage()
        process = start("repair", large.path)
        time.sleep(seconds * seeded.uniform(0.2, 1.0))
        process.send_signal(signal.SIGKILL)
        process.wait(HANG_LIMIT_SECONDS)
        assert large.ward.read_bytes() in (large.damaged_ward, large.clean_ward), trial
        large.check_whole(trial)
