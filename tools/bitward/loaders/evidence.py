"""Where the sidecar of a file is that somebody is about to load."""

from __future__ import annotations

import os

from bitward_agent.io import resolve, sidecar_path
from bitward_agent.sidecar_places import sidecar_elsewhere


def find_sidecar(path: str, sidecar_dir: str | None) -> str | None:
    """The sidecar of a file, or None: in ``sidecar_dir``, where that is given, else beside the file itself.

    Links are resolved: in a hub cache it lies beside the blob.
    """
    elsewhere = None if sidecar_dir is None else sidecar_elsewhere(path, sidecar_dir)
    if elsewhere is not None:
        return elsewhere
    beside = sidecar_path(resolve(path))
    return beside if os.path.lexists(beside) else None
