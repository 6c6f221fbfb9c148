"""Finding the tensors in what a PyTorch pickle describes, and naming them as users of state dicts do.

A tensor is a call of one of PyTorch's rebuild functions (``torch/_utils.py``) on a storage, which lies outside the pickle. Its name is
the path of keys that leads to it, joined by dots. Objects of foreign classes add nothing to a path but the attributes' names; modules
saved whole look like their state dict. Each container is gone through once, under the first path that leads to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum, auto

from bitward_formats.errors import PickleSyntaxError, PickleTooLargeError
from bitward_formats.frozen import dataclass
from bitward_formats.readers.pickle_nodes import Call, Global, Listing, Mapping, Persistent
from bitward_formats.readers.torch_dtypes import dtype_label
from bitward_formats.readers.torch_storage_ids import SIZE_LIMIT, Storage, is_count, storage_of

PATH_LIMIT = 500
"""Deepest path; CPython's own pickler recurses, so real ones end far before."""
NAME_LIMIT_BYTES = 65_535
NAMES_LIMIT_BYTES = 1 << 26
"""All names together: a long key can stand before many tensors."""
DIMS_LIMIT = 255
ROOT_NAME = "tensor"
"""The name of a tensor that was saved by itself, or of what has an empty path."""
_UNWRAP_LIMIT = 8

_TENSOR_FUNCTIONS = {
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_qtensor",
}
_WRAPPERS = {
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor",
}
_SUBCLASS_FUNCTIONS = {"torch._tensor._rebuild_from_type_v2", "torch._tensor._rebuild_from_type", "torch.tensor._rebuild_from_type"}
_COMPOUND_FUNCTIONS = {"torch._utils._rebuild_sparse_tensor", "torch._utils._rebuild_nested_tensor"}
_SPARSE_PARTS = {
    "torch.sparse_coo": ("indices", "values"),
    "torch.sparse_csr": ("crow_indices", "col_indices", "values"),
    "torch.sparse_bsr": ("crow_indices", "col_indices", "values"),
    "torch.sparse_csc": ("ccol_indices", "row_indices", "values"),
    "torch.sparse_bsc": ("ccol_indices", "row_indices", "values"),
}
_MODULE_PARTS = {"_parameters", "_buffers", "_modules"}
"""Attributes of a module that its state dict does not name."""

_Path = tuple["_Path | None", str, int]
"""The path before, the last key, and how many keys there are."""
_NONE = type(None)


class _As(Enum):
    """What a node stands for where it is found."""

    VALUE = auto()
    STATE = auto()
    """The attributes of an object: a dict, a pair of dicts (with slots), or whatever its class takes."""
    PAIRS = auto()
    """A list of keys and values."""


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    node: object
    path: _Path | None
    taken_as: _As = _As.VALUE


@dataclass(frozen=True, slots=True)
class TensorClaim:
    """What a pickle says of a tensor: the elements of ``storage`` from ``offset`` (in elements), ``strides`` apart.

    ``label`` is None where its elements are of a type without one.
    """

    name: str
    storage: Storage
    label: str | None
    item_bytes: int
    offset: int
    dims: tuple[int, ...]
    strides: tuple[int, ...]


def find_tensors(root: object, start: str = "") -> list[TensorClaim]:
    """All tensors below ``root`` in the order in which its pickle lists them, each under every path that leads to it.

    ``start`` begins all names. Raises PickleSyntaxError for a tensor that contradicts itself, PickleTooLargeError past a limit.
    """
    claims: list[TensorClaim] = []
    used: dict[str, int] = {}
    name_bytes = 0
    # A part can be shared by many: each is gone through once, so that the whole takes no longer than the pickle is long.
    seen: set[tuple[int, _As]] = set()
    pending = [_Part(root, (None, start, 1) if start else None)]
    while pending:
        part = pending.pop()
        found = _tensor(_unwrapped(part.node))
        if found is not None:
            name = _unique_name(_joined(part.path), used)
            name_bytes += len(name.encode())
            if name_bytes > NAMES_LIMIT_BYTES:
                raise PickleTooLargeError(f"the names of the tensors have more than {NAMES_LIMIT_BYTES} bytes")
            claims.append(TensorClaim(name, *found))
        if (id(part.node), part.taken_as) not in seen:
            seen.add((id(part.node), part.taken_as))
            pending.extend(reversed(list(_parts(part))))
    return claims


