"""A file or directory on this machine as a source of good blocks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from bitward_agent.errors import InputError, SourceError, UnreadableError
from bitward_agent.io import OpenFile, resolve
from bitward_agent.sources import Range
from bitward_agent.sources.copies import SUFFIXES, CopySource
from bitward_agent.sources.limits import Meter


class LocalFile:
    """An open file, read by ranges."""

    def __init__(self, path: str, meter: Meter) -> None:
        self._file, self._meter = OpenFile(path), meter
        self.size: int | None = self._file.state().size

    def close(self) -> None:
        """Close the descriptor."""
        self._file.close()

    def read(self, ranges: Sequence[Range]) -> Iterator[tuple[Range, bytes]]:
        """See ``RangedFile.read``; bad sectors read as zeros, which the leaf will refuse."""
        for low, high in ranges:
            try:
                data = self._file.read(low, high - low)
            except UnreadableError:
                continue
            self._meter.count_request()
            self._meter.count_bytes(len(data))
            if len(data) == high - low:
                yield (low, high), data


class LocalPlace:
    """A file or folder. ``damaged`` is the file that is healed: it is no source for itself."""

    is_local = True

    def __init__(self, path: str, damaged: str, name: str = "") -> None:
        """``name`` is shown instead of the path."""
        self.name, self._damaged = name or path, damaged
        self._path = resolve(path)

    def close(self) -> None:
        """Nothing is held open."""

    def path_of(self, relative: str) -> str:
        """The real path of a file below it."""
        return resolve(os.path.join(self._path, relative)) if relative else self._path

    def is_damaged_one(self, relative: str) -> bool:
        """Whether that is the very file which is to be healed."""
        real = self.path_of(relative)
        return os.path.exists(self._damaged) and os.path.exists(real) and os.path.samefile(real, self._damaged)

    def has(self, relative: str) -> bool:
        """Whether a regular file is there."""
        return os.path.isfile(self.path_of(relative))

    def open(self, relative: str, meter: Meter) -> LocalFile | None:
        """See ``Place.open``."""
        if not self.has(relative) or self.is_damaged_one(relative):
            return None
        try:
            return LocalFile(self.path_of(relative), meter)
        except UnreadableError as error:
            raise SourceError(str(error)) from error

    def names(self, folder: str, meter: Meter) -> list[str]:  # noqa: ARG002 - the protocol's signature
        """See ``Place.names``."""
        try:
            with os.scandir(self.path_of(folder)) as entries:
                return sorted(entry.name for entry in entries if entry.is_file())
        except OSError:
            return []


class LocalSource(CopySource):
    """Blocks of another copy on this machine: a file, or a directory that has it at the same path or by the same name."""

    def __init__(self, path: str, target: str, relative: str | None = None) -> None:
        """``target`` is the file to be healed, ``relative`` its path within its unit, if it is part of one.

        Raises:
            InputError: there is no such path, nothing of the file in it, or it is the very file that is to be healed.
        """
        place = LocalPlace(path, target)
        if not os.path.exists(place.path_of("")):
            raise InputError(f"{path}: no such file or directory")
        name = os.path.basename(target)
        is_folder = os.path.isdir(place.path_of(""))
        if not is_folder and not place.has(""):
            raise InputError(f"{path}: not a regular file")
        names = [relative or name, name] if is_folder else [""]
        found = [one for one in names if place.has(one)]
        if found and place.is_damaged_one(found[0]):
            raise InputError(f"{path}: is the damaged file itself")
        if not found and not has_checkpoints(place, names[0]):
            raise InputError(f"{path}: no {names[0]} in it")
        super().__init__(place, names, name, Meter())


def has_checkpoints(place: LocalPlace, relative: str) -> bool:
    """Whether other checkpoints lie where that one should be, which may hold its tensors."""
    folder = os.path.dirname(relative)
    return relative.lower().endswith(SUFFIXES) and any(name.lower().endswith(SUFFIXES) for name in place.names(folder, Meter()))
