"""What the machine does to files: bad sectors, full disks, folders that may not be written, files that come, go and are no files.

Bad sectors are erasures. Everything else that stops a command is a message with the file's name, exit code 3, nothing lost, nothing left.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bitward
from bitward_agent.errors import BusyError, UnreadableError
from bitward_agent.findings import FileRepair, FileVerification, SidecarState, Verdict
from bitward_agent.io import DISK, Disk, OpenFile
from bitward_agent.protect import Protection, preset_groups, protect_file
from bitward_agent.repair import RepairRequest, repair_file
from bitward_agent.verify import verify_file
from bitward_formats.pages import PAGE_BYTES
from bitward_formats.sidecar import read_sidecar
from cli.command_line import bitward as command
from cli.command_line import environment
from faulty_disks import BadSectorDisk, Death, DyingDisk, RefusingDisk

SEED = 20250614
HANG_LIMIT_SECONDS = 30

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts a small file system or becomes another user")


def ward_of(path: Path) -> Path:
    return Path(f"{path}.ward")


def verify(path: Path, disk: Disk = DISK) -> FileVerification:
    return verify_file(str(path), str(ward_of(path)), jobs=1, disk=disk)


def repair(path: Path, disk: Disk = DISK) -> FileRepair:
    return repair_file(str(path), str(ward_of(path)), RepairRequest(), jobs=1, disk=disk)


@pytest.fixture
def protected(small_checkpoint: Path) -> Path:
    """A small checkpoint with a sidecar, alone in its folder."""
    folder = small_checkpoint.parent / "model"
    folder.mkdir()
    path = folder / small_checkpoint.name
    shutil.move(small_checkpoint, path)
    assert bitward.protect(path).exit_code == 0
    return path


def flip(path: Path, *offsets: int) -> None:
    """Flip a bit in each of these bytes, leaving the time as it was."""
    state = path.stat()
    data = bytearray(path.read_bytes())
    for offset in offsets:
        data[offset] ^= 0x10
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


# ------------------------------------------------------------------------------------------------------------------ bad sectors


@pytest.mark.parametrize("sectors", [{0}, {3}, {1, 2, 9}, {22}, {23}, set(range(4, 12))], ids=str)
def test_bad_sectors_are_damage_that_a_repair_writes_over(protected: Path, sectors: set[int]) -> None:
    clean = protected.read_bytes()
    disk = BadSectorDisk({protected: sectors})
    found = verify(protected, disk)
    assert found.verdict is Verdict.DAMAGED
    assert found.exit_code == 1
    hit = [damage for damage in found.damage if damage.unreadable]
    assert hit
    assert all(damage.medium == "disk" for damage in hit)
    for sector in sectors:
        assert any(damage.offset < (sector + 1) * 4096 and sector * 4096 < damage.offset + damage.length for damage in hit)
    done = repair(protected, disk)
    assert (done.verdict, done.remaining) == (Verdict.INTACT, 0)
    assert protected.read_bytes() == clean
    assert verify(protected, disk).verdict is Verdict.INTACT


def test_bad_sectors_and_flips_together(protected: Path) -> None:
    clean = protected.read_bytes()
    flip(protected, 100, 5000, 40_000, 80_000)
    disk = BadSectorDisk({protected: {2, 7, 21}})
    assert verify(protected, disk).exit_code == 1
    assert repair(protected, disk).verdict is Verdict.INTACT
    assert protected.read_bytes() == clean


def test_bad_sectors_in_every_page_of_the_sidecar(protected: Path) -> None:
    """One after the other: the file's verdict stays, the sidecar's state tells, and it heals to the same bytes."""
    ward = ward_of(protected)
    clean, clean_ward = protected.read_bytes(), ward.read_bytes()
    for page in range(len(clean_ward) // PAGE_BYTES):
        disk = BadSectorDisk({ward: {page}})
        found = verify(protected, disk)
        assert (found.verdict, found.sidecar.state, found.sidecar.lost_pages) == (Verdict.INTACT, SidecarState.DAMAGED, 1), page
        done = repair(protected, disk)
        assert (done.verdict, done.sidecar.state) == (Verdict.INTACT, SidecarState.HEALED), page
        assert ward.read_bytes() == clean_ward
    for page in range(len(clean_ward) // PAGE_BYTES):  # and a flip in the file at the same time
        flip(protected, 5000)
        done = repair(protected, BadSectorDisk({ward: {page}}))
        assert (done.verdict, done.sidecar.state) == (Verdict.INTACT, SidecarState.HEALED), page
        assert (protected.read_bytes(), ward.read_bytes()) == (clean, clean_ward), page


def test_a_sidecar_that_cannot_be_read_at_all(protected: Path) -> None:
    ward = ward_of(protected)
    before = names(protected.parent)
    disk = BadSectorDisk({ward: set(range(ward.stat().st_size // PAGE_BYTES))})
    found = verify(protected, disk)
    assert (found.verdict, found.exit_code, found.sidecar.state) == (Verdict.UNVERIFIABLE, 3, SidecarState.DAMAGED)
    assert repair(protected, disk).exit_code == 3
    assert names(protected.parent) == before


def test_protect_does_not_bless_what_it_cannot_read(protected: Path) -> None:
    ward = ward_of(protected)
    old = ward.read_bytes()
    protection = Protection(preset_groups("standard"), "standard", 1)
    with pytest.raises(UnreadableError, match=r"small\.safetensors: bytes 8192 to 12288 cannot be read"):
        protect_file(str(protected), str(ward), protection, disk=BadSectorDisk({protected: {2}}))
    assert ward.read_bytes() == old
    assert names(protected.parent) == {protected.name, ward.name}


def test_a_journal_with_a_bad_sector_is_told_and_what_was_torn_is_repaired(protected: Path) -> None:
    clean = protected.read_bytes()
    flip(protected, 5000, 70_000)
    count = DyingDisk()
    hurt = protected.read_bytes()
    assert repair(protected, count).verdict is Verdict.INTACT
    protected.write_bytes(hurt)
    with pytest.raises(Death):
        repair(protected, DyingDisk(count.calls.index("set_mtime")))
    journal = Path(f"{ward_of(protected)}-journal")
    done = repair(protected, BadSectorDisk({journal: {1}}))
    assert done.verdict is Verdict.INTACT
    assert "journal was damaged" in done.message
    assert protected.read_bytes() == clean
    assert not journal.exists()


FUSE_SCRIPT = """
import errno, os, sys
import mfusepy as fuse

