"""Where times do not tell of every change nothing is remembered, and where nobody can say who writes, a store is made to tell."""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import bitward
from bitward_agent.gate.check import check_file
from bitward_agent.gate.facts import Evidence, GateVerdict
from bitward_agent.gate.file_systems import type_at, type_of_mount, why_not_believed
from bitward_agent.gate.verdict_cache import VerdictCache
from loop_ext4 import mounted_ext4
from squashfs_image import squashfs_image

STEP_SECONDS = 0.15
MOUNTINFO = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw,discard
127 27 254:0 / /a\\040-\\040b rw - vfat /dev/sdb1 rw,fmask=0022
43 27 0:39 /sub /srv rw,relatime shared:7 - btrfs /dev/sdc rw,subvolid=5,subvol=/sub
"""


@pytest.mark.parametrize(("mount_id", "kind"), [(22, "proc"), (27, "ext4"), (127, "vfat"), (43, "btrfs"), (7, ""), (2, ""), (-1, "")])
def test_type_of_a_mount(mount_id: int, kind: str) -> None:
    assert type_of_mount(MOUNTINFO, mount_id) == kind


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "f2fs", "bcachefs", "zfs", "overlay", "tmpfs"])
def test_these_are_believed(kind: str) -> None:
    assert why_not_believed(kind) == ""


@pytest.mark.parametrize("kind", ["vfat", "exfat", "squashfs", "iso9660", "erofs", "nfs4", "cifs", "9p", "fuse.sshfs", "fuseblk", ""])
def test_no_others_are(kind: str) -> None:
    assert kind in why_not_believed(kind)
    assert why_not_believed(kind)


def check(model: Path, cache: VerdictCache) -> GateVerdict:
    return check_file(model, cache=cache)


@contextlib.contextmanager
def mounted(kind: str, what: Path | str, folder: Path, *options: str) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", kind, *options, str(what), str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_another_image_with_the_same_inodes_and_times(tmp_path: Path, small_checkpoint: Path) -> None:
    made_seconds = 1_700_000_000
    os.utime(small_checkpoint, (made_seconds, made_seconds))
    bitward.protect(small_checkpoint)
    right, ward = small_checkpoint.read_bytes(), Path(f"{small_checkpoint}.ward").read_bytes()
    wrong = right[:20_000] + bytes([right[20_000] ^ 0x10]) + right[20_001:]
    image, cache = tmp_path / "image", VerdictCache(str(tmp_path / "cache"))
    found, identities = [], []
    for data in (right, wrong):
        image.write_bytes(squashfs_image({"m.safetensors": data, "m.safetensors.ward": ward}, made_seconds))
        with mounted("squashfs", image, tmp_path / "mnt", "-o", "loop,ro") as folder:
            assert type_at(str(folder / "m.safetensors")) == "squashfs"
            found += [check(folder / "m.safetensors", cache) for _ in range(2)]
            identities.append(found[-1].identity)
    assert [one.verdict for one in found] == ["intact", "intact", "damaged", "damaged"]
    assert all(one.evidence is Evidence.FULL and not one.remembered and not one.writes_show for one in found)
    assert "not remembered: file: times on squashfs" in found[0].message
    assert identities[0] == identities[1]  # which is the danger


@pytest.mark.parametrize(("kind", "remembered"), [("tmpfs", True), ("ramfs", False)])
@pytest.mark.parametrize("lies", ["file", "sidecar"])
def test_both_must_lie_where_times_tell(tmp_path: Path, small_checkpoint: Path, kind: str, lies: str, *, remembered: bool) -> None:
    bitward.protect(small_checkpoint)
    cache = VerdictCache(str(tmp_path / "cache"))
    with mounted(kind, "none", tmp_path / "mnt") as folder:
        moved = folder / small_checkpoint.name
        if lies == "file":
            moved.write_bytes(small_checkpoint.read_bytes())
            os.utime(moved, ns=(0, small_checkpoint.stat().st_mtime_ns))
            path, ward = moved, Path(f"{small_checkpoint}.ward")
        else:
            path, ward = small_checkpoint, folder / "elsewhere.ward"
            ward.write_bytes(Path(f"{small_checkpoint}.ward").read_bytes())
        time.sleep(STEP_SECONDS)
        first, second = (check_file(path, cache=cache, sidecar=str(ward)) for _ in range(2))
    assert (first.verdict, first.remembered, first.writes_show) == ("intact", remembered, remembered)
    assert second.evidence is (Evidence.CACHED if remembered else Evidence.FULL)
    assert (f"not remembered: {lies}: times on ramfs" in first.message) is not remembered


# ------------------------------------------------------------------------------------------------------- files of somebody else

_CHECK = """
import ctypes, os, sys
PR_CAPBSET_DROP, CAP_LEASE = 24, 28
if len(sys.argv) == 3:
    assert ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_LEASE, 0, 0, 0) == 0
    os.execv(sys.executable, [*sys.orig_argv, "without"])
from bitward_agent.gate.check import check_file
from bitward_agent.gate.verdict_cache import VerdictCache
found = check_file(sys.argv[1], cache=VerdictCache(sys.argv[2]))
print(found.verdict, found.evidence, found.remembered, found.message)
"""


def as_stranger(model: Path, cache: Path) -> str:
    """What a gate says that neither owns the file nor may lease those of others (capabilities(7), "CAP_LEASE")."""
    code = [sys.executable, "-c", _CHECK, str(model), str(cache)]
    return subprocess.run(code, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def foreign(tmp_path_factory: pytest.TempPathFactory, small_checkpoint: Path) -> Iterator[Path]:
    """A model on an ext4, and nobody of this process's owns it."""
    with mounted_ext4(tmp_path_factory.mktemp("loop")) as loop:
        model = loop.folder / "model.safetensors"
        model.write_bytes(small_checkpoint.read_bytes())
        bitward.protect(model)
        os.chown(model, 1000, 1000)
        time.sleep(STEP_SECONDS)
        yield model


def test_a_file_of_somebody_else_is_remembered_and_a_store_into_a_mapped_page_misses(foreign: Path, tmp_path: Path) -> None:
    model, cache = foreign, tmp_path / "cache"
    with model.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[20_000] ^= 0x10
        view[20_000] ^= 0x10  # the page is dirty from here on, and right
        os.utime(model, ns=(0, model.stat().st_mtime_ns))
        time.sleep(STEP_SECONDS)
        assert as_stranger(model, cache).startswith("intact full True")
        assert as_stranger(model, cache).startswith("intact cached True")
        view[20_000] ^= 0x10
        found = as_stranger(model, cache)
    assert found.split()[1] == "full"
    assert found.split()[0] in ("damaged", "changed")


def test_a_file_of_somebody_else_on_tmpfs_is_not_remembered(foreign: Path, tmp_path: Path) -> None:
    model, cache = foreign, tmp_path / "cache"
    with mounted("tmpfs", "none", model.parent / "mnt", "-o", "mode=755") as folder:
        moved = folder / model.name
        for end in ("", ".ward"):
            Path(f"{moved}{end}").write_bytes(Path(f"{model}{end}").read_bytes())
        os.utime(moved, ns=(0, model.stat().st_mtime_ns))
        os.chown(moved, 1000, 1000)
        time.sleep(STEP_SECONDS)
        for _ in range(2):
            assert as_stranger(moved, cache).startswith("intact full False not remembered: whether somebody has the file open")
