"""PyTorch's format before 1.6: pickles one after the other, then the storages.

A magic number, a protocol version, facts about the machine, the object, the list of storage keys, each a pickle of its own; then for
each key eight bytes that count its elements, and these. All numbers are little-endian whatever the machine was: a big-endian one swapped
them when it wrote (``THPStorage_writeFileRaw`` in ``torch/csrc/serialization.cpp``). Sources besides: ``_legacy_save`` and
``_legacy_load`` in ``torch/serialization.py``. The still older tar files are only recognised.
"""

from __future__ import annotations

from bitward_formats.errors import (
    DuplicateKeyError,
    HeaderSyntaxError,
    PickleSyntaxError,
    TensorBoundsError,
    TensorSizeError,
    UnsupportedArchiveError,
)
from bitward_formats.readers.file_view import FileView
from bitward_formats.readers.jsonwalk import shown
from bitward_formats.readers.pickle_nodes import Listing, Persistent
from bitward_formats.readers.pickle_tape import Tape
from bitward_formats.readers.pickle_walk import Budget, Machine
from bitward_formats.readers.torch_storage_ids import Storage, storage_of
from bitward_formats.readers.torch_storages import StorageRange, Tally, note_of, place_tensors
from bitward_formats.readers.torch_tensors import TensorClaim, find_tensors
from bitward_formats.spans import OPAQUE_KIND, Layout, Role, Span

NAME = "pytorch-legacy"
SUFFIXES: tuple[str, ...] = (".pt", ".pth", ".bin", ".ckpt", ".pth.tar", ".tar")

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
COUNT_BYTES = 8
_MAGIC_BYTES = MAGIC_NUMBER.to_bytes(10, "little")
_MAGIC_TEXT = str(MAGIC_NUMBER).encode()
_MAGIC_REACH = 64
"""The magic number stands in the first pickle, behind a few opcodes."""
_TAR_MAGIC = b"ustar"
_TAR_MAGIC_AT = 257


def looks_like(head: bytes, file_bytes: int, name: str) -> bool:  # noqa: ARG001 - the readers' common signature
    """The magic number near the start, or a tar archive with a checkpoint's name."""
    if head[:1] in (b"\x80", b"L") and (_MAGIC_BYTES in head[:_MAGIC_REACH] or _MAGIC_TEXT in head[:_MAGIC_REACH]):
        return True
    return _is_tar(head) and name.lower().endswith(SUFFIXES)


def read_layout(view: FileView) -> Layout:
    """Spans of the pickles, the storages and the counts before them. Raises one of the CheckpointErrors."""
    if _is_tar(view.fetch(0, _TAR_MAGIC_AT + len(_TAR_MAGIC))):
        raise UnsupportedArchiveError("a tar archive, as PyTorch wrote before version 0.1.10: load it and save it again")
    tape = Tape(view.fetch, 0, view.size)
    budget = Budget()
    magic, version = Machine(tape, budget).load(), Machine(tape, budget).load()
    if magic != MAGIC_NUMBER or type(version) is not int or version != PROTOCOL_VERSION:
        raise HeaderSyntaxError("the file does not begin with PyTorch's magic number and a version of its format that is known")
    Machine(tape, budget).load()
    machine = Machine(tape, budget)
    claims = find_tensors(machine.load())
    keys = _keys(Machine(tape, budget).load())
    return _layout(view, tape.place, keys, _storages(machine.persistents), claims)


def _is_tar(head: bytes) -> bool:
    return head[_TAR_MAGIC_AT : _TAR_MAGIC_AT + len(_TAR_MAGIC)] == _TAR_MAGIC


def _keys(node: object) -> list[str]:
    if not isinstance(node, Listing):
        raise PickleSyntaxError("the storage keys are no list")
    keys = [key for key in node.items if isinstance(key, str)]
    if len(keys) != len(node.items):
        raise PickleSyntaxError("a storage key is no string")
    return keys


def _storages(persistents: list[Persistent]) -> dict[str, Storage]:
    """The first reference to each storage, which decides of what size its elements are."""
    storages: dict[str, Storage] = {}
    for node in persistents:
        storage = storage_of(node)
        if storage is not None:
            storages.setdefault(storage.key, storage)
    return storages


def _layout(view: FileView, place: int, keys: list[str], storages: dict[str, Storage], claims: list[TensorClaim]) -> Layout:
    by_key: dict[str, list[TensorClaim]] = {key: [] for key in keys}
    if len(by_key) != len(keys):
        raise DuplicateKeyError("a storage key occurs twice")
    for claim in claims:
        if claim.storage.key not in by_key:
            raise TensorBoundsError(f"{shown(claim.name)} lies in the storage {shown(claim.storage.key)}, which the file does not list")
        by_key[claim.storage.key].append(claim)
    tally = Tally()
    spans: list[Span] = []
    header_start = 0
    for key, of_key in by_key.items():
        place += COUNT_BYTES
        where = StorageRange(place, _storage_bytes(view, key, storages.get(key), place))
        pieces = place_tensors(where, of_key, tally)
        if pieces:
            spans.append(Span(Role.HEADER, OPAQUE_KIND, header_start, place - header_start))
            spans += pieces
            header_start = place + where.length
        place += where.length
    if header_start < place:
        spans.append(Span(Role.HEADER, OPAQUE_KIND, header_start, place - header_start))
    if place < view.size:
        spans.append(Span(Role.TRAILER, OPAQUE_KIND, place, view.size - place))
    return Layout(NAME, view.size, tuple(spans), note_of(tally), tuple(tally.aliases))


def _storage_bytes(view: FileView, key: str, storage: Storage | None, place: int) -> int:
    """How many bytes of a storage stand at ``place``, by the count before them, which must be what the pickle says."""
    if storage is None:
        raise HeaderSyntaxError(f"nothing refers to the storage {shown(key)}, so the size of its elements is not known")
    raw = view.fetch(place - COUNT_BYTES, COUNT_BYTES) if place <= view.size else b""
    if len(raw) != COUNT_BYTES:
        raise TensorBoundsError(f"the file ends before the storage {shown(key)}")
    length = int.from_bytes(raw, "little") * storage.item_bytes
    if length != storage.whole_bytes:
        raise TensorSizeError(
            f"the storage {shown(key)} has {length} bytes by its count at {place - COUNT_BYTES}, not {storage.whole_bytes}"
        )
    if length > view.size - place:
        raise TensorBoundsError(f"the storage {shown(key)} claims {length} bytes at {place}; the file has {view.size}")
    return length
