"""A small ext4 on a loop device, whose image can be changed beneath the mounted file system: then page cache and disk disagree."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


def drop_from_cache(path: Path) -> None:
    """Make the kernel forget a file's pages."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


class LoopExt4:
    """``folder`` is where it is mounted, ``image`` the file that is its disk."""

    def __init__(self, image: Path, folder: Path) -> None:
        self.image, self.folder = image, folder

    def flip_beneath(self, path: Path, offset: int, mask: int = 0x40) -> None:
        """Flip bits of one byte of a file on the disk alone. The 512 bytes around it must be unlike any others on it."""
        os.sync()
        low = offset // 512 * 512
        with path.open("rb") as file:
            file.seek(low)
            needle = file.read(512)
        at = self._find(needle)
        with self.image.open("r+b") as image:
            image.seek(at + offset - low)
            byte = image.read(1)[0]
            image.seek(at + offset - low)
            image.write(bytes([byte ^ mask]))
        self._places = {**getattr(self, "_places", {}), (path, offset): at + offset - low}

    def flip_back(self, path: Path, offset: int, mask: int = 0x40) -> None:
        """Undo a flip beneath, wherever the cache is."""
        at = self._places[path, offset]
        with self.image.open("r+b") as image:
            image.seek(at)
            byte = image.read(1)[0]
            image.seek(at)
            image.write(bytes([byte ^ mask]))

    def _find(self, needle: bytes) -> int:
        data = self.image.read_bytes()
        at = data.find(needle)
        assert at >= 0
        assert data.find(needle, at + 1) < 0
        return at


@contextlib.contextmanager
def mounted_ext4(base: Path, megabytes: int = 32) -> Iterator[LoopExt4]:
    """Make and mount one below ``base``; the test is skipped where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    image, folder = base / "disk.img", base / "mnt"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    try:
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", str(image)], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no loop mounts here: {error}")
    try:
        yield LoopExt4(image, folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)
