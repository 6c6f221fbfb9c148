"""What the Hugging Face hub says of a revision's files: names, sizes, digests. Three forms, all hostile.

Forms, as ``huggingface_hub`` 2.4 sends for and writes them (``HfApi.list_repo_tree``, ``RepoFile``, ``_tree_cache``):

- a page of ``/api/{models|datasets|…}/REPO/tree/REVISION?recursive=True``: a list of ``{"type": "file", "path", "size", "oid", "lfs":
  {"oid", "size", "pointerSize"}, "xetHash"}``; ``oid`` is the git blob id, ``lfs.oid`` the SHA-256 of a file in LFS or Xet;
- ``trees/COMMIT.json`` in a repository's folder of the cache: ``{"format_version": 1, "files": {PATH: {"size", "blob_id", "lfs_sha256",
  "lfs_size", "xet_hash"}}}``;
- ``/api/…/revision/REVISION``, of which only ``sha`` counts.

A blob's name in the cache is the SHA-256 where a file is in LFS or Xet, else the git blob id. The Xet hash names a file in the chunk store;
it is the root of a tree over chunks, not a digest of the bytes, so it vouches for nothing here.
"""

from __future__ import annotations

import json
import re
from typing import Any

from bitward_formats.checksums import Part, etag_part
from bitward_formats.errors import HubListingError
from bitward_formats.frozen import dataclass

LISTING_LIMIT_BYTES = 16 << 20
"""Longest page of a listing, or listing in a cache, that is read."""
FILES_LIMIT = 100_000
"""Most files of one revision."""
PATH_LIMIT_BYTES = 4096
NAME_LIMIT_BYTES = 255
SIZE_LIMIT_BYTES = 1 << 50

_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_GIT_BLOB = re.compile(r"[0-9a-f]{40}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a revision. ``etag`` is its blob's name, ``part`` what that says of its bytes, ``size`` its length in bytes.

    ``refusal`` says why its path must not be used as a path, and is empty where it may.
    """

    path: str
    size: int
    etag: str
    part: Part
    in_lfs: bool = False
    refusal: str = ""


def is_commit(text: str) -> bool:
    """Whether a text is the name of a commit."""
    return _COMMIT.fullmatch(text) is not None


def path_refusal(path: str) -> str:
    """Why a file's name must not be a path below a folder; empty where it may. Windows' rules count too, as in the hub's library."""
    parts = path.replace("\\", "/").split("/")
    if ".." in parts:
        return "it leads out of its folder"
    if path.startswith(("/", "\\")) or _DRIVE.match(path):
        return "it is absolute"
    if not path or "" in parts or "." in parts:
        return "it has an empty part"
    if any(ord(one) < 32 or 0xD800 <= ord(one) < 0xE000 for one in path):
        return "it has a control character"
    if len(path.encode()) > PATH_LIMIT_BYTES or any(len(part.encode()) > NAME_LIMIT_BYTES for part in parts):
        return "it is too long"
    return ""


def read_tree_page(data: bytes) -> tuple[HubFile, ...]:
    """The files of one page of a listing; folders are left out.

    Raises:
        HubListingError: it has another form, or a file's size or digest is none.
    """
    entries = _json(data)
    if not isinstance(entries, list):
        raise HubListingError("the listing is no list")
    found = []
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("type") not in ("file", "directory"):
            raise HubListingError("an entry of the listing is no file and no folder")
        if entry["type"] == "file":
            lfs = entry.get("lfs")
            if lfs is not None and not isinstance(lfs, dict):
                raise HubListingError("an entry's LFS part has another form")
            sha256, size = (None, entry.get("size")) if lfs is None else (lfs.get("oid"), lfs.get("size"))
            found.append(_file(entry.get("path"), size, entry.get("oid"), sha256))
    return tuple(found)


def read_tree_cache(data: bytes) -> dict[str, HubFile]:
    """The files of a listing that ``huggingface_hub`` keeps in its cache, by path. Raises HubListingError."""
    document = _json(data)
    files = document.get("files") if isinstance(document, dict) else None
    if not isinstance(files, dict) or document.get("format_version") != 1:
        raise HubListingError("the listing in the cache has another form")
    if len(files) > FILES_LIMIT:
        raise HubListingError(f"the listing has more than {FILES_LIMIT:,} files")
    found = {}
    for path, entry in files.items():
        if not isinstance(entry, dict):
            raise HubListingError("an entry of the listing in the cache has another form")
        sha256 = entry.get("lfs_sha256")
        found[path] = _file(path, entry.get("size") if sha256 is None else entry.get("lfs_size"), entry.get("blob_id"), sha256)
    return found


def read_revision(data: bytes) -> str:
    """The commit of a revision. Raises HubListingError."""
    document = _json(data)
    commit = document.get("sha") if isinstance(document, dict) else None
    if not isinstance(commit, str) or not is_commit(commit):
        raise HubListingError("the answer names no commit")
    return commit


def _json(data: bytes) -> Any:
    if len(data) > LISTING_LIMIT_BYTES:
        raise HubListingError(f"more than {LISTING_LIMIT_BYTES >> 20} MiB of listing")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise HubListingError("the answer is no JSON") from None


def _file(path: Any, size: Any, git_blob: Any, sha256: Any) -> HubFile:
    if not isinstance(path, str):
        raise HubListingError("a file of the listing has no name")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= SIZE_LIMIT_BYTES:
        raise HubListingError(f"{path[:200]!r}: its size in the listing is none")
    etag, form = (git_blob, _GIT_BLOB) if sha256 is None else (sha256, _SHA256)
    part = etag_part(etag) if isinstance(etag, str) and form.fullmatch(etag) else None
    if part is None:
        raise HubListingError(f"{path[:200]!r}: its digest in the listing is none")
    return HubFile(path, size, etag, part, sha256 is not None, path_refusal(path))
