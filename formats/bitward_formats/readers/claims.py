"""From the places that a file's header claims for its tensors to spans that tile the file.

For formats whose tensors may lie anywhere, share bytes or overlap. Names are made unique; of claims to the same bytes the first is the
span and the others are its aliases; of two that overlap otherwise the larger stays. What nobody claims is filled up with opaque spans.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from bitward_formats import records
from bitward_formats.frozen import dataclass
from bitward_formats.spans import OPAQUE_KIND, Layout, Role, Span


@dataclass(frozen=True, slots=True)
class Claim:
    """Bytes ``start .. end`` of the file: a tensor's, or opaque ones, which have neither name nor ``dtype`` nor ``dims``."""

    start: int
    end: int
    name: str = ""
    dtype: str = ""
    dims: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Fillers:
    """Roles of what nobody claims: before the first claim, between claims, behind the last."""

    before: Role
    between: Role
    after: Role


def layout_of_claims(format_name: str, file_bytes: int, claims: Iterable[Claim], fillers: Fillers, notes: Iterable[str] = ()) -> Layout:
    """The layout that has the claims as spans. All must lie within the file and fit their dtype; that is the caller's to check.

    ``notes`` begin the layout's note; what became of names and overlaps follows.
    """
    ordered = sorted(claims, key=attrgetter("start", "end"))
    ordered, renamed_count = _unique_names(ordered)
    kept, aliases, dropped_count = _settle(ordered)
    said = list(notes)
    if renamed_count:
        said.append(f"{renamed_count} {_tensors(renamed_count)} of names that were taken got a number behind theirs")
    if dropped_count:
        said.append(f"{dropped_count} {_tensors(dropped_count)} overlapping a larger one left out")
    return Layout(format_name, file_bytes, tuple(_tile(kept, file_bytes, fillers)), "; ".join(said), tuple(aliases))


def _tensors(count: int) -> str:
    return "tensor" if count == 1 else "tensors"


def _unique_names(claims: list[Claim]) -> tuple[list[Claim], int]:
    """The claims, each tensor under a name of its own; and how many had to be renamed."""
    taken = {claim.name for claim in claims if claim.dtype}
    seen: set[str] = set()
    next_number: dict[str, int] = {}
    renamed = []
    renamed_count = 0
    for claim in claims:
        if claim.dtype and claim.name in seen:
            number = next_number.get(claim.name, 2)
            while f"{claim.name}#{number}" in taken:
                number += 1
            next_number[claim.name] = number + 1
            claim = Claim(claim.start, claim.end, f"{claim.name}#{number}", claim.dtype, claim.dims)
            taken.add(claim.name)
            renamed_count += 1
        seen.add(claim.name)
        renamed.append(claim)
    return renamed, renamed_count


def _settle(ordered: list[Claim]) -> tuple[list[Claim], list[tuple[str, str]], int]:
    """Claims without overlap, in order; the aliases; and how many tensors were left out."""
    kept: list[Claim] = []
    named: list[tuple[str, tuple[int, int]]] = []
    dropped_count = 0
    for claim in ordered:
        last = kept[-1] if kept else None
        if last is None or claim.start >= last.end:
            kept.append(claim)
        elif claim.dtype and last.dtype and (claim.start, claim.end) == (last.start, last.end):
            named.append((claim.name, (last.start, last.end)))
        elif claim.end - claim.start > last.end - last.start:
            # What lies before ``last`` ends where it starts or earlier, so the larger one fits in its place.
            kept[-1] = claim
            dropped_count += bool(last.dtype)
        else:
            dropped_count += bool(claim.dtype)
    owners = {(claim.start, claim.end): claim.name for claim in kept if claim.dtype and claim.end > claim.start}
    aliases = [(name, owners[place]) for name, place in named if place in owners]
    return kept, aliases, dropped_count + len(named) - len(aliases)


def _tile(claims: list[Claim], file_bytes: int, fillers: Fillers) -> list[Span]:
    spans: list[Span] = []
    place = 0
    for claim in claims:
        if claim.start > place:
            spans.append(Span(fillers.between if spans else fillers.before, OPAQUE_KIND, place, claim.start - place))
        if claim.dtype:
            kind = records.kind_of(claim.dtype)
            spans.append(Span(Role.TENSOR, kind, claim.start, claim.end - claim.start, claim.dtype, claim.dims, claim.name))
        elif claim.end > claim.start:
            spans.append(Span(Role.DATA, OPAQUE_KIND, claim.start, claim.end - claim.start))
        place = claim.end
    if place < file_bytes:
        spans.append(Span(fillers.after if spans else fillers.before, OPAQUE_KIND, place, file_bytes - place))
    return spans
