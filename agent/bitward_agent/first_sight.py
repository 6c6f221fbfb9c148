"""What looks damaged already when a file is first seen: NaN and infinities, lonely exponents, zeroed pages.

There is nothing to compare with, so only what no training leaves behind is told:

- *not finite*: a tensor holds NaN or infinities, few of them, or where nearly all other tensors hold none;
- *lonely exponent*: a few values whose exponents lie far above all others of the tensor, with nothing between. A flipped top exponent bit
  makes a weight 2^128 times as large (2^16 in half precision). Among the real models that were looked at, the widest gap is 2^3;
- *zeroed page*: 4 KiB or more that are zero in a tensor that is dense elsewhere, and that do
  not begin and end with rows, as zeroed rows for padding do.

The coder shows each byte to a ``Census`` while it is in the cache; only cells that stand out are read again and looked at value by value.
What was found is words; nothing is decided by it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from bitward_agent.census_numbers import SUSPECT_CELLS_LIMIT, Numbers, exponents_of, read_cells, tops_of, value_of
from bitward_agent.io import OpenFile
from bitward_agent.page_census import Census, Tensor
from bitward_formats.frozen import dataclass
from bitward_formats.spans import Layout

FINDINGS_LIMIT = 100
"""Most findings of one file that are told one by one."""
_PAGE_BYTES = 4096
"""What disks and page caches lose at once: the least run of zeros that is told."""
_FEW_CELLS = 32
"""Tensors of fewer cells are looked at value by value: too few cells for a census of their largest values."""
_OUTLIER_SHARE = 1 / 1000
_OUTLIERS_AT_LEAST = 4
_CENSUS_VALUES = 64
"""Fewest values that make a census."""
_NOT_FINITE_SHARE = 1 / 100
_ZERO_CELLS_SHARE = 1 / 2
_SAMPLE_CELLS = 16
_DENSE_ZERO_SHARE = 1 / 10
_ROW_SLACK = 8
"""Elements by which a zeroed run may miss a row's edge and still be zeroed rows: their neighbours can be zero by chance."""
_ROW_LEAST_BYTES = 512


@dataclass(frozen=True, slots=True)
class Finding:
    """``kind``: not-finite | lonely-exponent | zeroed-page. ``count`` is of values or bytes, ``offset`` of the first one in the file."""

    kind: str
    tensor: str
    count: int
    offset: int
    words: str


def examine(file: OpenFile, layout: Layout, census: Census) -> tuple[Finding, ...]:
    """Look at the tensors of an open file of which a census is complete, in the order of the file."""
    not_finite: list[Finding] = []
    found: list[Finding] = []
    for tensor in census.tensors:
        not_finite += _not_finite(file, tensor)
        found += _lonely(file, tensor)
        found += _zeroed(file, tensor)
    few = len(census.tensors) // 10
    found += [one for one in not_finite if len(not_finite) <= few or one.count <= _count_of(one, layout) * _NOT_FINITE_SHARE]
    found.sort(key=lambda one: one.offset)
    return tuple(found)


def in_words(findings: tuple[Finding, ...]) -> tuple[str, ...]:
    """Findings for a report, cut where they are too many."""
    told = [one.words for one in findings[:FINDINGS_LIMIT]]
    if len(findings) > FINDINGS_LIMIT:
        told.append(f"and {len(findings) - FINDINGS_LIMIT:,} more tensors or ranges")
    return tuple(told)


def _count_of(finding: Finding, layout: Layout) -> int:
    """The number of elements of the tensor that a finding is about."""
    span = next(span for span in layout.spans if span.offset <= finding.offset < span.end)
    return span.length // span.kind.record_bytes


def _not_finite(file: OpenFile, tensor: Tensor) -> Iterator[Finding]:
    form = tensor.form
    suspects = np.flatnonzero(tops_of(tensor) == form.special + 1)
    if not suspects.size:
        return
    nans = infinities = negative_infinities = 0
    first = -1
    for offset, values in read_cells(tensor, file, suspects):
        at = np.flatnonzero(exponents_of(values, form) == form.special)
        magnitudes = values[at] & ((1 << (8 * form.item_bytes - 1)) - 1)
        infinite = magnitudes == form.special << form.mantissa_bits
        nans += int(at.size - infinite.sum())
        infinities += int(infinite.sum())
        negative_infinities += int((infinite & (values[at] != magnitudes)).sum())
        if first < 0 and at.size:
            first = offset + int(at[0]) * form.item_bytes
    count = nans + infinities
    if negative_infinities == count and count >= tensor.count * _NOT_FINITE_SHARE:
        return  # a mask: minus infinity is what such a tensor is made of
    kinds = " and ".join(f"{number:,} {name}" for number, name in ((nans, "NaN"), (infinities, "infinite")) if number)
    more = " or more" if suspects.size > SUSPECT_CELLS_LIMIT else ""
    yield Finding("not-finite", tensor.span.name, count, first, f"{tensor.span.name}: {kinds}{more} of {tensor.count:,} values")


