"""Finding every tensor of an ONNX model: a walk over ModelProto, its graphs, nodes and functions that builds none of them.

Message and field numbers are those of ``onnx.proto`` (ONNX IR version 14). A tensor's name says where it is used:

    an initializer                  its name
    a Constant node                 the name of the node's output
    any other attribute             NODE.ATTRIBUTE, NODE.ATTRIBUTE.0, …
    a sparse tensor                 NAME.values, NAME.indices
    in a sub-graph                  NODE.ATTRIBUTE/…
    in a function, in training      DOMAIN::FUNCTION/…, training_info.0.algorithm/…

where NODE is the node's name, else its first output, else its operator and number.
"""

from __future__ import annotations

from bitward_formats.errors import HeaderSyntaxError, HeaderTooLargeError
from bitward_formats.frozen import dataclass
from bitward_formats.readers.onnxtensor import NAME_LIMIT_BYTES, Storage, Tensor, expect_wire, read_tensor
from bitward_formats.readers.protowalk import Field, Walker, Wire

TENSORS_LIMIT = 1 << 17
"""Most tensors of a model. Large graphs with a constant in every other node have some ten thousand."""
GRAPHS_LIMIT = 1 << 16
DEPTH_LIMIT = 33
"""Graphs inside graphs. The protobuf libraries refuse messages nested more than 100 deep, and a graph in a graph takes three."""
ATTRIBUTES_LIMIT = 1 << 16
NAMES_LIMIT_BYTES = 1 << 26
"""All names together: a prefix may be long and stand before many."""

_VARINT, _LENGTH = (Wire.VARINT,), (Wire.LENGTH,)
_IR_VERSION, _GRAPH, _TRAINING, _FUNCTIONS = 1, 7, 20, 25
MODEL_WIRES: dict[int, tuple[Wire, ...]] = {
    _IR_VERSION: _VARINT,
    5: _VARINT,  # model_version
    **dict.fromkeys((2, 3, 4, 6, _GRAPH, 8, 14, _TRAINING, _FUNCTIONS, 26), _LENGTH),
}
"""The fields of ModelProto."""
_GRAPH_NODE, _INITIALIZER, _SPARSE_INITIALIZER = 1, 5, 15
_NODE_OUTPUT, _NODE_NAME, _OP_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 2, 3, 4, 5, 7
_FUNCTION_NAME, _FUNCTION_NODE, _FUNCTION_DOMAIN, _FUNCTION_ATTRIBUTE, _FUNCTION_OVERLOAD = 1, 7, 10, 11, 13
_ATTRIBUTE_NAME, _T, _G, _TENSORS, _GRAPHS, _SPARSE, _SPARSES = 1, 5, 6, 10, 11, 22, 23
_TRAINING_GRAPHS = {1: "initialization", 2: "algorithm"}
_SPARSE_PARTS = {1: "values", 2: "indices"}
_PAYLOADS = frozenset({_T, _G, _TENSORS, _GRAPHS, _SPARSE, _SPARSES})
_LISTS = frozenset({_TENSORS, _GRAPHS, _SPARSES})


@dataclass(frozen=True, slots=True)
class Named:
    """A tensor and the full name under which it is known; no two need differ in it."""

    name: str
    tensor: Tensor


@dataclass(frozen=True, slots=True)
class _Pending:
    """A GraphProto that is still to be walked."""

    start: int
    end: int
    prefix: str
    depth: int


def find_tensors(walker: Walker, *, only_external: bool = False) -> list[Named]:
    """All tensors of the model, in no particular order; ``only_external`` passes over nodes that cannot hold external ones.

    Raises HeaderSyntaxError for what is no ModelProto, HeaderTooLargeError beyond a limit.
    """
    return _Search(walker, only_external).run()


