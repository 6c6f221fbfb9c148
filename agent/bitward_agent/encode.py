"""Coding a file: digests, inner and outer parity of every zone in one pass, by a small pool of threads.

Work is cut by stripes, which never share a slot: a worker takes some neighbouring stripes of a zone, reads their slots position by
position in runs that lie together in the file, and keeps only their P and Q. Memory does not depend on the file's size.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from bitward_agent.errors import UnreadableError
from bitward_agent.findings import Progress, ProgressSink
from bitward_agent.io import OpenFile
from bitward_agent.page_census import Census
from bitward_agent.scan import default_jobs
from bitward_formats.digest import LeafHash, run_leaves
from bitward_formats.geometry import CodeClass, InnerOffsets, Piece, Run, Zone
from bitward_formats.groups import LaneGroups
from bitward_formats.lanes import inner_blobs
from bitward_formats.packing import pack_lanes
from bitward_formats.packing_sizes import is_all_lanes
from bitward_formats.pages import Section
from bitward_formats.sidecar import Plan
from bitward_formats.stripes import StripeAccumulator

Bytes = npt.NDArray[np.uint8]

_BATCH_SLOTS = 32
"""Slots that are read and coded at once, 2 MiB: smaller batches cost more in calls than they save in the cache (measured from 4 to 64)."""


@dataclass(slots=True)
class ZoneParity:
    """The three streams of a zone, complete."""

    zone: Zone
    p: Bytes
    inner: Bytes
    q: Bytes

    def streams(self) -> Iterator[tuple[Section, int, Bytes]]:
        """(section, first page, stream) of each."""
        yield Section.P, self.zone.p_page, self.p
        yield Section.INNER, self.zone.inner_page, self.inner
        yield Section.Q, self.zone.q_page, self.q


class _ZoneCoder:
    """Collects what the workers of one zone make."""

    def __init__(self, zone: Zone, groups: LaneGroups) -> None:
        self.zone = zone
        self.offsets = InnerOffsets(zone, groups)
        self.inner = np.zeros(zone.inner_stream_bytes, np.uint8)
        self.parts: dict[int, tuple[Bytes, Bytes]] = {}

    def keep(self, first_stripe: int, accumulator: StripeAccumulator | None, stripe_count: int) -> None:
        if accumulator is None:
            return
        p, q = accumulator.result()
        if stripe_count != self.zone.stripe_count:
            p, q = p.copy(), q.copy()  # they are in the worker's scratch memory, and the worker may take another part of this zone
        stripes = range(first_stripe, first_stripe + stripe_count)
        self.parts[first_stripe] = (stored_parity(self.zone, stripes, p), stored_parity(self.zone, stripes, q))

    def result(self) -> ZoneParity:
        parts = [self.parts[first] for first in sorted(self.parts)]
        nothing = np.zeros(0, np.uint8)
        p, q = (parts[0][which] if len(parts) == 1 else np.concatenate([nothing, *(part[which] for part in parts)]) for which in (0, 1))
        return ZoneParity(self.zone, p, self.inner, q)


def stored_parity(zone: Zone, stripes: range, parity: Bytes) -> Bytes:
    """P or Q of neighbouring stripes as they are stored: cut to what their slots use, and only the lanes that the class keeps."""
    code = zone.code_class
    sizes = [zone.parity_bytes(stripe) for stripe in stripes]
    if is_all_lanes(code.mask) and all(size == code.slot_bytes for size in sizes):
        return parity.reshape(-1)  # the usual case needs no copy
    used = [one[:size].reshape(1, -1, code.record_bytes) for one, size in zip(parity, sizes, strict=True)]
    return np.concatenate([pack_lanes(one, code.mask).reshape(-1) for one in used])


class Coder:
    """Codes a file zone by zone. ``leaves`` is complete when the last zone is."""

    def __init__(
        self,
        file: OpenFile,
        plan: Plan,
        groups: LaneGroups,
        leaf_hash: int,
        jobs: int | None,
        progress: ProgressSink | None,
        task: str,
        census: Census | None = None,
    ) -> None:
        self.census = census
        self.file, self.plan, self.groups, self.progress, self.task = file, plan, groups, progress, task
        self.run_leaves = run_leaves(leaf_hash)
        self.leaf_bytes = LeafHash(leaf_hash).leaf_bytes
        self.leaves = bytearray(plan.leaf_stream_bytes)
        self.jobs = jobs or default_jobs()
        self.done_bytes = 0
        self._lock = threading.Lock()
        self._stopped = False
        self._local = threading.local()

    def run(self, put: Callable[[ZoneParity], None]) -> None:
        """Code all zones; ``put`` is called with each as it is complete, never twice at the same time."""
        zones = self.plan.geometry.zones
        together = len(zones) // self.jobs * self.jobs
        put_lock = threading.Lock()
        with ThreadPoolExecutor(self.jobs, "bitward-code") as pool:

            def whole_zone(zone: Zone) -> None:
                coder = _ZoneCoder(zone, self.groups)
                self._stripes(coder, 0, zone.stripe_count)
                with put_lock:
                    put(coder.result())

            self._join([pool.submit(whole_zone, zone) for zone in zones[:together]])
            for zone in zones[together:]:  # fewer zones than workers: they share each
                coder = _ZoneCoder(zone, self.groups)
                cuts = sorted({index * zone.stripe_count // self.jobs for index in range(self.jobs + 1)})
                self._join([pool.submit(self._stripes, coder, low, high) for low, high in pairwise(cuts)])
                put(coder.result())

    def _join(self, futures: list[Future[None]]) -> None:
        """Wait for workers; when one fails, or the user interrupts, the others end early."""
        try:
            for future in futures:
                future.result()
        except BaseException:
            self._stopped = True
            raise

    def _scratch(self, size: int) -> Bytes:
        """Memory of this worker, kept from zone to zone. What is in it lasts until the worker's next zone."""
        kept: Bytes | None = getattr(self._local, "scratch", None)
        if kept is None or kept.size < size:
            kept = self._local.scratch = np.empty(size, np.uint8)
        return kept

    def _stripes(self, coder: _ZoneCoder, low: int, high: int) -> None:
        """Code stripes ``low .. high`` of a zone."""
        zone = coder.zone
        code = zone.code_class
        parity_bytes = 2 * (high - low) * code.slot_bytes
        scratch = self._scratch(parity_bytes + _BATCH_SLOTS * code.slot_bytes)
        buffer = scratch[parity_bytes:]
        accumulator = StripeAccumulator(code, high - low, scratch) if code.has_parity else None
        for position in range(zone.stripe_length(low)):
            last = min(high, zone.slot_count - position * zone.stripe_count)
            for at in range(low, last, _BATCH_SLOTS):
                if self._stopped:
                    return
                self._batch(coder, accumulator, position, at, min(at + _BATCH_SLOTS, last), low, buffer)
        coder.keep(low, accumulator, high - low)

    def _batch(
        self, coder: _ZoneCoder, accumulator: StripeAccumulator | None, position: int, low: int, high: int, base: int, buffer: Bytes
    ) -> None:
        zone, code = coder.zone, coder.zone.code_class
        first, end = zone.slot(low, position), zone.slot(high - 1, position) + 1
        for slot, run in code.runs(first, end):
            slots = self._full_run(coder, slot, run, buffer)
            if accumulator is not None:
                accumulator.add(position, low - base + slot - first, slots)
        for slot in range(max(first, code.full_count), end):
            slots = self._packed_slot(coder, code.pieces(slot), code)
            if accumulator is not None:
                accumulator.add(position, low - base + slot - first, slots)

    def _read(self, target: Bytes, offset: int) -> None:
        lost = self.file.read_into(memoryview(target), offset)  # type: ignore[arg-type]  # arrays are buffers
        if lost:
            raise UnreadableError(f"{self.file.path}: bytes {lost[0][0]} to {lost[0][1]} cannot be read")
        if self.census is not None:
            self.census.add(offset, target)
        with self._lock:
            self.done_bytes += target.size
            if self.progress:
                self.progress(Progress(self.task, self.file.path, self.done_bytes, self.plan.table.layout.file_bytes))

    def _keep_leaves(self, number: int, index: int, data: Bytes, block_bytes: int) -> None:
        """Keep the leaves of neighbouring blocks of one span, the first being block ``number`` of the file and ``index`` of the span."""
        leaves = self.run_leaves(memoryview(data), index, block_bytes)  # type: ignore[arg-type]  # arrays are buffers
        self.leaves[number * self.leaf_bytes : number * self.leaf_bytes + len(leaves)] = leaves

    def _full_run(self, coder: _ZoneCoder, slot: int, run: Run, buffer: Bytes) -> Bytes:
        """Read, hash and inner-code a run of full blocks; returns them as slots (count, slot_bytes)."""
        table, code = self.plan.table, coder.zone.code_class
        span = table.layout.spans[run.span_index]
        block_bytes = span.kind.block_bytes
        data = buffer[: run.count * block_bytes]
        self._read(data, span.offset + run.first * block_bytes)
        number = table.first_numbers[run.span_index] + run.first
        blocks = data.reshape(run.count, block_bytes)
        self._keep_leaves(number, run.first, data, block_bytes)
        blobs = inner_blobs(blocks, span.kind, self.groups)
        at = coder.offsets.of_full_slot(slot)
        coder.inner[at : at + blobs.size] = blobs.reshape(-1)
        if block_bytes == code.slot_bytes:
            return blocks
        slots = np.zeros((run.count, code.slot_bytes), np.uint8)
        slots[:, :block_bytes] = blocks
        return slots

    def _packed_slot(self, coder: _ZoneCoder, pieces: list[Piece], code: CodeClass) -> Bytes:
        slot = np.zeros((1, code.slot_bytes), np.uint8)
        for piece in pieces:
            block = piece.block
            data = slot[0, piece.at : piece.at + block.length]
            self._read(data, block.offset)
            self._keep_leaves(block.number, block.index, data, block.length)
            blob = inner_blobs(np.ascontiguousarray(data)[None], block.span.kind, self.groups)
            at = coder.offsets.of_packed(block)
            coder.inner[at : at + blob.size] = blob.reshape(-1)
        return slot