def _lonely(file: OpenFile, tensor: Tensor) -> Iterator[Finding]:
    all_tops = tops_of(tensor)
    form = tensor.form
    tops = all_tops[(all_tops > 0) & (all_tops <= form.special)].astype(np.int64) - 1
    if not tops.size or tops.max() < form.bias + form.least:
        return
    known = 0
    suspects = np.arange(all_tops.size)
    if suspects.size >= _FEW_CELLS:
        usual = int(np.median(tops))
        suspects = np.flatnonzero((all_tops > form.bias + form.least) & (all_tops <= form.special))
        if suspects.size > max(_OUTLIERS_AT_LEAST, all_tops.size // 10):
            return
        # What is below 2 is known by a bound alone: the cells with the usual values are looked at as well.
        sample = np.flatnonzero(all_tops == usual + 1)[:_SAMPLE_CELLS]
        known = max(int(exponents_of(values, form).max()) for _, values in read_cells(tensor, file, sample))
        rest = tops[(tops < form.bias + form.least) & (tops > form.bias)]
        known = max(known, int(rest.max()) if rest.size else 0)
    cells = list(read_cells(tensor, file, suspects))
    exponents = np.concatenate([exponents_of(values, form) for _, values in cells])
    counts = np.bincount(exponents, minlength=form.special + 1)
    present = np.flatnonzero(counts[1 : form.special]) + 1
    cut = _widest_gap(present, known)
    if cut is None or cut[1] - cut[0] < form.gap or cut[1] < form.bias + form.least:
        return
    next_below, lowest = cut
    count = int(counts[lowest : form.special].sum())
    bulk = int(counts[1 : next_below + 1].sum())
    if count > max(_OUTLIERS_AT_LEAST, tensor.count * _OUTLIER_SHARE) or bulk < _CENSUS_VALUES:
        return
    for offset, values in cells:
        fields = exponents_of(values, form)
        at = np.flatnonzero((fields >= lowest) & (fields < form.special))
        if at.size:
            position = offset + int(at[0]) * form.item_bytes
            value = value_of(values[at[0]], form)
            what = "1 value" if count == 1 else f"{count:,} values"
            limit = _short(2.0 ** (next_below - form.bias + 1))
            place = _place(tensor, position)
            words = f"{tensor.span.name}: {what} far outside all others, {_short(value)} at {place}; the rest is below {limit}"
            yield Finding("lonely-exponent", tensor.span.name, count, position, words)
            return


def _widest_gap(present: Numbers, known: int) -> tuple[int, int] | None:
    """The widest step in a sorted list of exponents that ends above ``known``, which counts as one of them: (below, above)."""
    listed = np.unique(np.append(present, known)) if known else present
    if listed.size < 2:
        return None
    steps = np.where(listed[1:] > known, np.diff(listed), 0)
    widest = int(steps.argmax())
    return int(listed[widest]), int(listed[widest + 1])


def _short(value: float) -> str:
    return f"{value:.4g}"


def _place(tensor: Tensor, position: int) -> str:
    """An element by its indices, or where they are not those of the bytes' order by its number."""
    number = (position - tensor.span.offset) // tensor.form.item_bytes
    if "@" in tensor.span.dtype or not tensor.span.dims:
        return f"element {number:,}"
    return f"[{', '.join(map(str, np.unravel_index(number, tensor.span.dims)))}]"


def _zeroed(file: OpenFile, tensor: Tensor) -> Iterator[Finding]:
    """Runs of zeros that are no rows, in a tensor that is dense elsewhere."""
    zero = tops_of(tensor) == 0
    if not zero.any() or zero.sum() > zero.size * _ZERO_CELLS_SHARE or not _is_dense(file, tensor, zero):
        return
    steps = np.flatnonzero(np.diff(np.concatenate(([0], zero.astype(np.int8), [0]))))
    for first, last in steps.reshape(-1, 2)[:SUSPECT_CELLS_LIMIT]:
        low, high = _whole_run(file, tensor, int(first), int(last))
        if high - low >= _PAGE_BYTES - 2 * tensor.form.item_bytes and not _is_rows(tensor, low, high):
            words = f"{tensor.span.name}: {high - low:,} zero bytes from byte {low:,} on, in a tensor that is dense elsewhere"
            yield Finding("zeroed-page", tensor.span.name, high - low, low, words)


def _is_dense(file: OpenFile, tensor: Tensor, zero: npt.NDArray[np.bool_]) -> bool:
    others = np.flatnonzero(~zero)
    sample = others[np.linspace(0, others.size - 1, min(_SAMPLE_CELLS, others.size)).astype(int)]
    counted = [(int((values << 1 == 0).sum()), values.size) for _, values in read_cells(tensor, file, sample)]
    return sum(zeros for zeros, _ in counted) <= sum(size for _, size in counted) * _DENSE_ZERO_SHARE


def _whole_run(file: OpenFile, tensor: Tensor, first: int, last: int) -> tuple[int, int]:
    """The bytes of a run of zero cells ``first .. last``, with the zeros before and after it in the neighbouring cells."""
    low, high = tensor.cell_offset(first), tensor.cell_offset(last)
    item = tensor.form.item_bytes
    if first:
        ((_, before),) = read_cells(tensor, file, np.array([first - 1]))
        filled = np.flatnonzero(before)
        low -= (before.size - 1 - int(filled[-1]) if filled.size else before.size) * item
    if last < tops_of(tensor).size:
        ((_, after),) = read_cells(tensor, file, np.array([last]))
        filled = np.flatnonzero(after)
        high += (int(filled[0]) if filled.size else after.size) * item
    return low, high


def _is_rows(tensor: Tensor, low: int, high: int) -> bool:
    """Whether a run begins and ends with rows of the tensor, of whatever dimension."""
    slack = _ROW_SLACK * tensor.form.item_bytes
    row = tensor.form.item_bytes
    for length in reversed(tensor.span.dims[1:] or tensor.span.dims):
        row *= length
        if row < _ROW_LEAST_BYTES or row > high - low + 2 * slack:
            continue
        edges = [(edge - tensor.span.offset) % row for edge in (low, high)]
        if all(min(edge, row - edge) <= slack for edge in edges):
            return True
    return False