class Rotten(fuse.Operations):
    use_ns = True

    def __init__(self, root, sectors):
        self.root, self.bad = root, {int(one) for one in sectors.split(",")}

    def _path(self, path):
        return self.root + path

    def _covered(self, path, offset, size):
        if not path.endswith(".safetensors"):
            return []
        return [one for one in range(offset // 4096, -(-(offset + size) // 4096)) if one in self.bad]

    def getattr(self, path, fh=None):
        found = os.lstat(self._path(path))
        names = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid", "st_ino")
        return {name: getattr(found, name) for name in names} | {
            name: getattr(found, name + "_ns") for name in ("st_atime", "st_mtime", "st_ctime")
        }

    def readdir(self, path, fh):
        return [".", "..", *os.listdir(self._path(path))]

    def open(self, path, flags):
        return os.open(self._path(path), flags & ~os.O_DIRECT)

    def create(self, path, mode, fi=None):
        return os.open(self._path(path), os.O_RDWR | os.O_CREAT, mode)

    def read(self, path, size, offset, fh):
        if self._covered(path, offset, size):
            raise fuse.FuseOSError(errno.EIO)
        return os.pread(fh, size, offset)

    def write(self, path, data, offset, fh):
        self.bad -= set(self._covered(path, offset, len(data)))
        return os.pwrite(fh, data, offset)

    def truncate(self, path, length, fh=None):
        os.truncate(self._path(path), length)
        return 0

    def fsync(self, path, datasync, fh):
        os.fsync(fh)
        return 0

    def flush(self, path, fh):
        return 0

    def release(self, path, fh):
        os.close(fh)
        return 0

    def unlink(self, path):
        os.unlink(self._path(path))
        return 0

    def rename(self, old, new, *flags):
        os.rename(self._path(old), self._path(new))
        return 0

    def utimens(self, path, times=None):
        os.utime(self._path(path), ns=tuple(int(one) for one in times))
        return 0

fuse.FUSE(Rotten(sys.argv[1], sys.argv[3]), sys.argv[2], foreground=True, nothreads=True)
"""


@contextlib.contextmanager
def rotten_mount(source: Path, sectors: set[int]) -> Iterator[Path]:
    """A real file system over ``source`` on which these sectors of every checkpoint give EIO until they are written."""
    pytest.importorskip("mfusepy", reason="needs the package mfusepy", exc_type=ImportError)
    if not os.access("/dev/fuse", os.R_OK | os.W_OK) or not shutil.which("fusermount3"):
        pytest.skip("needs /dev/fuse and fusermount3")
    target = source.parent / "rotten"
    target.mkdir()
    arguments = [sys.executable, "-c", FUSE_SCRIPT, str(source), str(target), ",".join(map(str, sorted(sectors)))]
    told = source.parent / "fuse-errors"
    with told.open("wb") as errors:
        process = subprocess.Popen(arguments, stderr=errors)
    try:
        end = time.monotonic() + HANG_LIMIT_SECONDS
        while not os.path.ismount(target):
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                pytest.skip(f"FUSE cannot mount here: {told.read_text()[-200:]}")
            time.sleep(0.01)
        yield target
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(target)], check=False, capture_output=True)
        process.wait(HANG_LIMIT_SECONDS)


def test_bad_sectors_of_a_real_file_system(protected: Path) -> None:
    clean = protected.read_bytes()
    with rotten_mount(protected.parent, {3, 20}) as mounted:
        path = mounted / protected.name
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            path.read_bytes()
        found = bitward.verify(path)
        assert (found.verdict, found.exit_code) == (Verdict.DAMAGED, 1)
        assert any(damage.unreadable for damage in found.files[0].damage)
        done = command("repair", path)
        assert done.code == 0, done
        assert path.read_bytes() == clean
        assert bitward.verify(path).verdict is Verdict.INTACT
    assert protected.read_bytes() == clean


# ------------------------------------------------------------------------------------------------ calls that are refused, one by one


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT], ids=errno.errorcode.get)
@pytest.mark.parametrize("stubborn", [False, True], ids=["once", "from then on"])
def test_any_call_that_is_refused_loses_nothing(protected: Path, error: int, stubborn: bool) -> None:
    """A message, never an exception; afterwards a repair with a sound disk gives the exact bytes, and nothing is left over."""
    ward = ward_of(protected)
    clean, clean_ward = protected.read_bytes(), ward.read_bytes()
    state = protected.stat()
    flip(protected, 100, 5000, 70_000)
    flip(ward, 5000)
    hurt, hurt_ward = protected.read_bytes(), ward.read_bytes()
    count = DyingDisk()
    repair(protected, count)
    for number, name in enumerate(count.calls):
        protected.write_bytes(hurt)
        os.utime(protected, ns=(state.st_mtime_ns, state.st_mtime_ns))
        ward.write_bytes(hurt_ward)
        disk = RefusingDisk(number, error, stubborn=stubborn)
        done = repair(protected, disk)
        told = (number, name, done)
        assert disk.refused, told
        assert done.exit_code in (0, 3), told
        assert done.exit_code == 0 or os.strerror(error) in done.message + done.sidecar.message, told
        assert ward.read_bytes() in (clean_ward, hurt_ward), told
        if done.verdict is Verdict.INTACT:
            assert protected.read_bytes() == clean, told
        again = repair(protected)
        assert again.verdict is Verdict.INTACT, (told, again)
        assert (protected.read_bytes(), ward.read_bytes()) == (clean, clean_ward), told
        assert names(protected.parent) - {f"{ward.name}-log"} == {protected.name, ward.name}, told


# --------------------------------------------------------------------------------------------------------------------- full disks


@contextlib.contextmanager
def small_disk(folder: Path, size: str = "1m") -> Iterator[Path]:
    """A real small file system in memory."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def fill(folder: Path, leave_bytes: int = 0) -> Path:
    """Use up a small file system."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        file.truncate(max(0, file.tell() - leave_bytes))
    return filler


@needs_root
def test_no_room_for_the_sidecar(small_checkpoint: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "wards") as wards:
        filler = fill(wards, 20_000)
        done = command("protect", small_checkpoint, "--sidecar-dir", wards, "--json")
        assert done.code == 3
        message = done.document["files"][0]["message"]
        assert str(wards) in message
        assert "No space left" in message
        assert "make room" in message
        assert names(wards) == {"filler"}
        filler.unlink()
        assert command("protect", small_checkpoint, "--sidecar-dir", wards).code == 0
        old = (wards / "small.safetensors.ward").read_bytes()
        fill(wards)
        assert command("protect", small_checkpoint, "--sidecar-dir", wards).code == 3
        assert (wards / "small.safetensors.ward").read_bytes() == old
        assert command("verify", small_checkpoint, "--sidecar-dir", wards).code == 0


@needs_root
def test_no_room_for_the_journal(protected: Path, tmp_path: Path) -> None:
    clean = protected.read_bytes()
    with small_disk(tmp_path / "disk") as disk:
        for path in (protected, ward_of(protected)):
            shutil.copy2(path, disk)
        path = disk / protected.name
        flip(path, 5000, 70_000)
        hurt = path.read_bytes()
        filler = fill(disk)
        before = names(disk)
        done = command("repair", path, "--json")
        assert done.code == 3
        message = done.document["files"][0]["message"]
        assert str(disk) in message
        assert "No space left" in message
        assert path.read_bytes() == hurt
        assert names(disk) == before
        filler.unlink()
        assert command("repair", path).code == 0
        assert path.read_bytes() == clean


@needs_root
def test_no_room_to_make_a_torn_file_long_again(protected: Path, tmp_path: Path) -> None:
    clean = protected.read_bytes()
    with small_disk(tmp_path / "disk") as disk:
        for path in (protected, ward_of(protected)):
            shutil.copy2(path, disk)
        path = disk / protected.name
        os.truncate(path, 60_000)
        hurt = path.read_bytes()
        filler = fill(disk, 80_000)  # enough for the journal, not for both
        done = command("repair", path, "--json")
        assert done.code == 3
        assert path.read_bytes()[:60_000] == hurt
        filler.unlink()
        assert command("repair", path).code == 0
        assert path.read_bytes() == clean


# ---------------------------------------------------------------------------------------------------- folders that may not be written


@needs_root
def test_a_read_only_file_system(protected: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        for path in (protected, ward_of(protected)):
            shutil.copy2(path, disk)
        path = disk / protected.name
        flip(path, 5000)
        hurt = path.read_bytes()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert command("verify", path).code == 1
        for arguments in (["repair", path], ["protect", path, "--force"]):
            done = command(*arguments, "--json")
            assert done.code == 3, arguments
            assert done.document["files"][0]["path"] == str(path)
            assert "Read-only" in done.document["files"][0]["message"]
        assert path.read_bytes() == hurt
        assert names(disk) == {path.name, ward_of(path).name}
        assert command("protect", path, "--sidecar-dir", tmp_path).code == 0  # what the message advises


NOBODY_SCRIPT = """
import importlib, os, pkgutil, sys
import bitward, bitward_agent, bitward_formats, numpy, click

for package in (bitward, bitward_agent, bitward_formats):  # now, since that user may not read the interpreter's folder
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sys.exit(bitward.cli.main(sys.argv[1:]))
"""


def as_nobody(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user without rights."""
    return subprocess.run(
        [sys.executable, "-c", NOBODY_SCRIPT, *map(str, arguments)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=HANG_LIMIT_SECONDS,
        check=False,
    )


@pytest.fixture
def open_to_all(tmp_path: Path) -> None:
    """Lets other users through to the test's folder."""
    for folder in (tmp_path, *tmp_path.parents):
        if str(folder).count("/") > 1:
            folder.chmod(folder.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)


@needs_root
@pytest.mark.usefixtures("open_to_all")
def test_a_folder_of_somebody_else(protected: Path) -> None:
    clean, ward = protected.read_bytes(), ward_of(protected)
    assert as_nobody("verify", protected).returncode == 0
    flip(protected, 5000)
    hurt, hurt_ward = protected.read_bytes(), ward.read_bytes()
    for arguments in (["repair", protected], ["protect", protected, "--force"]):
        done = as_nobody(*arguments)
        assert done.returncode == 3, done
        assert protected.name in done.stdout
        assert "Permission denied" in done.stdout
        assert "Traceback" not in done.stderr
    assert (protected.read_bytes(), ward.read_bytes()) == (hurt, hurt_ward)
    assert names(protected.parent) == {protected.name, ward.name}
    protected.parent.chmod(0o777)
    protected.chmod(0o666)  # may be written, but its time belongs to its owner
    done = as_nobody("repair", protected)
    assert done.returncode == 0, done
    assert protected.read_bytes() == clean
    assert "modification time" in done.stdout


@needs_root
@pytest.mark.usefixtures("open_to_all")
def test_a_file_that_may_not_be_read(protected: Path) -> None:
    protected.chmod(0o600)
    for arguments in (["verify"], ["repair"], ["protect", "--force"]):
        done = as_nobody(*arguments, protected)
        assert done.returncode == 3, done
        assert "Permission denied" in done.stdout
    protected.chmod(0o644)
    ward_of(protected).chmod(0o600)
    done = as_nobody("verify", protected)
    assert done.returncode == 3
    assert "Permission denied" in done.stdout
    ward_of(protected).chmod(0o644)
    protected.parent.chmod(0o700)
    assert as_nobody("verify", protected.parent).returncode == 3


# --------------------------------------------------------------------------------------------------------- files that come and go


class MeddlingDisk(Disk):
    """Does something to the files when the model has been read so many times."""

    def __init__(self, path: Path, deed: Callable[[], object], at_read: int = 1) -> None:
        self._inode, self._deed, self._left = path.stat().st_ino, deed, at_read

    def read_into(self, fd: int, view: memoryview, offset: int) -> int:
        count = super().read_into(fd, view, offset)
        if os.fstat(fd).st_ino == self._inode:
            self._left -= 1
            if self._left == 0:
                self._deed()
        return count


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def replace_with(path: Path, data: bytes) -> None:
    fresh = path.with_name("fresh")
    fresh.write_bytes(data)
    os.replace(fresh, path)


@pytest.mark.parametrize("deed", ["append", "rewrite", "replace", "unlink", "truncate"])
@pytest.mark.parametrize(("hurt", "at_read"), [(False, 1), (True, 1), (True, 2), (True, 3)])
def test_a_file_that_is_meddled_with_while_verify_reads_it_is_not_judged(protected: Path, deed: str, hurt: bool, at_read: int) -> None:
    if hurt:
        flip(protected, 5000, 70_000)
    data = protected.read_bytes()
    deeds = {
        "append": lambda: append(protected),
        "rewrite": lambda: protected.write_bytes(bytes(len(data))),
        "replace": lambda: replace_with(protected, data),
        "unlink": protected.unlink,
        "truncate": lambda: os.truncate(protected, 1000),
    }
    disk = MeddlingDisk(protected, deeds[deed], at_read)
    found = verify(protected, disk)
    assert disk._left <= 0, "not read so often"
    assert found.verdict is Verdict.UNVERIFIABLE
    assert "while it" in found.message


@pytest.mark.parametrize("at_read", [1, 2, 3])
def test_a_file_that_is_replaced_while_it_is_repaired(protected: Path, at_read: int) -> None:
    flip(protected, 5000, 70_000)
    fresh = random.Random(SEED).randbytes(50_000)
    done = repair(protected, MeddlingDisk(protected, lambda: replace_with(protected, fresh), at_read))
    assert done.exit_code == 3, done
    assert "was replaced" in done.message
    assert protected.read_bytes() == fresh
    assert names(protected.parent) == {protected.name, ward_of(protected).name}


def test_a_file_that_is_written_while_it_is_protected(protected: Path) -> None:
    ward = ward_of(protected)
    old = ward.read_bytes()
    protection = Protection(preset_groups("standard"), "standard", 1)
    with pytest.raises(BusyError, match="changed while it was read"):
        protect_file(str(protected), str(ward), protection, jobs=1, disk=MeddlingDisk(protected, lambda: append(protected), 3))
    assert ward.read_bytes() == old
    assert names(protected.parent) == {protected.name, ward.name}


def test_a_vanished_file_and_a_vanished_folder(protected: Path) -> None:
    folder = protected.parent
    gone = protected.read_bytes()
    protected.unlink()
    for name in ("verify", "repair"):
        done = command(name, protected)
        assert done.code in (3, 4), name
        assert protected.name in done.out + done.err
        assert "Traceback" not in done.err
    protected.write_bytes(gone)
    assert bitward.protect(folder, force=True).exit_code == 0
    shutil.rmtree(folder)
    for name in ("verify", "repair", "protect", "explain"):
        done = command(name, folder, "--json")
        assert done.code == 3, (name, done)
        assert "Traceback" not in done.err


def test_a_folder_that_vanishes_between_listing_and_reading(protected: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of the listing are gone when they are opened: each is named, none is an exception."""
    from bitward import targets

    assert bitward.protect(protected.parent).exit_code == 0
    check = targets.check_unit

    def check_and_remove(*arguments: object, **options: object) -> object:
        found = check(*arguments, **options)  # type: ignore[arg-type]
        shutil.rmtree(protected.parent)
        return found

    monkeypatch.setattr(targets, "check_unit", check_and_remove)
    report = bitward.verify(protected.parent)
    assert report.exit_code == 3
    assert "No such file" in report.files[0].message


def test_a_folder_that_may_not_be_listed_does_not_hide_the_others(protected: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "deep").mkdir()
    deep = str(other / "deep")
    here = os.getcwd()
    os.chdir(deep)
    try:  # nested deeper than any path may be long
        for _ in range(1200):
            os.mkdir("abcd")
            os.chdir("abcd")
    finally:
        os.chdir(here)
    try:
        report = bitward.verify(other, protected)
        assert [file.verdict for file in report.files] == [Verdict.INTACT]
        assert report.units[0].message.endswith("File name too long")
        assert report.exit_code == 3
    finally:
        subprocess.run(["rm", "-rf", deep], check=True)


def test_folders_nested_deeper_than_the_stack(tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    at = str(folder)
    os.mkdir(at)
    for _ in range(1100):
        at += "/d"
        os.mkdir(at)
    try:
        Path(f"{at}/w").write_bytes(b"weights")
        assert bitward.protect(folder).exit_code == 0
        assert bitward.verify(folder).exit_code == 0
    finally:
        subprocess.run(["rm", "-rf", str(folder)], check=True)


# -------------------------------------------------------------------------------------------------------------- things that are no files


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):
        made.bind(path.name)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # as /dev/zero: endless
    except PermissionError:
        pytest.skip("needs root: makes a device")


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def make_dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


THINGS = [make_fifo, make_socket, make_folder, make_device, make_loop, make_dangling]


@contextlib.contextmanager
def alarm() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(HANG_LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("make", THINGS, ids=lambda make: make.__name__[5:])
@pytest.mark.parametrize("place", ["", ".ward", ".ward-journal", ".ward-log", ".new"])
def test_something_else_with_the_name_of_a_file(protected: Path, make: Callable[[Path], None], place: str) -> None:
    """In the place of the model, of its sidecar, its journal, its log, its temporary file: no hang, no exception, nothing lost."""
    clean = protected.read_bytes()
    flip(protected, 5000)
    hurt = protected.read_bytes()
    ward = ward_of(protected)
    thing = {
        "": protected,
        ".ward": ward,
        ".ward-journal": Path(f"{ward}-journal"),
        ".ward-log": Path(f"{ward}-log"),
        ".new": protected.parent / f".{ward.name}-journal.new",
    }[place]
    thing.unlink(missing_ok=True)
    make(thing)
    mode = thing.lstat().st_mode
    with alarm():
        seen = bitward.verify(protected)
        done = bitward.repair(protected)
        bitward.explain(protected)
    match place:
        case "":
            if make is not make_folder:
                assert (seen.exit_code, done.exit_code) == (3, 3)
        case ".ward":
            assert (seen.exit_code, done.exit_code) == (3, 3)
            assert protected.read_bytes() == hurt
        case ".ward-journal" | ".new":
            assert (seen.exit_code, done.exit_code) == (1, 3), done
            assert thing.name in done.files[0].message
            assert protected.read_bytes() == hurt
        case ".ward-log":
            assert (seen.exit_code, done.exit_code) == (1, 0)
            assert "could not be logged" in done.files[0].message
            assert protected.read_bytes() == clean
    assert thing.lstat().st_mode == mode
    with alarm():
        report = bitward.protect(protected, force=True)
    assert report.exit_code in (0, 3)


@pytest.mark.parametrize("make", [make_fifo, make_socket, make_device, make_loop, make_dangling], ids=lambda make: make.__name__[5:])
def test_something_else_inside_a_unit(protected: Path, make: Callable[[Path], None]) -> None:
    folder = protected.parent
    make(folder / "pipe")
    with alarm():
        made = bitward.protect(folder)
        assert made.exit_code == 0
        assert made.units[0].skipped[0].startswith("pipe (")
        assert bitward.verify(folder).exit_code == 0
        protected.unlink()
        make(protected)
        found = bitward.verify(folder)
        assert found.exit_code == 4
        assert found.units[0].missing == (protected.name,)
        assert bitward.repair(folder).exit_code == 4


def test_a_name_that_leaves_no_room_for_a_journal_is_refused_before_there_is_need_of_one(tmp_path: Path) -> None:
    longest = 255 - len("..ward-journal.new")
    for length in (longest, longest + 1):
        path = tmp_path / ("n" * length)
        path.write_bytes(bytes(range(100)))
        made = bitward.protect(path)
        if length > longest:
            assert made.exit_code == 3
            assert "too long" in made.files[0].message
        else:
            assert made.exit_code == 0
            flip(path, 50)
            assert bitward.repair(path).exit_code == 0
            assert path.read_bytes() == bytes(range(100))


def test_a_file_with_the_name_that_the_index_needs(protected: Path) -> None:
    folder = protected.parent
    (folder / "bitward-unit").write_bytes(b"x")
    made = bitward.protect(folder)
    assert made.exit_code == 0
    assert "bitward-unit (" in made.units[0].skipped[0]
    assert bitward.verify(folder).exit_code == 0


# ------------------------------------------------------------------------------------------------------------------ two at a time


def test_two_repairs_at_a_time(protected: Path) -> None:
    """The second says that the first is at it, and does not undo what that one is writing."""
    clean = protected.read_bytes()
    flip(protected, 5000, 70_000)
    seen: list[FileRepair] = []

    class Nested(Disk):
        def set_mtime(self, fd: int, atime_ns: int, mtime_ns: int) -> None:
            if not seen:
                assert Path(f"{ward_of(protected)}-journal").exists()
                seen.append(repair(protected))
            super().set_mtime(fd, atime_ns, mtime_ns)

    done = repair(protected, Nested())
    assert done.verdict is Verdict.INTACT
    assert seen[0].exit_code == 3
    assert "at work" in seen[0].message
    assert protected.read_bytes() == clean


def test_many_protects_at_a_time_leave_one_good_sidecar(protected: Path) -> None:
    ward = ward_of(protected)
    outcomes: list[str] = []

    def work() -> None:
        for _ in range(40):
            try:
                protect_file(str(protected), str(ward), Protection(preset_groups("standard"), "standard", 1), jobs=1)
                outcomes.append("done")
            except BusyError:
                outcomes.append("busy")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):  # at no moment is the sidecar gone or half
        with OpenFile(str(ward)) as file:
            assert read_sidecar(file.read, file.state().size)
    for thread in threads:
        thread.join()
    print(outcomes.count("done"), outcomes.count("busy"))
    assert outcomes.count("done") > 0
    assert verify(protected).sidecar.state is SidecarState.INTACT
    assert names(protected.parent) == {protected.name, ward.name}


def test_a_healing_that_reads_other_bytes_than_it_verified_writes_nothing(protected: Path) -> None:
    """A flip between the scan and the making of the new sidecar must not become what the sidecar vouches for."""
    ward = ward_of(protected)
    flip(ward, 5000)
    hurt = ward.read_bytes()
    disk = MeddlingDisk(protected, lambda: flip(protected, 7000), 1)
    done = repair(protected, disk)
    assert done.exit_code == 3
    assert ward.read_bytes() == hurt
    assert repair(protected).verdict is Verdict.INTACT
