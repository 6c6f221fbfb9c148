"""TensorFlow Lite (LiteRT) models: the buffers of a FlatBuffer, explained by the tensors that use them.

Facts are those of the format's ``schema.fbs`` (version 3d, identifier ``TFL3``): a model has buffers and subgraphs, a subgraph tensors, a
tensor a type, a shape, a name and the number of its buffer, 0 for none. A buffer's bytes lie in the FlatBuffer or, in files beyond 2 GB,
behind it, at an offset from the file's beginning. Elements are little-endian and row-major; several tensors may share a buffer. Elements
of less than a byte are packed densely, the first in the lowest bits (the runtime's ``portable_tensor_utils``).

A buffer that fits none of its tensors, and one that no tensor uses (metadata), is opaque. Of a sparse tensor the buffer has the values
that are stored, in their order: they are told as ``NAME.values`` with one dimension. Names of subgraphs but the first stand before those
of their tensors. Quantisation parameters, sparse indices and options are part of the header.
"""

from __future__ import annotations

from bitward_formats import records
from bitward_formats.errors import HeaderSyntaxError, HeaderTooLargeError, HeaderTooShortError, TensorBoundsError, UnknownDtypeError
from bitward_formats.frozen import dataclass
from bitward_formats.readers.claims import Claim, Fillers, layout_of_claims
from bitward_formats.readers.file_view import FileView
from bitward_formats.readers.flatwalk import OFFSET_BYTES, FlatFile, Table, Vector
from bitward_formats.spans import Layout, Role

NAME = "tflite"
SUFFIXES: tuple[str, ...] = (".tflite",)

IDENTIFIER = b"TFL3"
BUFFERS_LIMIT = 1 << 18
SUBGRAPHS_LIMIT = 1 << 14
TENSORS_LIMIT = 1 << 18
"""Most tensors of all subgraphs, counted as often as they are listed: hostile subgraphs may share their list."""
DIMS_LIMIT = 255
NAME_LIMIT_BYTES = 65_535
NAMES_LIMIT_BYTES = 1 << 26
DATA_SPAN_BYTES = 4096
"""Shorter opaque buffers stay part of the header around them: a span of its own would only cost them a block."""

DTYPES: dict[int, str] = {
    0: "F32", 1: "F16", 2: "I32", 3: "U8", 4: "I64", 6: "BOOL", 7: "I16", 8: "C64", 9: "I8", 10: "F64", 11: "C128", 12: "U64", 15: "U32",
    16: "U16", 17: "I4", 18: "BF16", 19: "I2", 20: "U4", 21: "F8_E4M3", 22: "F8_E5M2",
}  # fmt: skip
"""TensorType. 5 is a string, 13 and 14 are resources and variants."""

_MODEL_SUBGRAPHS, _MODEL_BUFFERS = 2, 4
_SUBGRAPH_TENSORS, _SUBGRAPH_NAME = 0, 4
_SHAPE, _TYPE, _BUFFER, _NAME, _SPARSITY, _EXTERNAL_BUFFER = 0, 1, 2, 3, 6, 10
_DATA, _DATA_OFFSET, _DATA_SIZE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class _Use:
    """What a tensor says of its buffer."""

    name: str
    dtype: str
    dims: tuple[int, ...] | None
    is_sparse: bool


def looks_like(head: bytes, file_bytes: int, name: str) -> bool:  # noqa: ARG001 - the readers' common signature
    """Whether the file has the identifier, or its name ends as it should."""
    return head[OFFSET_BYTES : OFFSET_BYTES + len(IDENTIFIER)] == IDENTIFIER or name.lower().endswith(SUFFIXES)


def read_layout(view: FileView) -> Layout:
    """One span for each buffer that a tensor explains, long opaque buffers as data, and the FlatBuffer around them.

    Raises one of the CheckpointErrors.
    """
    if view.size < 2 * OFFSET_BYTES:
        raise HeaderTooShortError(f"the file has {view.size} bytes; its root and identifier take {2 * OFFSET_BYTES}")
    file = FlatFile(view.fetch, view.size)
    if file.read(OFFSET_BYTES, len(IDENTIFIER)) != IDENTIFIER:
        raise HeaderSyntaxError(f"the identifier at byte {OFFSET_BYTES} is not {IDENTIFIER!r}")
    model = Table(file, file.target(0))
    search = _Search(file)
    search.buffers(model)
    search.subgraphs(model)
    return layout_of_claims(NAME, view.size, search.claims(), Fillers(Role.HEADER, Role.HEADER, Role.TRAILER), search.notes())


