"""NumPy's files for the contract test: real archives, and made ones of every element type, order and version."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import real_weights
from readers.contract import Case, Value

ELEMENT_TYPES = (
    "?",
    "i1",
    "u1",
    *(order + kind for order in "<>" for kind in ("i2", "i4", "i8", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")),
)
SEED = 20240817


def weights(dtype: str, shape: tuple[int, ...], order: str = "C") -> Any:
    """Random numbers of any type, of the size of weights."""
    import numpy

    seeded = numpy.random.default_rng([SEED, *dtype.encode(), *shape])
    kind = numpy.dtype(dtype).kind
    if kind in "fc":
        values = seeded.normal(0, 0.05, shape) + (1j * seeded.normal(0, 0.05, shape) if kind == "c" else 0)
    else:
        values = seeded.integers(0, 2 if kind == "b" else 100, shape)
    return numpy.asarray(values).astype(dtype, order=order)


def element_value(array: Any, index: tuple[int, ...]) -> Value:
    """One element as reports show it: a number, or text where JSON has no number for it."""
    import numpy

    array = numpy.asarray(array)
    # Of a boolean, what damage made of its byte.
    element = (array.view("u1") if array.dtype.kind == "b" else array)[index]
    if element.dtype.kind == "c":
        digits = 17 if element.dtype.itemsize == 16 else 9
        return f"{element.real:.{digits}g}{element.imag:+.{digits}g}j"
    if element.dtype.kind == "f":
        value = float(element)
        return value if numpy.isfinite(value) else str(value)
    return int(element)


def memory_of(array: Any) -> bytes:
    """The elements' bytes in the order in which a file has them."""
    contents: bytes = array.tobytes(order="A")
    return contents


def archive_tensors(path: Path) -> dict[str, bytes]:
    import numpy

    with numpy.load(path) as archive:
        return {name: memory_of(archive[name]) for name in archive.files}


def archive_value(path: Path, name: str, index: tuple[int, ...]) -> Value:
    """Read through a map: an archive's checksums would refuse a damaged entry."""
    import io
    import zipfile

    import numpy

    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(name + ".npy")
    data = path.read_bytes()
    at = info.header_offset
    start = at + 30 + int.from_bytes(data[at + 26 : at + 28], "little") + int.from_bytes(data[at + 28 : at + 30], "little")
    return element_value(numpy.load(io.BytesIO(data[start : start + info.file_size])), index)


def array_tensors(path: Path) -> dict[str, bytes]:
    import numpy

    return {"array": memory_of(numpy.load(path))}


def array_value(path: Path, name: str, index: tuple[int, ...]) -> Value:
    import numpy

    return element_value(numpy.load(path), index)


def array_case(name: str, dtype: str, shape: tuple[int, ...], order: str = "C", version: tuple[int, int] | None = None) -> Case:
    def make(folder: Path) -> Path:
        import numpy

        path = folder / "made.npy"
        with path.open("wb") as file:
            numpy.lib.format.write_array(file, weights(dtype, shape, order), version=version)
            # Loading takes the first of several arrays; damage to the others leaves it as it is.
            numpy.save(file, weights("<f4", (100,)))
        return path

    return Case(name, "npy", make, array_tensors, array_value, real=False)


def make_mixed(folder: Path) -> Path:
    """An archive with plain arrays, Fortran order, big endian, an empty one and a scalar; all of them plain numbers."""
    import numpy

    path = folder / "mixed.npz"
    arrays = {f"type {number}": weights(dtype, (5, 7)) for number, dtype in enumerate(ELEMENT_TYPES)}
    numpy.savez(path, fortran=weights("<f4", (6, 4, 5), "F"), empty=weights("<f4", (0, 3)), scalar=weights("<f8", ()), **arrays)
    return path


def copied(package: str, inside: str) -> Callable[[Path], Path]:
    """Makes a file that a Python package ships."""

    def make(folder: Path) -> Path:
        source = real_weights(package) / inside
        return Path(shutil.copyfile(source, folder / source.name))

    return make


def cases() -> list[Case]:
    """Real and made files of both formats."""
    # The archive has all element types.
    made = [array_case(f"npy, {dtype}", dtype, (7, 3)) for dtype in ("?", "<f4", ">f4", ">i2", "<c8", ">c16")]
    made += [array_case(f"npy, Fortran order, {dtype}", dtype, (4, 3, 5), "F") for dtype in ("<f4", ">f2")]
    made += [array_case(f"npy, version {version[0]}", "<f4", (9,), version=version) for version in ((1, 0), (2, 0), (3, 0))]
    made += [array_case(f"npy, shape {shape}", "<f4", shape) for shape in ((), (0,), (3, 0, 2), (1, 1, 5), (2,) * 8)]
    return [
        Case("npz stored, g2p-en", "npz", copied("g2p_en", "checkpoint20.npz"), archive_tensors, archive_value),
        Case("npz deflated, openai-whisper", "npz", copied("whisper", "assets/mel_filters.npz"), lambda path: {}, None),
        Case("npz mixed", "npz", make_mixed, archive_tensors, archive_value, real=False),
        *made,
    ]
