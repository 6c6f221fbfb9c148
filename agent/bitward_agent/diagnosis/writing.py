"""A recovered model, written: a copy of the model's directory to a new one, with the changes made. The source is only read.

Every file of the copy is streamed through the changes, appears whole or not at all, and is read back from the medium before the directory
gets its name. Bitward's own files stay behind: a sidecar of the damaged model vouches for the damage. So do hidden files, such as the
download notes of a hub, which say what the directory no longer is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import isclose

import numpy as np
import xxhash

from bitward_agent.diagnosis.facts import Suspect
from bitward_agent.durable import atomic_file, make_folder, sync_folder
from bitward_agent.errors import BusyError, InputError, UnreadableError, WriteError
from bitward_agent.findings import ProtectReport
from bitward_agent.flips import list_flips
from bitward_agent.io import DISK, Disk, OpenFile, drop_cache, open_folder, reason, resolve
from bitward_agent.neighbours import layout_of_file
from bitward_agent.units import is_ours
from bitward_formats.blocks import BlockTable
from bitward_formats.frozen import dataclass
from bitward_formats.spans import Layout, Role, Span

_CHUNK_BYTES = 1 << 22
FILES_LIMIT = 10_000
"""More files than this is no model's directory."""


@dataclass(frozen=True, slots=True)
class Patch:
    """New bytes for a whole tensor of a file."""

    path: str
    tensor: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class WrittenModel:
    """``files`` were copied, relative to ``directory``; ``changed`` among them have other bytes than in the source.

    ``differing_bits`` counts them all; ``protection`` is what the protecting said, ``None`` if nothing was to be protected.
    """

    directory: str
    files: tuple[str, ...]
    changed: tuple[str, ...]
    bytes: int
    unflips: int
    patches: int
    differing_bits: int
    protection: ProtectReport | None


def write_recovered(
    source: str,
    output: str,
    *,
    unflips: Sequence[Suspect] = (),
    patches: Sequence[Patch] = (),
    protect: Callable[[str], ProtectReport] | None = None,
    contents: Mapping[str, bytes] | None = None,
    disk: Disk = DISK,
) -> WrittenModel:
    """Copy the directory ``source`` to ``output``, which must be missing or empty, with un-flips and then patches made in the copy.

    Args:
        protect: called with the new directory before it gets its name; what it protects has been vouched for by nobody but a diagnosis.
        contents: what ``contents_of`` said of ``source`` before it was diagnosed.

    Raises:
        InputError: ``source`` is no directory, ``output`` holds something or lies inside of ``source``, or a change is about no place of a
            file of ``source``.
        UnreadableError: A file cannot be read whole.
        WriteError: The copy cannot be written or protected, or does not read back; then ``output`` is not there.
        BusyError: A file changed while it was copied, or is not what it was before the diagnosis.
    """
    origin, target, temporary = refuse_output(source, output)
    members = list(_members(origin))
    if contents is not None and {real for _, real in members} != contents.keys():
        raise BusyError(f"{source}: files came or went since it was diagnosed: diagnose it again when its writer is done")
    edits = _edits(members, unflips, patches)
    make_folder(temporary, disk)
    bits = total = 0
    try:
        for relative, real in members:
            copy = os.path.join(temporary, relative)
            make_folder(os.path.dirname(copy), disk)
            size, changed_bits = _copy(real, copy, edits.get(real, ()), None if contents is None else contents[real], disk)
            total, bits = total + size, bits + changed_bits
        report = None if protect is None else _protected(protect, temporary, target)
        _rename_folder(temporary, target, disk)
    except BaseException:
        _remove_tree(temporary)
        raise
    files = tuple(relative for relative, _ in members)
    changed = tuple(relative for relative, real in members if real in edits)
    return WrittenModel(target, files, changed, total, len(unflips), len(patches), bits, report)


def refuse_output(source: str, output: str) -> tuple[str, str, str]:
    """The real paths of a model's directory, of a new one for its copy, and of where that is made before it gets its name.

    Raises:
        InputError: As ``write_recovered``.
    """
    origin, target = resolve(source), resolve(output)
    if not os.path.isdir(origin):
        raise InputError(f"{source}: not a directory")
    if os.path.lexists(target) and (not os.path.isdir(target) or os.listdir(target)):
        raise InputError(f"{output}: is there already and not empty: name a new directory")
    if f"{target}/".startswith(f"{origin}/"):
        raise InputError(f"{output}: lies inside of the model's own directory")
    parent, name = os.path.split(target)
    temporary = os.path.join(parent, f".{name}.new")
    if os.path.lexists(temporary):
        raise InputError(f"{temporary}: is in the way, left by an interrupted run: remove it")
    return origin, target, temporary


