"""Pages of a sidecar (SPEC, section 7): streams cut into checked 4 KiB pages, and back."""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum

from bitward_formats.digest import page_check

PAGE_BYTES = 4096
PAYLOAD_BYTES = 4080
CHECKED_BYTES = 4088
GAP_PAGES = 17

TRAILER = struct.Struct("<BBHIQ")
_PLACE = struct.Struct("<BBHI")
_PAGE_ENDS = struct.Struct(f"<{PAYLOAD_BYTES}xIIQ")
"""A page's section, copy and reserved field as one number, its own number, and its check."""

Fetch = Callable[[int, int], bytes]
"""(offset, length) -> bytes of a file; fewer where the file ends, zeros where it cannot be read."""

_COMBINATION_BITS = 12
"""Two damaged copies that differ in up to this many bits are reconciled by trying all combinations."""


class Section(IntEnum):
    SUPERBLOCK = 1
    LAYOUT = 2
    LEAVES = 3
    P = 4
    INNER = 5
    Q = 6
    PADDING = 7
    UNIT_INDEX = 8


def pages_for(stream_bytes: int) -> int:
    """How many pages a stream takes."""
    return -(-stream_bytes // PAYLOAD_BYTES)


def page_bytes(payload: bytes, section: Section, copy: int, page: int, salt: int) -> bytes:
    """One page around up to 4080 bytes of payload."""
    body = payload.ljust(PAYLOAD_BYTES, b"\0") + _PLACE.pack(section, copy, 0, page)
    return body + page_check(body, salt).to_bytes(8, "little")


def paginate(stream: bytes | memoryview, section: Section, copy: int, first_page: int, salt: int) -> bytes:
    """A stream as whole pages."""
    view = memoryview(stream)
    return b"".join(
        page_bytes(bytes(view[at : at + PAYLOAD_BYTES]), section, copy, first_page + at // PAYLOAD_BYTES, salt)
        for at in range(0, len(view), PAYLOAD_BYTES)
    )


def is_sound(page: bytes | memoryview, section: Section, copy: int, number: int, salt: int) -> bool:
    """Whether a page is whole, unharmed and the one that belongs here."""
    if len(page) != PAGE_BYTES or page[CHECKED_BYTES - 8 : CHECKED_BYTES] != _PLACE.pack(section, copy, 0, number):
        return False
    return page_check(page[:CHECKED_BYTES], salt) == int.from_bytes(page[CHECKED_BYTES:], "little")


def unsound(pages: memoryview, section: Section, copy: int, first: int, salt: int) -> list[int]:
    """Numbers of those of some neighbouring pages, the first being page ``first``, that ``is_sound`` refuses; a page that is cut is one.

    All checks of a call are compared at once: verifying an intact sidecar is most of what is done with it.
    """
    count = len(pages) // PAGE_BYTES
    starts = range(0, count * PAGE_BYTES, PAGE_BYTES)
    words = _PAGE_ENDS.iter_unpack(pages[: count * PAGE_BYTES])
    found = [(page_check(pages[at : at + CHECKED_BYTES], salt), number) for number, at in enumerate(starts, first)]
    place = section | copy << 8
    expected = [(check, number) for (low, number, check) in words if low == place]
    bad = []
    if found != expected:
        one = ((number, pages[at : at + PAGE_BYTES]) for number, at in enumerate(starts, first))
        bad = [number for number, page in one if not is_sound(page, section, copy, number, salt)]
    return bad if len(pages) % PAGE_BYTES == 0 else [*bad, first + count]


def mend_flip(page: bytes, section: Section, copy: int, number: int, salt: int) -> bytes | None:
    """Undo a single flipped bit of a page by trying each against the check, or ``None``.

    32,768 tries of a 64-bit check: about 20 ms, and a false success has a chance of 2^-49.
    """
    if len(page) != PAGE_BYTES:
        return None
    place = _PLACE.pack(section, copy, 0, number)
    trial = bytearray(page)
    trial[CHECKED_BYTES - 8 : CHECKED_BYTES] = place
    body = memoryview(trial)[:CHECKED_BYTES]
    stored = int.from_bytes(page[CHECKED_BYTES:], "little")
    if (page_check(body, salt) ^ stored).bit_count() <= 1:  # the flip was in the place or in the check itself
        return bytes(body) + page_check(body, salt).to_bytes(8, "little")
    if page[CHECKED_BYTES - 8 : CHECKED_BYTES] != place:  # more than one bit is wrong
        return None
    for at in range(PAYLOAD_BYTES):
        for bit in range(8):
            trial[at] ^= 1 << bit
            if page_check(body, salt) == stored:
                return bytes(trial)
            trial[at] ^= 1 << bit
    return None


def reconcile(first: bytes, second: bytes, section: Section, numbers: tuple[int, int], salt: int) -> bytes | None:
    """The payload of two damaged copies of a page, if they differ in few bits or have one flip; else ``None``."""
    if len(first) == len(second) == PAGE_BYTES:
        difference = int.from_bytes(first[:PAYLOAD_BYTES], "little") ^ int.from_bytes(second[:PAYLOAD_BYTES], "little")
        if difference.bit_count() <= _COMBINATION_BITS:
            mended = _combine(first, difference, section, numbers, salt, second)
            if mended is not None:
                return mended
    for copy, page in enumerate((first, second)):
        repaired = mend_flip(page, section, copy, numbers[copy], salt)
        if repaired is not None:
            return repaired[:PAYLOAD_BYTES]
    return None


def _combine(first: bytes, difference: int, section: Section, numbers: tuple[int, int], salt: int, second: bytes) -> bytes | None:
    places = []
    while difference:
        low = difference & -difference
        places.append(low.bit_length() - 1)
        difference ^= low
    checks = [int.from_bytes(page[CHECKED_BYTES:], "little") for page in (first, second)]
    for choice in range(1 << len(places)):
        payload = bytearray(first[:PAYLOAD_BYTES])
        for index, place in enumerate(places):
            if choice >> index & 1:
                payload[place // 8] ^= 1 << place % 8
        for copy in (0, 1):
            body = bytes(payload) + _PLACE.pack(section, copy, 0, numbers[copy])
            if page_check(body, salt) == checks[copy]:
                return bytes(payload)
    return None
