"""What a file is made of: its spans, record kinds and critical lanes. Reads the file's own header and no sidecar."""

from __future__ import annotations

from bitward_agent.io import DISK, Disk, OpenFile
from bitward_agent.neighbours import layout_of_file
from bitward_formats import records
from bitward_formats.frozen import dataclass
from bitward_formats.packing_sizes import lane_count
from bitward_formats.spans import Layout, RecordKind, Role, Span

_ROLES = {Role.TENSOR: "tensor", Role.HEADER: "header", Role.GAP: "gap", Role.TRAILER: "trailer", Role.DATA: "data"}


@dataclass(frozen=True, slots=True)
class KindReport:
    """A record kind, with all that is made of it. ``dtype`` is empty for bytes that belong to no tensor.

    ``record_bytes`` long, a record holds ``elements``; of its ``lanes`` (bits) so many are ``critical``, as (first, last) in
    ``critical_lanes``, and their share is ``critical_share``. ``spans`` of this kind take ``bytes``, ``share`` of the file.
    """

    dtype: str
    record_bytes: int
    elements: int
    lanes: int
    critical: int
    critical_lanes: tuple[tuple[int, int], ...]
    critical_share: float
    spans: int
    bytes: int
    share: float


@dataclass(frozen=True, slots=True)
class SpanReport:
    """A span: ``role`` is tensor, header, gap, trailer or data; ``tensor`` is null, and ``dtype`` and ``shape`` are empty, but for tensors.

    ``offset`` and ``bytes`` are its place in the file. ``kind`` counts in the file's ``kinds``.
    """

    role: str
    tensor: str | None
    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int
    kind: int


@dataclass(frozen=True, slots=True)
class FileInspection:
    """A file. ``aliases`` are further names of tensors, as (name, tensor that has the bytes); ``note`` is what a person should know.

    ``message`` says why nothing could be told; then the ``exit_code`` is not 0.
    """

    path: str
    bytes: int
    format: str
    tensors: int
    kinds: tuple[KindReport, ...] = ()
    spans: tuple[SpanReport, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    note: str = ""
    message: str = ""
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class InspectReport:
    schema: str
    files: tuple[FileInspection, ...]
    exit_code: int = 0


def inspect_file(path: str, disk: Disk = DISK) -> FileInspection:
    """What the file at ``path`` is made of.

    Raises:
        UnreadableError.
    """
    with OpenFile(path, disk=disk) as file:
        layout = layout_of_file(file, file.state().size)
    return _inspection(path, layout)


def _inspection(path: str, layout: Layout) -> FileInspection:
    members: dict[tuple[str, RecordKind], list[Span]] = {}
    for span in layout.spans:
        members.setdefault(_key(span), []).append(span)
    numbers = {key: number for number, key in enumerate(members)}
    spans = tuple(
        SpanReport(
            *(_ROLES[span.role], span.name if span.role is Role.TENSOR else None, span.dtype, span.dims),
            *(span.offset, span.length, numbers[_key(span)]),
        )
        for span in layout.spans
    )
    kinds = tuple(_kind(dtype, kind, some, layout.file_bytes) for (dtype, kind), some in members.items())
    tensors = sum(span.role is Role.TENSOR for span in layout.spans)
    return FileInspection(path, layout.file_bytes, layout.format_name, tensors, kinds, spans, layout.aliases, layout.note)


def _key(span: Span) -> tuple[str, RecordKind]:
    """Spans are of one kind here if people would say so: the order of axes is a tensor's own affair."""
    return span.dtype.partition("@")[0], span.kind


def _kind(dtype: str, kind: RecordKind, spans: list[Span], file_bytes: int) -> KindReport:
    lanes = 8 * kind.record_bytes
    critical = lane_count(kind.critical_mask)
    size = sum(span.length for span in spans)
    return KindReport(
        dtype=dtype,
        record_bytes=kind.record_bytes,
        elements=records.form_of_span(spans[0]).elements,
        lanes=lanes,
        critical=critical,
        critical_lanes=_ranges(kind.critical_mask),
        critical_share=critical / lanes,
        spans=len(spans),
        bytes=size,
        share=size / file_bytes if file_bytes else 0.0,
    )


def _ranges(mask: bytes) -> tuple[tuple[int, int], ...]:
    """Runs of set bits, as (first, last)."""
    found: list[tuple[int, int]] = []
    for lane in range(8 * len(mask)):
        if mask[lane // 8] >> lane % 8 & 1:
            if found and found[-1][1] == lane - 1:
                found[-1] = found[-1][0], lane
            else:
                found.append((lane, lane))
    return tuple(found)