def contents_of(source: str, disk: Disk = DISK) -> dict[str, bytes]:
    """The digest (XXH3-128) of each file that a copy of ``source`` would have, by its real path.

    Raises:
        UnreadableError: A file cannot be read whole.
    """
    found: dict[str, bytes] = {}
    buffer = bytearray(_CHUNK_BYTES)
    for _, real in _members(resolve(source)):
        digest = xxhash.xxh3_128()
        with OpenFile(real, disk=disk) as file:
            size = file.state().size
            for offset in range(0, size, _CHUNK_BYTES):
                chunk = memoryview(buffer)[: min(_CHUNK_BYTES, size - offset)]
                if lost := file.read_into(chunk, offset):
                    raise _unreadable(real, lost[0][0])
                digest.update(chunk)
        found[real] = digest.digest()
    return found


def _protected(protect: Callable[[str], ProtectReport], temporary: str, target: str) -> ProtectReport:
    """Protect the copy where it is made; the report's paths are those that it is about to have."""
    report = protect(temporary)
    if report.exit_code:
        why = next((one.message for one in report.files if one.message), "its files cannot be protected")
        raise WriteError(f"{target}: cannot be protected, and so is not written: {why}")
    files = (replace(one, path=_moved(one.path, temporary, target), sidecar=_moved(one.sidecar, temporary, target)) for one in report.files)
    return replace(report, files=tuple(files))


def _moved(path: str, temporary: str, target: str) -> str:
    return target + path.removeprefix(temporary) if path.startswith(f"{temporary}/") else path


def _unreadable(path: str, offset: int) -> UnreadableError:
    return UnreadableError(f"{path}: cannot be read at byte {offset:,}: repair the file or its medium first")


def _members(origin: str) -> Iterator[tuple[str, str]]:
    """Files to copy: (relative name, real path). Links to files are followed, links to folders are not."""
    count = 0
    for folder, folders, names in os.walk(origin):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        for name in sorted(names):
            path = os.path.join(folder, name)
            if name.startswith(".") or is_ours(path):
                continue
            count += 1
            if count > FILES_LIMIT:
                raise InputError(f"{origin}: more than {FILES_LIMIT:,} files; this is no model's directory")
            yield os.path.relpath(path, origin), resolve(path)


def _edits(
    members: Sequence[tuple[str, str]], unflips: Sequence[Suspect], patches: Sequence[Patch]
) -> dict[str, list[tuple[int, bytes, bool]]]:
    """What is to change, by real path: (offset, bytes, whether they are to be XORed), un-flips first."""
    known = {real for _, real in members}
    edits: dict[str, list[tuple[int, bytes, bool]]] = {}
    layouts: dict[str, Layout] = {}
    wanted: list[Suspect | Patch] = [*unflips, *patches]
    for one in wanted:
        real = resolve(one.path)
        if real not in known:
            raise InputError(f"{one.path}: is to be changed, but is no file of the model's directory")
        if real not in layouts:
            with OpenFile(real) as file:
                layouts[real] = layout_of_file(file, file.state().size)
        if isinstance(one, Patch):
            span = _span(layouts[real], one.tensor)
            if span is None or (span.offset, span.length) != (one.offset, len(one.data)):
                raise InputError(f"{one.path}: has no tensor {one.tensor} of {len(one.data):,} bytes at byte {one.offset:,}")
            edits.setdefault(real, []).append((one.offset, one.data, False))
        else:
            own = edits.setdefault(real, [])
            own.append((one.offset, bytes([_mask_of(one, real, layouts[real], own)]), True))
    return edits


def _span(layout: Layout, tensor: str) -> Span | None:
    return next((span for span in layout.spans if span.role is Role.TENSOR and span.name == tensor), None)


