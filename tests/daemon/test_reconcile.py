"""Walks against records: what belongs, what is new, changed, gone, and what only cannot be reached."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from bitward_agent.daemon.config import WatchConfig
from bitward_agent.daemon.facts import UnitRecord
from bitward_agent.daemon.pace import Stopped
from bitward_agent.daemon.reconcile import Found, Walk, compare, devices_of, look, walk


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = Path(os.path.realpath(tmp_path)) / "models"
    (found / "deep" / "er").mkdir(parents=True)
    for name in ("a.safetensors", "b\n.gguf", "\udcff.bin", "deep/er/c.pt"):
        (found / name).write_bytes(name.encode("utf-8", "surrogateescape"))
    return found


def record_of(found: Found) -> UnitRecord:
    return UnitRecord(
        *(found.path, found.watch, "ab"), seen_size=found.size, seen_mtime_ns=found.mtime_ns, seen_inode=found.inode, sidecar=found.sidecar
    )


def names(folder: Path, files: tuple[Found, ...]) -> list[str]:
    return sorted(os.path.relpath(file.path, folder) for file in files)


def test_everything_regular_with_any_name(folder: Path) -> None:
    listed = walk(WatchConfig(str(folder)))
    assert names(folder, listed.found) == ["a.safetensors", "b\n.gguf", "deep/er/c.pt", "\udcff.bin"]
    assert listed.skipped == listed.unlisted == ()
    assert listed.device == folder.stat().st_dev
    assert [file.sidecar for file in listed.found] == [f"{file.path}.ward" for file in listed.found]
    assert all(look(WatchConfig(str(folder)), file.path) == file for file in listed.found)


def test_links_pipes_devices_and_our_own_files_are_left_out(folder: Path) -> None:
    (folder / "link.safetensors").symlink_to("a.safetensors")
    (folder / "out").symlink_to("/etc")
    os.mkfifo(folder / "pipe.safetensors")
    if os.geteuid() == 0:
        os.mknod(folder / "null.safetensors", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    for name in ("a.safetensors.ward", "a.safetensors.ward-journal", "a.safetensors.ward-log", ".ward.new"):
        (folder / name).write_bytes(b"x")
    watch = WatchConfig(str(folder))
    listed = walk(watch)
    assert len(listed.found) == 4
    assert [file.has_sidecar for file in listed.found if file.relative == "a.safetensors"] == [True]
    assert sum("symbolic link" in one for one in listed.skipped) == 2
    outside = ["link.safetensors", "out/passwd", "pipe.safetensors", "null.safetensors", "a.safetensors.ward", "../other", "gone", "deep"]
    assert [look(watch, os.path.join(folder, name)) for name in outside] == [None] * len(outside)


def test_include_and_exclude(folder: Path) -> None:
    watch = WatchConfig(str(folder), include=("*.safetensors", "deep/*"), exclude=("*.pt",))
    assert names(folder, walk(watch).found) == ["a.safetensors"]
    assert look(watch, str(folder / "b\n.gguf")) is None


def test_sidecars_elsewhere(folder: Path, tmp_path: Path) -> None:
    watch = WatchConfig(str(folder), sidecar_dir="/wards")
    listed = {file.relative: file.sidecar for file in walk(watch).found}
    assert listed["deep/er/c.pt"] == "/wards/models/deep/er/c.pt.ward"
    assert all(look(watch, file.path) == file for file in walk(watch).found)


def test_one_file(folder: Path) -> None:
    watch = WatchConfig(str(folder / "a.safetensors"))
    assert names(folder, walk(watch).found) == ["a.safetensors"]
    (folder / "a.safetensors").unlink()
    os.mkfifo(folder / "a.safetensors")
    assert walk(watch).found == ()


def test_new_changed_gone(folder: Path) -> None:
    watch = WatchConfig(str(folder))
    before = walk(watch)
    records = [record_of(file) for file in before.found]
    assert compare([before], records, {}) == compare([], [], {})
    (folder / "new.bin").write_bytes(b"n")
    os.utime(folder / "a.safetensors", ns=(1, 1))
    os.replace(shutil.copy2(folder / "b\n.gguf", folder / ".tmp"), folder / "b\n.gguf")  # same size, same time, another file
    shutil.rmtree(folder / "deep")
    found = compare([walk(watch)], records, {})
    assert names(folder, found.new) == ["new.bin"]
    assert names(folder, found.changed) == ["a.safetensors", "b\n.gguf"]
    assert [os.path.basename(record.path) for record in found.gone] == ["c.pt"]
    assert found.unreachable == found.strays == ()


def test_moved_folder_is_gone_there_and_new_here(folder: Path) -> None:
    watch = WatchConfig(str(folder))
    records = [record_of(file) for file in walk(watch).found]
    (folder / "deep").rename(folder / "moved")
    found = compare([walk(watch)], records, {})
    assert (names(folder, found.new), len(found.gone)) == (["moved/er/c.pt"], 1)


def test_watch_out_of_reach_forgets_nothing(folder: Path) -> None:
    watch = WatchConfig(str(folder))
    records = [record_of(file) for file in walk(watch).found]
    folder.rename(folder.parent / "away")
    for make in (lambda: None, lambda: folder.symlink_to(folder.parent / "away")):
        make()
        listed = walk(watch)
        assert listed.device == 0
        assert listed.skipped != ()
        found = compare([listed], records, {})
        assert len(found.unreachable) == 4
        assert found.gone == found.new == ()


def test_missing_mount_is_told_from_files_that_were_removed(folder: Path) -> None:
    watch = WatchConfig(str(folder))
    before = walk(watch)
    records, devices = [record_of(file) for file in before.found], devices_of([before], {})
    empty = Walk(str(folder), before.device, ())
    assert len(compare([empty], records, devices).gone) == 4
    assert len(compare([empty], records, {}).unreachable) == 4  # just started: who knows
    other = replace(empty, device=before.device + 1)
    assert len(compare([other], records, devices_of([other], devices)).unreachable) == 4


def test_unmounted_for_real(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    folder = Path(os.path.realpath(tmp_path)) / "mnt"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], check=True)
    try:
        (folder / "model").write_bytes(b"x")
        watch = WatchConfig(str(folder))
        before = walk(watch)
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    found = compare([walk(watch)], [record_of(file) for file in before.found], devices_of([before], {}))
    assert (len(found.unreachable), found.gone) == (1, ())


def test_folder_that_cannot_be_listed_forgets_nothing(folder: Path) -> None:
    watch = WatchConfig(str(folder))
    listed = replace(walk(watch), unlisted=(str(folder / "deep"),))
    records = [record_of(file) for file in listed.found]
    without = replace(listed, found=tuple(file for file in listed.found if "deep" not in file.path))
    assert [record.path for record in compare([without], records, {}).unreachable] == [str(folder / "deep/er/c.pt")]


def test_other_peoples_folder_is_left_out_and_told() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")
    code = """
