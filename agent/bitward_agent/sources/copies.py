"""How blocks of one file are found in another copy, wherever that is: at the same offset, or in the tensor of the same name.

The copy may be laid out differently: the same tensors in another order, in other shards, in another format whose elements have the same
bytes. Tensors are then looked for in the file of the same name, in the shard that an index beside it names, or in the other checkpoints
of the folder. Whether what is found is right, the block's leaf says, not this module.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence

from bitward_agent.errors import SourceError
from bitward_agent.sources import Place, Range, RangedFile, Way
from bitward_agent.sources.limits import Meter
from bitward_agent.sources.read_ahead import ReadAhead
from bitward_formats.blocks import Block
from bitward_formats.errors import CheckpointError
from bitward_formats.readers import layout_of
from bitward_formats.readers.file_view import FileView
from bitward_formats.readers.hints import READERS
from bitward_formats.shard_index import INDEX_LIMIT_BYTES, INDEX_SUFFIX, index_name, is_plain_name, read_weight_map, whole_name
from bitward_formats.spans import Role, Span

SUFFIXES = tuple(suffix for hint in READERS for suffix in hint.suffixes)
"""Endings of names of checkpoints: the only files of a folder in which tensors are looked for."""
FILES_LIMIT = 1024
"""Most files of a folder whose headers are read in search of tensors."""


class CopySource:
    """One place as a source of one file's blocks. Nothing is opened before it is needed."""

    def __init__(self, place: Place, names: Sequence[str], target_name: str, meter: Meter) -> None:
        """``names`` are the paths below ``place`` at which the file may be, likeliest first; ``target_name`` is its name without folders.

        With the empty name alone the place is one file that the user named, and no other is looked into.
        """
        self.place, self.meter = place, meter
        self.name, self.is_local = place.name, place.is_local
        self._names, self._target_name = tuple(names), target_name
        self._folder = posixpath.dirname(next(filter(None, names), ""))
        self._is_folder = any(names)
        self._own: tuple[str, RangedFile | None] | None = None
        self._tensors: dict[str, Mapping[str, Span]] = {}
        self._files: dict[str, RangedFile | None] = {}
        self._weight_map: dict[str, str] | None = None

    def close(self) -> None:
        """Close the files; the place stays open for other files."""
        for file in self._files.values():
            if file is not None:
                file.close()
        self._files.clear()
        self._own = None

    def ways(self, file_bytes: int) -> Sequence[Way]:
        """The same offset first if the copy has the same size; else its header, so that nothing is fetched in vain."""
        file = self._own_file()[1]
        if file is None:
            if self._is_folder and self._target_name.lower().endswith(SUFFIXES):
                return (Way.SAME_TENSOR,)
            raise SourceError(f"no such file: {self.shown(self._names[0])}")
        return (Way.SAME_PLACE, Way.SAME_TENSOR) if file.size in (None, file_bytes) else (Way.SAME_TENSOR, Way.SAME_PLACE)

    def shown(self, name: str) -> str:
        """The full name of a file of the place."""
        return f"{self.place.name.rstrip('/')}/{name}" if name else self.place.name

    def fetch(self, blocks: Sequence[Block], way: Way) -> Iterator[tuple[Block, bytes]]:
        """See ``Source.fetch``."""
        if way is Way.SAME_PLACE:
            file = self._own_file()[1]
            if file is not None:
                yield from _read(file, {(block.offset, block.end): block for block in blocks})
            return
        found = False
        for name, wanted in self._in_tensors([block for block in blocks if block.span.role is Role.TENSOR]):
            file = self.file(name)
            if file is not None:
                found = True
                yield from _read(file, wanted)
        if not found and self._own_file()[1] is None:
            raise SourceError(f"no such file: {self.shown(self._names[0])}; nor does another one there hold its tensors")

    def _own_file(self) -> tuple[str, RangedFile | None]:
        """The first of the names that is there."""
        if self._own is None:
            self._own = ("", None)
            for name in dict.fromkeys(self._names):
                file = self.file(name)
                if file is not None:
                    self._own, self._folder = (name, file), posixpath.dirname(name)
                    break
        return self._own

    def file(self, name: str) -> RangedFile | None:
        """A file of the place, opened once."""
        if name not in self._files:
            self._files[name] = self.place.open(name, self.meter)
        return self._files[name]

    def _in_tensors(self, blocks: Sequence[Block]) -> Iterator[tuple[str, dict[Range, Block]]]:
        """The blocks by the file that holds their tensor, and where in it they are."""
        left: dict[str, list[Block]] = {}
        for block in blocks:
            left.setdefault(block.span.name, []).append(block)
        own_name, own = self._own_file()
        for name in self._holders(left):
            tensors = self._tensors_of(name)
            found: dict[Range, Block] = {}
            for tensor in [one for one in left if one in tensors]:
                twin, span = tensors[tensor], left[tensor][0].span
                if (twin.dtype, twin.length) != (span.dtype, span.length):
                    continue
                shift = twin.offset - span.offset
                if shift or own is None or name != own_name:  # else the other way asks for it
                    found |= {(block.offset + shift, block.end + shift): block for block in left[tensor]}
                del left[tensor]
            if found:
                yield name, found
            if not left:
                return

    def _holders(self, wanted: Mapping[str, list[Block]]) -> Iterator[str]:
        """Files in which tensors may be, likeliest first. ``wanted`` shrinks while they are looked through."""
        if not wanted:
            return
        own_name, own = self._own_file()
        seen = set()
        if own is not None:
            seen.add(own_name)
            yield own_name
        if not wanted or not self._is_folder or (own is not None and own_name == ""):
            return
        shards = self._shards()
        for tensor in list(wanted):
            holder = shards.get(tensor)
            if holder and holder not in seen and tensor in wanted:
                seen.add(holder)
                yield holder
        listed = self.place.names(self._folder, self.meter) or [whole_name(self._target_name)]
        for name in listed[:FILES_LIMIT]:
            path = posixpath.join(self._folder, name)
            if wanted and path not in seen and is_plain_name(name) and name.lower().endswith(SUFFIXES):
                seen.add(path)
                yield path

    def _shards(self) -> dict[str, str]:
        """Tensor to path, by the index of shards beside the file; empty if there is none that can be used."""
        if self._weight_map is None:
            self._weight_map = {}
            likely = index_name(self._target_name)
            listed = [name for name in self.place.names(self._folder, self.meter) if name.endswith(INDEX_SUFFIX) and name != likely]
            for name in [likely, *listed][:FILES_LIMIT]:
                file = self.file(posixpath.join(self._folder, name))
                if file is None or file.size is None or file.size > INDEX_LIMIT_BYTES:
                    continue
                try:
                    found = read_weight_map(ReadAhead(file, file.size).fetch(0, file.size))
                except CheckpointError:
                    continue
                for tensor, holder in found.items():
                    self._weight_map.setdefault(tensor, posixpath.join(self._folder, holder))
        return self._weight_map

    def _tensors_of(self, name: str) -> Mapping[str, Span]:
        """The tensors of one of its files by name; none if it cannot be read as a checkpoint."""
        if name not in self._tensors:
            file = self.file(name)
            found: dict[str, Span] = {}
            if file is not None and file.size is not None:
                beside = _Beside(self, posixpath.dirname(name)) if self._is_folder else None
                layout = layout_of(ReadAhead(file, file.size).fetch, file.size, name or self.place.name, beside)
                found = {span.name: span for span in layout.spans if span.role is Role.TENSOR}
                found |= {alias: found[span] for alias, span in layout.aliases if alias not in found and span in found}
            self._tensors[name] = found
        return self._tensors[name]


class _Beside:
    """The files in one folder of a place, for formats that split themselves."""

    def __init__(self, source: CopySource, folder: str) -> None:
        self._source, self._folder = source, folder

    def names(self) -> list[str]:
        """See ``Neighbours.names``; empty if the place cannot list."""
        return sorted(self._source.place.names(self._folder, self._source.meter))[:FILES_LIMIT]

    def open(self, name: str) -> FileView | None:
        """See ``Neighbours.open``."""
        if not is_plain_name(name):
            return None
        file = self._source.file(posixpath.join(self._folder, name))
        if file is None or file.size is None:
            return None
        return FileView(name, file.size, ReadAhead(file, file.size).fetch, self)


def _read(file: RangedFile, wanted: Mapping[Range, Block]) -> Iterator[tuple[Block, bytes]]:
    for place, data in file.read(list(wanted)):
        yield wanted[place], data
