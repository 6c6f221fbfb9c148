"""HDF5 files for the contract test: a real Keras file, and made ones of every version of the format that h5py writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from readers.contract import Case, Value
from readers.numpy_files import copied, element_value, weights

VERSIONS = ("earliest", "v108", "v110", "v114", "latest")
"""Of the format, as h5py's ``libver`` names them: superblocks 0, 2 and 3, object headers 1 and 2."""
USER_BLOCK_BYTES = (0, 512, 2048)


def _arrays(file: Any) -> dict[str, Any]:
    """Every data set of numbers that lies in one piece, by each of its paths; groups are entered once."""
    import h5py
    import numpy

    found = {}
    entered = set()

    def enter(group: Any, path: str) -> None:
        address = h5py.h5o.get_info(group.id).addr
        if address in entered:
            return
        entered.add(address)
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                continue
            node = group[name]
            if isinstance(node, h5py.Group):
                enter(node, f"{path}{name}/")
            elif isinstance(node, h5py.Dataset) and is_in_one_piece(node):
                found[path + name] = numpy.asarray(node[()])

    enter(file, "")
    return found


def is_in_one_piece(dataset: Any) -> bool:
    """Whether a data set of numbers lies in the file in one piece, or has no elements at all."""
    if dataset.shape is None or dataset.dtype.kind not in "biufc" or dataset.chunks:
        return False
    return not dataset.size or dataset.id.get_offset() is not None


def hdf5_tensors(path: Path) -> dict[str, bytes]:
    import h5py

    with h5py.File(path) as file:
        return {name: array.tobytes() for name, array in _arrays(file).items()}


def hdf5_value(path: Path, name: str, index: tuple[int, ...]) -> Value:
    import h5py
    import numpy

    with h5py.File(path) as file:
        dataset = file[name]
        # Booleans are an enumeration of signed bytes: a damaged one is read as the number it is, and the byte of that is wanted.
        if dataset.dtype.kind == "b":
            return element_value(numpy.asarray(dataset.astype("i1")[()]).view("u1"), index)
        return element_value(dataset[()], index)


def fill_weights(file: Any) -> None:
    """A Keras-like tree: nested groups, many types, a scalar, an empty array, attributes that need continuation blocks."""
    import h5py
    import numpy

    for dtype in ("<f4", "<f8", "<f2", ">f4", ">f2", "i1", "u1", "<i2", ">i4", "<u8", "<c8", ">c16", "?"):
        file[f"model_weights/dense_{dtype}/kernel:0"] = weights(dtype, (6, 4))
    file["model_weights/dense_<f4/bias:0"] = weights("<f4", (4,))
    file["optimizer/iterations"] = numpy.int64(1234)
    file["optimizer/empty"] = numpy.zeros((0, 3), "f4")
    file["enumerated"] = numpy.array([1, 2, 1], dtype=h5py.enum_dtype({"A": 1, "B": 2}, "i4"))
    file["rows"] = weights("<f4", (9, 8, 7))
    file["tied"] = file["rows"]
    file["model_weights/again"] = file["model_weights"]
    file["soft"] = h5py.SoftLink("/rows")
    file["external"] = h5py.ExternalLink("elsewhere.h5", "/rows")
    file["named"] = numpy.dtype("<f4")
    file.create_dataset("of a named type", data=weights("<f4", (3,)), dtype=file["named"])
    for number in range(40):
        file["rows"].attrs[f"attribute {number}"] = "x" * number


def fill_opaque(file: Any) -> None:
    """What is not protected as tensors, between two arrays that are."""
    import h5py
    import numpy

    rows = weights("<f4", (20, 10))
    file["first"] = rows
    file.create_dataset("chunks", data=rows, chunks=(5, 5))
    file.create_dataset("packed", data=rows, chunks=(20, 10), compression="gzip")
    file.create_dataset("growing", data=rows, chunks=(5, 10), maxshape=(None, 10))
    file.create_dataset("growing twice", data=rows, chunks=(5, 5), maxshape=(None, None))
    file.create_dataset("never written", (3, 3), "f4")
    file["null"] = h5py.Empty("f4")
    file["text"] = ["a", "longer", "text"]
    file["fixed text"] = numpy.array([b"ab", b"c"])
    file["records"] = numpy.zeros(3, dtype=[("a", "<f4"), ("b", "<i2")])
    file.create_virtual_dataset("virtual", h5py.VirtualLayout((20, 10), "f4"))
    file["last"] = rows + 1


def fill_crowd(file: Any) -> None:
    """A group whose links do not fit one node, heap or header."""
    for number in range(300):
        file[f"crowd/a rather long name of a data set {number}"] = weights("<f4", (2,)) + number


def made(name: str, fill: Callable[[Any], None], libver: str, user_block_bytes: int = 0) -> Case:
    def make(folder: Path) -> Path:
        import h5py

        path = folder / "made.h5"
        with h5py.File(path, "w", libver=libver, userblock_size=user_block_bytes) as file:
            fill(file)
        return path

    return Case(name, "hdf5", make, hdf5_tensors, hdf5_value, real=False)


def cases() -> list[Case]:
    """A real file, and made ones of each version, with and without a user block."""
    real = Case("Keras .h5, deepcut", "hdf5", copied("deepcut", "weight/cnn_without_ne_ab.h5"), hdf5_tensors, hdf5_value)
    kinds = (("weights", fill_weights), ("opaque", fill_opaque))
    by_version = [made(f"HDF5 {libver}, {kind}", fill, libver) for libver in VERSIONS for kind, fill in kinds]
    by_version += [made(f"HDF5 {libver}, a crowd", fill_crowd, libver) for libver in VERSIONS[::4]]
    blocks = [made(f"HDF5, user block of {size}", fill_weights, libver, size) for libver in VERSIONS[::4] for size in USER_BLOCK_BYTES[1:]]
    return [real, *by_version, *blocks]
