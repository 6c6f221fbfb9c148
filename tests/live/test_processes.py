"""Real processes that map a checkpoint compute right results again after healing, without a restart."""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitward
from bitward_agent.errors import InputError, ProcessError, UnreadableError
from bitward_agent.findings import ExitCode, Verdict
from cli.command_line import bitward as run_bitward
from live.children import Child, checkpoint, child, data_start, flip_in_file, flip_in_memory, write_checkpoint

SEED = 417
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: files that lost their names are reached through map_files")

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]
needs_torch = pytest.mark.skipif(torch is None, reason="PyTorch is not installed")


def flips_of(report: bitward.api.VerifyReport) -> list[tuple[str | None, tuple[int, ...], int]]:  # type: ignore[name-defined]
    return [(one.tensor, one.index, one.bit) for file in report.files for block in file.damage for one in block.flips]


@contextmanager
def child_over_a_flip(kind: str, path: Path) -> Iterator[tuple[Child, str]]:
    """A process that maps a file in which a bit flips then, and the sum that it had before."""
    with child(kind, path) as process:
        before = process.sum()
        flip_in_file(path, data_start(path) + 4 * 9000 + 3, 5)
        yield process, before


@pytest.mark.parametrize("how", ["shared", "safe_open"])
def test_a_shared_map_sees_the_file_healed(tmp_path: Path, how: str) -> None:
    path = checkpoint(tmp_path)
    right = path.read_bytes()
    with child(how, path) as process:
        before = process.sum()
        flip_in_file(path, data_start(path) + 4 * 777 + 3, 6)
        assert process.sum() != before
        report = bitward.verify(path, live=process.pid)
        (file,) = report.files
        assert file.live is not None
        mapping = "shared" if how == "shared" else "private"  # safetensors maps privately, and never writes
        assert (report.exit_code, file.live.mapping, file.live.pid) == (ExitCode.REPAIRABLE, mapping, process.pid)
        assert flips_of(report) == [("a", (1, 277), 30)]
        assert file.damage[0].medium in ("disk", "unknown", "memory")
        repaired = bitward.repair(live=process.pid)
        assert (repaired.exit_code, repaired.repaired, repaired.remaining) == (ExitCode.OK, 1, 0)
        assert process.sum() == before
        assert bitward.verify(live=process.pid).verdict is Verdict.INTACT
    assert path.read_bytes() == right