class _Search:
    """One walk over a model: first its buffers' places, then what the tensors say of them."""

    def __init__(self, file: FlatFile) -> None:
        self._file = file
        self._places: list[tuple[int, int]] = []
        self._uses: dict[int, list[_Use]] = {}
        self._names_left_bytes = NAMES_LIMIT_BYTES
        self._tensors_left = TENSORS_LIMIT
        self._external_count = 0
        self._opaque_count = 0

    def buffers(self, model: Table) -> None:
        """Takes down where each buffer's bytes lie."""
        vector = self._tables(model, _MODEL_BUFFERS, BUFFERS_LIMIT, "buffers")
        for index in range(vector.count):
            buffer = model.table_of(vector, index)
            data = buffer.vector(_DATA, 1)
            offset, size = buffer.number(_DATA_OFFSET, 8), buffer.number(_DATA_SIZE, 8)
            if data is not None and data.count:
                self._places.append((data.start, data.start + data.count))
            elif offset > 1:
                if offset + size > self._file.file_bytes:
                    raise TensorBoundsError(f"buffer {index} claims {size} bytes at byte {offset}; the file has {self._file.file_bytes}")
                self._places.append((offset, offset + size))
            else:
                self._places.append((0, 0))

    def subgraphs(self, model: Table) -> None:
        """Takes down what the tensors of all subgraphs say of their buffers."""
        vector = self._tables(model, _MODEL_SUBGRAPHS, SUBGRAPHS_LIMIT, "subgraphs")
        for index in range(vector.count):
            subgraph = model.table_of(vector, index)
            prefix = f"{subgraph.text(_SUBGRAPH_NAME, NAME_LIMIT_BYTES) or f'subgraph_{index}'}/" if index else ""
            self._tensors_of(subgraph, prefix)

    def claims(self) -> list[Claim]:
        """The buffers as tensors where one fits, else as opaque bytes if they are long."""
        claims: dict[Claim, None] = {}
        for index, (start, end) in enumerate(self._places):
            if start == end:
                continue
            uses = self._uses.get(index, [])
            fitting = [claim for use in uses if (claim := _fit(use, start, end)) is not None]
            if uses and not fitting:
                self._opaque_count += 1
            if fitting:
                claims.update(dict.fromkeys(fitting))
            elif end - start >= DATA_SPAN_BYTES:
                claims[Claim(start, end)] = None
        return list(claims)

    def notes(self) -> list[str]:
        """What people should know."""
        said = []
        if self._opaque_count:
            tensors = "1 buffer" if self._opaque_count == 1 else f"{self._opaque_count} buffers"
            said.append(f"{tensors} that fit no tensor's type and shape protected as opaque bytes")
        if self._external_count:
            said.append(f"the data of {self._external_count} tensors is in other files")
        return said

    def _tables(self, table: Table, number: int, limit: int, what: str) -> Vector:
        vector = table.vector(number, OFFSET_BYTES) or Vector(0, 0)
        if vector.count > limit:
            raise HeaderTooLargeError(f"{vector.count} {what}; the most is {limit}")
        return vector

    def _tensors_of(self, subgraph: Table, prefix: str) -> None:
        vector = self._tables(subgraph, _SUBGRAPH_TENSORS, self._tensors_left, "tensors")
        self._tensors_left -= vector.count
        for index in range(vector.count):
            tensor = subgraph.table_of(vector, index)
            if tensor.number(_EXTERNAL_BUFFER, 4):
                self._external_count += 1
                continue
            buffer = tensor.number(_BUFFER, 4)
            if buffer >= len(self._places):
                raise HeaderSyntaxError(f"a tensor uses buffer {buffer}; there are {len(self._places)}")
            start, end = self._places[buffer]
            if not buffer or start == end:
                continue
            name = f"{prefix}{tensor.text(_NAME, NAME_LIMIT_BYTES) or f'tensor_{index}'}"
            self._names_left_bytes -= len(name.encode())
            if self._names_left_bytes < 0 or len(name.encode()) > NAME_LIMIT_BYTES - len(".values"):
                raise HeaderTooLargeError(f"names longer than {NAME_LIMIT_BYTES} bytes, or {NAMES_LIMIT_BYTES} bytes of names")
            dtype = DTYPES.get(tensor.number(_TYPE, 1), "")
            self._uses.setdefault(buffer, []).append(_Use(name, dtype, self._dims(tensor), tensor.has(_SPARSITY)))

    def _dims(self, tensor: Table) -> tuple[int, ...] | None:
        """A tensor's shape; None where it is none."""
        vector = tensor.vector(_SHAPE, 4)
        if vector is None:
            return ()
        if vector.count > DIMS_LIMIT:
            return None
        dims = tuple(self._file.signed(vector.start + 4 * index, 4) for index in range(vector.count))
        return None if any(dim < 0 for dim in dims) else dims


def _fit(use: _Use, start: int, end: int) -> Claim | None:
    """The buffer as the tensor describes it, if its size says the same."""
    if not use.dtype or use.dims is None:
        return None
    try:
        bits, kind = records.element_bits(use.dtype), records.kind_of(use.dtype)
    except UnknownDtypeError:
        return None
    length_bits = 8 * (end - start)
    if (end - start) % kind.record_bytes:
        return None
    if use.is_sparse:
        # How many elements of less than a byte are meant cannot be told from the bytes.
        count = length_bits // bits
        return Claim(start, end, f"{use.name}.values", use.dtype, (count,)) if bits >= 8 and not length_bits % bits else None
    elements = 1
    for dim in use.dims:
        elements *= dim
        if elements > length_bits:
            return None
    return Claim(start, end, use.name, use.dtype, use.dims) if -(-elements * bits // 8) == end - start else None
