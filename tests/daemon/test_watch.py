"""Hearing of changes, with the real inotify: what is told, what is lost and said to be, what the limits do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bitward_agent.daemon.config import WatchConfig
from bitward_agent.daemon.watch import PathQueue, Watcher

HANG_LIMIT_SECONDS = 20


class Heard:
    """What a watcher told, and waiting for it."""

    def __init__(self, *watches: Path) -> None:
        self.paths: set[str] = set()
        self._came = threading.Condition()
        self.watcher = Watcher([WatchConfig(str(path)) for path in watches], self.put)

    def put(self, path: str) -> None:
        with self._came:
            self.paths.add(path)
            self._came.notify_all()

    def assert_hears(self, *paths: Path) -> None:
        wanted = {str(path) for path in paths}
        with self._came:
            assert self._came.wait_for(lambda: wanted <= self.paths, HANG_LIMIT_SECONDS), wanted - self.paths


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = Path(os.path.realpath(tmp_path)) / "models"
    (found / "deep" / "er").mkdir(parents=True)
    return found


@pytest.fixture
def heard(folder: Path) -> Iterator[Heard]:
    listening = Heard(folder)
    listening.watcher.start()
    assert listening.watcher.limits == ()
    yield listening
    listening.watcher.stop()


def test_written_moved_deleted_with_any_name(heard: Heard, folder: Path) -> None:
    names = ["plain", "with\nnewline", "\udcff\udcfe", "esc\x1b[31m", "deep/er/below"]
    for name in names:
        (folder / name).write_bytes(b"x")
    heard.assert_hears(*(folder / name for name in names))
    os.replace(folder / "plain", folder / "renamed")
    heard.assert_hears(folder / "renamed")
    heard.paths.clear()
    (folder / "renamed").unlink()
    heard.assert_hears(folder / "renamed")


def test_sync_tools_write_beside_and_rename(heard: Heard, folder: Path) -> None:
    for turn in range(3):
        heard.paths.clear()
        (folder / f".model.{turn}").write_bytes(b"new")
        os.replace(folder / f".model.{turn}", folder / "model")
        heard.assert_hears(folder / "model")


def test_folders_moved_in_and_within(heard: Heard, folder: Path) -> None:
    outside = folder.parent / "outside"
    (outside / "sub").mkdir(parents=True)
    (outside / "sub" / "model").write_bytes(b"x")
    shutil.move(outside, folder / "inside")
    heard.assert_hears(folder / "inside")
    heard.paths.clear()
    (folder / "inside" / "sub" / "later").write_bytes(b"x")  # it is watched from now on
    heard.assert_hears(folder / "inside" / "sub" / "later")
    os.rename(folder / "inside", folder / "moved")
    heard.assert_hears(folder / "moved")
    (folder / "moved" / "sub" / "last").write_bytes(b"x")
    heard.assert_hears(folder / "moved" / "sub" / "last")


def test_our_own_files_and_writes_without_closing_are_not_told(heard: Heard, folder: Path) -> None:
    with (folder / "open").open("wb") as file:
        heard.assert_hears(folder / "open")  # created
        heard.paths.clear()
        for _ in range(100):
            file.write(b"x" * 100)
            file.flush()
        for name in ("model.ward-journal", "model.ward-log", ".ward.new", "model.ward-seal"):
            (folder / name).write_bytes(b"x")
        (folder / "last").write_bytes(b"x")
        heard.assert_hears(folder / "last")
        assert heard.paths <= {str(folder / "last")}
    os.replace(folder / ".ward.new", folder / "model.ward")
    heard.assert_hears(folder / "model.ward")  # somebody protected it


def test_one_file_is_watched_alone(folder: Path) -> None:
    (folder / "one").write_bytes(b"x")
    heard = Heard(folder / "one")
    heard.watcher.start()
    (folder / "other").write_bytes(b"x")
    (folder / "new").write_bytes(b"y")
    os.replace(folder / "new", folder / "one")
    heard.assert_hears(folder / "one")
    heard.watcher.stop()
    assert heard.paths == {str(folder / "one")}


def test_removed_and_come_again(heard: Heard, folder: Path) -> None:
    assert heard.watcher.needs_walk()
    assert not heard.watcher.needs_walk()
    shutil.rmtree(folder)
    heard.assert_hears(folder)
    heard.watcher.tend()
    assert "No such file" in heard.watcher.limits[0]
    folder.mkdir()
    heard.watcher.tend()
    assert heard.watcher.limits == ()
    assert heard.watcher.needs_walk()
    (folder / "again").write_bytes(b"x")
    heard.assert_hears(folder / "again")


def test_link_in_its_place_is_not_followed(heard: Heard, folder: Path) -> None:
    os.rename(folder, folder.parent / "elsewhere")
    folder.symlink_to(folder.parent / "elsewhere")
    heard.watcher.tend()
    assert "symbolic link" in heard.watcher.limits[0]
    assert heard.watcher.needs_walk()


def test_links_below_are_not_followed(heard: Heard, folder: Path) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    (folder / "link").symlink_to(outside)
    heard.assert_hears(folder / "link")
    (outside / "secret").write_bytes(b"x")
    (folder / "last").write_bytes(b"x")
    heard.assert_hears(folder / "last")
    assert not any("secret" in path for path in heard.paths)


def test_ten_thousand_files_overflow_a_bounded_queue(folder: Path) -> None:
    queue = PathQueue(1000)
    watcher = Watcher([WatchConfig(str(folder))], queue.put)
    watcher.start()
    watcher.needs_walk()
    for index in range(10_000):
        (folder / f"{index}").touch()
    _until(lambda: len(queue) == 1000)
    _until(queue.take_overflow)
    watcher.stop()
    taken = []
    while (path := queue.take()) is not None:
        taken.append(path)
    assert len(taken) == len(set(taken)) == 1000


def test_queue_keeps_order_and_each_path_once() -> None:
    queue = PathQueue(3)
    for path in "abab":
        queue.put(path)
    assert [queue.take(), queue.take(), queue.take(0.01)] == ["a", "b", None]
    for path in "abcc":
        queue.put(path)
    assert not queue.take_overflow()
    queue.put("d")
    assert queue.take_overflow()
    assert not queue.take_overflow()


def test_kernel_overflow_asks_for_a_walk(heard: Heard, folder: Path) -> None:
    heard.watcher.needs_walk()
    observer = heard.watcher._observer
    assert observer is not None
    group = next(iter(observer.emitters))._inotify  # type: ignore[attr-defined]
    if not hasattr(group, "on_queue_overflow"):
        pytest.skip("this watchdog does not hear of overflows: the daily walk does")
    group.on_queue_overflow()
    assert heard.watcher.needs_walk()
    (folder / "deep" / "after").write_bytes(b"x")
    heard.assert_hears(folder / "deep" / "after")


@pytest.mark.parametrize("limit", [0, 4])
def test_limit_of_watches_is_said(tmp_path: Path, limit: int) -> None:
    folder = Path(os.path.realpath(tmp_path)) / "models"
    for index in range(20):
        (folder / str(index)).mkdir(parents=True)
    code = f"""
from bitward_agent.daemon.config import WatchConfig
from bitward_agent.daemon.watch import Watcher
watcher = Watcher([WatchConfig({str(folder)!r})], print)
watcher.start()
print(watcher.limits)
watcher.stop()
"""
    script = f'echo {limit} > /proc/sys/user/max_inotify_watches && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", script, sys.executable, code],
        capture_output=True,
        check=False,
        text=True,
        timeout=HANG_LIMIT_SECONDS,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    if "unshare" in done.stderr or "cannot create" in done.stderr:
        pytest.skip(f"no user namespaces here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert "fs.inotify.max_user_watches is reached" in done.stdout
    assert "walks find what is new" in done.stdout


def test_no_inotify_at_all_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("bitward_agent.daemon.watch._Observer.__init__", refuse)
    heard = Heard(folder)
    heard.watcher.start()
    assert "nothing is watched: fs.inotify.max_user_instances is reached" in heard.watcher.limits[0]
    heard.watcher.stop()


def _until(is_so: Callable[[], bool]) -> None:
    limit = time.monotonic() + HANG_LIMIT_SECONDS
    while not is_so():
        assert time.monotonic() < limit
        time.sleep(0.01)
