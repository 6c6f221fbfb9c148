"""Where a damaged blob looks as if it had lost something: zeroed pages, unreadable sectors, a missing end. Its digest decides, not this."""

from __future__ import annotations

from bitward_agent.io import OpenFile, Range, merge_ranges

CHUNK_BYTES = 1 << 20
PAGE_BYTES = 4096
"""The smallest run of zeros that is suspected, aligned: file systems and downloads lose whole pages."""
SUSPECTS_LIMIT = 65_536
"""Most suspected ranges; a file with more of them is not healed by ranges."""
_ZEROS = bytes(CHUNK_BYTES)
_ZERO_PAGE = bytes(PAGE_BYTES)


def suspects(path: str, expected_bytes: int | None, unreadable: tuple[Range, ...] = ()) -> tuple[Range, ...]:
    """Ranges of a damaged blob that look lost: zeroed pages, unreadable sectors, and what is missing at its end. Zeros may be right, too.

    Raises:
        UnreadableError: it cannot be opened or read.
    """
    found = list(unreadable)
    with OpenFile(path) as file:
        size = file.state().size
        if expected_bytes is not None and size < expected_bytes:
            found.append((size, expected_bytes))
        end = size if expected_bytes is None else min(size, expected_bytes)
        buffer = memoryview(bytearray(CHUNK_BYTES))
        for offset in range(0, end, CHUNK_BYTES):
            view = buffer[: min(CHUNK_BYTES, end - offset)]
            file.read_into(view, offset)
            found += _zero_pages(view, offset)
            if len(found) > SUSPECTS_LIMIT:
                found = merge_ranges(found)
                if len(found) > SUSPECTS_LIMIT:
                    return tuple(found[:SUSPECTS_LIMIT])
    return tuple(merge_ranges(found))


def _zero_pages(view: memoryview, offset: int) -> list[Range]:
    """Pages of zeros in a piece that begins at a page; the file's last one may be shorter."""
    if view == _ZEROS[: len(view)]:
        return [(offset, offset + len(view))]
    found: list[Range] = []
    for at in range(0, len(view), PAGE_BYTES):
        page = view[at : at + PAGE_BYTES]
        if page == _ZERO_PAGE[: len(page)]:
            if found and found[-1][1] == offset + at:
                found[-1] = (found[-1][0], offset + at + len(page))
            else:
                found.append((offset + at, offset + at + len(page)))
    return found
