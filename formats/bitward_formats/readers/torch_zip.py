"""PyTorch's zip format: ``torch.save`` since 1.6 and TorchScript.

An archive ``NAME/…`` with a pickle ``data.pkl`` and one entry ``data/KEY`` per storage, stored and aligned, so that a tensor is a range
of the file; TorchScript adds ``constants.pkl`` with ``constants/KEY`` and code. ``byteorder`` says how multi-byte elements lie; without
it they are little-endian. Sources: ``torch/serialization.py`` (``_save``, ``_load``), ``caffe2/serialize/inline_container.h`` and
``torch/csrc/jit/docs/serialization.md`` of PyTorch. Nothing of the pickle or the code is run.
"""

from __future__ import annotations

from bitward_formats.errors import ArchiveSyntaxError, CheckpointError, HeaderSyntaxError, TensorBoundsError, UnsupportedArchiveError
from bitward_formats.readers.file_view import Fetch, FileView
from bitward_formats.readers.jsonwalk import shown
from bitward_formats.readers.pickle_tape import Tape
from bitward_formats.readers.pickle_walk import Budget, Machine
from bitward_formats.readers.torch_storages import StorageRange, Tally, note_of, place_tensors
from bitward_formats.readers.torch_tensors import TensorClaim, find_tensors
from bitward_formats.readers.zipwalk import LOCAL_MAGIC, Archive, Entry, read_archive, read_contents, tile_archive
from bitward_formats.spans import OPAQUE_KIND, Layout, Role, Span

NAME = "pytorch"
SUFFIXES: tuple[str, ...] = (".pt", ".pth", ".bin", ".ckpt", ".pth.tar", ".jit", ".ptl")

_BYTE_ORDERS = {b"little": False, b"big": True}
_SMALL_BYTES = 64
_NAME_AT = 30
"""Where the name of the first entry stands in the head of the file."""


def looks_like(head: bytes, file_bytes: int, name: str) -> bool:  # noqa: ARG001 - the readers' common signature
    """A zip archive whose first entry is no array of npz; or by its name, which may lie."""
    if head.startswith(LOCAL_MAGIC):
        name_bytes = int.from_bytes(head[26:28], "little")
        return not head[_NAME_AT : _NAME_AT + name_bytes].endswith(b".npy")
    return name.lower().endswith(SUFFIXES)


def read_layout(view: FileView) -> Layout:
    """Spans of the archive: the tensors in stored entries, other contents, headers around them and the directory.

    Raises one of the CheckpointErrors.
    """
    return read_layout_within(view, Budget())


def read_layout_within(view: FileView, budget: Budget) -> Layout:
    """``read_layout`` for an archive that is one of many in a file, which share a budget."""
    if view.fetch(0, len(LOCAL_MAGIC)) != LOCAL_MAGIC:
        raise HeaderSyntaxError("the file is no zip archive; files of other engines have such names too")
    archive = read_archive(view)
    if archive.prefix_bytes:
        raise UnsupportedArchiveError(f"{archive.prefix_bytes} bytes stand between or before the parts of the archive")
    entries = archive.by_name()
    folder = _folder(entries)
    big_endian = _is_big_endian(view, entries.get(f"{folder}byteorder"))
    claims = _claims(view, entries, f"{folder}data.pkl", f"{folder}data/", "", budget)
    if f"{folder}constants.pkl" in entries:
        claims += _claims(view, entries, f"{folder}constants.pkl", f"{folder}constants/", "constants", budget)
    return _layout(view, archive, entries, claims, folder, big_endian)


def _folder(entries: dict[str, Entry]) -> str:
    """The folder of the archive that holds everything, with its slash."""
    folders = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(folders) != 1:
        raise ArchiveSyntaxError(f"the archive has {len(folders)} pickles NAME/data.pkl; PyTorch writes one")
    return folders[0]


def _is_big_endian(view: FileView, entry: Entry | None) -> bool:
    if entry is None:
        return False
    order = read_contents(view, entry, _SMALL_BYTES)
    if order not in _BYTE_ORDERS:
        raise HeaderSyntaxError(f"the byte order is {order[:16]!r}, neither little nor big")
    return _BYTE_ORDERS[order]


def _claims(
    view: FileView, entries: dict[str, Entry], pickle_name: str, storages: str, start: str, budget: Budget
) -> list[tuple[str, TensorClaim]]:
    """What one pickle says of tensors, each with the name of the entry that holds its storage."""
    entry = entries[pickle_name]
    fetch, begin, end = _pickle(view, entry, budget)
    try:
        claims = find_tensors(Machine(Tape(fetch, begin, end), budget).load(), start)
    except CheckpointError as error:
        raise type(error)(f"{shown(pickle_name)}: {error}") from None
    return [(f"{storages}{claim.storage.key}", claim) for claim in claims]


def _pickle(view: FileView, entry: Entry, budget: Budget) -> tuple[Fetch, int, int]:
    """How to read a pickle: in place where it is stored, out of memory where it had to be unpacked."""
    if entry.is_stored:
        return view.fetch, entry.offset, entry.end
    contents = read_contents(view, entry, max(0, budget.unpacked_bytes))
    budget.unpacked_bytes -= len(contents)
    return (lambda offset, length: contents[offset : offset + length]), 0, len(contents)


def _layout(
    view: FileView, archive: Archive, entries: dict[str, Entry], claims: list[tuple[str, TensorClaim]], folder: str, big_endian: bool
) -> Layout:
    by_entry: dict[str, list[TensorClaim]] = {}
    for entry_name, claim in claims:
        by_entry.setdefault(entry_name, []).append(claim)
    tally = Tally()
    packed = 0
    contents: dict[str, list[Span]] = {}
    for entry_name, of_entry in by_entry.items():
        entry = entries.get(entry_name)
        if entry is None:
            raise TensorBoundsError(f"{shown(of_entry[0].name)} lies in {shown(entry_name)}, which the archive does not hold")
        if entry.is_stored:
            contents[entry_name] = place_tensors(StorageRange(entry.offset, entry.length, big_endian), of_entry, tally)
        else:
            packed += len(of_entry)
    for entry in archive.entries:
        if entry.name not in contents and entry.length and not entry.name.startswith((f"{folder}data/", f"{folder}constants/")):
            contents[entry.name] = [Span(Role.HEADER, OPAQUE_KIND, entry.offset, entry.length)]
    spans = tile_archive(archive, view.size, contents)
    return Layout(NAME, view.size, tuple(spans), note_of(tally, packed), tuple(tally.aliases))
