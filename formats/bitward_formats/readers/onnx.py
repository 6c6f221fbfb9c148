"""ONNX models: initializers, constants and every other tensor, found by walking the protobuf wire format of the file.

No graph is built and no payload read, so files beyond 2 GB work and listing costs little more than the graph's nodes. The formats' facts
are those of ``onnx.proto``; ``onnxgraph`` says how tensors are named, ``onnxtensor`` which of them lie in the file as an array. Tensors
whose data is external have no bytes here: the file that has them is laid out by ``onnx_data``.
"""

from __future__ import annotations

from bitward_formats.errors import CheckpointError
from bitward_formats.readers.claims import Claim, Fillers, layout_of_claims
from bitward_formats.readers.file_view import FileView
from bitward_formats.readers.onnxgraph import MODEL_WIRES, Named, find_tensors
from bitward_formats.readers.onnxtensor import Storage
from bitward_formats.readers.protowalk import Walker, Wire
from bitward_formats.spans import Layout, Role

NAME = "onnx"
SUFFIXES: tuple[str, ...] = (".onnx",)

DATA_SPAN_BYTES = 4096
"""Shorter opaque payloads stay part of the header around them: a span of its own would only cost them a block."""
_IR_VERSION_TAG = 0x08
_IR_VERSIONS = range(1, 65)
"""The format is at 14."""
_NAMES_SHOWN = 3
_GRAPH = 7
_OPSET_IMPORT = 8
_TEXTS = (2, 3, 4)
_GRAPH_TAGS = frozenset({0x0A, 0x12, 0x2A, 0x52, 0x5A, 0x62, 0x6A, 0x72, 0x7A, 0x82})
"""First bytes of the tags of GraphProto's fields, each with a length."""


def looks_like(head: bytes, file_bytes: int, name: str) -> bool:
    """Whether the name ends as it should, or the file begins as a model does.

    That is: an IR version; then fields of ModelProto with their wire types, the texts in UTF-8; among them, within the file's first bytes
    and ending within the file, a graph that begins with a field of a graph. Other messages begin with a number too, but not so.
    """
    if name.lower().endswith(SUFFIXES):
        return True
    if len(head) < 2 or head[0] != _IR_VERSION_TAG or head[1] not in _IR_VERSIONS:
        return False
    walker = Walker(lambda offset, length: head[offset : offset + length], len(head))
    try:
        for field in walker.fields(0, file_bytes):
            if field.wire not in MODEL_WIRES.get(field.number, ()):
                return False
            if field.number in _TEXTS:
                head[field.start : field.end].decode("utf-8")
            elif field.number == _OPSET_IMPORT and any(
                (part.number, part.wire) not in ((1, Wire.LENGTH), (2, Wire.VARINT)) for part in walker.fields(field.start, field.end)
            ):
                return False
            elif field.number == _GRAPH:
                return field.start < len(head) and head[field.start] in _GRAPH_TAGS
    # What lies behind the head cannot be walked: then there was no graph in it.
    except (CheckpointError, UnicodeDecodeError):
        return False
    return False


def read_layout(view: FileView) -> Layout:
    """One span per tensor that lies in the file as an array, long opaque payloads as data, and the messages around them.

    Raises one of the CheckpointErrors.
    """
    found = find_tensors(Walker(view.fetch, view.size))
    claims = []
    opaque_count = 0
    for named in found:
        tensor = named.tensor
        if tensor.storage is Storage.ARRAY:
            claims.append(Claim(tensor.start, tensor.end, named.name, tensor.dtype, tensor.dims))
        elif tensor.storage is Storage.OPAQUE:
            opaque_count += 1
            if tensor.end - tensor.start >= DATA_SPAN_BYTES:
                claims.append(Claim(tensor.start, tensor.end))
    notes = []
    if opaque_count:
        tensors = "1 tensor" if opaque_count == 1 else f"{opaque_count} tensors"
        notes.append(f"{tensors} stored as variable-length numbers, texts or in an unknown type protected as opaque bytes")
    notes += _external_note(found)
    return layout_of_claims(NAME, view.size, claims, Fillers(Role.HEADER, Role.HEADER, Role.TRAILER), notes)


def _external_note(found: list[Named]) -> list[str]:
    """Which other files the model needs."""
    external = [named.tensor.external for named in found if named.tensor.external is not None]
    if not external:
        return []
    locations = sorted({place.location for place in external})
    shown = ", ".join(repr(location[:80]) for location in locations[:_NAMES_SHOWN]) + (", …" if len(locations) > _NAMES_SHOWN else "")
    tensors = "the data of 1 tensor is" if len(external) == 1 else f"the data of {len(external)} tensors is"
    return [f"{tensors} in other files: {shown}"]