def test_private_copies_are_healed_and_the_file_is_not_touched(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    right, times = path.read_bytes(), path.stat().st_mtime_ns
    with child("private", path) as process:
        before = process.sum()
        assert bitward.verify(path, live=process.pid).files[0].live.own_bytes in (0, None)  # type: ignore[union-attr]
        process.ask("flip", "a", 4 * 12345 + 3, 6)
        process.ask("flip", "b", 4 * 777 + 3, 7)
        flip_in_memory(process.pid, path, data_start(path) + 4 * 100_000 + 2, 7)
        assert process.sum() != before
        report = bitward.verify(path, live=process.pid)
        assert sorted(flips_of(report), key=str) == [("a", (200, 0), 23), ("a", (24, 345), 30), ("b", (1, 277), 31)]
        assert {(block.medium, block.source) for block in report.files[0].damage} == {("memory", "reference")}
        dry = bitward.repair(path, live=process.pid, dry_run=True)
        assert (dry.exit_code, dry.repaired, dry.remaining) == (ExitCode.REPAIRABLE, 0, 3)
        assert process.sum() != before
        done = bitward.repair(path, live=process.pid)
        assert (done.exit_code, done.repaired, done.remaining) == (ExitCode.OK, 3, 0)
        assert sum(write.flip_count for write in done.files[0].writes) == 3
        assert process.sum() == before
        assert bitward.verify(path, live=process.pid).verdict is Verdict.INTACT
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (right, times)
    assert not list(tmp_path.glob("*journal*"))


def test_file_and_copy_damaged_at_once(tmp_path: Path) -> None:
    """Parity has to restore the file's block and the copy's, each from what is left of the other."""
    path = checkpoint(tmp_path)
    right = path.read_bytes()
    with child("private", path) as process:
        before = process.sum()
        process.ask("flip", "a", 4 * 500 + 3, 6)
        flip_in_file(path, data_start(path) + 4 * 9000 + 3, 5)  # the same block, a page that is not copied
        flip_in_file(path, data_start(path) + 4 * 190_000 + 3, 5)
        report = bitward.verify(path, live=process.pid)
        assert flips_of(report) == [("a", (1, 0), 30), ("a", (18, 0), 29), ("a", (380, 0), 29)]
        dry = bitward.repair(path, live=process.pid, dry_run=True)
        assert [(file.live is not None, file.remaining, file.exit_code) for file in dry.files] == [(False, 2, 1), (True, 1, 1)]
        done = bitward.repair(path, live=process.pid)
        assert [(file.live is not None, file.repaired) for file in done.files] == [(False, 2), (True, 1)]
        assert done.exit_code == ExitCode.OK
        assert process.sum() == before
    assert path.read_bytes() == right


@needs_root
def test_where_the_file_is_out_of_reach_the_process_is_healed(tmp_path: Path) -> None:
    """A page of the page cache is wrong and its file has no name to be repaired by: the process gets a right copy of its own."""
    path = checkpoint(tmp_path)
    with child_over_a_flip("private", path) as (process, before):
        path.unlink()
        assert process.sum() != before
        done = bitward.repair(path, live=process.pid)
        assert (done.exit_code, done.repaired) == (ExitCode.OK, 1)
        assert process.sum() == before


def test_many_random_flips(tmp_path: Path) -> None:
    print("seed", SEED)
    seeded = random.Random(SEED)
    path = checkpoint(tmp_path)
    with child("private", path) as process:
        before = process.sum()
        start, end = data_start(path), path.stat().st_size - 64
        for _ in range(200):
            flip_in_memory(process.pid, path, seeded.randrange(start, end), seeded.randrange(8))
        found = bitward.verify(path, live=process.pid)
        assert sum(block.flip_count for block in found.files[0].damage) == 200
        assert bitward.repair(path, live=process.pid).exit_code == ExitCode.OK
        assert process.sum() == before


def test_what_the_process_changed_is_left_alone(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    with child("private", path) as process:
        process.ask("scale", "a")
        trained = process.sum()
        process.ask("flip", "b", 4 * 50_000 + 3, 6)
        report = bitward.verify(path, live=process.pid)
        assert (report.verdict, report.files[0].live.changed) == (Verdict.DAMAGED, ("a",))  # type: ignore[union-attr]
        done = bitward.repair(path, live=process.pid)
        assert (done.verdict, done.exit_code, done.repaired) == (Verdict.CHANGED, ExitCode.CHANGED, 1)
        assert process.sum() == trained
        assert bitward.verify(path, live=process.pid).exit_code == ExitCode.CHANGED


def test_several_views_of_one_file(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    with child("both", path) as process:
        before = process.sum()
        process.ask("flip", "2.a", 4 * 1000 + 3, 6)
        report = bitward.verify(path, live=process.pid)
        found = [(file.live.mapping, file.verdict) for file in report.files if file.live]
        assert sorted(found) == [("private", Verdict.DAMAGED), ("private", Verdict.INTACT), ("shared", Verdict.INTACT)]
        assert bitward.repair(path, live=process.pid).exit_code == ExitCode.OK
        assert process.sum() == before


def test_a_window_cuts_blocks(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    with child("window", path) as process:
        before = process.sum()
        (file,) = bitward.verify(path, live=process.pid).files
        assert file.live is not None
        assert (file.verdict, file.live.mapped_bytes, file.live.partial_blocks) == (Verdict.INTACT, 40960, 2)
        process.ask("flip", "window", 5, 6)
        process.ask("flip", "window", 40959, 6)
        report = bitward.verify(path, live=process.pid)
        assert sorted(one.offset for file in report.files for block in file.damage for one in block.flips) == [40965, 81919]
        flip_in_file(path, data_start(path) + 2, 0)  # in a block that is mapped in part, where it is not mapped
        assert len(flips_of(bitward.verify(path, live=process.pid))) == 2
        assert bitward.repair(path, live=process.pid).exit_code == ExitCode.OK
        assert process.sum() == before


@needs_root
def test_a_deleted_file(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    with child("both", path) as process:
        before = process.sum()
        process.ask("flip", "1.b", 4 * 1000 + 3, 6)
        flip_in_file(path, data_start(path) + 4 * 9000 + 3, 5)
        path.unlink()
        report = bitward.verify(live=process.pid)
        assert all(file.live is not None and file.live.deleted for file in report.files)
        assert len(report.files) == 3
        assert bitward.repair(live=process.pid).exit_code == ExitCode.OK
        assert process.sum() == before


@needs_root
def test_a_replaced_file_is_no_damage(tmp_path: Path) -> None:
    """The process goes on with the old file, the sidecar is about the new one: changed, and nothing is written."""
    path = checkpoint(tmp_path)
    with child("private", path) as process:
        before = process.sum()
        write_checkpoint(tmp_path / "new", 8).rename(path)
        bitward.protect(path, force=True)
        report = bitward.verify(path, live=process.pid)
        assert report.exit_code in (ExitCode.CHANGED, ExitCode.NOT_REPAIRABLE)
        assert bitward.repair(path, live=process.pid).repaired == 0
        assert process.sum() == before


@needs_root
def test_a_stranger_cannot_have_a_file_written_to(tmp_path: Path) -> None:
    """Nobody but the process names the file, and somebody else made the sidecar: what root writes must not follow from that."""
    path = checkpoint(tmp_path)
    with child_over_a_flip("shared", path) as (process, before):
        wrong = path.read_bytes()
        os.chown(f"{path}.ward", 65534, 65534)
        done = bitward.repair(live=process.pid)
        assert (done.exit_code, done.repaired) == (ExitCode.NOT_REPAIRABLE, 0)
        assert "name the file to repair it" in done.files[0].message
        assert path.read_bytes() == wrong
        assert bitward.repair(path, live=process.pid).exit_code == ExitCode.OK
        assert process.sum() == before


def test_a_torn_file_under_a_map(tmp_path: Path) -> None:
    """Its last pages would kill the process; looking at them must not harm us, and the repair brings them back."""
    path = checkpoint(tmp_path)
    with child("private", path) as process:
        before = process.sum()
        status = path.stat()
        os.truncate(path, status.st_size - 70_000)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        report = bitward.verify(path, live=process.pid)
        assert report.verdict is Verdict.DAMAGED
        assert bitward.repair(path, live=process.pid).exit_code == ExitCode.OK
        assert process.sum() == before


@needs_root
def test_another_mount_namespace(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    inside = tmp_path / "inside"
    inside.mkdir()
    script = f'mount --bind "{tmp_path}" "{inside}" && mount --make-private "{inside}" && exec "$@"'
    through = ["unshare", "--mount", "sh", "-c", script, "sh"]
    if subprocess.run([*through, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mount namespaces cannot be made here")
    with child("private", inside / path.name, through) as process:
        before = process.sum()
        process.ask("flip", "a", 4 * 1000 + 3, 6)
        found = bitward.verify(live=process.pid)
        assert flips_of(found) == [("a", (2, 0), 30)]
        assert bitward.repair(path, live=process.pid).exit_code == ExitCode.OK
        assert process.sum() == before


def test_a_process_without_checkpoints_cannot_be_told_about(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    lone = write_checkpoint(tmp_path / "lone.safetensors", 3)
    with child("private", lone) as process:
        with pytest.raises(UnreadableError, match="maps no file that has a sidecar"):
            bitward.verify(live=process.pid)
        report = bitward.verify(path, live=process.pid)
        assert (report.exit_code, report.files[0].verdict) == (ExitCode.CANNOT_TELL, Verdict.UNVERIFIABLE)
        assert "does not map it" in report.files[0].message
        assert bitward.verify(lone, live=process.pid).exit_code == ExitCode.CANNOT_TELL
        assert bitward.repair(lone, live=process.pid).exit_code == ExitCode.CANNOT_TELL


def test_a_vanished_process(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    with child("private", path) as process:
        process.end()
        with pytest.raises(ProcessError, match="there is none, or it ended"):
            bitward.verify(path, live=process.pid)
        ended = run_bitward("verify", "--live", str(process.pid), "--json")
        assert ended.code == ExitCode.CANNOT_TELL
        assert ended.document["exit_code"] == ExitCode.CANNOT_TELL


@pytest.mark.parametrize("function", [bitward.verify, bitward.repair])
def test_without_the_right_to_its_memory(tmp_path: Path, function: Callable[..., Any]) -> None:
    """An unprivileged user and a process of root's: a clear error, no verdict."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    path = checkpoint(tmp_path)
    with child("private", path) as process:
        bitward.verify(path, live=process.pid)  # what is loaded on first use is loaded
        told = _as_nobody(lambda: function(path, live=process.pid))
    assert told.startswith(f"ProcessError: process {process.pid}: no right to its memory: run as root")


def test_the_same_user_needs_no_root() -> None:
    """Neither root nor capabilities: map_files stays shut, page maps are open, and memory is, as the process allows it."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else; without it, all other tests here show the same")
    folder = Path(tempfile.mkdtemp(prefix="bitward-live-"))
    try:
        path = checkpoint(folder)
        for one in (folder, path, Path(f"{path}.ward")):
            os.chown(one, 65534, 65534)
        with child("private", path) as process:
            process.ask("flip", "a", 15, 6)
            bitward.repair(path, live=process.pid)  # what is loaded on first use is loaded
        assert _as_nobody(lambda: _heal_own_child(path)) == "it went well"
    finally:
        shutil.rmtree(folder)


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # libraries have threads; what is forked here needs none of them
        return os.fork()


def _heal_own_child(path: Path) -> None:
    ready, done = os.pipe(), os.pipe()
    start = data_start(path)
    whole = np.memmap(path, np.uint8, mode="c")
    pid = _fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: changing users had cleared it
        whole[start + 4003] ^= 0x40
        os.write(ready[1], b"!")
        os.read(done[0], 1)
        os._exit(int(whole.tobytes() != path.read_bytes()))
    os.read(ready[0], 1)
    found = bitward.verify(path, live=pid)
    repaired = bitward.repair(path, live=pid)
    os.write(done[1], b"!")
    status = os.waitpid(pid, 0)[1]
    assert flips_of(found) == [("a", (2, 0), 30)], found
    assert found.files[0].live.own_bytes == 4096, found  # type: ignore[union-attr]
    assert repaired.exit_code == 0, repaired
    assert os.waitstatus_to_exitcode(status) == 0


def _as_nobody(work: Callable[[], object]) -> str:
    """What error some work ends with in a process that gave up its rights."""
    reader, writer = os.pipe()
    pid = _fork()
    if pid == 0:
        told = "it went well"
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            work()
        except BaseException as error:  # noqa: BLE001  # carried to the parent
            told = f"{type(error).__name__}: {error}"
        os.write(writer, told.encode())
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        told = pipe.read()
    os.waitpid(pid, 0)
    return told


def test_text_and_json_name_the_process(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    with child("private", path) as process:
        process.ask("flip", "a", 4 * 12345 + 3, 6)
        text = run_bitward("verify", "--live", str(process.pid))
        assert text.code == ExitCode.REPAIRABLE
        assert f"process {process.pid}" in text.out
        assert f"repair --live {process.pid}" in text.out
        document = run_bitward("verify", "--live", str(process.pid), path, "--json").document
        assert document["files"][0]["live"] | {"addresses": [], "process": "", "own_bytes": 0} == {
            "pid": process.pid,
            "process": "",
            "mapping": "private",
            "addresses": [],
            "mapped_bytes": path.stat().st_size,
            "own_bytes": 0,
            "partial_blocks": 0,
            "changed": [],
            "deleted": False,
        }
        healed = run_bitward("repair", "--live", str(process.pid))
        assert healed.code == 0
        assert "1 bit put right" in healed.out


def test_options_that_do_not_fit(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    assert run_bitward("verify").code == ExitCode.USAGE
    assert run_bitward("repair", "--live", "1", "--from", tmp_path, path).code == ExitCode.USAGE
    assert run_bitward("verify", "--live", "1", "--sidecar-only", path).code == ExitCode.USAGE
    with pytest.raises(InputError, match=r"use bitward\.guard"):
        bitward.verify(path, live=os.getpid())


def test_only_tensors_that_were_asked_for(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    with child("private", path) as process:
        process.ask("flip", "a", 4 * 12345 + 3, 6)
        assert bitward.verify(path, live=process.pid, tensor="b").verdict is Verdict.INTACT
        assert bitward.verify(path, live=process.pid, tensor="a").verdict is Verdict.DAMAGED
        assert bitward.verify(path, live=process.pid, tensor="x").exit_code == ExitCode.CANNOT_TELL


@needs_torch
@pytest.mark.parametrize("how", ["load_file", "torch_mmap"])
def test_pytorch_maps_privately(tmp_path: Path, how: str) -> None:
    path = checkpoint(tmp_path)
    if how == "torch_mmap":
        from safetensors.torch import load_file

        path = tmp_path / "model.pt"
        torch.save(load_file(tmp_path / "model.safetensors"), path)
        bitward.protect(path)
    with child(how, path) as process:
        before = process.sum()
        process.ask("flip", "a", 4 * 12345 + 3, 6)
        _flip_deep(process, path)
        assert process.sum() != before
        report = bitward.verify(path, live=process.pid)
        assert [file.live.mapping for file in report.files if file.live] == ["private"]
        assert len(flips_of(report)) == 2
        assert bitward.repair(path, live=process.pid).exit_code == ExitCode.OK
        assert process.sum() == before
    assert hashlib.sha256(path.read_bytes()).digest()


def _flip_deep(process: Child, path: Path) -> None:
    """A flip in a page that the process has not written to."""
    flip_in_memory(process.pid, path, path.stat().st_size // 2, 3)
