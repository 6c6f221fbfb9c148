"""From all that was found to what is told: one story for each place.

Several numbers out of place in a few KiB are no single flips but a range that was overwritten; numbers inside a range that is told as
zeroed, repeated or garbled are told with it; of several stories of one element the likeliest remains.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import replace

from bitward_agent.diagnosis.facts import Suspect
from bitward_agent.diagnosis.lonely import PROPOSAL_NATS
from bitward_agent.io import merge_ranges

_REACH_BYTES = 4096
"""Numbers no further apart than this are taken together."""
_FEWEST = 4
"""Single flips do not come so close together: what is told is a range."""
CANDIDATES_LIMIT = 256
"""Most candidates of a report."""


def settle(found: Iterable[Suspect]) -> tuple[tuple[Suspect, ...], tuple[Suspect, ...]]:
    """(suspects, candidates), each by falling score. Candidates are un-flips that the census alone does not justify."""
    elements: dict[tuple[str, str, tuple[int, ...]], Suspect] = {}
    ranges: list[Suspect] = []
    for one in sorted(found, key=_order):
        if one.kind in ("zeroed-page", "repeated-page", "garbled-range"):
            ranges.append(one)
        else:
            elements.setdefault((one.path, one.tensor, one.index), one)
    free = list(_outside(list(elements.values()), ranges))
    told = [one for one in free if one.score_nats >= PROPOSAL_NATS or one.bit is None]
    candidates = [one for one in free if one.score_nats < PROPOSAL_NATS and one.bit is not None]
    suspects = sorted([*ranges, *_gathered(told)], key=_order)
    return tuple(suspects), tuple(candidates[:CANDIDATES_LIMIT])


def _order(one: Suspect) -> tuple[float, str, int]:
    return -one.score_nats, one.path, one.offset


def _outside(elements: list[Suspect], ranges: list[Suspect]) -> Iterator[Suspect]:
    """Elements that lie in none of the ranges."""
    by_path: dict[str, list[tuple[int, int]]] = {}
    for one in ranges:
        # What is garbled begins before the first number that shows it, and ends after the last.
        margin = _REACH_BYTES if one.kind == "garbled-range" else 0
        by_path.setdefault(one.path, []).append((one.offset - margin, one.offset + one.length_bytes + margin))
    by_path = {path: merge_ranges(places) for path, places in by_path.items()}
    for one in elements:
        places = by_path.get(one.path, [])
        at = bisect_right(places, one.offset, key=lambda place: place[0]) - 1
        if at < 0 or one.offset >= places[at][1]:
            yield one


def _gathered(elements: list[Suspect]) -> Iterator[Suspect]:
    """Elements, but those that lie close together as one range."""
    ordered = sorted(elements, key=lambda one: (one.path, one.tensor, one.offset))
    cluster: list[Suspect] = []
    for one in ordered:
        last = cluster[-1] if cluster else one
        if (one.path, one.tensor) != (last.path, last.tensor) or one.offset - last.offset > _REACH_BYTES:
            yield from _told(cluster)
            cluster = []
        cluster.append(one)
    yield from _told(cluster)


def _told(cluster: list[Suspect]) -> Iterator[Suspect]:
    if len(cluster) < _FEWEST:
        yield from cluster
        return
    first, last = cluster[0], cluster[-1]
    low = first.offset // first.length_bytes * first.length_bytes if first.length_bytes else first.offset
    length = last.offset + last.length_bytes - low
    words = (
        f"{first.tensor}: {len(cluster)} numbers far outside their tensor's range within {length:,} bytes from byte {low:,} on: "
        "overwritten rather than flipped"
    )
    score = max(one.score_nats for one in cluster)
    yield replace(
        first, kind="garbled-range", bit=None, field="", offset=low, length_bytes=length, correct=None, score_nats=score, words=words
    )
