"""What ``verify --policy`` verifies: paths as a pipeline has them (staged files, a checkout) turned into files and directories.

A sidecar stands for its file, an index for its directory. With ``all`` whatever else is named must be protected; with ``protected`` it is
left out, and of a directory only what has sidecars is verified.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from enum import StrEnum

from bitward.targets import PathLike
from bitward_agent.errors import UnreadableError
from bitward_formats.unit_index import UNIT_INDEX_NAME

WARD = ".ward"
NOT_WALKED = frozenset({".git", ".hg", ".svn"})
"""Folders of version control: their files are not the checkout's."""


class Policy(StrEnum):
    """``ALL``: what is named must be protected. ``PROTECTED``: only what is."""

    ALL = "all"
    PROTECTED = "protected"


def chosen(paths: Sequence[PathLike], policy: Policy) -> list[str]:
    """The files and directories to verify, each once, in the order in which they were named.

    Raises:
        UnreadableError: a directory cannot be listed.
    """
    found: dict[str, None] = {}
    for given in paths:
        path = os.fspath(given)
        if os.path.isdir(path):
            found |= dict.fromkeys([path] if policy is Policy.ALL or _has_index(path) else _protected_below(path))
            continue
        subject = _subject(path)
        if policy is Policy.ALL or subject != path or _is_protected(path) or not os.path.lexists(path):
            found[subject] = None
    return _without_members(list(found))


def _subject(path: str) -> str:
    """The file or directory that a sidecar or index is about; any other path itself."""
    folder, name = os.path.split(path)
    if name == UNIT_INDEX_NAME:
        return folder or "."
    return path.removesuffix(WARD) if name.endswith(WARD) and name != WARD else path


def _is_protected(path: str) -> bool:
    """Whether a sidecar lies beside a file, or beside what a link leads to, as in a hub cache."""
    return os.path.lexists(path + WARD) or os.path.lexists(os.path.realpath(path) + WARD)


def _has_index(folder: str) -> bool:
    return os.path.lexists(os.path.join(folder, UNIT_INDEX_NAME))


def _protected_below(top: str) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise UnreadableError(f"{error.filename}: cannot list: {error.strerror}") from error

    for folder, folders, names in os.walk(top, onerror=fail):
        if UNIT_INDEX_NAME in names:
            folders.clear()  # the directory is one unit, with all that is below it
            yield folder
            continue
        folders[:] = sorted(name for name in folders if name not in NOT_WALKED)
        yield from (os.path.join(folder, name.removesuffix(WARD)) for name in sorted(names) if name.endswith(WARD) and name != WARD)


def _without_members(paths: list[str]) -> list[str]:
    """Without what lies in a directory that is verified as a whole anyway."""
    folders = {os.path.abspath(path) for path in paths if os.path.isdir(path)}
    return [path for path in paths if not any(above in folders for above in _above(os.path.abspath(path)))]


def _above(path: str) -> Iterator[str]:
    parent = os.path.dirname(path)
    while parent != path:
        yield parent
        path, parent = parent, os.path.dirname(parent)
