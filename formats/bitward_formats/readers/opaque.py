"""Any file at all, as one span of bytes without meaning. Always possible, never wrong."""

from __future__ import annotations

from bitward_formats.readers.file_view import FileView
from bitward_formats.spans import OPAQUE_KIND, Layout, Role, Span

NAME = "opaque"
SUFFIXES: tuple[str, ...] = ()


def looks_like(head: bytes, file_bytes: int, name: str) -> bool:  # noqa: ARG001 - the readers' common signature
    """Every file looks like bytes."""
    return True


def read_layout(view: FileView, note: str = "") -> Layout:
    """One span over the whole file; none where it is empty. Reads nothing, so it holds for unreadable files too."""
    spans = (Span(Role.DATA, OPAQUE_KIND, 0, view.size),) if view.size else ()
    return Layout(NAME, view.size, spans, note)