def _mask_of(one: Suspect, real: str, layout: Layout, earlier: Sequence[tuple[int, bytes, bool]]) -> int:
    """The bit of the byte at the suspect's offset that is its bit, by the engine's own naming of flips, after ``earlier`` changes.

    Raises:
        InputError: The file holds another value there, or no bit of that byte is the suspect's.
    """
    span = _span(layout, one.tensor)
    where = f"{one.tensor}{list(one.index)}"
    if span is None or one.bit is None or not span.offset <= one.offset < span.end:
        raise InputError(f"{one.path}: byte {one.offset:,} holds no bit of {where} that could be turned back")
    block = BlockTable(layout).at_offset(one.offset)
    with OpenFile(real) as file:
        data = bytearray(file.read(block.offset, block.length))
    _overlay(memoryview(data), block.offset, earlier)
    found = np.frombuffer(data, np.uint8)
    for bit in range(8):
        right = found.copy()
        right[one.offset - block.offset] ^= 1 << bit
        named = list_flips(block, found, right, 1)
        if named and (named[0].index, named[0].bit) == (one.index, one.bit):
            if not _same(named[0].found, one.found):
                raise InputError(f"{one.path}: {where} is {named[0].found} now, and was {one.found} when it was diagnosed")
            return 1 << bit
    raise InputError(f"{one.path}: byte {one.offset:,} does not hold bit {one.bit} of {where}")


def _same(first: float | int | str, second: float | int | str) -> bool:
    """Whether two ways to say a value mean the same: engines round a float's digits differently."""
    if isinstance(first, str) or isinstance(second, str):
        return str(first) == str(second)
    return first == second or isclose(first, second, rel_tol=1e-6) or str(first) == str(second)


def _copy(real: str, copy: str, edits: Sequence[tuple[int, bytes, bool]], expected: bytes | None, disk: Disk) -> tuple[int, int]:
    """One file, through its changes, read back. Returns its size and how many bits differ from the source.

    ``expected`` is the digest of the source as it was diagnosed, if that is known.
    """
    digest, found = xxhash.xxh3_128(), xxhash.xxh3_128()
    bits = 0
    with OpenFile(real, disk=disk) as file:
        before = file.state()
        with atomic_file(copy, disk, mode=file.access_mode() | 0o200) as target:
            buffer = bytearray(min(_CHUNK_BYTES, max(1, before.size)))
            for offset in range(0, before.size, len(buffer)):
                chunk = memoryview(buffer)[: min(len(buffer), before.size - offset)]
                lost = file.read_into(chunk, offset)
                if lost:
                    raise _unreadable(real, lost[0][0])
                found.update(chunk)
                bits += _overlay(chunk, offset, edits)
                digest.update(chunk)
                target.write_all(chunk, offset)
            if file.state() != before:
                raise BusyError(f"{real}: changed while it was copied: run it again when its writer is done")
            if expected is not None and found.digest() != expected:
                raise BusyError(f"{real}: is not what was diagnosed: diagnose it again when its writer is done")
    _read_back(copy, before.size, digest.digest(), disk)
    return before.size, bits


def _overlay(chunk: memoryview, offset: int, edits: Sequence[tuple[int, bytes, bool]]) -> int:
    """Make the changes that lie in a chunk; returns how many bits of it became others."""
    inside = [one for one in edits if one[0] < offset + len(chunk) and offset < one[0] + len(one[1])]
    if not inside:
        return 0
    view = np.frombuffer(chunk, np.uint8)
    before = view.copy()
    for start, data, by_xor in inside:
        low, high = max(start, offset), min(start + len(data), offset + len(chunk))
        part = np.frombuffer(data, np.uint8)[low - start : high - start]
        place = view[low - offset : high - offset]
        place[:] = place ^ part if by_xor else part
    return int(np.bitwise_count(before ^ view).sum())


def _read_back(copy: str, size: int, digest: bytes, disk: Disk) -> None:
    found = xxhash.xxh3_128()
    with OpenFile(copy, disk=disk) as file:
        drop_cache(file.fd, 0, 0)
        for offset in range(0, size, _CHUNK_BYTES):
            found.update(file.read(offset, _CHUNK_BYTES))
        if file.state().size != size or found.digest() != digest:
            raise WriteError(f"{copy}: does not read back as it was written: this disk or memory is faulty")


def _rename_folder(temporary: str, target: str, disk: Disk) -> None:
    parent = os.path.dirname(target)
    try:
        folder_fd = open_folder(parent, disk)
        try:
            disk.replace(os.path.basename(temporary), os.path.basename(target), dir_fd=folder_fd)
            sync_folder(folder_fd, disk)
        finally:
            disk.close(folder_fd)
    except OSError as error:
        raise WriteError(f"{target}: cannot make this directory: {reason(error)}") from error


def _remove_tree(folder: str) -> None:
    """Take back what was written so far; no link in it is followed, as it has none."""
    with contextlib.suppress(OSError):
        for where, folders, names in os.walk(folder, topdown=False):
            for name in names:
                os.unlink(os.path.join(where, name))
            for name in folders:
                os.rmdir(os.path.join(where, name))
        os.rmdir(folder)
