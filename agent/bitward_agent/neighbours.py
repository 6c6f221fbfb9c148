"""The files beside one that is being laid out: formats that split themselves keep an index beside their data.

Only regular files of the very folder: a name with a folder in it, a link, a device or a FIFO is not there. What a file names to be opened
is hostile input, so the number of open files is bounded, and all are closed with the layout.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

from bitward_agent.errors import BitwardError
from bitward_agent.io import DISK, Disk, OpenFile
from bitward_formats.readers import layout_of
from bitward_formats.readers.file_view import FileView
from bitward_formats.spans import Layout

OPEN_LIMIT = 256
"""Most files that are open beside one; real formats need one index, or a few dozen files of external data."""
NAMES_LIMIT = 1 << 16
"""Most names of a folder that are listed."""


class FolderNeighbours:
    """The regular files of the folder of ``path``, opened when they are asked for; use it as a context.

    A file is as long as it was when it was opened: one that grows later ends there, one that shrinks gives fewer bytes.
    """

    def __init__(self, path: str, disk: Disk = DISK) -> None:
        """``path`` is what ``io.resolve`` gave, or lies below it."""
        self._folder = os.path.dirname(path) or "."
        self._disk = disk
        self._open: dict[str, tuple[OpenFile, FileView]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close what was opened; views of it are no longer valid."""
        for file, _ in self._open.values():
            file.close()
        self._open.clear()

    def names(self) -> list[str]:
        """Names of the regular files, sorted; none where the folder cannot be listed or has too many."""
        found: list[str] = []
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    if entry.is_file(follow_symlinks=False):
                        found.append(entry.name)
                    if len(found) > NAMES_LIMIT:
                        return []
        except OSError:
            return []
        return sorted(found)

    def open(self, name: str) -> FileView | None:
        """A file by its name, or None: not there, not regular, not readable, or one too many."""
        if name in self._open:
            return self._open[name][1]
        if name in ("", ".", "..") or "/" in name or "\0" in name or len(self._open) >= OPEN_LIMIT:
            return None
        try:
            file = OpenFile(os.path.join(self._folder, name), disk=self._disk)
        except (BitwardError, UnicodeEncodeError):
            return None
        try:
            size = file.state().size
        except OSError:
            file.close()
            return None

        def fetch(offset: int, length: int) -> bytes:
            return file.read(offset, max(0, min(length, size - offset)))

        view = FileView(file.path, size, fetch, self)
        self._open[name] = (file, view)
        return view


def layout_of_file(file: OpenFile, file_bytes: int) -> Layout:
    """The layout of an open file of ``file_bytes``, read with the files beside it.

    Raises:
        UnreadableError: what the reader needs cannot be read.
    """
    with FolderNeighbours(file.path, file.disk) as neighbours:
        return layout_of(file.read, file_bytes, file.path, neighbours)
