"""Files and folders as readers see them, straight from bytes or the file system; and the check that every layout must pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bitward_formats.readers.file_view import FileView
from bitward_formats.spans import Layout


def fetcher(data: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, length: data[offset : offset + length]


def fetcher_of(path: Path) -> Callable[[int, int], bytes]:
    def fetch(offset: int, length: int) -> bytes:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    return fetch


class Folder:
    """The files of a folder, as neighbours of each other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        return sorted(path.name for path in self._folder.iterdir() if path.is_file())

    def open(self, name: str) -> FileView | None:
        path = self._folder / name
        return FileView(name, path.stat().st_size, fetcher_of(path), self) if name in self.names() else None


def assert_tiles(layout: Layout) -> None:
    position = 0
    for span in layout.spans:
        assert span.offset == position
        assert span.length >= 0
        assert span.length % span.kind.record_bytes == 0
        position = span.end
    assert position == layout.file_bytes
    names = [span.name for span in layout.spans if span.dtype]
    assert len(set(names)) == len(names)
