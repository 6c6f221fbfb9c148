"""The files behind the paths that a user names: one file, or all files of a directory with what its index knows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

from bitward_agent.findings import ExitCode, FileRepair, FileVerification, Verdict
from bitward_agent.hub_cache import name_in_snapshot
from bitward_agent.io import resolve, sidecar_path
from bitward_agent.units import Member, UnitCheck, check_unit
from bitward_formats.frozen import dataclass

PathLike = str | os.PathLike[str]

VERDICT_OF_CODE = {
    ExitCode.OK: Verdict.INTACT,
    ExitCode.REPAIRABLE: Verdict.DAMAGED,
    ExitCode.NOT_REPAIRABLE: Verdict.DAMAGED,
    ExitCode.CANNOT_TELL: Verdict.UNVERIFIABLE,
    ExitCode.CHANGED: Verdict.CHANGED,
}


@dataclass(frozen=True, slots=True)
class Target:
    """One path. ``unit`` is set for a directory;"""

    path: str
    members: tuple[Member, ...]
    unit: UnitCheck | None = None

    def is_missing(self, member: Member) -> bool:
        """Whether the directory's index knows a file that is gone."""
        return self.unit is not None and member in self.unit.missing


def roots_of(target: Target, files: Sequence[FileVerification | FileRepair]) -> dict[str, str]:
    """What each file's sidecar says its root is."""
    return {member.relative: file.root for member, file in zip(target.members, files, strict=True)}


def folder_of(sidecar_dir: PathLike | None) -> str | None:
    """The real path of ``--sidecar-dir``."""
    return None if sidecar_dir is None else resolve(os.fspath(sidecar_dir))


def lone_member(path: str, sidecar_dir: str | None, named: str = "") -> Member:
    """A file that is protected by itself; ``named`` is what the user called it."""
    shown = name_in_snapshot(named)
    return Member(path, os.path.basename(shown or path), sidecar_path(path, sidecar_dir), shown)


def targets(paths: Iterable[PathLike], sidecar_dir: str | None, *, heal: bool = False) -> Iterator[Target]:
    """Each path as a target. Links that the user named are resolved; below a directory none is followed.

    Args:
        heal: write a directory's index anew if it is damaged and can still be read.
    """
    for path in paths:
        name = os.fspath(path)
        real = resolve(name)
        if not os.path.lexists(real):
            # A file that vanished may have left its sidecar; the engine says what of it is there.
            yield Target(real, (lone_member(real, sidecar_dir, name),))
        elif os.path.isdir(real):
            check = check_unit(real, sidecar_dir, heal=heal)
            yield Target(real, (*check.listing.members, *check.missing), check)
        else:
            yield Target(real, (lone_member(real, sidecar_dir, name),))