class _Search:
    """One walk. Graphs inside graphs wait in a list: there is no recursion, however deep they are."""

    def __init__(self, walker: Walker, only_external: bool) -> None:
        self._walker = walker
        self._only_external = only_external
        self._found: list[Named] = []
        self._graphs: list[_Pending] = []
        self._graphs_left = GRAPHS_LIMIT
        self._names_left_bytes = NAMES_LIMIT_BYTES

    def run(self) -> list[Named]:
        """The tensors."""
        has_graph = False
        training_count = 0
        for field in self._walker.fields(0, self._walker.file_bytes):
            wires = MODEL_WIRES.get(field.number)
            if wires is not None:
                expect_wire(field, wires, "ModelProto")
            if field.number == _GRAPH:
                has_graph = True
                self._add_graph(field, "", 0)
            elif field.number == _TRAINING:
                self._training(field, training_count)
                training_count += 1
            elif field.number == _FUNCTIONS:
                self._function(field)
            while self._graphs:
                self._graph(self._graphs.pop())
        if not has_graph:
            raise HeaderSyntaxError("the model has no graph")
        return self._found

    def _add_graph(self, field: Field, prefix: str, depth: int) -> None:
        if not self._graphs_left:
            raise HeaderTooLargeError(f"more than {GRAPHS_LIMIT} graphs before byte {field.start}")
        if depth > DEPTH_LIMIT:
            raise HeaderTooLargeError(f"the graph at byte {field.start} lies more than {DEPTH_LIMIT} graphs deep")
        self._graphs_left -= 1
        self._spend(prefix)
        self._graphs.append(_Pending(field.start, field.end, prefix, depth))

    def _spend(self, name: str) -> None:
        """Counts a name against the limits."""
        name_bytes = len(name.encode())
        self._names_left_bytes -= name_bytes
        if name_bytes > NAME_LIMIT_BYTES or self._names_left_bytes < 0:
            raise HeaderTooLargeError(f"names longer than {NAME_LIMIT_BYTES} bytes, or {NAMES_LIMIT_BYTES} bytes of names")

    def _text(self, field: Field | None) -> str:
        return "" if field is None else self._walker.text(field, NAME_LIMIT_BYTES)

    def _training(self, training: Field, index: int) -> None:
        for field in self._walker.fields(training.start, training.end):
            if field.number in _TRAINING_GRAPHS:
                expect_wire(field, _LENGTH, "TrainingInfoProto")
                self._add_graph(field, f"training_info.{index}.{_TRAINING_GRAPHS[field.number]}/", 0)

    def _function(self, function: Field) -> None:
        """A function's nodes, and the tensors that its attributes have by default."""
        texts: dict[int, Field] = {}
        for field in self._walker.fields(function.start, function.end):
            if field.number in (_FUNCTION_NAME, _FUNCTION_DOMAIN, _FUNCTION_OVERLOAD, _FUNCTION_NODE, _FUNCTION_ATTRIBUTE):
                expect_wire(field, _LENGTH, "FunctionProto")
                texts.setdefault(field.number, field)
        domain, name, overload = (self._text(texts.get(number)) for number in (_FUNCTION_DOMAIN, _FUNCTION_NAME, _FUNCTION_OVERLOAD))
        prefix = (f"{domain}::" if domain else "") + name + (f":{overload}" if overload else "") + "/"
        node_count = 0
        for field in self._walker.fields(function.start, function.end):
            if field.number == _FUNCTION_NODE:
                self._node(field, prefix, node_count, 0)
                node_count += 1
            elif field.number == _FUNCTION_ATTRIBUTE:
                self._attribute(field, prefix, "", "", 0)

    def _graph(self, graph: _Pending) -> None:
        node_count = initializer_count = 0
        for field in self._walker.fields(graph.start, graph.end):
            if field.number in (_GRAPH_NODE, _INITIALIZER, _SPARSE_INITIALIZER):
                expect_wire(field, _LENGTH, "GraphProto")
            if field.number == _GRAPH_NODE:
                self._node(field, graph.prefix, node_count, graph.depth)
                node_count += 1
            elif field.number == _INITIALIZER:
                self._tensor(field, graph.prefix, f"initializer_{initializer_count}")
                initializer_count += 1
            elif field.number == _SPARSE_INITIALIZER:
                self._sparse(field, graph.prefix, "")

    def _node(self, node: Field, prefix: str, index: int, depth: int) -> None:
        walker = self._walker
        if self._only_external and not walker.holds(node.start, node.end, b"location"):
            return
        texts: dict[int, Field] = {}
        attributes: list[Field] = []
        for field in walker.fields(node.start, node.end):
            if field.number == _NODE_ATTRIBUTE:
                expect_wire(field, _LENGTH, "NodeProto")
                attributes.append(field)
                if len(attributes) > ATTRIBUTES_LIMIT:
                    raise HeaderTooLargeError(f"the node at byte {node.start} has more than {ATTRIBUTES_LIMIT} attributes")
            elif field.number in (_NODE_OUTPUT, _NODE_NAME, _OP_TYPE, _NODE_DOMAIN):
                expect_wire(field, _LENGTH, "NodeProto")
                texts.setdefault(field.number, field)
        if not attributes:
            return
        operator, output = self._text(texts.get(_OP_TYPE)), self._text(texts.get(_NODE_OUTPUT))
        label = self._text(texts.get(_NODE_NAME)) or output or f"{operator}_{index}"
        is_constant = operator == "Constant" and self._text(texts.get(_NODE_DOMAIN)) in ("", "ai.onnx")
        for attribute in attributes:
            self._attribute(attribute, prefix, label, output if is_constant else "", depth)

    def _attribute(self, attribute: Field, prefix: str, label: str, constant: str, depth: int) -> None:
        """The tensors and graphs of one attribute of the node ``label``; ``constant`` names what a Constant node's value becomes."""
        walker = self._walker
        name: Field | None = None
        payloads: list[Field] = []
        for field in walker.fields(attribute.start, attribute.end):
            if field.number == _ATTRIBUTE_NAME or field.number in _PAYLOADS:
                expect_wire(field, _LENGTH, "AttributeProto")
            if field.number == _ATTRIBUTE_NAME:
                name = field
            elif field.number in _PAYLOADS:
                payloads.append(field)
                if len(payloads) > TENSORS_LIMIT:
                    raise HeaderTooLargeError(f"the attribute at byte {attribute.start} has more than {TENSORS_LIMIT} tensors and graphs")
        if not payloads:
            return
        own = self._text(name)
        full = constant if constant and own in ("value", "sparse_value") else f"{label}.{own}" if label else own
        for index, field in enumerate(payloads):
            numbered = f"{full}.{index}" if field.number in _LISTS else full
            if field.number in (_G, _GRAPHS):
                self._add_graph(field, f"{prefix}{numbered}/", depth + 1)
            elif field.number in (_T, _TENSORS):
                self._tensor(field, prefix, "", numbered)
            else:
                self._sparse(field, prefix, numbered)

    def _sparse(self, sparse: Field, prefix: str, name: str) -> None:
        """The values and indices of a SparseTensorProto; without a name of its own it has that of its values."""
        parts: list[Field] = []
        for field in self._walker.fields(sparse.start, sparse.end):
            if field.number in _SPARSE_PARTS:
                expect_wire(field, _LENGTH, "SparseTensorProto")
                # Two of a kind would be merged by a parser; nobody writes that, so what comes later stays unnamed.
                if all(part.number != field.number for part in parts):
                    parts.append(field)
        values = next((part for part in parts if part.number == 1), None)
        if not name and values is not None:
            name = read_tensor(self._walker, values.start, values.end).name
        for part in parts:
            self._tensor(part, prefix, "", f"{name}.{_SPARSE_PARTS[part.number]}")

    def _tensor(self, field: Field, prefix: str, unnamed: str, name: str = "") -> None:
        tensor = read_tensor(self._walker, field.start, field.end)
        if tensor.storage is Storage.NONE:
            return
        if len(self._found) == TENSORS_LIMIT:
            raise HeaderTooLargeError(f"more than {TENSORS_LIMIT} tensors before byte {field.start}")
        full = prefix + (name or tensor.name or unnamed)
        self._spend(full)
        self._found.append(Named(full, tensor))
