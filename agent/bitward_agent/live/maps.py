"""What a process maps: the lines of ``/proc/PID/maps``, gathered into files and into views of them. Parsing only; opens nothing.

Source of the format: proc_pid_maps(5). A path is that of the mount namespace of whoever reads; a file that was deleted or replaced has
`` (deleted)`` behind its path, and a line break in a path is written ``\\012``. Both can also be part of a name, so a path is a hint, and
device and inode decide.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from bitward_agent.errors import ProcessError
from bitward_formats.frozen import dataclass

MAPS_LIMIT_BYTES = 64 << 20
"""Most bytes of a process's maps that are read: several times what the kernel's default limit of 65,530 maps can fill."""
_DELETED = " (deleted)"

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line: addresses ``start .. end`` hold the file's bytes from ``offset`` on. ``device`` is (major, minor)."""

    start: int
    end: int
    shared: bool
    offset: int
    device: tuple[int, int]
    inode: int
    path: str

    @property
    def name(self) -> str:
        """How the line is called in ``/proc/PID/map_files``."""
        return f"{self.start:x}-{self.end:x}"

    @property
    def range(self) -> Range:
        """The bytes of the file that are mapped; the last page may reach beyond the file's end."""
        return self.offset, self.offset + self.end - self.start


@dataclass(frozen=True, slots=True)
class View:
    """One image of a file in memory: byte ``o`` of the file lies at address ``base + o``, as far as a mapping covers it.

    An ``mmap`` call makes one view; ``mprotect`` and the like split it into several lines of the same base.
    """

    base: int
    shared: bool
    mappings: tuple[Mapping, ...]

    @property
    def ranges(self) -> tuple[Range, ...]:
        """The mapped bytes of the file, ascending, touching ranges joined."""
        joined: list[Range] = []
        for low, high in sorted(one.range for one in self.mappings):
            if joined and low <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
            else:
                joined.append((low, high))
        return tuple(joined)


@dataclass(frozen=True, slots=True)
class MappedFile:
    """All views that a process has of one file. ``mapping`` is any of its lines."""

    device: tuple[int, int]
    inode: int
    path: str
    views: tuple[View, ...]

    @property
    def mapping(self) -> Mapping:
        return self.views[0].mappings[0]

    @property
    def names(self) -> tuple[str, ...]:
        """What the file may be called, likeliest first."""
        plain = self.path.removesuffix(_DELETED)
        return tuple(dict.fromkeys((self.path, plain, self.path.replace("\\012", "\n"), plain.replace("\\012", "\n"))))


def parse_maps(data: bytes) -> tuple[Mapping, ...]:
    """The lines of a process's maps that stand for files.

    Raises:
        ProcessError: a line is not what proc_pid_maps(5) says.
    """
    found = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line:
            continue
        try:
            addresses, modes, offset, device, inode, *rest = line.split(None, 5)
            start, end = (int(part, 16) for part in addresses.split(b"-"))
            major, minor = (int(part, 16) for part in device.split(b":"))
            mapping = Mapping(start, end, modes[3:4] == b"s", int(offset, 16), (major, minor), int(inode), os.fsdecode(b"".join(rest)))
        except ValueError:
            raise ProcessError(f"line {number} of the process's maps is not as the kernel writes them") from None
        if mapping.inode and mapping.path.startswith("/") and mapping.end > mapping.start:
            found.append(mapping)
    return tuple(found)


def mapped_files(mappings: Iterable[Mapping]) -> tuple[MappedFile, ...]:
    """Lines gathered by file, and by view; in the order of their first lines."""
    files: dict[tuple[tuple[int, int], int], dict[tuple[int, bool], list[Mapping]]] = {}
    for one in mappings:
        views = files.setdefault((one.device, one.inode), {})
        views.setdefault((one.start - one.offset, one.shared), []).append(one)
    gathered = []
    for (device, inode), views in files.items():
        listed = tuple(View(base, shared, tuple(lines)) for (base, shared), lines in views.items())
        gathered.append(MappedFile(device, inode, listed[0].mappings[0].path, listed))
    return tuple(gathered)