def _parts(part: _Part) -> Iterator[_Part]:
    """What a part holds; scalars are left out."""
    node, path = part.node, part.path
    if part.taken_as is _As.PAIRS:
        yield from _keyed(_listed_pairs(node), path)
    elif part.taken_as is _As.STATE and isinstance(node, tuple) and len(node) == 2 and all(isinstance(x, (Mapping, _NONE)) for x in node):
        yield from (_Part(each, path, _As.STATE) for each in node)
    elif part.taken_as is _As.STATE and isinstance(node, Mapping):
        for key, value in node.pairs:
            if isinstance(key, str) and key in _MODULE_PARTS:
                yield _Part(value, path)
        yield from _keyed([pair for pair in node.pairs if not (isinstance(pair[0], str) and pair[0] in _MODULE_PARTS)], path)
    elif isinstance(node, Listing):
        yield from _numbered(node.items, path)
    elif isinstance(node, Mapping):
        yield from _keyed(node.pairs, path)
    elif isinstance(node, tuple):
        yield from _numbered(node, path)
    elif isinstance(node, Call):
        yield from _parts_of_call(node, path)


def _parts_of_call(call: Call, path: _Path | None) -> Iterator[_Part]:
    name, args = _function_name(call), call.args
    if name in _WRAPPERS:
        # A tensor in a parameter was found already, under the same path; what else stands there is gone through.
        inner = _unwrapped(call)
        if _tensor(inner) is None:
            yield _Part(args[0] if args else None, path)
        elif isinstance(inner, Call):
            yield from _parts_of_tensor(inner, path)
        yield from (_Part(state, path, _As.STATE) for state in args[3:4])
    elif name in _SUBCLASS_FUNCTIONS:
        inner = _unwrapped(call)
        if isinstance(inner, Call) and inner is not call:
            yield from _parts_of_tensor(inner, path)
        yield from (_Part(state, path, _As.STATE) for state in args[3:4])
    elif name == "collections.OrderedDict":
        yield from (_Part(pairs, path, _As.PAIRS) for pairs in args[:1])
    elif name in _TENSOR_FUNCTIONS or name in _COMPOUND_FUNCTIONS:
        yield from _parts_of_tensor(call, path)
    else:
        yield _Part(args, path)
    yield from _numbered(call.items, path)
    yield from _keyed(call.pairs, path)
    if call.state is not None:
        yield _Part(call.state, path, _As.STATE)


def _parts_of_tensor(call: Call, path: _Path | None) -> Iterator[_Part]:
    """The tensors that another is made of: scales of a quantised one, indices and values of a sparse one."""
    name, args = _function_name(call), call.args
    parts: tuple[str, ...] = ()
    values: object = ()
    if name == "torch._utils._rebuild_sparse_tensor" and len(args) >= 2:
        parts, values = _SPARSE_PARTS.get(_layout_name(args[0]), ()), args[1]
    elif name == "torch._utils._rebuild_nested_tensor":
        parts, values = ("values", "sizes", "strides", "offsets"), args
    elif name == "torch._utils._rebuild_qtensor" and len(args) > 4:
        parts, values = ("qscheme", "scales", "zero_points"), args[4]
    if isinstance(values, tuple):
        yield from (_Part(value, _longer(path, part)) for part, value in zip(parts, values, strict=False))


def _numbered(items: Sequence[object], path: _Path | None) -> Iterator[_Part]:
    for index, item in enumerate(items):
        if _is_container(item):
            yield _Part(item, _longer(path, str(index)))


def _keyed(pairs: list[tuple[object, object]], path: _Path | None) -> Iterator[_Part]:
    """The values of a dict. A key that is set again replaces the value, as in the dict itself."""
    last: dict[tuple[str, str], _Part] = {}
    for index, (key, value) in enumerate(pairs):
        text = _key_text(key)
        kind = type(key).__name__ if text is not None else f"#{index}"
        last[kind, text or ""] = _Part(value, _longer(path, f"[{index}]" if text is None else text))
    yield from (part for part in last.values() if _is_container(part.node))


def _listed_pairs(node: object) -> list[tuple[object, object]]:
    """Python 2 wrote an OrderedDict as a list of lists of two."""
    pairs = []
    for item in node.items if isinstance(node, Listing) else ():
        values = item.items if isinstance(item, Listing) else item
        if isinstance(values, (list, tuple)) and len(values) == 2:
            pairs.append((values[0], values[1]))
    return pairs


