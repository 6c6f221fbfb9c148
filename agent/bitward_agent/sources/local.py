"""A file or directory on this machine as a source of good blocks."""

from __future__ import annotations

import os

from bitward_agent.errors import InputError, UnreadableError
from bitward_agent.io import OpenFile, resolve
from bitward_agent.neighbours import layout_of_file
from bitward_formats.blocks import Block
from bitward_formats.spans import Layout, Role, Span


class LocalSource:
    """Blocks of another copy: at the same offset, or in the tensor of the same name if the copy is laid out differently."""

    def __init__(self, path: str, target: str, relative: str | None = None) -> None:
        """``target`` is the file to be healed, ``relative`` its path within its unit, if it is part of one.

        Raises:
            InputError: there is no such path, or it is the very file that is to be healed.
        """
        self.name = path
        real = resolve(path)
        if os.path.isdir(real):
            inside = [relative] if relative else []
            tried = [os.path.join(real, name) for name in [*inside, os.path.basename(target)]]
            found = [one for one in tried if os.path.isfile(one)]
            if not found:
                raise InputError(f"{path}: no {relative or os.path.basename(target)} in it")
            real = resolve(found[0])
        if not os.path.exists(real):
            raise InputError(f"{path}: no such file or directory")
        if os.path.exists(target) and os.path.samefile(real, target):
            raise InputError(f"{path}: is the damaged file itself")
        self._file = OpenFile(real)
        self._size = self._file.state().size
        self._tensors: dict[str, Span] | None = None

    def close(self) -> None:
        self._file.close()

    def _layout(self) -> Layout | None:
        try:
            return layout_of_file(self._file, self._size)
        except UnreadableError:
            return None

    def candidates(self, block: Block) -> list[bytes]:
        found = []
        if block.end <= self._size:
            found.append(self._read(block.offset, block.length))
        if block.span.role is Role.TENSOR:
            if self._tensors is None:
                layout = self._layout()
                self._tensors = {span.name: span for span in layout.spans if span.role is Role.TENSOR} if layout else {}
            twin = self._tensors.get(block.span.name)
            if twin is not None and twin.length == block.span.length and twin.offset != block.span.offset:
                found.append(self._read(twin.offset + block.offset - block.span.offset, block.length))
        return [data for data in found if len(data) == block.length]

    def _read(self, offset: int, length: int) -> bytes:
        try:
            return self._file.read(offset, length)
        except UnreadableError:
            return b""
