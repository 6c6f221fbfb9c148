"""Whether writers are done: with real writers, in processes of their own."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bitward_agent.daemon.facts import Expectation
from bitward_agent.daemon.quiet import REMEMBERED_PATHS, QuietFiles, expected, open_writers

SECOND = 1_000_000_000
NOW = 1_800_000_000 * SECOND


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model\n.bin"
    path.write_bytes(bytes(mmap.PAGESIZE))
    return path


@contextmanager
def holder(path: Path, code: str) -> Iterator[int]:
    """A process that runs ``code`` on the file and holds what it has until it is told to end."""
    text = f"import mmap, os, sys\npath = {os.fspath(path)!r}\n{code}\nprint('ready', flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        yield process.pid
        process.stdin.close()


def writers(path: Path) -> tuple[int, ...]:
    state = path.stat()
    return open_writers(state.st_dev, state.st_ino)


WRITERS = {
    "write": "f = open(path, 'ab')",
    "read and write": "f = open(path, 'r+b')",
    "mapped, descriptor closed": "f = open(path, 'r+b'); m = mmap.mmap(f.fileno(), 0); f.close()",
}
READERS = {
    "read": "f = open(path, 'rb')",
    "mapped for reading": "f = open(path, 'rb'); m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ); f.close()",
    "mapped privately": "f = open(path, 'rb'); m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY); f.close()",
    "path only": "f = os.open(path, os.O_PATH)",
}


@pytest.mark.parametrize("way", WRITERS)
def test_open_writers_are_seen(model: Path, way: str) -> None:
    with holder(model, WRITERS[way]) as number:
        assert writers(model) == (number,)
        files = QuietFiles()
        files.look(str(model), NOW)
        found = files.look(str(model), NOW + 3 * SECOND)
        assert not found.is_quiet
        assert str(number) in found.reason
    assert writers(model) == ()


@pytest.mark.parametrize("way", READERS)
def test_readers_are_no_writers(model: Path, way: str) -> None:
    with holder(model, READERS[way]):
        assert writers(model) == ()


def test_own_process_is_left_out(model: Path) -> None:
    with model.open("r+b"):
        assert writers(model) == ()


def test_a_writer_who_never_closes_is_not_waited_for_for_ever(model: Path) -> None:
    files = QuietFiles(patience_seconds=100)
    with holder(model, WRITERS["write"]):
        now, looks = NOW, 0
        while not (found := files.look(str(model), now)).is_quiet:
            assert found.again_ns > now
            now, looks = found.again_ns, looks + 1
    assert now == NOW + 100 * SECOND
    assert looks < 20


def test_quiet_after_two_seconds_without_a_change(model: Path) -> None:
    files = QuietFiles()
    assert files.look(str(model), NOW).again_ns == NOW + 2 * SECOND
    assert not files.look(str(model), NOW + SECOND).is_quiet
    assert files.look(str(model), NOW + 2 * SECOND).is_quiet
    assert len(files) == 0


def test_rewritten_every_fifth_of_a_second_is_never_quiet_until_it_ends(model: Path) -> None:
    files = QuietFiles()
    for turn in range(50):
        model.write_bytes(bytes([turn]) * 100)
        os.utime(model, ns=(0, turn))
        assert not files.look(str(model), NOW + turn * SECOND // 5).is_quiet
    assert not files.look(str(model), NOW + 11 * SECOND).is_quiet
    assert files.look(str(model), NOW + 12 * SECOND).is_quiet


@pytest.mark.parametrize("change", ["size", "time", "file"])
def test_any_change_begins_anew(model: Path, change: str) -> None:
    files = QuietFiles()
    files.look(str(model), NOW)
    state = model.stat()
    match change:
        case "size":
            with model.open("ab") as file:
                file.write(b"x")
            os.utime(model, ns=(state.st_atime_ns, state.st_mtime_ns))
        case "time":
            os.utime(model, ns=(1, 1))
        case "file":
            (model.parent / "new").write_bytes(model.read_bytes())
            os.utime(model.parent / "new", ns=(state.st_atime_ns, state.st_mtime_ns))
            os.replace(model.parent / "new", model)
    assert not files.look(str(model), NOW + 2 * SECOND).is_quiet
    assert files.look(str(model), NOW + 4 * SECOND).is_quiet


def test_one_look_at_all_processes_serves_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    monkeypatch.setattr("bitward_agent.daemon.quiet.all_writers", lambda proc: looks.append(proc) or {})
    files, paths = QuietFiles(), [tmp_path / str(index) for index in range(1000)]
    for path in paths:
        path.touch()
        files.look(str(path), NOW)
    assert all(files.look(str(path), NOW + 2 * SECOND + index).is_quiet for index, path in enumerate(paths))
    assert len(looks) == 1


def test_gone(model: Path) -> None:
    files = QuietFiles()
    files.look(str(model), NOW)
    model.unlink()
    assert files.look(str(model), NOW + 2 * SECOND).is_gone
    assert len(files) == 0


def test_announced_rewrites_are_waited_for(model: Path) -> None:
    files, until = QuietFiles(), NOW + 600 * SECOND
    announced = [Expectation(str(model.parent), until), Expectation(str(model), NOW + SECOND)]
    found = files.look(str(model), NOW, announced)
    assert (found.is_quiet, found.again_ns) == (False, until)
    files.look(str(model), until, announced)
    assert files.look(str(model), until + 2 * SECOND, announced).is_quiet
    assert expected("/m/ab", NOW, [Expectation("/m/a", until)]) is None


def test_memory_is_bounded(model: Path) -> None:
    files = QuietFiles()
    files._seen = dict.fromkeys(map(str, range(REMEMBERED_PATHS)))  # type: ignore[arg-type]
    files.look(str(model), NOW)
    assert len(files) == REMEMBERED_PATHS


def test_a_clock_set_back_begins_anew(model: Path) -> None:
    files = QuietFiles()
    files.look(str(model), NOW)
    assert not files.look(str(model), NOW - 1000 * SECOND).is_quiet
    assert files.look(str(model), NOW - 998 * SECOND).is_quiet