import os, sys
from bitward_agent.daemon.config import WatchConfig
from bitward_agent.daemon.reconcile import walk
os.setresuid(65534, 65534, 65534)
found = walk(WatchConfig(sys.argv[1]))
print(len(found.found), *found.unlisted)
"""
    with tempfile.TemporaryDirectory(dir="/tmp") as base:  # TMPDIR may lie where nobody else may go
        os.chmod(base, 0o755)
        folder = Path(os.path.realpath(base)) / "models"
        (folder / "mine").mkdir(parents=True)
        (folder / "mine" / "a").write_bytes(b"x")
        (folder / "b").write_bytes(b"x")
        (folder / "mine").chmod(0o700)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True, text=True, env=environment)
        assert done.stdout == f"1 {folder / 'mine'}\n"


def test_strays_and_nested_watches(folder: Path) -> None:
    outer, inner = WatchConfig(str(folder)), WatchConfig(str(folder / "deep"))
    walks = [walk(inner), walk(outer)]
    found = {file.path: file.watch for file in compare(walks, [], {}).new}
    assert len(found) == 4
    assert found[str(folder / "deep/er/c.pt")] == inner.path
    stray = UnitRecord("/elsewhere/x", "/elsewhere")
    assert compare(walks, [stray], {}).strays == (stray,)


def test_hub_cache_blobs_once_and_never_outside(folder: Path) -> None:
    repository = folder / "models--org--name"
    (repository / "blobs").mkdir(parents=True)
    revision = repository / "snapshots" / ("c" * 40)
    revision.mkdir(parents=True)
    blob = repository / "blobs" / ("d" * 64)
    blob.write_bytes(b"weights")
    (revision / "model.safetensors").symlink_to(f"../../blobs/{'d' * 64}")
    found = [file for file in walk(WatchConfig(str(folder), include=("*.safetensors",))).found if "models--" in file.path]
    assert [(file.path, file.shown) for file in found] == [(str(blob), str(revision / "model.safetensors"))]
    only = walk(WatchConfig(str(revision)))
    assert only.found == ()
    assert "outside of what is watched" in only.skipped[0]


def test_stops_when_asked(folder: Path) -> None:
    with pytest.raises(Stopped):
        walk(WatchConfig(str(folder)), lambda: True)


def test_ten_thousand_files_and_a_deep_tree(folder: Path) -> None:
    for index in range(10_000):
        (folder / f"{index}.bin").touch()
    deep = folder
    for _ in range(300):
        deep /= "d"
        os.mkdir(deep)
    (deep / "model").touch()
    assert len(walk(WatchConfig(str(folder))).found) == 10_005
