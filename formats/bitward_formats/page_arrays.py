"""Large streams as sidecar pages, with one copy of the data: the writer's fast way to what ``pages.paginate`` does."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitward_formats import native
from bitward_formats.digest import page_check
from bitward_formats.pages import CHECKED_BYTES, PAGE_BYTES, PAYLOAD_BYTES, Section, pages_for

Bytes = npt.NDArray[np.uint8]


def paginate_array(stream: Bytes, section: Section, first_page: int, salt: int, scratch: Bytes | None = None) -> Bytes:
    """A stream (n,) u8 as pages (pages, 4096) u8, copy 0, the first being page ``first_page`` of the sidecar.

    ``scratch`` is memory to use for the result, if it is large enough.
    """
    count = pages_for(stream.size)
    if scratch is None or scratch.size < count * PAGE_BYTES:
        scratch = np.empty(count * PAGE_BYTES, np.uint8)
    pages = scratch[: count * PAGE_BYTES].reshape(count, PAGE_BYTES)
    if native.KERNEL is not None:
        native.KERNEL.pages(np.ascontiguousarray(stream), section, first_page, salt, pages)  # type: ignore[arg-type]  # buffers
        return pages
    whole = stream.size // PAYLOAD_BYTES
    pages[:whole, :PAYLOAD_BYTES] = stream[: whole * PAYLOAD_BYTES].reshape(whole, PAYLOAD_BYTES)
    rest = stream[whole * PAYLOAD_BYTES :]
    if rest.size:
        pages[whole, : rest.size] = rest
        pages[whole, rest.size : PAYLOAD_BYTES] = 0
    trailers = pages[:, PAYLOAD_BYTES:]
    trailers[:, 0] = section
    trailers[:, 1:4] = 0
    numbers = np.arange(first_page, first_page + count, dtype="<u4")
    trailers[:, 4:8] = numbers.view(np.uint8).reshape(count, 4)
    view = memoryview(pages.reshape(-1))  # type: ignore[arg-type]  # arrays are buffers
    checks = [page_check(view[at : at + CHECKED_BYTES], salt) for at in range(0, count * PAGE_BYTES, PAGE_BYTES)]
    trailers[:, 8:] = np.array(checks, "<u8").view(np.uint8).reshape(count, 8)
    return pages
