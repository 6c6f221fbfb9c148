"""Hub caches: which links of a snapshot lead to blobs of their own repository, and which files are the hub's own notes.

The layout is that of ``huggingface_hub`` (its guide on the cache system): ``models--ORG--NAME/`` with ``blobs/HASH``,
``snapshots/REVISION/`` whose files are links to blobs, ``refs/`` and ``.no_exist/``; beside the repositories ``.locks/``.
"""

from __future__ import annotations

import os
from itertools import pairwise

from bitward_formats.checksums import is_hub_repository

_NOTES = ("refs", ".no_exist")


def blob_of(link: str) -> str | None:
    """The blob behind a link in a snapshot, or None where it is no such link or leads out of its repository's blobs.

    Args:
        link: path of the link; its folder is a real path. The blob need not be there.
    """
    parts = link.split("/")
    for index in range(2, len(parts) - 1):
        if parts[index] == "snapshots" and is_hub_repository(parts[index - 1]) and os.path.islink(link):
            blob = os.path.realpath(link)
            return blob if os.path.dirname(blob) == "/".join([*parts[:index], "blobs"]) else None
    return None


def name_in_snapshot(path: str) -> str:
    """The real folder and the name of a path that leads to a blob through a snapshot; empty for any other."""
    folder, name = os.path.split(path)
    link = os.path.join(os.path.realpath(folder), name)
    return link if name and blob_of(link) is not None else ""


def is_hub_note(path: str) -> bool:
    """Whether a file is one that the hub keeps for itself, and in whose folder it reads every file it finds."""
    parts = path.split("/")
    return (
        any(is_hub_repository(above) and name in _NOTES for above, name in pairwise(parts))
        or (".locks" in parts and path.endswith(".lock"))
        or (path.endswith(".incomplete") and "blobs" in parts)
    )
