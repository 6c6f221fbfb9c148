"""NumPy's archives (``.npz``): zip files whose entries are array files.

Stored entries (``numpy.savez``) are read as tensors, named as NumPy names them: without ``.npy``. Deflated ones
(``numpy.savez_compressed``) stay opaque, since a flip in them has no place in an array. One entry that is not a valid array does not
spoil the rest. Source: ``numpy.lib.format``, ``numpy.savez``.
"""

from __future__ import annotations

from bitward_formats.errors import CheckpointError, HeaderSyntaxError
from bitward_formats.readers.file_view import FileView
from bitward_formats.readers.jsonwalk import shown
from bitward_formats.readers.npy_header import array_spans, read_header
from bitward_formats.readers.zipwalk import LOCAL_MAGIC, Entry, read_archive, tile_archive
from bitward_formats.spans import Layout, Span

NAME = "npz"
SUFFIXES: tuple[str, ...] = (".npz",)
MEMBER_SUFFIX = ".npy"

_NAME_LENGTH_AT, _NAME_AT = 26, 30
"""Of a local header, whose name's length has two bytes."""


def looks_like(head: bytes, file_bytes: int, name: str) -> bool:  # noqa: ARG001 - the readers' common signature
    """Whether it is a zip archive whose first entry is an array file, or the name ends as it should."""
    if name.lower().endswith(SUFFIXES):
        return True
    name_bytes = int.from_bytes(head[_NAME_LENGTH_AT : _NAME_LENGTH_AT + 2], "little")
    return head.startswith(LOCAL_MAGIC) and head[_NAME_AT : _NAME_AT + name_bytes].endswith(MEMBER_SUFFIX.encode())


def read_layout(view: FileView) -> Layout:
    """One span per stored array, and its header; all else opaque, with a note. Raises CheckpointError."""
    archive = read_archive(view)
    members = [entry for entry in archive.entries if entry.name.endswith(MEMBER_SUFFIX)]
    if archive.entries and not members:
        raise HeaderSyntaxError(f"no entry of the archive ends in {MEMBER_SUFFIX}")
    contents: dict[str, list[Span]] = {}
    packed, meanings, broken = 0, [], []
    for entry in members:
        if not entry.is_stored:
            packed += 1
            continue
        try:
            contents[entry.name], meaning = _member(view, entry)
        except CheckpointError as error:
            broken.append(f"{shown(entry.name)} ({type(error).__name__}: {error})")
        else:
            meanings += [meaning] if meaning else []
    notes = []
    if packed:
        notes.append(f"{packed} of {len(members)} arrays are compressed and protected as opaque bytes")
    if meanings:
        notes.append(f"{len(meanings)} of {len(members)} arrays hold no plain numbers ({meanings[0]}) and are protected as opaque bytes")
    if broken:
        notes.append(f"{len(broken)} of {len(members)} arrays are not valid and are protected as opaque bytes: {broken[0]}")
    return Layout(NAME, view.size, tuple(tile_archive(archive, view.size, contents)), "; ".join(notes))


def _member(view: FileView, entry: Entry) -> tuple[list[Span], str]:
    """The spans of one stored entry, and what its elements are if they are not plain numbers."""
    header = read_header(view.fetch, entry.offset, entry.length)
    return array_spans(header, entry.offset, entry.length, entry.name.removesuffix(MEMBER_SUFFIX)), header.meaning
