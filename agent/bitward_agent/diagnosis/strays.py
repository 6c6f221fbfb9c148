"""Numbers beyond all reason or not finite, in crowds: what is left to say where single flips do not explain them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bitward_agent.diagnosis.census import Countable
from bitward_agent.diagnosis.facts import Step, Suspect
from bitward_agent.diagnosis.priors import read_rows

FEW = 16
"""So many at one end of a tensor are looked at one by one (``lonely``)."""
_ROWS_LIMIT = 64
_ROWS_LIMIT_BYTES = 1 << 22
"""Most rows, and bytes of them, that are read to say where they are."""
_BEYOND_OCTAVES = 24
_USUAL_OCTAVES = 8
"""No trained weight is 2^24; a tensor whose numbers are mostly below 2^8 has no business there."""
_STRAY_SHARE = 1 / 10
_MASK_SHARE = 1 / 100
_TOLD_NATS = 20.0
"""The score of what is not weighed."""


def strays(census: Countable) -> Iterator[Suspect]:
    """Numbers beyond all reason or not finite, where they are too many, or a tensor too small, to tell what each was: one suspect.

    What a mask is made of is well: one value, in many places.
    """
    form, kind = census.form, census.top.dtype.type
    beyond = form.bias + min(_BEYOND_OCTAVES, (1 << form.exponent_bits) - 3 - form.bias)
    special = int(census.exponents[form.special :].sum())
    count = int(census.exponents[beyond:].sum())
    usual = int(census.exponents[1 : form.bias + _USUAL_OCTAVES].sum())
    too_many = count > FEW and count <= usual * _STRAY_SHARE
    if not too_many and not special:
        return
    mantissa = form.mantissa_bits
    limit = min(_ROWS_LIMIT, max(1, _ROWS_LIMIT_BYTES // (census.row_length * form.item_bytes)))
    rows = np.flatnonzero((census.top >> kind(mantissa)) >= beyond)[:limit]
    grid = read_rows(census, rows)
    fields = (grid & kind(form.magnitude_mask)) >> kind(mantissa)
    places = np.flatnonzero(fields >= (beyond if too_many else form.special))
    found = grid.reshape(-1)[places]
    is_one = bool((found == found[:1]).all()) and (found.size == 0 or form.value(int(found[0])) != "nan")
    if not found.size or (is_one and count >= census.count * _MASK_SHARE):
        return
    row, column = np.divmod(places[[0, -1]], census.row_length)
    path, series, number = census.place(int(rows[row[0]]), int(column[0]))
    last_path, last_series, last = census.place(int(rows[row[1]]), int(column[1]))
    index, value, name = series.index(number), form.value(int(found[0])), series.span.name
    offset, length = series.offset(number), form.item_bytes
    what = f"2^{beyond - form.bias} and more, or no numbers" if too_many else "no numbers"
    words = f"{name}: {count if too_many else special:,} of {census.count:,} are {what}, the first ({value}) at {list(index)}"
    if too_many and (last_path, last_series) == (path, series) and rows.size < limit:
        length = series.offset(last) + form.item_bytes - offset
        words += f", the last {length:,} bytes further on"
    told = "garbled-range" if too_many else "not-finite"
    yield Suspect(Step.TRIAGE, told, path, name, index, None, "", offset, length, value, None, _TOLD_NATS, words)
