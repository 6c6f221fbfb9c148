"""A file elsewhere, read by requests: neighbouring ranges joined, several requests at once, broken ones resumed where they broke."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from bitward_agent.errors import SourceError
from bitward_agent.sources import Range
from bitward_agent.sources.coalesce import coalesce
from bitward_agent.sources.limits import Limits, Meter, Patience, TransientError

Piece = list[tuple[Range, bytes]]


class RemoteFile:
    """Base of files that are read by requests. A subclass gives ``read_part`` and sets ``size``."""

    def __init__(self, limits: Limits, meter: Meter) -> None:
        self.limits, self.meter = limits, meter
        self.size: int | None = None
        self._stopped = threading.Event()

    def close(self) -> None:
        """Nothing is held open between requests."""

    def read_part(self, first: int, end: int, buffer: bytearray) -> None:
        """One request: append bytes ``first .. end`` of the file, or as many as come, to ``buffer``.

        Raises:
            TransientError: worth another try. What came stays in ``buffer``.
            SourceError: not worth one.
        """
        raise NotImplementedError

    def read(self, ranges: Sequence[Range]) -> Iterator[tuple[Range, bytes]]:
        """See ``RangedFile.read``. What is in flight at once is bounded, and so is what waits to be taken."""
        self._stopped.clear()
        size = self.size
        there = [one for one in ranges if one[0] < one[1] and (size is None or one[1] <= size)]
        groups = list(coalesce(there, self.limits.gap_bytes, self.limits.request_bytes))
        if len(groups) == 1:
            yield from self._get_group(groups[0])
            return
        if not groups:
            return
        waiting = iter(groups)
        with ThreadPoolExecutor(self.limits.parallel, thread_name_prefix="bitward-fetch") as pool:
            flying: deque[Future[Piece]] = deque()
            failure: SourceError | None = None
            try:
                while True:
                    while failure is None and len(flying) < self.limits.parallel and (group := next(waiting, None)):
                        flying.append(pool.submit(self._get_group, group))
                    if not flying:
                        break
                    try:
                        yield from flying.popleft().result()
                    except SourceError as error:
                        failure = failure or error  # what is under way may still come; nothing more is asked for
            finally:
                self._stopped.set()  # whoever leaves early, by an error or Ctrl-C, does not wait for attempts to run out
                for one in flying:
                    one.cancel()
        if failure:
            raise failure

    def _get_group(self, group: list[Range]) -> Piece:
        low, high = group[0][0], max(end for _, end in group)
        data = memoryview(self.get(low, high))
        return [((start, end), bytes(data[start - low : end - low])) for start, end in group]

    def get(self, low: int, high: int) -> bytes:
        """Bytes ``low .. high``, in as many requests as it takes. Raises SourceError."""
        buffer = bytearray()
        patience = Patience(self.limits, self._stopped.wait)
        self.meter.reserve(high - low)
        try:
            while len(buffer) < high - low:
                before = len(buffer)
                if self._stopped.is_set():
                    raise SourceError("stopped")
                try:
                    self.meter.count_request()
                    self.read_part(low + before, high, buffer)
                    if len(buffer) < high - low:
                        raise TransientError(f"the answer ends {high - low - len(buffer)} bytes too early")
                except TransientError as error:
                    if len(buffer) == high - low:
                        break  # it broke when all had come
                    patience.failed(error, progressed=len(buffer) > before)
        finally:
            self.meter.give_back(high - low - len(buffer))
        return bytes(buffer)
