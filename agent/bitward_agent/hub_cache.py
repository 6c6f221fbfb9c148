"""Hub caches: which links of a snapshot lead to blobs of their own repository, and which files are the hub's own notes.

The layout is that of ``huggingface_hub`` (its guide on the cache system): ``models--ORG--NAME/`` with ``blobs/HASH``,
``snapshots/REVISION/`` whose files are links to blobs, ``refs/``, ``trees/`` and ``.no_exist/``; beside the repositories ``.locks/`` and
``blobs/``, where files that came through Xet may lie for all repositories (its module ``_shared_blobs``).
"""

from __future__ import annotations

import os
import re
import stat
from itertools import pairwise

from bitward_formats.checksums import is_hub_repository

_NOTES = ("refs", ".no_exist", "trees")
_SHARED_MARKER = ".huggingface-shared-blobs"
_SHARED_LAYOUT = b"1\n"
_XET_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)


def blob_of(link: str) -> str | None:
    """The file behind a link in a snapshot or a repository's blobs, or None where it is no such link or leads anywhere else.

    Where a file came through Xet, a repository's blob may itself be a link into the cache's shared store: that is followed too.

    Args:
        link: path of the link; its folder is a real path. The blob need not be there.
    """
    parts = link.split("/")
    for index in range(2, len(parts) - 1):
        if not is_hub_repository(parts[index - 1]) or not os.path.islink(link):
            continue
        root, repository = "/".join(parts[: index - 1]), "/".join(parts[:index])
        if parts[index] == "blobs" and index == len(parts) - 2:
            return shared_payload(link, root)
        if parts[index] == "snapshots":
            target = os.path.join(os.path.dirname(link), os.readlink(link))
            folder, name = os.path.realpath(os.path.dirname(target)), os.path.basename(target)
            if folder != f"{repository}/blobs" or name in ("", ".", ".."):
                return None
            blob = f"{folder}/{name}"
            return shared_payload(blob, root) if os.path.islink(blob) else blob
    return None


def named_blob(link: str) -> str:
    """The repository's own name of the blob behind a link that :func:`blob_of` follows: its digest, wherever its bytes lie."""
    target = os.path.join(os.path.dirname(link), os.readlink(link))
    in_snapshot = os.path.join(os.path.realpath(os.path.dirname(target)), os.path.basename(target))
    return in_snapshot if "/snapshots/" in link else link


def shared_payload(blob: str, root: str) -> str | None:
    """The file in the cache's shared store to which a repository's blob leads, or None where it leads anywhere else.

    Args:
        blob: path of the blob, a link; its folder is a real path.
        root: the cache's real folder.
    """
    store = os.path.join(root, "blobs")
    try:
        target = os.path.join(os.path.dirname(blob), os.readlink(blob))
        if not stat.S_ISREG(os.lstat(os.path.join(store, _SHARED_MARKER)).st_mode):
            return None
        with open(os.path.join(store, _SHARED_MARKER), "rb") as marker:
            if marker.read(len(_SHARED_LAYOUT) + 1) != _SHARED_LAYOUT:
                return None
        name = os.path.basename(target)
        payload = os.path.join(store, name[:2], name)
        real = os.path.join(os.path.realpath(os.path.dirname(target)), name)
        if not _XET_HASH.fullmatch(name) or real != payload or not stat.S_ISREG(os.lstat(payload).st_mode):
            return None
    except OSError:
        return None
    return payload


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
