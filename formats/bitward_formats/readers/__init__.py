"""One reader per checkpoint format: from a file's own header to the spans that cover it.

Readers never open a file. They get a ``FileView``: ``fetch(offset, length)``, which returns bytes of the file (fewer only where the file
ends), its size, its name and, for formats that need them, the files beside it; what ``fetch`` raises goes through untouched. A format is
a module with the four names of ``Reader``, listed in ``hints.READERS``; its ``read_layout`` gives a layout that tiles the file or raises
a named CheckpointError. Nothing is refused here: what no reader understands is protected as opaque bytes, and the layout's note says why.
"""

from __future__ import annotations

from importlib import import_module
from typing import Protocol

from bitward_formats.errors import CheckpointError
from bitward_formats.readers import opaque
from bitward_formats.readers.file_view import Alone, Fetch, FileView, Neighbours
from bitward_formats.readers.hints import COMPANIONS, READERS
from bitward_formats.spans import Layout

HEAD_BYTES = 4096
"""How much of a file's beginning the readers are shown before one is chosen."""


class Reader(Protocol):
    """What a format's module offers."""

    @property
    def NAME(self) -> str:  # noqa: N802 - a module constant, seen as an attribute
        """The format's name in the layout stream."""

    @property
    def SUFFIXES(self) -> tuple[str, ...]:  # noqa: N802 - likewise
        """Endings of the names of such files, in lower case."""

    def looks_like(self, head: bytes, file_bytes: int, name: str) -> bool:
        """Whether the file's first bytes or its name claim this format. Cheap, and may be wrong."""

    def read_layout(self, view: FileView) -> Layout:
        """The layout of a file of this format. Raises CheckpointError."""


class Companion(Protocol):
    """What a module offers for files that only the files beside them can explain: they have no header and any name."""

    @property
    def NAME(self) -> str:  # noqa: N802 - a module constant, seen as an attribute
        """The format's name in the layout stream."""

    def layout_beside(self, view: FileView) -> Layout | None:
        """The layout of the file by what its neighbours say; None if none of them speaks of it."""


def layout_of(fetch: Fetch, file_bytes: int, name: str, neighbours: Neighbours | None = None) -> Layout:
    """The layout of any file.

    The readers that the file looks like are tried in turn. If all of them refuse it, it may be a file that another one explains; else
    the layout is opaque and its note names the errors.
    """
    view = FileView(name, file_bytes, fetch, neighbours or Alone())
    head = fetch(0, min(file_bytes, HEAD_BYTES))
    refusals = []
    for hint in READERS:
        if not hint.is_possible(head, name):
            continue
        reader: Reader = import_module(f"{__name__}.{hint.module}")
        if not reader.looks_like(head, file_bytes, name):
            continue
        try:
            return reader.read_layout(view)
        except CheckpointError as error:
            refusals.append(f"not valid {reader.NAME} ({type(error).__name__}: {error})")
    for beside in COMPANIONS:
        if any(one.lower().endswith(beside.suffixes) for one in view.neighbours.names()):
            companion: Companion = import_module(f"{__name__}.{beside.module}")
            layout = companion.layout_beside(view)
            if layout is not None:
                return layout
    return opaque.read_layout(view, note="; ".join(refusals))