def _unwrapped(node: object) -> object:
    """The tensor below the calls that only make a parameter or an object of a subclass of it."""
    for _ in range(_UNWRAP_LIMIT):
        if not isinstance(node, Call):
            break
        name, args = _function_name(node), node.args
        if name in _WRAPPERS and args:
            node = args[0]
        elif name in _SUBCLASS_FUNCTIONS and len(args) >= 3 and isinstance(args[2], tuple):
            node = Call(args[0], args[2])
        else:
            break
    return node


def _tensor(node: object) -> tuple[Storage, str | None, int, int, tuple[int, ...], tuple[int, ...]] | None:
    """What a node says of a tensor, or None if it is none. A storage that stands by itself is a flat tensor."""
    if not isinstance(node, (Call, Persistent)):
        return None
    if isinstance(node, Persistent):
        storage = storage_of(node)
        if storage is None:
            return None
        return storage, storage.label, storage.item_bytes, 0, (storage.length // storage.item_bytes,), (1,)
    name = _function_name(node)
    if name not in _TENSOR_FUNCTIONS:
        return None
    args = node.args
    storage = storage_of(args[0]) if args and isinstance(args[0], Persistent) else None
    if storage is None or len(args) < 4:
        raise PickleSyntaxError(f"a call of {name} without a storage, or with {len(args)} arguments")
    offset, dims, strides = args[1], counts_of(args[2]), counts_of(args[3])
    if not is_count(offset) or dims is None or strides is None or len(dims) != len(strides):
        raise PickleSyntaxError(f"a call of {name} with an offset, size or stride that is none")
    label, item_bytes = storage.label, storage.item_bytes
    if name == "torch._utils._rebuild_tensor_v3":
        dtype = args[6] if len(args) > 6 else None
        if not isinstance(dtype, Global):
            raise PickleSyntaxError(f"a call of {name} without an element type")
        label, item_bytes = dtype_label(dtype.name)
    return storage, label, item_bytes, offset, dims, strides


def counts_of(node: object) -> tuple[int, ...] | None:
    """A size or stride: a tuple, or a torch.Size or list of numbers."""
    if isinstance(node, Call) and _function_name(node) == "torch.Size" and len(node.args) == 1:
        node = node.args[0]
    values = node.items if isinstance(node, Listing) else node
    if not isinstance(values, (list, tuple)) or len(values) > DIMS_LIMIT or not all(is_count(value) for value in values):
        return None
    return tuple(value for value in values if is_count(value))


def _is_container(node: object) -> bool:
    return isinstance(node, (Call, Persistent, Listing, Mapping)) or (isinstance(node, tuple) and bool(node))


def _function_name(call: Call) -> str:
    function = call.function
    return f"{function.module}.{function.name}" if isinstance(function, Global) else ""


def _layout_name(node: object) -> str:
    """A tensor layout: ``torch.serialization._get_layout("torch.sparse_coo")``, or the global itself."""
    if isinstance(node, Call) and node.args and isinstance(node.args[0], str):
        return node.args[0]
    return f"{node.module}.{node.name}" if isinstance(node, Global) else ""


def _key_text(key: object) -> str | None:
    """A key as a part of a name; None for what has no short text."""
    match key:
        case str():
            return key
        case bytes():
            return key.decode("utf-8", "replace")
        case bool() | None | float():
            return str(key)
        case int() if -SIZE_LIMIT < key < 2 * SIZE_LIMIT:
            return str(key)
        case _:
            return None


def _longer(path: _Path | None, key: str) -> _Path:
    depth = path[2] + 1 if path else 1
    if depth > PATH_LIMIT:
        raise PickleTooLargeError(f"containers are nested more than {PATH_LIMIT} deep")
    return (path, key, depth)


def _joined(path: _Path | None) -> str:
    keys: list[str] = []
    while path is not None:
        path, key, _ = path
        keys.append(key)
    # Half of a surrogate pair has no UTF-8, which the layout stream is made of.
    name = ".".join(reversed(keys)).encode("utf-8", "backslashreplace")
    if len(name) > NAME_LIMIT_BYTES - 24:
        raise PickleTooLargeError(f"a tensor's name has {len(name)} bytes; {NAME_LIMIT_BYTES - 24} are the most")
    return name.decode() or ROOT_NAME


def _unique_name(name: str, used: dict[str, int]) -> str:
    """``name``, or with a number behind it where another tensor has it: "a" with "b" inside, and "a.b"."""
    unique = name
    while unique in used:
        used[name] += 1
        unique = f"{name}#{used[name]}"
    used[unique] = 1
    return unique
