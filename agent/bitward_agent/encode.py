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

from bitward_agent.errors import UnreadableError
from bitward_agent.findings import Progress, ProgressSink
from bitward_agent.io import OpenFile
from bitward_agent.page_census import Census
from bitward_agent.scan import default_jobs
from bitward_formats.coding import Accumulator, Coding, coding_for
from bitward_formats.digest import LeafHash, run_leaves
from bitward_formats.geometry import CodeClass, InnerOffsets, Piece, Run, Zone, inner_blob_bytes
from bitward_formats.groups import LaneGroups
from bitward_formats.pages import Section
from bitward_formats.sidecar import Plan

_BATCH_SLOTS = 32
"""Slots that are read and coded at once, 2 MiB: smaller batches cost more in calls than they save in the cache (measured from 4 to 64)."""


@dataclass(slots=True)
class ZoneParity:
    """The three streams of a zone, complete."""

    zone: Zone
    p: memoryview
    inner: memoryview
    q: memoryview

    def streams(self) -> Iterator[tuple[Section, int, memoryview]]:
        """(section, first page, stream) of each."""
        yield Section.P, self.zone.p_page, self.p
        yield Section.INNER, self.zone.inner_page, self.inner
        yield Section.Q, self.zone.q_page, self.q


class _ZoneCoder:
    """Collects what the workers of one zone make."""

    def __init__(self, zone: Zone, groups: LaneGroups, coding: Coding) -> None:
        self.zone, self.coding = zone, coding
        self.offsets = InnerOffsets(zone, groups)
        self.inner = memoryview(bytearray(zone.inner_stream_bytes))
        self.parts: dict[int, tuple[memoryview, memoryview]] = {}

    def keep(self, first_stripe: int, accumulator: Accumulator | None, stripe_count: int) -> None:
        if accumulator is None:
            return
        p, q = accumulator.result()
        if stripe_count != self.zone.stripe_count:
            # They are in the worker's scratch memory, and the worker may take another part of this zone.
            p, q = memoryview(bytearray(p)), memoryview(bytearray(q))
        code = self.zone.code_class
        sizes = [self.zone.parity_bytes(stripe) for stripe in range(first_stripe, first_stripe + stripe_count)]
        self.parts[first_stripe] = (self.coding.stored_parity(code, p, sizes), self.coding.stored_parity(code, q, sizes))

    def result(self) -> ZoneParity:
        parts = [self.parts[first] for first in sorted(self.parts)]
        if len(parts) == 1:
            p, q = parts[0]
        else:
            p, q = (memoryview(bytearray(b"".join([part[which] for part in parts]))) for which in (0, 1))
        return ZoneParity(self.zone, p, self.inner, q)


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
        self.coding = coding_for(groups)
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
                coder = _ZoneCoder(zone, self.groups, self.coding)
                self._stripes(coder, 0, zone.stripe_count)
                with put_lock:
                    put(coder.result())

            self._join([pool.submit(whole_zone, zone) for zone in zones[:together]])
            for zone in zones[together:]:  # fewer zones than workers: they share each
                coder = _ZoneCoder(zone, self.groups, self.coding)
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

    def _scratch(self, size: int) -> memoryview:
        """Memory of this worker, kept from zone to zone. What is in it lasts until the worker's next zone."""
        kept: memoryview | None = getattr(self._local, "scratch", None)
        if kept is None or len(kept) < size:
            kept = self._local.scratch = memoryview(bytearray(size))
        return kept

    def _stripes(self, coder: _ZoneCoder, low: int, high: int) -> None:
        """Code stripes ``low .. high`` of a zone."""
        zone = coder.zone
        code = zone.code_class
        parity_bytes = 2 * (high - low) * code.slot_bytes
        batch_bytes = _BATCH_SLOTS * code.slot_bytes
        scratch = self._scratch(parity_bytes + 2 * batch_bytes)
        buffers = scratch[parity_bytes : parity_bytes + batch_bytes], scratch[parity_bytes + batch_bytes :]
        accumulator = self.coding.accumulator(code, high - low, scratch) if code.has_parity else None
        for position in range(zone.stripe_length(low)):
            last = min(high, zone.slot_count - position * zone.stripe_count)
            for at in range(low, last, _BATCH_SLOTS):
                if self._stopped:
                    return
                self._batch(coder, accumulator, position, at, min(at + _BATCH_SLOTS, last), low, buffers)
        coder.keep(low, accumulator, high - low)

    def _batch(
        self,
        coder: _ZoneCoder,
        accumulator: Accumulator | None,
        position: int,
        low: int,
        high: int,
        base: int,
        buffers: tuple[memoryview, memoryview],
    ) -> None:
        zone, code = coder.zone, coder.zone.code_class
        first, end = zone.slot(low, position), zone.slot(high - 1, position) + 1
        for slot, run in code.runs(first, end):
            slots = self._full_run(coder, slot, run, buffers)
            if accumulator is not None:
                accumulator.add(position, low - base + slot - first, slots)
        for slot in range(max(first, code.full_count), end):
            slots = self._packed_slot(coder, code.pieces(slot), code)
            if accumulator is not None:
                accumulator.add(position, low - base + slot - first, slots)

    def _read(self, target: memoryview, offset: int) -> None:
        lost = self.file.read_into(target, offset)
        if lost:
            raise UnreadableError(f"{self.file.path}: bytes {lost[0][0]} to {lost[0][1]} cannot be read")
        if self.census is not None:
            self.census.add(offset, target)
        with self._lock:
            self.done_bytes += len(target)
            if self.progress:
                self.progress(Progress(self.task, self.file.path, self.done_bytes, self.plan.table.layout.file_bytes))

    def _keep_leaves(self, number: int, index: int, data: memoryview, block_bytes: int) -> None:
        """Keep the leaves of neighbouring blocks of one span, the first being block ``number`` of the file and ``index`` of the span."""
        leaves = self.run_leaves(data, index, block_bytes)
        self.leaves[number * self.leaf_bytes : number * self.leaf_bytes + len(leaves)] = leaves

    def _full_run(self, coder: _ZoneCoder, slot: int, run: Run, buffers: tuple[memoryview, memoryview]) -> memoryview:
        """Read, hash and inner-code a run of full blocks; returns them as slots."""
        table, code = self.plan.table, coder.zone.code_class
        kind = table.layout.spans[run.span_index].kind
        block_bytes, slot_bytes = kind.block_bytes, code.slot_bytes
        blocks = buffers[0][: run.count * block_bytes]
        self._read(blocks, table.layout.spans[run.span_index].offset + run.first * block_bytes)
        self._keep_leaves(table.first_numbers[run.span_index] + run.first, run.first, blocks, block_bytes)
        at = coder.offsets.of_full_slot(slot)
        size = run.count * inner_blob_bytes(kind, block_bytes, self.groups)
        self.coding.put_inner_blobs(blocks, block_bytes, kind, coder.inner[at : at + size])
        if block_bytes == slot_bytes:
            return blocks
        slots, rest = buffers[1][: run.count * slot_bytes], bytes(slot_bytes - block_bytes)
        for index in range(run.count):
            start, end = index * slot_bytes, (index + 1) * slot_bytes
            slots[start : start + block_bytes] = blocks[index * block_bytes : (index + 1) * block_bytes]
            slots[start + block_bytes : end] = rest
        return slots

    def _packed_slot(self, coder: _ZoneCoder, pieces: list[Piece], code: CodeClass) -> memoryview:
        slot = memoryview(bytearray(code.slot_bytes))
        for piece in pieces:
            block = piece.block
            data = slot[piece.at : piece.at + block.length]
            self._read(data, block.offset)
            self._keep_leaves(block.number, block.index, data, block.length)
            at = coder.offsets.of_packed(block)
            size = inner_blob_bytes(block.span.kind, block.length, self.groups)
            self.coding.put_inner_blobs(data, block.length, block.span.kind, coder.inner[at : at + size])
        return slot
