"""PyTorch's distributed checkpoints: ``.distcp`` files, and the pickle ``.metadata`` beside them that says what is where.

A file holds items one after the other. An item is what ``torch.save`` wrote, a zip archive with one shard of one tensor or with an
object; where the writer was told so, all tensors of a file stand in one safetensors file behind the objects. The metadata lists for each
item its name, its shard's place in the whole tensor, its file and its range there. It is walked, not loaded. Source:
``torch/distributed/checkpoint/filesystem.py`` and ``metadata.py``.

A shard is named by the part of the tensor that it holds, ``weight[0:128,64:128]``, unless it is all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bitward_formats.errors import CheckpointError, HeaderSyntaxError, PickleTooLargeError, TensorBoundsError
from bitward_formats.frozen import dataclass
from bitward_formats.readers import safetensors, torch_zip
from bitward_formats.readers.file_view import FileView
from bitward_formats.readers.jsonwalk import shown
from bitward_formats.readers.pickle_nodes import Call, Mapping
from bitward_formats.readers.pickle_tape import Tape
from bitward_formats.readers.pickle_walk import Budget, Machine
from bitward_formats.readers.torch_storage_ids import is_count
from bitward_formats.readers.torch_tensors import NAME_LIMIT_BYTES, NAMES_LIMIT_BYTES, ROOT_NAME, counts_of
from bitward_formats.readers.zipwalk import LOCAL_MAGIC
from bitward_formats.spans import OPAQUE_KIND, Layout, Role, Span

NAME = "pytorch-dcp"
SUFFIXES: tuple[str, ...] = (".distcp",)

METADATA_NAME = ".metadata"


@dataclass(frozen=True, slots=True)
class _Item:
    """An item of the file: the tensor or object ``name``; ``place`` is the shard's offsets, empty for objects and scalars."""

    name: str
    place: tuple[int, ...]
    offset: int
    length: int
    is_transformed: bool


def looks_like(head: bytes, file_bytes: int, name: str) -> bool:  # noqa: ARG001 - the readers' common signature
    """The name alone: by its contents it is some zip archive."""
    return name.lower().endswith(SUFFIXES)


def read_layout(view: FileView) -> Layout:
    """The shards as tensors; what is around them as header, items that cannot be read as data. Raises one of the CheckpointErrors."""
    items, sizes = _read_metadata(view)
    spans: list[Span] = []
    opaque = 0
    budget = Budget()
    groups = list(_groups(items, view.size))
    for group in groups:
        try:
            found = _tensors(view, group, budget, is_last=group is groups[-1])
        except CheckpointError:
            found = []
            opaque += len(group)
            spans += _data(group)
        spans += (replace(span, name=_shard_name(name, place, span.dims, sizes.get(name))) for span, name, place in found)
    note = f"{opaque} item{'s' if opaque > 1 else ''} could not be read and {'are' if opaque > 1 else 'is'} opaque" if opaque else ""
    return Layout(NAME, view.size, tuple(_tiled(_named_apart(spans), view.size)), note)


def _read_metadata(view: FileView) -> tuple[list[_Item], dict[str, tuple[int, ...]]]:
    """The items of this file, and the whole shapes of the tensors."""
    own_name = view.name.rsplit("/", 1)[-1]
    rank = own_name.removeprefix("__").split("_", 1)[0]
    beside = view.neighbours.open(METADATA_NAME) or view.neighbours.open(f"__{rank}{METADATA_NAME}")
    if beside is None:
        raise HeaderSyntaxError(f"no {METADATA_NAME} beside it says what the file holds")
    metadata = _attributes(Machine(Tape(beside.fetch, 0, beside.size), Budget()).load())
    places, tensors = metadata.get("storage_data"), metadata.get("state_dict_metadata")
    if not isinstance(places, Mapping) or not isinstance(tensors, Mapping):
        raise HeaderSyntaxError(f"{METADATA_NAME} lists no places and no tensors")
    items = [item for key, value in places.pairs if (item := _item(key, value, own_name)) is not None]
    if not items:
        raise HeaderSyntaxError(f"{METADATA_NAME} says of no item that it lies in this file")
    sizes: dict[str, tuple[int, ...]] = {}
    for name, about in tensors.pairs:
        size = counts_of(_attributes(about).get("size"))
        if isinstance(name, str) and size is not None:
            sizes[name] = size
    return items, sizes


def _item(key: object, value: object, own_name: str) -> _Item | None:
    """An item of the metadata, or None if it lies in another file."""
    index, info = _attributes(key), _attributes(value)
    if info.get("relative_path") != own_name:
        return None
    name, offset, length = index.get("fqn"), info.get("offset"), info.get("length")
    if not isinstance(name, str) or not is_count(offset) or not is_count(length):
        raise HeaderSyntaxError(f"{METADATA_NAME} has an item without a name, offset or length")
    return _Item(name, counts_of(index.get("offset")) or (), offset, length, info.get("transform_descriptors") is not None)


