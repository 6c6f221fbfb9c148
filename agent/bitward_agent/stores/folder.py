"""A folder of this machine as a store: what is no regular file is left out, and no link is followed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from bitward_agent.errors import SourceError, SourceMovedError
from bitward_agent.io import OpenFile, resolve
from bitward_agent.sources.limits import Meter
from bitward_agent.stores import Entry, ObjectState, Unlisted, order_of


class FolderStore:
    """A folder, by its path. Keys are paths."""

    def __init__(self, path: str) -> None:
        self._root = resolve(path)
        self.name = self.identity = self._root

    def close(self) -> None:
        """Nothing is held open."""

    def shown(self, key: str) -> str:
        return key

    def entries(self) -> Iterator[Entry | Unlisted]:
        """See ``Store.entries``."""
        return self._walk(self._root)

    def entries_below(self, folder: str) -> Iterator[Entry | Unlisted]:
        """See ``Store.entries_below``."""
        return self._walk(folder.rstrip("/"))

    def _walk(self, top: str) -> Iterator[Entry | Unlisted]:
        try:
            open_folders = [iter(_folder(top))]
        except OSError as error:
            raise SourceError(f"{top}: cannot be listed: {error.strerror}") from None
        while open_folders:
            found = next(open_folders[-1], None)
            if found is None:
                open_folders.pop()
                continue
            path, is_folder = found
            if is_folder:
                try:
                    open_folders.append(iter(_folder(path)))
                except OSError as error:
                    yield Unlisted(path, error.strerror or str(error))
                continue
            try:
                state = self.state(path)
            except SourceError as error:
                yield Unlisted(path, str(error))
                continue
            if state is not None:
                yield Entry(path, state)

    def state(self, key: str) -> ObjectState | None:
        """See ``Store.state``."""
        try:
            found = os.lstat(key)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise SourceError(f"{key}: cannot be looked at: {error.strerror}") from None
        if not stat.S_ISREG(found.st_mode):
            return None
        return ObjectState(found.st_size, f"{found.st_dev:x}:{found.st_ino:x}:{found.st_ctime_ns:x}", found.st_mtime_ns)

    def open(self, key: str, state: ObjectState, meter: Meter, ahead: int) -> OpenFile:  # noqa: ARG002 - a disk reads ahead by itself
        """See ``Store.open``."""
        if self.state(key) != state:
            raise SourceMovedError("it was exchanged or removed while it was read")
        return OpenFile(key)


def _folder(path: str) -> list[tuple[str, bool]]:
    """(path, whether it is a folder) of a folder's regular files and folders, in order: folders as if their names ended with a slash."""
    with os.scandir(path) as entries:
        found = [
            (entry.path, entry.is_dir(follow_symlinks=False))
            for entry in entries
            if entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False)
        ]
    return sorted(found, key=lambda one: order_of(f"{one[0]}/" if one[1] else one[0]))
