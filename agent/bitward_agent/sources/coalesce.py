"""Which ranges are asked for together: neighbours, and those with a gap that costs less than a request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bitward_agent.sources import Range


def coalesce(ranges: Iterable[Range], gap_bytes: int, request_bytes: int) -> Iterator[list[Range]]:
    """Sorted ranges in groups, each for one request, which reaches from the first one's start to the last one's end.

    Ranges more than ``gap_bytes`` apart are never in one group; a group of several ranges takes at most ``request_bytes``.
    """
    group: list[Range] = []
    reach = 0
    for low, high in sorted(ranges):
        if group and (low - reach > gap_bytes or max(reach, high) - group[0][0] > request_bytes):
            yield group
            group, reach = [], 0
        group.append((low, high))
        reach = max(reach, high)
    if group:
        yield group
