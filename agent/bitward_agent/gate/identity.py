"""Which file it is and whether it was touched: what a verdict is remembered under, and when such a memory may be trusted. Pure.

A file that was written to gets a new modification time and a new change time (ctime); ``utime`` can restore the former, and moves the
latter (inode(7), "Timestamp fields"). So equal identities mean that nobody wrote through the file system. They say nothing about bits that
flip underneath: those move no time stamp, which is why trust has an age.

After a crash even that is not sure: data may have reached the disk, and the time that tells of it not (fdatasync(2), mount(8) on
``lazytime``). So nothing that was learned before this boot is trusted.

Time stamps advance in steps. A write in the same step as the one before it leaves no trace, so a verdict about a file that was touched
within one step of being read is not remembered; git calls such entries of its index racily clean (Documentation/technical/racy-git.txt).
"""

from __future__ import annotations

import os

from bitward_formats.frozen import dataclass

NANOSECONDS = 1_000_000_000
FINE_STEP_NS = 100_000_000
"""More than a tick of the kernel's coarse clock (10 ms at 100 Hz), which is what stamps files."""
COARSE_STEP_NS = 2_100_000_000
"""Where a time has no fraction the file system may keep whole seconds (ext3, HFS+) or every second one (FAT)."""


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Device, inode, size in bytes, times of modification and of change in ns since the epoch."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @property
    def touched_ns(self) -> int:
        """When it was last touched, as far as its times tell."""
        return max(self.mtime_ns, self.ctime_ns)

    @property
    def step_ns(self) -> int:
        """How far apart two writes must be to be sure of different times."""
        return FINE_STEP_NS if self.ctime_ns % NANOSECONDS else COARSE_STEP_NS


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in time by two clocks: the wall's (ns since the epoch), and the one that runs since this boot and that nobody can set."""

    wall_ns: int
    boot: str
    since_boot_ns: int


@dataclass(frozen=True, slots=True)
class Remembered:
    """A verdict ``intact``: of which file, by which sidecar with which root (hexadecimal), and when its reading began."""

    file: FileIdentity
    sidecar: FileIdentity
    root: str
    began: Moment


def identity_of(found: os.stat_result) -> FileIdentity:
    """The identity in what ``stat`` gave."""
    return FileIdentity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def why_not_remembered(file: FileIdentity, sidecar: FileIdentity, began: Moment) -> str:
    """Why a verdict must not be remembered, or ``""``: the file or its sidecar was touched too shortly before it was read."""
    for what, one in (("file", file), ("sidecar", sidecar)):
        if one.touched_ns + one.step_ns > began.wall_ns:
            return f"the {what} was touched just before it was read, or its times lie in the future"
    return ""


def why_not_trusted(kept: Remembered, file: FileIdentity, sidecar: FileIdentity, now: Moment, max_age_seconds: float) -> str:
    """Why a remembered verdict says nothing about a file as it is now, or ``""`` if it may be trusted."""
    if kept.file != file:
        return "the file was touched since"
    if kept.sidecar != sidecar:
        return "the sidecar was touched since"
    if why_not_remembered(kept.file, kept.sidecar, kept.began):
        return "it was read within a time stamp's step of a write"
    if not now.boot or kept.began.boot != now.boot:
        return "the machine was started since"
    age_ns, since_boot_ns = now.wall_ns - kept.began.wall_ns, now.since_boot_ns - kept.began.since_boot_ns
    if age_ns < 0 or since_boot_ns < 0:
        return "the clock was set back"
    if max(age_ns, since_boot_ns) > max_age_seconds * NANOSECONDS:
        return "it is too old"
    return ""
