"""The drill: shows that everything comes back, never touches the original, and admits it when something does not."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from bitward.cli.failure import INTERRUPTED
from bitward.drill_copy import files_of
from bitward.drill_faults import faults_for, located
from bitward.inject import InjectedFlip, InjectedRegion, InjectReport
from bitward.sample import write_sample
from bitward_agent.findings import Damage, Flip
from bitward_formats.readers import layout_of
from bitward_formats.spans import OPAQUE_KIND, Layout, Role, Span
from cli.command_line import COMMAND, TIMEOUT_SECONDS, bitward, environment


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_without_a_path_on_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    done = bitward("drill", "--json", TMPDIR=str(tmp_path))
    assert done.code == 0, done.out + done.err
    report = done.document
    assert report["schema"] == "bitward.drill/1"
    assert report["came_back"] == report["drilled"] == len(report["faults"]) == 6
    for fault in report["faults"]:
        assert fault["found"], fault
        assert fault["repaired"], fault
        assert fault["located"] is not False, fault
    (flip,) = report["faults"][0]["first_block"]["flips"]
    assert flip["field"] == "exponent"
    assert os.listdir(tmp_path) == []


def test_the_text_shows_flip_located_repaired(tmp_path: Path) -> None:
    done = bitward("drill", TMPDIR=str(tmp_path))
    assert done.code == 0
    assert done.err == ""
    lines = done.out.splitlines()
    head = next(index for index, line in enumerate(lines) if "found" in line and "located" in line)
    assert lines[head + 1].split()[:6] == ["1", "exponent", "flip", "yes", "yes", "yes"]
    assert "bit" in lines[head + 2]
    assert "(exponent)" in lines[head + 2]
    assert "NO" not in done.out
    assert "6 of 6 faults came back" in done.out


def test_a_file_and_a_directory_are_only_read(small_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy2(small_checkpoint, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    blob = tmp_path / "blob"
    blob.write_bytes(b"abc" * 1000)
    (folder / "linked.bin").symlink_to(blob)
    before = tree(tmp_path)
    for path in (folder, folder / "model.safetensors"):
        done = bitward("drill", path, "--json")
        assert done.code == 0, done.out + done.err
        assert done.document["path"] == str(path)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("size", [1, 100, 5000])
def test_small_files_get_smaller_faults_and_the_rest_is_said_to_be_left_out(tmp_path: Path, size: int) -> None:
    path = tmp_path / "tiny.bin"
    path.write_bytes(hashlib.shake_128(b"x").digest(size))
    done = bitward("drill", path, "--json")
    assert done.code == 0, done.out + done.err
    left_out = [fault for fault in done.document["faults"] if fault["left_out"]]
    assert done.document["drilled"] + len(left_out) == len(done.document["faults"])
    assert left_out
    assert "left out: too small a file" in bitward("drill", path).out


def test_a_missing_path(tmp_path: Path) -> None:
    done = bitward("drill", tmp_path / "nowhere", "--json")
    assert done.code == 3
    assert done.document["schema"] == "bitward.error/1"


def test_zeros_on_zeros_are_no_damage_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "zeros.bin"
    path.write_bytes(bytes(100_000))
    done = bitward("drill", path, "--json")
    assert done.code == 0, done.out + done.err
    assert [fault["name"] for fault in done.document["faults"] if "zero already" in fault["left_out"]] == [
        "12 KiB zeroed",
        "12 KiB zeroed, 1 flip in the sidecar",
    ]
    assert done.document["drilled"] == 4


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_drill_that_is_stopped_leaves_nothing_behind(tmp_path: Path, stop: signal.Signals) -> None:
    model = tmp_path / "model.bin"
    with model.open("wb") as file:
        file.truncate(128 << 20)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    process = subprocess.Popen(
        [*COMMAND, "drill", str(model)], env=environment(TMPDIR=str(temporary)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    limit = time.monotonic() + TIMEOUT_SECONDS
    while not os.listdir(temporary) and time.monotonic() < limit:
        time.sleep(0.001)
    process.send_signal(stop)
    _, told = process.communicate(timeout=TIMEOUT_SECONDS)
    assert (process.returncode, told.strip()) == (INTERRUPTED, "bitward: interrupted")
    assert os.listdir(temporary) == []


def test_the_sample_is_a_valid_checkpoint_and_the_same_for_a_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_sample(tmp_path / name, seed)
    data = [(tmp_path / name).read_bytes() for name in "abc"]
    assert data[0] == data[1] != data[2]
    layout = layout_of(lambda offset, length: data[0][offset : offset + length], len(data[0]), "a.safetensors")
    assert layout.format_name == "safetensors"
    assert {span.dtype for span in layout.spans if span.role is Role.TENSOR} == {"BF16", "F32"}


def test_faults_are_scaled_to_the_file() -> None:
    for size in (0, 1, 31, 32, 4095, 4096, 8192, 524288, 100_000_000):
        faults = faults_for(Layout("opaque", size, (Span(Role.DATA, OPAQUE_KIND, 0, size),) if size else ()))
        assert len(faults) == 6
        for fault in faults:
            if not fault.left_out:
                assert fault.burst_bytes <= size // 8
                assert fault.zero_bytes <= size // 8
                assert fault.flips <= max(1, size // 4096)


def test_pipes_sidecars_and_dangling_links_are_not_copied(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("model.bin", "model.bin.ward", "sub/config.json"):
        (tmp_path / name).write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert sorted(map(str, files_of(tmp_path))) == ["model.bin", "sub/config.json"]


FLIP = Flip("w", (1, 2), 14, "exponent", 5, 4.2e36, 0.0123)
DAMAGE = Damage("w", 0, 0, 65536, True, "parity", "disk", 1, (FLIP,))


def injected(*flips: InjectedFlip, burst: InjectedRegion | None = None) -> InjectReport:
    return InjectReport("s", "m", "m", False, 65536, 1, "all", len(flips), flips, burst, None, True)


def test_located_means_the_very_bits() -> None:
    assert located(injected(InjectedFlip("w", (1, 2), 14, 5)), [DAMAGE])
    assert not located(injected(InjectedFlip("w", (1, 2), 13, 5)), [DAMAGE])
    assert not located(injected(InjectedFlip("w", (1, 3), 14, 5)), [DAMAGE])
    assert not located(injected(InjectedFlip("w", (1, 2), 14, 5)), [])
    assert not located(injected(InjectedFlip("w", (1, 2), 14, 5)), [DAMAGE, DAMAGE])


def test_a_region_is_located_by_its_blocks_and_the_number_of_its_bits() -> None:
    burst = InjectedRegion(4, 36, 1)
    assert located(injected(burst=burst), [DAMAGE])
    assert not located(injected(burst=InjectedRegion(4, 36, 2)), [DAMAGE])
    assert not located(injected(burst=InjectedRegion(70000, 36, 1)), [DAMAGE])