def _attributes(node: object) -> dict[str, object]:
    """What an object's state sets, by name; empty for what is no object with a dict as its state."""
    if not isinstance(node, Call) or not isinstance(node.state, Mapping):
        return {}
    return {key: value for key, value in node.state.pairs if isinstance(key, str)}


def _groups(items: list[_Item], file_bytes: int) -> Iterator[list[_Item]]:
    """The items in the order of the file; those at the same offset share one safetensors file. Checks their ranges and names.

    Each byte is read for one group at most, whatever the metadata says.
    """
    name_bytes = end = 0
    group: list[_Item] = []
    for item in sorted(items, key=lambda item: item.offset):
        if item.length > file_bytes - item.offset:
            raise TensorBoundsError(f"{shown(item.name)} claims {item.length} bytes at {item.offset}; the file has {file_bytes}")
        name_bytes += len(item.name)
        if name_bytes > NAMES_LIMIT_BYTES:
            raise PickleTooLargeError(f"the names of the items have more than {NAMES_LIMIT_BYTES} characters")
        if group and item.offset != group[0].offset:
            yield group
            group = []
            if item.offset < end:
                raise TensorBoundsError(f"{shown(item.name)} begins at {item.offset}, within another item")
        end = max(end, item.offset + item.length)
        group.append(item)
    yield group


def _tensors(view: FileView, group: list[_Item], budget: Budget, *, is_last: bool) -> list[tuple[Span, str, tuple[int, ...]]]:
    """The tensors of the items at one offset, each with the name and place of its item. A safetensors file goes on to the end."""
    first = group[0]
    if any(item.is_transformed for item in group):
        raise HeaderSyntaxError("an item was compressed or encrypted by an extension")
    if len(group) == 1 and view.fetch(first.offset, len(LOCAL_MAGIC)) == LOCAL_MAGIC:
        spans = torch_zip.read_layout_within(_part(view, first.offset, first.length), budget).spans
        found = [_moved(span, first.offset) for span in spans if span.role is Role.TENSOR]
        return [(span, first.name if span.name == ROOT_NAME else f"{first.name}.{span.name}", first.place) for span in found]
    if not is_last:
        raise HeaderSyntaxError("neither a zip archive nor the safetensors file at the end")
    places: dict[str, tuple[int, ...]] = {item.name: item.place for item in group}
    spans = safetensors.read_layout(_part(view, first.offset, view.size - first.offset)).spans
    found = [_moved(span, first.offset) for span in spans if span.role is Role.TENSOR]
    return [(span, span.name, places.get(span.name, ())) for span in found]


def _part(view: FileView, offset: int, length: int) -> FileView:
    """A range of the file as a file of its own."""

    def fetch(inner_offset: int, inner_length: int) -> bytes:
        return view.fetch(offset + inner_offset, max(0, min(inner_length, length - inner_offset)))

    return FileView(view.name, length, fetch)


def _moved(span: Span, offset: int) -> Span:
    return replace(span, offset=span.offset + offset)


def _data(group: list[_Item]) -> list[Span]:
    length = max(item.length for item in group)
    return [Span(Role.DATA, OPAQUE_KIND, group[0].offset, length)] if length else []


def _shard_name(name: str, place: tuple[int, ...], dims: tuple[int, ...], size: tuple[int, ...] | None) -> str:
    """``name``, with the part of the tensor that the shard is where it is not all."""
    if size is None or len(place) != len(dims) or len(size) != len(dims) or (dims == size and not any(place)):
        return name
    return f"{name}[{','.join(f'{start}:{start + dim}' for start, dim in zip(place, dims, strict=True))}]"


def _named_apart(spans: list[Span]) -> list[Span]:
    """Spans in the order of the file, with a number behind each name that came before. Tensors without a fit name become header."""
    used: dict[str, int] = {}
    result: list[Span] = []
    # Empty tensors stand before what begins at the same byte: the only order that tiles.
    for span in sorted(spans, key=lambda span: (span.offset, span.length)):
        name = span.name.encode("utf-8", "backslashreplace").decode()
        if span.role is not Role.TENSOR:
            result.append(span)
        elif len(name.encode()) < NAME_LIMIT_BYTES - 24:
            used[name] = used.get(name, 0) + 1
            result.append(replace(span, name=name if used[name] == 1 else f"{name}#{used[name]}"))
    return result


def _tiled(spans: list[Span], file_bytes: int) -> Iterator[Span]:
    """The spans with headers between them. Raises TensorBoundsError where two items share bytes."""
    position = 0
    for span in spans:
        if span.offset < position:
            raise TensorBoundsError(f"items share the bytes {span.offset} .. {position}")
        if span.offset > position:
            yield Span(Role.HEADER, OPAQUE_KIND, position, span.offset - position)
        yield span
        position = span.end
    if position < file_bytes:
        yield Span(Role.HEADER, OPAQUE_KIND, position, file_bytes - position)
