"""The files beside one that is laid out: what may be opened, and what is not there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from bitward_agent import neighbours
from bitward_agent.io import Disk
from bitward_agent.neighbours import FolderNeighbours


class CountingDisk(Disk):
    """Knows which descriptors are open, and can fail to tell a file's size."""

    def __init__(self) -> None:
        self.opened: set[int] = set()
        self.fails_after: int | None = None

    def open(self, path: str | os.PathLike[str], flags: int, mode: int = 0o666, *, dir_fd: int | None = None) -> int:
        fd = super().open(path, flags, mode, dir_fd=dir_fd)
        self.opened.add(fd)
        return fd

    def close(self, fd: int) -> None:
        super().close(fd)
        self.opened.remove(fd)

    def stat(self, fd: int) -> os.stat_result:
        if self.fails_after is not None:
            self.fails_after -= 1
            if self.fails_after < 0:
                raise OSError(errno.EIO, "no answer")
        return super().stat(fd)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a checkpoint, an index beside it, and everything that must not be opened."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    inside = tmp_path / "inside"
    (inside / "below").mkdir(parents=True)
    (inside / "below" / "deep").write_bytes(b"deep")
    (inside / "model.bin").write_bytes(b"model")
    (inside / ".metadata").write_bytes(b"metadata")
    (inside / "link").symlink_to(outside / "secret")
    (inside / "near").symlink_to(inside / "model.bin")
    os.mkfifo(inside / "fifo")
    return inside


def test_regular_files_are_there_and_closed_at_the_end(folder: Path) -> None:
    disk = CountingDisk()
    with FolderNeighbours(str(folder / "model.bin"), disk) as beside:
        assert beside.names() == [".metadata", "model.bin"]
        view = beside.open(".metadata")
        assert view is not None
        assert (view.size, view.fetch(0, 100), view.fetch(4, 2), view.fetch(8, 9)) == (8, b"metadata", b"da", b"")
        assert beside.open(".metadata") is view
        assert view.neighbours is beside
        assert disk.opened
    assert not disk.opened


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "below",
        "below/deep",
        "../outside/secret",
        "/etc/hostname",
        "link",
        "near",
        "fifo",
        "missing",
        "a\0b",
        "\ud800",
        "x" * 300,
    ],
)
def test_what_is_not_there(folder: Path, name: str) -> None:
    disk = CountingDisk()
    with FolderNeighbours(str(folder / "model.bin"), disk) as beside:
        assert beside.open(name) is None
        assert not disk.opened


def test_a_link_in_the_way_to_the_folder_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(folder)
    with FolderNeighbours(str(tmp_path / "alias" / "model.bin")) as beside:
        assert beside.open(".metadata") is None


def test_a_file_that_grows_or_shrinks_or_vanishes(folder: Path) -> None:
    with FolderNeighbours(str(folder / "model.bin")) as beside:
        view = beside.open(".metadata")
        assert view is not None
        (folder / ".metadata").write_bytes(b"metadata and more")
        assert view.fetch(0, 100) == b"metadata"
        (folder / ".metadata").write_bytes(b"meta")
        assert view.fetch(0, 8) == b"meta"
        assert view.fetch(6, 2) == b""
        (folder / ".metadata").unlink()
        assert view.fetch(0, 8) == b"meta"


def test_a_folder_that_vanished(folder: Path) -> None:
    with FolderNeighbours(str(folder / "gone" / "model.bin")) as beside:
        assert beside.names() == []
        assert beside.open("model.bin") is None


@pytest.mark.parametrize("answers", [0, 1])
def test_a_file_whose_size_cannot_be_told(folder: Path, answers: int) -> None:
    disk = CountingDisk()
    with FolderNeighbours(str(folder / "model.bin"), disk) as beside:
        disk.fails_after = answers
        assert beside.open(".metadata") is None
        assert not disk.opened


def test_limits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "OPEN_LIMIT", 1)
    monkeypatch.setattr(neighbours, "NAMES_LIMIT", 1)
    with FolderNeighbours(str(folder / "model.bin")) as beside:
        assert beside.names() == []
        assert beside.open(".metadata") is not None
        assert beside.open("model.bin") is None
        assert beside.open(".metadata") is not None
