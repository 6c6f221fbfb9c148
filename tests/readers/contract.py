"""What the contract test of the readers is told about one file: how to get it, and what the format's own library says of it.

Each format has a module ``NAME_files.py`` in this folder with a function ``cases() -> list[Case]``; the contract test runs over all of
them. Libraries are imported inside the functions, so that a missing one costs its own cases only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Value = float | int | str


@dataclass(frozen=True)
class Case:
    """One file.

    ``reader`` is the expected ``Layout.format_name``. ``make`` gets an empty folder and returns the path of the file to read: real files
    may be copied or linked, made ones written. ``tensors`` asks the format's own library: name -> the element bytes in the order of the
    file. ``value`` asks it for one element, by tensor and index, of a file that was damaged; it is None where the library cannot say.
    """

    name: str
    reader: str
    make: Callable[[Path], Path]
    tensors: Callable[[Path], dict[str, bytes]]
    value: Callable[[Path, str, tuple[int, ...]], Value] | None
    real: bool = True
