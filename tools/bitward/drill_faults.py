"""The faults of a drill, and whether what ``verify`` named is what was injected.

Sizes follow the file: a fault that would be too large a share of a small file is made smaller, and one for which the file is
too small is left out, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence

from bitward.inject import InjectReport
from bitward.inject_places import ElementLanes, LaneChoice
from bitward_agent.findings import Damage, Flip
from bitward_formats import records
from bitward_formats.frozen import dataclass
from bitward_formats.spans import Layout, Role, Span

_BURST_BYTES = 36
"""The burst in a published shard of OPT-175B."""

_REGION_BYTES = 1 << 16
"""What a bad cluster or a lost network buffer takes: the commonest loss of files at rest."""

_LARGEST_SHARE = 8
_FLIPS = 1000
_BYTES_PER_FLIP = 4096
_SMALLEST_BURST = 4
_SMALLEST_REGION = 512


@dataclass(frozen=True, slots=True)
class Fault:
    """What to inject into the file, and how many bits to flip in its sidecar. ``left_out`` is the reason not to."""

    name: str
    flips: int = 0
    lanes: str | LaneChoice = "all"
    burst_bytes: int = 0
    zero_bytes: int = 0
    sidecar_flips: int = 0
    left_out: str = ""

    @property
    def hurts_file(self) -> bool:
        return bool(self.flips or self.burst_bytes or self.zero_bytes)


def top_exponent_bit(span: Span) -> ElementLanes:
    """The bit whose flip turns a weight into a number beyond all others; the one that attackers and GPUHammer go for."""
    form = records.form_of_span(span)
    tops = ((number, number.type.top_exponent_bit) for number in form.numbers)
    return tuple((form.stored_lanes(number)[top],) for number, top in tops if top is not None) if span.role is Role.TENSOR else ()


def faults_for(layout: Layout) -> list[Fault]:
    """The faults of a drill on a file of this layout, in order."""
    size = layout.file_bytes
    has_floats = any(span.length and top_exponent_bit(span) for span in layout.spans)
    too_small = f"too small a file ({size:,} bytes)"
    many = min(_FLIPS, size // _BYTES_PER_FLIP)
    burst = min(_BURST_BYTES, size // _LARGEST_SHARE)
    region = min(_REGION_BYTES, size // _LARGEST_SHARE // _SMALLEST_REGION * _SMALLEST_REGION)
    region_name = f"{region // 1024} KiB zeroed" if region % 1024 == 0 else f"{region:,} bytes zeroed"
    first = Fault("1 exponent flip", flips=1, lanes=top_exponent_bit) if has_floats else Fault("1 flip", flips=1)
    few = "" if many > 1 else too_small
    short = "" if burst >= _SMALLEST_BURST else too_small
    narrow = "" if region >= _SMALLEST_REGION else too_small
    region_name = "64 KiB zeroed" if narrow else region_name
    return [
        first if size else Fault("1 flip", left_out=too_small),
        Fault(f"{_FLIPS if few else many:,} random flips", flips=many, left_out=few),
        Fault(f"{_BURST_BYTES if short else burst}-byte burst", burst_bytes=burst, left_out=short),
        Fault(region_name, zero_bytes=region, left_out=narrow),
        Fault("1 flip in the sidecar", sidecar_flips=1),
        Fault(f"{region_name}, 1 flip in the sidecar", zero_bytes=region, sidecar_flips=1, left_out=narrow),
    ]


def _named(flip: Flip) -> tuple[str | None, tuple[int, ...], int, int]:
    # The index of an opaque byte adds nothing to its offset.
    return flip.tensor, () if flip.tensor is None else tuple(flip.index), flip.bit, flip.offset


def located(done: InjectReport, damage: Sequence[Damage]) -> bool:
    """Whether verify named exactly what was injected.

    Single flips must be the same ones: tensor, index, bit and offset. Of an overwritten region the blocks must be
    those that it touches, and the number of wrong bits the number that changed.
    """
    flip_count = sum(one.flip_count for one in damage)
    if done.flip_count:
        injected = {(flip.tensor, flip.index, flip.bit, flip.offset) for flip in done.flips}
        return flip_count == done.flip_count and {_named(flip) for one in damage for flip in one.flips} == injected
    region = done.burst or done.zero
    if region is None:
        return not damage
    inside = all(one.offset < region.offset + region.length and region.offset < one.offset + one.length for one in damage)
    return inside and flip_count == region.changed_bits
